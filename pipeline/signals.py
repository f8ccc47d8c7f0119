"""Signals: what is measured of each example.

`looped_grad_norms`, by plain autograd of one example at a time, is the definition of a gradient
norm, for any model; `vmap_grad_norms` maps it, and `attent.pipeline.ghost` computes it for less.

Shapes: B examples in a batch, P trainable parameters in all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.func import grad, vmap
from torch.utils._pytree import tree_flatten, tree_leaves, tree_unflatten

from attent.pipeline import ghost
from attent.pipeline.source import Source, fetch_batch
from attent.pipeline.task import (
    Task,
    functional_losses,
    functional_model,
    in_eval_mode,
    view_keys,
)
from attent.pipeline.vmapping import ready_for_vmap

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A measure of how much an example has to teach.

    Attributes:
        name: its entry below ``scores``.
        measure: (task, params, buffers, batch, chunk) -> ``[B]`` float32; the model is in eval mode
            and the batch is the fixed view; chunk is how many examples to map at once.
        backward: whether it costs a backward pass beside the forward.
        explain: (task, source) -> how it is computed for this task, shown by `describe`.
    """

    name: str
    measure: Callable[[Task, Tensors, Tensors, TensorDict, int | None], Tensor]
    backward: bool = False
    explain: Callable[[Task, Source], str] | None = None


def example_losses(
    task: Task, params: Tensors, buffers: Tensors, batch: TensorDict, chunk: int | None = None
) -> Tensor:
    """The loss of each example, ``[B]``, from one batched forward without gradient."""
    with torch.no_grad():
        return functional_losses(task, params, buffers, batch).float()


def looped_grad_norms(
    task: Task, params: Tensors, buffers: Tensors, batch: TensorDict, chunk: int | None = None
) -> Tensor:
    """The Euclidean norm of each example's gradient, ``[B]``, one example at a time.

    ``s_i = || d loss_i / d params ||`` by plain autograd: for any model, also one whose examples
    are of different numbers of rows (regions, tokens), at B forwards and backwards. A parameter
    that an example does not use adds nothing.
    """
    leaves = {name: value.detach().requires_grad_() for name, value in params.items()}
    norms = []
    with torch.enable_grad():
        for i in range(len(batch)):
            loss = functional_losses(task, leaves, buffers, batch[i : i + 1])[0]
            found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
            norms.append(_norm([g for g in found if g is not None]))
    return torch.stack(norms)


def vmap_grad_norms(
    task: Task, params: Tensors, buffers: Tensors, batch: TensorDict, chunk: int | None = None
) -> Tensor:
    """The Euclidean norm of each example's gradient with respect to the trainable parameters.

    ``s_i = || d loss_i / d params ||``, ``[B]``. Reduced to the norm inside the mapped function, so
    that no more than ``chunk`` examples' gradients (chunk * P numbers) are held at once.
    """

    def norm(params: Tensors, example: TensorDict) -> Tensor:
        def loss(params: Tensors) -> Tensor:
            return functional_losses(task, params, buffers, example.unsqueeze(0))[0]

        return _norm(grad(loss)(params))

    # no_grad only stops torch's own graph: `grad` differentiates inside.
    with torch.no_grad(), ready_for_vmap(task.model):
        return vmap(norm, in_dims=(None, 0), chunk_size=chunk)(params, batch).float()


def output_grad_norms(
    task: Task, params: Tensors, buffers: Tensors, batch: TensorDict, chunk: int | None = None
) -> Tensor:
    """The norm of the gradient of each example's loss with respect to the model's output.

    ``s_i = || d loss_i / d f(x_i) ||``, ``[B]``: the functional gradient of nonparametric teaching
    (Zhang et al., ICLR 2026, section 3) at the price of one forward. For cross-entropy it is
    ``|| softmax(f(x)) - onehot(y) ||``, for squared error ``2 || f(x) - y ||``.

    A task whose ``forward`` gives something else than the model's output (losses of tokens, because
    their logits are many) says it itself: ``output_grad_norms(model, batch) -> [B]``.
    """
    own = getattr(task, "output_grad_norms", None)
    if own is not None:
        with torch.no_grad():
            return own(functional_model(task.model, params, buffers), batch).float()
    with torch.no_grad():
        output = task.forward(functional_model(task.model, params, buffers), batch)
    leaves, spec = tree_flatten(output)
    # A loss is a function of its own example's output alone, so the gradient of their sum has each
    # one's gradient in its row.
    free = [
        leaf.detach().requires_grad_()
        if isinstance(leaf, Tensor) and leaf.is_floating_point()
        else leaf
        for leaf in leaves
    ]
    wanted = [leaf for leaf in free if isinstance(leaf, Tensor) and leaf.requires_grad]
    with torch.enable_grad():
        total = task.losses(tree_unflatten(free, spec), batch).sum()
    grads = torch.autograd.grad(total, wanted, allow_unused=True)
    squares = [g.reshape(len(g), -1).float().square().sum(1) for g in grads if g is not None]
    return torch.stack(squares).sum(0).sqrt()


