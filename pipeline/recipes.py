"""Recipes: whole training programs, each a graph of the same stages.

``recipe(...)`` gives a tick; `attent.pipeline.fit` runs it until the budget is spent.
"""

from __future__ import annotations

from typing import Literal

from attent.pipeline import rules, schedules
from attent.pipeline.combinators import sequence, when
from attent.pipeline.plan import TRAIN_COST, Plan, in_tokens
from attent.pipeline.plans import complex_plan, full_plan, paced_plan, simple_plan
from attent.pipeline.rank import patient
from attent.pipeline.refined import blended
from attent.pipeline.rescaled import concentrated
from attent.pipeline.reschedule import reschedule
from attent.pipeline.rules import Rule
from attent.pipeline.schedules import Schedule
from attent.pipeline.score import score
from attent.pipeline.select import select
from attent.pipeline.signals import Signal, signal_of
from attent.pipeline.source import Source, lengths_of
from attent.pipeline.stage import Stage
from attent.pipeline.stream import Loading
from attent.pipeline.task import Task

Budget = Literal["examples", "passes", "tokens"]


def tick(
    plan: Plan,
    *,
    refill: Stage | None = None,
    train: Stage,
    score: Stage | None = None,
    select: Stage | None = None,
    evaluate: Stage | None = None,
    eval_every: float = 1.0,
) -> Stage:
    """Score when due, select when due, train, reschedule, evaluate when due.

    Args:
        plan: phases and budget.
        refill: where the plan is of windows of a stream; runs in every tick.
        train: a train stage.
        score: where the plan has scorings.
        select: where it has selections.
        evaluate: one evaluation, or a sequence of several.
        eval_every: examples trained on between evaluations, in multiples of N.
    """
    stages = [] if refill is None else [refill]
    if score is not None:
        stages.append(when(("plan", "score_due"), score))
    if select is not None:
        stages.append(when(("plan", "select_due"), select))
    stages.append(train)
    stages.append(reschedule(plan, eval_every=None if evaluate is None else eval_every))
    if evaluate is not None:
        stages.append(when(("plan", "eval_due"), evaluate))
    return sequence("tick", *stages)


def full(
    source: Source,
    *,
    train: Stage,
    epochs: float,
    accounting: Budget = "examples",
    evaluate: Stage | None = None,
    eval_every: float = 1.0,
) -> Stage:
    """Plain training on everything: the baseline, through the same stages.

    Args:
        source: the training examples.
        train: a train stage.
        epochs: the budget is ``epochs * N`` examples, or all their tokens so many times.
        accounting: ``tokens`` or, all the same here, ``examples`` and ``passes``.
        evaluate: an evaluation stage.
        eval_every: in multiples of all examples (or their tokens).
    """
    plan = _counted(full_plan(len(source), epochs), source, epochs, accounting)
    return tick(plan, train=train, evaluate=evaluate, eval_every=eval_every)


def _counted(plan: Plan, source: Source, epochs: float, accounting: Budget) -> Plan:
    """The plan, its budget in tokens if that is how it is counted."""
    if accounting != "tokens":
        return plan
    return in_tokens(plan, epochs, lengths_of(source))


def attent_simple(
    source: Source,
    *,
    train: Stage,
    epochs: float,
    ratio: float = 0.7,
    rule: Rule | None = None,
    signal: str | Signal = "loss",
    score: Stage | None = None,
    reselect: bool = False,
    accounting: Budget = "examples",
    evaluate: Stage | None = None,
    eval_every: float = 1.0,
) -> Stage:
    """AtteNTSimple: one epoch on everything, its losses observed; then the highest of them.

    Args:
        source: the training examples.
        train: a train stage with ``observe=True``.
        epochs: the budget is ``epochs * N`` examples, or all their tokens so many times.
        ratio: share selected after the first epoch.
        rule: `hard` by default.
        signal: by which is selected.
        score: a score stage of that signal: every example is measured after the first epoch,
            instead of going by what was observed in it.
        reselect: select anew before every pass, by what was observed last of each example: of those
            selected in the last pass, of the others earlier.
        accounting: ``examples`` (``passes`` is the same here) or ``tokens``.
        evaluate: an evaluation stage.
        eval_every: in multiples of all examples (or their tokens).

    Raises:
        ValueError: the train stage does not observe, or ``reselect`` where nothing is observed.
    """
    rule, chosen = rule or rules.hard(), signal_of(signal)
    fresh = score is not None and rule.uses_scores
    if reselect and fresh:
        raise ValueError("reselect goes by what training observes, not by a score stage")
    if rule.uses_scores and not fresh:
        _must_observe(train, chosen.name)
    plan = simple_plan(
        len(source),
        epochs,
        ratio=ratio,
        score=fresh,
        score_cost=cost_of(chosen),
        redraw=reselect or rule.redraws,
    )
    return tick(
        _counted(plan, source, epochs, accounting),
        train=train,
        score=score if fresh else None,
        select=select(rule, signal=chosen.name),
        evaluate=evaluate,
        eval_every=eval_every,
    )


