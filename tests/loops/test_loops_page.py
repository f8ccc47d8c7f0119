"""The code of docs/loops.md runs."""

from __future__ import annotations

import re

import pytest

from tests.pages import run_python

# TRL's own default has, in transformers, a new name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing` is deprecated and will be removed in v6:FutureWarning"
)


@pytest.mark.slow
def test_python_blocks_run_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_python("docs/loops.md", 3)
    printed = capsys.readouterr().out
    assert re.search(r"\d+% of the budget was spent, at last in passes of \d+%", printed)
    assert "100% of the budget is spent" in printed
    assert re.search(r"the hardest is '\d plus \d is'", printed)
