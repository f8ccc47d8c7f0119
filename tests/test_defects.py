"""docs/defects.md names tests that exist."""

import ast
import re
from pathlib import Path

TESTS = Path(__file__).parent


def test_every_named_test_exists():
    page = (TESTS.parent / "docs" / "defects.md").read_text()
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", page)
    assert len(named) > 20
    for file, name in named:
        tree = ast.parse((TESTS / file).read_text())
        found = {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        assert name in found, f"{file} has no {name}"
