"""The arms: ways to spend a budget, each a graph of stages.

An arm is a function of a `Setting`. What it spends beside training (scoring, models that score) is
taken off what it may train on, so that all arms of a budget cost the same.

``full`` is plain training; below a budget of 1 it is the shortened one, its schedule compressed.
Arms made by `paced` are `attent_paced`: one full epoch, then selected anew before every pass by
what training has observed, at a ratio that goes from 0.2 to 0.8 (or one that the rule finds
itself), and at the end an eighth of the budget on everything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from attent.pipeline import (
    Phase,
    Plan,
    Rule,
    Stage,
    aged,
    attent_adaptive,
    attent_complex,
    attent_online,
    attent_paced,
    attent_simple,
    constant,
    cosine,
    count,
    fixed_interval,
    full,
    hard,
    incremental,
    patient,
    random,
    reducible,
    run,
    score,
    select,
    soft,
    tick,
    window,
)
from attent.pipeline.candidates import WithColumn, reducible_loss, shuffled
from attent.pipeline.observed import ObservedSignal
from attent.pipeline.published import inverse, percentile
from attent.pipeline.refined import balanced, blended, easy, trimmed, within
from attent.pipeline.rescaled import concentrated, importance, infobatch
from attent.pipeline.schedules import Schedule, cyclic

from .setting import Arm, Built, Setting, Spent, spent
from .sources import halves, oversampled

ARMS: dict[str, Arm] = {}
"""By name."""

SHARE_OF_NORMS = 0.25
"""What observing gradient norms adds to a step, as a share of it: the bar of their benchmark
(`benchmarks/signals.py`), which they keep."""


def arm(function: Arm) -> Arm:
    """Enter an arm under its function's name."""
    ARMS[function.__name__] = function
    return function


def paced(
    rule: Callable[[Setting], Rule] | Rule | None = None,
    *,
    signal: ObservedSignal = "loss",
    ratio: Schedule | None = None,
    first: int = 1,
    last: float = 0.125,
    rank: tuple[str, Callable[[Setting], Stage]] | None = None,
    **task_options: Callable[[Setting], Any],
) -> Arm:
    """`attent_paced` with a rule, as an arm.

    Args:
        rule: or a function of the setting that makes it.
        signal: observed.
        ratio: of `paced_plan`, as ``first`` and ``last`` are.
        first: full epochs before the first selection.
        last: share of the budget on everything at the end.
        rank: the scores that are selected by in place of the signal, and what makes the stage that
            writes them.
        task_options: of the world's task, functions of the setting.
    """

    def build(setting: Setting) -> Built:
        world = setting.world
        options = {name: value(setting) for name, value in task_options.items()}
        task = world.task_for(**options)
        dearer = SHARE_OF_NORMS * setting.step_cost if signal == "grad_norm" else 0.0
        chosen = rule if isinstance(rule, Rule) or rule is None else rule(setting)
        graph = attent_paced(
            world.source,
            train=setting.train(task, observe=signal),
            epochs=setting.epochs(dearer=dearer),
            ratio=ratio,
            first=first,
            last=last,
            rule=chosen,
            signal=signal if rank is None else rank[0],
            rank=None if rank is None else rank[1](setting),
            accounting=setting.accounting,
        )
        return Built(tick=graph, task=task, source=world.source, dearer=dearer)

    return build


def adaptive(
    explore: float,
    *,
    smallest: float = 0.15,
    signal: ObservedSignal = "relative_loss",
    **options: Any,
) -> Arm:
    """As many as the scores are spread over; some of them drawn from the rest."""
    return paced(concentrated(blended(hard(), explore), smallest, 0.9), signal=signal, **options)


def labels(setting: Setting) -> torch.Tensor:
    """The classes that training sees.

    Raises:
        ValueError: a world without.
    """
    if setting.world.labels is None:
        raise ValueError(f"world {setting.world.name!r} has no classes")
    return setting.world.labels


def plain(**task_options: Callable[[Setting], Any]) -> Arm:
    """Plain training, as an arm.

    Args:
        task_options: of the world's task, functions of the setting.
    """

    def build(setting: Setting) -> Built:
        world = setting.world
        options = {name: value(setting) for name, value in task_options.items()}
        task = world.task_for(**options)
        graph = full(
            world.source,
            train=setting.train(task),
            epochs=setting.epochs(),
            accounting=setting.accounting,
        )
        return Built(tick=graph, task=task, source=world.source)

    return build


