"""A linear regression as a task: gradients can be written down by hand."""

from __future__ import annotations

import torch
from tensordict import TensorDict
from torch import nn
from torchmetrics import MeanMetric

from attent.pipeline import Stage, Step, TensorSource, adamw, fit, initial_state, train
from attent.pipeline.keyed import generator


class Linear(nn.Module):
    """y = w.x + b with dropout, batch statistics as a buffer, and a frozen parameter."""

    def __init__(self, dim: int = 3, dropout: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, 1)
        self.dropout = nn.Dropout(dropout)
        self.frozen = nn.Parameter(torch.ones(1), requires_grad=False)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        with torch.no_grad():
            self.linear.weight.copy_(torch.arange(1.0, dim + 1).reshape(1, dim) / 10)
            self.linear.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.calls.add_(1)
        return self.linear(self.dropout(x)).squeeze(-1) * self.frozen


class TinyTask:
    """Squared error of one number; training views add the key's noise."""

    name = "tiny"

    def __init__(self, dropout: float = 0.0, noise: float = 0.0, dim: int = 3) -> None:
        self.model: nn.Module = Linear(dim, dropout)
        self.noise = noise

    def view(self, batch: TensorDict, keys: torch.Tensor, *, training: bool) -> TensorDict:
        if training and self.noise:
            from attent.pipeline import uniform

            batch = batch.copy()
            shift = (uniform(keys) - 0.5).float()[:, None]
            batch["x"] = batch["x"] + self.noise * shift
        return batch

    def forward(self, model, batch: TensorDict) -> torch.Tensor:
        return model(batch["x"])

    def losses(self, output: torch.Tensor, batch: TensorDict) -> torch.Tensor:
        return (output - batch["y"]).square()

    def metrics(self) -> dict:
        return {"loss": MeanMetric(), "error": MeanMetric()}

    def update(self, metrics, output, batch) -> None:
        metrics["loss"].update(self.losses(output, batch))
        metrics["error"].update((output - batch["y"]).abs())


def tiny_source(num_examples: int = 20, dim: int = 3) -> TensorSource:
    draw = generator(7)
    x = torch.randn(num_examples, dim, generator=draw)
    y = x.sum(1) + 0.1 * torch.randn(num_examples, generator=draw)
    return TensorSource({"x": x, "y": y})


def tiny_train(task, source, *, lr: float = 0.05, **options) -> Stage:
    step = options.pop("step", Step(batch_size=4))
    return train(task, source, optimizer=options.pop("optimizer", adamw(lr)), step=step, **options)


def run_fit(make, *, seed: int = 0, observers=(), **task_options):
    """A whole run of a fresh task: make(task, source) -> tick."""
    task, source = TinyTask(**task_options), tiny_source()
    return fit(make(task, source), initial_state(task, source, seed=seed), observers=observers)
