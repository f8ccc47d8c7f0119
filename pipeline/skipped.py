"""Examples that could not be read and were passed over: counted, and listed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from attent.pipeline.source import Source, describe_example


@dataclass(frozen=True, kw_only=True)
class Skipped:
    """An example that could not be read.

    Attributes:
        source: it belongs to.
        index: of the example in it.
        place: ``example 17``, and where it is kept if the source can say.
        reason: why it could not be read.
    """

    source: Source
    index: int
    place: str
    reason: str


class SkippedList:
    """Examples that could not be read, each once however often it was met, in the order met.

    One list serves any number of streams and sources; `attent.pipeline.Loading` says what is done
    in place of such an example.
    """

    def __init__(self) -> None:
        # A source that is held here keeps its id from being another's.
        self._found: dict[tuple[int, int], Skipped] = {}

    def __len__(self) -> int:
        return len(self._found)

    def __iter__(self) -> Iterator[Skipped]:
        return iter(list(self._found.values()))

    def add(self, source: Source, reasons: Mapping[int, str]) -> None:
        """Enter examples of a source that are not listed yet.

        Args:
            source: they belong to.
            reasons: index -> why it could not be read.
        """
        for index, reason in reasons.items():
            if (id(source), index) not in self._found:
                self._found[id(source), index] = Skipped(
                    source=source,
                    index=index,
                    place=describe_example(source, index),
                    reason=reason,
                )

    def of(self, source: Source) -> dict[int, str]:
        """What is listed of a source: index -> why it could not be read."""
        return {entry.index: entry.reason for entry in self if entry.source is source}
