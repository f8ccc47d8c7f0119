"""What a training command is: its options, what builds its runs, how their results are told."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline import Source
from attent.tasks.build import Run


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A figure by which runs are told apart.

    Attributes:
        metric: its entry below ``metrics``.
        title: what people call it.
        short: where there is little room.
        percent: shown as a percentage.
        larger_is_better: which way is up.
    """

    metric: str
    title: str
    short: str
    percent: bool = False
    larger_is_better: bool = False

    def text(self, value: float) -> str:
        """The value, for people."""
        return f"{value:.2%}" if self.percent else f"{value:.4f}"


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a model makes of one picture.

    Attributes:
        figure: to look at.
        words: in a line.
        arrays: name -> what was predicted itself, for other programs.
    """

    figure: Figure
    words: str
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Passage:
    """Texts for the report, where there is nothing to look at.

    Attributes:
        title: of all of them.
        parts: what each is, and itself.
    """

    title: str
    parts: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Form:
    """How a command is meant where another is named.

    Attributes:
        of: the other's name.
        when: which options say so, for people.
        holds: options as they are given -> whether they do.
    """

    of: str
    when: str
    holds: Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True, kw_only=True)
class Command:
    """A command that trains.

    Attributes:
        name: of the command.
        config: its options.
        build: options -> what the run is made of.
        measures: the figures of its runs; the first decides which checkpoint is the best.
        parts: further figures, which the report shows apart.
        load_data: options -> training and held-out examples, for pictures of them.
        load_held_out: options and the run's own held-out examples -> those of the options' data, of
            the classes of the run; a training split is not looked for.
        thumbnails: a batch -> a small picture and a few words for each example; None where examples
            are no pictures.
        text: a source and an index -> the example as a text, where it is one.
        pictures: the trained run -> further pictures for the report: name, figure, what it shows.
        passages: the trained run and its options -> texts for the report.
        prepare: the options, with the run's folder, the run, and whom to tell -> whether something
            was made there that the run is built of, after which it is built again.
        save: the trained run and a folder -> write there the final weights as others load them.
        predict: the trained run, its options and a photograph ``[3, H, W]`` uint8 -> what the model
            makes of it.
        form: which other command it goes by the name of, and when; None if it has its name alone.
    """

    name: str
    config: type
    build: Callable[..., Run]
    measures: tuple[Measure, ...]
    load_data: Callable[[Any], tuple[Source, Source]]
    load_held_out: Callable[[Any, Source], Source]
    thumbnails: Callable[[TensorDict], Sequence[tuple[Tensor, str]]] | None = None
    text: Callable[[Any, int], str] | None = None
    parts: tuple[Measure, ...] = ()
    pictures: Callable[[Run], list[tuple[str, Figure, str]]] | None = None
    passages: Callable[[Run, Any], list[Passage]] | None = None
    prepare: Callable[[Any, Run, Callable[[str], None]], bool] | None = None
    save: Callable[[Run, Path], None] | None = None
    predict: Callable[[Run, Any, Tensor], Prediction] | None = None
    form: Form | None = None

    @property
    def options(self) -> set[str]:
        """Names of its options."""
        return {field.name for field in dataclasses.fields(self.config)}
