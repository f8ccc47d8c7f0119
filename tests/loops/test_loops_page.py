"""The code of docs/loops.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.test_readme import blocks

PAGE = (Path(__file__).parent.parent.parent / "docs" / "loops.md").read_text()

# TRL's own default has, in transformers, a new name.
pytestmark = pytest.mark.filterwarnings(
    "ignore:`gradient_checkpointing` is deprecated and will be removed in v6:FutureWarning"
)


@pytest.mark.slow
def test_python_blocks_run_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "loops"}
    code = blocks("python", PAGE)
    assert len(code) == 3
    for block in code:
        exec(compile(block, "docs/loops.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert re.search(r"\d+% of the budget was spent, at last in passes of \d+%", printed)
    assert "100% of the budget is spent" in printed
    assert re.search(r"the hardest is '\d plus \d is'", printed)
