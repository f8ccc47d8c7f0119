"""The machinery of benchmarks.proof: protocol, jobs, results that outlive a kill, the report."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from benchmarks.proof import campaign, jobs, report, tuning, wording
from benchmarks.proof import job as job_module
from benchmarks.proof.__main__ import main
from benchmarks.proof.analysis import analyse
from benchmarks.proof.protocol import ProtocolError, World, load
from benchmarks.proof.store import Store
from tests import proof_fakes
from tests.proof_fakes import PROTOCOL

ROOT = Path(__file__).parent.parent
SMALL = """
worlds:
  digits:
    arms: [good]
    budgets: [0.5]
    lrs: [1e-3, 3e-3]
    tune_seeds: [0, 1]
    pilot_seeds: [0]
    claim_seeds: 100-101
    metric: accuracy
    margin: 0.005
"""
NUM_TUNE = 3 * 2 * 2
"""Trials of SMALL: full at 0.5 and 1, good at 0.5; two rates, two seeds."""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty repository with SMALL in it, not committed; the fakes write their log there."""
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    (tmp_path / "protocol.yaml").write_text(SMALL)
    monkeypatch.setenv("PROOF_LOG", str(tmp_path / "log"))
    return tmp_path


def commit(folder: Path) -> None:
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for command in (["add", "protocol.yaml"], [*name, "commit", "-q", "-m", "x"]):
        subprocess.run(["git", *command], cwd=folder, check=True)


def arguments(folder: Path, *words: str) -> list[str]:
    given = ["--protocol", folder / "protocol.yaml", "--results", folder / "results"]
    return [*words, *map(str, given), "--runner", "tests.proof_fakes:run_job"]


def proof(folder: Path, *words: str) -> int:
    return main(arguments(folder, *words))


def lines(path: Path) -> list:
    return [json.loads(line) for line in path.read_text().splitlines()]


def records(folder: Path) -> list[dict]:
    return lines(folder / "results/digits.jsonl")


def ran(folder: Path) -> list[list]:
    return lines(folder / "log")


def world(folder: Path, text: str = SMALL) -> World:
    (folder / "protocol.yaml").write_text(text)
    return load(folder / "protocol.yaml").worlds["digits"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("margin:", "margni:", r"worlds\.digits: unknown field 'margni': did you mean 'margin'"),
        ("    margin: 0.005\n", "", r"worlds\.digits: margin is missing"),
        ("claim_seeds: 100-101", "claim_seeds: 1-3", r"tune_seeds and claim_seeds share \[1\]"),
        ("pilot_seeds: [0]", "pilot_seeds: [101]", r"pilot_seeds and claim_seeds share \[101\]"),
        ("[1e-3, 3e-3]", "[1e-3, 0.001]", r"digits\.lrs: one is given twice"),
        ("[1e-3, 3e-3]", "[1e-3, fast]", r"digits\.lrs: a number is expected, not 'fast'"),
        ("[1e-3, 3e-3]", "[]", r"digits\.lrs: at least one"),
        ("arms: [good]", "arms: [good, full]", r"'full' is always run"),
        ("arms: [good]", "arms: good", r"digits\.arms: a list is expected"),
        ("budgets: [0.5]", "budgets: [1.5]", r"digits\.budgets: shares in \(0, 1\]"),
        ("[0.5]", "[0.5]\n    baseline_budgets: [1]", r"\[0\.5\] missing"),
        ("metric: accuracy", "metric: accuracy\n    metric: loss", r"'metric' is given twice"),
        ("metric: accuracy", "metric: accuracy\n    headline: best", r"'best' is none of the arms"),
        ("claim_seeds: 100-101", "claim_seeds: few", r"a list of seeds or a range"),
        ("margin: 0.005", "margin: 0", r"lrs and margin are above 0"),
        ("worlds:", "world:", r"a mapping with 'worlds'"),
        ("worlds:", "readme: {digit: [good]}\nworlds:", r"readme: unknown field 'digit': did you"),
        ("worlds:", "readme: {digits: [best]}\nworlds:", r"readme\.digits: \['best'\] are none of"),
        ("worlds:", "readme: [good]\nworlds:", r"readme: world: \[arms\] is expected"),
    ],
)
def test_a_wrong_protocol_is_refused_with_its_place(tmp_path, old, new, message):
    assert SMALL.count(old) == 1
    with pytest.raises(ProtocolError, match=message) as error:
        world(tmp_path, SMALL.replace(old, new))
    assert str(tmp_path / "protocol.yaml") in str(error.value)


