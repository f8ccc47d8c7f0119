"""Lines of sight and of light, and where each solid begins and ends on them.

The points of one family of lines are ``s * e + g + p * a + q * b`` in homogeneous coordinates: a
line is named by two numbers ``(p, q)`` and a point on it by ``s``, which grows towards where the
line comes from, the eye or the light.

- Seen from a camera, ``(p, q)`` is the place in the picture and ``s`` is one over the depth:
  ``(x, 1) / depth = s * (eye, 1) + (forward + p * right + q * down, 0)``.
- Seen from a light that is infinitely far away, ``(p, q)`` is the place on a plane at right angles
  to the light and ``s`` is the height over it: ``(x, 1) = s * (light, 0) + (p * a + q * b, 1)``.

What makes both cheap: where a line meets a plane, ``s`` is linear in ``(p, q)``; where it meets
a quadric, ``s`` is a linear form plus or minus the root of a quadratic one. The coefficients
depend on the solid and the family alone; a ray costs a few multiplications for each solid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attent.tasks.data.scenes.layout import (
    BALL,
    BOX,
    CONE,
    HOLE,
    Layout,
    cross,
    dot,
    unit,
)

BIG = 1e6
"""Stands for infinity where a solid has no bound on a line."""

QUADRIC, SLAB = 13, 9
INNER = slice(0, QUADRIC)
OUTER = slice(INNER.stop, INNER.stop + QUADRIC)
ACROSS = slice(OUTER.stop, OUTER.stop + SLAB)
BESIDE = slice(ACROSS.stop, ACROSS.stop + 3 * SLAB)
"""Rows of `Solids.table`: a ring's hole, the quadric, the slab across z, and those of a box."""


@dataclass(frozen=True)
class Solids:
    """Solids as V families of lines meet them; columns are ``family * K + slot``.

    Attributes:
        table: ``[62, V * K]`` float32, the coefficients: rows `INNER`, `OUTER`, `ACROSS`, `BESIDE`.
        bounds: ``[4, V * K]`` float32: least p and q, and greatest p and q, of the lines that may
            meet the solid; none (greatest below least) for an empty slot.
        kind: ``[V * K]`` int64.
    """

    table: Tensor
    bounds: Tensor
    kind: Tensor


@dataclass(frozen=True)
class Lines:
    """V families of lines, float64.

    Attributes:
        span: ``[V, 4, 4]``, rows ``e, g, a, b``.
        project: ``[V, 3, 4]``, from homogeneous points to ``(1, p, q)`` up to scale, positive for
            what the lines lead to.
    """

    span: Tensor
    project: Tensor


def sight(layout: Layout) -> Lines:
    """The lines of sight of the B cameras: p to the right and q down, in [-1, 1] on the picture."""
    zero = torch.zeros_like(layout.eye[:, :1])
    rows = [torch.cat((layout.eye, zero + 1), dim=1)]
    rows += [torch.cat((v, zero), dim=1) for v in (layout.forward, layout.right, layout.down)]
    inverse = [v / dot(v, v).unsqueeze(-1) for v in (layout.forward, layout.right, layout.down)]
    project = [torch.cat((v, -dot(v, layout.eye).unsqueeze(-1)), dim=1) for v in inverse]
    return Lines(torch.stack(rows, dim=1), torch.stack(project, dim=1))


def beams(layout: Layout) -> Lines:
    """The lines of the 2 B lights, families ``light * B + scene``: p and q in metres."""
    light = layout.light.transpose(0, 1).reshape(-1, 3)
    zero = torch.zeros_like(light[:, :1])
    origin = torch.cat((torch.zeros_like(light), zero + 1), dim=1)
    along, a, b = (torch.cat((v, zero), dim=1) for v in (light, *across(light)))
    return Lines(torch.stack((along, origin, a, b), dim=1), torch.stack((origin, a, b), dim=1))


def across(light: Tensor) -> tuple[Tensor, Tensor]:
    """Two unit vectors at right angles to directions ``[..., 3]``, none of them overhead."""
    side = torch.stack((-light[..., 1], light[..., 0], torch.zeros_like(light[..., 0])), dim=-1)
    side = unit(side)
    return side, cross(light, side)


