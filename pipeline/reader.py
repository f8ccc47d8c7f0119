"""An endless stream read by position: whatever iterates, as examples 0, 1, 2, ... for ever."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

from tensordict import is_tensor_collection
from torch.utils.data import IterDataPipe
from torchdata.nodes import BaseNode, Loader

from attent.pipeline.keyed import all_global_generators
from attent.pipeline.source import ExampleError

Streamed = Iterable[Any] | Callable[[int], Iterable[Any]] | BaseNode[Any]
"""What can be read as a stream: see `Reader`."""

OPENING = 0
"""Seed of the global generators while a stream is begun."""


class StreamEnded(ValueError):
    """A stream that ended before the budget was spent.

    Attributes:
        length: how many examples it had.
    """

    def __init__(self, message: str, length: int) -> None:
        super().__init__(message)
        self.length = length


class Reader:
    """Reads the examples of a stream by their positions: a cursor, and what it takes to move it.

    Position p is the p-th example the stream gives, from 0. Reading on is free; going back, or to
    where another process had been, begins the stream again:

    - a callable ``start -> iterable`` begins at that position itself, which is as cheap as it makes
      it;
    - an iterable (a list, a data set, a `DataLoader` of ``batch_size=None``, an `IterDataPipe`) is
      iterated again from its beginning, and what comes before the position is **read and thrown
      away**; so is a node of torchdata, through its `Loader`;
    - an iterator (a generator) cannot be begun again: it is read on only, from where it stands,
      which must be its beginning. To resume, give a fresh one: it is read forward.

    Each time it is begun a stream must give the same examples: draw from keys
    (`attent.pipeline.keyed`), not from a global generator. While it is begun, its first example
    included, the global generators are seeded, and put back afterwards: a `DataLoader` and a
    shuffling `IterDataPipe` draw their seed then, and so shuffle the same way each time.

    Args:
        stream: one of these; of dictionaries, TensorDicts or tuples.
        names: what to call the parts of an example that is a tuple, in order.
        restart: at its end the stream begins anew, with the same number of examples each time.

    Raises:
        ValueError: not a stream, or an iterator that should begin anew.
    """

    def __init__(
        self, stream: Streamed, *, names: Sequence[str] = (), restart: bool = False
    ) -> None:
        pipe = isinstance(stream, IterDataPipe)
        self._locate = getattr(stream, "locate", None) if not pipe else None
        if isinstance(stream, BaseNode):
            stream = Loader(stream)
        if not (callable(stream) or isinstance(stream, Iterable)):
            raise ValueError(
                "a stream is an iterable of examples or a callable that begins one at a position, "
                f"not a {type(stream).__name__}"
            )
        self._stream = stream
        self._once = isinstance(stream, Iterator) and not pipe
        if restart and self._once:
            raise ValueError(
                f"restart=True needs a stream that can be begun again; a {type(stream).__name__} "
                "is read once: give a callable or an iterable that makes it"
            )
        self.names = tuple(names)
        self.restart = restart
        self.length = 0
        """Examples of the stream, once its end was seen; 0 before."""
        self._iterator: Iterator[Any] | None = None
        self._begun = False  # whether the iterator gave an example
        self._at = 0  # position of the iterator's next example
        self._began = 0  # position of the first example of the iterator's round of the stream
        self._returned: dict[int, dict[str, Any]] = {}

    def __getstate__(self) -> dict[str, Any]:
        """A copy (in a worker process) knows its positions, and reads nothing."""
        return {**self.__dict__, "_stream": (), "_iterator": None, "_returned": {}, "_locate": None}

    @property
    def again(self) -> bool:
        """Whether the stream can be begun anew at its end."""
        return not self._once

    def read(self, positions: Sequence[int]) -> list[dict[str, Any]]:
        """The examples at these positions, which rise, as dictionaries; others are passed over.

        Raises:
            ExampleError: one cannot be read; its position is said.
            StreamEnded: there are no so many.
            ValueError: a position that was passed, of an iterator.
        """
        return [self._one(position) for position in positions]

    def give_back(self, examples: dict[int, dict[str, Any]]) -> None:
        """Examples by position that were read too early: the next `read` need not go back for them.

        They replace those given back before.
        """
        self._returned = examples

    def known_length(self, position: int) -> int:
        """The stream's length if reading ``position`` shows it, otherwise 0."""
        return self.length if position >= self.length else 0

    def locate(self, position: int) -> str:
        """Where the example at a position is kept, for messages."""
        place = f"position {position} of the stream"
        if self._locate is None:
            return place
        return f"{place}: {self._locate(position - self._round(position))}"

    def _one(self, position: int) -> dict[str, Any]:
        if position in self._returned:
            return self._returned.pop(position)
        if self._iterator is None or position < self._at:
            self._begin(position)
        while self._at < position:
            self._next()
        return self._next()

    def _round(self, position: int) -> int:
        """Where the round of the stream began that a position is in."""
        return position - position % self.length if self.restart and self.length else 0

    def _begin(self, position: int) -> None:
        """Open the stream so that reading on comes to a position."""
        self._began = self._round(position)
        if callable(self._stream) and not isinstance(self._stream, Iterable):
            self._iterator, self._at = self._open(position - self._began), position
        elif not self._once:
            self._iterator, self._at = self._open(0), self._began
        elif self._at == 0:
            self._iterator = self._open(0)
        else:
            raise ValueError(
                f"the stream was read up to position {self._at} and cannot be read again from "
                f"{position}: a {type(self._stream).__name__} is read once; give a fresh one, or a "
                "callable or an iterable that makes it"
            )

    def _open(self, start: int) -> Iterator[Any]:
        self._begun = False
        with all_global_generators(OPENING):
            if isinstance(self._stream, Iterable):
                return iter(self._stream)
            return iter(self._stream(start))

    def _next(self) -> dict[str, Any]:
        """The example where the iterator stands."""
        assert self._iterator is not None
        seeded = nullcontext() if self._begun else all_global_generators(OPENING)
        try:
            with seeded:
                item = self._named(next(self._iterator))
        except StopIteration:
            self._end()
            return self._next()
        except Exception as error:
            at, self._iterator = self._at, None  # what has failed once may go on no more
            raise ExampleError(
                f"the example at {self.locate(at)} cannot be read: {type(error).__name__}: {error}"
            ) from error
        self._at, self._begun = self._at + 1, True
        return item

    def _named(self, item: Any) -> dict[str, Any]:
        """An example as a dictionary.

        Raises:
            ValueError: it cannot be made one.
        """
        if is_tensor_collection(item):
            return item.to_dict()
        if isinstance(item, Mapping):
            return dict(item)
        if isinstance(item, tuple | list) and len(item) == len(self.names):
            return dict(zip(self.names, item, strict=True))
        parts = f" of {len(item)} parts" if isinstance(item, tuple | list) else ""
        raise ValueError(
            "an example is a dictionary, a TensorDict or a tuple of the parts that are named "
            f"({', '.join(self.names) or 'none'}), not a {type(item).__name__}{parts}"
        )

    def _end(self) -> None:
        """Begin the stream anew, if that was asked for."""
        length = self._at - self._began
        before, self.length = self.length, length
        if not self.restart or length == 0:
            raise StreamEnded(f"the stream ended after {length:,} examples", length)
        if before not in (0, length):
            raise StreamEnded(
                f"the stream ended after {length:,} examples, but had {before:,} the first time: "
                "with restart=True it must have as many each time",
                length,
            )
        self._iterator, self._began = self._open(0), self._at