def test_two_worlds_do_not_share_a_results_file(tmp_path):
    second = SMALL.split("worlds:\n")[1].replace("digits:", "other:\n    results: digits")
    with pytest.raises(ProtocolError, match="two worlds keep their results under 'digits'"):
        world(tmp_path, SMALL + second)


def test_defaults_hold_unless_a_world_says_otherwise_and_change_its_hash(tmp_path):
    before = world(tmp_path)
    after = world(tmp_path, "defaults: {percent: true, margin: 7}\n" + SMALL)
    assert (after.percent, after.margin) == (True, 0.005)
    assert before.hash != after.hash
    assert before.baseline_budgets == (0.5, 1.0)
    assert before.claim_seeds == (100, 101)
    assert before.lrs == (1e-3, 3e-3)


def test_a_list_among_the_arms_stands_for_its_items(tmp_path):
    nested = PROTOCOL.replace(
        "[random, good, harmful, thirsty]", "[[random, good], harmful, thirsty]"
    )
    assert world(tmp_path, nested).arms == world(tmp_path, PROTOCOL).arms


def test_the_protocol_that_is_committed_can_be_read():
    assert load(ROOT / "benchmarks/proof/protocol.yaml").worlds


def claimed(folder: Path, there: World) -> Store:
    """Results of every run of a world's tuning and claim."""
    store = Store(folder / f"results/{there.results}.jsonl", write=True)
    runs = jobs.runs_at("claim", there, dict.fromkeys(jobs.cells(there), 3e-3))
    for job in [*runs, *jobs.tune_jobs(there)]:
        made = {"status": "ok", **proof_fakes.record(job)}
        store.append(campaign.made_record(job, made, there))
    store.close()
    return store


def test_another_baseline_is_what_all_is_held_against(tmp_path):
    other = PROTOCOL.replace(
        "arms: [random, good, harmful, thirsty]", "baseline: good\n    arms: [full]"
    )
    there = world(tmp_path, other.replace("headline: good", "headline: full"))
    assert there.all_arms == ("good", "full")
    assert there.budgets_of("good") == (0.4, 0.6, 0.8, 1.0)
    assert there.budgets_of("full") == (0.4, 0.6, 0.8)
    found = analyse(there, claimed(tmp_path, there))
    against = found.cells["full", 0.6].against_full
    assert against is not None
    # 0.05 of accuracy for the whole budget, 0.012 that "good" adds.
    assert against.difference.value == pytest.approx(-0.4 * 0.05 - 0.012, abs=0.005)
    assert found.cells["good", 0.6].against_short is None
    assert found.saved["good"].against_full.value == pytest.approx(0.1, abs=0.05)  # by the margin
    table = report.write({"digits": there}, tmp_path / "results", tmp_path)
    assert "*Full* stands for **good** here" in (tmp_path / "proof.md").read_text()
    assert "| digits, full being good | full |" in table


