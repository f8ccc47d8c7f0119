"""Checkpoints: exact, atomic, checked, and never silently the wrong one."""

import json
import math
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensordict import TensorDict

from attent.pipeline import (
    CheckpointError,
    CheckpointFolder,
    bare_state,
    export_weights,
    fit,
    full,
    initial_state,
    load_state,
    restore,
    save_state,
)
from attent.pipeline.checkpoint import SCHEMA, SINCE_2, write_atomically
from attent.pipeline.keys import differences
from attent.pipeline.stage import initialize
from tests.tiny import TinyTask, tiny_source, tiny_train


def some_state():
    return TensorDict(
        {
            "params": {"a.weight": torch.randn(3, 2), "b": torch.tensor(math.nan)},
            "mask": torch.tensor([True, False]),
            "steps": torch.tensor([-1, 7], dtype=torch.int32),
            "half": torch.ones(2, dtype=torch.bfloat16),
            "double": torch.tensor(0.1, dtype=torch.float64),
            "empty": torch.empty(0),
        }
    )


def test_a_state_comes_back_bit_for_bit(tmp_path):
    state = some_state()
    save_state(state, tmp_path / "x.safetensors", {"task": "tiny", "step": 3})
    loaded, about = load_state(tmp_path / "x.safetensors")
    assert differences(state, loaded) == []
    assert about == {"task": "tiny", "step": 3}
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]


def test_a_name_with_a_slash_is_refused(tmp_path):
    with pytest.raises(ValueError, match="name holds '/'"):
        save_state(TensorDict({"a/b": torch.ones(1)}), tmp_path / "x")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_a_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "x.safetensors"
    save_state(some_state(), path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=r"x\.safetensors is truncated or corrupt"):
        load_state(path)


def test_one_flipped_bit_is_found(tmp_path):
    path = tmp_path / "x.safetensors"
    save_state(TensorDict({"w": torch.ones(1000)}), path)
    data = bytearray(path.read_bytes())
    data[-2000] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="do not match its checksum"):
        load_state(path)


def test_other_files_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_state(tmp_path / "absent")
    save_file({"w": torch.ones(1)}, tmp_path / "weights.safetensors")
    with pytest.raises(CheckpointError, match="but not a training state of attent"):
        load_state(tmp_path / "weights.safetensors")
    newer = {"format": "attent-state", "schema": str(SCHEMA + 1), "digest": "", "about": "{}"}
    save_file({"w": torch.ones(1)}, tmp_path / "newer.safetensors", newer)
    with pytest.raises(CheckpointError, match="written by a newer attent"):
        load_state(tmp_path / "newer.safetensors")


def test_a_state_of_the_first_version_has_counted_nothing_in_tokens(tmp_path, monkeypatch):
    path, now = tmp_path / "x.safetensors", bare_state(3)
    old = now.clone()
    for group, name in SINCE_2:
        old = old.exclude((group, name))
    monkeypatch.setattr("attent.pipeline.checkpoint.SCHEMA", 1)
    save_state(old, path)
    monkeypatch.undo()
    assert differences(load_state(path)[0], now) == []
    assert differences(restore(now, load_state(path)[0]), now) == []


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    write_atomically(path, b"old")

    def full_disk(descriptor):
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["x"]


def test_restore_compares_everything():
    task, source = TinyTask(), tiny_source()
    tick = full(source, train=tiny_train(task, source), epochs=1)
    fresh = initialize(tick, initial_state(task, source))
    saved = initialize(tick, initial_state(task, source, seed=9))
    assert int(restore(fresh, saved)["seed"]) == 9
    assert int(fresh["seed"]) == 0

    wider = TinyTask(dim=4)
    other = initialize(
        full(source, train=tiny_train(wider, source), epochs=1), initial_state(wider, source)
    )
    message = (
        r"c\.safetensors does not fit this task, model or recipe: .*'params/linear.weight' is "
        r"torch.float32 \[1, 4\] in it, torch.float32 \[1, 3\] in this run"
    )
    with pytest.raises(CheckpointError, match=message):
        restore(fresh, other, "c.safetensors")
    del saved["mask"]
    saved["masc"] = torch.ones(20)
    with pytest.raises(CheckpointError, match="'mask' is not in it; did you mean 'masc'"):
        restore(fresh, saved)
    with pytest.raises(CheckpointError, match="'masc' has no place in this run"):
        restore(fresh, saved)


