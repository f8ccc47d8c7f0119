"""Map-style sources: where examples come from when they are asked for by index."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.utils.data import default_collate


class Source(Protocol):
    """A finite, indexed set of examples that are fetched a batch at a time.

    A source may also have

    - ``locate(index) -> str``, which says where an example is kept (a path, a row) and is quoted
      when that example cannot be read;
    - ``fetch_augmented(index, keys) -> TensorDict``, which training calls instead of ``fetch``:
      the examples under random changes that are cheaper or better made where they are read, such
      as a crop of a large picture. All randomness comes from ``keys`` (``[B]`` int64, one for each
      example and pass). What is cheap on a batch belongs in the task's ``view``;
    - ``lengths``, ``[N]`` integers, where a batch is as long as the longest of its examples: it is
      then made of examples of similar length (`attent.pipeline.order.bucketed_order`), unless
      ``bucketed`` is False: where the task packs a batch, any will do;
    - ``blocks``, ``[S + 1]`` int64 rising from 0 to N, where examples are kept together (in a file,
      in a row group) and reading one makes its neighbours cheap: block s holds the examples from
      ``blocks[s]`` to ``blocks[s + 1]``. Training then reads a few blocks at a time;
    - ``window``, how many of its blocks are read together
      (`attent.pipeline.order.blockwise_order`); 8 where it says nothing.

    A source that reads row by row calls `reading` before each, so that one that never comes back
    can be named.
    """

    def __len__(self) -> int:
        """The number of examples, N."""
        ...

    def fetch(self, index: Tensor) -> TensorDict:
        """The examples at ``index`` (``[B]`` int64, in that order) as a TensorDict of ``[B]``.

        Called from several threads at once when a stream has workers, or in processes, each a copy
        of this one made when the stream was opened.
        """
        ...


class ExampleError(ValueError):
    """An example that cannot be used; the message names its index and where it is kept."""


class TensorSource:
    """Examples held in memory as one tensor per field.

    Args:
        fields: name -> tensor of ``[N, ...]``.

    Raises:
        ValueError: no field, or fields of different lengths.
    """

    def __init__(self, fields: Mapping[str, Tensor]) -> None:
        lengths = {name: len(value) for name, value in fields.items()}
        if len(set(lengths.values())) != 1:
            raise ValueError(f"fields must share one length; got {lengths or 'no fields'}")
        self.fields = dict(fields)
        self._length = next(iter(lengths.values()))

    def __len__(self) -> int:
        return self._length

    def fetch(self, index: Tensor) -> TensorDict:
        """The examples at ``index``."""
        picked = {name: value.index_select(0, index) for name, value in self.fields.items()}
        return TensorDict(picked, batch_size=[len(index)])


class DatasetSource:
    """Any map-style data set whose items are dictionaries or tuples of tensors and numbers.

    An item must be the same each time it is asked for. Random transforms belong in the task's
    ``view``, drawn from its keys: in the data set they would make every score another one, and no
    run could be repeated or resumed exactly.

    Args:
        dataset: has ``__len__`` and ``__getitem__``.
        names: what to call the parts of an item that is a tuple, in order.
    """

    def __init__(self, dataset: Any, names: Sequence[str] = ("image", "label")) -> None:
        self.dataset = dataset
        self.names = tuple(names)

    def __len__(self) -> int:
        return len(self.dataset)

    def fetch(self, index: Tensor) -> TensorDict:
        """The items at ``index``, collated.

        Raises:
            ValueError: an item is not a dictionary or a tuple of as many parts as there are names.
        """
        items = [self._item(i) for i in index.tolist()]
        return TensorDict(default_collate(items), batch_size=[len(items)])

    def _item(self, index: int) -> dict[str, Any]:
        reading(index)
        return self._named(self.dataset[index])

    def _named(self, item: Any) -> dict[str, Any]:
        if isinstance(item, Mapping):
            return dict(item)
        if isinstance(item, tuple | list) and len(item) == len(self.names):
            return dict(zip(self.names, item, strict=True))
        raise ValueError(
            f"an item is a dictionary or a tuple of {len(self.names)} parts {self.names}, not "
            f"{type(item).__name__}"
            + (f" of {len(item)}" if isinstance(item, tuple | list) else "")
        )


_here = threading.local()


def reading(index: int) -> None:
    """Say which example is about to be read here, for whoever watches over this worker.

    Args:
        index: of the example.
    """
    note = getattr(_here, "note", None)
    if note is not None:
        note(index)


def watched(note: Callable[[int], None] | None) -> None:
    """Have `reading` tell somebody, in this thread (or process) from now on; None for nobody."""
    _here.note = note


def augments(source: Source) -> bool:
    """Whether a source changes its examples at random itself, in training."""
    return hasattr(source, "fetch_augmented")


def lengths_of(source: Source) -> Tensor | None:
    """The lengths of a source's examples, ``[N]`` on the CPU; None where it has none.

    Raises:
        ValueError: not one whole number for each example.
    """
    lengths = getattr(source, "lengths", None)
    if lengths is None:
        return None
    if tuple(lengths.shape) != (len(source),) or lengths.is_floating_point():
        raise ValueError(
            f"{type(source).__name__}.lengths are {lengths.dtype} {list(lengths.shape)}; they must "
            f"be whole numbers of [{len(source)}]"
        )
    return lengths.cpu()


def buckets_of(source: Source) -> Tensor | None:
    """The lengths by which batches of a source are made, ``[N]``; None where they are not."""
    return lengths_of(source) if getattr(source, "bucketed", True) else None


def blocks_of(source: Source) -> Tensor | None:
    """Where a source's blocks begin and end, ``[S + 1]``; None where it has none.

    Raises:
        ValueError: they do not rise from 0 to N.
    """
    blocks = getattr(source, "blocks", None)
    if blocks is None:
        return None
    found = blocks.cpu()
    rising = len(found) > 1 and bool((found[1:] > found[:-1]).all())
    if found.dtype != torch.int64 or not rising or [found[0], found[-1]] != [0, len(source)]:
        raise ValueError(
            f"{type(source).__name__}.blocks must be int64, rising from 0 to {len(source)}; got "
            f"{found.dtype} {found[:8].tolist()}..."
        )
    return found


def fetch_batch(source: Source, index: Tensor, keys: Tensor | None = None) -> TensorDict:
    """The examples at ``index`` with their indices in the batch, as the ``index`` entry.

    Args:
        source: where they are.
        index: ``[B]`` int64.
        keys: ``[B]`` int64, for a source that augments; None for the examples as they are.

    Raises:
        ExampleError: one of them cannot be fetched; it is found and named.
    """
    try:
        batch = fetch_as_it_is(source, index, keys)
    except Exception as error:
        raise _culprit(source, index, keys, error) from error
    return with_index(source, batch, index)


def fetch_as_it_is(source: Source, index: Tensor, keys: Tensor | None = None) -> TensorDict:
    """What the source makes of `fetch_batch`'s arguments; its errors are its own."""
    if keys is None:
        return source.fetch(index)
    return source.fetch_augmented(index, keys)  # type: ignore[attr-defined]


