"""Names and colours of what pixels show: of ADE20K by its own list, of NYUv2 the published."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from attent.tasks.data import ade20k, nyuv2
from attent.tasks.data.dense import Dense
from attent.tasks.data.dense_layouts import find_dense
from attent.tasks.data.dense_view import SegmentView
from attent.tasks.detection.pictures import _drawn
from attent.tasks.grid import HIDDEN, palette
from attent.tasks.run import load_trained
from attent.tasks.segmentation.build import load_data
from attent.tasks.segmentation.pictures import KEYS, segmentations
from tests.tasks.finetuned import (
    options,
    picture,
    save,
    trained,
    write_ade20k,
    write_folders,
    write_nyuv2,
)

NAMES = tuple(f"thing {i}" for i in range(1, 151))


def write_list(root: Path, *, stuff: bool = False, padding: str = "") -> None:
    """The list as it is released: ``Stuff`` only in some copies, spaces and tabs at some ends."""
    lines = ["Idx\tRatio\tTrain\tVal\t" + ("Stuff\t" if stuff else "") + "Name"]
    for i, name in enumerate(NAMES, 1):
        kind = "0\t" if stuff else ""
        lines.append(f"{i} \t0.01\t12\t3\t{kind}{name}, other word{padding}")
    (root / "objectInfo150.txt").write_text("\n".join(lines) + "\n\n")


@pytest.mark.parametrize(("stuff", "padding"), [(False, ""), (True, " "), (False, "\t\t\t")])
def test_names_are_the_first_words_of_the_list(tmp_path, stuff, padding):
    write_list(tmp_path, stuff=stuff, padding=padding)
    assert ade20k.class_names(tmp_path) == NAMES


@pytest.mark.parametrize("text", [None, "", "Idx\tName\n", "Idx\tName\n1\twall\n3\tsky\n"])
def test_a_list_that_names_not_all_is_none(tmp_path, text):
    if text is not None:
        (tmp_path / "objectInfo150.txt").write_text(text)
    assert ade20k.class_names(tmp_path) == ()


def test_layouts_bring_their_names(tmp_path):
    wanted = {"inputs": ["rgb"], "target": "semseg"}
    ade = write_ade20k(tmp_path / "ade")
    assert find_dense(ade, **wanted).class_names == ()
    write_list(ade)
    assert find_dense(ade, **wanted).class_names == NAMES
    nyu = find_dense(write_nyuv2(tmp_path / "nyu"), **wanted)
    assert nyu.class_names == nyuv2.CLASSES
    assert len(nyuv2.CLASSES) == nyu.num_classes == 40
    assert find_dense(write_folders(tmp_path / "own"), **wanted).class_names == ()


def test_names_are_of_the_labels_that_the_layout_means(tmp_path):
    """With another number of classes, or 0 as a class, they would be of others."""
    write_list(write_ade20k(tmp_path))
    for given, names in (
        ({}, NAMES),
        ({"num_classes": 150, "reduce_zero_label": True}, NAMES),
        ({"num_classes": 151, "reduce_zero_label": False}, ()),
        ({"num_classes": 151}, ()),
    ):
        for source in load_data(options("segment", data=str(tmp_path), **given)):
            assert source.class_names == names
    own = write_folders(tmp_path / "own")
    assert load_data(options("segment", data=str(own), num_classes=5))[1].class_names == ()


def test_names_that_are_not_one_for_each_class_are_refused(tmp_path):
    reader = find_dense(write_folders(tmp_path), inputs=["rgb"], target="depth").val
    view = SegmentView(size=8)
    with pytest.raises(ValueError, match=r"class_names are of the None .* 1 for target"):
        Dense(reader, view, inputs=["rgb"], target="depth", class_names=["wall"])


@pytest.mark.parametrize("listed", [True, False])
def test_predictions_say_them(attent, tmp_path, listed):
    root = write_ade20k(tmp_path / "ade")
    if listed:
        write_list(root)
    trained("segment", tmp_path / "run", data=str(root), head="linear", epochs=1)
    save(picture(0, 40, 64), tmp_path / "a.png")
    status, _, err = attent("predict", "run", "a.png")
    assert status == 0, err
    assert ("thing " in err, "class " in err) == (listed, not listed)


@pytest.mark.parametrize("classes", [2, 5, 10, 20, 21, 40, 80, 133, 150, 254])
def test_classes_in_a_row_have_colours_well_apart(classes):
    paint = palette(classes)
    assert classes == paint.N
    colours = paint(np.arange(classes))[:, :3]
    assert len({tuple(colour) for colour in colours}) == classes
    # None like the shade of what is not shown; the first ones fill most pictures.
    assert (np.abs(colours - HIDDEN).max(axis=1) > 0.14).all()
    if not 10 < classes <= 20:  # there by pairs of a hue
        for step in (1, 2):
            assert (np.linalg.norm(colours[step:] - colours[:-step], axis=1) > 0.25).all()


def test_the_report_names_the_classes_that_it_shows(tmp_path):
    write_list(write_ade20k(tmp_path / "ade"))
    data = str(tmp_path / "ade")
    run, _ = load_trained(trained("segment", tmp_path / "run", data=data, head="linear", epochs=1))
    ((_, figure, _),) = segmentations(run)
    (key,) = figure.legends
    told = [text.get_text() for text in key.get_texts()]
    assert len(told) == len(set(told)) == KEYS
    assert set(told) <= set(NAMES)


def test_masks_and_boxes_are_where_they_are_in_the_photograph():
    """Of a photograph of 1000 x 400 as it is drawn, of half that: the masks are of 20 x 8."""
    masks = torch.zeros(1, 8, 20, dtype=torch.bool)
    masks[0, 2:4, 5:10] = True
    some = {"boxes": torch.tensor([[250.0, 100, 500, 200]]), "masks": masks}
    picture, there = _drawn(torch.zeros(3, 400, 1000, dtype=torch.uint8), some)
    assert picture.shape == (3, 200, 500)
    assert there["boxes"].tolist() == [[125.0, 50, 250, 100]]
    lit = there["masks"][0].nonzero()
    assert (lit.amin(dim=0).tolist(), lit.amax(dim=0).tolist()) == ([50, 125], [99, 249])
