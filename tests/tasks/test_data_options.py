from __future__ import annotations

import pytest
import torch

from attent.tasks.commands import COMMANDS
from attent.tasks.data.options import num_semseg_classes, rendered_scenes


@pytest.mark.parametrize("command", ["classify", "pretrain", "segment", "detect"])
def test_rendered_scenes_are_those_of_the_options(tmp_path, command):
    kind = COMMANDS[command].config
    config = kind(data="scenes", num_train=40, num_val=12, seed=3, data_cache=str(tmp_path))
    train, val = rendered_scenes(config, 16)
    assert (len(train), len(val)) == (40, 12)
    assert (train.split, val.split) == ("train", "val")
    assert (train.seed, val.seed, train.size, val.size) == (3, 3, 16, 16)
    assert torch.equal(train.labels, train.clean_labels)
    assert len(list(tmp_path.iterdir())) == 2  # a file for each split


def test_only_training_scenes_are_unlike_their_classes_and_in_unlike_numbers():
    kind = COMMANDS["classify"].config
    config = kind(data="scenes", num_train=300, num_val=300, imbalance=50.0, label_noise=0.3)
    train, val = rendered_scenes(config, 16)
    wrong = [float((part.labels != part.clean_labels).double().mean()) for part in (train, val)]
    assert wrong == [pytest.approx(0.3, abs=0.1), 0.0]
    counts = [part.clean_labels.bincount(minlength=10) for part in (train, val)]
    assert counts[0].max() > 3 * counts[1].max() / 2
    assert counts[1].min() > 3 * counts[0].min()


@pytest.mark.parametrize(("data", "given", "count"), [
    ("scenes", None, 8), ("folder", None, 133), ("scenes", 20, 20), ("folder", 20, 20),
])  # fmt: skip
@pytest.mark.parametrize("command", ["pretrain", "depth"])
def test_label_maps_have_the_scenes_classes_or_cocos_or_as_many_as_are_given(
    command, data, given, count
):
    config = COMMANDS[command].config(data=data, num_semseg_classes=given)
    assert num_semseg_classes(config) == count