ARMS |= {
    "full": plain(),
    # With the classes' prior in the logits (Menon et al., ICLR 2021).
    "prior": plain(prior=lambda s: s.world.prior),
    # What changes beside the examples' order: a null of the same schedule, and another.
    "random": paced(random()),
    "rs2": paced(random(), ratio=constant(0.3), first=0, last=0.0),
    # As many as the losses decide, and none of them chosen by its loss: what is left of
    # "concentrated_short_end" without the choice.
    "random_concentrated": paced(
        concentrated(random(), 0.15, 0.9), signal="relative_loss", last=0.05
    ),
    # By observed losses.
    "paced_hard": paced(hard()),
    "paced_soft": paced(soft()),
    "paced_hard_relative": paced(hard(), signal="relative_loss"),
    "paced_soft_relative": paced(soft(), signal="relative_loss"),
    "paced_half": paced(hard(), signal="relative_loss", ratio=cosine(0.5, 0.9)),
    "paced_fall": paced(hard(), signal="relative_loss", ratio=cosine(0.8, 0.3)),
    "paced_blended": paced(blended(hard(), 0.3), signal="relative_loss"),
    "paced_trimmed": paced(trimmed(hard(), 0.12), signal="relative_loss"),
    "paced_concentrated": paced(concentrated(hard(), 0.15, 0.9), signal="relative_loss"),
    "concentrated_blended": adaptive(0.3),
    "concentrated_half_blended": adaptive(0.5),
    "concentrated_loss": adaptive(0.3, signal="loss"),
    "concentrated_norm": adaptive(0.3, signal="grad_norm"),
    "concentrated_end": adaptive(0.3, last=0.3),
    "concentrated_short_end": adaptive(0.3, last=0.05),
    # It lets go of what was looked at in vain four times.
    "patient_adaptive": adaptive(
        0.3,
        last=0.05,
        rank=("patient", lambda s: patient(len(s.world.source), patience=4)),
    ),
    # What was not looked at for the whole run counts twice.
    "concentrated_aged": adaptive(
        0.3,
        last=0.05,
        rank=("aged", lambda s: aged(len(s.world.source), bonus=1.0, signal="relative_loss")),
    ),
    "concentrated_late": adaptive(0.3, first=3),
    "concentrated_wide": adaptive(0.3, smallest=0.4),
    "concentrated_soft": paced(concentrated(soft(), 0.15, 0.9), signal="relative_loss"),
    "infobatch_relative": paced(infobatch(), signal="relative_loss", ratio=constant(0.5)),
    "percentile_relative": paced(percentile(), signal="relative_loss", ratio=constant(0.5)),
    "paced_importance": paced(importance(), signal="relative_loss"),
    "paced_norm": paced(hard(), signal="grad_norm"),
    "paced_norm_importance": paced(importance(), signal="grad_norm"),
    "paced_progress": paced(soft(), signal="loss_drop"),
    "paced_classwise": paced(lambda s: within(labels(s), hard()), signal="relative_loss"),
    "paced_equal": paced(lambda s: within(labels(s), hard(), "equal"), signal="relative_loss"),
    # The rivals that are rules on observed losses.
    "infobatch": paced(infobatch(), ratio=constant(0.5)),
    "self_paced": paced(easy(), ratio=incremental(0.4, 1.0), last=0.0),
    "percentile": paced(percentile(), ratio=constant(0.5)),
    # Cures of long tails that need no score, alone and with selection.
    "balanced": paced(lambda s: balanced(labels(s)), first=0),
    "prior_concentrated": adaptive(0.3, prior=lambda s: s.world.prior),
    "prior_paced_hard": paced(hard(), signal="relative_loss", prior=lambda s: s.world.prior),
    "prior_paced_equal": paced(
        lambda s: within(labels(s), hard(), "equal"),
        signal="relative_loss",
        prior=lambda s: s.world.prior,
    ),
}


@arm
def oversampled_classes(setting: Setting) -> Built:
    """Class-balanced sampling: examples of rare classes come as often as it takes."""
    world = setting.world
    source = oversampled(world.source, labels(setting))
    epochs = setting.epochs() * len(world.source) / len(source)
    graph = full(source, train=setting.train(world.task, source), epochs=epochs)
    return Built(tick=graph, task=world.task, source=source)


@arm
def oversampled_concentrated(setting: Setting) -> Built:
    """Both: as many of every class, and of these the examples with the highest relative losses."""
    world = setting.world
    source = oversampled(world.source, labels(setting))
    epochs = setting.epochs() * len(world.source) / len(source)
    trainer = setting.train(world.task, source, observe="relative_loss")
    graph = attent_adaptive(source, train=trainer, epochs=epochs)
    return Built(tick=graph, task=world.task, source=source)


@arm
def simple(setting: Setting) -> Built:
    """AtteNTSimple as published: one full epoch, then the 0.7 with the highest observed losses."""
    world = setting.world
    graph = attent_simple(
        world.source,
        train=setting.train(observe=True),
        epochs=setting.epochs(),
        accounting=setting.accounting,
    )
    return Built(tick=graph, task=world.task, source=world.source)


