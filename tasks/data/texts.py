"""Texts with their classes, as token ids.

Shapes: N rows, B of them in a batch, T tokens of the longest in it, K classes.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from tensordict import TensorDict
from torch import Tensor

from attent.tasks.data.dropped import Dropped
from attent.tasks.data.rows import Row

INPUTS = ("input_ids", "attention_mask", "token_type_ids")
"""What models see of a text, of those that their tokenizer gives."""


class Texts:
    """A source of texts, or pairs of texts, with the class of each.

    Args:
        rows: from `read_rows`.
        tokenizer: of transformers; what a text begins and ends with is its own affair.
        classes: names of the K classes, in the order of their numbers; None for those of the rows:
            by size if all are whole numbers, else by name.
        known: names in an order to be kept where the rows are of just these classes.
        fields: name of the text; or of two, which the tokenizer makes one row of.
        label_field: name of the class, a text or a whole number.
        max_length: tokens of a row; what is beyond is cut off, of a pair from the longer text.

    A batch has ``input_ids`` and ``attention_mask`` ``[B, T]`` int64, ``token_type_ids`` where the
    tokenizer gives them, all padded as it does it, and ``label`` ``[B]`` int64.

    Attributes:
        lengths: ``[N]`` int64, tokens of each row.
        labels: ``[N]`` int64, the number of each row's class.
        dropped: the rows without a text.

    Raises:
        ValueError: a row that is not of that form, or no row left; names its file and number.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        tokenizer: Any,
        classes: Sequence[str] | None = None,
        *,
        known: Sequence[str] = (),
        fields: Sequence[str] = ("text",),
        label_field: str = "label",
        max_length: int = 512,
    ) -> None:
        self.tokenizer = tokenizer
        self.fields = list(fields)
        self.dropped: list[Dropped] = []
        self.rows: list[Row] = []
        for row in rows:
            empty = [name for name in self.fields if not _text(row, name).strip()]
            if empty:
                self.dropped.append(Dropped(row, f"{empty[0]} is empty"))
            else:
                self.rows.append(row)
        if not self.rows:
            first = self.dropped[0]
            raise ValueError(f"all of {len(rows)} rows are empty: {first.row.place}: {first.why}")
        if classes is None:
            classes = _classes_of(self.rows, label_field)
            classes = known if set(known) == set(classes) else classes
        self.classes = list(classes)
        numbers = {name: i for i, name in enumerate(self.classes)}
        self.labels = torch.tensor([_number(row, label_field, numbers) for row in self.rows])
        texts = [[row.values[name] for row in self.rows] for name in self.fields]
        given = tokenizer(*texts, truncation=True, max_length=max_length, verbose=False)
        _forget(tokenizer)
        self._given = {name: given[name] for name in INPUTS if name in given}
        self.lengths = torch.tensor([len(ids) for ids in self._given["input_ids"]])

    def __len__(self) -> int:
        return len(self.rows)

    def locate(self, index: int) -> str:
        """The row's file and number."""
        return self.rows[index].place

    def fetch(self, index: Tensor) -> TensorDict:
        """The rows at ``index``, as long as the longest of them."""
        some = {name: [rows[i] for i in index.tolist()] for name, rows in self._given.items()}
        padded = self.tokenizer.pad(some, return_tensors="pt", verbose=False)
        fields = {**padded, "label": self.labels[index]}
        return TensorDict(fields, batch_size=[len(index)])

    def text(self, index: int) -> str:
        """The row as people read it, without its class."""
        values = self.rows[index].values
        if len(self.fields) == 1:
            return values[self.fields[0]]
        return "\n".join(f"{name}: {values[name]}" for name in self.fields)


def _forget(tokenizer: Any) -> None:
    """Let a tokenizer cut and pad nothing of itself: it is saved with what it was last asked."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        backend.no_truncation()
        backend.no_padding()


def _classes_of(rows: Sequence[Row], field: str) -> list[str]:
    """The names of the classes that rows are of, in order."""
    first, found = _label(rows[0], field), set()
    for row in rows:
        label = _label(row, field)
        if type(label) is not type(first):
            raise ValueError(
                f"data: {row.place}: {field} is {label!r}, but {first!r} in {rows[0].place}: all "
                "are whole numbers, or all are texts"
            )
        found.add(label)
    if len(found) < 2:
        raise ValueError(f"data: {field} is {first!r} in every row: there is nothing to tell apart")
    names = sorted(map(str, found))
    numbers = all(re.fullmatch("-?[0-9]+", name) for name in names)
    return sorted(names, key=int) if numbers else names


def _number(row: Row, field: str, numbers: dict[str, int]) -> int:
    name = str(_label(row, field))
    if name not in numbers:
        known = ", ".join(map(repr, list(numbers)[:10])) + ", ..." * (len(numbers) > 10)
        raise ValueError(
            f"data: {row.place}: {field} is {name!r}, which no row that is trained on has ({known})"
        )
    return numbers[name]


def _label(row: Row, field: str) -> str | int:
    value = _field(row, field, "label_field")
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValueError(
            f"data: {row.place}: {field} must be a text or a whole number, not {value!r:.80}"
        )
    if isinstance(value, str) and not value.strip():
        raise ValueError(f"data: {row.place}: {field} is empty")
    return value


def _text(row: Row, field: str) -> str:
    """What a field holds; nothing where it is null."""
    value = _field(row, field, "text_field")
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ValueError(f"data: {row.place}: {field} must be a text, not {value!r:.80}")
    return value


def _field(row: Row, field: str, option: str) -> Any:
    if field not in row.values:
        raise ValueError(
            f"data: {row.place} has no {field!r}, but {', '.join(row.values) or 'nothing'}; "
            f"{option} names another"
        )
    return row.values[field]
