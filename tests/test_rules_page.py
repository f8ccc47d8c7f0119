"""The code of docs/rules.md runs, and its tables are of what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import attent.pipeline as ap
from tests.test_readme import blocks

PAGE = (Path(__file__).parent.parent / "docs" / "rules.md").read_text()


@pytest.mark.slow
def test_the_code_runs(capsys):
    (code,) = blocks("python", PAGE)
    exec(compile(code, "docs/rules.md", "exec"), {"__name__": "rules"})
    # Three epochs of 1,437, and nothing is forwarded without being trained on.
    assert capsys.readouterr().out == "4,311 examples, 0 only scored\n"


def test_the_tables_name_what_there_is_and_all_of_it():
    named = set(re.findall(r"^\| `(\w+)", PAGE, re.M))
    missing = {name for name in named if not hasattr(ap, name)}
    assert not missing
    rules = {
        name
        for name in ap.__all__
        if callable(getattr(ap, name)) and getattr(ap, name).__annotations__.get("return") == "Rule"
    }
    assert rules <= named
