"""The whole run's arithmetic before it starts: phases, passes, budget, cost.

Budgets count examples trained on, or their tokens where examples are of different lengths, so that
a pass over a subset counts its own size. Costs count a forward as 1 and a backward as 2, scoring
included.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keys import number
from attent.pipeline.schedules import Schedule
from attent.pipeline.threshold import count

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
        passes: how many; 0 for as many as it takes to reach ``until``.
        score: measure every example first.
        redraw: select anew, with another key, before every pass.
        since: share of the budget that is spent when the phase begins; asked where there is a
            pace.
        until: share of the budget at which a phase of ``passes`` 0 ends: with the pass whose end
            is nearest. 1 for the end of the run.
        pace: the ratio as a function of progress from ``since`` to ``until``, asked before each
            pass; None for ``ratio`` in all of them.
    """

    cycle: int
    ratio: float
    size: int
    passes: int
    score: bool = False
    redraw: bool = False
    since: float = 0.0
    until: float = 1.0
    pace: Schedule | None = None

    def ratio_at(self, spent: float) -> float:
        """The ratio of a pass that begins where this share of the budget is spent."""
        if self.pace is None:
            return self.ratio
        return self.pace(min(1.0, max(0.0, (spent - self.since) / (self.until - self.since))))


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
            if phase.passes:
                spent = min(left, phase.size * phase.passes)
            else:
                spent = min(left, sum(self._sizes(phase, self.examples - left)))
            spans.append((phase, windows * phase.size * phase.passes + spent))
            left -= spent
        return spans

    def next_ratio(self, phase: Phase, spent: int) -> float | None:
        """The ratio of the next pass of a phase of ``passes`` 0; None where it is over.

        Args:
            phase: of this plan.
            spent: of the budget, in its unit.
        """
        ratio = phase.ratio_at(spent / self.budget)
        end = phase.until * self.budget
        # At the end of the pass that is nearest: the next one's would be further away.
        over = phase.until < 1 and spent + ratio * self.pass_units / 2 >= end
        return None if over else ratio

    def passes_of(self, phase: Phase) -> list[int]:
        """Examples of each pass of a phase, the last cut to the budget.

        As if every rule selected as many as the ratio says.

        Args:
            phase: of this plan, which is not one of windows.
        """
        begin = 0
        for other, spent in self.spans():
            if other is phase:
                break
            begin += spent
        else:
            raise ValueError(f"plan {self.name!r} has no such phase: {phase}")
        if phase.pace is None:
            whole, rest = divmod(spent, phase.size)
            return [phase.size] * whole + [rest] * (rest > 0)
        if not spent:
            return []
        *whole, last = self._sizes(phase, begin)
        return [*whole, min(last, spent - sum(whole))]

    def _sizes(self, phase: Phase, begin: int) -> list[int]:
        """Examples of each pass of a phase of ``passes`` 0 that begins after so many examples.

        The last may exceed the budget.
        """
        sizes, used = [phase.size], begin + phase.size
        while used < self.examples:
            ratio = self.next_ratio(phase, round(used * self.pass_units / self.num_examples))
            if ratio is None:
                break
            sizes.append(count(ratio, self.num_examples))
            used += sizes[-1]
        return sizes

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
        total, begin = 0.0, 0
        for phase, spent in self.spans():
            if phase.pace is None:
                total += spent / phase.size
            elif spent:
                *whole, last = self._sizes(phase, begin)
                total += len(whole) + (spent - sum(whole)) / last
            begin += spent
        return total

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
