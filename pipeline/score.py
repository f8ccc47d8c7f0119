"""The score stage: measure every example with the present weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keys import branch, leaves, number, place, tensor
from attent.pipeline.order import longest_first
from attent.pipeline.processes import is_sharded, processes
from attent.pipeline.signals import Signal, Tensors, signal_of
from attent.pipeline.source import ExampleError, Source, describe_example, fetch_batch, lengths_of
from attent.pipeline.stage import Stage
from attent.pipeline.stream import Loading, Stream, num_batches
from attent.pipeline.task import (
    LEDGER,
    Task,
    ensure_scores,
    functional_model,
    spend,
    view_keys,
)


def score(
    task: Task,
    source: Source,
    signal: str | Signal = "loss",
    *,
    batch_size: int = 256,
    chunk: int | None = 32,
    examples_per_tick: int | None = None,
    loading: Loading | None = None,
    name: str = "score",
) -> Stage:
    """Score every example in eval mode on its fixed view.

    A score is a property of (parameters, example): no augmentation, no dropout, masks seeded by
    the example's index, so that it does not depend on who else sat in the batch or on when it was
    asked for.

    Args:
        task: what is learned.
        source: the N training examples.
        signal: the name of one in `SIGNALS`, or your own `Signal`.
        batch_size: examples in one forward.
        chunk: examples that vmap maps at once, in signals that use it (None: the whole batch).
        examples_per_tick: stop after so many and go on in the next tick, so that a long scoring
            can be interrupted; rounded up to whole batches.
        loading: workers and prefetching.
        name: of the stage.

    Writes ``scores/<signal>``, ``scores/step``; the cursor; when the last example is scored it
    clears ``plan/score_due`` and sets ``plan/select_due``.

    Raises:
        ExampleError: a score is NaN or infinite; the message names the example.
        ValueError: a signal of that name does not exist, or a size is below 1.
    """
    chosen = signal_of(signal)
    sizes = {"batch_size": batch_size, "chunk": chunk, "examples_per_tick": examples_per_tick}
    for size, value in sizes.items():
        if value is not None and value < 1:
            raise ValueError(f"{size} is at least 1, got {value}")
    num_examples, order, lengths = len(source), longest_first(source), lengths_of(source)
    open_at: dict[int, _Dealing] = {}

    def apply(state: TensorDict) -> TensorDict:
        start = number(state, "clock", "cursor")
        dealing = open_at.pop(start, None)  # what it delivers depends on where it stands alone
        if dealing is None:
            open_at.clear()
            share = processes().dealt
            dealing = _Dealing(
                Stream(source, order, batch_size, offset=start, loading=loading, share=share)
            )
        cursor = _stop(start, num_examples, batch_size, examples_per_tick)
        model = Frozen(task, state)

        def measure(batch: TensorDict) -> Tensor:
            measured = model.measure(chosen, batch, chunk)
            check_finite(measured, batch["index"], source, chosen.name)
            return measured

        batches = num_batches(cursor - start, batch_size)
        index, measured = dealing.measured(source, batches, measure, is_sharded(task.model))
        values, stamps = tensor(state, "scores", chosen.name), tensor(state, "scores", "step")
        values[index] = measured.to(values.device, values.dtype)
        stamps[index] = number(state, "clock", "step")
        done = cursor >= num_examples
        if not done:
            open_at[cursor] = dealing
        place(state, ("clock", "cursor"), torch.tensor(0 if done else cursor))
        if done:
            place(state, ("plan", "score_due"), torch.tensor(False))
            place(state, ("plan", "select_due"), torch.tensor(True))
        tokens = 0 if lengths is None else int(lengths[order[start:cursor]].sum())
        spend(state, cursor - start, tokens, backward=chosen.backward)
        return state

    def init(state: TensorDict) -> TensorDict:
        ensure_scores(state, chosen.name, num_examples)
        return state

    def note() -> str:
        how = "" if chosen.explain is None else f", {chosen.explain(task, source)}"
        return f"{chosen.name} of {num_examples:,} examples{how}"

    entries = {
        ("scores", chosen.name),
        ("scores", "step"),
        ("clock", "cursor"),
        ("plan", "score_due"),
        ("plan", "select_due"),
        *LEDGER,
    }
    return Stage(
        name=name,
        reads={"params", "buffers", "seed", ("clock", "step")} | entries,
        writes=entries,
        apply=apply,
        init=init,
        provides={("scores", chosen.name)},
        note=note,
    )


def _stop(start: int, num_examples: int, batch_size: int, at_most: int | None) -> int:
    """Where scoring stops that begins at ``start``: after whole batches."""
    left = num_examples - start
    if at_most is None or at_most >= left:
        return num_examples
    whole = -(-at_most // batch_size) * batch_size
    # A single one left over goes with the batch before it.
    return (
        num_examples if whole >= left or (left == whole + 1 and batch_size > 1) else start + whole
    )


class _Dealing:
    """A stream whose batches are dealt to the processes, and how many were dealt so far."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._dealt = 0

    def measured(
        self, source: Source, batches: int, measure: Callable[[TensorDict], Tensor], together: bool
    ) -> tuple[Tensor, Tensor]:
        """What all processes have measured of the next batches: indices and values, ``[n]``.

        Args:
            source: of the examples.
            batches: of all processes.
            measure: a batch -> ``[B]``.
            together: no process can measure unless all do, one batch each: those that have none
                measure one again.

        Raises:
            ValueError: an example cannot be read or measured; in every process.
        """
        world = processes()
        own = len(range((world.rank - self._dealt) % world.count, batches, world.count))
        self._dealt += batches
        index, values = [torch.empty(0, dtype=torch.int64)], [torch.empty(0)]
        batch: TensorDict | None = None
        bad: ValueError | None = None
        for turn in range(-(-batches // world.count) if together else own):
            try:
                if turn < own:
                    batch = next(self.stream)
                elif batch is None:
                    batch = fetch_batch(source, torch.zeros(1, dtype=torch.int64))
            except ValueError as error:
                bad = error
            if together:
                world.agree(bad)
            if bad is not None or batch is None:
                break
            try:
                value = measure(batch)
            except ValueError as error:
                bad = error
                if together:
                    continue  # the others are told before the next batch, or at the end
                break
            if turn < own:
                index.append(batch["index"].cpu())
                values.append(value.float().cpu())
        world.agree(bad)
        found, measured = world.gather(torch.cat(index), torch.cat(values))
        return found, measured


class Frozen:
    """A task's model in eval mode with the state's weights, as scoring and evaluation use it.

    Args:
        task: what is learned.
        state: holds ``params``, ``buffers`` and ``seed``.
        weights: the entry that holds the parameters.
    """

    def __init__(self, task: Task, state: TensorDict, weights: str = "params") -> None:
        self.task = task
        self.seed = number(state, "seed")
        self.params = flat(branch(state, weights))
        self.buffers = flat(branch(state, "buffers"))
        self.device = next(iter(self.params.values())).device
        task.model.eval()

    def prepare(self, batch: TensorDict) -> TensorDict:
        """The batch on the model's device, in its fixed view."""
        keys = view_keys(self.seed, batch["index"]).to(self.device)
        return self.task.view(batch.to(self.device), keys, training=False)

    def __call__(self, *args: object, **kwargs: object) -> object:
        """The model itself, as a pure function of the state's weights."""
        return functional_model(self.task.model, self.params, self.buffers)(*args, **kwargs)

    def measure(self, signal: Signal, batch: TensorDict, chunk: int | None) -> Tensor:
        """A signal of each example of a batch, ``[B]``."""
        ready = self.prepare(batch)
        return signal.measure(self.task, self.params, self.buffers, ready, chunk)


def flat(entries: TensorDict) -> Tensors:
    """The tensors of a container by name."""
    return {"/".join(path): value for path, value in leaves(entries)}


def check_finite(values: Tensor, index: Tensor, source: Source, what: str) -> None:
    """Refuse NaN and infinite values, naming the first example.

    Args:
        values: ``[B]``.
        index: ``[B]``, the examples' indices.
        source: asked where the example is kept.
        what: the name of what was measured.

    Raises:
        ExampleError: some value is not finite.
    """
    finite = torch.isfinite(values)
    if not bool(finite.all()):
        bad = ~finite
        first = int(bad.nonzero()[0])
        count = int(bad.sum())
        more = f" ({count} such examples in this batch)" if count > 1 else ""
        raise ExampleError(
            f"{what} of {describe_example(source, int(index[first]))} is "
            f"{float(values[first])}{more}; look at that example, or lower the learning rate"
        )
