"""benchmarks.loop: what it holds a teacher against obeys the published rules, and it runs."""

from __future__ import annotations

import math

import pytest
import torch

from attent.pipeline import hard
from benchmarks.loop import Taught, main, select
from benchmarks.rivals import CLASSES, DataCull, InfoBatch


def a_pass(books, losses):
    """The batches of a pass, each told its losses; what each was to minimise."""
    found = []
    for own in books.select():
        index = torch.tensor(own)
        found.append((own, float(books.tell(index, losses[index]))))
    return found


def test_infobatch_by_hand():
    """Losses 0 to 19, mean 9.5: 10 to 19 stay; of 0 to 9 five (half), which weigh 2."""
    books, losses = InfoBatch(20, 4), torch.arange(20.0)
    first = a_pass(books, losses)
    assert sorted(i for own, _ in first for i in own) == list(range(20))
    assert all(loss == pytest.approx(sum(own) / 4) for own, loss in first)
    second = a_pass(books, losses)
    kept = sorted(i for own, _ in second for i in own)
    assert kept[5:] == list(range(10, 20))
    assert len(set(kept)) == 15
    for own, loss in second:
        weighed = [i * (2 if i < 10 else 1) for i in own]
        assert loss == pytest.approx(sum(weighed) / len(own))


def test_datacull_by_hand(tmp_path):
    """Ten classes of 40; one has losses of ln(10), the others none: it has as many as it holds.

    Shares are by roots of what they lose, and the nine lose nothing.
    """
    books = DataCull(400, 16, tmp_path)
    losses = torch.where(torch.arange(400) % CLASSES == 3, math.log(CLASSES), 0.0)
    first = a_pass(books, losses)
    assert sorted(i for own, _ in first for i in own) == list(range(400))
    assert len(books.file.read_text().splitlines()) == 400
    second = [i for own, _ in a_pass(books, losses) for i in own]
    assert sorted(second) == list(range(3, 400, CLASSES))
    # Of these alone it knows more now: they have lost it all, and the others nothing, as before.
    a_pass(books, torch.where(losses > 0, 0.0, 1.0))
    assert books.losses[::CLASSES].tolist() == [0.0] * 40


def test_datacull_draws_the_harder_ones(tmp_path):
    """Within a class an example of loss 2 is e times as likely as one of loss 1."""
    books = DataCull(4000, 100, tmp_path)
    hard_ones = torch.arange(4000) // CLASSES % 2 == 0
    a_pass(books, torch.where(hard_ones, 2.0, 1.0))
    chosen = torch.tensor([i for own in books.select() for i in own])
    assert len(chosen) == len(chosen.unique()) == 2000  # classes are alike: half of each
    share = float(hard_ones[chosen].float().mean())
    assert 0.6 < share < math.e / (1 + math.e)  # without replacement, less than the odds


def test_a_selection_is_measured():
    books = Taught(100, 8, hard())
    draw = torch.Generator().manual_seed(0)
    assert [select(books, draw).batches for _ in range(2)] == [13, 7]  # 100; half of them
    assert books.teacher.passes == 1


@pytest.fixture
def as_it_was():
    """Threads and the random state are the program's, which ends; here others follow."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng():
        yield
    torch.set_num_threads(threads)


@pytest.mark.usefixtures("as_it_was")
def test_it_runs(capsys):
    options = {
        "examples": 60, "batch_size": 8, "hidden": 4, "workers": 0, "rounds": 2, "batches": 3,
        "passes": 2,
    }  # fmt: skip
    main([word for name, value in options.items() for word in (f"--{name}", str(value))])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("N = 60, batches of 8, 0 workers")
    rows = [line.split(" | ") for line in lines if line.startswith("| ")]
    ways = ["teacher, hard", "teacher, infobatch", "InfoBatch's rule", "DataCull, RCAP"]
    assert [row[0][2:] for row in rows] == ["loop", "plain", *ways, "selection", *ways]
    assert all(float(row[at]) > 0 for row in rows[1:6] for at in (1, 3))
    assert rows[1][2] == "1.000 (1.000 to 1.000; 1.000 to 1.000)"
    assert all(float(row[3].removesuffix("% |")) > 0 for row in rows[7:])
