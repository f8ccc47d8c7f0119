from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from rich.console import Console

from attent.pipeline import Observer, evaluate, fit, initial_state, plan_of
from attent.pipeline.keys import number
from attent.tasks.classification.build import build_classify
from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.command import Measure
from attent.tasks.commands import COMMANDS
from attent.tasks.progress import ProgressBar
from tests.streams import begin, online
from tests.tiny import TinyTask, tiny_source

ACCURACY = COMMANDS["classify"].measures[0]

NUMBERS = (
    r"ratio [01]\.\d\d  loss (?:\d+\.\d{3}|-)  accuracy (?:[01]\.\d{3}|-)  "
    r"saved -?\d+%  [\d,]+ ex/s  (?:\d+:\d\d|-:--) left"
)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """The tensors are small: threads would mostly wait for each other."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


@pytest.fixture
def build(tmp_path):
    """A run of four epochs of 48 examples, with an evaluation every half an epoch."""

    def build(**options):
        path = tmp_path / "data.npz"
        images = np.random.default_rng(0).random((60, 8, 8))
        np.savez(path, images=images, labels=np.arange(60) % 3)
        small = {"depth": 1, "embed_dim": 16, "num_heads": 2}
        return build_classify(ClassifyConfig(**{
            "data": str(path), "model_args": small, "method": "attent_complex", "epochs": 4,
            "warmup_epochs": 1.0, "total_cycles": 2, "initial_interval": 1, "batch_size": 8,
            "steps_per_tick": 1, "eval_every": 0.5, **options,
        }))  # fmt: skip

    return build


def percents(lines: list[str]) -> list[int]:
    return [int(line.split("%")[0]) for line in lines]


def shown(built, *, terminal: bool, state=None, width: int = 200) -> str:
    """All that a bar writes over a whole run."""
    console = Console(
        file=io.StringIO(),
        force_terminal=terminal,
        width=width,
        color_system=None,
        legacy_windows=False,
    )
    bar = ProgressBar(built.plan, ACCURACY, console)
    fit(built.tick, built.state if state is None else state, observers=[bar])
    return console.file.getvalue()


def test_elsewhere_than_on_a_terminal_there_is_a_line_for_each_evaluation(build):
    lines = shown(build(), terminal=False).splitlines()
    # 4 epochs, 2 evaluations in each.
    assert len(lines) == 8
    wrong = [
        line
        for line in lines
        if not re.fullmatch(rf" *\d+% (?:warm-up|cycle [12]/2)  {NUMBERS}", line)
    ]
    assert wrong == []
    # Each as soon as 12.5% more are trained on: at the end of a batch of 8 of 192 examples.
    wanted = [12.5, 25, 37.5, 50, 62.5, 75, 87.5, 100]
    assert percents(lines) == pytest.approx(wanted, abs=100 * 8 / 192)


def test_the_lines_tell_the_warm_up_from_the_cycles(build):
    lines = shown(build(), terminal=False).splitlines()
    places = [re.search(r"% (warm-up|cycle \d/\d)", line)[1] for line in lines]
    assert places[0] == "warm-up"
    assert places[-1] == "cycle 2/2"
    assert sorted(set(places)) == ["cycle 1/2", "cycle 2/2", "warm-up"]


def test_plain_training_has_no_cycles(build):
    lines = shown(build(method="full"), terminal=False).splitlines()
    assert all(re.fullmatch(rf" *\d+% training  {NUMBERS}", line) for line in lines)
    assert all("ratio 1.00" in line and "saved 0%" in line for line in lines)


def test_lines_are_not_folded_at_a_width(build):
    assert len(shown(build(), terminal=False, width=20).splitlines()) == 8


def test_what_a_line_says_is_in_the_state(build):
    built = build()
    expected = []

    class Remember(Observer):
        def tick(self, state):
            if number(state, "metrics", "val_step") == number(state, "clock", "step"):
                metrics = state["metrics"]
                expected.append(
                    f"loss {float(metrics['train_loss']):.3f}  "
                    f"accuracy {float(metrics['val_accuracy']):.3f}"
                )

    console = Console(file=io.StringIO(), force_terminal=False)
    fit(built.tick, built.state,
        observers=[Remember(), ProgressBar(built.plan, ACCURACY, console)])  # fmt: skip
    lines = console.file.getvalue().splitlines()
    assert [re.search(r"loss \S+  accuracy \S+", line)[0] for line in lines] == expected


def test_a_resumed_run_goes_on_where_it_was(build):
    built = build()
    console = Console(file=io.StringIO(), force_terminal=False)

    class Stop(Observer):
        def tick(self, state):
            if number(state, "clock", "seen") >= 48:
                raise ValueError("enough")

    state = built.state
    with pytest.raises(ValueError, match="enough"):
        fit(built.tick, state, observers=[Stop()], donate=True)
    bar = ProgressBar(built.plan, ACCURACY, console)
    fit(built.tick, state, observers=[bar])
    lines = console.file.getvalue().splitlines()
    # What was evaluated before (at 12.5% and 25%) is not said again.
    wanted = [37.5, 50, 62.5, 75, 87.5, 100]
    assert percents(lines) == pytest.approx(wanted, abs=100 * 8 / 192)


def test_on_a_terminal_there_is_a_live_bar(build):
    text = shown(build(), terminal=True)
    assert "\x1b[" in text
    last = [line for line in re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", text).splitlines() if line][-1]
    assert re.search(rf"cycle 2/2 .*100% {NUMBERS}", last)


def test_before_the_first_step_nothing_is_known_yet(build):
    built = build()
    console = Console(file=io.StringIO(), force_terminal=True, width=200, color_system=None)
    bar = ProgressBar(built.plan, ACCURACY, console)
    bar.start(built.state)
    bar.stop(built.state, "interrupted")
    assert re.search(r"warm-up .*0% ratio 1.00  loss -  accuracy -  saved 0%  0 ex/s  -:-- left",
                     console.file.getvalue())  # fmt: skip


def test_of_a_stream_the_windows_are_counted():
    task = TinyTask()
    measure = evaluate(task, tiny_source(8))
    graph, _, held = online(begin, task=task, size=8, ratio=0.5, evaluate=measure, eval_every=2.0)
    console = Console(file=io.StringIO(), width=200, color_system=None)
    error = Measure(metric="val_error", title="error", short="error")
    fit(graph, initial_state(task, held), observers=[ProgressBar(plan_of(graph), error, console)])
    lines = console.file.getvalue().splitlines()
    # Of 8 in each of ten windows 4, an evaluation after every fourth window, and one at the end.
    assert [line.split("  ")[0].strip() for line in lines] == [
        "40% window 5", "80% window 9", "100% window 10",
    ]  # fmt: skip
    # Scoring 8 and training on 4, against training on 8.
    assert "ratio 0.50" in lines[0]
    assert "saved 17%" in lines[-1]


@pytest.mark.parametrize("width", [80, 30])
def test_a_narrow_terminal(build, width):
    """The line is cut, never folded: a folded bar would fill the screen."""
    text = re.sub(r"\x1b\[[\d;?]*[A-Za-z]", "", shown(build(), terminal=True, width=width))
    lines = [line for line in re.split(r"[\r\n]+", text) if line]
    assert max(map(len, lines)) <= width
    if width >= 80:
        words = ("cycle 2/2", "100%", "ratio", "loss", "saved")
        assert [word for word in words if word not in lines[-1]] == []
