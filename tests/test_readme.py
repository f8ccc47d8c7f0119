"""The README's code runs, and its commands are understood."""

import re
import shlex
from pathlib import Path

import pytest

from attent.tasks.cli import parser, rewritten

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(language):
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


@pytest.mark.slow
def test_python_blocks_run_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "readme"}
    code = blocks("python")
    assert len(code) == 5
    for block in code:
        exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "[False, True, False, True, False]" in printed
    assert "flowchart TD" in printed
    assert "held-out accuracy" in printed
    assert int(namespace["start"]["mask"].sum()) > 0
    assert len(namespace["Squares"]().fetch(namespace["torch"].tensor([3]))) == 1


def test_commands_are_understood(monkeypatch):
    monkeypatch.chdir(Path(__file__).parent.parent)
    text = "\n".join(blocks("bash")).replace("\\\n", " ")
    commands = [shlex.split(line, comments=True) for line in text.splitlines()]
    ours = [words[1:] for words in commands if words and words[0] == "attent"]
    assert {words[0] for words in ours} == {"classify", "plan", "resume", "report"}
    for words in ours:
        _, words = rewritten(words)
        assert parser().parse_args(words).command == words[0]


def test_make_targets_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    named = {
        line.split()[1]
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("make ")
    }
    assert named == {"run", "test"}
    assert all(f"\n{target}:" in makefile for target in named)
