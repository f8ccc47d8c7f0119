"""``attent score`` of data that are gone, damaged, or not of the run's form."""

from __future__ import annotations

import io
import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from attent.tasks.classification.config import ClassifyConfig
from attent.tasks.run import start
from tests.tasks.finetuned import picture, trained, write_images
from tests.tasks.test_cli import only_an_error
from tests.tasks.test_resume import silent

TINY = {
    "image_size": 8, "model_args": {"depth": 1, "embed_dim": 16, "num_heads": 2}, "epochs": 1,
    "batch_size": 6, "warmup_epochs": 0.0, "method": "full", "threads": 1, "device": "cpu",
    "progress": False,
}  # fmt: skip


def test_examples_that_cannot_be_read_are_named_or_left_without_scores(attent, tmp_path):
    root = write_images(tmp_path / "images")
    folder = trained("classify", tmp_path / "run", data=str(root))
    torn = root / "train" / "bee" / "2.jpg"
    torn.write_bytes(torn.read_bytes()[:100])
    status, _, err = attent("score", "run", "--out", "s.csv")
    error = err[err.index("error: ") :]  # after how far it came
    assert status == 2
    assert f"example 8 ({torn}) cannot be fetched" in error
    assert error.endswith("with --skip_unreadable it is left without scores\n")
    assert not Path("s.csv").exists()
    status, _, err = attent("score", "run", "--out", "s.parquet", "--skip_unreadable")
    assert status == 0, err
    assert "1 example could not be read and has no scores" in err
    rows = parquet.read_table("s.parquet").to_pylist()
    assert [row["index"] for row in rows if row["loss"] is None] == [8]
    assert rows[8]["name"] == str(torn)
    assert rows[8]["unreadable"]
    assert folder.load_config()[1].skip_unreadable is False  # the run itself is as it was


def test_data_of_the_run_that_are_gone_are_not_those_that_are_given(attent, tmp_path):
    write_images(tmp_path / "images")
    trained("classify", tmp_path / "run", data=str(tmp_path / "images"))
    (tmp_path / "images").rename(tmp_path / "others")
    error = only_an_error(*attent("score", "run", "--data", "others", "--out", "s.csv"))
    assert "run is built again of what it was trained on too: there is no " in error
    assert "set by the flag --data" not in error


def test_labels_that_no_class_has_are_told_of_the_data_not_of_the_table(attent, tmp_path):
    images = np.stack([picture(i, 8, 8)[..., 0] for i in range(20)])
    np.savez(tmp_path / "a.npz", images=images, labels=np.arange(20) % 2)
    np.savez(tmp_path / "b.npz", images=images, labels=np.arange(20) % 2 + 7)
    start("classify", ClassifyConfig(data="a.npz", output_dir="run", **TINY), silent)
    error = only_an_error(*attent("score", "run", "--data", "b.npz", "--out", "s.csv"))
    assert "error: data: b.npz: labels out of range: " in error
    assert "set by the flag --out" not in error


def test_a_shard_that_cannot_be_read_is_left_out_and_told(attent, tmp_path):
    def shard(name: str, count: int) -> Path:
        images, path = [io.BytesIO() for _ in range(count)], tmp_path / "shards" / name
        for i, image in enumerate(images):
            Image.fromarray(picture(i, 8, 8)).save(image, "png")
        path.parent.mkdir(exist_ok=True)
        columns = {"image": [i.getvalue() for i in images], "label": [i % 2 for i in range(count)]}
        parquet.write_table(pa.table(columns), path)
        return path

    for name in ("train-0.parquet", "train-1.parquet", "val-0.parquet"):
        shard(name, 6)
    start("classify", ClassifyConfig(data="shards", output_dir="run", **TINY), silent)
    shutil.copytree("shards", "others")
    torn = Path("others/train-1.parquet")
    torn.write_bytes(torn.read_bytes()[:200])
    words = ("score", "run", "--data", "others", "--out", "s.csv")
    error = only_an_error(*attent(*words))
    assert "train-1.parquet cannot be read as a table" in error
    assert "(--skip_unreadable leaves out what cannot be read)" in error
    status, _, err = attent(*words, "--skip_unreadable")
    assert status == 0, err
    assert "a shard cannot be read and is left out: others/train-1.parquet cannot be read" in err
    assert len(Path("s.csv").read_text().splitlines()) == 1 + 6
