"""From options to a run of depth, or of another map of numbers."""

from __future__ import annotations

import torch

from attent.pipeline import Source
from attent.pipeline.source import fetch_batch
from attent.tasks.build import Run, assemble
from attent.tasks.config import ConfigError
from attent.tasks.data.dense import Dense
from attent.tasks.data.dense_layouts import DenseData
from attent.tasks.data.dense_view import DenseView, DepthView, View
from attent.tasks.depth.config import DepthConfig
from attent.tasks.depth.task import DenseRegression
from attent.tasks.finetuning.build import build_encoder, dense_sources, readers_of

MEASURED = 64
"""Training examples of which the mean and deviation of targets are taken, at most."""


def build_depth(config: DepthConfig, *, initial: bool = True) -> Run:
    """Everything `attent depth` needs, checked before any training.

    Args:
        config: the options.
        initial: load the weights that training starts from; False where a checkpoint's take their
            place.

    Raises:
        ValueError: what the options ask for cannot be; the message says why.
    """
    source, held_out = load_data(config)
    model = build_encoder(
        config,
        "dense",
        kind="regression",
        input_size=config.input_size,
        num_channels=source.num_outputs,
        head_args=config.head_args,
        initial=initial,
    )
    mean, deviation = _moments(config, source)
    task = DenseRegression(
        model,
        error=config.error,
        mean=mean,
        deviation=deviation,
        inputs=config.in_domains,
        depth=config.target == "depth",
    )
    return assemble(config, task, source, held_out)


def load_data(config: DepthConfig) -> tuple[Dense, Dense]:
    """The training and the held-out scenes with their maps.

    Raises:
        ValueError: no such data, or not in the form expected.
    """
    return _sources(config, readers_of(config, config.target))


def load_held_out(config: DepthConfig, own: Source) -> Dense:
    """The held-out scenes alone, of data that may have no others; those of the run are not asked.

    Raises:
        ValueError: as of `load_data`.
    """
    return _sources(config, readers_of(config, config.target, held_out_only=True))[1]


def _sources(config: DepthConfig, data: DenseData) -> tuple[Dense, Dense]:
    if config.target == "depth":
        view: View = DepthView(size=config.input_size, hflip=config.hflip)
    else:
        view = DenseView(size=config.input_size, hflip=config.hflip)
    far = config.max_depth if config.target in ("depth", "depth_zbuffer") else None
    return dense_sources(config, data, view, target=config.target, max_depth=far)


def _moments(config: DepthConfig, source: Dense) -> tuple[float, float]:
    """Mean and deviation of the targets, as the options say or as they are measured."""
    mean, deviation = config.target_mean, config.target_deviation
    if mean is not None and deviation is not None:
        return mean, deviation
    some = torch.linspace(0, len(source) - 1, min(MEASURED, len(source))).long()
    batch = fetch_batch(source, some)
    values = batch["target"][batch["valid"].expand_as(batch["target"])].double()
    if len(values) < 2 or float(values.std()) == 0:
        raise ConfigError(
            f"target_mean and target_deviation cannot be measured: the first {len(some)} examples "
            f"looked at hold {len(values)} valid pixels of {config.target}, all alike; give both"
        )
    return (
        float(values.mean()) if mean is None else mean,
        float(values.std()) if deviation is None else deviation,
    )
