"""From options to a graph: the recipe that they name."""

from __future__ import annotations

import dataclasses
from typing import Any

from attent.pipeline import (
    Loading,
    PlanError,
    Rule,
    Signal,
    Source,
    Stage,
    Task,
    attent_complex,
    attent_paced,
    attent_simple,
    cosine,
    fixed_interval,
    full,
    hard,
    incremental,
    incremental_interval,
    per_example,
    random,
    score,
    soft,
)


def rule_of(config: Any) -> Rule:
    """The selection rule the options name."""
    if config.selection_strategy == "soft":
        return soft(config.gumbel_temperature, config.soft_normalization)
    return hard() if config.selection_strategy == "hard" else random()


def signal_of_options(config: Any) -> Signal:
    """What is measured of each example."""
    return per_example(config.signal, getattr(config, "score_length", "mean"))


def recipe_of(
    config: Any, task: Task, source: Source, stage: Stage, measure: Stage, loading: Loading
) -> tuple[Stage, tuple[str, ...]]:
    """The graph that the options name, and what is to be said of it.

    Where `attent_paced` does not fit the budget, or would select nothing, that is plain training.

    Args:
        config: with the options of selection, training and run.
        task: what is learned.
        source: the training examples.
        stage: of training.
        measure: of evaluation.
        loading: of scoring.

    Raises:
        PlanError: another method does not fit.
    """
    if config.method != "attent_paced":
        return _named(config, task, source, stage, measure, loading), ()
    try:
        return _named(config, task, source, stage, measure, loading), ()
    except PlanError as error:
        plain = dataclasses.replace(config, method="full")
        graph = _named(plain, task, source, stage, measure, loading)
        return graph, (f"plain training: selection cannot pay: {error}",)


def _named(
    config: Any, task: Task, source: Source, stage: Stage, measure: Stage, loading: Loading
) -> Stage:
    shared: dict[str, Any] = {
        "train": stage,
        "epochs": config.epochs * config.budget_share,
        "accounting": config.budget,
        "evaluate": measure,
        "eval_every": config.eval_every,
    }
    if config.method == "full":
        return full(source, **shared)
    shared["rule"] = rule_of(config)
    ratio = {"cosine": cosine, "incremental": incremental}[config.ratio_schedule]
    ratios = ratio(config.initial_ratio, config.final_ratio)
    if config.method == "attent_paced":
        return attent_paced(
            source,
            ratio=ratios,
            first=config.first_epochs,
            last=config.last_share,
            signal=signal_of_options(config).name,
            **shared,
        )
    shared["signal"] = signal_of_options(config)
    # A scoring tick forwards as many examples as a training tick, so that an interrupt, the bar and
    # a checkpoint wait no longer for it.
    per_tick = config.steps_per_tick * config.batch_size
    if config.method == "attent_simple":
        scoring = score(
            task,
            source,
            shared["signal"],
            batch_size=config.score_batch_size,
            chunk=config.score_chunk,
            examples_per_tick=per_tick,
            loading=loading,
        )
        return attent_simple(
            source,
            ratio=config.attent_ratio,
            score=scoring if config.scored_afresh else None,
            reselect=config.reselect,
            **shared,
        )
    if config.interval_schedule == "fixed":
        interval = fixed_interval(config.initial_interval)
    else:
        interval = incremental_interval(config.initial_interval, config.max_interval)
    return attent_complex(
        task,
        source,
        ratio=ratios,
        interval=interval,
        cycles=config.total_cycles,
        first=config.first_epochs,
        observed=config.observed is not None,
        score_batch_size=config.score_batch_size,
        chunk=config.score_chunk,
        score_per_tick=per_tick,
        loading=loading,
        **shared,
    )
