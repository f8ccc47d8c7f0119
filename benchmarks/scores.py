"""What scores cost, against one ordinary forward and backward of the same batch (= 1.00).

    python benchmarks/scores.py [--case vit64 vit224 llama lora mae] [--rounds 5] [--threads 1]

Times are medians of interleaved rounds in one process, as ratios to the step of the same round.
Peak memory is what the process grew by, above the loaded model and batch, in a process of its own.
Each method's norms are compared with those of the plain loop. Opacus is timed where it is
installed (`pip install opacus`); it is not needed otherwise.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from memory import growth
from tensordict import TensorDict
from torch import Tensor

import models
from attent.pipeline import SIGNALS
from attent.pipeline.ghost.training import ObservedNorms

CHUNKS = (None, 8, 4)


class Case:
    """A task, a batch, and the ways to score it; each way gives norms, or None."""

    def __init__(self, name: str, device: str) -> None:
        self.task, batch = models.make(name)
        self.task.model.to(device)
        self.batch: TensorDict = batch.to(device)
        self.device = device
        named = list(self.task.model.named_parameters())
        self.trained = {n: p for n, p in named if p.requires_grad}
        self.params = {n: p.detach() for n, p in self.trained.items()}
        self.buffers = dict(self.task.model.named_buffers())
        self.observed = ObservedNorms(self.task)

    def losses(self, batch: TensorDict | None = None, model: Any = None) -> Tensor:
        """The losses of the batch by the model as it is."""
        batch = self.batch if batch is None else batch
        return self.task.losses(self.task.forward(model or self.task.model, batch), batch)

    def step(self) -> None:
        """The reference: what a training step computes before its optimiser."""
        self.losses().mean().backward()
        self.task.model.zero_grad(set_to_none=True)

    def signal(self, name: str, chunk: int | None = None) -> Tensor:
        """One of the library's signals."""
        return SIGNALS[name].measure(self.task, self.params, self.buffers, self.batch, chunk)

    def ghost_in_training(self) -> Tensor:
        """The step, with every example's norm beside the gradient."""
        size = len(self.batch)
        with self.observed.watch(self.trained, self.batch) as watch:
            losses = self.losses()
        losses.mean().backward()
        norms = watch.norms(torch.full((size,), 1 / size, device=self.device))
        self.task.model.zero_grad(set_to_none=True)
        return norms

    def loop(self) -> Tensor:
        """One example after another."""
        norms = []
        for i in range(len(self.batch)):
            self.losses(self.batch[i : i + 1])[0].backward()
            grads = [p.grad for p in self.trained.values() if p.grad is not None]
            norms.append(torch.stack([g.square().sum() for g in grads]).sum().sqrt())
            self.task.model.zero_grad(set_to_none=True)
        return torch.stack(norms)

    def opacus(self, ghost: bool) -> Tensor:
        """Opacus's per-example gradients, or its ghost norms."""
        model = self._opacus_model(ghost)
        model.train()
        try:
            self.losses(model=model).sum().backward()
            if ghost:
                return model.get_norm_sample()
            grads = [p.grad_sample.flatten(1) for p in self.trained.values()]
            norms = torch.stack([g.square().sum(1) for g in grads]).sum(0).sqrt()
            return norms
        finally:
            model.zero_grad(set_to_none=True)
            for p in self.trained.values():
                p.grad_sample = None
                p._norm_sample = None
            model.eval()

    @functools.cache  # noqa: B019  (two models a process)
    def _opacus_model(self, ghost: bool) -> Any:
        from opacus.grad_sample import GradSampleModule
        from opacus.grad_sample.grad_sample_module_fast_gradient_clipping import (
            GradSampleModuleFastGradientClipping as Ghost,
        )

        if ghost:
            return Ghost(self.task.model, loss_reduction="sum", strict=False)
        return GradSampleModule(self.task.model, loss_reduction="sum", strict=False)

    def methods(self) -> dict[str, Callable[[], Tensor | None]]:
        """Name -> way."""
        ways: dict[str, Callable[[], Tensor | None]] = {
            "step": self.step,
            "loss": lambda: self.signal("loss"),
            "output_grad_norm": lambda: self.signal("output_grad_norm"),
            "last_layer": lambda: self.signal("last_layer"),
            "grad_norm (ghost)": lambda: self.signal("grad_norm"),
            "ghost in training": self.ghost_in_training,
        }
        for chunk in CHUNKS:
            ways[f"vmap, chunk {chunk}"] = functools.partial(self.signal, "vmap_grad_norm", chunk)
        ways["loop"] = self.loop
        return ways


