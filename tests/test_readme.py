"""The README's code runs, and its commands are understood."""

import re
import shlex
import warnings
from pathlib import Path

import pytest

from attent.tasks.cli import parser, rewritten
from attent.tasks.words import one_name

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language, page=README):
    return re.findall(rf"```{language}\n(.*?)```", page, re.DOTALL)


@pytest.mark.slow
def test_python_blocks_run_in_order(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict = {"__name__": "readme"}
    code = blocks("python")
    assert len(code) == 6
    for block in code:
        exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out
    assert "[False, True, False, True, False]" in printed
    assert "flowchart TD" in printed
    assert "held-out accuracy" in printed
    assert re.search(r"100% of the budget in \d+ passes", printed)
    assert int(namespace["start"]["mask"].sum()) > 0
    assert len(namespace["Squares"]().fetch(namespace["torch"].tensor([3]))) == 1


@pytest.mark.parametrize(
    ("page", "commands"),
    [
        (
            "README.md",
            {
                "classify",
                "pretrain",
                "segment",
                "plan",
                "resume",
                "report",
                "export",
                "evaluate",
                "predict",
                "instruct",
                "merge",
                "score",
            },
        ),
        (
            "docs/finetuning.md",
            {"classify", "segment", "depth", "detect", "evaluate", "predict"},
        ),
        ("docs/pretraining.md", {"pretrain", "plan", "export"}),
        ("docs/language.md", {"instruct", "plan", "merge", "report"}),
        ("docs/scale.md", {"pretrain", "instruct", "resume"}),
        ("docs/text.md", {"classify", "plan", "evaluate", "merge", "report"}),
    ],
)
def test_commands_are_understood(page, commands, monkeypatch, tmp_path):
    for folder in ("tasks", "pipeline"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    (tmp_path / "my.yaml").write_text("model: pretrain_multimae_base\n")
    monkeypatch.chdir(tmp_path)
    text = "\n".join(blocks("bash", (ROOT / page).read_text())).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in text.splitlines()]
    (tmp_path / "llm.yaml").write_text("lora_rank: 8\n")
    ours = [words[1:] for words in lines if words and words[0] == "attent"]
    launched = (words for words in lines if words[:1] in (["torchrun"], ["accelerate"]))
    ours += [words[words.index("attent.tasks") + 1 :] for words in launched]
    assert {words[0] for words in ours} == commands
    for words in ours:
        _, words = rewritten(words)
        assert parser().parse_args(one_name(words)).command == words[0]


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("docs/pretraining.md", r"'norm_rgb': \[2, 3, 64, 64\]"),
        ("docs/language.md", r"^\d+ \d\.\d+$"),
    ],
)
def test_python_of_the_other_pages_runs(page, printed, capsys):
    for block in blocks("python", (ROOT / page).read_text()):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of transformers' old names, by peft
            exec(compile(block, page, "exec"), {"__name__": page})
    assert re.search(printed, capsys.readouterr().out)


def test_make_targets_exist():
    makefile = (Path(__file__).parent.parent / "Makefile").read_text()
    named = {
        line.split()[1]
        for block in blocks("bash")
        for line in block.splitlines()
        if line.startswith("make ")
    }
    assert named == {"run", "digits", "test"}
    assert all(f"\n{target}:" in makefile for target in named)
