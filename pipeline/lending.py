"""Memory that a worker process shares with the training process, lent a batch at a time.

Shared memory that is made for one batch costs more than to decode many a picture: its pages are
given out, cleared and taken back one by one, and a file descriptor changes hands. Here it is used
again once nothing in the training process refers to what was in it.
"""

from __future__ import annotations

import io
import pickle
import weakref
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from multiprocessing.reduction import ForkingPickler
from typing import Any

import torch
from torch import Tensor

SMALL = 2**16
"""Bytes of a tensor up to which it is sent with the message."""

_BY_VALUE: Sequence[torch.dtype] = (
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.float32, torch.float64,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Message:
    """What a `Lender` sends to its `Borrower`; torch's pickler makes shared memory of ``made``.

    Attributes:
        made: pieces of memory that are new: number -> uint8 ``[bytes]``, shared.
        dropped: numbers of those that the lender uses no more.
        body: what was to be sent, pickled; in place of large tensors, where they are.
    """

    made: dict[int, Tensor]
    dropped: list[int]
    body: bytes


@dataclass
class Lender:
    """Puts large tensors into memory that is shared; in the process that fetches."""

    _pieces: dict[int, Tensor] = field(default_factory=dict)
    _told: set[int] = field(default_factory=set)
    _next: int = 0

    def packed(self, value: Any, busy: Collection[int]) -> Message:
        """A message of a value.

        Args:
            value: anything that can be pickled for another process.
            busy: numbers of the pieces that the borrower still uses.
        """
        buffer = io.BytesIO()
        _Pickler(buffer, self, set(busy)).dump(value)
        # Since the last message, not since this call: the one before may have failed half-way.
        made = {number: piece for number, piece in self._pieces.items() if number not in self._told}
        dropped = [*self._told - self._pieces.keys()]
        self._told = set(self._pieces)
        return Message(made=made, dropped=dropped, body=buffer.getvalue())

    def lend(self, tensor: Tensor, taken: set[int]) -> tuple[int, torch.dtype, torch.Size]:
        """Copy a tensor into a piece that is not taken; where it is, and as what."""
        size = tensor.numel() * tensor.element_size()
        free = [(len(piece), n) for n, piece in self._pieces.items() if n not in taken]
        number = min((place for place in free if place[0] >= size), default=(0, -1))[1]
        if number < 0:
            if free:  # or tensors of many lengths would each leave a piece of memory behind
                del self._pieces[max(free)[1]]
            number, self._next = self._next, self._next + 1
            self._pieces[number] = torch.empty(_rounded(size), dtype=torch.uint8).share_memory_()
        taken.add(number)
        _seen_as(self._pieces[number][:size], tensor.dtype, tensor.shape).copy_(tensor)
        return number, tensor.dtype, tensor.shape


@dataclass
class Borrower:
    """Reads what a `Lender` sends; in the training process."""

    _pieces: dict[int, Tensor] = field(default_factory=dict)
    _used: dict[int, weakref.ref[Any]] = field(default_factory=dict)

    def busy(self) -> list[int]:
        """Numbers of the pieces that somebody here still refers to."""
        self._used = {number: ref for number, ref in self._used.items() if ref() is not None}
        return [*self._used]

    def unpacked(self, message: Message) -> Any:
        """The value; its large tensors are views of the lender's memory, which they hold."""
        for number in message.dropped:
            del self._pieces[number]
        self._pieces.update(message.made)
        return _Unpickler(io.BytesIO(message.body), self).load()

    def borrow(self, number: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
        """A tensor that was lent."""
        # All that shares the tensor's storage holds this array, and nothing else does.
        array = self._pieces[number].numpy()[: shape.numel() * dtype.itemsize]
        self._used[number] = weakref.ref(array)
        return _seen_as(torch.from_numpy(array), dtype, shape)


def _seen_as(piece: Tensor, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return piece.view(dtype).view(shape)


def _rounded(size: int) -> int:
    """Room for a quarter more at most, so that somewhat larger ones find room too."""
    step = max(SMALL, 1 << max(0, size.bit_length() - 3))
    return -(-size // step) * step


class _Pickler(ForkingPickler):
    """torch's way to other processes, with small tensors by value and large ones lent."""

    def __init__(self, buffer: io.BytesIO, lender: Lender, taken: set[int]) -> None:
        super().__init__(buffer, 5)
        self._lender, self._taken = lender, taken

    def persistent_id(self, obj: Any) -> Any:
        """Where a large tensor is."""
        if not _plain(obj) or _by_value(obj):
            return None
        return self._lender.lend(obj, self._taken)

    def reducer_override(self, obj: Any) -> Any:
        """A small tensor by value."""
        if _plain(obj) and _by_value(obj):
            return torch.from_numpy, (obj.numpy(force=True),)
        return NotImplemented


def _plain(obj: Any) -> bool:
    """Whether it is a tensor that is nothing but its numbers, and has some."""
    return (
        type(obj) is Tensor
        and obj.device.type == "cpu"
        and obj.layout == torch.strided
        and obj.numel() > 0
        and not (obj.requires_grad or obj.is_quantized)
    )


def _by_value(tensor: Tensor) -> bool:
    return tensor.numel() * tensor.element_size() <= SMALL and tensor.dtype in _BY_VALUE


class _Unpickler(pickle.Unpickler):
    """Puts in what was lent."""

    def __init__(self, buffer: io.BytesIO, borrower: Borrower) -> None:
        super().__init__(buffer)
        self._borrower = borrower

    def persistent_load(self, pid: Any) -> Tensor:
        """A large tensor."""
        return self._borrower.borrow(*pid)
