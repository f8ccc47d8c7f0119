"""The loop and its observers."""

import itertools
import json
import os
import signal
import threading

import numpy as np
import pytest
import torch

from attent.pipeline import (
    CheckpointFolder,
    Checkpoints,
    ExampleError,
    GraphError,
    JsonLog,
    Observer,
    Selections,
    Stage,
    adamw,
    attent_complex,
    attent_simple,
    evaluate,
    fit,
    fixed_interval,
    full,
    full_plan,
    hard,
    initial_state,
    initialize,
    load_state,
    reschedule,
    restore,
    score,
    select,
    sequence,
    summary,
    warmup_cosine,
    when,
)
from attent.pipeline.keys import clone, differences
from attent.pipeline.observers import read_log, saving
from tests.tiny import TinyTask, tiny_source, tiny_train


class Recorder(Observer):
    """Remembers what it was told."""

    def __init__(self, at=None, do=None):
        self.lines, self.reasons, self.states = [], [], []
        self.at, self.do = at, do

    def tick(self, state):
        self.lines.append(summary(state))
        self.states.append(clone(state))
        if self.at is not None and len(self.lines) == self.at:
            self.do()

    def stop(self, state, reason):
        self.reasons.append(reason)


def complex_tick(task, source, *, steps=3, held_out=True, observe=False, **options):
    return attent_complex(
        task,
        source,
        train=tiny_train(task, source, steps=steps, observe=observe),
        epochs=8,
        cycles=2,
        interval=fixed_interval(2),
        evaluate=evaluate(task, tiny_source(8)) if held_out else None,
        **options,
    )


def test_a_run_ends_exactly_on_budget_and_the_ledger_says_what_it_cost():
    task, source = TinyTask(), tiny_source()
    seen = Recorder()
    state = fit(complex_tick(task, source), initial_state(task, source), observers=[seen])
    assert seen.reasons == ["finished"]
    assert int(state["clock", "seen"]) == 8 * 20
    # Two cycles score 20 examples each; 160 are trained on.
    assert int(state["ledger", "forwarded"]) == 160 + 40
    assert int(state["ledger", "backwarded"]) == 160
    steps = [line["step"] for line in seen.lines]
    assert steps == sorted(steps)  # one monotone counter
    # Evaluated after every 20 examples; steps may overshoot, so count the distinct evaluations.
    assert sum("val_loss" in line for line in seen.lines) == 8
    assert seen.lines[-1]["val_loss"] == pytest.approx(float(state["metrics", "val_loss"]))


def test_the_learning_rate_used_is_logged_and_never_jumps():
    """Defects A2 and A6: a meter never fed; a schedule that jumped where the subset changed."""
    schedule = warmup_cosine(0.1, warmup=0.25)
    task, source = TinyTask(), tiny_source()
    trainer = tiny_train(task, source, steps=1, optimizer=adamw(schedule))
    tick = attent_complex(
        task, source, train=trainer, epochs=8, cycles=2, interval=fixed_interval(2)
    )
    seen = Recorder()
    fit(tick, initial_state(task, source), observers=[seen])
    assert seen.lines[-1]["lr"] == 0.0
    for line in seen.lines:
        assert line["lr"] == schedule(line["seen"] / 160)
    rates = [line["lr"] for line in seen.lines]
    # Batches of 4 of 160, a warm-up of 40: a step moves the rate by at most a tenth of its peak.
    assert max(abs(a - b) for a, b in itertools.pairwise(rates)) <= 0.1 / 10 + 1e-12


def test_saving_counts_scoring():
    """Passes: 1 full, then per cycle 2 of 4 (ratio .2) or 16 (.8) and full ones."""
    task, source = TinyTask(), tiny_source()
    state = fit(complex_tick(task, source), initial_state(task, source))
    # 160 = 20 (first) + 2 * 4 + 2 * 16 + 20 f: f = 5. Passes: 1 + 2 + 2 + 5 = 10.
    # Cost 3 * 160 + 2 * 20 = 520 forwards against 3 * 20 * 10 = 600: saved 2/15.
    assert saving(state) == pytest.approx(2 / 15)


