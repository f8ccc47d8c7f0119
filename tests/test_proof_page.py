"""docs/proof.md says what the results that are kept with the code say."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.proof import report
from benchmarks.proof.campaign import results_file
from benchmarks.proof.protocol import load
from benchmarks.proof.store import Store

ROOT = Path(__file__).parent.parent
PROOF = ROOT / "benchmarks" / "proof"


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> tuple[str, str]:
    """The page as the results have it, and the README's table."""
    docs = tmp_path_factory.mktemp("docs")
    shutil.copy(ROOT / "docs" / "proof.md", docs)
    worlds = load(PROOF / "protocol.yaml").worlds
    table = report.write(worlds, PROOF / "results", docs)
    return (docs / "proof.md").read_text(), table


def test_the_page_is_what_the_results_say(written):
    page, _ = written
    assert page == (ROOT / "docs" / "proof.md").read_text()


def test_the_readme_has_the_same_tables(written):
    _, tables = written
    readme = (ROOT / "README.md").read_text()
    for table in tables.split("\n\n"):
        assert table.count("\n") > 2  # a line a world below the head
        assert table.strip() in readme


def test_every_claim_was_made_under_the_protocol_that_is_kept():
    claimed = 0
    for name, world in load(PROOF / "protocol.yaml").worlds.items():
        path = results_file(PROOF / "results", world)
        claims = [record for record in Store(path).records if record["stage"] == "claim"]
        assert {record["protocol"] for record in claims} <= {world.hash}, name
        assert not {record["commit"] for record in claims if "-changed" in record["commit"]}
        claimed += len(claims)
    assert claimed
