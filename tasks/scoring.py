"""Any data set scored once, to be looked at: the hardest, the easiest, likely wrong labels.

Shapes: N examples, B of them in a batch, K classes.
"""

from __future__ import annotations

import tempfile
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from typing import IO, Any

import numpy as np
import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import Loading, Signal, Source, Task, initial_state
from attent.pipeline.order import longest_first
from attent.pipeline.processes import is_sharded, processes
from attent.pipeline.score import Frozen, check_finite
from attent.pipeline.signals import OBSERVED_ONLY, SIGNALS
from attent.pipeline.stream import Stream
from attent.pipeline.task import in_eval_mode
from attent.tasks.classification import Classification
from attent.tasks.config import did_you_mean
from attent.tasks.label_errors import class_sums, label_errors, thresholds_of
from attent.tasks.scored import ROWS, Scored

OWN = (
    "index", "name", "label", "label_name", "predicted", "predicted_name", "probability", "margin",
    "suggested", "suggested_name", "label_error", "unreadable", "probabilities",
)  # fmt: skip
"""Names of columns that no signal can have."""

Tell = Callable[[int, int], None]


def score_dataset(
    task: Task,
    source: Source,
    signals: Sequence[str | Signal] = ("loss",),
    *,
    state: TensorDict | None = None,
    batch_size: int = 256,
    chunk: int | None = 32,
    loading: Loading | None = None,
    classes: Sequence[str] | None = None,
    about: Mapping[str, Any] | None = None,
    trained_on: bool | None = None,
    tell: Tell | None = None,
) -> Scored:
    """Measure every example of a data set once, as the score stage does: in eval mode, unaugmented.

    A classifier's probabilities are looked at too: what it predicts, and which labels are likely
    wrong (`attent.tasks.label_errors`). A task is one if it is a `Classification`, or has
    ``probabilities(output, batch) -> [B, K]``, and its examples have a ``label`` ``[B]``.

    Args:
        task: its model is measured by.
        source: the N examples.
        signals: names in `SIGNALS`, or your own `Signal`.
        state: holds ``params``, ``buffers`` and ``seed``, as of a run; None for the model's present
            weights and seed 0.
        batch_size: examples in one forward.
        chunk: examples that vmap maps at once, in signals that use it.
        loading: workers; whether examples that cannot be read are passed over. Those have no
            scores, but the reason.
        classes: names of the K classes; None for the source's own, if it has any.
        about: goes into the table's metadata.
        trained_on: whether the model was trained on these examples; None if that is not known.
        tell: told after each batch how many examples are measured, and N; of several processes in
            the main one, which speaks for all.

    Returns:
        The scores, the same in every process. In memory are a few numbers for each example, and
        nothing else that grows with N; probabilities of the classes are kept in a temporary file
        until they have been compared.

    Raises:
        ValueError: no example; no signal, one that does not exist or that only training sees; a
            batch size below 1; a model that several processes hold parts of.
        ExampleError: an example that cannot be read, or whose score is not finite.
    """
    chosen = signals_of(signals)
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, got {batch_size}")
    if len(source) < 1:
        raise ValueError("the data hold no examples")
    if is_sharded(task.model):
        raise ValueError(
            "each process scores batches of its own, for which it needs the whole model: start "
            "them without FSDP"
        )
    state = initial_state(task, source) if state is None else state
    loading = loading or Loading()
    names = tuple(signal.name for signal in chosen)
    # Of probabilities there are by far the most numbers.
    with tempfile.TemporaryFile() as shares, in_eval_mode(task.model):
        model, kept = Frozen(task, state), _Kept(len(source), names, shares)

        def take(batch: TensorDict) -> None:
            kept.take(_measured(model, chosen, batch, chunk), batch["index"].cpu(), source)

        _in_batches(source, batch_size, loading, take, tell)
        unreadable = None
        if loading.skipped is not None:
            every = processes().gather_objects(loading.skipped.of(source))
            unreadable = dict(sorted(ChainMap(*every).items()))
        columns = _columns(kept, len(source), unreadable or {})
    return Scored(
        source=source,
        signals=names,
        columns=columns,
        classes=getattr(source, "classes", None) if classes is None else classes,
        unreadable=unreadable,
        trained_on=trained_on,
        about={
            **_about(task, source, names, unreadable),
            **(about or {}),
            **({} if trained_on is None else {"trained on these": trained_on}),
        },
    )


