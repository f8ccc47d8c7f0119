"""A trained model measured on held-out data, its own or other."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch

from attent.pipeline import Source, TensorSource, evaluate
from attent.pipeline import run as run_stage
from attent.pipeline.checkpoint import write_atomically
from attent.pipeline.source import fetch_batch
from attent.pipeline.stage import initialize
from attent.tasks.build import Run, check_labels, loading_of
from attent.tasks.classification import Classification
from attent.tasks.commands import COMMANDS
from attent.tasks.config import ConfigError
from attent.tasks.data.named import refuse_ambiguous
from attent.tasks.folder import RunFolder
from attent.tasks.run import load_trained


def measure(
    folder: RunFolder,
    data: str | None = None,
    *,
    batch_size: int | None = None,
    best: bool = False,
    device: str = "auto",
) -> tuple[dict[str, float], int]:
    """The figures of a run's model on held-out examples.

    Args:
        folder: of the run.
        data: its held-out split is measured, the only one it has to have; None for the run's own.
            The classes are those that the run was trained on.
        batch_size: examples in one forward; changes no figure. None for the run's own.
        best: the best checkpoint, by the run's first figure, instead of the last.
        device: auto, cpu, cuda or cuda:N.

    Returns:
        Metric -> value, and the step of the checkpoint. Also written to ``evaluation.json`` in the
        run's folder, with what was measured.

    Raises:
        ValueError: no usable checkpoint; data that are not as the run's are.
    """
    command, config = folder.load_config()
    refuse_ambiguous(command, data)
    loaded, step = load_trained(folder, best=best, device=device)
    held_out = loaded.held_out
    if data is not None:
        other = dataclasses.replace(config, data=data)
        held_out = COMMANDS[command].load_held_out(other, loaded.held_out)
        same_form(loaded, held_out, data)
    loading = loading_of(config)
    stage = evaluate(
        loaded.task,
        held_out,
        batch_size=config.score_batch_size if batch_size is None else batch_size,
        loading=loading,
    )
    state = run_stage(stage, initialize(stage, loaded.state))
    found = {name: float(state["metrics", f"val_{name}"]) for name in loaded.task.metrics()}
    about: dict[str, Any] = {
        "data": data or config.data,
        "examples": len(held_out),
        "step": step,
        "checkpoint": "best" if best else "last",
        "torch": torch.__version__,
        "metrics": found,
    }
    if loading.skipped:
        about["skipped"] = [f"{entry.place}: {entry.reason}" for entry in loading.skipped]
    write_atomically(folder.path / "evaluation.json", (json.dumps(about, indent=2) + "\n").encode())
    return found, step


def same_form(run: Run, other: Source, data: str) -> None:
    """Refuse data of other classes than those that the model has learned, or of other pictures."""
    for name, what in (("num_outputs", "outputs a pixel"), ("classes", "classes")):
        mine, theirs = getattr(run.held_out, name, None), getattr(other, name, None)
        if mine != theirs:
            raise ConfigError(f"data: {data} has other {what} ({theirs}) than the run ({mine})")
    mine, theirs = _pictures(run.held_out), _pictures(other)
    if mine != theirs:
        raise ConfigError(f"data: {data} holds pictures of {theirs}, the run was of {mine}")
    if isinstance(run.task, Classification) and isinstance(other, TensorSource):
        check_labels(other.fields["label"], run.task.num_classes, "held-out")


def _pictures(source: Source) -> dict[str, list[int]]:
    """Shapes of a source's pictures, by name."""
    batch = fetch_batch(source, torch.tensor([0]))
    return {name: list(batch[name].shape[1:]) for name in ("image", "rgb") if name in batch}
