"""Each training command gives the same run in two processes as in one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from attent.pipeline.checkpoint import CheckpointFolder
from attent.pipeline.keys import differences, leaves
from tests.tasks.launched import main
from tests.tasks.test_language_cli import entries
from tests.tasks.test_launch_cli import done, torchrun

COMMANDS = ("segment", "depth", "classify", "pretrain", "instruct", "detect")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, Path]:
    """All of them by one process and by two: detection apart, whose steps may skip parameters."""
    alone, both = (tmp_path_factory.mktemp(name) for name in ("alone", "both"))
    for folder in (alone, both):
        (folder / "rows.json").write_text(json.dumps(entries()))
    main(alone, *COMMANDS)
    for names in (COMMANDS[:-1], COMMANDS[-1:]):
        done(torchrun(2, str(both), *names, module="tests.tasks.launched"))
    return alone, both


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_two_processes_carry_the_run_of_one(runs, name):
    one, two = (CheckpointFolder(f / name / "checkpoints").load_last()[0] for f in runs)
    for group in ("clock", "plan", "ledger"):
        assert differences(one[group], two[group]) == []
    assert torch.equal(one["mask"], two["mask"])
    for (path, x), (_, y) in zip(leaves(one["params"]), leaves(two["params"]), strict=True):
        assert float((x - y).norm() / x.norm().clamp_min(1e-2)) < 1e-3, path
    for (path, x), (_, y) in zip(leaves(one["metrics"]), leaves(two["metrics"]), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-3, atol=1e-4, equal_nan=True, msg=str(path))


@pytest.mark.slow
def test_only_the_main_process_writes(runs):
    """One line a tick, one file a selection, as one process leaves them."""
    for name in COMMANDS:
        folders = [f / name for f in runs]
        files = [sorted(p.relative_to(f) for p in f.rglob("*") if p.is_file()) for f in folders]
        assert files[0] == files[1], name
        lines = [(f / "log.jsonl").read_text().splitlines() for f in folders]
        assert len(lines[0]) == len(lines[1]), name
