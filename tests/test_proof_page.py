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
    protocol = load(PROOF / "protocol.yaml")
    table = report.write(
        protocol.worlds,
        PROOF / "results",
        docs,
        readme=protocol.readme,
        earlier=protocol.earlier,
    )
    return (docs / "proof.md").read_text(), table


def test_the_page_is_what_the_results_say(written):
    page, _ = written
    assert page == (ROOT / "docs" / "proof.md").read_text()


def test_the_readme_has_the_same_table(written):
    _, table = written
    assert table.count("\n") > 2  # lines below the head
    assert f"\n\n{table}\n" in (ROOT / "README.md").read_text()


def test_the_pilots_page_is_what_its_results_say(tmp_path):
    shutil.copy(ROOT / "docs" / "pilot.md", tmp_path)
    protocol = load(PROOF / "pilot.yaml")
    assert report.write(protocol.worlds, PROOF / "results/pilot", tmp_path, "pilot") == ""
    assert (tmp_path / "pilot.md").read_text() == (ROOT / "docs" / "pilot.md").read_text()


def test_every_claim_was_made_under_the_protocol_that_is_kept():
    claimed = 0
    protocol = load(PROOF / "protocol.yaml")
    for name, world in (*protocol.worlds.items(), *protocol.earlier.items()):
        path = results_file(PROOF / "results", world)
        claims = [record for record in Store(path).records if record["stage"] == "claim"]
        assert {record["protocol"] for record in claims} <= {world.hash}, name
        assert not {record["commit"] for record in claims if "-changed" in record["commit"]}
        claimed += len(claims)
    assert claimed
