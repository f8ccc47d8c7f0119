"""The whole run's arithmetic before it starts: phases, passes, budget, cost.

Budgets count examples trained on, or their tokens where examples are of different lengths, so that
a pass over a subset counts its own size. Costs count a forward as 1 and a backward as 2, scoring
included.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keys import number
from attent.pipeline.schedules import Schedule, cosine, fixed_interval
from attent.pipeline.threshold import count

Accounting = Literal["examples", "passes"]

TRAIN_COST = 3
"""Forward and backward of one example, in forwards."""


class PlanError(ValueError):
    """A plan that cannot be carried out; the message shows the arithmetic."""


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Passes made under one selection.

    Attributes:
        cycle: -1 before the first.
        ratio: share of the examples selected.
        size: examples in a pass.
        passes: how many; 0 for as many as the budget has left.
        score: measure every example first.
        redraw: select anew, with another key, before every pass.
    """

    cycle: int
    ratio: float
    size: int
    passes: int
    score: bool = False
    redraw: bool = False


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run will do.

    Attributes:
        name: of the recipe.
        num_examples: N.
        phases: in order; the last may be open (``passes`` 0).
        budget: examples trained on in all; the run ends exactly there. In tokens where
            ``pass_tokens`` is given; the run then ends with the example that reaches it.
        score_cost: of one example, in forwards: 1 for a loss, 3 with a backward.
        pass_tokens: of all examples together; 0 where the budget counts examples.
        per_window: N is the window of a stream, and the phases, none of them open, are made in
            each window until the budget is spent.
        kept: share of a stream that comes into its windows; what is below 1 is measured for that.

    Which examples are selected, and so how long they are, nobody knows before: where the budget is
    in tokens, `spans`, `passes`, `cost` and `saving` take every example to be of mean length.
    """

    name: str
    num_examples: int
    phases: tuple[Phase, ...]
    budget: int
    score_cost: int = 1
    pass_tokens: int = 0
    per_window: bool = False
    kept: float = 1.0

    @property
    def unit(self) -> str:
        """Of the budget: ``examples`` or ``tokens``."""
        return "tokens" if self.pass_tokens else "examples"

    @property
    def pass_units(self) -> int:
        """What a pass over everything is, in the unit of the budget."""
        return self.pass_tokens or self.num_examples

    @property
    def examples(self) -> int:
        """Trained on in all; about, where the budget is in tokens."""
        return round(self.budget * self.num_examples / self.pass_units)

    def spans(self) -> list[tuple[Phase, int]]:
        """Each phase with the examples that it trains on, in all windows together."""
        windows, left, spans = 0, self.examples, []
        if self.per_window:
            windows, left = divmod(left, sum(phase.size * phase.passes for phase in self.phases))
        for phase in self.phases:
            spent = left if phase.passes == 0 else min(left, phase.size * phase.passes)
            spans.append((phase, windows * phase.size * phase.passes + spent))
            left -= spent
        return spans

    def entered(self, phase: Phase, spent: int) -> int:
        """How often a phase begins that trains on so many examples in all: once, but in windows."""
        return math.ceil(spent / (phase.size * phase.passes)) if self.per_window else int(spent > 0)

    @property
    def scorings(self) -> int:
        """How many times every example is measured."""
        return sum(phase.score * self.entered(phase, spent) for phase, spent in self.spans())

    @property
    def passes(self) -> float:
        """Passes in all, a pass that is cut short counted by its share."""
        return sum(spent / phase.size for phase, spent in self.spans())

    @property
    def cost(self) -> int:
        """Of training and scoring, in forwards of one example."""
        candidates = round(self.examples / self.kept) if self.kept < 1 else 0
        scored = self.scorings * self.num_examples + candidates
        return TRAIN_COST * self.examples + self.score_cost * scored

    @property
    def saving(self) -> float:
        """The share of compute saved against as many passes over everything; below 0 is a loss."""
        return 1 - self.cost * self.kept / (TRAIN_COST * self.num_examples * self.passes)

    def warnings(self) -> list[str]:
        """Where scoring costs more than the selection saves, with the arithmetic."""
        found = []
        for phase, spent in [span for span in self.spans() if span[0].score and span[1]]:
            passes = phase.passes if self.per_window else spent / phase.size
            where = "a window" if self.per_window else f"cycle {phase.cycle + 1}"
            paid = self.score_cost * self.num_examples
            saved = TRAIN_COST * (self.num_examples - phase.size) * passes
            if saved <= paid:
                spared = self.num_examples - phase.size
                found.append(
                    f"{where} cannot pay: scoring {self.num_examples:,} examples "
                    f"costs {paid:,} forwards, and {passes:g} passes over {phase.size:,} of them "
                    f"instead of all save {TRAIN_COST} x {spared:,} x {passes:g} = {saved:,.0f}"
                )
        if self.kept < 1 and self.score_cost >= TRAIN_COST * (1 - self.kept):
            found.append(
                f"the threshold cannot pay: measuring a candidate costs {self.score_cost} forwards "
                f"and not training on {1 - self.kept:.0%} of them saves {TRAIN_COST} x "
                f"{1 - self.kept:.2f} = {TRAIN_COST * (1 - self.kept):.2f}"
            )
        return found


def spent(state: TensorDict) -> int:
    """What of its budget a run has spent, in the unit of the budget."""
    return number(state, "clock", "tokens" if number(state, "plan", "pass_tokens") else "seen")


def in_tokens(plan: Plan, epochs: float, lengths: Tensor | None) -> Plan:
    """The same phases under a budget in tokens; the last goes on until it is spent.

    Args:
        plan: with a budget in examples.
        epochs: the budget is so many times the tokens of all examples.
        lengths: ``[N]``, tokens of each example.

    Raises:
        PlanError: examples have no lengths, or not all of them any.
    """
    if lengths is None:
        raise PlanError("a budget in tokens needs a source that has lengths; this one has none")
    if int(lengths.min()) < 1:
        raise PlanError("a budget in tokens needs lengths of at least 1")
    tokens = int(lengths.sum())
    phases, last = plan.phases, plan.phases[-1]
    if last.passes:
        everything = Phase(cycle=last.cycle, ratio=1.0, size=plan.num_examples, passes=0)
        phases = (*phases, everything)
    return dataclasses.replace(
        plan, phases=phases, budget=round(epochs * tokens), pass_tokens=tokens
    )


def full_plan(num_examples: int, epochs: float) -> Plan:
    """Plain training: everything, until the budget is spent.

    Raises:
        ValueError: no epochs.
    """
    phase = Phase(cycle=-1, ratio=1.0, size=num_examples, passes=0)
    return Plan(
        name="full",
        num_examples=num_examples,
        phases=(phase,),
        budget=_epochs_to_examples(num_examples, epochs),
    )


def simple_plan(
    num_examples: int,
    epochs: float,
    *,
    ratio: float = 0.7,
    first: int = 1,
    score: bool = False,
    score_cost: int = 1,
    redraw: bool = False,
) -> Plan:
    """AtteNTSimple: full epochs whose losses are observed, then the highest of them to the end.

    Args:
        num_examples: N.
        epochs: the budget is ``epochs * N`` examples.
        ratio: share selected after the first epochs.
        first: full epochs.
        score: measure every example after them, instead of going by what was observed.
        score_cost: of one example, in forwards.
        redraw: select anew before every pass.

    Raises:
        PlanError: nothing of the budget is left after the first epochs.
    """
    budget = _epochs_to_examples(num_examples, epochs)
    if first < 1:
        raise ValueError(f"scores are observed in the first epochs: at least 1, got {first}")
    if budget <= first * num_examples:
        raise PlanError(
            f"the plan does not fit: {first} full epoch(s) of {num_examples:,} examples to observe "
            f"their losses use up the budget of {epochs:g} x {num_examples:,} = {budget:,} "
            "examples; raise epochs"
        )
    phases = (
        Phase(cycle=-1, ratio=1.0, size=num_examples, passes=first),
        Phase(
            cycle=0,
            ratio=ratio,
            size=count(ratio, num_examples),
            passes=0,
            score=score,
            redraw=redraw,
        ),
    )
    return Plan(
        name="attent_simple",
        num_examples=num_examples,
        phases=phases,
        budget=budget,
        score_cost=score_cost,
    )


def complex_plan(
    num_examples: int,
    epochs: int,
    *,
    ratio: Schedule | None = None,
    interval: Schedule | None = None,
    cycles: int = 10,
    accounting: Accounting = "examples",
    first: int = 1,
    score: bool = True,
    score_cost: int = 1,
    redraw: bool = False,
) -> Plan:
    """AtteNTComplex: cycles of an interval on a subset and full epochs (Zhang et al., ICLR 2026).

    One epoch on everything; then for cycle c of C, with progress ``p = c / (C - 1)`` (1 if C = 1):
    score, select ``ratio(p)``, ``interval(p)`` passes over the subset, then full epochs.

    Args:
        num_examples: N.
        epochs: what they buy, the accounting says.
        ratio: of the cycle's progress; cosine 0.2 to 0.8 by default.
        interval: passes over the subset, of the cycle's progress; 5 by default.
        cycles: C.
        accounting: ``examples``: the budget is ``epochs * N`` examples; a pass over a subset
            counts its own size, what is left is full epochs, spread over the cycles, the earliest
            first, the last of them cut to fit. ``passes``, as published: a pass over a subset
            counts as an epoch, every cycle has ``(epochs - 1) // C`` of them (the remainder goes to
            the earliest), and so fewer than ``epochs * N`` examples are trained on.
        first: full epochs before the first cycle.
        score: measure every example at the start of each cycle; False if they are observed, or
            the rule needs none.
        score_cost: of one example, in forwards.
        redraw: select anew before every pass.

    Raises:
        PlanError: the cycles do not fit the budget.
    """
    ratio, interval = ratio or cosine(0.2, 0.8), interval or fixed_interval(5)
    if cycles < 1:
        raise ValueError(f"total_cycles must be at least 1, got {cycles}")
    if accounting not in ("examples", "passes"):
        raise ValueError(f"accounting is 'examples' or 'passes', not {accounting!r}")
    if first < 0:
        raise ValueError(f"full epochs before the first cycle are at least 0, got {first}")
    progress = [1.0 if cycles == 1 else c / (cycles - 1) for c in range(cycles)]
    ratios = [ratio(p) for p in progress]
    sizes = [count(r, num_examples) for r in ratios]
    intervals = [_whole_passes(interval(p)) for p in progress]
    if accounting == "passes":
        full_epochs, budget = _share_passes(num_examples, epochs, sizes, intervals, first)
    else:
        full_epochs, budget = _share_examples(num_examples, epochs, sizes, intervals, first)
    phases = [Phase(cycle=-1, ratio=1.0, size=num_examples, passes=first)] if first else []
    for c, share in enumerate(ratios):
        subset = share < 1
        phases.append(
            Phase(
                cycle=c,
                ratio=share,
                size=sizes[c],
                passes=intervals[c],
                score=score and subset,
                redraw=redraw and subset,
            )
        )
        if full_epochs[c]:
            phases.append(Phase(cycle=c, ratio=1.0, size=num_examples, passes=full_epochs[c]))
    planned = sum(phase.size * phase.passes for phase in phases)
    if planned < budget:
        phases.append(Phase(cycle=cycles - 1, ratio=1.0, size=num_examples, passes=0))
    return Plan(
        name="attent_complex",
        num_examples=num_examples,
        phases=tuple(phases),
        budget=budget,
        score_cost=score_cost,
    )


def _share_examples(
    num_examples: int, epochs: float, sizes: Sequence[int], intervals: Sequence[int], first: int
) -> tuple[list[int], int]:
    """Whole full epochs of each cycle, and the budget in examples."""
    budget = _epochs_to_examples(num_examples, epochs)
    selected = sum(k * i for k, i in zip(sizes, intervals, strict=True))
    left = budget - first * num_examples - selected
    if left < 0:
        raise PlanError(
            f"the plan does not fit: {first} full epoch(s) of {num_examples:,} examples and "
            f"{len(sizes)} cycles of {_span(intervals)} passes over {_span(sizes)} examples are "
            f"{first * num_examples:,} + {selected:,} = {first * num_examples + selected:,} "
            f"examples, but {epochs:g} epochs are {budget:,}; raise epochs to at least "
            f"{math.ceil((first * num_examples + selected) / num_examples)}, or lower "
            "total_cycles, the interval or the ratio"
        )
    return _spread(left // num_examples, len(sizes)), budget


def _share_passes(
    num_examples: int, epochs: float, sizes: Sequence[int], intervals: Sequence[int], first: int
) -> tuple[list[int], int]:
    """The published accounting: a pass over a subset is an epoch, and every epoch is counted."""
    if not math.isfinite(epochs) or epochs != int(epochs) or epochs < 1:
        raise PlanError(f"with budget: passes, epochs is a whole number, got {epochs}")
    left = int(epochs) - first - sum(intervals)
    if left < 0:
        raise PlanError(
            f"the plan does not fit: {first} full epoch(s) and {len(intervals)} cycles of "
            f"{_span(intervals)} passes are {first} + {sum(intervals)} = {first + sum(intervals)} "
            f"passes, but epochs is {int(epochs)}; raise epochs to at least "
            f"{first + sum(intervals)}, or lower total_cycles or the interval"
        )
    lengths = _spread(int(epochs) - first, len(intervals))
    full = [max(0, length - i) for length, i in zip(lengths, intervals, strict=True)]
    # A cycle whose interval is longer than its share has borrowed from the latest ones.
    for c in reversed(range(len(full))):
        excess = sum(full) - left
        full[c] -= min(full[c], max(0, excess))
    trained = num_examples * (first + sum(full))
    return full, trained + sum(k * i for k, i in zip(sizes, intervals, strict=True))


def _whole_passes(interval: float) -> int:
    if not math.isfinite(interval) or interval < 1 or interval != int(interval):
        raise ValueError(f"an interval is a whole number of passes, at least 1, got {interval}")
    return int(interval)


def _spread(total: int, parts: int) -> list[int]:
    """A whole number shared out evenly, the remainder to the earliest."""
    return [total // parts + (i < total % parts) for i in range(parts)]


def _span(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _epochs_to_examples(num_examples: int, epochs: float) -> int:
    if not math.isfinite(epochs) or round(epochs * num_examples) < 1:
        raise ValueError(f"epochs must be above 0, got {epochs}")
    return round(epochs * num_examples)
