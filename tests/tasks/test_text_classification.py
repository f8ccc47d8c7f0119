"""Text classification as a task: scores that are the text's own, every signal, exact ticks."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict
from torch import nn
from torch.nn import functional as F

from attent.models.adapters import with_adapters
from attent.models.text_classifier import (
    build_classifier,
    head_of,
    load_text_tokenizer,
    pad_alike,
)
from attent.pipeline import (
    Step,
    adamw,
    assert_stage_laws,
    attent_simple,
    evaluate,
    fit,
    initial_state,
    initialize,
    run,
    train,
)
from attent.pipeline.keyed import generator
from attent.pipeline.keys import differences
from attent.pipeline.signals import SIGNALS
from attent.pipeline.task import trainable
from attent.tasks.text_classification import TextClassification
from tests.tasks.texts import release

WORDS = 40
FAMILIES = ["bert", "roberta", "distilbert", "modernbert", "llama"]


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """The folder of an encoder; each is made once."""
    made: dict = {}

    def released(family: str) -> str:
        if family not in made:
            path = tmp_path_factory.mktemp(family)
            made[family] = str(release(path, family, ["abcdefghijklmnopqrstuvwxyz"]))
        return made[family]

    return released


@pytest.fixture(scope="module")
def task_of(released):
    """A task of three classes whose adapters do something."""

    def task_of(family: str = "bert", adapter: str = "lora", dropout: float = 0.0):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model, fresh = build_classifier(released(family), ["a", "b", "c"])
            pad_alike(model, load_text_tokenizer(released(family)))
            model = with_adapters(
                model, adapter, rank=2, alpha=4, dropout=dropout, head=head_of(model, fresh)
            )
            with torch.no_grad():
                for name, p in model.named_parameters():
                    if "lora_B" in name:
                        p.normal_(std=0.3)
        if not dropout:
            for module in model.modules():
                module.p = 0.0 if isinstance(module, nn.Dropout) else getattr(module, "p", None)
        return TextClassification(model, 3)

    return task_of


class Rows:
    """Texts of different lengths, padded to the longest of a batch."""

    def __init__(self, lengths=(9, 4, 12, 6, 7, 5)) -> None:
        draw = generator(9)
        self.ids = [torch.randint(5, 30, (n,), generator=draw) for n in lengths]
        self.labels = torch.arange(len(lengths)) % 3
        self.lengths = torch.tensor(lengths)

    def __len__(self) -> int:
        return len(self.ids)

    def fetch(self, index: torch.Tensor) -> TensorDict:
        return self.padded(index, int(self.lengths[index].max()))

    def padded(self, index: torch.Tensor, width: int, junk: int = 0) -> TensorDict:
        ids = torch.full((len(index), width), junk)
        for row, i in enumerate(index.tolist()):
            ids[row, : len(self.ids[i])] = self.ids[i]
        there = torch.arange(width) < self.lengths[index][:, None]
        fields = {"input_ids": ids, "attention_mask": there.long(), "label": self.labels[index]}
        return TensorDict(fields | {"index": index}, batch_size=[len(index)])


def measured(task, batch, signal: str) -> torch.Tensor:
    task.model.eval()
    params = {name: p.detach() for name, p in trainable(task.model).items()}
    return (
        SIGNALS[signal].measure(task, params, dict(task.model.named_buffers()), batch, 4).detach()
    )


def by_hand(task, rows: Rows, i: int):
    """Loss and gradient norms of one text alone, without padding and mask, by plain autograd."""
    task.model.eval()
    task.model.zero_grad()
    logits = task.model(input_ids=rows.ids[i][None]).logits
    logits.retain_grad()
    loss = F.cross_entropy(logits, rows.labels[i : i + 1])
    loss.backward()
    grads = [p.grad for p in task.model.parameters() if p.grad is not None]
    norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
    found = loss.detach(), norm, logits.grad.norm()
    task.model.zero_grad()
    return found


ADAPTERS = ["lora", "dora", "full"]
EVERY = torch.arange(6)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("adapter", ADAPTERS)
def test_scores_are_those_of_a_plain_loop_over_texts_alone(task_of, family, adapter):
    """Whatever they are padded with, to whatever length, and beside whomever."""
    task, rows = task_of(family, adapter), Rows()
    loss, norm, output = map(
        torch.stack, zip(*(by_hand(task, rows, i) for i in range(6)), strict=True)
    )
    some = torch.tensor([3, 1])
    # RoBERTa counts positions from what is not padding, Llama looks for the last such token: for
    # both padding is no junk.
    padded = rows.padded(some, 20, junk=0 if family in ("roberta", "llama") else 7)
    for signal, expected in (
        ("loss", loss), ("grad_norm", norm), ("vmap_grad_norm", norm),
        ("looped_grad_norm", norm), ("output_grad_norm", output),
    ):  # fmt: skip
        assert float(expected.std()) > 0.02 * float(expected.mean())
        together = measured(task, rows.fetch(EVERY), signal)
        torch.testing.assert_close(together, expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(
            measured(task, padded, signal), expected[some], rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_last_layer_is_the_classifiers(task_of, adapter):
    task, rows = task_of("bert", adapter), Rows()
    found = measured(task, rows.fetch(EVERY), "last_layer")
    (weight,) = (
        p for name, p in task.model.named_parameters()
        if "classifier" in name and name.endswith("weight") and p.requires_grad
    )  # fmt: skip
    (bias,) = (
        p for name, p in task.model.named_parameters()
        if "classifier" in name and name.endswith("bias") and p.requires_grad
    )  # fmt: skip
    for i in range(6):
        logits = task.model(input_ids=rows.ids[i][None]).logits
        loss = F.cross_entropy(logits, rows.labels[i : i + 1])
        grads = torch.autograd.grad(loss, [weight, bias])
        norm = torch.stack([g.square().sum() for g in grads]).sum().sqrt()
        torch.testing.assert_close(found[i], norm, rtol=1e-4, atol=1e-5)


def test_figures_are_of_the_split_whatever_the_batches(task_of):
    task, rows = task_of(), Rows()
    expected = measured(task, rows.fetch(EVERY), "loss").mean()
    with torch.no_grad():
        right = [
            int(task.model(input_ids=rows.ids[i][None]).logits.argmax()) == i % 3 for i in range(6)
        ]
    for batch_size in (1, 4, 6):
        stage = evaluate(task, rows, batch_size=batch_size)
        state = run(stage, initialize(stage, initial_state(task, rows)))
        assert float(state["metrics", "val_loss"]) == pytest.approx(float(expected), rel=1e-5)
        assert float(state["metrics", "val_accuracy"]) == pytest.approx(sum(right) / 6)


# --- training


def final(task, steps: int = 50, observe=True, **options):
    rows = Rows()
    trainer = train(
        task, rows, optimizer=adamw(0.01), step=Step(batch_size=2, clip=1.0, **options),
        steps=steps, observe=observe,
    )  # fmt: skip
    graph = attent_simple(rows, train=trainer, epochs=4, ratio=0.7)
    return fit(graph, initial_state(task, rows, seed=1))


@pytest.mark.parametrize("adapter", ["lora", "full"])
def test_where_ticks_begin_and_end_changes_no_bit(task_of, adapter):
    reference = final(task_of("bert", adapter, dropout=0.1), 1)
    for steps in (7, 50):
        assert differences(reference, final(task_of("bert", adapter, dropout=0.1), steps)) == []


def test_adapters_and_head_alone_are_in_the_state(task_of):
    state = final(task_of())
    names = set(state["params"].keys())
    rest = {name for name in names if "lora_" not in name}
    head = "base_model.model.classifier.modules_to_save.default"
    pooler = "base_model.model.bert.pooler.modules_to_save.default.dense"
    assert rest == {f"{part}.{kind}" for part in (head, pooler) for kind in ("weight", "bias")}
    assert not any("weight" in name for name in state["buffers"].keys())


@pytest.mark.parametrize("family", ["bert", "modernbert"])
def test_norms_observed_in_training_are_those_of_the_scores(task_of, family):
    task, rows = task_of(family), Rows()
    expected = measured(task, rows.fetch(EVERY), "grad_norm")
    trainer = train(task, rows, optimizer=adamw(0.0), step=Step(batch_size=6), observe="grad_norm")
    state = initialize(trainer, initial_state(task, rows))
    state["plan", "budget"] = torch.tensor(6)
    state = run(trainer, state)
    torch.testing.assert_close(state["scores", "grad_norm"], expected, rtol=1e-4, atol=1e-5)


def test_a_train_stage_keeps_the_laws(task_of):
    task, rows = task_of(dropout=0.1), Rows()
    stage = train(task, rows, optimizer=adamw(0.01), step=Step(batch_size=2), steps=2, observe=True)
    state = initialize(stage, initial_state(task, rows))
    state["plan", "budget"] = torch.tensor(12)
    assert_stage_laws(stage, state)
