"""What the engine asks of a task, and the state that every graph starts from.

Shapes: B examples in a batch, N examples in the data set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import torch
from tensordict import TensorDict
from torch import Tensor, nn
from torch.func import functional_call

from attent.pipeline.keyed import example_keys, fold
from attent.pipeline.keys import Key, branch, ensure, leaves, place, tensor
from attent.pipeline.source import Source

LEDGER: tuple[Key, ...] = tuple(
    ("ledger", way + unit) for unit in ("", "_tokens") for way in ("forwarded", "backwarded")
)
"""What was spent, scoring included: examples, and their tokens where they have lengths."""

Model = Callable[..., Any]
Output = Any


class Metric(Protocol):
    """What `evaluate` asks of a metric; every torchmetrics metric has it."""

    def update(self, *args: Any, **kwargs: Any) -> None:
        """Take in a batch."""
        ...

    def compute(self) -> Any:
        """The value over all batches taken in: a scalar."""
        ...


@runtime_checkable
class Task(Protocol):
    """A model, how it is called on a batch, and what it is to be good at.

    Attributes:
        name: goes into checkpoints; a checkpoint of another task is refused.
        model: the module that is trained. The train stage binds its parameters to the state's
            storage; nothing is to be read from it between stages.
    """

    name: str
    model: nn.Module

    def view(self, batch: TensorDict, keys: Tensor, *, training: bool) -> TensorDict:
        """The examples as the model is to see them: augmentation, masks, resizing.

        All of a task's randomness but dropout is here, drawn from ``keys``.

        Args:
            batch: ``[B]``, as the source gave it, with ``index``.
            keys: ``[B]`` int64; see `attent.pipeline.keyed`.
            training: False in scoring and evaluation: a fixed view, a function of the key alone.
        """
        ...

    def forward(self, model: Model, batch: TensorDict) -> Output:
        """The model's output: a tensor or a pytree of tensors, each with B first.

        Args:
            model: the module itself, or a functional call of it: call it like the module.
            batch: ``[B]``, from ``view``.
        """
        ...

    def losses(self, output: Output, batch: TensorDict) -> Tensor:
        """The loss of each example, ``[B]``, a function of that example alone."""
        ...

    def metrics(self) -> Mapping[str, Metric]:
        """Fresh metrics by name, for one evaluation."""
        ...

    def update(self, metrics: Mapping[str, Metric], output: Output, batch: TensorDict) -> None:
        """Take a batch into the metrics."""
        ...


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name; a tied one once, under its first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def initial_state(task: Task, source: Source | int, *, seed: int = 0) -> TensorDict:
    """The entries that every graph shares; stages add their own in ``init``.

    ARCHITECTURE.md has the table of all of them.

    Args:
        task: its model's present weights are copied into the state. After a `fit` those are the
            trained ones: to compare runs, make one state and fit it several times.
        source: the training examples, or their number N.
        seed: the run's one seed.

    Raises:
        ValueError: no examples, or nothing to train.
    """
    num_examples = source if isinstance(source, int) else len(source)
    if num_examples < 1:
        raise ValueError("the training data holds no examples")
    params = trainable(task.model)
    if not params:
        raise ValueError(f"task {task.name!r} has no trainable parameter")
    state = bare_state(num_examples, seed=seed)
    place(state, "params", _copies(params))
    place(state, "buffers", _copies(dict(task.model.named_buffers())))
    return state


def bare_state(num_examples: int, *, seed: int = 0) -> TensorDict:
    """What `initial_state` holds beside the model: enough to run and test stages without one.

    Args:
        num_examples: N.
        seed: the run's one seed.
    """
    state = TensorDict({}, batch_size=[])
    integers: dict[Key, int] = {
        ("seed",): seed,
        ("clock", "cycle"): -1,
        ("clock", "phase"): 0,
        ("clock", "epoch"): 0,
        ("clock", "passes"): 0,
        ("clock", "offset"): 0,
        ("clock", "step"): 0,
        ("clock", "seen"): 0,
        ("clock", "tokens"): 0,
        ("clock", "cursor"): 0,
        ("plan", "budget"): 0,
        ("plan", "pass_tokens"): 0,
        ("plan", "size"): num_examples,
        ("plan", "interval"): 0,
        ("plan", "pause"): 0,
        **dict.fromkeys(LEDGER, 0),
    }
    for key, value in integers.items():
        place(state, key, torch.tensor(value, dtype=torch.int64))
    for flag in ("score_due", "select_due", "eval_due"):
        place(state, ("plan", flag), torch.tensor(False))
    place(state, ("plan", "ratio"), torch.tensor(1.0, dtype=torch.float64))
    place(state, "mask", torch.ones(num_examples, dtype=torch.bool))
    place(state, "weight", torch.ones(num_examples, dtype=torch.float32))
    place(state, ("scores", "step"), torch.full((num_examples,), -1, dtype=torch.int32))
    return state


def spend(state: TensorDict, examples: int, tokens: int, *, backward: bool) -> None:
    """Enter into the ledger what was forwarded, and what of it was back-propagated: all or nothing.

    Args:
        state: its ledger is added to.
        examples: how many.
        tokens: of them together; 0 where examples have no lengths.
        backward: whether they were back-propagated too.
    """
    for way in ("forwarded", "backwarded") if backward else ("forwarded",):
        tensor(state, "ledger", way).add_(examples)
        tensor(state, "ledger", f"{way}_tokens").add_(tokens)


def ensure_scores(state: TensorDict, signal: str, num_examples: int) -> None:
    """Add the entry for a signal's scores, zeros, where there is none."""
    ensure(state, ("scores", signal), torch.zeros(num_examples, dtype=torch.float32))


