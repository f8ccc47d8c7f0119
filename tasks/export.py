"""Trained weights as files that other code loads."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save
from tensordict import TensorDict
from torch import Tensor

from attent.models.multimae.weights import to_timm
from attent.pipeline.checkpoint import write_atomically
from attent.pipeline.task import Task, bind
from attent.tasks.commands import COMMANDS
from attent.tasks.config import ConfigError
from attent.tasks.folder import RunFolder, make_folder
from attent.tasks.pretraining.task import MaskedPretraining
from attent.tasks.run import load_trained

Format = Literal["multimae", "timm"]


def export(folder: RunFolder, form: Format, output: str | None = None) -> Path:
    """Write a run's weights for other code.

    Args:
        folder: of the run; its last checkpoint is taken.
        form: ``multimae``: the released weights' names, as ``{"model": ...}`` of ``torch.save``
            (of pre-training). ``timm``: a vision transformer of timm, of ``num_classes=0`` from
            pre-training, as it is from classification; safetensors.
        output: the file, its suffix (.pth or .safetensors) deciding how it is written; None for
            ``export/`` in the run's folder.

    Returns:
        The file's path.

    Raises:
        ConfigError: this run has no such weights, or the suffix is another.
        CheckpointError: it has no usable checkpoint.
    """
    command, _ = folder.load_config()
    if COMMANDS[command].save is not None:
        raise ConfigError(
            f"{folder.path} is a run of {command}, whose weights are in adapter/ or model/ as peft "
            "and transformers load them; attent merge writes them as one"
        )
    default = {"multimae": "multimae.pth", "timm": "timm.safetensors"}[form]
    path = Path(output) if output else folder.path / "export" / default
    if path.suffix not in (".pth", ".safetensors"):
        raise ConfigError(f"output: {path} must end in .pth or .safetensors")
    run, _ = load_trained(folder)
    weights = _weights(run.task, run.state, form, folder)
    make_folder(path.parent, "output")
    if path.suffix == ".safetensors":
        write_atomically(path, save(weights, {"format": "pt"}))
        return path
    buffer = io.BytesIO()
    torch.save({"model": weights}, buffer)
    write_atomically(path, buffer.getvalue())
    return path


def _weights(task: Task, state: TensorDict, form: Format, folder: RunFolder) -> dict[str, Tensor]:
    if isinstance(task, MaskedPretraining):
        weights = task.weights(state)
        return weights if form == "multimae" else to_timm(weights)
    if form == "multimae":
        raise ConfigError(
            f"format multimae is of pre-training; {folder.path} is a run of {task.name}"
        )
    bind(task.model, state)
    return {name: value.detach().cpu().clone() for name, value in task.model.state_dict().items()}
