"""Instruction tuning as a task: scores that are the row's own, every signal, exact resuming."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
from tensordict import TensorDict
from torch.nn import functional as F

from attent.models.adalora import RankAllocatingAdamW
from attent.models.adapters import with_adapters
from attent.models.language import IGNORED, LanguageModel, build_causal
from attent.pipeline import (
    Step,
    adamw,
    assert_stage_laws,
    attent_simple,
    evaluate,
    fit,
    initial_state,
    initialize,
    per_example,
    run,
    train,
)
from attent.pipeline.ghost.tape import listening_for
from attent.pipeline.keyed import generator
from attent.pipeline.keys import differences
from attent.pipeline.score import flat
from attent.pipeline.signals import SIGNALS
from attent.pipeline.task import functional_losses, trainable
from attent.tasks.language import InstructionTuning

WORDS = 40


def task_of(adapter: str = "lora", *, seed: int = 0, scale: float = 0.3, **options):
    """Two layers of 16 features; adapters that do something."""
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(seed)
        causal = build_causal("llama:dim=16,depth=2,num_heads=2", vocab_size=WORDS)
        causal = with_adapters(causal, adapter, rank=2, alpha=4, dropout=options.pop("dropout", 0))
        model = LanguageModel(causal, chunk=options.pop("chunk", 5), **options)
        with torch.no_grad():
            for p in model.parameters():
                if p.ndim > 1:
                    p.normal_(std=scale)
    return InstructionTuning(model)


class Rows:
    """Rows of tokens with prompts of different lengths; padded to the longest of a batch."""

    def __init__(self, lengths=(9, 4, 12, 6, 7, 5), prompts=(3, 2, 6, 1, 4, 4)) -> None:
        draw = generator(9)
        self.ids = [torch.randint(3, WORDS, (n,), generator=draw) for n in lengths]
        self.prompts = list(prompts)
        self.lengths = torch.tensor(lengths)

    def __len__(self) -> int:
        return len(self.ids)

    def fetch(self, index: torch.Tensor) -> TensorDict:
        return self.padded(index.tolist(), int(self.lengths[index].max()))

    def padded(self, index: list[int], width: int, junk: int = 0) -> TensorDict:
        ids = torch.full((len(index), width), junk)
        labels = torch.full((len(index), width), IGNORED)
        for row, i in enumerate(index):
            n = len(self.ids[i])
            ids[row, :n] = self.ids[i]
            labels[row, self.prompts[i] : n] = self.ids[i][self.prompts[i] :]
        fields = {"input_ids": ids, "labels": labels, "index": torch.tensor(index)}
        fields["length"] = self.lengths[index]
        return TensorDict(fields, batch_size=[len(index)])


def measured(task, batch, signal: str, chunk: int | None = 4) -> torch.Tensor:
    task.model.eval()
    params = {name: p.detach() for name, p in trainable(task.model).items()}
    return SIGNALS[signal].measure(task, params, dict(task.model.named_buffers()), batch, chunk)


def by_hand(task, rows: Rows, i: int):
    """Loss and gradient norms of one row alone, without padding, from the model's own logits."""
    ids = rows.ids[i]
    task.model.eval()
    logits = task.model.causal(input_ids=ids[None]).logits[0, :-1]
    logits.retain_grad()
    first = rows.prompts[i]
    loss = F.cross_entropy(logits[first - 1 :], ids[first:])
    task.model.zero_grad()
    loss.backward()
    grads = [p.grad for p in task.model.parameters() if p.grad is not None]
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    found = loss.detach(), norm, logits.grad.norm()
    task.model.zero_grad()
    return found


