"""The code of docs/lightning.md runs, and what it says of its run is so."""

from __future__ import annotations

import logging
import re

import pytest
import torch

from tests.pages import run_python


@pytest.mark.slow
# Lightning 2.6 asks torch 2.15 for leaves in a way that it would rather not have.
@pytest.mark.filterwarnings(r"ignore:`isinstance\(treespec, LeafSpec\)` is deprecated")
# Its advice, by the machine that it finds and by what is not given here.
@pytest.mark.filterwarnings("ignore:The 'val_dataloader' does not have many workers")
@pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used")
def test_python_blocks_run_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.manual_seed(0)
    namespace = run_python("docs/lightning.md", 2)
    printed = capsys.readouterr().out
    found = re.search(r"(\d+) steps in (\d+) passes", printed)
    assert found
    # Passes end with a batch that is not full: as many batches as 8 epochs, or a few more.
    steps, passes = int(found[1]), int(found[2])
    assert 240 <= steps <= 240 + passes
    assert passes > 8
    accuracy = re.search(r"accuracy (\d\.\d\d)", printed)
    assert accuracy
    assert float(accuracy[1]) > 0.9
    assert f"went on from step 100 to step {steps}" in printed
    # A schedule of the budget ends where it does: 3e-3 * (1 - 0.9).
    rate = namespace["trainer"].optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(3e-4)
