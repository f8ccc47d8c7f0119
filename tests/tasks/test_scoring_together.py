"""``attent score`` over two processes, as a launcher starts them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
from pyarrow import parquet

from attent.tasks import cli
from tests.tasks.finetuned import trained, write_images
from tests.tasks.test_launch_cli import done, torchrun


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """A run on small photographs."""
    path = tmp_path_factory.mktemp("photographs")
    write_images(path / "images")
    return trained("classify", path / "run", data=str(path / "images"))


def processes(*words: str) -> subprocess.Popen:
    """Two of them, of the command; without ``--`` torchrun takes --signals for one of its own."""
    return torchrun(2, "attent.tasks", *words, module="--")


@pytest.mark.slow
def test_several_processes_share_the_work_and_write_once(photographs, tmp_path, monkeypatch):
    """Twelve examples, one of them torn, in batches of two and of all of them at once."""
    monkeypatch.chdir(tmp_path)
    torn = write_images(tmp_path / "images") / "train" / "bee" / "2.jpg"
    torn.write_bytes(torn.read_bytes()[:100])
    words = ["score", str(photographs.path), "--data", "images", "--device", "cpu"]
    words += ["--signals", "loss", "output_grad_norm", "--out"]
    many = ["--skip_unreadable", "--batch_size", "2"]
    assert cli.main([*words, "1.parquet", *many]) == 0
    told = done(processes(*words, "2.parquet", *many))
    one, two = parquet.read_table("1.parquet"), parquet.read_table("2.parquet")
    assert two.equals(one)  # to the bit: batches are whole
    assert one["unreadable"].null_count == 11
    for line in ("loss of 11 examples", "1 example could not be read", "scores 2.parquet"):
        assert told.count(line) == 1, told
    assert re.findall(r"(\d+)% scored", told) == ["33", "67", "100"]
    assert Path("2.html").read_text().count("<figcaption>") >= 11
    # Of one batch the second process has none.
    assert cli.main([*words, "3.parquet", "--skip_unreadable", "--batch_size", "12"]) == 0
    done(processes(*words, "4.parquet", "--skip_unreadable", "--batch_size", "12"))
    assert parquet.read_table("4.parquet").equals(parquet.read_table("3.parquet"))


@pytest.mark.slow
def test_what_one_of_several_processes_cannot_read_stops_all(photographs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torn = write_images(tmp_path / "images") / "train" / "bee" / "2.jpg"
    torn.write_bytes(torn.read_bytes()[:100])  # example 8, in the fifth batch: of the first process
    words = [
        "score",
        str(photographs.path),
        "--data",
        "images",
        "--device",
        "cpu",
        "--batch_size",
        "2",
    ]
    process = processes(*words, "--out", "s.csv")
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert said.count("error: ") == 1, said
    assert re.search(r"process 0 of 2: example 8 .* cannot be fetched.*--skip_unreadable", said)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images"]