def test_arms_at_the_whole_budget_are_compared_and_said_to_save_nothing(tmp_path):
    text = PROTOCOL.replace("[0.4, 0.6, 0.8, 1.0]", "[1.0]").replace("[0.4, 0.6, 0.8]", "[1.0]")
    there = world(tmp_path, text.replace("lrs: [1e-3, 3e-3, 1e-2]", "lrs: [3e-3]"))
    assert not there.shortens
    found = analyse(there, claimed(tmp_path, there))
    assert found.saved == {}
    against = found.cells["good", 1.0].against_short
    assert against is not None
    assert against.difference.value == pytest.approx(0.012, abs=0.003)
    shown = {"digits": ["good", "harmful"]}
    table = report.write({"digits": there}, tmp_path / "results", tmp_path, readme=shown)
    page = (tmp_path / "proof.md").read_text()
    assert "Quality at equal budget" in page
    assert "Budget saved at full's quality" not in page
    assert ".png" not in page
    short = page[page.index("### In short") : page.index("### digits")].strip().splitlines()
    assert "at budget 1" in short[2]
    rows = short[4:]
    assert [row.split(" | ")[1] for row in rows] == ["random", "good", "harmful", "thirsty"]
    assert " better | yes (" in rows[1]
    assert " worse | no (" in rows[2]
    assert all(row.endswith(" | 10 |") for row in rows)
    _, _, good, harmful = table.splitlines()
    assert good.startswith("| digits | good | 1 | ")
    assert "] better | yes (" in good
    assert harmful.startswith("| digits | harmful | 1 | ")
    assert "] worse | no (" in harmful
    assert "; power " in harmful
    assert harmful.endswith(") |  |  |")  # it is not run shorter


def test_arms_at_one_shorter_budget_are_said_to_be_there_or_not(tmp_path):
    text = PROTOCOL.replace("[0.4, 0.6, 0.8]", "[0.8]").replace("margin: 0.005", "margin: 0.003")
    text = text.replace("lrs: [1e-3, 3e-3, 1e-2]", "lrs: [3e-3]")
    there = world(tmp_path, text)
    claimed(tmp_path, there)
    report.write({"digits": there}, tmp_path / "results", tmp_path)
    page = (tmp_path / "proof.md").read_text()
    # Full gains 0.01 from 0.8 to 1; the good arm has 0.012 more than full of the same budget.
    assert "run at 0.8 of the budget, and there good is at full's quality at 1" in page
    assert (tmp_path / "proof/digits.png").read_bytes().startswith(b"\x89PNG")
    assert "savings.png" not in page


def test_the_pilot_has_a_page_of_its_own_with_all_arms_in_one_table(tmp_path):
    text = PROTOCOL.replace("[0.4, 0.6, 0.8]", "[0.6]").replace("[1e-3, 3e-3, 1e-2]", "[3e-3]")
    there = world(tmp_path, text.replace("tune_seeds: 0-1", "tune_seeds: []\n    pilot_seeds: 0-2"))
    store = Store(tmp_path / "results/digits.jsonl", write=True)
    own = {}
    for job in jobs.runs_at("pilot", there, dict.fromkeys(jobs.cells(there), 3e-3)):
        made = {"status": "ok", **proof_fakes.record(job)}
        own[job.arm, job.budget, job.seed] = made["test"]["accuracy"]
        if job.arm == "thirsty":
            made = {"status": "failed", "why": "ValueError: no"}
        store.append(campaign.made_record(job, made, there))
    store.close()
    assert report.write({"digits": there}, tmp_path / "results", tmp_path, "pilot") == ""
    page = (tmp_path / "pilot.md").read_text()
    assert "Pilot runs: recipes were looked for on them." in page
    less = 100 * np.array([own["good", 0.6, seed] - own["full", 0.6, seed] for seed in range(3)])
    assert f"| good | {less.mean():+.2f} ± {less.std(ddof=1) / 3**0.5:.2f} |" in page
    assert "| thirsty | failed |" in page
    assert "All at a learning rate of 0.003." in page
    assert "](pilot/digits.png)" in page
    assert (tmp_path / "pilot/digits.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("last", "lines"), [(104, 0), (105, 1)])
def test_a_line_in_the_readme_has_seeds_enough_for_a_test(tmp_path, last, lines):
    text = PROTOCOL.replace("100-109", f"100-{last}").replace("[0.4, 0.6, 0.8]", "[0.4, 1.0]")
    there = world(tmp_path, text.replace("[0.4, 0.6, 0.8, 1.0]", "[0.4, 1.0]"))
    claimed(tmp_path, there)
    table = report.write({"digits": there}, tmp_path / "results", tmp_path)
    assert table.count("| digits | good |") == lines
    assert "| harmful |" not in table  # it is not the headline
    page = (tmp_path / "proof.md").read_text()
    short = page.partition("### digits")[0]
    assert short.count("| digits | good |") == 2 * lines  # what is saved, and at the whole budget
    assert short.count("| digits | harmful |") == lines


def test_what_was_claimed_again_stands_side_by_side(tmp_path):
    first, rest = PROTOCOL.strip().removeprefix("worlds:\n"), PROTOCOL.strip()
    again = rest.replace("digits:", "digits-fresh:").replace("100-109", "120-129")
    again = again.replace("[0.4, 0.6, 0.8]", "[0.4, 0.6, 1.0]")
    path = tmp_path / "protocol.yaml"
    path.write_text(f"{again}\nearlier:\n{first}\n")
    protocol = load(path)
    found = {
        there.name: analyse(there, claimed(tmp_path, there))
        for there in (*protocol.worlds.values(), *protocol.earlier.values())
    }
    report.write(protocol.worlds, tmp_path / "results", tmp_path, earlier=protocol.earlier)
    page = (tmp_path / "proof.md").read_text()
    lines = page.partition("### Claimed more than once")[2].partition("![")[0].strip().splitlines()
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[4:]]
    both = (("digits", range(100, 110)), ("digits-fresh", range(120, 130)))
    # At 0.4 and 0.6 they are of both claims, and stand at the larger; 0.8 and 1 are of one alone.
    assert [line[:4] for line in table] == [
        ["digits", arm, "0.6", f"{min(seeds)} to {max(seeds)}"]
        for arm in found["digits"].world.arms
        for _, seeds in both
    ]
    for (name, seeds), line in zip(
        both, (line for line in table if line[1] == "good"), strict=True
    ):
        less = 100 * np.mean([own(name, "good", seed) - own(name, "full", seed) for seed in seeds])
        saved = found[name].saved["good"]
        assert line[4].startswith(f"{less:+.2f} [")
        assert line[4].endswith("] better")
        assert line[5] == wording.not_worse(found[name].cells["good", 0.6])
        assert line[6].startswith(f"{100 * saved.against_full.value:.0f} [")
        assert line[7].startswith(f"{100 * saved.against_short.value:.0f} [")


