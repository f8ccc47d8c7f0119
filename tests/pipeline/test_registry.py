"""Every stage of the library keeps the laws; one that is not in the table fails the first test."""

import types
import typing

import pytest
import torch

import attent.pipeline as ap
from attent.pipeline import Stage, assert_stage_laws, bare_state, initial_state, initialize, run
from attent.pipeline.plans import complex_plan, full_plan
from tests.streams import Again, online, threshold
from tests.tiny import TinyTask, tiny_source, tiny_train


def _due(state, *flags):
    for flag in flags:
        state["plan", flag] = torch.tensor(True)
    return state


def _ready(stage_of, *flags, **task_options):
    """A stage beside the state it runs on: initialised with a budget, scores measured."""
    task, source = TinyTask(**task_options), tiny_source()
    state = initial_state(task, source, seed=5)
    state["plan", "budget"] = torch.tensor(60)
    stage = stage_of(task, source)
    state = initialize(stage, state)
    if "loss" not in state["scores"].keys():
        state["scores", "loss"] = torch.zeros(len(source))
    state["scores", "loss"] = torch.arange(len(source)) / 7
    state["scores", "step"] = torch.zeros(len(source), dtype=torch.int32)
    state["plan", "ratio"] = torch.tensor(0.4, dtype=torch.float64)
    return stage, _due(state, *flags)


def _reschedule():
    plan = complex_plan(20, 8, cycles=2, interval=ap.fixed_interval(1))
    stage = ap.reschedule(plan)
    state = initialize(stage, bare_state(20))
    state["clock", "offset"] = torch.tensor(20)
    state["clock", "seen"] = torch.tensor(20)
    return stage, state


def _recipe(make, *flags, observe=False):
    def stage_of(task, source):
        measure = ap.evaluate(task, tiny_source(8))
        trainer = tiny_train(task, source, steps=3, observe=observe)
        return make(task, source, trainer, measure)

    task, source = TinyTask(dropout=0.2, noise=0.1), tiny_source()
    stage = stage_of(task, source)
    state = initialize(stage, initial_state(task, source, seed=5))
    return stage, _due(state, *flags)


def _refill(*, later=False, due=False, keep=None, **options):
    """A refill whose first window is due; later, after two, only if that is said."""
    task, held = TinyTask(dropout=0.2), ap.Window(Again(17), 8, **options)
    stage = ap.refill(held, keep=None if keep is None else keep(task))
    state = initialize(stage, initial_state(task, held, seed=5))
    for _ in range(2 if later else 0):
        state["plan", "window_due"] = torch.tensor(True)
        state = run(stage, state)
    return stage, _due(state, "window_due") if due else state


def _above(task):
    return ap.above_quantile(task, ratio=0.6, batch_size=6)


def _online(make, **options):
    graph, task, held = make(Again(), **options)
    return graph, initialize(graph, initial_state(task, held, seed=5))


