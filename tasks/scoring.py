"""Any data set scored once, to be looked at: the hardest, the easiest, likely wrong labels.

Shapes: N examples, B of them in a batch, K classes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import Loading, Signal, Source, Task, initial_state
from attent.pipeline.order import longest_first
from attent.pipeline.score import Frozen, check_finite
from attent.pipeline.signals import OBSERVED_ONLY, SIGNALS
from attent.pipeline.stream import Stream
from attent.pipeline.task import in_eval_mode
from attent.tasks.classification import Classification
from attent.tasks.config import did_you_mean
from attent.tasks.label_errors import label_errors

ROWS = 65_536
"""Rows that are made into a table together."""

OWN = (
    "index", "name", "label", "label_name", "predicted", "predicted_name", "probability", "margin",
    "suggested", "suggested_name", "label_error", "unreadable", "probabilities",
)  # fmt: skip
"""Names of columns that no signal can have."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of a data set, in the order of its examples.

    Attributes:
        source: the data set.
        signals: names of the signals, each a column.
        columns: name -> ``[N]``: ``label`` where examples have one, of a classifier ``predicted``,
            ``probability`` (of that class), ``margin``, ``suggested`` (-1 for none) and
            ``label_error``, and the signals.
        classes: names of the classes, where the source has them.
        unreadable: index -> why the example could not be read; None where that is an error.
        about: what was measured, and by what.
    """

    source: Source
    signals: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    classes: Sequence[str] | None = None
    unreadable: Mapping[int, str] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.source)

    @property
    def readable(self) -> np.ndarray:
        """``[N]`` bool."""
        found = np.ones(len(self), bool)
        found[list(self.unreadable or {})] = False
        return found

    @property
    def schema(self) -> pa.Schema:
        """The columns of the table; ``about`` as JSON in its metadata, under ``attent``."""
        kinds: dict[str, pa.DataType] = {"index": pa.int64()}
        if hasattr(self.source, "locate"):
            kinds["name"] = pa.string()
        for name, values in self.columns.items():
            kinds[name] = pa.from_numpy_dtype(values.dtype)
            if self.classes is not None and name in ("label", "predicted", "suggested"):
                kinds[f"{name}_name"] = pa.string()
        if self.unreadable is not None:
            kinds["unreadable"] = pa.string()
        return pa.schema(kinds.items(), metadata={"attent": json.dumps(dict(self.about))})

    def batches(self, rows: int = ROWS) -> Iterator[pa.RecordBatch]:
        """The table, so many rows at a time: names are asked for as they are needed."""
        schema, readable = self.schema, self.readable
        for start in range(0, len(self), rows):
            stop = min(start + rows, len(self))
            part, index = slice(start, stop), np.arange(start, stop)
            made: dict[str, Any] = {"index": index}
            if "name" in schema.names:
                locate: Callable[[int], str] = self.source.locate  # type: ignore[attr-defined]
                made["name"] = [locate(i) for i in index.tolist()]
            for name, column in self.columns.items():
                values = column[part]
                none = ~readable[part] | (values == -1 if name == "suggested" else False)
                made[name] = pa.array(values, mask=none)
                if self.classes is not None and f"{name}_name" in schema.names:
                    made[f"{name}_name"] = [
                        None if gone else self.class_name(int(i))
                        for i, gone in zip(values, none, strict=True)
                    ]
            if self.unreadable is not None:
                made["unreadable"] = [self.unreadable.get(i) for i in index.tolist()]
            yield pa.RecordBatch.from_pydict(
                {name: made[name] for name in schema.names}, schema=schema
            )

    def table(self) -> pa.Table:
        """A row for each example; what was not measured of one that cannot be read is null."""
        return pa.Table.from_batches(self.batches(), self.schema)

    def likely_errors(self) -> np.ndarray:
        """Indices of the examples whose labels are likely wrong, the surest first; ``[n]``."""
        found = self.columns["label_error"].nonzero()[0]
        return found[self.columns["margin"][found].argsort(kind="stable")]

    def class_name(self, number: int) -> str:
        """The name of a class; its number where it has none."""
        known = self.classes or ()
        return known[number] if 0 <= number < len(known) else str(number)

    def summary(self) -> list[str]:
        """What is to be said of it, in a line each."""
        found = []
        for name in self.signals:
            values = self.columns[name][self.readable]
            if values.size:
                low, middle, high = np.quantile(values, [0, 0.5, 1])
                found.append(
                    f"{name} of {values.size:,} examples: median {middle:.4g}, {low:.4g} to "
                    f"{high:.4g}"
                )
        if "label_error" in self.columns:
            count = int(self.columns["label_error"].sum())
            found.append(f"{count:,} label{'s are' if count != 1 else ' is'} likely wrong")
        if self.unreadable:
            count = len(self.unreadable)
            found.append(
                f"{count:,} example{'s' if count > 1 else ''} could not be read and "
                f"ha{'ve' if count > 1 else 's'} no scores"
            )
        return found


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
    tell: Callable[[int, int], None] | None = None,
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
        tell: told after each batch how many examples are measured, and N.

    Returns:
        The scores. In memory are a few numbers for each example, and nothing else that grows with
        N; probabilities of the classes are kept in a temporary file until they have been compared.

    Raises:
        ValueError: no signal, one that does not exist or that only training sees, or a batch size
            below 1.
        ExampleError: an example that cannot be read, or whose score is not finite.
    """
    chosen = signals_of(signals)
    if batch_size < 1:
        raise ValueError(f"batch_size is at least 1, got {batch_size}")
    state = initial_state(task, source) if state is None else state
    loading = loading or Loading()
    names = tuple(signal.name for signal in chosen)
    kept = _Kept(len(source), names)
    with in_eval_mode(task.model):
        model, done = Frozen(task, state), 0
        for batch in Stream(source, longest_first(source), batch_size, loading=loading):
            kept.take(_measured(model, chosen, batch, chunk), batch["index"].cpu(), source)
            done += len(batch)
            if tell is not None:
                tell(done, len(source))
    unreadable = None if loading.skipped is None else loading.skipped.of(source)
    return Scored(
        source=source,
        signals=names,
        columns=kept.columns(unreadable or {}),
        classes=getattr(source, "classes", None) if classes is None else classes,
        unreadable=unreadable,
        about={**_about(task, source, names, unreadable), **(about or {})},
    )


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
            found["probabilities"] = _probabilities(task, output, ready)
    for signal in signals:
        if signal is SIGNALS["loss"] and output is not None:  # from the forward already made
            with torch.no_grad():
                found[signal.name] = task.losses(output, ready).float()
        else:
            found[signal.name] = signal.measure(task, model.params, model.buffers, ready, chunk)
    return found