def test_claims_at_budgets_of_their_own_are_no_claim_made_again(tmp_path):
    first = PROTOCOL.strip().removeprefix("worlds:\n").replace("[0.4, 0.6, 0.8]", "[0.8]")
    again = PROTOCOL.strip().replace("digits:", "digits-fresh:").replace("100-109", "120-129")
    path = tmp_path / "protocol.yaml"
    path.write_text(f"{again.replace('[0.4, 0.6, 0.8]', '[0.4, 0.6]')}\nearlier:\n{first}\n")
    protocol = load(path)
    for there in (*protocol.worlds.values(), *protocol.earlier.values()):
        claimed(tmp_path, there)
    report.write(protocol.worlds, tmp_path / "results", tmp_path, earlier=protocol.earlier)
    assert "### Claimed more than once" not in (tmp_path / "proof.md").read_text()


def own(name: str, arm: str, seed: int) -> float:
    """The accuracy at 0.6 of the budget that a synthetic run has."""
    job = jobs.Job(stage="claim", world=name, arm=arm, budget=0.6, lr=3e-3, seed=seed)
    return proof_fakes.record(job)["test"]["accuracy"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ("earlier: [digits]", "earlier: a mapping"),
        ("earlier: {digits-old: {}}", "earlier.digits-old: arms is missing"),
        (
            "earlier: {digits-old: {results: digits, arms: [random], budgets: [1], lrs: [1], "
            "tune_seeds: [], claim_seeds: [1], metric: loss, margin: 1}}",
            "two worlds keep their results under 'digits'",
        ),
    ],
)
def test_earlier_protocols_are_checked_as_all_are(tmp_path, more, said):
    path = tmp_path / "protocol.yaml"
    path.write_text(f"{PROTOCOL}\n{more}\n")
    with pytest.raises(ProtocolError, match=re.escape(said)):
        load(path)


def test_a_part_of_a_world_is_run_in_that_world(monkeypatch):
    asked = []
    monkeypatch.setattr(job_module, "world_of", lambda name, seed, size: asked.append(name))
    monkeypatch.setattr(job_module, "record_of", lambda *args, **kwargs: {})
    for name in ("digits", "digits-prior"):
        job_module.run_job(jobs.Job(stage="claim", world=name, arm="full", budget=1, lr=1, seed=0))
    assert asked == ["digits", "digits"]