def _in_batches(
    source: Source,
    batch_size: int,
    loading: Loading,
    take: Callable[[TensorDict], None],
    tell: Tell | None,
) -> None:
    """Go through a data set once, each process through its share of the batches.

    Raises:
        ValueError: an example cannot be read or measured; in every process.
    """
    world, done, bad = processes(), 0, None
    stream = Stream(source, longest_first(source), batch_size, loading=loading, share=world.dealt)
    tell = tell if world.main else None
    try:
        for batch in stream:
            take(batch)
            done += len(batch) * world.count  # the others are about as far
            if tell is not None and done < len(source):
                tell(done, len(source))
    except ValueError as error:
        bad = error
    world.agree(bad)
    if tell is not None:
        tell(len(source), len(source))


def _about(
    task: Task, source: Source, signals: Sequence[str], unreadable: Mapping[int, str] | None
) -> dict[str, Any]:
    """What was measured, and by which versions."""
    skipped = {} if unreadable is None else {"unreadable": len(unreadable)}
    return {
        "task": task.name,
        "examples": len(source),
        "signals": list(signals),
        **skipped,
        "versions": {name: version(name) for name in ("attent", "torch")},
    }


def signals_of(signals: Sequence[str | Signal]) -> list[Signal]:
    """Signals by name, or themselves, each once.

    Raises:
        ValueError: none, one that does not exist, that only training sees, or of a column's name.
    """
    given = [signals] if isinstance(signals, str | Signal) else list(signals)
    found: dict[str, Signal] = {}
    for signal in given:
        if isinstance(signal, str):
            if signal in OBSERVED_ONLY:
                raise ValueError(
                    f"signals: {signal} is of when training saw an example, and cannot be measured "
                    f"afterwards; there are {', '.join(SIGNALS)}"
                )
            if signal not in SIGNALS:
                raise ValueError(
                    f"signals: there is no {signal!r}{did_you_mean(signal, SIGNALS)} (there are "
                    f"{', '.join(SIGNALS)})"
                )
            signal = SIGNALS[signal]
        if signal.name in OWN:
            raise ValueError(f"signals: {signal.name!r} is the name of another column")
        found[signal.name] = signal
    if not found:
        raise ValueError(f"signals: name at least one of {', '.join(SIGNALS)}")
    return list(found.values())


def _measured(
    model: Frozen, signals: Sequence[Signal], batch: TensorDict, chunk: int | None
) -> dict[str, Tensor]:
    """Labels, probabilities and signals of a batch, each ``[B]`` or ``[B, K]``."""
    task, ready = model.task, model.prepare(batch)
    found: dict[str, Tensor] = {}
    label = batch.get("label", None)
    if label is not None and label.shape == batch.batch_size and not label.is_floating_point():
        found["label"] = label
    output = None
    if "label" in found and _is_classifier(task):
        with torch.no_grad():
            output = task.forward(model, ready)
            found |= _probabilities(task, output, ready)
    for signal in signals:
        if signal is SIGNALS["loss"] and output is not None:  # from the forward already made
            with torch.no_grad():
                found[signal.name] = task.losses(output, ready).float()
        else:
            found[signal.name] = signal.measure(task, model.params, model.buffers, ready, chunk)
    return found


def _is_classifier(task: Task) -> bool:
    return isinstance(task, Classification) or hasattr(task, "probabilities")


def _probabilities(task: Task, output: Any, batch: TensorDict) -> dict[str, Tensor]:
    """``[B, K]`` float32, where there is more than one class."""
    own = getattr(task, "probabilities", None)
    found = output.float().softmax(1) if own is None else own(output, batch).float()
    if found.ndim != 2 or len(found) != len(batch):
        raise ValueError(
            f"probabilities of the classes are [B, K], here [{len(batch)}, K]; task {task.name!r} "
            f"gives {[*found.shape]}"
        )
    return {"probabilities": found} if found.shape[1] > 1 else {}


