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
    attent_adaptive,
    attent_complex,
    attent_paced,
    attent_simple,
    constant,
    cosine,
    fixed_interval,
    full,
    hard,
    incremental,
    incremental_interval,
    infobatch,
    paced_plan,
    per_example,
    random,
    score,
    soft,
)
from attent.pipeline.schedules import Schedule
from attent.tasks.selection import PACED


def rule_of(config: Any) -> Rule:
    """The selection rule the options name."""
    if config.selection_strategy == "soft":
        return soft(config.gumbel_temperature, config.soft_normalization)
    return hard() if config.selection_strategy == "hard" else random()


def signal_of_options(config: Any) -> Signal:
    """What is measured of each example."""
    return per_example(config.selected_by, getattr(config, "score_length", "mean"))


def payable(config: Any, num_examples: int) -> tuple[Any, tuple[str, ...]]:
    """The options that are carried out, and what is to be said of it.

    Where a method that selects before every pass has no room to, that is plain training. Of the
    published methods it is an error.

    Args:
        config: with the options of selection and training.
        num_examples: N.
    """
    if config.method not in PACED:
        return config, ()
    try:
        paced_plan(
            num_examples,
            config.epochs * config.budget_share,
            ratio=_ratios(config) if config.method == "attent_paced" else None,
            first=config.first_epochs,
            last=config.end_share,
        )
    except PlanError as error:
        return dataclasses.replace(config, method="full"), (
            f"this is plain training, {config.method} would select nothing: {error}",
        )
    return config, ()


def _ratios(config: Any) -> Schedule:
    ratio = {"cosine": cosine, "incremental": incremental}[config.ratio_schedule]
    return ratio(config.initial_ratio, config.final_ratio)


def _intervals(config: Any) -> Schedule:
    if config.interval_schedule == "fixed":
        return fixed_interval(config.initial_interval)
    return incremental_interval(config.initial_interval, config.max_interval)


def recipe_of(
    config: Any, task: Task, source: Source, stage: Stage, measure: Stage, loading: Loading
) -> Stage:
    """The graph that the options name.

    Args:
        config: with the options of selection, training and run.
        task: what is learned.
        source: the training examples.
        stage: of training.
        measure: of evaluation.
        loading: of scoring.

    Raises:
        PlanError: what they ask for does not fit.
    """
    shared: dict[str, Any] = {
        "train": stage,
        "epochs": config.epochs * config.budget_share,
        "accounting": config.budget,
        "evaluate": measure,
        "eval_every": config.eval_every,
    }
    if config.method == "full":
        return full(source, **shared)
    if config.method == "attent_adaptive":
        return attent_adaptive(
            source,
            first=config.first_epochs,
            last=config.end_share,
            patience=config.patience,
            **shared,
        )
    shared["rule"] = infobatch() if config.method == "infobatch" else rule_of(config)
    if config.method in PACED:
        return attent_paced(
            source,
            ratio=_ratios(config) if config.method == "attent_paced" else constant(0.5),
            first=config.first_epochs,
            last=config.end_share,
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
    return attent_complex(
        task,
        source,
        ratio=_ratios(config),
        interval=_intervals(config),
        cycles=config.total_cycles,
        first=config.first_epochs,
        observed=config.observed is not None,
        score_batch_size=config.score_batch_size,
        chunk=config.score_chunk,
        score_per_tick=per_tick,
        loading=loading,
        **shared,
    )