def test_every_arm_has_the_same_trials_and_any_beginning_is_balanced(tmp_path):
    trials = jobs.tune_jobs(world(tmp_path))
    assert len(trials) == NUM_TUNE == len({job.key for job in trials})
    assert [job.seed for job in trials] == [0] * 6 + [1] * 6
    cells = [("full", 0.5), ("full", 1.0), ("good", 0.5)]
    assert [(job.arm, job.budget) for job in trials[:6:2]] == cells
    assert {job.lr for job in trials[::2]} == {1e-3}
    both = jobs.interleave([trials, jobs.runs_at("claim", world(tmp_path), {("good", 0.5): 1.0})])
    assert [job.seed for job in both] == [0] * 6 + [100] + [1] * 6 + [101]


def trial(arm: str, lr: float, seed: int, value: float | None) -> dict:
    found = {"stage": "tune", "arm": arm, "budget": 0.5, "lr": lr, "seed": seed}
    if value is None:
        return {**found, "status": "failed"}
    return {**found, "status": "ok", "val": {"accuracy": value}}


def test_the_rate_with_the_best_mean_is_chosen(tmp_path):
    there = world(tmp_path)
    # 1e-3: 0.8; 3e-3: 0.75, though it has the best single trial.
    found = [trial("good", lr, seed, v) for lr, seed, v in [(1e-3, 0, 0.8), (1e-3, 1, 0.8)]]
    found += [trial("good", lr, seed, v) for lr, seed, v in [(3e-3, 0, 0.9), (3e-3, 1, 0.6)]]
    choice = tuning.choose(there, found)["good", 0.5]
    assert (choice.lr, choice.missing, choice.at_edge) == (1e-3, 0, True)
    assert choice.means == {1e-3: pytest.approx(0.8), 3e-3: pytest.approx(0.75)}
    assert tuning.rates(there, found[:3]) == {}  # a trial is missing
    found[0] = trial("good", 1e-3, 0, None)
    assert tuning.rates(there, found) == {("good", 0.5): 3e-3}
    found[2] = trial("good", 3e-3, 0, None)
    assert tuning.rates(there, found) == {}
    falling = world(tmp_path, SMALL + "    higher_is_better: false\n")
    found = [trial("good", lr, seed, lr) for lr in (1e-3, 3e-3) for seed in (0, 1)]
    assert tuning.rates(falling, found) == {("good", 0.5): 1e-3}
    assert tuning.rates(there, found) == {("good", 0.5): 3e-3}


def test_a_run_is_recorded_once_and_a_failed_one_again_as_its_next_attempt(tmp_path):
    path = tmp_path / "r.jsonl"
    key = {"stage": "tune", "world": "w", "arm": "a", "budget": 0.5, "lr": 0.1, "seed": 0}
    store = Store(path, write=True)
    store.append({**key, "status": "failed"})
    with pytest.raises(ValueError, match="is in the results already"):
        store.append({**key, "status": "ok"})
    store.append({**key, "status": "ok", "attempt": 2})
    with pytest.raises(ValueError, match="is in the results already"):
        store.append({**key, "status": "ok", "attempt": 3})
    with pytest.raises(ValueError, match="another process is writing"):
        Store(path, write=True)
    store.close()
    with path.open("a") as file:
        file.write('{"stage": "tu')  # cut short
    assert [r["status"] for r in Store(path).records] == ["failed", "ok"]
    store = Store(path, write=True)
    store.append({**key, "seed": 1, "status": "ok"})
    store.close()
    assert [r["seed"] for r in Store(path).records] == [0, 0, 1]
    path.write_text(path.read_text() * 2)
    with pytest.raises(ValueError, match=r"r\.jsonl, line 4: .*is in the results already"):
        Store(path)


