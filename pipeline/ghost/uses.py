"""What a tape writes down: the uses of parameters, and the parameters with what came of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor

from attent.pipeline.ghost.pieces import Piece

BATCHED, DERIVED, UNCOVERED = "batched", "derived", "uncovered"


@dataclass(frozen=True)
class Use:
    """One function that was given parameters.

    Attributes:
        function: its name.
        names: the parameters it was given, or what it was given was made of.
        kind: ``batched`` (its output has the examples first), ``derived`` (it was given nothing but
            parameters) or ``uncovered`` (no rule).
        shape: of the output.
        module: path of the module that was running.
        written: whether it writes into a tensor and gives none.
        half: whether its output is in half precision.
    """

    function: str
    names: tuple[str, ...]
    kind: str
    shape: tuple[int, ...] = ()
    module: str = ""
    written: bool = False
    half: bool = False


@dataclass(eq=False)
class Node:
    """A parameter, or a tensor made of parameters alone.

    Attributes:
        sources: names of the parameters it is made of; of itself for a parameter.
        value: what the forward computes with.
        graph: where its gradient is pulled back from: for a parameter a leaf, made when asked for;
            for a derived one the result with its graph.
        pieces: of its gradient, as they come.
    """

    sources: frozenset[str]
    value: Tensor
    graph: Tensor | None = None
    pieces: list[Piece] = field(default_factory=list)


def met_once(known: Sequence[Use]) -> frozenset[str]:
    """Parameters that one piece is all there is of: those met once, by the examples themselves."""
    counts = Counter(name for use in known for name in use.names)
    return frozenset(
        name for use in known if use.kind == BATCHED for name in use.names if counts[name] == 1
    )