def solids(layout: Layout) -> Solids:
    """How lines of sight and beams meet the solids of B scenes.

    Returns:
        Of 3 B families: the B cameras, the first light of each scene, the second.
    """
    families = sight(layout), beams(layout)
    span = torch.cat([lines.span for lines in families])
    project = torch.cat([lines.project for lines in families])
    kind, centre, axes = (
        v.repeat(3, *[1] * (v.ndim - 1)) for v in (layout.kind, layout.centre, layout.axes)
    )
    local = _to_local(span, centre, axes)  # [V, K, 4 vectors, 4]
    slabs = _slabs(local)
    parts = (
        _quadric(local, kind, HOLE),
        _quadric(local, kind, 1),
        _across(slabs, kind),
        _beside(slabs),
    )
    missing = torch.cat((torch.zeros(len(layout), dtype=torch.bool), _dark(layout)))
    bounds = _bounds(project, torch.where(missing.unsqueeze(1), -1, kind), centre, axes)
    return Solids(
        torch.cat(parts, dim=-1).flatten(0, 1).t().contiguous().float(),
        bounds.flatten(0, 1).t().contiguous().float(),
        kind.flatten(),
    )


def _dark(layout: Layout) -> Tensor:
    """Which of the 2 B lights are missing: nothing is in their way."""
    return (layout.glow == 0).all(-1).t().flatten()


def plane(lines: Lines, normal: Tensor, offset: Tensor) -> Tensor:
    """``s`` where lines meet the planes ``normal . x = offset``, as a linear form.

    Args:
        lines: V families.
        normal: ``[V, 3]``.
        offset: ``[V]``; where it is infinite the form is zero: the plane is infinitely far away.

    Returns:
        ``[V, 3]``, the coefficients of 1, p and q.
    """
    there = offset.isfinite()
    offset = torch.where(there, offset, 0)
    value = dot(lines.span[..., :3], normal.unsqueeze(1)) - lines.span[..., 3] * offset[:, None]
    return torch.where(there[:, None], -value[:, 1:] / value[:, :1], 0)


def _to_local(span: Tensor, centre: Tensor, axes: Tensor) -> Tensor:
    """Homogeneous vectors ``[V, 4, 4]`` in the coordinates of each solid, ``[V, K, 4, 4]``."""
    inverse = axes / dot(axes, axes).unsqueeze(-1)  # rows: one coordinate each
    x = span[:, None, :, None, :3] - span[:, None, :, None, 3:] * centre[:, :, None, None, :]
    return torch.cat(
        (
            dot(x, inverse[:, :, None]),
            span[:, None, :, 3:].expand(-1, centre.shape[1], -1, -1),
        ),
        dim=-1,
    )


PAIRS = torch.combinations(torch.arange(4), with_replacement=True).t()
"""Pairs of the four vectors of a family of lines: 00 01 02 03 11 12 13 22 23 33."""

TWICE = torch.tensor([1, 2, 2, 1, 2, 1], dtype=torch.float64)
"""How often each product of 1, p and q is in a square: 1, p, q, p^2, pq, q^2."""


def _quadric(local: Tensor, kind: Tensor, radius: float) -> Tensor:
    """Where lines enter and leave ``x^2 + y^2 (+ z^2) = e^2``, e linear in z.

    Returns:
        ``[V, K, 13]``: a linear form (3), a quadratic form (6), and how ``s`` of the near and of
        the far end is made of the linear form and the root of the other: the two r (2) and the two
        c (2) of ``linear + r * root + c``.
    """
    x, y, z, w = local.unbind(-1)
    ball, cone = (kind == BALL).unsqueeze(-1), (kind == CONE).unsqueeze(-1)
    e = torch.where(cone, (w - z) / 2, w) * radius
    parts = torch.stack((x, y, torch.where(ball, z, 0), e))
    xx, yy, zz, ee = parts[..., PAIRS[0]] * parts[..., PAIRS[1]]
    forms = xx + yy + zz - ee
    lead, half, rest = forms[..., :1], forms[..., 1:4], forms[..., 4:]
    lead = torch.where(lead < 0, lead.clamp_max(-1e-3), lead.clamp_min(1e-3))
    i, j = PAIRS[:, 4:] - 1
    quadratic = (half[..., i] * half[..., j] - lead * rest) / lead.square() * TWICE
    # The line comes from outside the quadric (lead > 0) and meets it twice. Or it comes from
    # inside, and is inside above the upper root; if that is the part of a double cone that is none
    # of the solid, what counts is below the lower root.
    outside = lead > 0
    wrong = cone & (z[..., :1] > w[..., :1])
    one, zero = torch.ones_like(lead), torch.zeros_like(lead)
    near = torch.where(outside, one, torch.where(wrong, -one, zero))
    near_add = torch.where(outside | wrong, zero, BIG)
    far = torch.where(outside, -one, torch.where(wrong, zero, one))
    far_add = torch.where(~outside & wrong, -BIG, zero)
    return torch.cat((-half / lead, quadratic, near, far, near_add, far_add), dim=-1)