def test_faults_of_runs_are_recorded_and_run_again_only_if_asked(folder, monkeypatch):
    monkeypatch.setenv("PROOF_RAISE", "0")
    monkeypatch.setenv("PROOF_DIE", "1")
    assert proof(folder, "tune") == 0
    assert len(records(folder)) == NUM_TUNE
    assert {(r["seed"], r["status"]) for r in records(folder)} == {(0, "failed"), (1, "failed")}
    whys = {r["seed"]: r["why"] for r in records(folder)}
    assert whys[0].startswith("RuntimeError: seed 0 is not to my taste (proof_fakes.py, line ")
    assert whys[1] == "its process died (exit status 7)"
    monkeypatch.delenv("PROOF_RAISE")
    monkeypatch.setenv("PROOF_DIE", "none")
    monkeypatch.setenv("PROOF_NAN", "1")
    assert proof(folder, "tune") == 0
    assert len(records(folder)) == NUM_TUNE
    assert proof(folder, "tune", "--retry", "--arms", "good") == 0
    again = records(folder)[NUM_TUNE:]
    assert {(r["arm"], r["seed"], r["status"], r["attempt"]) for r in again} == {
        ("good", 0, "ok", 2),
        ("good", 1, "failed", 2),
    }
    assert {r["why"] for r in again if r["seed"]} == {"test.accuracy is not a finite number: None"}
    assert {line[-1] for line in ran(folder)} == {"1"}  # OMP_NUM_THREADS


def test_a_missing_package_ends_the_command_and_is_no_result(folder, capsys, monkeypatch):
    monkeypatch.setenv("PROOF_MISSING", "1")
    assert proof(folder, "tune", "--workers", "1") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "no job of digits can be run: of nothing, which is not installed" in said
    assert {r["status"] for r in records(folder)} == {"ok"}  # those before the first that needs it


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_stopped_command_goes_on_where_it_was(folder, number):
    command = [sys.executable, "-m", "benchmarks.proof", *arguments(folder, "tune")]
    first = subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, "PROOF_WAIT": "0.25"},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    results = folder / "results/digits.jsonl"
    while not results.is_file() or len(results.read_text().splitlines()) < 3:
        assert first.poll() is None
        time.sleep(0.02)
    first.send_signal(number)
    said = first.communicate()[1]
    before = records(folder)
    assert 3 <= len(before) < NUM_TUNE
    if number != signal.SIGKILL:
        assert first.returncode == 130
        assert "call it again to go on" in said
    assert proof(folder, "tune", "--workers", "1") == 0
    after = records(folder)
    assert after[: len(before)] == before
    assert len(after) == NUM_TUNE == len({jobs.key_of(r) for r in after})
    # What was in the results was not run again: only the two that were under way were lost.
    assert NUM_TUNE <= len(ran(folder)) <= NUM_TUNE + 2


def test_a_claim_needs_a_committed_protocol_that_stays(folder, capsys):
    assert proof(folder, "tune") == 0
    assert proof(folder, "claim") == 2
    assert "is not committed" in " ".join(capsys.readouterr().err.split())
    commit(folder)
    there = folder / "protocol.yaml"
    there.write_text(SMALL + "# a word more\n")
    assert proof(folder, "claim") == 2
    assert "differs from the last commit" in " ".join(capsys.readouterr().err.split())
    there.write_text(SMALL)
    assert proof(folder, "claim") == 0
    claims = [r for r in records(folder) if r["stage"] == "claim"]
    assert len(claims) == 2 * 3
    assert {r["lr"] for r in claims} == {3e-3}  # the best of the fakes
    assert {r["protocol"] for r in claims} == {world(folder).hash}
    there.write_text(SMALL.replace("margin: 0.005", "margin: 0.01"))
    commit(folder)
    assert proof(folder, "claim") == 2
    assert "needs a new name of its results" in " ".join(capsys.readouterr().err.split())
    there.write_text(there.read_text() + "    results: digits-2\n")
    commit(folder)
    assert proof(folder, "claim") == 0
    assert "6 runs wait for tuning" in " ".join(capsys.readouterr().err.split())
    assert (folder / "results/digits-2.jsonl").read_text() == ""
    assert len(records(folder)) == NUM_TUNE + 6


