"""Signals: what is measured of each example, by ``torch.func.vmap`` over a functional call.

This is the definition, for any model that vmap can map; faster ways must agree with it.

Shapes: B examples in a batch, P trainable parameters in all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves, tree_map

from attent.pipeline.task import Task

Tensors = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Signal:
    """A measure of how much an example has to teach.

    Attributes:
        name: its entry below ``scores``.
        measure: (task, params, buffers, batch, chunk) -> ``[B]`` float32; the model is in eval mode
            and the batch is the fixed view; chunk is how many examples to map at once.
        backward: whether it costs a backward pass beside the forward.
    """

    name: str
    measure: Callable[[Task, Tensors, Tensors, TensorDict, int | None], Tensor]
    backward: bool = False


def example_losses(
    task: Task, params: Tensors, buffers: Tensors, batch: TensorDict, chunk: int | None = None
) -> Tensor:
    """The loss of each example, ``[B]``, from one batched forward without gradient."""
    with torch.no_grad():
        return task.losses(task.forward(_call(task, params, buffers), batch), batch).float()


def grad_norms(
    task: Task, params: Tensors, buffers: Tensors, batch: TensorDict, chunk: int | None = None
) -> Tensor:
    """The Euclidean norm of each example's gradient with respect to the trainable parameters.

    ``s_i = || d loss_i / d params ||``, ``[B]``. Reduced to the norm inside the mapped function, so
    that no more than ``chunk`` examples' gradients (chunk * P numbers) are held at once.
    """

    def norm(params: Tensors, example: TensorDict) -> Tensor:
        def loss(params: Tensors) -> Tensor:
            one = _batch_of_one(example)
            return task.losses(task.forward(_call(task, params, buffers), one), one)[0]

        return _norm(grad(loss)(params))

    # no_grad only stops torch's own graph: `grad` differentiates inside. vmap has no rule for the
    # fused attention of the CPU and would loop over it.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        return vmap(norm, in_dims=(None, 0), chunk_size=chunk)(params, batch).float()


def output_grad_norms(
    task: Task, params: Tensors, buffers: Tensors, batch: TensorDict, chunk: int | None = None
) -> Tensor:
    """The norm of the gradient of each example's loss with respect to the model's output.

    ``s_i = || d loss_i / d f(x_i) ||``, ``[B]``: the functional gradient of nonparametric teaching
    (Zhang et al., ICLR 2026, section 3) at the price of one forward. For cross-entropy it is
    ``|| softmax(f(x)) - onehot(y) ||``, for squared error ``2 || f(x) - y ||``.
    """
    with torch.no_grad():
        output = task.forward(_call(task, params, buffers), batch)

        def norm(output: object, example: TensorDict) -> Tensor:
            def loss(output: object) -> Tensor:
                first = tree_map(lambda leaf: leaf.unsqueeze(0), output)
                return task.losses(first, _batch_of_one(example))[0]

            return _norm(grad(loss)(output))

        return vmap(norm, chunk_size=chunk)(output, batch).float()


SIGNALS = {
    signal.name: signal
    for signal in (
        Signal(name="loss", measure=example_losses),
        Signal(name="grad_norm", measure=grad_norms, backward=True),
        Signal(name="output_grad_norm", measure=output_grad_norms),
    )
}
"""The signals that can be asked for by name."""


def signal_of(signal: str | Signal) -> Signal:
    """A signal by name, or the signal itself.

    Raises:
        ValueError: no signal of that name.
    """
    if isinstance(signal, Signal):
        return signal
    if signal not in SIGNALS:
        raise ValueError(f"no signal {signal!r}; there are {', '.join(SIGNALS)}")
    return SIGNALS[signal]


def _call(task: Task, params: Tensors, buffers: Tensors) -> Callable:
    """The task's model as a pure function of these parameters and buffers.

    Buffers are copied by `functional_call`'s contract only if a module assigns to them; in eval
    mode none does.
    """

    def model(*args: object, **kwargs: object) -> object:
        return functional_call(task.model, (params, buffers), args, kwargs)

    return model


def _batch_of_one(example: TensorDict) -> TensorDict:
    return example.unsqueeze(0)


def _norm(gradients: object) -> Tensor:
    squares = [g.float().square().sum() for g in tree_leaves(gradients)]
    return torch.stack(squares).sum().sqrt()
