"""Checkpoints: the state as one safetensors file, written atomically, with a checksum.

Beside the state a file carries a schema version, a SHA-256 over every entry's name, dtype, shape
and bytes, and what the caller wants to remember (the task, the step, a metric) as JSON. Nothing in
it is executed on loading.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from tensordict import TensorDict
from torch import Tensor

from attent.pipeline.keys import (
    Key,
    containers,
    find,
    has,
    key_name,
    leaves,
    nearest,
    paths,
    place,
)

SCHEMA = 2
"""Version of the layout of a checkpoint; raised when an entry changes its meaning, or the engine
keeps another one.
"""

SINCE_2: tuple[Key, ...] = (
    ("clock", "tokens"),
    ("plan", "pass_tokens"),
    ("ledger", "forwarded_tokens"),
    ("ledger", "backwarded_tokens"),
)
"""Counters that states of the first version have not: nothing was counted in tokens."""


class CheckpointError(ValueError):
    """A checkpoint that is missing, damaged, or of something else; the message names the file."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file to be written, which takes a path's place once the block has ended without an error.

    Written beside it, fsynced and renamed: until then, and where the block raises, what was there
    before is whole. Folders above it are made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace a file's contents, or leave the old file whole; see `replacing`."""
    with replacing(path) as file:
        file.write(data)


def save_state(state: TensorDict, path: str | Path, about: Mapping[str, Any] | None = None) -> None:
    """Write a state to a file, atomically.

    Args:
        state: of any entries; a name must not hold ``/``.
        path: of the file.
        about: JSON-serialisable; what `load_state` returns beside the state.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in leaves(state):
        if any("/" in part for part in key):
            raise ValueError(f"an entry's name holds '/': {key!r}")
        tensors[key_name(key)] = value.detach().cpu().contiguous()
    metadata = {
        "format": "attent-state",
        "schema": str(SCHEMA),
        "empty": json.dumps(["/".join(path) for path in _empty(state)]),
        "digest": _digest(tensors),
        "about": json.dumps(dict(about or {})),
    }
    write_atomically(Path(path), save(tensors, metadata))


def load_state(path: str | Path) -> tuple[TensorDict, dict[str, Any]]:
    """Read a state and what was said about it.

    Raises:
        CheckpointError: no such file, not a state, truncated, corrupt, or of a newer schema.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Cloned into memory of torch's own alignment: in the file a tensor may begin anywhere,
            # and kernels that go by alignment give other last bits.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path} is truncated or corrupt: {error}") from error
    if metadata.get("format") != "attent-state":
        raise CheckpointError(f"{path} is a safetensors file, but not a training state of attent")
    if int(metadata["schema"]) > SCHEMA:
        raise CheckpointError(
            f"{path} was written by a newer attent (schema {metadata['schema']}; this one reads up "
            f"to {SCHEMA}): upgrade attent"
        )
    if _digest(tensors) != metadata["digest"]:
        raise CheckpointError(f"{path} is corrupt: its contents do not match its checksum")
    state = TensorDict({}, batch_size=[])
    for name in json.loads(metadata.get("empty", "[]")):
        place(state, tuple(name.split("/")), TensorDict({}, batch_size=[]))
    for name, value in tensors.items():
        place(state, tuple(name.split("/")), value)
    if int(metadata["schema"]) < 2:
        for key in SINCE_2:
            if has(state, key[:1]) and not has(state, key):
                place(state, key, torch.tensor(0))
    return state, json.loads(metadata["about"])


def restore(
    fresh: TensorDict, saved: TensorDict, origin: str | Path = "the checkpoint"
) -> TensorDict:
    """A freshly initialised state with a saved one's values, on the fresh one's devices.

    Args:
        fresh: from the same graph, after `initialize`.
        saved: from `load_state`.
        origin: named in messages.

    Raises:
        CheckpointError: an entry is missing or too many, or has another shape or dtype: the
            checkpoint is of another task, model or recipe.
    """
    wanted: dict[Key, Tensor] = dict(leaves(fresh))
    found: dict[Key, Tensor] = dict(leaves(saved))
    problems = [
        f"{key_name(k)!r} is not in it{nearest(k, found)}" for k in wanted if k not in found
    ]
    problems += [f"{key_name(k)!r} has no place in this run" for k in found if k not in wanted]
    for key in wanted.keys() & found.keys():
        a, b = wanted[key], found[key]
        if a.shape != b.shape or a.dtype != b.dtype:
            problems.append(
                f"{key_name(key)!r} is {b.dtype} {list(b.shape)} in it, {a.dtype} {list(a.shape)} "
                "in this run"
            )
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise CheckpointError(
            f"{origin} does not fit this task, model or recipe: {'; '.join(problems[:3])}{more}"
        )
    result = containers(fresh)
    for key, value in found.items():
        place(result, key, value.to(wanted[key].device))
    return result