def test_a_claim_goes_on_with_the_code_that_began_it(folder, capsys, monkeypatch):
    commit(folder)
    assert proof(folder, "tune") == 0
    monkeypatch.setenv("PROOF_RAISE", "101")  # of three runs each, one fails
    assert proof(folder, "claim") == 0
    own = campaign.code_digest()
    assert {r["code"] for r in records(folder)} == {own}
    monkeypatch.delenv("PROOF_RAISE")
    monkeypatch.setattr(campaign, "code_digest", lambda: "other")
    assert proof(folder, "claim", "--retry") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"was begun with code {own}, and this is other" in said
    assert "--other-code" in said
    assert proof(folder, "claim", "--retry", "--other-code") == 0
    assert records(folder)[-1]["code"] == "other"
    (folder / "docs").mkdir()
    assert proof(folder, "report", "--docs", str(folder / "docs")) == 0
    assert "Not all of these runs are of the same code" in (folder / "docs/proof.md").read_text()


def test_the_digest_of_the_code_is_of_what_its_files_say(tmp_path, monkeypatch):
    monkeypatch.setattr(campaign, "CODE", [tmp_path])
    (tmp_path / "a.py").write_text("x = 1\n")
    first = campaign.code_digest()
    assert campaign.code_digest() == first
    (tmp_path / "notes.md").write_text("of no matter")
    assert campaign.code_digest() == first
    (tmp_path / "a.py").write_text("x = 2\n")
    assert campaign.code_digest() != first
    (tmp_path / "a.py").rename(tmp_path / "b.py")
    assert campaign.code_digest() != first


def test_tuning_does_not_change_after_the_claim_began(folder):
    there = world(folder)
    commit(folder)
    protocol = load(folder / "protocol.yaml")
    store = Store(folder / "r.jsonl", write=True)
    for job in jobs.tune_jobs(there):
        store.append(campaign.made_record(job, {"status": "ok", **proof_fakes.record(job)}, there))
    late = jobs.runs_at("claim", there, {("good", 0.5): 1e-3})[0]
    campaign.check_claim(protocol, there, store)
    store.append(campaign.made_record(late, {"status": "failed", "why": "?"}, there))
    with pytest.raises(ValueError, match=r"claimed at lr 0\.001, and tuning now says 0\.003"):
        campaign.check_claim(protocol, there, store)
    store.close()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["tune", "--worlds", "moon"], "--worlds: 'moon' is none of ['digits']"),
        (["tune", "--arms", "best"], "--arms: 'best' is none of ['full', 'good']"),
        (["tune", "--workers", "0"], "--workers is at least 1"),
        (["tune", "--runner", "tests.no_such:run"], "no job can be run: tests.no_such:run: Module"),
        (["report", "--stage", "pilot"], "give --docs"),
    ],
)
def test_a_wrong_command_is_told(folder, capsys, words, message):
    given = arguments(folder, words[0])
    assert main([*given, *words[1:]]) == 2
    assert message in capsys.readouterr().err


def test_status_says_what_is_left_and_a_limit_begins_nothing_more(folder, capsys):
    assert proof(folder, "tune", "--limit-minutes", "1e-9") == 0
    assert records(folder) == []
    assert proof(folder, "tune", "--arms", "good") == 0
    assert proof(folder, "status") == 0
    rows = [line.split("│")[1:-1] for line in capsys.readouterr().out.splitlines() if "│" in line]
    said = {row[1].strip(): [cell.strip() for cell in row[2:5]] for row in rows}
    assert said["tune"] == ["4", "0", "8"]
    assert said["claim"] == ["0", "0", "2 + 4 not tuned"]


def test_what_is_left_takes_as_long_as_its_like():
    def run(arm: str, budget: float, seconds: float | None = None) -> dict:
        return {"world": "w", "arm": arm, "budget": budget, "status": "ok", "wall_seconds": seconds}

    def job(arm: str, budget: float, of: str = "w") -> jobs.Job:
        return jobs.Job(stage="tune", world=of, arm=arm, budget=budget, lr=0.1, seed=9)

    done = [run("a", 0.5, 10.0), run("a", 0.5, 20.0), run("b", 1.0, 30.0)]
    # a at 0.5: 15; b at 0.5: half of the mean of 20, 40 and 30.
    assert campaign.seconds_left([job("a", 0.5), job("b", 0.5)], done) == pytest.approx(15 + 15)
    assert campaign.seconds_left([job("a", 0.5, "other")], done) is None
    assert campaign.seconds_left([], done) == 0


