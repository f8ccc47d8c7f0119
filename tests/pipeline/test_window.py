"""Windows of a stream: which examples are trained on in which, resumed anywhere, for ever."""

from __future__ import annotations

import gc
import itertools
import math
import pickle
import weakref

import pytest
import torch
from tensordict import TensorDict

from attent.pipeline import (
    CheckpointFolder,
    Checkpoints,
    ExampleError,
    JsonLog,
    Loading,
    Phase,
    Plan,
    Selections,
    Signal,
    StreamEnded,
    Window,
    adamw,
    attent_online,
    bare_state,
    evaluate,
    fit,
    hard,
    initial_state,
    initialize,
    load_state,
    random,
    refill,
    reschedule,
    restore,
    run,
    save_state,
    score,
    select,
    tick,
    warmup_cosine,
    window,
)
from attent.pipeline.keys import clone, differences
from attent.pipeline.observers import read_log
from attent.pipeline.source import fetch_batch
from tests.pipeline.test_fit import Recorder
from tests.streams import Again, Pipe, begin, example, online, threshold
from tests.tiny import TinyTask, tiny_source, tiny_train


class Told(TinyTask):
    """Remembers the positions of what it was trained on, batch by batch."""

    def __init__(self, **options):
        super().__init__(**options)
        self.trained = []

    def view(self, batch, keys, *, training):
        if training:
            self.trained.append(sorted(batch["p"].tolist()))
        return super().view(batch, keys, training=training)


def digits(start):
    """Position p has the p-th of these as its score, and then the same again."""
    for position in itertools.count(start):
        score_ = (3.0, 1.0, 4.0, 1.5, 5.0, 9.0, 2.0, 6.0, 5.5, 3.5, 8.0, 9.5)[position % 12]
        yield {"x": torch.ones(3), "y": torch.tensor(1.0), "score": score_, "p": position}


GIVEN = Signal(name="given", measure=lambda task, params, buffers, batch, chunk: batch["score"])


def test_the_first_windows_by_hand():
    """Of each four, two: 3 1 4 1.5 | 5 9 2 6 | 5.5 3.5 8 9.5, and so on."""
    task = Told()
    held = Window(digits, 4)
    train = tiny_train(task, held, steps=1)
    graph = attent_online(
        task, held, train=train, examples=11, ratio=0.5, interval=2, signal=GIVEN,
    )  # fmt: skip
    seen = Recorder()
    state = fit(graph, initial_state(task, held), observers=[seen])
    # Two passes over each two; the budget of 11 ends in the middle of a pass over the third.
    assert task.trained[:4] == [[0, 2], [0, 2], [5, 7], [5, 7]]
    assert sorted(task.trained[4] + task.trained[5]) in ([10, 10, 11], [10, 11, 11])
    assert [line["cycle"] for line in seen.lines] == [0, 1, 1, 2, 2, 2]
    assert [line["window_number"] for line in seen.lines] == [0, 0, 1, 1, 2, 2]
    assert [line["window_due"] for line in seen.lines] == [False, True] * 2 + [False] * 2
    assert state["window", "position"].tolist() == [8, 9, 10, 11]
    assert (int(state["window", "next"]), int(state["clock", "seen"])) == (12, 11)
    # Three windows of 4 were scored.
    assert int(state["ledger", "forwarded"]) == 3 * 4 + 11
    assert int(state["ledger", "backwarded"]) == 11