ADAPTERS = ["lora", "dora", "full"]


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize(
    "signal", ["loss", "grad_norm", "vmap_grad_norm", "looped_grad_norm", "output_grad_norm"]
)
def test_a_score_is_of_the_row_alone(adapter, signal):
    """Whatever it is padded with, to whatever length, and beside whomever."""
    task, rows = task_of(adapter), Rows()
    place = {"loss": 0, "output_grad_norm": 2}.get(signal, 1)
    expected = torch.stack([by_hand(task, rows, i)[place] for i in range(6)])
    assert float(expected.std()) > 0.02 * float(expected.mean())
    together = measured(task, rows.fetch(torch.arange(6)), signal)
    torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)
    padded = measured(task, rows.padded([3, 1], 20, junk=7), signal)
    torch.testing.assert_close(padded, expected[[3, 1]], rtol=1e-4, atol=1e-5)
    alone = torch.cat([measured(task, rows.fetch(torch.tensor([i])), signal) for i in range(6)])
    torch.testing.assert_close(alone, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_last_layer_is_the_head_whether_it_is_trained_or_not(adapter):
    task, rows = task_of(adapter), Rows()
    head = task.model.inner.get_output_embeddings()
    batch = rows.fetch(torch.arange(6))
    found = measured(task, batch, "last_layer")
    expected = []
    for i in range(6):
        hidden = task.model.inner.base_model(input_ids=rows.ids[i][None]).last_hidden_state[0]
        weight = head.weight.detach().clone().requires_grad_()
        first = rows.prompts[i]
        logits = hidden.detach()[first - 1 : -1] @ weight.T
        (grad,) = torch.autograd.grad(F.cross_entropy(logits, rows.ids[i][first:]), weight)
        expected.append(grad.norm())
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-5)


def test_length_alone_does_not_move_a_score():
    """The same token again and again, under a head that sees no position: the mean stays."""
    task = task_of("full", scale=0.0)
    rows = Rows(lengths=(4, 8, 16), prompts=(2, 2, 2))
    found = measured(task, rows.fetch(torch.arange(3)), "loss")
    torch.testing.assert_close(found, torch.full((3,), WORDS).log())


def test_signals_may_count_tokens():
    task, rows = task_of(), Rows()
    batch = rows.fetch(torch.arange(6))
    counts = rows.lengths - torch.tensor(rows.prompts)
    assert task.targets(batch).tolist() == counts.tolist()
    mean, total = (per_example("output_grad_norm", kind) for kind in ("mean", "sum"))
    params = {name: p.detach() for name, p in trainable(task.model).items()}
    buffers = dict(task.model.named_buffers())
    task.model.eval()
    torch.testing.assert_close(
        total.measure(task, params, buffers, batch, None),
        mean.measure(task, params, buffers, batch, None) * counts,
    )


def test_a_row_without_anything_to_learn_has_no_loss():
    task, rows = task_of(), Rows()
    batch = rows.fetch(torch.arange(2))
    batch["labels"][1] = IGNORED
    for signal in ("loss", "grad_norm", "output_grad_norm"):
        found = measured(task, batch, signal)
        assert float(found[1]) == 0
        assert float(found[0]) > 0


def test_the_tape_listens_for_the_head_only_where_it_is_asked_for(monkeypatch):
    """With a frozen head gradient norms take the way by chunks; the head's own take the plain."""
    import attent.models.language as language

    calls = []
    plain = language.plain_token_losses

    def noted(*args):
        calls.append("plain")
        return plain(*args)

    monkeypatch.setattr(language, "plain_token_losses", noted)
    batch = Rows().fetch(torch.arange(6))
    for adapter, signal, expected in (
        ("lora", "loss", False), ("lora", "grad_norm", False), ("lora", "output_grad_norm", False),
        ("lora", "last_layer", True), ("full", "grad_norm", True), ("full", "loss", False),
        ("lora", "vmap_grad_norm", True),
    ):  # fmt: skip
        task = task_of(adapter)
        calls.clear()
        measured(task, batch, signal)
        assert bool(calls) == expected, (adapter, signal)
    assert not listening_for(torch.zeros(1))


# --- metrics


def test_perplexity_is_over_the_tokens_of_the_split():
    task, rows = task_of(), Rows()
    results = []
    for batch_size in (1, 4, 6):
        stage = evaluate(task, rows, batch_size=batch_size)
        state = run(stage, initialize(stage, initial_state(task, rows)))
        results.append([float(state["metrics", f"val_{m}"]) for m in ("loss", "perplexity")])
    params = flat(initial_state(task, rows)["params"])
    losses = torch.cat(
        [
            functional_losses(task, params, {}, rows.fetch(torch.tensor([i]))).detach()
            for i in range(6)
        ]
    )
    counts = rows.lengths - torch.tensor(rows.prompts)
    mean = float((losses * counts).sum() / counts.sum())
    assert mean != pytest.approx(float(losses.mean()), rel=1e-3)
    for loss, perplexity in results:
        assert loss == pytest.approx(mean, rel=1e-5)
        assert perplexity == pytest.approx(torch.tensor(mean).exp().item(), rel=1e-5)


# --- packing


