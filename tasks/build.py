"""From options to what a run is made of: task, sources, graph, plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from tensordict import TensorDict
from torch import nn

from attent.models.vit import build_vit, input_size, normalization
from attent.pipeline import (
    Loading,
    Optimizer,
    Plan,
    Rule,
    Source,
    Stage,
    Step,
    TensorSource,
    adamw,
    attent_complex,
    attent_simple,
    cosine,
    evaluate,
    fixed_interval,
    full,
    hard,
    incremental,
    incremental_interval,
    initial_state,
    initialize,
    plan_of,
    random,
    sgd,
    soft,
    train,
    validate,
    warmup_cosine,
)
from attent.pipeline.keyed import all_global_generators, fold
from attent.pipeline.source import fetch_batch
from attent.tasks.classification import Augment, Classification
from attent.tasks.config import ClassifyConfig, ConfigError, observed_signal
from attent.tasks.data.digits import digits
from attent.tasks.data.folder import ImageFolder
from attent.tasks.data.npz import npz


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a run is made of.

    Attributes:
        task: what is learned.
        source: the training examples.
        held_out: the examples it is measured on, the split called ``val``.
        tick: the graph.
        plan: its arithmetic.
        state: before the first tick.
        best: the metric by which the best checkpoint is kept.
        signal: which scores are recorded; None if there are none.
    """

    task: Classification
    source: Source
    held_out: Source
    tick: Stage
    plan: Plan
    state: TensorDict
    best: str
    signal: str | None


