"""The few things last used of many that are costly to make: open files, row groups."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import Any, Generic, TypeVar

T = TypeVar("T")


_all: weakref.WeakSet[Kept[Any]] = weakref.WeakSet()


class Kept(Generic[T]):
    """What was made last, up to a limit; the least recently used is let go first.

    Of threads that ask for one thing at once, one makes it and the others wait. A forked process
    begins with none, and so does a copy that is pickled: neither shares what is open.

    What is let go may still be in use by somebody, and lives until they are done.

    Args:
        limit: most weight that is kept; the last thing made is kept whatever it weighs.

    Attributes:
        made: how many were made in this process.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._renew()
        _all.add(self)

    def get(self, key: Hashable, make: Callable[[], T], weigh: Callable[[T], int]) -> T:
        """What is kept by a name, made if it is not there.

        Args:
            key: its name.
            make: makes it.
            weigh: its weight, in the unit of the limit.

        Raises:
            Exception: whatever ``make`` raises, to all who wait; the next to ask tries again.
        """
        with self._lock:
            found = self._futures.get(key)
            mine = found is None
            if found is None:
                found = self._futures[key] = Future()
            self._futures.move_to_end(key)
        if mine:
            self._make(key, found, make, weigh)
        return found.result()

    def _make(
        self, key: Hashable, future: Future[T], make: Callable[[], T], weigh: Callable[[T], int]
    ) -> None:
        try:
            value = make()
            weight = weigh(value)
        except BaseException as error:
            with self._lock:
                self._futures.pop(key, None)
            future.set_exception(error)
            return
        future.set_result(value)
        with self._lock:
            self.made += 1
            self._weights[key] = weight
            # Those in the making have no weight yet, and are waited for: they stay.
            for other in [k for k in self._futures if k in self._weights and k != key]:
                if sum(self._weights.values()) <= self.limit:
                    break
                del self._futures[other], self._weights[other]

    def _renew(self) -> None:
        self._lock = threading.Lock()
        self._futures: OrderedDict[Hashable, Future[T]] = OrderedDict()
        self._weights: dict[Hashable, int] = {}
        self.made = 0

    def __getstate__(self) -> dict[str, Any]:
        return {"limit": self.limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)


def _begin_anew() -> None:
    """In a process that was forked: locks may be held by threads that are not in it."""
    for kept in list(_all):
        kept._renew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