def test_the_input_state_is_left_alone_unless_donated():
    task, source = TinyTask(), tiny_source()
    tick = full(source, train=tiny_train(task, source), epochs=2)
    state = initial_state(task, source)
    before = clone(state)
    fit(tick, state)
    assert differences(before, state) == []
    fit(tick, state, donate=True)
    assert ("params", "linear.weight") in differences(before, state)


def test_a_resumed_run_is_the_uninterrupted_one_from_every_tick(tmp_path):
    def fresh():
        task, source = TinyTask(dropout=0.3, noise=0.2), tiny_source()
        return complex_tick(task, source, score_per_tick=8), initial_state(task, source, seed=1)

    whole = Recorder()
    final = fit(*fresh(), observers=[whole])
    for position in (0, 1, len(whole.states) // 2, len(whole.states) - 2, len(whole.states) - 1):
        save = tmp_path / "state.safetensors"
        from attent.pipeline import save_state

        save_state(whole.states[position], save)
        tick, state = fresh()
        state = restore(initialize(tick, state), load_state(save)[0])
        assert differences(final, fit(tick, state, donate=True)) == []


def test_attent_simple_observes_then_trains_on_the_highest():
    task, source = TinyTask(), tiny_source()
    tick = attent_simple(
        source, train=tiny_train(task, source, steps=1, observe=True), epochs=3, ratio=0.35
    )
    seen = Recorder()
    state = fit(tick, initial_state(task, source), observers=[seen])
    observed = next(s for s in seen.states if int(s["clock", "seen"]) == 20)["scores", "loss"]
    assert int(state["mask"].sum()) == 7  # floor(.35 * 20)
    assert set(state["mask"].nonzero().flatten().tolist()) == set(observed.topk(7).indices.tolist())
    assert int(state["ledger", "forwarded"]) == int(state["clock", "seen"]) == 60  # no scoring


def test_a_recipe_that_needs_observed_losses_says_so():
    task, source = TinyTask(), tiny_source()
    blind = tiny_train(task, source)
    with pytest.raises(ValueError, match=r"'train' does not observe loss: make it with train"):
        attent_simple(source, train=blind, epochs=3)
    with pytest.raises(ValueError, match="does not observe loss"):
        attent_complex(task, source, train=blind, epochs=12, observed=True)


def test_observed_complex_never_scores():
    task, source = TinyTask(), tiny_source()
    tick = complex_tick(task, source, observe=True, observed=True)
    state = fit(tick, initial_state(task, source))
    assert int(state["ledger", "forwarded"]) == 160


def test_a_graph_that_cannot_run_is_refused_before_anything_happens():
    task, source = TinyTask(), tiny_source()
    stage = Stage(name="odd", reads={("scores", "los")}, writes={"mask"}, apply=lambda s: s)
    told = Recorder()
    with pytest.raises(GraphError, match="'odd' reads 'scores/los'"):
        fit(
            sequence("tick", stage, tiny_train(task, source)),
            initial_state(task, source),
            observers=[told],
        )
    assert told.reasons == []


def test_a_tick_that_would_go_on_for_ever_is_stopped():
    task, source = TinyTask(), tiny_source()
    plan = complex_tick(task, source)
    from attent.pipeline import plan_of

    no_score = sequence(
        "tick",
        when(("plan", "select_due"), select(hard())),
        tiny_train(task, source, observe=True),
        reschedule(plan_of(plan)),
    )
    with pytest.raises(RuntimeError, match=r"put when\(\('plan', 'score_due'\), score\(...\)\)"):
        fit(no_score, initial_state(task, source))
    idle = sequence("tick", reschedule(full_plan(20, 1)))
    with pytest.raises(RuntimeError, match="no stage of the graph trains"):
        fit(idle, initial_state(task, source))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_stops_after_the_tick(number):
    task, source = TinyTask(), tiny_source()
    seen = Recorder(at=4, do=lambda: os.kill(os.getpid(), number))
    former = signal.getsignal(number)
    state = fit(complex_tick(task, source), initial_state(task, source), observers=[seen])
    assert seen.reasons == ["interrupted"]
    assert len(seen.lines) == 4
    assert differences(state, seen.states[-1]) == []
    assert signal.getsignal(number) is former


def test_a_second_interrupt_stops_at_once():
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    task, source = TinyTask(), tiny_source()
    seen = Recorder(at=2, do=twice)
    with pytest.raises(KeyboardInterrupt):
        fit(complex_tick(task, source), initial_state(task, source), observers=[seen])
    assert seen.reasons == ["crashed"]


def test_it_runs_outside_the_main_thread():
    task, source = TinyTask(), tiny_source()
    seen = Recorder()
    run = threading.Thread(
        target=lambda: fit(
            complex_tick(task, source), initial_state(task, source), observers=[seen]
        )
    )
    run.start()
    run.join()
    assert seen.reasons == ["finished"]


def test_bad_input_on_the_way_leaves_a_good_checkpoint(tmp_path):
    task, source = TinyTask(), tiny_source()
    source.fields["y"][4] = float("nan")
    saver = Checkpoints(CheckpointFolder(tmp_path), every=1000)
    seen = Recorder()
    with pytest.raises(ExampleError, match="example 4"):
        fit(
            full(source, train=tiny_train(task, source), epochs=2),
            initial_state(task, source),
            observers=[saver, seen],
        )
    assert seen.reasons == ["failed"]
    state, _, _ = saver.folder.load_last()
    assert torch.isfinite(state["params", "linear.weight"]).all()
    assert int(state["clock", "seen"]) == 4 * int(state["clock", "step"])


def test_anything_else_that_goes_wrong_saves_nothing(tmp_path):
    def fail():
        raise OSError("disk gone")

    task, source = TinyTask(), tiny_source()
    saver, seen = Checkpoints(CheckpointFolder(tmp_path), every=1000), Recorder(at=3, do=fail)
    with pytest.raises(OSError, match="disk gone"):
        fit(complex_tick(task, source), initial_state(task, source), observers=[saver, seen])
    assert seen.reasons == ["crashed"]
    assert saver.folder.steps() == [0]  # the one saved before the first tick


def test_checkpoints_keep_the_best_by_a_metric(tmp_path):
    task, source = TinyTask(), tiny_source()
    saver = Checkpoints(
        CheckpointFolder(tmp_path), every=1000, best="val_error", larger_is_better=False,
        about={"task": task.name},
    )  # fmt: skip
    seen = Recorder()
    fit(complex_tick(task, source), initial_state(task, source), observers=[seen, saver])
    errors = {line["step"]: line["val_error"] for line in seen.lines if "val_error" in line}
    best = min(errors, key=errors.__getitem__)
    state, about = load_state(saver.folder.best)
    assert about == {"task": "tiny", "val_error": errors[best], "step": best}
    assert int(state["clock", "step"]) == best
    with pytest.raises(ValueError, match="every must be at least 1 example"):
        Checkpoints(CheckpointFolder(tmp_path), every=0)


def test_a_resumed_run_knows_the_best_so_far(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=100)

    def observers():
        return [Checkpoints(folder, every=20, best="val_error", larger_is_better=False)]

    def fresh():
        task, source = TinyTask(), tiny_source()
        return complex_tick(task, source), initial_state(task, source)

    fit(*fresh(), observers=observers())
    best = load_state(folder.best)[1]
    # Resume from a checkpoint after the best one: it must not be replaced by a worse one.
    later = [step for step in folder.steps() if step > best["step"]]
    earlier = [step for step in folder.steps() if step < best["step"]]
    for step in (*later[:1], earlier[-1]):
        tick, state = fresh()
        saved = load_state(folder.path / f"checkpoint-{step:09d}.safetensors")[0]
        fit(tick, restore(initialize(tick, state), saved), observers=observers())
        assert load_state(folder.best)[1] == best


def test_the_log_of_a_resumed_run_is_that_of_an_uninterrupted_one(tmp_path):
    def fresh():
        task, source = TinyTask(), tiny_source()
        return complex_tick(task, source, score_per_tick=8), initial_state(task, source)

    def without_seconds(path):
        return [{k: v for k, v in line.items() if "seconds" not in k} for line in read_log(path)]

    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    seen = Recorder()
    fit(*fresh(), observers=[JsonLog(whole), seen])
    lines = whole.read_text().splitlines()
    assert len({json.loads(line)["step"] for line in lines}) == len(lines)
    # Killed well after the checkpoint that is resumed, in the middle of writing a line.
    cut.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:30])
    tick, state = fresh()
    fit(tick, restore(initialize(tick, state), seen.states[9]), observers=[JsonLog(cut)])
    assert without_seconds(cut) == without_seconds(whole)
    seconds = [line["seconds"] for line in read_log(cut)]
    assert seconds == sorted(seconds)