@dataclass(frozen=True)
class CheckpointFolder:
    """A folder of checkpoints: the last few by step, and the best.

    Attributes:
        path: of the folder.
        keep: how many of the last are kept, at least 1; the best is kept beside them.
    """

    path: Path
    keep: int = 3

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep must be at least 1, got {self.keep}")

    def save(self, state: TensorDict, step: int, about: Mapping[str, Any]) -> Path:
        """Write the checkpoint of a step, then remove those that are no longer kept."""
        path = self.path_of(step)
        save_state(state, path, {**about, "step": step})
        for old in self.steps()[: -self.keep]:
            self.path_of(old).unlink(missing_ok=True)
        return path

    def mark_best(self, path: Path) -> None:
        """Keep a checkpoint as ``best.safetensors``, in place of the former best."""
        beside = self.path / f".best.{os.getpid()}.tmp"
        beside.unlink(missing_ok=True)
        try:
            os.link(path, beside)
        except OSError:  # a file system without hard links
            shutil.copyfile(path, beside)
        os.replace(beside, self.best)

    @property
    def best(self) -> Path:
        """Where the best checkpoint is, if there is one."""
        return self.path / "best.safetensors"

    def steps(self) -> list[int]:
        """The steps there are checkpoints of, in order."""
        if not self.path.is_dir():
            return []
        names = (
            re.fullmatch(r"checkpoint-(\d+)\.safetensors", p.name) for p in self.path.iterdir()
        )
        return sorted(int(match[1]) for match in names if match)

    def load_last(self, *, allow_previous: bool = False) -> tuple[TensorDict, dict[str, Any], Path]:
        """The latest checkpoint.

        Args:
            allow_previous: pass over damaged ones to the last good one.

        Raises:
            CheckpointError: there is none, or the latest is damaged and earlier ones may not be
                used; the message says which would be.
        """
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"there is no checkpoint in {self.path}")
        damaged: list[str] = []
        for step in reversed(steps):
            path = self.path_of(step)
            try:
                state, about = load_state(path)
            except CheckpointError as error:
                damaged.append(str(error))
                continue
            if damaged and not allow_previous:
                raise CheckpointError(
                    f"{'; '.join(damaged)}. The previous good checkpoint is {path.name} (step "
                    f"{step}); to go on from there: allow_previous (attent resume RUN "
                    "--allow_previous)"
                )
            return state, about, path
        raise CheckpointError(f"every checkpoint in {self.path} is damaged: {'; '.join(damaged)}")

    def path_of(self, step: int) -> Path:
        """Where the checkpoint of a step is, if there is one."""
        return self.path / f"checkpoint-{step:09d}.safetensors"


def export_weights(state: TensorDict, path: str | Path) -> None:
    """Write parameters and buffers as safetensors under the model's own names.

    Of tied parameters only the first name is written, as the state holds them once. Load with
    ``model.load_state_dict(safetensors.torch.load_file(path), strict=False)`` if some are tied or
    frozen, strictly otherwise.
    """
    tensors: dict[str, Tensor] = {}
    for key, value in leaves(state):
        if key[0] in ("params", "buffers"):
            tensors["/".join(key[1:])] = value.detach().cpu().contiguous()
    write_atomically(Path(path), save(tensors, {"format": "pt"}))


def _empty(state: TensorDict) -> list[Key]:
    """The containers that hold nothing, such as the buffers of a model that has none."""
    found = paths(state)
    return [
        path
        for path in found
        if isinstance(find(state, path), TensorDict)
        and not any(other[:-1] == path for other in found)
    ]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        if value.numel():
            digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