def _explain_norms(task: Task, source: Source) -> str:
    """How the norms of a task are computed."""
    with _first_examples(task, source) as given:
        return ghost.coverage_of(task, *given).told(task.model)


def _explain_head(task: Task, source: Source) -> str:
    """Which parameters the head is."""
    with _first_examples(task, source) as given:
        return f"the head is {', '.join(ghost.head_of(task, *given))}"


@contextlib.contextmanager
def _first_examples(task: Task, source: Source) -> Iterator[tuple[Tensors, Tensors, TensorDict]]:
    """Parameters and buffers of a task's model as it is, and three examples in their fixed view."""
    params = {name: p.detach() for name, p in task.model.named_parameters() if p.requires_grad}
    device = next(iter(params.values())).device
    index = torch.arange(min(3, len(source)))
    batch = fetch_batch(source, index).to(device)
    with in_eval_mode(task.model):
        ready = task.view(batch, view_keys(0, index).to(device), training=False)
        yield params, dict(task.model.named_buffers()), ready


SIGNALS = {
    signal.name: signal
    for signal in (
        Signal(name="loss", measure=example_losses),
        Signal(name="grad_norm", measure=ghost.grad_norms, backward=True, explain=_explain_norms),
        Signal(name="vmap_grad_norm", measure=vmap_grad_norms, backward=True),
        Signal(name="looped_grad_norm", measure=looped_grad_norms, backward=True),
        Signal(name="last_layer", measure=ghost.last_layer_norms, explain=_explain_head),
        Signal(name="output_grad_norm", measure=output_grad_norms),
    )
}
"""The signals that can be asked for by name."""


def _only_observed(name: str) -> Signal:
    def measure(
        task: Task, params: Tensors, buffers: Tensors, batch: TensorDict, chunk: int | None
    ) -> Tensor:
        raise ValueError(f"{name} is what training observes: train(..., observe={name!r})")

    return Signal(name=name, measure=measure)


OBSERVED_ONLY = {name: _only_observed(name) for name in ("relative_loss", "loss_drop")}
"""Signals that no scoring can measure: they are of when training saw an example."""


def signal_of(signal: str | Signal) -> Signal:
    """A signal by name, or the signal itself.

    Raises:
        ValueError: no signal of that name.
    """
    if isinstance(signal, Signal):
        return signal
    if signal in OBSERVED_ONLY:
        return OBSERVED_ONLY[signal]
    if signal not in SIGNALS:
        raise ValueError(f"no signal {signal!r}; there are {', '.join(SIGNALS)}")
    return SIGNALS[signal]


def per_example(signal: str | Signal, length: Literal["mean", "sqrt", "sum"]) -> Signal:
    """A signal with another say for the length of an example.

    A task's loss is the mean over an example's own targets (tokens, patches). The gradient of a
    mean falls with their number n, that of a sum grows with it: which examples lead is decided as
    much by this as by anything else.

    Args:
        signal: a norm or a loss of the mean.
        length: ``mean`` leaves it; ``sqrt`` multiplies by sqrt(n), ``sum`` by n.

    Returns:
        A signal of the same name with ``_sqrt`` or ``_sum`` after it; the task must have
        ``targets(batch) -> [B]``, the number of each example's targets.
    """
    chosen = signal_of(signal)
    power = {"mean": 0.0, "sqrt": 0.5, "sum": 1.0}
    if length not in power:
        raise ValueError(f"length is one of {', '.join(power)}, got {length!r}")
    if length == "mean":
        return chosen

    def measure(
        task: Task, params: Tensors, buffers: Tensors, batch: TensorDict, chunk: int | None
    ) -> Tensor:
        targets = getattr(task, "targets", None)
        if targets is None:
            raise ValueError(
                f"signal {chosen.name}_{length} needs the number of each example's targets: give "
                f"task {task.name!r} a method targets(batch) -> [B]"
            )
        counts = targets(batch).float()
        return chosen.measure(task, params, buffers, batch, chunk) * counts ** power[length]

    return replace(chosen, name=f"{chosen.name}_{length}", measure=measure)


def _norm(gradients: object) -> Tensor:
    squares = [g.float().square().sum() for g in tree_leaves(gradients)]
    return torch.stack(squares).sum().sqrt()