STAGES = {
    "refill": _refill,
    "refill over the end": lambda: _refill(later=True, due=True, restart=True),
    "refill not due": lambda: _refill(later=True),
    "refill above_quantile": lambda: _refill(keep=_above),
    "attent_online": lambda: _online(online),
    "attent_online in parts": lambda: _online(online, score_per_tick=4, score_batch_size=4),
    "attent_threshold": lambda: _online(threshold),
    "score": lambda: _ready(lambda t, s: ap.score(t, s, batch_size=6), "score_due", dropout=0.5),
    "score grad_norm": lambda: _ready(lambda t, s: ap.score(t, s, "grad_norm"), "score_due"),
    "score output_grad_norm": lambda: _ready(lambda t, s: ap.score(t, s, "output_grad_norm")),
    "score vmap_grad_norm": lambda: _ready(lambda t, s: ap.score(t, s, "vmap_grad_norm")),
    "score looped_grad_norm": lambda: _ready(lambda t, s: ap.score(t, s, "looped_grad_norm")),
    "score last_layer": lambda: _ready(lambda t, s: ap.score(t, s, "last_layer"), "score_due"),
    "score in parts": lambda: _ready(
        lambda t, s: ap.score(t, s, batch_size=3, examples_per_tick=6), "score_due"
    ),
    "select hard": lambda: _ready(lambda t, s: ap.select(ap.hard()), "select_due"),
    "select soft": lambda: _ready(lambda t, s: ap.select(ap.soft()), "select_due"),
    "select random": lambda: _ready(lambda t, s: ap.select(ap.random()), "select_due"),
    "train": lambda: _ready(lambda t, s: tiny_train(t, s, steps=3), dropout=0.5, noise=0.3),
    "train observing": lambda: _ready(
        lambda t, s: tiny_train(t, s, steps=3, observe=True), dropout=0.5
    ),
    "train observing more": lambda: _ready(
        lambda t, s: tiny_train(t, s, steps=3, observe=("relative_loss", "loss_drop")), dropout=0.5
    ),
    "train observing norms": lambda: _ready(
        lambda t, s: tiny_train(t, s, steps=3, observe="grad_norm"), dropout=0.5
    ),
    "train with workers": lambda: _ready(
        lambda t, s: tiny_train(t, s, steps=3, loading=ap.Loading(workers=2)), noise=0.3
    ),
    "train sgd": lambda: _ready(lambda t, s: tiny_train(t, s, steps=3, optimizer=ap.sgd(0.1))),
    "train with averages": lambda: _ready(lambda t, s: tiny_train(t, s, steps=3, ema=0.9)),
    "train while a score is due": lambda: _ready(lambda t, s: tiny_train(t, s), "score_due"),
    "reschedule": _reschedule,
    "evaluate": lambda: _ready(lambda t, s: ap.evaluate(t, tiny_source(8)), "eval_due"),
    "sequence": lambda: _ready(
        lambda t, s: ap.sequence("both", ap.score(t, s), ap.select(ap.hard())), "score_due"
    ),
    "repeat": lambda: _ready(lambda t, s: ap.repeat("twice", tiny_train(t, s, steps=2), 2)),
    "when set": lambda: _ready(
        lambda t, s: ap.when(("plan", "select_due"), ap.select(ap.hard())), "select_due"
    ),
    "when not set": lambda: _ready(
        lambda t, s: ap.when(("plan", "select_due"), ap.select(ap.hard()))
    ),
    "full": lambda: _recipe(
        lambda t, s, trainer, measure: ap.full(s, train=trainer, epochs=2, evaluate=measure)
    ),
    "attent_simple": lambda: _recipe(
        lambda t, s, trainer, measure: ap.attent_simple(s, train=trainer, epochs=2), observe=True
    ),
    "attent_paced": lambda: _recipe(
        lambda t, s, trainer, measure: ap.attent_paced(s, train=trainer, epochs=3), observe=True
    ),
    "attent_adaptive": lambda: _recipe(
        lambda t, s, trainer, measure: ap.attent_adaptive(s, train=trainer, epochs=3),
        observe="relative_loss",
    ),
    "attent_adaptive with patience": lambda: _recipe(
        lambda t, s, trainer, measure: ap.attent_adaptive(s, train=trainer, epochs=3, patience=2),
        "select_due",
        observe="relative_loss",
    ),
    "attent_paced ranked": lambda: _recipe(
        lambda t, s, trainer, measure: ap.attent_paced(
            s, train=trainer, epochs=3, signal="aged", rank=ap.aged(len(s), bonus=1.0)
        ),
        "select_due",
        observe=True,
    ),
    "rank": lambda: _ready(
        lambda t, s: ap.rank(
            "twice",
            lambda state: 2 * state["scores", "loss"],
            reads={("scores", "loss")},
            num_examples=len(s),
        )
    ),
    "reducible": lambda: _ready(lambda t, s: ap.reducible(torch.arange(len(s)) / 3)),
    "aged": lambda: _ready(lambda t, s: ap.aged(len(s), bonus=0.5)),
    "patient": lambda: _ready(lambda t, s: ap.patient(len(s), patience=2, signal="loss")),
    "attent_complex": lambda: _recipe(
        lambda t, s, trainer, measure: ap.attent_complex(
            t, s, train=trainer, epochs=12, cycles=2, evaluate=measure
        ),
        "score_due",
        "eval_due",
    ),
    "tick": lambda: _recipe(
        lambda t, s, trainer, measure: ap.tick(full_plan(20, 2), train=trainer, evaluate=measure)
    ),
}


def test_every_function_that_makes_a_stage_is_in_the_table():
    makers = {
        name
        for name in ap.__all__
        if callable(getattr(ap, name))
        and not isinstance(getattr(ap, name), type)
        and typing.get_type_hints(getattr(ap, name)).get("return") is Stage
    }
    assert makers == {name.split()[0] for name in STAGES}


def test_no_name_is_a_modules():
    """A file of the same name takes the place of a function, once it is imported."""
    modules = [name for name in ap.__all__ if isinstance(getattr(ap, name), types.ModuleType)]
    assert not modules


@pytest.mark.parametrize("name", STAGES)
def test_laws(name):
    stage, state = STAGES[name]()
    assert_stage_laws(stage, state)


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_does_something(name):
    """The laws alone would let an empty stage pass."""
    stage, state = STAGES[name]()
    idle = name in ("when not set", "train while a score is due", "refill not due")
    from attent.pipeline.keys import differences

    assert bool(differences(state, run(stage, state))) != idle