def _is_classifier(task: Task) -> bool:
    return isinstance(task, Classification) or hasattr(task, "probabilities")


def _probabilities(task: Task, output: Any, batch: TensorDict) -> Tensor:
    """``[B, K]`` float32."""
    own = getattr(task, "probabilities", None)
    return output.float().softmax(1) if own is None else own(output, batch).float()


class _Kept:
    """What was measured of each example, as batches come in any order."""

    def __init__(self, num_examples: int, signals: Sequence[str]) -> None:
        self._num_examples = num_examples
        self._signals = signals
        self._found: dict[str, np.ndarray] = {}

    def take(self, measured: Mapping[str, Tensor], index: Tensor, source: Source) -> None:
        """Enter what was measured of the examples at ``index``; scores must be finite."""
        for name, values in measured.items():
            if name in self._signals:
                check_finite(values, index, source, name)
            self._put(name, index, values)

    def _put(self, name: str, index: Tensor, values: Tensor) -> None:
        """Enter the values ``[B, ...]`` of the examples at ``index``."""
        given = values.detach().cpu().numpy()
        if name not in self._found:
            shape = (self._num_examples, *given.shape[1:])
            if len(shape) > 1:  # by far the most of it: on the disk, where it is unnamed
                with tempfile.TemporaryFile() as file:
                    self._found[name] = np.memmap(file, given.dtype, "w+", shape=shape)
            else:
                dtype = given.dtype if given.dtype.kind == "f" else np.dtype(np.int64)
                self._found[name] = np.zeros(shape, dtype)
        self._found[name][index.numpy()] = given

    def columns(self, unreadable: Mapping[int, str]) -> dict[str, np.ndarray]:
        """Columns of the table, of probabilities what they say."""
        shares = self._found.pop("probabilities", None)
        found = {name: self._found[name] for name in self._found if name not in self._signals}
        if shares is not None:
            known = np.ones(len(shares), bool)
            known[list(unreadable)] = False
            errors = label_errors(shares, found["label"], known)
            starts = range(0, len(shares), ROWS)
            parts = [shares[start : start + ROWS] for start in starts]
            found["predicted"] = np.concatenate([part.argmax(1) for part in parts])
            found["probability"] = np.concatenate([part.max(1) for part in parts])
            found |= {"margin": errors.margin, "suggested": errors.suggested}
            found["label_error"] = errors.suggested >= 0
        return found | {name: self._found[name] for name in self._signals}
