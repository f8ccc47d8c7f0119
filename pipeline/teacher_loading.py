"""What stands between a `Teacher` and a loader that is not ours: indices, batches, the loop."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler

from attent.pipeline.teacher_pass import PresentPass


class Teaching(Protocol):
    """What is asked of a `Teacher` here."""

    batch_size: int | None

    @property
    def progress(self) -> float:
        """The share of the budget that is spent."""
        ...

    @property
    def finished(self) -> bool:
        """Whether the budget is spent."""
        ...

    def begin(self, batch_size: int) -> PresentPass | None:
        """Do what is due and begin what is left of a pass."""
        ...

    def end_pass(self) -> None:
        """Check that a pass was observed."""
        ...

    def coming(self, batch_size: int) -> Iterator[int]:
        """Batches left of the present pass, then those of each to come."""
        ...


class Indexed(NamedTuple):
    """An item with its index; and what a loader makes of several: a batch with its indices.

    On its way from a worker process a tensor of indices is sent as plain bytes: shared memory, in
    which a batch's tensors come, costs more than such a small one is worth.
    """

    index: Any
    item: Any

    def __reduce__(self) -> tuple[Any, ...]:
        index = self.index
        if (
            type(index) is Tensor
            and index.is_cpu
            and index.ndim == 1
            and index.dtype == torch.int64
        ):
            return _received, (index.numpy().tobytes(), self.item)
        return Indexed, tuple(self)


def _received(index: bytes, item: Any) -> Indexed:
    # Of a buffer that may be written to, as of other tensors.
    return Indexed(torch.frombuffer(bytearray(index), dtype=torch.int64), item)


class WithIndex(Dataset[Indexed]):
    """A map-style data set whose items are ``(index, item)``; its other attributes are its own.

    Args:
        dataset: with ``__getitem__`` and ``__len__``; ``__getitems__`` is used where it has that.
        num_examples: N, which its length must be.

    Raises:
        ValueError: an iterable data set, or one of another length.
    """

    def __init__(self, dataset: Any, num_examples: int) -> None:
        name = type(dataset).__name__
        if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
            raise ValueError(
                f"{name} is iterable: what is selected is read by index, so the data set needs "
                "__getitem__ and __len__"
            )
        if not hasattr(dataset, "__len__") or len(dataset) != num_examples:
            found = f"{len(dataset):,} examples" if hasattr(dataset, "__len__") else "no length"
            raise ValueError(f"{name} has {found}, but the teacher was made for {num_examples:,}")
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Indexed:
        return Indexed(index, self.dataset[index])

    @property
    def __getitems__(self) -> Callable[[list[int]], list[Indexed]]:
        """Several at once; an AttributeError where the data set cannot, as loaders expect."""
        fetch = self.dataset.__getitems__
        return lambda indices: [
            Indexed(*pair) for pair in zip(indices, fetch(indices), strict=True)
        ]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset":  # in a copy that is still being made
            raise AttributeError(name)
        return getattr(self.dataset, name)


class Batches(Sampler[list[int]]):
    """The batches of one pass at each iteration, for the ``batch_sampler`` of a loader.

    It has a state for loaders that keep one, and nothing is in it: where training stands is in the
    teacher's, so that nothing is passed over twice.
    """

    def __init__(self, teacher: Teaching, batch_size: int) -> None:
        self.teacher, self.batch_size = teacher, batch_size

    def __iter__(self) -> Iterator[list[int]]:
        # At once, and not with the first batch: a loader asks for an iterator when a pass begins.
        present = self.teacher.begin(self.batch_size)
        return iter(()) if present is None else present.batches()

    def __len__(self) -> int:
        return next(self.teacher.coming(self.batch_size), 0)

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take nothing from it."""


class Loop:
    """Pass after pass of a loader, until the budget is spent.

    ``len(loop)`` are the batches that are left of the plan, as if every rule selected as many as
    its ratio says.

    Args:
        teacher: says what is left.
        loader: over ``teacher.batches(...)``, or something that wraps such a loader.

    Raises:
        ValueError: a loader over other batches.
    """

    def __init__(self, teacher: Teaching, loader: Iterable[Any]) -> None:
        self.teacher, self.loader = teacher, loader
        sampler = getattr(loader, "batch_sampler", None)
        if sampler is not None and getattr(sampler, "teacher", None) is not teacher:
            raise ValueError(
                f"the loader reads the batches of a {type(sampler).__name__}: make it with "
                "batch_sampler=teacher.batches(batch_size), of this teacher, and let nothing put "
                "another in its place (each process is given its part by it)"
            )

    def __iter__(self) -> Iterator[Any]:
        while not self.teacher.finished:
            before = self.teacher.progress
            yield from self.loader
            self.teacher.end_pass()
            if self.teacher.progress == before:
                raise ValueError(
                    "the loader has begun no other pass: give the loop the loader itself, which "
                    "can be iterated again, and not an iterator of it"
                )

    def __len__(self) -> int:
        return sum(self.teacher.coming(self.batch_size))

    @property
    def batch_size(self) -> int:
        """Of all processes together, of every batch but a pass's last."""
        sampler = getattr(self.loader, "batch_sampler", None)
        size = self.teacher.batch_size if sampler is None else sampler.batch_size
        if size is None:
            raise ValueError("no batches yet: make the loader with teacher.batches(batch_size)")
        return size

    @property
    def dataset(self) -> Any:
        """Of the loader."""
        return getattr(self.loader, "dataset")  # noqa: B009

    @property
    def batch_sampler(self) -> Any:
        """Of the loader."""
        return getattr(self.loader, "batch_sampler")  # noqa: B009

    @property
    def num_workers(self) -> int:
        """Of the loader."""
        return getattr(self.loader, "num_workers", 0)