def attent_paced(
    source: Source,
    *,
    train: Stage,
    epochs: float,
    ratio: Schedule | None = None,
    first: int = 1,
    last: float = 0.125,
    rule: Rule | None = None,
    signal: str = "loss",
    rank: Stage | None = None,
    accounting: Budget = "examples",
    evaluate: Stage | None = None,
    eval_every: float = 1.0,
) -> Stage:
    """One epoch on everything, then selected anew before every pass; the end is on everything.

    Selects by what training has observed, so that no example is forwarded without being trained on.
    The ratio goes with the budget spent, as the learning rate does.

    Args:
        source: the training examples.
        train: a train stage that observes what is asked for.
        epochs: the budget is ``epochs * N`` examples, or all their tokens so many times.
        ratio: see `paced_plan`.
        first: full epochs before the first selection.
        last: share of the budget at whose end everything is trained on.
        rule: `hard` by default.
        signal: by which is selected.
        rank: a stage that makes these scores of others before each selection; see `rank`.
        accounting: ``examples`` (``passes`` is the same here) or ``tokens``.
        evaluate: an evaluation stage.
        eval_every: in multiples of all examples (or their tokens).

    Raises:
        PlanError: nothing of the budget is left to select in.
        ValueError: nobody writes the scores; none are observed before the first selection.
    """
    rule = rule or rules.hard()
    if rule.uses_scores:
        if rank is None:
            _must_observe(train, signal)
        elif ("scores", signal) not in rank.write_keys:
            raise ValueError(f"stage {rank.name!r} does not write scores/{signal}")
        if first < 1:
            raise ValueError("scores are observed in the first epochs: at least 1, got 0")
    plan = paced_plan(len(source), epochs, ratio=ratio, first=first, last=last)
    chosen = select(rule, signal=signal)
    return tick(
        _counted(plan, source, epochs, accounting),
        train=train,
        select=chosen if rank is None else sequence("rank and select", rank, chosen),
        evaluate=evaluate,
        eval_every=eval_every,
    )


def attent_adaptive(
    source: Source,
    *,
    train: Stage,
    epochs: float,
    first: int = 1,
    last: float = 0.05,
    explore: float = 0.3,
    smallest: float = 0.15,
    largest: float = 0.9,
    patience: int | None = None,
    signal: str = "relative_loss",
    accounting: Budget = "examples",
    evaluate: Stage | None = None,
    eval_every: float = 1.0,
) -> Stage:
    """`attent_paced` at a ratio that the scores decide: the examples that teach most, and others.

    Before every pass, as many are selected as the losses are spread over (`concentrated`): nearly
    all while everything is still to be learned, few when a few examples have most of the loss. Of
    them ``1 - explore`` are those with the highest losses, relative to the running loss when they
    were seen; the others are drawn from the rest, so that their losses are renewed.

    **When it pays.** Where most of the data teach nothing any more and a few do: training that goes
    on from a model that knows most of it, rare classes, near copies. docs/proof.md has figures.

    **When it fails.** From scratch on balanced data it did not reach plain training's quality with
    less; wrong labels have the highest losses: give it patience.

    Args:
        source: the training examples.
        train: a train stage that observes the signal.
        epochs: the budget is ``epochs * N`` examples, or all their tokens so many times.
        first: full epochs before the first selection, at least 1.
        last: share of the budget at whose end everything is trained on.
        explore: share of the selected that is drawn from the rest, in (0, 1).
        smallest: the least ratio, in (0, 1].
        largest: the greatest, in [smallest, 1].
        patience: after so many looks in vain an example is chosen at random if at all; see
            `patient`, which says when it pays. None for none.
        signal: by which is selected, observed.
        accounting: ``examples`` (``passes`` is the same here) or ``tokens``.
        evaluate: an evaluation stage.
        eval_every: in multiples of all examples (or their tokens).

    Raises:
        PlanError: nothing of the budget is left to select in.
        ValueError: nobody writes the scores; none are observed before the first selection; a
            patience below 1.
    """
    ranked = None
    if patience is not None:
        _must_observe(train, signal)
        ranked = patient(len(source), patience=patience, signal=signal)
    return attent_paced(
        source,
        train=train,
        epochs=epochs,
        first=first,
        last=last,
        rule=concentrated(blended(rules.hard(), explore), smallest, largest),
        signal=signal if ranked is None else "patient",
        rank=ranked,
        accounting=accounting,
        evaluate=evaluate,
        eval_every=eval_every,
    )