def test_a_folder_keeps_the_last_and_the_best(tmp_path):
    folder = CheckpointFolder(tmp_path, keep=2)
    states = {step: TensorDict({"w": torch.tensor(float(step))}) for step in (1, 5, 10, 200)}
    for step, state in states.items():
        path = folder.save(state, step, {"task": "tiny"})
        if step == 5:
            folder.mark_best(path)
    assert folder.steps() == [10, 200]
    state, about, path = folder.load_last()
    assert float(state["w"]) == 200
    assert about == {"task": "tiny", "step": 200}
    assert path.name == "checkpoint-000000200.safetensors"
    assert float(load_state(folder.best)[0]["w"]) == 5  # though its own file is gone
    with pytest.raises(ValueError, match="keep must be at least 1"):
        CheckpointFolder(tmp_path, keep=0)


def test_a_damaged_last_one_is_named_and_the_previous_used_only_when_allowed(tmp_path):
    folder = CheckpointFolder(tmp_path)
    with pytest.raises(CheckpointError, match="there is no checkpoint in"):
        folder.load_last()
    for step in (1, 2):
        folder.save(TensorDict({"w": torch.tensor(float(step))}), step, {})
    last = tmp_path / "checkpoint-000000002.safetensors"
    last.write_bytes(last.read_bytes()[:-3])
    message = r"000002\.safetensors is truncated.*previous good checkpoint is .*000001\.safetensors"
    with pytest.raises(CheckpointError, match=message):
        folder.load_last()
    assert float(folder.load_last(allow_previous=True)[0]["w"]) == 1
    (tmp_path / "checkpoint-000000001.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"every checkpoint in .* is damaged"):
        folder.load_last(allow_previous=True)


def test_weights_are_exported_under_the_models_own_names(tmp_path):
    task, source = TinyTask(), tiny_source()
    state = initial_state(task, source)
    export_weights(state, tmp_path / "model.safetensors")
    weights = load_file(tmp_path / "model.safetensors")
    assert set(weights) == {"linear.weight", "linear.bias", "calls"}
    fresh = TinyTask().model
    outcome = fresh.load_state_dict(weights, strict=False)
    assert outcome.missing_keys == ["frozen"]  # not trained, so not in the state
    assert outcome.unexpected_keys == []


def test_about_is_plain_json(tmp_path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        save_state(some_state(), tmp_path / "x", {"when": object()})
    save_state(some_state(), tmp_path / "x", {"options": {"lr": 0.1, "clip": None}})
    assert json.dumps(load_state(tmp_path / "x")[1]) == '{"options": {"lr": 0.1, "clip": null}}'


def test_a_loaded_state_goes_on_as_it_is_also_without_buffers(tmp_path):
    """Empty containers are kept: a model without buffers has an empty one."""
    task, source = TinyTask(), tiny_source()
    task.model = torch.nn.Sequential(torch.nn.Linear(3, 1), torch.nn.Flatten(0))
    tick = full(source, train=tiny_train(task, source), epochs=2)
    start = initialize(tick, initial_state(task, source))
    save_state(start, tmp_path / "x")
    whole = fit(tick, start)
    assert differences(fit(tick, load_state(tmp_path / "x")[0]), whole) == []


def test_where_there_are_no_hard_links_the_best_is_copied(tmp_path, monkeypatch):
    def refused(*paths):
        raise OSError("Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    folder = CheckpointFolder(tmp_path, keep=1)
    folder.mark_best(folder.save(TensorDict({"w": torch.ones(1)}), 1, {}))
    assert float(load_state(folder.best)[0]["w"]) == 1