@pytest.mark.parametrize("signal", ["loss", "output_grad_norm"])
def test_packed_rows_have_the_scores_that_they_have_alone(signal):
    batch = Rows().fetch(torch.arange(6))
    packed = InstructionTuning(task_of().model, packing=True)
    torch.testing.assert_close(
        measured(packed, batch, signal), measured(task_of(), batch, signal), rtol=1e-4, atol=1e-5
    )


def test_training_on_packed_rows_is_training_on_rows():
    """On the same batches, which are not built by length; only sums are in another order."""

    def trained(packing: bool):
        task, rows = task_of(), Rows()
        task = InstructionTuning(task.model, packing=packing)
        rows.bucketed = False
        return fit(tick_of(task, rows), initial_state(task, rows, seed=1))

    plain, packed = trained(False), trained(True)
    assert torch.equal(plain["mask"], packed["mask"])
    for name in plain["params"].keys():
        torch.testing.assert_close(
            plain["params", name], packed["params", name], rtol=0.02, atol=2e-3
        )


# --- training


def tick_of(task, rows, steps=50, observe=True, **options):
    trainer = train(
        task, rows, optimizer=adamw(0.01), step=Step(batch_size=2, clip=1.0, **options),
        steps=steps, observe=observe,
    )  # fmt: skip
    return attent_simple(rows, train=trainer, epochs=4, ratio=0.7)


def final(steps: int, adapter: str = "lora", observe=True, dropout=0.1, **options):
    task, rows = task_of(adapter, dropout=dropout), Rows()
    state = initial_state(task, rows, seed=1)
    return fit(tick_of(task, rows, steps, observe, **options), state)


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_where_ticks_begin_and_end_changes_no_bit(adapter):
    reference = final(1, adapter)
    for steps in (7, 50):
        assert differences(reference, final(steps, adapter)) == []


def test_adapters_alone_are_in_the_state():
    state = final(50)
    assert all("lora_" in name for name in state["params"].keys())
    assert not any("weight" in name for name in state["buffers"].keys())


def test_simple_selects_the_highest_observed_losses():
    state = final(50)
    chosen, scores = state["mask"], state["scores", "loss"]
    assert int(chosen.sum()) == 4
    assert bool((scores > 0).all())
    assert bool((state["scores", "step"] >= 0).all())


@pytest.mark.parametrize("adapter", ["lora", "full", "adalora"])
def test_what_is_observed_in_training_are_the_scores(adapter):
    task, rows = task_of(adapter), Rows()
    batch = rows.fetch(torch.arange(6))
    expected = {signal: measured(task, batch, signal) for signal in ("loss", "grad_norm")}
    optimizer = adamw(0.0, weight_decay=0.0)
    if adapter == "adalora":  # whose penalty is of no row
        make = lambda groups: RankAllocatingAdamW(  # noqa: E731
            groups, task.model.causal, orthogonality=5.0, lr=0.0
        )
        optimizer = replace(optimizer, make=make)
    trainer = train(task, rows, optimizer=optimizer, step=Step(batch_size=6), observe="grad_norm")
    state = initialize(trainer, initial_state(task, rows))
    state["plan", "budget"] = torch.tensor(6)
    state = run(trainer, state)
    for signal, scores in expected.items():
        torch.testing.assert_close(state["scores", signal], scores, rtol=1e-4, atol=1e-5)


def test_training_learns_and_in_parts_it_learns_the_same():
    task, rows = task_of(), Rows()
    before = measured(task, rows.fetch(torch.arange(6)), "loss").mean()
    whole, parts = final(50, dropout=0), final(50, dropout=0, accumulate=2)
    assert float(whole["scores", "loss"].mean()) < float(before)
    for name in whole["params"].keys():
        torch.testing.assert_close(
            whole["params", name], parts["params", name], rtol=0.02, atol=2e-3
        )


def test_a_train_stage_keeps_the_laws():
    task, rows = task_of(dropout=0.1), Rows()
    stage = train(task, rows, optimizer=adamw(0.01), step=Step(batch_size=2), steps=2, observe=True)
    state = initialize(stage, initial_state(task, rows))
    state["plan", "budget"] = torch.tensor(12)
    assert_stage_laws(stage, state)


def test_under_bfloat16_autocast_it_trains():
    state = final(50, bfloat16=True)
    assert bool(torch.isfinite(state["scores", "loss"]).all())
    assert all(value.dtype == torch.float32 for value in state["params"].values())
