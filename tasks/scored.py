"""Scores of a data set: a row for each example, and what is to be said of all of them.

Shapes: N examples, K classes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from attent.pipeline import Source
from attent.tasks.launch import is_main

ROWS = 65_536
"""Rows that are made into a table together."""

MOST_WRONG = 0.1
"""Share of labels that may well be wrong: of ten data sets in common use most had a few in a
hundred wrong ones in their test splits, and the worst a tenth (Northcutt, Athalye and Mueller,
"Pervasive Label Errors in Test Sets Destabilize Machine Learning Benchmarks", NeurIPS 2021).
"""


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
        trained_on: whether the model was trained on these examples; None if that is not known.
        notes: what else is to be said of the data, such as what was left out of them.
        about: what was measured, and by what.
    """

    source: Source
    signals: tuple[str, ...]
    columns: Mapping[str, np.ndarray]
    classes: Sequence[str] | None = None
    unreadable: Mapping[int, str] | None = None
    trained_on: bool | None = None
    notes: Sequence[str] = ()
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

    def agreement(self) -> tuple[int, int] | None:
        """Of how many examples a classifier predicts the given label, and of how many it could.

        None of what has no labels or no predictions.
        """
        if "predicted" not in self.columns:
            return None
        readable = self.readable
        alike = self.columns["predicted"][readable] == self.columns["label"][readable]
        return int(alike.sum()), len(alike)

    @property
    def is_weak(self) -> bool:
        """Whether the model contradicts more labels than are wrong in data sets in common use."""
        alike, of = self.agreement() or (0, 0)
        return of - alike > MOST_WRONG * of

    def class_name(self, number: int) -> str:
        """The name of a class; its number where it has none."""
        known = self.classes or ()
        return known[number] if 0 <= number < len(known) else str(number)

    def summary(self) -> list[str]:
        """What is to be said of it, in a line each; of several processes the main one says it."""
        found: list[str] = []
        if not is_main():
            return found
        for name in self.signals:
            values = self.columns[name][self.readable]
            if values.size:
                low, middle, high = np.quantile(values, [0, 0.5, 1])
                found.append(
                    f"{name} of {values.size:,} example{'s' * (values.size > 1)}: median "
                    f"{middle:.4g}, {low:.4g} to {high:.4g}"
                )
        agreement = self.agreement()
        if agreement is not None:
            alike, of = agreement
            count = int(self.columns["label_error"].sum())
            weak = (
                ": it is weak on them, and many of those labels are right" if self.is_weak else ""
            )
            found.append(f"{count:,} label{'s are' if count != 1 else ' is'} likely wrong")
            found.append(f"the model predicts the given label of {share(alike, of)}{weak}")
            if self.trained_on:
                found.append(
                    "it was trained on them: wrong labels that it has learned by heart are not "
                    "found; of held-out examples they are"
                )
        found += self.notes
        if self.unreadable:
            count = len(self.unreadable)
            found.append(
                f"{count:,} example{'s' if count > 1 else ''} could not be read and "
                f"ha{'ve' if count > 1 else 's'} no scores"
            )
        return found


def share(count: int, of: int) -> str:
    """A part of some examples, for people; rounded down, so that all is said of all alone."""
    return f"{1000 * count // of / 10}% of {of:,} example{'s' * (of > 1)}" if of else "no example"