class _Kept:
    """What this process has measured, in the order it came in; probabilities on the disk."""

    def __init__(self, num_examples: int, signals: Sequence[str], shares: IO[bytes]) -> None:
        self._signals = signals
        # Room for all at once: pieces would keep what they are cut from, or hold the heap apart.
        self._index = torch.zeros(num_examples, dtype=torch.int64)
        self._found: dict[str, Tensor] = {}
        self._count = 0
        self._shares = shares
        self.classes = 0

    def take(self, measured: Mapping[str, Tensor], index: Tensor, source: Source) -> None:
        """Add what was measured of the examples at ``index``; scores must be finite."""
        shares = measured.get("probabilities")
        for name in self._signals:
            check_finite(measured[name], index, source, name)
        if shares is not None:
            check_finite(shares.sum(1), index, source, "the sum of the probabilities")
            self.classes = shares.shape[1]
            self._write(shares)
        rows = slice(self._count, self._count + len(index))
        self._index[rows] = index
        for name, values in measured.items():
            if name != "probabilities":
                kind = values.dtype if values.is_floating_point() else torch.int64
                if name not in self._found:
                    self._found[name] = torch.zeros(len(self._index), dtype=kind)
                self._found[name][rows] = values.detach().to("cpu", kind)
        self._count = rows.stop

    def _write(self, shares: Tensor) -> None:
        try:
            self._shares.write(shares.cpu().contiguous().numpy().data)
        except OSError as error:
            raise ValueError(
                f"the probabilities of the classes do not go into {tempfile.gettempdir()} "
                f"({error.strerror}): let the variable TMPDIR name a folder with more room"
            ) from error

    @property
    def kinds(self) -> dict[str, torch.dtype]:
        """Of the columns, by name; none where nothing was measured."""
        return {name: values.dtype for name, values in self._found.items()}

    def index(self) -> Tensor:
        """``[n]``, of the examples measured."""
        return self._index[: self._count]

    def column(self, name: str, kind: torch.dtype) -> Tensor:
        """``[n]``, in the same order."""
        return self._found.get(name, torch.empty(0, dtype=kind))[: self._count]

    def shares(self, classes: int) -> np.ndarray:
        """Probabilities ``[n, K]``, in the same order."""
        self._shares.flush()
        if not self._count:
            return np.zeros((0, classes), np.float32)
        return np.memmap(self._shares, np.float32, "r").reshape(-1, classes)  # type: ignore[arg-type]


def _columns(
    kept: _Kept, num_examples: int, unreadable: Mapping[int, str]
) -> dict[str, np.ndarray]:
    """Columns of the table ``[N]``, of what all processes have measured."""
    world = processes()
    # One that had no batch does not know what others have found.
    classes, kinds = max(world.gather_objects((kept.classes, kept.kinds)), key=lambda k: len(k[1]))
    index, found = kept.index(), {name: kept.column(name, kind) for name, kind in kinds.items()}
    if classes:
        known = ~np.isin(index.numpy(), list(unreadable))
        told = _told_by(kept.shares(classes), found["label"].numpy(), known)
        found = {"label": found.pop("label"), **told, **found}
    index, *gathered = world.gather(index, *found.values())
    columns = {}
    for name, values in zip(found, gathered, strict=True):
        columns[name] = np.zeros(num_examples, values.numpy().dtype)
        columns[name][index.numpy()] = values.numpy()
        if name == "suggested":
            columns["label_error"] = columns[name] >= 0
    return columns


def _told_by(shares: np.ndarray, labels: np.ndarray, known: np.ndarray) -> dict[str, Tensor]:
    """What probabilities ``[n, K]`` say of each example, and of its label.

    Args:
        shares: of the examples of this process.
        labels: ``[n]``, theirs.
        known: ``[n]`` bool, which of them could be read.
    """
    classes, bad = shares.shape[1], None
    sums = np.zeros(2 * classes)
    try:
        sums = np.concatenate(class_sums(shares, labels, known))
    except ValueError as error:
        bad = error
    added = np.array(processes().agree(bad, *sums))
    thresholds = thresholds_of(added[:classes], added[classes:])
    errors = label_errors(shares, labels, known, thresholds)
    predicted, probability = np.zeros(len(shares), np.int64), np.zeros(len(shares), np.float32)
    for start in range(0, len(shares), ROWS):
        part = slice(start, start + ROWS)
        predicted[part], probability[part] = shares[part].argmax(1), shares[part].max(1)
    found = {
        "predicted": predicted,
        "probability": probability,
        "margin": errors.margin,
        "suggested": errors.suggested,
    }
    return {name: torch.from_numpy(values) for name, values in found.items()}
