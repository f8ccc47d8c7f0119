"""What a training step of MultiMAE costs against its floating-point work.

The work is counted (``torch.utils.flop_counter``: matrix products, convolutions, attention), the
machine's rate is measured on one large matrix product in the same process, and the step is the
`train` stage's own: forward, backward, AdamW. A ratio of 1.0 would be a step that did nothing but
matrix products at that rate.

The second table is the encoder alone: on the visible tokens of masked pictures, against the same
blocks on a plain sequence of as many tokens, and on all tokens. Masking must cost what is visible.

    python benchmarks/multimae.py [--model micro] [--batch_size 32] [--threads 1] [--device cpu]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from tensordict import TensorDict
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from attent.models.multimae import Decoders, build_multimae, draw_order, num_draws
from attent.models.multimae.masking import TokenOrder, pick
from attent.pipeline import Step, TensorSource, adamw, full, initial_state, initialize, run, train
from attent.tasks.pretraining import MaskedPretraining

CASES = {
    "micro": {"image": 64, "patch": 8, "visible": 32, "decoders": Decoders(dim=64, num_heads=4)},
    "base": {"image": 224, "patch": 16, "visible": 98, "decoders": Decoders()},
}


def clock(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def seconds(device: torch.device, work: Callable[[], object]) -> float:
    start = clock(device)
    work()
    return clock(device) - start


def flops(work: Callable[[], object]) -> int:
    # Attention written out: the counter has no rule for the CPU's fused kernel.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return counter.get_total_flops()


def source(case: dict, count: int) -> TensorSource:
    draw, side = torch.Generator().manual_seed(0), case["image"]
    return TensorSource(
        {
            "rgb": torch.randn(count, 3, side, side, generator=draw),
            "depth": torch.rand(count, 1, side, side, generator=draw),
            "semseg": torch.randint(8, (count, side // 4, side // 4), generator=draw),
        }
    )


def a_step(task: MaskedPretraining, data: TensorSource, batch_size: int) -> Callable[[], object]:
    """One tick of one step, its state given up: what a run does."""
    stage = train(task, data, optimizer=adamw(1e-4), step=Step(batch_size=batch_size), steps=1)
    tick = full(data, train=stage, epochs=1_000_000)
    held = [initialize(tick, initial_state(task, data))]

    def work() -> None:
        held[0] = run(tick, held[0], donate=True)

    return work


def encoders(task: MaskedPretraining, batch: TensorDict) -> dict[str, tuple[int, Callable]]:
    """Name -> (tokens of an example, what runs the encoder's forward and backward on them)."""
    model = task.multimae
    layout = task.layout(batch)
    sizes = list(layout.sizes.values())
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(len(batch), num_draws(sizes), dtype=torch.float64, generator=draw)
    device = batch["rgb"].device
    drawn = draw_order(noise, sizes, task.num_encoded_tokens)
    order = TokenOrder(drawn.order.to(device), drawn.num_visible)
    embedded = model.embed(task.pictures(batch)).detach()
    plain = torch.randn(
        len(batch), order.num_visible + model.num_global_tokens, model.dim, device=device
    )

    def forward_backward(tokens: Callable[[], Tensor]) -> Callable[[], None]:
        def work() -> None:
            model.encoder(tokens()).sum().backward()
            model.zero_grad(set_to_none=True)

        return work

    return {
        "plain sequence": (plain.shape[1], forward_backward(lambda: plain)),
        "visible tokens": (
            plain.shape[1],
            forward_backward(lambda: model.with_global(pick(embedded, order.keep))),
        ),
        "all tokens": (
            embedded.shape[1] + model.num_global_tokens,
            forward_backward(lambda: model.with_global(embedded)),
        ),
    }


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=CASES, default="micro")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--device", default="cpu")
    return parser.parse_args()


def make_task(name: str, device: torch.device) -> MaskedPretraining:
    torch.manual_seed(0)
    case = CASES[name]
    model = build_multimae(
        f"pretrain_multimae_{name}",
        image_size=case["image"],
        patch_size=case["patch"],
        num_semseg_classes=8 if name == "micro" else 133,
        decoders=case["decoders"],
    )
    task = MaskedPretraining(model, num_encoded_tokens=case["visible"])
    task.model.to(device)
    return task


def medians(
    device: torch.device, rounds: int, works: dict[str, Callable[[], object]]
) -> dict[str, float]:
    """Seconds each takes, the median of rounds in which they take turns."""
    taken: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
    for _ in range(rounds):
        for name, work in works.items():
            taken[name].append(seconds(device, work))
    return {name: statistics.median(values) for name, values in taken.items()}


def main() -> None:
    chosen = options()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    device, case = torch.device(chosen.device), CASES[chosen.model]
    task = make_task(chosen.model, device)
    data = source(case, 2 * chosen.batch_size)
    step = a_step(task, data, chosen.batch_size)
    side = 1536 if device.type == "cpu" else 8192
    square = torch.randn(side, side, device=device)
    parts = encoders(task, data.fetch(torch.arange(chosen.batch_size)).to(device))
    work, works = flops(step), {name: flops(part) for name, (_, part) in parts.items()}
    took = medians(
        device,
        chosen.rounds,
        {"product": lambda: square @ square, "step": step}
        | {name: part for name, (_, part) in parts.items()},
    )
    rate = 2 * side**3 / took["product"]
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    print(
        f"{where}, {torch.get_num_threads()} threads, float32, batches of {chosen.batch_size}, "
        f"medians of {chosen.rounds} rounds; a matrix product of {side}: {rate / 1e9:.1f} GFLOP/s"
    )
    print(
        f"pretrain_multimae_{chosen.model}, {case['visible']} of "
        f"{3 * (case['image'] // case['patch']) ** 2} patches seen: "
        f"{chosen.batch_size / took['step']:.1f} examples/s, "
        f"{work / chosen.batch_size / 1e9:.3f} GFLOP an example, "
        f"{took['step'] * rate / work:.2f} times its work at that rate"
    )
    print("encoder, forward and backward     tokens  GFLOP  / plain sequence  / its work")
    for name, (tokens, _) in parts.items():
        print(
            f"  {name:30s}  {tokens:6d}  {works[name] / 1e9:5.1f}  "
            f"{took[name] / took['plain sequence']:16.2f}  {took[name] * rate / works[name]:10.2f}"
        )


if __name__ == "__main__":
    main()