def attent_complex(
    task: Task,
    source: Source,
    *,
    train: Stage,
    epochs: float,
    rule: Rule | None = None,
    ratio: Schedule | None = None,
    interval: Schedule | None = None,
    cycles: int = 10,
    first: int = 1,
    accounting: Budget = "examples",
    signal: str | Signal = "loss",
    observed: bool = False,
    score_batch_size: int = 256,
    chunk: int | None = 32,
    score_per_tick: int | None = None,
    loading: Loading | None = None,
    evaluate: Stage | None = None,
    eval_every: float = 1.0,
) -> Stage:
    """AtteNTComplex: cycles of score, select, an interval on the subset, full epochs.

    Args:
        task: what is learned.
        source: the N training examples.
        train: a train stage.
        epochs: what they buy, the accounting says; see `complex_plan`.
        rule: `hard` by default.
        ratio: schedule over the cycles; cosine 0.2 to 0.8 by default.
        interval: schedule over the cycles; 5 passes by default.
        cycles: C.
        first: full epochs before the first cycle.
        accounting: ``examples`` or ``passes``; or ``tokens``: the cycles are as for ``examples``,
            what is left of all tokens so many times is full epochs.
        signal: what is measured.
        observed: select by what the train stage observed, without any scoring pass.
        score_batch_size: examples in one forward of scoring.
        chunk: examples that vmap maps at once.
        score_per_tick: examples scored in a tick, for scorings that take long.
        loading: workers and prefetching for scoring.
        evaluate: an evaluation stage.
        eval_every: in multiples of N.

    Raises:
        PlanError: the cycles do not fit the budget.
        ValueError: ``observed`` without a train stage that observes.
    """
    rule = rule or rules.hard()
    chosen = signal_of(signal)
    fresh = rule.uses_scores and not observed
    if observed:
        _must_observe(train, chosen.name)
    plan = complex_plan(
        len(source),
        epochs,
        ratio=ratio or schedules.cosine(0.2, 0.8),
        interval=interval or schedules.fixed_interval(5),
        cycles=cycles,
        first=first,
        accounting="passes" if accounting == "passes" else "examples",
        score=fresh,
        score_cost=cost_of(chosen),
        redraw=rule.redraws,
    )
    plan = _counted(plan, source, epochs, accounting)
    scoring = None
    if fresh:
        scoring = score(
            task,
            source,
            chosen,
            batch_size=score_batch_size,
            chunk=chunk,
            examples_per_tick=score_per_tick,
            loading=loading,
        )
    return tick(
        plan,
        train=train,
        score=scoring,
        select=select(rule, signal=chosen.name),
        evaluate=evaluate,
        eval_every=eval_every,
    )


def cost_of(signal: Signal) -> int:
    """What a signal of one example costs, in forwards."""
    return TRAIN_COST if signal.backward else 1


def _must_observe(train: Stage, signal: str) -> None:
    if ("scores", signal) not in train.write_keys:
        raise ValueError(
            f"stage {train.name!r} does not observe {signal}: make it with "
            f"train(..., observe={signal!r})"
        )
