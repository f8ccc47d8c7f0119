"""Recipes for streams that never end: plans of windows, and the graphs that carry them out."""

from __future__ import annotations

from attent.pipeline import rules
from attent.pipeline.plan import Phase, Plan, PlanError
from attent.pipeline.quantile import above_quantile
from attent.pipeline.recipes import cost_of, tick
from attent.pipeline.rules import Rule
from attent.pipeline.score import score
from attent.pipeline.select import select
from attent.pipeline.signals import Signal, signal_of
from attent.pipeline.stage import Stage
from attent.pipeline.stream import Loading
from attent.pipeline.task import Task
from attent.pipeline.threshold import count
from attent.pipeline.window import Window, refill


def online_plan(
    size: int,
    examples: int,
    *,
    ratio: float = 0.3,
    interval: int = 1,
    score: bool = True,
    score_cost: int = 1,
    redraw: bool = False,
) -> Plan:
    """The same for each window of a stream: score, select, an interval on the subset.

    Args:
        size: of the window, N.
        examples: the budget: trained on in all.
        ratio: share of a window that is selected, in (0, 1].
        interval: passes over it.
        score: measure the window first.
        score_cost: of one example, in forwards.
        redraw: select anew before every pass.

    Raises:
        PlanError: no budget.
        ValueError: a size or an interval below 1, a ratio outside (0, 1].
    """
    if interval < 1:
        raise ValueError(f"an interval is at least 1 pass, got {interval}")
    subset = ratio < 1
    phase = Phase(
        cycle=0,
        ratio=ratio,
        size=count(ratio, size),
        passes=interval,
        score=score and subset,
        redraw=redraw and subset,
    )
    return _of_windows("attent_online", size, examples, phase, score_cost, 1.0)


def threshold_plan(size: int, examples: int, *, ratio: float = 0.3, score_cost: int = 1) -> Plan:
    """One pass over each window of what a threshold keeps of a stream.

    Args:
        size: of the window, N.
        examples: the budget: trained on in all.
        ratio: share of the stream that is kept.
        score_cost: of one example, in forwards.

    Raises:
        PlanError: no budget.
        ValueError: a size below 1.
    """
    phase = Phase(cycle=0, ratio=1.0, size=size, passes=1)
    return _of_windows("attent_threshold", size, examples, phase, score_cost, ratio)


def attent_online(
    task: Task,
    window: Window,
    *,
    train: Stage,
    examples: int,
    ratio: float = 0.3,
    interval: int = 1,
    rule: Rule | None = None,
    signal: str | Signal = "loss",
    score_batch_size: int = 256,
    chunk: int | None = 32,
    score_per_tick: int | None = None,
    loading: Loading | None = None,
    evaluate: Stage | None = None,
    eval_every: float = 1.0,
) -> Stage:
    """AtteNT on an endless stream: within each window score, select, train on the subset.

    The clock and the learning rate run on from window to window; `clock/cycle` counts windows.

    Args:
        task: what is learned.
        window: N examples of the stream at a time.
        train: a train stage on the window.
        examples: the budget: examples trained on in all.
        ratio: share of a window that is selected.
        interval: passes over it, before the next window.
        rule: `hard` by default.
        signal: what is measured.
        score_batch_size: examples in one forward of scoring.
        chunk: examples that vmap maps at once.
        score_per_tick: examples scored in a tick, for scorings that take long.
        loading: workers and prefetching for scoring.
        evaluate: an evaluation stage, on held-out examples.
        eval_every: examples trained on between evaluations, in windows of N.

    Raises:
        PlanError: no budget.
        ValueError: a ratio or an interval outside its range.
    """
    rule, chosen = rule or rules.hard(), signal_of(signal)
    plan = online_plan(
        len(window),
        examples,
        ratio=ratio,
        interval=interval,
        score=rule.uses_scores,
        score_cost=cost_of(chosen),
        redraw=rule.redraws,
    )
    scoring = None
    if rule.uses_scores:
        scoring = score(
            task,
            window,
            chosen,
            batch_size=score_batch_size,
            chunk=chunk,
            examples_per_tick=score_per_tick,
            loading=loading,
        )
    return tick(
        plan,
        refill=refill(window),
        train=train,
        score=scoring,
        select=select(rule, signal=chosen.name),
        evaluate=evaluate,
        eval_every=eval_every,
    )


def attent_threshold(
    task: Task,
    window: Window,
    *,
    train: Stage,
    examples: int,
    ratio: float = 0.3,
    signal: str | Signal = "loss",
    step: float = 0.01,
    score_batch_size: int = 256,
    chunk: int | None = 32,
    evaluate: Stage | None = None,
    eval_every: float = 1.0,
) -> Stage:
    """Train once on what of a stream is above a running quantile: `above_quantile` has its card.

    Args:
        task: what is learned.
        window: what was kept and is trained on next: one batch, or a few.
        train: a train stage on the window.
        examples: the budget: examples trained on in all.
        ratio: share of the stream that is kept.
        signal: what is measured.
        step: how fast a wrong share is made up for.
        score_batch_size: candidates in one forward.
        chunk: examples that vmap maps at once.
        evaluate: an evaluation stage, on held-out examples.
        eval_every: examples trained on between evaluations, in windows of N.

    Raises:
        PlanError: no budget.
        ValueError: an option of `above_quantile` outside its range.
    """
    chosen = signal_of(signal)
    keep = above_quantile(
        task, ratio=ratio, signal=chosen, step=step, batch_size=score_batch_size, chunk=chunk
    )
    plan = threshold_plan(len(window), examples, ratio=ratio, score_cost=cost_of(chosen))
    return tick(
        plan,
        refill=refill(window, keep=keep),
        train=train,
        evaluate=evaluate,
        eval_every=eval_every,
    )


def _of_windows(
    name: str, size: int, examples: int, phase: Phase, score_cost: int, kept: float
) -> Plan:
    if examples < 1:
        raise PlanError(f"a run over a stream needs a budget of at least 1 example, got {examples}")
    return Plan(
        name=name,
        num_examples=size,
        phases=(phase,),
        budget=examples,
        score_cost=score_cost,
        per_window=True,
        kept=kept,
    )
