"""What is told of wrong data and weights, and what pictures of predictions show of a photograph."""

from __future__ import annotations

import numpy as np
import pytest

from attent.tasks.data.decode import rgb
from attent.tasks.run import load_trained
from tests.tasks.finetuned import SMALL, flags, save, trained, write_images, write_taskonomy
from tests.tasks.test_cli import only_an_error


@pytest.mark.parametrize("weights", ["nowhere.pth", ".", "timm:vit_of_none"])
def test_weights_that_there_are_not_are_told_with_their_option_alone(attent, tmp_path, weights):
    (tmp_path / "my.yaml").write_text(f"model: multivit_micro\npretrained_weights: '{weights}'\n")
    words = [*flags(SMALL["segment"] | {"head": "linear"}), "--config", "my.yaml"]
    error = only_an_error(*attent("segment", *words))
    message, *origins = error.splitlines()
    assert message.startswith("error: pretrained_weights: ")
    assert origins == ["  pretrained_weights: set in my.yaml, line 2"]


def test_folders_without_classes_are_told_with_their_option(attent, tmp_path):
    (tmp_path / "mine").mkdir()
    error = only_an_error(*attent("classify", "--model", "multivit_micro", "--data_path", "mine"))
    assert f"error: data: no folder {tmp_path}/mine/train; expected ROOT/train/CLASS/IMAGE" in error
    assert error.splitlines()[1:] == ["  data: set by the flag --data_path"]


def smooth(height: int, width: int) -> np.ndarray:
    """A picture whose colours say where a pixel is."""
    rows, columns = np.mgrid[:height, :width]
    return np.stack([2 * rows, 2 * columns, 0 * rows], axis=2).astype(np.uint8)


def predicted(command: str, folder, path):
    from attent.tasks.commands import COMMANDS

    make = COMMANDS[command].predict
    assert make is not None
    return make(load_trained(folder)[0], folder.load_config()[1], rgb(path))


def test_a_classifiers_picture_is_the_square_that_it_sees_in_the_photographs_pixels(tmp_path):
    root = write_images(tmp_path / "images")
    given = {"data": str(root), "epochs": 1, "crop_pct": 0.8}
    folder = trained("classify", tmp_path / "run", **given)
    save(smooth(100, 120), tmp_path / "a.png")
    left, right = predicted("classify", folder, tmp_path / "a.png").figure.axes
    # 0.8 of the shorter side, in the middle: rows 10 to 89, columns 20 to 99.
    shown = left.images[0].get_array()
    assert shown.shape == (80, 80, 3)
    assert shown[0, 0].tolist() == [20, 40, 0]
    assert len(right.patches) == 2  # of five that there is room for
    assert right.get_ylim() == (-3.5, 1.5)


def test_normals_are_shown_in_their_colours(tmp_path):
    root = write_taskonomy(tmp_path / "views")
    given = {"data": str(root), "target": "normal", "head": "linear", "epochs": 1}
    folder = trained("depth", tmp_path / "run", **given)
    save(smooth(20, 30), tmp_path / "a.png")
    made = predicted("depth", folder, tmp_path / "a.png")
    _, right = made.figure.axes
    drawn = right.images[0].get_array()
    np.testing.assert_allclose(drawn, made.arrays["map"].transpose(1, 2, 0).clip(0, 1))
