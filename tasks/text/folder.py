"""Folders of models of transformers: what is left of a run, and its adapters merged."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attent.models.adalora import note_ranks
from attent.models.language import quietly
from attent.pipeline.checkpoint import write_atomically
from attent.pipeline.task import bind
from attent.tasks.build import Run
from attent.tasks.config import ConfigError
from attent.tasks.data.dropped import Dropped


def list_dropped(folder: Path, dropped: Sequence[Dropped]) -> None:
    """Write the places of dropped rows to ``dropped.txt``, if there are any."""
    if dropped:
        lines = "".join(f"{one.row.place}: {one.why}\n" for one in dropped)
        write_atomically(folder / "dropped.txt", lines.encode())


def save(run: Run, folder: Path) -> None:
    """Write what was trained: ``adapter/`` as peft loads it, or ``model/`` as transformers does.

    Args:
        run: its state holds the weights.
        folder: of the run.
    """
    model, tokenizer = _trained(run)
    if _has_adapters(model):
        note_ranks(model)
        write_model(folder / "adapter", tokenizer, model, save_embedding_layers=False)
    else:
        write_model(folder / "model", tokenizer, model)


def merge(run_path: str, output: str | None = None) -> Path:
    """Write a run's model with its adapters merged into it, as ``from_pretrained`` loads it.

    Args:
        run_path: the run folder; its last checkpoint is taken.
        output: a folder that is not there yet; None for ``merged/`` in the run's folder.

    Returns:
        The folder.

    Raises:
        ConfigError: it is a run of another command, or the folder is there.
        CheckpointError: it has no usable checkpoint.
    """
    from attent.tasks.commands import COMMANDS
    from attent.tasks.folder import RunFolder
    from attent.tasks.run import load_trained

    folder = RunFolder(Path(run_path))
    command, config = folder.load_config()
    able = [name for name, other in COMMANDS.items() if other.save is save]
    if command not in able:
        raise ConfigError(f"{run_path} is a run of {command}; attent merge is of {', '.join(able)}")
    bits = getattr(config, "bits", 32)
    if bits < 16:
        raise ConfigError(f"bits: adapters on weights of {bits} bits cannot be merged")
    path = Path(output) if output else folder.path / "merged"
    if output and path.exists():
        raise ConfigError(f"output: {path} is there already; name a folder that is not")
    model, tokenizer = _trained(load_trained(folder)[0])
    write_model(path, tokenizer, model.merge_and_unload() if _has_adapters(model) else model)
    return path


def _trained(run: Run) -> tuple[Any, Any]:
    """The model of transformers, maybe with adapters, and the tokenizer of a trained run."""
    task: Any = run.task
    source: Any = run.source
    bind(task.model, run.state)
    return task.transformer, source.tokenizer


def _has_adapters(model: Any) -> bool:
    from peft import PeftModel

    return isinstance(model, PeftModel)


def write_model(path: Path, tokenizer: Any, model: Any = None, **options: Any) -> None:
    """A tokenizer, and a model if one is given, in a folder: whole, or not at all.

    Args:
        path: the folder; what is there is replaced.
        tokenizer: of transformers.
        model: of transformers or peft.
        options: of its ``save_pretrained``.
    """
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    try:
        with quietly():
            if model is not None:
                model.save_pretrained(beside, **options)
            tokenizer.save_pretrained(beside)
        if path.exists():
            shutil.rmtree(path)
        os.replace(beside, path)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
