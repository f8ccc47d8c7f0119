"""The survey: which uses of parameters are covered, and the proof that the norms are right.

Before norms are computed for a model, its forward is run on two and on three examples, so that what
has the examples first is told from what only happens to be as long; and the norms of the two
examples are compared with plain gradients. What cannot be had is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor, nn

from attent.pipeline.ghost.mapped import Call, mapping
from attent.pipeline.ghost.pieces import Dense, Outer
from attent.pipeline.ghost.proof import (
    TOLERANCE,
    Losses,
    check_independent,
    check_squares,
    graph_nodes,
    plain_squares,
    pull,
)
from attent.pipeline.ghost.rules import PRODUCTS
from attent.pipeline.ghost.tape import GhostError, Tape
from attent.pipeline.ghost.uses import BATCHED, DERIVED, UNCOVERED, Use
from attent.pipeline.keyed import global_generators


@dataclass(frozen=True)
class Coverage:
    """How the gradient norms of a model are computed.

    Attributes:
        uses: every use of a parameter in a forward, in order.
        mapped: path of a module -> parameters of it that vmap accounts for.
        batched: (path, place of an input) of mapped modules -> whether it has the examples first.
        heads: positions in ``uses`` of the last matrix products on the way to the loss.
        formed: parameters whose per-example gradient is formed on the way to its norm.
        products: parameters of one matrix product and no other use.
    """

    uses: tuple[Use, ...]
    mapped: Mapping[str, frozenset[str]]
    batched: Mapping[tuple[str, int], bool]
    heads: frozenset[int]
    formed: frozenset[str]
    products: frozenset[str]

    @property
    def mapped_names(self) -> frozenset[str]:
        """The parameters that vmap accounts for, all or in part."""
        return _names(self.mapped)

    def told(self, model: nn.Module) -> str:
        """What is mapped by vmap, for people."""
        if not self.mapped:
            return "all by ghost norms"
        named = [
            f"{path or 'the whole model'} ({type(model.get_submodule(path)).__name__})"
            for path in sorted(self.mapped)
        ]
        return f"ghost norms, but by vmap: {', '.join(named)}"


def survey(
    model: nn.Module, losses: Losses, params: Mapping[str, Tensor], batch: TensorDict
) -> Coverage:
    """Find out how a model uses its parameters.

    Args:
        model: whose modules are mapped where no rule covers a use.
        losses: runs the model; its buffers and the global generators are put back by the caller.
        params: the trainable parameters by name.
        batch: at least one example, as the model is to see it.

    Raises:
        GhostError: the norms cannot be had, or differ from those of plain gradients.
    """
    device = next(iter(params.values())).device
    pair = [0, _another(batch)]
    two, three = (batch[torch.tensor(p, device=device)] for p in (pair, [*pair, 0]))
    mapped: dict[str, frozenset[str]] = {}
    overrides: dict[int, str] = {}
    for _ in range(10 * (2 + sum(1 for _ in model.modules()))):
        first = _trace(model, losses, params, two, mapped, overrides)
        second = _trace(model, losses, params, three, mapped, overrides)
        mistaken = _mistaken(first.uses, second.uses)
        if mistaken is not None:
            overrides[mistaken[0]] = mistaken[1]
            continue
        moved = _escalate(mapped, first, second)
        uncovered = [use for use in first.uses if use.kind == UNCOVERED]
        for use in uncovered:
            path = _holding(model, use)
            mapped[path] = mapped.get(path, frozenset()) | frozenset(use.names)
        _outermost(mapped)
        if not uncovered and not moved:
            return _proved(model, losses, params, two, mapped, first, second)
        overrides.clear()
    raise GhostError("the uses of the model's parameters cannot be told apart; use vmap_grad_norm")


def _another(batch: TensorDict) -> int:
    """An example that is not like the first: of like ones each might stand for the other."""
    fields = [batch.get(name) for name in batch.keys(True, True) if name != "index"]
    for i in range(1, len(batch)):
        if any(not torch.equal(value[0], value[i]) for value in fields):
            return i
    return 0


def head_names(losses: Losses, params: Mapping[str, Tensor], batch: TensorDict) -> list[str]:
    """The parameters of the last matrix products on the way to the loss.

    Args:
        losses: runs the model.
        params: all of its parameters, also those that are not trained.
        batch: at least one example.

    Raises:
        GhostError: there are none that a rule covers.
    """
    device = next(iter(params.values())).device
    tape = Tape(params, 2, keep=True)
    with tape:
        values = losses(params, batch[torch.arange(2, device=device) % len(batch)])
    heads = _heads(values, tape, [])
    tape.outputs.clear()
    names = sorted({name for position in heads for name in tape.uses[position].names})
    if not names:
        raise GhostError("the model has no head that is covered; use grad_norm")
    return names


@dataclass(frozen=True)
class _Trace:
    uses: list[Use]
    calls: list[Call]


def _trace(
    model: nn.Module,
    losses: Losses,
    params: Mapping[str, Tensor],
    batch: TensorDict,
    mapped: Mapping[str, frozenset[str]],
    overrides: Mapping[int, str],
) -> _Trace:
    with _running(model) as where:
        tape = Tape(params, len(batch), overrides=overrides, where=where)
        with mapping(model, tape, mapped) as calls, tape:
            losses(params, batch)
    return _Trace(tape.uses, calls)


def _mistaken(first: list[Use], second: list[Use]) -> tuple[int, str] | None:
    """The first use whose kind was guessed wrong from one batch size alone, and what it is."""
    for position, (a, b) in enumerate(zip(first, second, strict=False)):
        if a.shape == b.shape and not a.written:  # though it may be as long as one of the batches
            kind = DERIVED
        elif a.shape[:1] == (2,) and b.shape[:1] == (3,) and UNCOVERED not in (a.kind, b.kind):
            kind = BATCHED
        else:
            kind = UNCOVERED
        if (a.kind, b.kind) != (kind, kind):
            return position, kind
    if len(first) != len(second):
        raise GhostError(
            "the model uses its parameters otherwise with two examples than with three; use "
            "looped_grad_norm for such a model"
        )
    return None


def _holding(model: nn.Module, use: Use) -> str:
    """The innermost module around a use that holds its parameters."""
    known = dict(model.named_parameters(remove_duplicate=False))
    path = use.module
    while path:
        held = {id(p) for p in model.get_submodule(path).parameters()}
        if all(id(known[name]) in held for name in use.names):
            return path
        path = path.rpartition(".")[0]
    return path


def _outermost(mapped: dict[str, frozenset[str]]) -> None:
    """A module that is mapped accounts for its parameters in the modules within it as well."""
    for path in list(mapped):
        above = [p for p in mapped if p != path and (not p or path.startswith(p + "."))]
        mapped[path] = mapped[path].difference(*(mapped[p] for p in above))
        if not mapped[path]:
            del mapped[path]


def _escalate(mapped: dict[str, frozenset[str]], first: _Trace, second: _Trace) -> bool:
    """Map the parent of a module whose outputs do not have the examples first."""
    moved = False
    for path in list(mapped):
        pairs = [
            (a, b)
            for a, b in zip(first.calls, second.calls, strict=True)
            if a.path == b.path == path
        ]
        shapes = [s for a, b in pairs for s in zip(a.outputs, b.outputs, strict=True)]
        # A container such as a ModuleList is never called.
        if pairs and all(a[:1] == (2,) and b[:1] == (3,) for a, b in shapes):
            continue
        if not path:
            raise GhostError("the model's output does not have the examples first")
        parent = path.rpartition(".")[0]
        mapped[parent] = mapped.get(parent, frozenset()) | mapped.pop(path)
        moved = True
    return moved


def _batched_inputs(first: list[Call], second: list[Call]) -> dict[tuple[str, int], bool]:
    found: dict[tuple[str, int], bool] = {}
    for a, b in zip(first, second, strict=True):
        for place, (s, t) in enumerate(zip(a.shapes(), b.shapes(), strict=True)):
            found[a.path, place] = bool(s) and bool(t) and s[:1] == (2,) and t[:1] == (3,)
    return found


def _proved(
    model: nn.Module,
    losses: Losses,
    params: Mapping[str, Tensor],
    batch: TensorDict,
    mapped: Mapping[str, frozenset[str]],
    first: _Trace,
    second: _Trace,
) -> Coverage:
    """The coverage, after its norms of two examples have been held against plain gradients."""
    batched = _batched_inputs(first.calls, second.calls)
    device = next(iter(params.values())).device
    with global_generators(device):
        values = losses(params, batch)
        if values.shape != (len(batch),):
            raise GhostError(f"losses are one number for each example, not {list(values.shape)}")
        if not values.requires_grad:
            raise GhostError("the losses do not depend on any trainable parameter")
        plain = [plain_squares(value, params) for value in values]
    with global_generators(device):  # the same dropout
        tape = Tape(params, len(batch), known=first.uses, mapped=_names(mapped), keep=True)
        with mapping(model, tape, mapped) as calls, tape:
            watched = losses(params, batch)
        heads = _heads(watched, tape, calls)
        tape.outputs.clear()
        pull(watched, tape, calls, batched)
    tolerance = TOLERANCE[any(use.half for use in first.uses)]
    check_squares(tape.squares, plain, tolerance)
    check_independent(model, losses, params, batch, tolerance)
    formed = frozenset(name for name, kind in tape.kinds.items() if kind is Dense)
    products = frozenset(name for name, kind in tape.kinds.items() if kind is Outer)
    return Coverage(tuple(first.uses), dict(mapped), batched, heads, formed, products)


def _names(mapped: Mapping[str, frozenset[str]]) -> frozenset[str]:
    return frozenset().union(*mapped.values())


def _heads(losses: Tensor, tape: Tape, calls: list[Call]) -> frozenset[int]:
    """The matrix products that the graph of the losses meets first.

    None if something that no rule covers is among them.
    """
    mapped = {end for call in calls for end in call.ends}
    nodes = {output.grad_fn: position for position, output in tape.outputs.items()}
    products = {
        node: position
        for node, position in nodes.items()
        if tape.uses[position].function in PRODUCTS
    }
    ends = mapped | {n for n, position in nodes.items() if tape.uses[position].kind == UNCOVERED}
    # Through a scale or a norm: what comes before it may still be the head.
    met = set(graph_nodes(losses, lambda node: node not in products and node not in ends))
    if met & ends:
        return frozenset()
    return frozenset(position for node, position in products.items() if node in met)


@contextmanager
def _running(model: nn.Module) -> Iterator[Callable[[], str]]:
    """Says which module of a model is running."""
    stack = [""]
    handles = []
    for path, module in model.named_modules():
        handles.append(module.register_forward_pre_hook(_enter(stack, path)))
        handles.append(module.register_forward_hook(_leave(stack), always_call=True))
    try:
        yield lambda: stack[-1]
    finally:
        for handle in handles:
            handle.remove()


def _enter(stack: list[str], path: str) -> Callable:
    return lambda module, args: stack.append(path)


def _leave(stack: list[str]) -> Callable:
    def leave(module: nn.Module, args: object, output: object) -> None:
        stack.pop()

    return leave