@pytest.fixture(scope="module")
def reported(tmp_path_factory) -> tuple[Path, str]:
    """The report of synthetic claims of which one arm has a failed seed, and the README's table."""
    folder = tmp_path_factory.mktemp("reported")
    there = world(folder, PROTOCOL)
    store = Store(folder / "results/digits.jsonl", write=True)
    all_jobs = jobs.tune_jobs(there)
    for stage in range(2):
        if stage:
            all_jobs = jobs.runs_at("claim", there, tuning.rates(there, store.records))
        for job in all_jobs:
            made = {"status": "ok", **proof_fakes.record(job)}
            if (job.arm, job.seed) == ("harmful", 103):
                made = {"status": "failed", "why": "ValueError: a | b"}
            store.append({**campaign.made_record(job, made, there), "commit": "abc"})
    store.close()
    docs = folder / "docs"
    docs.mkdir()
    (docs / "proof.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    table = report.write({"digits": there}, folder / "results", docs)
    return docs, table


def test_the_report_says_what_the_records_say(reported):
    docs, table = reported
    page = (docs / "proof.md").read_text()
    assert page.startswith(f"before\n{report.BEGIN}\n")
    assert page.endswith(f"{report.END}\nafter\n")
    assert "old" not in page
    assert "160 of 160 runs" in page
    rows = {
        (cells[1], cells[2].strip("*")): cells
        for cells in ([c.strip() for c in line.split("|")] for line in page.splitlines())
        if len(cells) > 10
    }
    mean = sum(
        proof_fakes.record(job)["test"]["accuracy"]
        for job in jobs.runs_at("claim", world(docs, PROTOCOL), {("good", 0.6): 3e-3})
    )
    assert rows["0.6", "good"][3].startswith(f"{10 * mean:.2f} [")
    assert rows["0.6", "good"][5].endswith("better")
    assert rows["0.6", "harmful"][5].endswith("worse")
    assert not rows["0.6", "random"][5].endswith(("better", "worse"))
    assert rows["0.8", "good"][7].startswith("yes")
    assert rows["0.4", "random"][7].startswith("no")
    assert 0.8 < float(rows["0.4", "full"][8]) < 1  # the power of that
    assert rows["1", "full"][8] == ""
    assert rows["0.4", "harmful"][12] == "9, 1 failed"
    assert "**For other examples than these**" in page
    (wider,) = [line for line in page.splitlines() if line.startswith("| **good** | +")]
    assert wider.count("[") == 3 + 2  # budgets, and both savings
    assert "| claim | harmful | 0.4 | 0.003 | 103 | ValueError: a \\| b |" in page
    assert "Spent over 1 % more than their budget: thirsty at 0.4: 0.420" in page
    assert "| harmful | over 0.80 | not reached | not reached | 0 % | 9 |" in page
    assert "| digits | good |" in table
    for name in ("digits", "savings"):
        assert (docs / "proof" / f"{name}.png").read_bytes().startswith(b"\x89PNG")


def test_the_report_is_the_same_every_time_and_needs_its_marks(reported):
    docs, table = reported
    there = {"digits": world(docs.parent, PROTOCOL)}
    before = (docs / "proof.md").read_text()
    assert report.write(there, docs.parent / "results", docs) == table
    assert (docs / "proof.md").read_text() == before
    other = docs.parent / "other"
    other.mkdir()
    (other / "proof.md").write_text("a page without marks")
    with pytest.raises(ValueError, match="are needed once each"):
        report.write(there, docs.parent / "results", other)
    changed = {"digits": world(docs.parent, PROTOCOL.replace("0.005", "0.01"))}
    with pytest.raises(ValueError, match="has claims under protocol"):
        report.write(changed, docs.parent / "results", docs)