def _slabs(local: Tensor) -> Tensor:
    """Where lines enter and leave ``|x| <= 1``, for each axis.

    Returns:
        ``[3, V, K, 3, 3]``, linear forms in the last dimension for each axis in the one before: a
        first that bound ``s`` from above, and two more that bound it from below, since a line that
        starts between the planes leaves by one or the other.
    """
    x, w = local[..., :3].transpose(-1, -2), local[..., 3].unsqueeze(-2)
    sides = torch.stack((x - w, -x - w))  # of the upper and the lower plane; at most 0 inside
    lead = sides[..., :1]
    lead = torch.where(lead < 0, lead.clamp_max(-1e-6), lead.clamp_min(1e-6))
    upper, lower = -sides[..., 1:] / lead
    above, below = lead > 0
    never = torch.zeros_like(upper)
    never[..., 0] = BIG
    near = torch.where(above, upper, torch.where(below, lower, never))
    far = torch.where(above, lower, upper)
    other = torch.where(above | below, -never, lower)
    return torch.stack((near, far, other))


def _across(slabs: Tensor, kind: Tensor) -> Tensor:
    """The slab across z, which a ball lacks: ``[V, K, 9]``, three forms of each coefficient."""
    forms = slabs[..., 2, :]
    never = torch.zeros_like(forms)
    never[0, ..., 0], never[1:, ..., 0] = BIG, -BIG
    forms = torch.where((kind == BALL).unsqueeze(-1), never, forms)
    return forms.permute(1, 2, 3, 0).flatten(-2)


def _beside(slabs: Tensor) -> Tensor:
    """The slabs of a box: ``[V, K, 27]``, nine forms of each coefficient, the three near first."""
    return slabs.permute(1, 2, 4, 0, 3).flatten(-3)


def _bounds(project: Tensor, kind: Tensor, centre: Tensor, axes: Tensor) -> Tensor:
    """Bounds of (p, q) for each solid, ``[V, K, 4]``: see `Solids`.

    A ball is an ellipsoid; the others lie between two ellipses at the ends of their third axis
    (a cone's upper one is a point, a box's are drawn around its faces).
    """
    rows = project[:, None, None, :, :3]  # [V, 1, 1, 3, 3]
    ball = (kind == BALL)[..., None, None]
    ends = torch.where(ball, 0, torch.tensor([-1.0, 1.0], dtype=centre.dtype)[:, None])
    middle = centre.unsqueeze(2) + ends * axes[:, :, 2:]  # [V, K, 2, 3]
    middle = dot(rows, middle.unsqueeze(-2)) + project[:, None, None, :, 3]
    wide = torch.where(kind == BOX, 2.0**0.5, 1.0).to(centre.dtype)
    wide = torch.stack((wide, torch.where(kind == CONE, 0, wide)), dim=-1)[..., None]
    first, second, third = (dot(rows, axes[:, :, None, i, None]) for i in range(3))
    reach = (first * wide, second * wide, torch.where(ball, third, 0).expand_as(middle))

    def dual(i: int, j: int) -> Tensor:  # of the ellipses as conics of lines: [V, K, 2]
        around = [a[..., i] * a[..., j] for a in reach]
        return around[0] + around[1] + around[2] - middle[..., i] * middle[..., j]

    least, most = [], []
    for i in (1, 2):
        root = (dual(0, i).square() - dual(0, 0) * dual(i, i)).clamp_min(0).sqrt()
        least.append(((dual(0, i) + root) / dual(0, 0)).amin(-1))
        most.append(((dual(0, i) - root) / dual(0, 0)).amax(-1))
    bounds = torch.stack((*least, *most), dim=-1)
    nothing = torch.tensor([BIG, BIG, -BIG, -BIG], dtype=centre.dtype)
    return torch.where((kind >= 0).unsqueeze(-1), bounds, nothing)