def device_of(name: str) -> torch.device:
    """A device by name; ``auto`` is a GPU where there is one.

    Raises:
        ConfigError: a GPU is asked for where there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device {name}: torch sees no GPU here; use device cpu or auto")
    return torch.device(name)


def build_classify(config: ClassifyConfig) -> Run:
    """Everything `attent classify` needs, checked before any training.

    Raises:
        ValueError: what the options ask for cannot be; the message says why.
    """
    device = device_of(config.device)
    source, held_out, num_classes = _data(config)
    task = Classification(
        _model(config, source, num_classes).to(device),
        num_classes,
        label_smoothing=config.label_smoothing,
        augment=Augment(shift=config.shift, flip=config.flip),
    )
    observe = observed_signal(config)
    loading = Loading(workers=config.workers, pin_memory=device.type == "cuda")
    stage = train(
        task,
        source,
        optimizer=_optimizer(config),
        step=Step(
            batch_size=config.batch_size,
            accumulate=config.accumulate,
            clip=config.clip,
            bfloat16=config.bf16,
            compile=config.compile,
        ),
        steps=config.steps_per_tick,
        observe=observe or False,
        loading=loading,
    )
    measure = evaluate(task, held_out, loading=loading)
    tick = _recipe(config, task, source, stage, measure, loading)
    state = initial_state(task, source, seed=config.seed)
    validate(tick, state)
    state = initialize(tick, state)
    asks_scores = config.method != "full" and config.selection_strategy != "random"
    signal = (observe or config.signal) if asks_scores else None
    return Run(
        task=task,
        source=source,
        held_out=held_out,
        tick=tick,
        plan=plan_of(tick),
        state=state,
        best="val_accuracy",
        signal=signal,
    )


def load_data(config: ClassifyConfig) -> tuple[Source, Source]:
    """The training and the held-out examples.

    Raises:
        ValueError: no such data, or not in the form expected.
    """
    if config.data == "digits":
        return digits(config.held_out, seed=config.seed)
    path = Path(config.data)
    if path.suffix == ".npz" and path.is_file():
        return npz(path, config.held_out, seed=config.seed)
    if path.is_dir():
        size = config.image_size or (input_size(config.model) or (3, 224))[1]
        mean, deviation = normalization(config.model)
        source = ImageFolder(path / "train", size=size, mean=mean, deviation=deviation)
        held_out = ImageFolder(
            path / "val", size=size, classes=source.classes, mean=mean, deviation=deviation
        )
        return source, held_out
    raise ConfigError(
        f"data: there is no {path}; it is 'digits', a folder of {{train,val}}/CLASS/IMAGE, or an "
        ".npz file of images and labels"
    )


def _data(config: ClassifyConfig) -> tuple[Source, Source, int]:
    source, held_out = load_data(config)
    labels = [_labels(part) for part in (source, held_out)]
    found = 1 + max(int(part.max()) for part in labels)
    num_classes = config.num_classes or found
    for name, part in zip(("training", "held-out"), labels, strict=True):
        bad = (part < 0) | (part >= num_classes)
        if bool(bad.any()):
            first = int(bad.nonzero()[0])
            raise ConfigError(
                f"labels out of range: {name} example {first} has label {int(part[first])}; with "
                f"num_classes {num_classes} labels are 0 to {num_classes - 1} "
                f"({int(bad.sum())} examples are out of range)"
            )
    return source, held_out, num_classes


def _labels(source: Source) -> torch.Tensor:
    return source.fields["label"] if isinstance(source, TensorSource) else source.labels  # type: ignore[attr-defined]


def _model(config: ClassifyConfig, source: Source, num_classes: int) -> nn.Module:
    image = fetch_batch(source, torch.tensor([0]))["image"]
    channels, height, width = image.shape[1:]
    if height != width:
        raise ConfigError(f"images are {height} x {width}; they must be square")
    made_for = input_size(config.model)
    resize = made_for is not None and made_for[1] != height
    with all_global_generators(fold(config.seed, "model")):
        return build_vit(
            config.model,
            num_classes=num_classes,
            in_chans=channels,
            img_size=height if resize else None,
            drop_path_rate=config.drop_path,
            pretrained=config.pretrained,
            model_args=config.model_args,
        )


def _optimizer(config: ClassifyConfig) -> Optimizer:
    share = 0.05 if config.warmup_epochs is None else config.warmup_epochs / config.epochs
    lr = warmup_cosine(config.lr, warmup=share, floor=config.min_lr)
    if config.optimizer == "sgd":
        return sgd(lr, momentum=config.momentum, weight_decay=config.weight_decay)
    return adamw(lr, weight_decay=config.weight_decay)


def rule_of(config: ClassifyConfig) -> Rule:
    """The selection rule the options name."""
    if config.selection_strategy == "soft":
        return soft(config.gumbel_temperature, config.soft_normalization)
    return hard() if config.selection_strategy == "hard" else random()


def _recipe(
    config: ClassifyConfig,
    task: Classification,
    source: Source,
    stage: Stage,
    measure: Stage,
    loading: Loading,
) -> Stage:
    every = config.eval_every
    if config.method == "full":
        return full(source, train=stage, epochs=config.epochs, evaluate=measure, eval_every=every)
    if config.method == "attent_simple":
        return attent_simple(
            source,
            train=stage,
            epochs=config.epochs,
            ratio=config.attent_ratio,
            rule=rule_of(config),
            evaluate=measure,
            eval_every=every,
        )
    ratio = {"cosine": cosine, "incremental": incremental}[config.ratio_schedule]
    if config.interval_schedule == "fixed":
        interval = fixed_interval(config.initial_interval)
    else:
        interval = incremental_interval(config.initial_interval, config.max_interval)
    return attent_complex(
        task,
        source,
        train=stage,
        epochs=config.epochs,
        rule=rule_of(config),
        ratio=ratio(config.initial_ratio, config.final_ratio),
        interval=interval,
        cycles=config.total_cycles,
        accounting=config.budget,
        signal=config.signal,
        observed=config.scores == "observed",
        chunk=config.score_chunk,
        # A scoring tick forwards as many examples as a training tick, so that an interrupt, the
        # bar and a checkpoint wait no longer for it.
        score_per_tick=config.steps_per_tick * config.batch_size,
        loading=loading,
        evaluate=measure,
        eval_every=every,
    )