def view_keys(
    seed: int, index: Tensor, *, purpose: str = "fixed view", passes: int | None = None
) -> Tensor:
    """The keys under which examples are viewed, ``[B]`` int64.

    Args:
        seed: the run's seed.
        index: ``[B]``, the examples' indices.
        purpose: what the view is for; scoring and evaluation share the fixed one.
        passes: in training, the pass, so that augmentation differs from pass to pass.
    """
    key = fold(seed, purpose) if passes is None else fold(seed, purpose, passes)
    return example_keys(key, index)


@contextlib.contextmanager
def in_eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode for a block; each module has its own mode again afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def functional_losses(
    task: Task, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor], batch: TensorDict
) -> Tensor:
    """The losses of a batch, ``[B]``, as a pure function of parameters and buffers."""
    return task.losses(task.forward(functional_model(task.model, params, buffers), batch), batch)


def functional_model(
    model: nn.Module, params: Mapping[str, Tensor], buffers: Mapping[str, Tensor]
) -> Model:
    """A model as a pure function of these parameters and buffers.

    Frozen parameters may be among either, or be left as the model's own. Buffers are copied by
    `functional_call`'s contract only if a module assigns to them; in eval mode none does.
    """
    tensors = {**buffers, **params}

    def call(*args: Any, **kwargs: Any) -> Any:
        return functional_call(model, tensors, args, kwargs)

    return call


def bind(model: nn.Module, state: TensorDict) -> tuple[dict[str, nn.Parameter], list[Tensor]]:
    """Make the module's parameters and buffers the state's tensors (no copy).

    Frozen parameters are the module's own, or the state's where it holds them among its buffers.

    The module is then a window on the state: an optimiser that updates it in place updates the
    state. Called before each use, since another state may have been bound since.

    Returns:
        The module's trainable parameters by name, and its buffers.
    """
    params, buffers = dict(model.named_parameters()), dict(model.named_buffers())
    groups: dict[str, Mapping[str, Tensor]] = {"params": params, "buffers": params | buffers}
    for group, slots in groups.items():
        for (name,), value in leaves(branch(state, group)):
            slot = slots[name]
            if slot.data_ptr() != value.data_ptr() or slot.device != value.device:
                slot.data = value
    return {name: p for name, p in params.items() if p.requires_grad}, list(buffers.values())


def _copies(tensors: Mapping[str, Tensor]) -> TensorDict:
    copies = TensorDict({}, batch_size=[])
    for name, value in tensors.items():
        copies.set(name, value.detach().clone(memory_format=torch.contiguous_format))
    return copies
