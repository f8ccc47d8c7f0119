"""The code of pages of the documentation, run as a reader runs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.test_readme import blocks

ROOT = Path(__file__).parent.parent


def run_python(page: str, count: int) -> dict[str, Any]:
    """What names stand for after a page's Python blocks were run in order.

    Args:
        page: its file, from the top of the repository.
        count: of its blocks, so that none is passed over.
    """
    code = blocks("python", (ROOT / page).read_text())
    assert len(code) == count
    namespace: dict[str, Any] = {"__name__": "page"}
    for block in code:
        exec(compile(block, page, "exec"), namespace)
    return namespace
