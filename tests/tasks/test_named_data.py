"""Names of data that come with the package, beside folders of those names."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from PIL import Image

from attent.tasks import cli
from attent.tasks.commands import COMMANDS
from attent.tasks.data.named import NAMED, is_named, refuse_ambiguous
from tests.tasks.test_cli import TINY_FLAGS

SHORT = [*TINY_FLAGS, "--output_dir", "out"]


def both(name: str) -> str:
    return (
        f"data: {name} is data that come with the package, and a folder here has that name too: "
        f"give ./{name} for the folder; for the package's own, start where there is no such folder"
    )


@pytest.mark.parametrize(("command", "name"), [(c, n) for c, names in NAMED.items() for n in names])
def test_a_folder_of_that_name_makes_it_ambiguous(command, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert command in COMMANDS
    refuse_ambiguous(command, name)
    Path(name).write_text("a file is no data")
    refuse_ambiguous(command, name)
    Path(name).unlink()
    Path(name).mkdir()
    with pytest.raises(ValueError, match=f"^{both(name)}$"):
        refuse_ambiguous(command, name)
    refuse_ambiguous(command, f"./{name}")


def test_a_name_is_of_the_commands_that_know_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    refuse_ambiguous("classify", "photos")  # which is the folder
    assert not is_named("classify", "photos")
    assert is_named("pretrain", "photos")
    assert not is_named("classify", None)


def test_the_user_is_told_before_anything_begins(attent):
    assert attent("classify", *SHORT)[0] == 0
    Path("digits").mkdir()
    again = [*TINY_FLAGS, "--output_dir", "again"]
    for words in (
        ["classify", *again],
        ["plan", "classify", *again],
        ["evaluate", "out", "--data", "digits"],
    ):
        status, _, told = attent(*words)
        assert status == cli.EXIT_WRONG_INPUT
        assert told.startswith(f"error: {both('digits')}\n")
    assert not Path("again").exists()
    # A run that has begun knows what it meant.
    assert attent("evaluate", "out")[0] == 0


def test_either_can_be_meant(attent, tmp_path):
    for split in ("train", "val"):
        for label, shade in (("a", 40), ("b", 200)):
            folder = Path("scenes", split, label)
            folder.mkdir(parents=True)
            for i in range(8):
                Image.new("RGB", (8, 8), (shade + i,) * 3).save(folder / f"{i}.png")
    words = [*SHORT, "--image_size", "8", "--batch_size", "4"]
    status, _, told = attent("classify", *words, "--data", "./scenes")
    assert status == 0, told
    assert yaml.safe_load(Path("out", "config.yaml").read_text())["data"] == str(
        tmp_path / "scenes"
    )
