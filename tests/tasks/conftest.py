from __future__ import annotations

from pathlib import Path

import pytest

from attent.tasks import cli


@pytest.fixture
def attent(tmp_path, monkeypatch, capsys):
    """Run a command in this process, in an empty folder: (exit status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def attent(*argv: str | Path) -> tuple[int, str, str]:
        status = cli.main([str(word) for word in argv])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return attent
