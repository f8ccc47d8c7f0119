"""Folders of models: the one made anew below adapters, what is left of a run, and both merged."""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attent.models.language import LanguageModel, quietly
from attent.pipeline.checkpoint import write_atomically
from attent.pipeline.fit import finished
from attent.pipeline.task import bind
from attent.tasks.build import Run
from attent.tasks.config import ConfigError
from attent.tasks.data.instructions import Dropped, Instructions
from attent.tasks.language.build import base_of, build_instruct, has_base, own_tokenizer
from attent.tasks.language.config import InstructConfig


def prepare(config: InstructConfig, run: Run, say: Callable[[str], None]) -> bool:
    """Make the model that a run's adapters are added to, in ``base/`` of its folder.

    It is a run of its own: on all of every row, without adapters and selection; it goes on where it
    was stopped. Rows that were dropped are listed in ``dropped.txt``.

    Args:
        config: the options, with the run's folder.
        run: what they give.
        say: told what is going on.

    Returns:
        Whether anything was made.
    """
    assert config.output_dir is not None
    assert isinstance(run.source, Instructions)
    assert isinstance(run.held_out, Instructions)
    _list_dropped(Path(config.output_dir), [*run.source.dropped, *run.held_out.dropped])
    if config.is_fresh and config.adapter == "full" and own_tokenizer(config) is None:
        _write(Path(config.output_dir) / "tokenizer", run.source.tokenizer)
    if not has_base(config) or base_of(config) is not None:
        return False
    from attent.tasks.run import RunFolder, resume, start

    folder = RunFolder(Path(config.output_dir) / "base")
    plain = dataclasses.replace(config, adapter="full", pretrain_epochs=0)
    if config.pretrain_epochs == 0:
        save(build_instruct(plain), folder.path)
        return True
    if folder.config.is_file():
        state, _ = resume(folder.path, say)
    else:
        say(f"pre-training {config.model_name_or_path} in {folder.path}")
        state, _ = start("instruct", _pretraining(plain, config, folder.path), say)
    if not finished(state):
        raise KeyboardInterrupt
    return True


def _list_dropped(folder: Path, dropped: Sequence[Dropped]) -> None:
    if dropped:
        lines = "".join(f"{one.row.place}: {one.why}\n" for one in dropped)
        write_atomically(folder / "dropped.txt", lines.encode())


def _pretraining(plain: InstructConfig, config: InstructConfig, folder: Path) -> InstructConfig:
    defaults = InstructConfig()
    return dataclasses.replace(
        plain,
        output_dir=str(folder),
        supervise="all",
        method="full",
        epochs=config.pretrain_epochs,
        lr=config.pretrain_lr,
        blr=None,
        min_lr=0.0,
        warmup_epochs=None,
        weight_decay=0.05,
        num_samples=0,
        # What has an effect on other methods alone goes back to what it was.
        selection_strategy=defaults.selection_strategy,
        signal=defaults.signal,
        scores=defaults.scores,
        ema=None,
    )


def save(run: Run, folder: Path) -> None:
    """Write what was trained: ``adapter/`` as peft loads it, or ``model/`` as transformers does.

    Args:
        run: its state holds the weights.
        folder: of the run.
    """
    model = run.task.model
    assert isinstance(model, LanguageModel)
    assert isinstance(run.source, Instructions)
    bind(model, run.state)
    causal: Any = model.causal
    options: dict[str, Any] = {"save_embedding_layers": False} if model.has_adapters else {}
    name = "adapter" if model.has_adapters else "model"
    _write(folder / name, run.source.tokenizer, causal, **options)


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
    from attent.tasks.run import RunFolder, load_trained

    folder = RunFolder(Path(run_path))
    command, config = folder.load_config()
    if command != "instruct":
        raise ConfigError(f"{run_path} is a run of {command}; attent merge is of instruct")
    if config.bits < 16:
        raise ConfigError(f"bits: adapters on weights of {config.bits} bits cannot be merged")
    path = Path(output) if output else folder.path / "merged"
    if output and path.exists():
        raise ConfigError(f"output: {path} is there already; name a folder that is not")
    run, _ = load_trained(folder)
    model = run.task.model
    assert isinstance(model, LanguageModel)
    assert isinstance(run.source, Instructions)
    bind(model, run.state)
    causal: Any = model.causal
    merged = causal.merge_and_unload() if model.has_adapters else causal
    _write(path, run.source.tokenizer, merged)
    return path


def _write(path: Path, tokenizer: Any, model: Any = None, **options: Any) -> None:
    """A tokenizer, and a model if one is given, in a folder: whole, or not at all."""
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