def test_what_the_window_never_showed_again_is_dropped():
    task = Told()
    graph, _, held = online(begin, size=5, examples=24, ratio=0.4, steps=50, task=task)
    fit(graph, initial_state(task, held))
    # 2 of each 5: twelve windows, every position at most once, two from each window.
    trained = sorted(itertools.chain(*task.trained))
    assert len(trained) == len(set(trained)) == 24
    assert [p // 5 for p in trained] == sorted(list(range(12)) * 2)


def test_refilling_resets_what_was_of_other_examples():
    state = bare_state(4)
    state["scores", "loss"] = torch.ones(4)
    graph = refill(Window(digits, 4))
    state = initialize(graph, state)
    state["scores", "step"] = torch.tensor([3, 4, -1, 5], dtype=torch.int32)
    state["mask"] = torch.tensor([True, False, False, True])
    state["weight"] = torch.tensor([1.0, 1.0, 2.0, 3.0])
    state["plan", "size"] = torch.tensor(2)
    first = run(graph, state)
    assert first["scores", "step"].tolist() == [-1] * 4
    assert first["mask"].tolist() == [True] * 4
    assert first["weight"].tolist() == [1.0] * 4
    assert int(first["plan", "size"]) == 4
    assert not bool(first["plan", "window_due"])
    assert differences(first, run(graph, first)) == []  # nothing is due
    first["plan", "window_due"] = torch.tensor(True)
    second = run(graph, first)
    assert second["window", "position"].tolist() == [4, 5, 6, 7]
    assert int(second["window", "number"]) == 1


def test_the_window_follows_the_state_back_and_forth():
    held = Window(begin, 3)
    graph = refill(held)
    states = [initialize(graph, bare_state(3))]
    for _ in range(3):
        states.append(run(graph, states[-1]))
        states[-1]["plan", "window_due"] = torch.tensor(True)
    for number in (2, 0, 1, 2):
        state = clone(states[number + 1])
        state["plan", "window_due"] = torch.tensor(False)
        run(graph, state)
        got = held.fetch(torch.tensor([0, 2]))["p"].tolist()
        assert got == [3 * number, 3 * number + 2]


def test_the_learning_rate_runs_on_from_window_to_window():
    task, held = TinyTask(), Window(begin, 10)
    schedule = warmup_cosine(1.0, warmup=0.1)
    train = tiny_train(task, held, steps=1, optimizer=adamw(schedule))
    graph = attent_online(task, held, train=train, examples=200, ratio=0.4)
    seen = Recorder()
    fit(graph, initial_state(task, held), observers=[seen])
    rates = [line["lr"] for line in seen.lines]
    assert len(rates) == 50
    # A function of the budget spent alone: warm-up over a tenth, then a cosine, whatever window.
    spent = [line["seen"] / 200 for line in seen.lines]
    assert rates == pytest.approx([schedule(s) for s in spent])
    assert max(abs(a - b) for a, b in itertools.pairwise(rates[5:])) < 0.04


def in_parts(stream):
    return online(stream, score_per_tick=4, score_batch_size=4, interval=2, ratio=0.6)


RUNS = {
    "callable": lambda: in_parts(begin),
    "iterable": lambda: in_parts(Again()),
    "datapipe": lambda: in_parts(Pipe()),
    "generator": lambda: in_parts(begin(0)),
    "begun anew": lambda: online(Again(17), restart=True, ratio=0.6, examples=60, steps=1),
    "a callable begun anew": lambda: online(
        lambda start: begin(start, 17), restart=True, ratio=0.6, examples=60, steps=1
    ),
    "with workers": lambda: online(begin, loading=Loading(workers=2), ratio=0.6),
    "threshold of a callable": lambda: threshold(begin),
    "threshold of an iterable": lambda: threshold(Again()),
    "threshold of a generator": lambda: threshold(begin(0)),
}


@pytest.mark.parametrize("name", RUNS)
def test_resumed_anywhere_it_is_the_uninterrupted_run(name, tmp_path):
    def fresh():
        graph, task, held = RUNS[name]()
        return graph, initial_state(task, held, seed=4)

    whole = Recorder()
    final = fit(*fresh(), observers=[whole])
    assert int(final["window", "number"]) >= 3
    # Also from the middle of a window: in it, something was trained on and something was not.
    assert any(int(state["clock", "offset"]) > 0 for state in whole.states)
    for state in whole.states[::3]:
        save_state(state, tmp_path / "state.safetensors")
        graph, start = fresh()
        start = restore(initialize(graph, start), load_state(tmp_path / "state.safetensors")[0])
        assert differences(final, fit(graph, start, donate=True)) == []


def test_worker_processes_read_copies_of_the_window():
    finals = []
    for loading in (None, Loading(workers=1, processes=True)):
        task, held = TinyTask(noise=0.3), Window(begin(0), 10)
        train = tiny_train(task, held, loading=loading)
        graph = attent_online(task, held, train=train, examples=12, ratio=0.4)
        finals.append(fit(graph, initial_state(task, held)))
    assert differences(*finals) == []
    # Where processes are not forked it is pickled, as no generator can be.
    copy = pickle.loads(pickle.dumps(held))
    assert copy.fetch(torch.arange(10))["p"].tolist() == held.fetch(torch.arange(10))["p"].tolist()
    assert copy.locate(3) == held.locate(3) == "position 23 of the stream"


def test_where_ticks_end_changes_nothing():
    finals = []
    for steps in (1, 3, 50):
        graph, task, held = online(begin, steps=steps, ratio=0.6, interval=2)
        finals.append(fit(graph, initial_state(task, held)))
    assert differences(finals[0], finals[1]) == []
    assert differences(finals[0], finals[2]) == []


def test_memory_stays_flat_over_many_windows():
    alive = weakref.WeakSet()

    def stream(start):
        for position in itertools.count(start):
            item = example(position)
            alive.add(item["x"])
            peaks.append(len(alive))
            yield item

    counts, objects, peaks = [], [], []

    def count():
        gc.collect()
        counts.append(len(alive))
        objects.append(len(gc.get_objects()))

    class Count(Recorder):
        def tick(self, state):
            if int(state["clock", "cycle"]) in (20, 80):
                count()

    for most, make in (
        (12, lambda: online(stream, size=10, examples=400, steps=50, ratio=0.4)),
        (2 * 4 + 2 * 16, lambda: threshold(stream, size=4, examples=400, steps=50)),
    ):
        for found in (counts, objects, peaks):
            found.clear()
        graph, task, held = make()
        fit(graph, initial_state(task, held), observers=[Count()])
        assert len(counts) == 2
        # The window; the example the stream has at hand; candidates that were given back.
        assert max(counts) <= held.size + 1 + 16
        # A window is given up before the next is read, but while it is looked for by scores.
        assert max(peaks) <= most
        assert objects[-1] - objects[0] < 50


def test_a_stream_that_ends_ends_the_run_with_its_state_saved(tmp_path):
    task, held = TinyTask(), Window(Again(25), 10)
    graph = attent_online(task, held, train=tiny_train(task, held), examples=100, ratio=0.4)
    saver = Checkpoints(CheckpointFolder(tmp_path), every=1000)
    seen = Recorder()
    expected = (
        r"ended after 25 examples: 2 windows of 10 were full, and 8 examples of a budget of 100 "
        r"were trained on.*restart=True.*A budget of 8 ends there"
    )
    with pytest.raises(StreamEnded, match=expected) as caught:
        fit(graph, initial_state(task, held), observers=[saver, seen])
    assert caught.value.length == 25
    assert seen.reasons == ["failed"]
    # It goes on where it stopped if there is more by then.
    saved, _, _ = saver.folder.load_last()
    assert differences(saved, seen.states[-1]) == []

    def longer(end):
        again = Window(Again(end), 10)
        own = TinyTask()
        tick_ = attent_online(own, again, train=tiny_train(own, again), examples=16, ratio=0.4)
        return tick_, initial_state(own, again)

    whole = fit(*longer(40))
    tick_, state = longer(40)
    saved["plan", "budget"] = torch.tensor(16)
    resumed = fit(tick_, restore(initialize(tick_, state), saved))
    assert int(resumed["clock", "seen"]) == 16
    assert resumed["window", "position"].tolist() == whole["window", "position"].tolist()


def test_what_is_read_once_is_not_to_be_begun_anew():
    graph, task, held = online((example(i) for i in range(25)), size=10, examples=100, ratio=0.4)
    with pytest.raises(StreamEnded, match=r"were trained on\. A budget of 8 ends there"):
        fit(graph, initial_state(task, held))


def test_a_budget_that_the_stream_just_holds_is_spent():
    graph, task, held = online(Again(20), size=10, examples=8, ratio=0.4)
    assert int(fit(graph, initial_state(task, held))["clock", "seen"]) == 8


def test_begun_anew_windows_run_over_the_end():
    task = Told()
    graph, _, held = online(Again(7), size=5, examples=15, ratio=1.0, restart=True, task=task)
    state = fit(graph, initial_state(task, held))
    trained = list(itertools.chain(*task.trained))
    # 0-4 | 5 6 0 1 2 | 3-6 0
    assert sorted(trained) == sorted([0, 1, 2, 3, 4, 5, 6, 0, 1, 2, 3, 4, 5, 6, 0])
    assert int(state["window", "length"]) == 7
    assert int(state["ledger", "forwarded"]) == 15  # at a ratio of 1 nothing is scored


def test_a_random_rule_scores_nothing_and_draws_anew():
    task = Told()
    graph, _, held = online(begin, examples=40, ratio=0.4, interval=5, rule=random(), task=task)
    state = fit(graph, initial_state(task, held))
    assert int(state["ledger", "forwarded"]) == 40
    assert len(set(itertools.chain(*task.trained[:10]))) > 4  # of the first window, pass by pass


def test_several_phases_in_each_window():
    """Everything once, then two passes over the hardest half, in every window."""
    task = Told()
    held = Window(begin, 4)
    plan = Plan(
        name="two", num_examples=4, budget=16, per_window=True,
        phases=(
            Phase(cycle=0, ratio=1.0, size=4, passes=1),
            Phase(cycle=0, ratio=0.5, size=2, passes=2, score=True),
        ),
    )  # fmt: skip
    train = tiny_train(task, held, steps=1)
    graph = tick(
        plan, refill=refill(held), train=train, score=score(task, held), select=select(hard())
    )
    seen = Recorder()
    fit(graph, initial_state(task, held), observers=[seen])
    assert task.trained[0] == [0, 1, 2, 3]
    assert task.trained[1] == task.trained[2]
    assert set(task.trained[1]) < {0, 1, 2, 3}
    assert task.trained[3] == [4, 5, 6, 7]
    assert len(task.trained) == 6
    assert [line["cycle"] for line in seen.lines] == [0, 0, 1, 1, 1, 1]
    assert [line["phase"] for line in seen.lines] == [1, 1, 0, 1, 1, 1]
    open_ = Plan(
        name="open", num_examples=4, budget=16, per_window=True,
        phases=(Phase(cycle=0, ratio=1.0, size=4, passes=0),),
    )  # fmt: skip
    with pytest.raises(ValueError, match="plan 'open' is of windows, but a phase of it has no end"):
        reschedule(open_)


def test_observers_of_an_online_run(tmp_path):
    task, held = TinyTask(), Window(begin, 10)
    graph = attent_online(
        task, held, train=tiny_train(task, held), examples=40, ratio=0.4,
        evaluate=evaluate(task, tiny_source(8)), eval_every=2.0,
    )  # fmt: skip
    log = tmp_path / "log.jsonl"
    watch = [
        JsonLog(log),
        Selections(tmp_path / "selections"),
        Checkpoints(CheckpointFolder(tmp_path / "saved", keep=100), every=20, best="val_loss"),
    ]
    fit(graph, initial_state(task, held), observers=watch)
    lines = read_log(log)
    assert [line["window_next"] for line in lines] == [10 * n for n in range(1, 11)]
    assert [line["cycle"] for line in lines] == [*range(1, 10), 9]
    assert [line["seen"] for line in lines if "val_loss" in line] == [20, 40]
    # Ten windows: 10 forwards to score and 4 trained on, against 10 trained on.
    assert lines[-1]["saved"] == pytest.approx(1 - (10 + 3 * 4) / 30)
    assert len(list((tmp_path / "selections").glob("*.npz"))) == 10  # one for each window
    assert (tmp_path / "saved" / "best.safetensors").is_file()


def test_a_loss_that_is_not_finite_names_the_position():
    def broken(start):
        for item in begin(start):
            if item["p"] == 23:
                item["y"] = torch.tensor(math.nan)
            yield item

    graph, task, held = online(broken)
    expected = r"loss of example 3 \(position 23 of the stream\) is nan"
    with pytest.raises(ExampleError, match=expected):
        fit(graph, initial_state(task, held))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="at least 1 example, got size 0"):
        Window(begin, 0)
    empty = window(begin, 4)
    with pytest.raises(ExampleError, match=r"window is empty: put refill\(window\) at the head"):
        fetch_batch(empty, torch.tensor([1]))
    with pytest.raises(ValueError, match="the state is of 5 examples, the window of 4"):
        initialize(refill(empty), bare_state(5))


def test_examples_are_dictionaries_tensordicts_or_named_tuples():
    def of(item, **options):
        held = Window([item, item], 2, **options)
        run(refill(held), initialize(refill(held), bare_state(2)))
        return fetch_batch(held, torch.tensor([1]))

    assert of((torch.ones(2), 3))["label"].tolist() == [3]
    assert of((torch.ones(2), 3), names=("x", "y"))["y"].tolist() == [3]
    assert of(TensorDict({"a": torch.ones(2)}))["a"].tolist() == [[1.0, 1.0]]
    with pytest.raises(ExampleError, match=r"at position 0 of the stream .*\(image, label\)"):
        of((1, 2, 3))
