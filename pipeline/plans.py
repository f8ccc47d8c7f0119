"""Plans of the recipes: which phases a budget buys."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from attent.pipeline.plan import Phase, Plan, PlanError
from attent.pipeline.schedules import Schedule, cosine, fixed_interval
from attent.pipeline.threshold import count

Accounting = Literal["examples", "passes"]


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


def paced_plan(
    num_examples: int,
    epochs: float,
    *,
    ratio: Schedule | None = None,
    first: int = 1,
    last: float = 0.125,
) -> Plan:
    """Full epochs, then a selection before every pass at a ratio that goes with the budget.

    It ends on everything, so that what was left out is not forgotten when the learning rate has
    come down: the recipe that did best in pilots, with losses observed in training.

    Args:
        num_examples: N.
        epochs: the budget is ``epochs * N`` examples.
        ratio: of the share of the budget between the first epochs and the last part that is spent;
            cosine 0.2 to 0.8 by default.
        first: full epochs before the first selection; 0 only where nothing is observed.
        last: share of the budget at whose end everything is trained on; it begins with the pass
            that ends nearest.

    Raises:
        PlanError: nothing of the budget is left between the two.
        ValueError: a number of epochs below 0, a share outside [0, 1).
    """
    budget, ratio = _epochs_to_examples(num_examples, epochs), ratio or cosine(0.2, 0.8)
    if first < 0 or first != int(first):
        raise ValueError(f"full epochs before the first selection are at least 0, got {first}")
    if not 0 <= last < 1:
        raise ValueError(f"what is trained on everything at the end is in [0, 1), got {last}")
    since, until = first * num_examples / budget, 1 - last
    initial = ratio(0.0)
    # The first selected pass, too, must end nearer to the last part than it begins.
    if (first + initial / 2) * num_examples >= until * budget:
        raise PlanError(
            f"the plan does not fit: {first} full epoch(s) of {num_examples:,} examples and "
            f"{last:.1%} of the budget of {epochs:g} x {num_examples:,} = {budget:,} at its end "
            f"are {first * num_examples:,} + {last * budget:,.0f} = "
            f"{first * num_examples + last * budget:,.0f} examples, which leaves no room for a "
            f"pass over {initial:g} of all; raise the budget above "
            f"{(first + initial / 2) / until:g} epochs' worth"
        )
    phases = [Phase(cycle=-1, ratio=1.0, size=num_examples, passes=first)] if first else []
    phases.append(
        Phase(
            cycle=0,
            ratio=initial,
            size=count(initial, num_examples),
            passes=0,
            redraw=True,
            since=since,
            until=until,
            pace=ratio,
        )
    )
    if last:
        phases.append(Phase(cycle=0, ratio=1.0, size=num_examples, passes=0))
    return Plan(name="attent_paced", num_examples=num_examples, phases=tuple(phases), budget=budget)


def complex_plan(
    num_examples: int,
    epochs: float,
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