OPACUS = {"opacus GradSampleModule": False, "opacus ghost": True}


def timed(case: Case, method: Callable[[], Tensor | None]) -> float:
    """Seconds of one call."""
    _wait(case.device)
    began = time.perf_counter()
    method()
    _wait(case.device)
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def ratios(case: Case, methods: dict[str, Callable], rounds: int) -> dict[str, list[float] | str]:
    """Of each method, its rounds over the step's; or why it cannot be used."""
    found: dict[str, list[float] | str] = {}
    for name, method in methods.items():
        try:
            method()
            found[name] = []
        except Exception as error:
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:90]}"
    for _ in range(rounds):
        step = timed(case, case.step)
        for name, times in found.items():
            if isinstance(times, list):
                times.append(timed(case, methods[name]) / step)
    return found


def peak(name: str, method: str, device: str) -> float:
    """Growth of the process (or of the GPU's allocations) in MB while a method runs."""
    case = Case(name, device)
    wrapped = method in OPACUS
    way = functools.partial(case.opacus, OPACUS[method]) if wrapped else case.methods()[method]
    if device.startswith("cuda"):
        way()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        way()
        return (torch.cuda.max_memory_allocated() - before) / 1e6
    # Whatever is loaded or surveyed on first use, on two examples.
    whole, case.batch = case.batch, case.batch[:2]
    way()
    case.batch = whole
    return growth(way) / 1e6


def report(name: str, args: argparse.Namespace) -> None:
    """The table of one case."""
    case = Case(name, args.device)
    size = sum(p.numel() for p in case.params.values())
    step = statistics.median(timed(case, case.step) for _ in range(3))
    print(
        f"\n{name}: {size:,} trained parameters, {len(case.batch)} examples, "
        f"step {1000 * step:.0f} ms"
    )
    print(f"{'':26}{'/ step':>8}{'lowest':>8}{'highest':>8}{'error':>10}{'peak MB':>9}")
    exact = case.loop()
    methods = case.methods()
    if args.opacus:  # on models of their own, since its hooks stay on them
        for method, ghost in OPACUS.items():
            methods[method] = functools.partial(Case(name, args.device).opacus, ghost)
    found = ratios(case, methods, args.rounds)
    for method, times in found.items():
        if isinstance(times, str):
            print(f"{method:26}fails: {times}")
            continue
        error = ""
        if method not in ("step", "loss", "output_grad_norm", "last_layer"):
            norms = methods[method]()
            assert norms is not None
            error = f"{float((norms.float() / exact - 1).abs().max()):.1e}"
        words = [sys.executable, __file__, "--memory_of", name, method, "--device", args.device]
        words += ["--threads", str(args.threads)]
        memory = float(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        print(
            f"{method:26}{statistics.median(times):8.2f}{min(times):8.2f}{max(times):8.2f}"
            f"{error:>10}{memory:9.0f}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs="+", default=list(models.CASES), choices=models.CASES)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--memory_of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory_of:
        print(peak(*args.memory_of, args.device))
        return
    try:
        import opacus

        args.opacus = True
        version = f", opacus {opacus.__version__}"
    except ImportError:
        args.opacus, version = False, ", opacus not installed"
    machine = torch.cuda.get_device_name() if args.device != "cpu" else platform.machine()
    print(
        f"median of {args.rounds} rounds, {args.threads} threads, {machine}, torch "
        f"{torch.__version__}{version}"
    )
    for name in args.case:
        report(name, args)


if __name__ == "__main__":
    main()
