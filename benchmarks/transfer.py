"""What pre-training is worth, and what selection is worth in fine-tuning: tables on real runs.

    python benchmarks/transfer.py pretraining --pretrained RUN [--tasks classify segment depth]
    python benchmarks/transfer.py selection [--pretrained RUN] [--data digits scenes]

``pretraining``: an encoder fine-tuned from a run of ``attent pretrain`` (such as ``make run``)
against the same encoder from scratch: all but the initial weights is the same, for each of some
seeds. The scenes are of those seeds, none of which the pre-training has seen (its own is 0);
that has seen depth and labels of other scenes, which training from scratch has not.

``selection``: plain training, random selection and AtteNTComplex (hard, soft) of a classifier at an
equal budget of examples trained on; and the cost, scoring included, at which each first is as good
as plain training is at its end. Costs are in epochs of plain training: a forward counts 1, a
backward 2. The first evaluation that reaches a figure is a lucky one: it flatters all alike.

Every run is a folder below ``--out``: a table is made of logs, and runs that are there are not made
again. Means over seeds, with the standard error of the mean.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runs import last, mean, measured, run

from attent.pipeline.plan import TRAIN_COST

ENCODER: dict[str, Any] = {
    "model": "multivit_micro",
    "patch_size": 8,
    "data": "scenes",
    "drop_path": 0.0,
    "layer_decay": 1.0,
    "batch_size": 32,
    "lr": 1e-3,
    "clip": 1.0,
}

TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "classify": ("val_accuracy", {"image_size": 64, "crop_scale": 0.5, "flip": 0.5}),
    "segment": (
        "val_miou",
        {"input_size": 64, "head": "segmenter", "scale_min": 0.8, "scale_max": 1.5},
    ),
    "depth": ("val_delta1", {"input_size": 64, "head": "dpt", "max_depth": 30.0}),
}
"""Command -> the figure that is compared, and its options."""

DIGITS: dict[str, Any] = {
    "data": "digits",
    "model": "vit_digits",
    "batch_size": 32,
    "lr": 2e-3,
    "clip": 1.0,
}

METHODS: dict[str, dict[str, Any]] = {
    "full": {"method": "full"},
    "random": {"selection_strategy": "random"},
    "hard": {"selection_strategy": "hard"},
    "soft": {"selection_strategy": "soft"},
}


def cost(line: dict[str, Any], num_examples: int) -> float:
    """Of a run up to a line of its log, in epochs of plain training."""
    forwards = line["forwarded"] + (TRAIN_COST - 1) * line["backwarded"]
    return forwards / (TRAIN_COST * num_examples)


def reached(log: Sequence[dict[str, Any]], metric: str, aim: float, count: int) -> float | None:
    """The cost at which a figure first is as high as ``aim``; None for never."""
    return next((cost(line, count) for line in measured(log, metric) if line[metric] >= aim), None)


def pretraining(chosen: argparse.Namespace) -> None:
    rows = []
    for task in chosen.tasks:
        metric, options = TASKS[task]
        found: dict[str, list[float]] = {"scratch": [], "pre-trained": []}
        for seed in chosen.seeds:
            for init in found:
                given = ENCODER | options | {"num_train": chosen.num_train, "epochs": chosen.epochs}
                given |= {"seed": seed, "method": "full", "warmup_epochs": 1.0}
                if init == "pre-trained":
                    given |= {"pretrained_weights": chosen.pretrained}
                log = run(chosen.out, f"{task}-{init}-{seed}", task, given)
                found[init].append(last(log, metric))
        gains = [b - a for a, b in zip(found["scratch"], found["pre-trained"], strict=True)]
        rows.append(
            f"| {task}: {metric.removeprefix('val_')}, % | {mean(found['scratch'], 1, 100)} "
            f"| {mean(found['pre-trained'], 1, 100)} | {mean(gains, 1, 100)} "
            f"| {min(gains) * 100:+.1f} |"
        )
    print(f"\n{chosen.num_train} scenes, {chosen.epochs} epochs, seeds {chosen.seeds}\n")
    print("| task | from scratch | pre-trained | gain, paired | least gain |")
    print("|---|---|---|---|---|")
    print("\n".join(rows))


def selection(chosen: argparse.Namespace) -> None:
    for data in chosen.data:
        if data == "digits":
            options, count, epochs = DIGITS, 1437, 60
        else:
            options = ENCODER | TASKS["classify"][1] | {"num_train": chosen.num_train}
            options |= {"pretrained_weights": chosen.pretrained}
            count, epochs = chosen.num_train, chosen.epochs
        logs: dict[str, list[list[dict[str, Any]]]] = {name: [] for name in METHODS}
        for seed in chosen.seeds:
            for name, method in METHODS.items():
                given = options | method | {"seed": seed, "epochs": epochs}
                if name != "full":
                    given |= {"initial_interval": 1, "total_cycles": max(1, epochs // 4)}
                logs[name].append(run(chosen.out, f"{data}-{name}-{seed}", "classify", given))
        aims = [last(log, "val_accuracy") for log in logs["full"]]
        print(
            f"\n{data}: {count} training images, a budget of {epochs} epochs, seeds {chosen.seeds}"
        )
        print(
            "\n| method | cost, epochs | accuracy, % | loss | cost at which it is as good as full |"
        )
        print("|---|---|---|---|---|")
        for name, runs in logs.items():
            costs = [cost(log[-1], count) for log in runs]
            when = [
                reached(log, "val_accuracy", aim, count)
                for log, aim in zip(runs, aims, strict=True)
            ]
            said = [value for value in when if value is not None]
            never = (
                f" (never for {len(when) - len(said)} of {len(when)})"
                if len(said) < len(when)
                else ""
            )
            accuracy = mean([last(log, "val_accuracy") for log in runs], 2, 100)
            loss = mean([last(log, "val_loss") for log in runs], 3)
            print(
                f"| {name} | {mean(costs)} | {accuracy} | {loss} "
                f"| {mean(said) if said else '-'}{never} |"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("what", choices=("pretraining", "selection"))
    parser.add_argument("--pretrained", default=None, help="a finished run of attent pretrain")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument(
        "--data", nargs="+", choices=("digits", "scenes"), default=["digits", "scenes"]
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--num_train", type=int, default=1000)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--out", type=Path, default=Path("out/transfer"))
    chosen = parser.parse_args()
    if chosen.what == "pretraining" and chosen.pretrained is None:
        parser.error("give --pretrained, a run of attent pretrain: make run makes one")
    (pretraining if chosen.what == "pretraining" else selection)(chosen)


if __name__ == "__main__":
    main()