def test_selections_are_recorded_with_the_scores_they_were_made_by(tmp_path):
    task, source = TinyTask(), tiny_source()
    seen = Recorder()
    fit(
        complex_tick(task, source, steps=50),
        initial_state(task, source),
        observers=[Selections(tmp_path), seen],
    )
    files = sorted(tmp_path.glob("*.npz"))
    records = [dict(np.load(file)) for file in files]
    assert [int(r["num_selected"]) for r in records] == [20, 4, 20, 16, 20]
    assert [int(r["cycle"]) for r in records] == [-1, 0, 0, 1, 1]
    # One full pass, 2 on the subset, 3 full (the remainder goes to the first cycle), 2, and 2.
    assert [int(r["passes"]) for r in records] == [0, 1, 3, 6, 8]
    for record in (records[1], records[3]):
        chosen = record["selected"]
        assert record["scores"][chosen].min() >= record["scores"][~chosen].max()
    assert records[0]["scores"].size == 0


def test_of_many_examples_a_fixed_sample_is_recorded(tmp_path):
    task, source = TinyTask(), tiny_source()

    def sample(seed, folder):
        fit(
            full(source, train=tiny_train(task, source), epochs=1),
            initial_state(task, source, seed=seed),
            observers=[Selections(folder, at_most=6)],
        )
        return dict(np.load(folder / "selection-000000.npz"))

    first, again = sample(0, tmp_path / "a"), sample(0, tmp_path / "b")
    assert np.array_equal(first["index"], again["index"])
    assert 1 <= len(first["index"]) <= 6
    assert int(first["num_selected"]) == 20
    assert not np.array_equal(first["index"], sample(1, tmp_path / "c")["index"])


def test_summary_leaves_out_stale_evaluations_and_nan():
    task, source = TinyTask(), tiny_source()
    tick = full(
        source, train=tiny_train(task, source, steps=2), epochs=1,
        evaluate=evaluate(task, tiny_source(8)),
    )  # fmt: skip
    state = initialize(tick, initial_state(task, source))
    line = summary(state)
    assert line["train_loss"] is None
    assert "val_loss" not in line
    assert line["saved"] == 0.0
    assert line["budget"] == 20
    json.dumps(line)


def test_scores_made_twice_give_the_same_selection():
    """Defect A10: redrawn masks and crops made two scorings of one model disagree."""
    task, source = TinyTask(dropout=0.5, noise=1.0), tiny_source()
    graph = sequence("teach", score(task, source), select(hard()))
    state = initialize(graph, initial_state(task, source))
    state["plan", "ratio"] = torch.tensor(0.5, dtype=torch.float64)
    from attent.pipeline import run

    first = run(graph, state)
    assert differences(first["scores"], run(graph, first)["scores"]) == []
    assert torch.equal(first["mask"], run(graph, first)["mask"])