def complex_(rule: Rule, *, first: int = 1) -> Arm:
    """AtteNTComplex as published, at the length of these runs: two passes on each subset.

    A cycle is five subset passes in the paper, ten cycles, of 800 epochs; here as many cycles of
    two passes as leave about half of the budget to full epochs, as in the paper's.

    Args:
        rule: `hard` or `soft`.
        first: full epochs before the first cycle; 1 is published.
    """

    def build(setting: Setting) -> Built:
        world = setting.world
        # A cycle takes 2 passes at a ratio of 0.5 on average, and a scoring.
        cycles = max(1, round((setting.epochs() - first) / 2 / (1 + 1 / setting.step_cost)))
        graph = attent_complex(
            world.task,
            world.source,
            train=setting.train(),
            epochs=setting.epochs(scorings=cycles),
            rule=rule,
            interval=fixed_interval(2),
            cycles=cycles,
            first=first,
            accounting=setting.accounting,
        )
        return Built(tick=graph, task=world.task, source=world.source)

    return build


ARMS |= {
    "complex_hard": complex_(hard()),
    "complex_soft": complex_(soft()),
    "complex_hard_warm": complex_(hard(), first=3),
}


def candidates(rule: Rule, ratio: float, *, holdout: bool = False) -> Arm:
    """Batches drawn of larger ones by their losses: Selective-Backprop, RHO-loss.

    Args:
        rule: within a batch of candidates.
        ratio: share of it that is trained on.
        holdout: less the losses of models that were trained on the other half of the data.
    """

    def build(setting: Setting) -> Built:
        world, before, source = setting.world, Spent(), setting.world.source
        if holdout:
            values, before = halves(setting, epochs=1.0)
            source = WithColumn(source, "holdout_loss", values)
        size = round(world.batch_size / ratio)
        held = window(shuffled(source, world.seed), size)
        # A candidate's forward for each that is trained on, 1 / ratio of them.
        epochs = setting.epochs(before=before, dearer=1 / ratio)
        graph = attent_online(
            world.task,
            held,
            train=setting.train(world.task, held),
            examples=round(epochs * len(source)),
            ratio=ratio,
            rule=rule,
            signal=reducible_loss() if holdout else "loss",
        )
        return Built(tick=graph, task=world.task, source=held, before=before)

    return build


ARMS |= {
    "selective_backprop": candidates(percentile(), 0.5),
    "rho": candidates(hard(), 0.25, holdout=True),
}


def fixed(signal: str, rule: Rule, *, epochs: float, ratio: Schedule) -> Arm:
    """Scored once, by a model that was trained for a while; then by these scores to the end.

    Args:
        signal: measured of every example.
        rule: chooses by it.
        epochs: that the scoring model is trained, of full's at budget 1.
        ratio: of the cycle.
    """

    def build(setting: Setting) -> Built:
        world = setting.world
        scorer = world.task_for()
        trained = setting.plainly(scorer, world.source, epochs, f"{signal} before")
        stage = score(scorer, world.source, signal)
        trained = run(stage, stage.init(trained))
        before = spent(trained, world)
        left = setting.epochs(before=before)
        size, budget = len(world.source), round(left * len(world.source))
        cycles = 60
        phases = [
            Phase(cycle=c, ratio=r, size=count(r, size), passes=1)
            for c in range(cycles)
            for r in [ratio(c / (cycles - 1))]
        ]
        plan = Plan(
            name=f"fixed {signal}",
            num_examples=size,
            phases=(*phases, Phase(cycle=cycles, ratio=1.0, size=size, passes=0)),
            budget=budget,
        )
        task = world.task_for()
        graph = tick(plan, train=setting.train(task), select=select(rule, signal=signal))
        scores = {signal: trained["scores", signal]}
        return Built(tick=graph, task=task, source=world.source, before=before, scores=scores)

    return build


ARMS |= {
    "el2n": fixed("output_grad_norm", hard(), epochs=1.0, ratio=constant(0.5)),
    "grand": fixed("grad_norm", hard(), epochs=1.0, ratio=constant(0.5)),
    "cyclical": fixed("loss", inverse(), epochs=2.0, ratio=cyclic(cycles=60)),
}


@arm
def paced_reducible(setting: Setting) -> Built:
    """By the observed loss less that of models that have seen only the other half of the data."""
    world = setting.world
    values, before = halves(setting, epochs=1.0)
    graph = attent_paced(
        world.source,
        train=setting.train(observe="loss"),
        epochs=setting.epochs(before=before),
        signal="reducible",
        rank=reducible(values),
    )
    return Built(tick=graph, task=world.task, source=world.source, before=before)
