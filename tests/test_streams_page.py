"""The code of docs/streams.md runs, and what it says of costs is what plans say."""

from __future__ import annotations

import re

import pytest

from attent.pipeline import online_plan, threshold_plan
from tests.pages import ROOT, run_python

PAGE = (ROOT / "docs" / "streams.md").read_text()


@pytest.mark.slow
def test_python_blocks_run_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace = run_python("docs/streams.md", 4)
    printed = capsys.readouterr().out
    # 1,024 examples are two passes over 64 of each of eight windows of 256.
    assert "2,048 examples of the stream were looked at" in printed
    share = re.search(r"(\d\.\d\d) of the stream was trained on", printed)
    assert share
    assert float(share[1]) == pytest.approx(0.3, abs=0.07)
    seen = set(namespace["rows"]["index"].tolist())
    assert seen <= set(namespace["mask"].nonzero().flatten().tolist())


def test_the_costs_are_those_of_the_plans():
    assert "1 + 3 r against 3" in PAGE
    for ratio in (0.1, 0.3, 0.6):
        expected = 1 - (1 + 3 * ratio) / 3
        assert online_plan(1000, 300_000, ratio=ratio).saving == pytest.approx(expected, abs=1e-3)
        assert threshold_plan(10, 300_000, ratio=ratio).saving == pytest.approx(expected, abs=1e-3)
    assert "below r = 2/3; with m passes as soon as 3 m (1 - r) > 1" in PAGE
    for passes, pays, not_yet in ((1, 0.66, 0.67), (2, 0.83, 0.84), (5, 0.93, 0.94)):
        assert online_plan(10_000, 10**6, ratio=pays, interval=passes).warnings() == []
        assert len(online_plan(10_000, 10**6, ratio=not_yet, interval=passes).warnings()) == 1