def fetch_one_by_one(
    source: Source, index: Tensor, keys: Tensor | None
) -> Iterator[tuple[int, Exception]]:
    """Those of some examples that cannot be fetched even alone, each with its error.

    Args:
        source: where they are.
        index: ``[B]`` int64.
        keys: ``[B]`` int64, for a source that augments; None for the examples as they are.
    """
    for at, i in enumerate(index.tolist()):
        reading(i)
        try:
            fetch_as_it_is(source, index[at : at + 1], None if keys is None else keys[at : at + 1])
        except Exception as error:
            yield i, error


def with_index(source: Source, batch: TensorDict, index: Tensor) -> TensorDict:
    """What a source returned for ``index``, which becomes its entry of that name.

    Raises:
        ValueError: a batch of another size.
    """
    if tuple(batch.batch_size) != (len(index),):
        raise ValueError(
            f"{type(source).__name__}.fetch returned a batch of size {list(batch.batch_size)} for "
            f"{len(index)} indices"
        )
    return batch.set("index", index)


def describe_example(source: Source, index: int) -> str:
    """``example 17``, and where it is kept if the source can say."""
    locate = getattr(source, "locate", None)
    return f"example {index}" + (f" ({locate(index)})" if locate is not None else "")


def not_together(index: Tensor, error: Exception) -> ExampleError:
    """The error of a batch that cannot be fetched though each of its examples can."""
    return ExampleError(
        f"a batch of {len(index)} examples ({index[:8].tolist()}...) cannot be fetched together, "
        f"though each can alone: {type(error).__name__}: {error}"
    )


def _culprit(source: Source, index: Tensor, keys: Tensor | None, error: Exception) -> ExampleError:
    """Fetch one by one to find which example the batch failed on."""
    for i, single in fetch_one_by_one(source, index, keys):
        return ExampleError(
            f"{describe_example(source, i)} cannot be fetched: {type(single).__name__}: {single}"
        )
    return not_together(index, error)
