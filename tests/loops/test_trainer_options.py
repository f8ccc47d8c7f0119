"""A selective Trainer under the options of a trainer: what changes nothing, what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from torch import nn
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback

from attent.loops.transformers import selective
from attent.pipeline import constant, infobatch
from tests.loops.training import (
    OLD_NAME,
    N,
    SelectiveTrainer,
    arguments,
    assert_weights_close,
    by_hand,
    llama,
    rows,
    teacher,
    trained,
)

ACCUMULATED = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}


@pytest.mark.parametrize(
    "options",
    [
        {"num_train_epochs": 0.3},
        {"average_tokens_across_devices": False},
        {"remove_unused_columns": False},
        {"length_column_name": "lengths"},
        {"dataloader_num_workers": 1, "dataloader_persistent_workers": True},
        {"accelerator_config": {"gradient_accumulation_kwargs": {"sync_each_batch": True}}},
        {"gradient_checkpointing": True},
        {"torch_compile": True, "torch_compile_backend": "eager"},
        {"eval_strategy": "steps", "eval_steps": 3, "eval_on_start": True},
        {"include_num_input_tokens_seen": "all", "logging_strategy": "steps"},
    ],
    ids=lambda options: next(iter(options)),
)
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing` is deprecated:FutureWarning")
def test_options_that_change_nothing(tmp_path, options):
    """The same examples in the same steps, and the same weights, as in a loop by hand."""
    plain, mine = teacher(), teacher()
    model = by_hand(plain)
    args = arguments(tmp_path, **ACCUMULATED, **options)
    trainer = SelectiveTrainer(
        llama(), args, train_dataset=rows(), eval_dataset=rows(5, seed=5), teacher=mine
    )
    trainer.train()
    assert mine.steps == plain.noted
    assert_weights_close(trainer.model, model, atol=1e-5)


def test_a_model_made_by_the_trainer_and_rows_of_datasets(tmp_path):
    """Columns that the model does not take are left out, and the index is not one of them."""
    plain, mine = teacher(), teacher()
    model = by_hand(plain)
    listed = [{name: value.tolist() for name, value in row.items()} for row in rows()]
    dataset = Dataset.from_list([row | {"source": "a book"} for row in listed])
    SelectiveTrainer(
        args=arguments(tmp_path, **ACCUMULATED),
        train_dataset=dataset,
        teacher=mine,
        model_init=lambda: llama(),
    ).train()
    trainer = trained(tmp_path, other := teacher(), **ACCUMULATED)
    assert mine.steps == other.steps == plain.noted
    assert_weights_close(trainer.model, model, atol=1e-5)


class Held(TrainerCallback):
    """It notes after which steps there was an evaluation, and of which loss."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.losses: list[float] = []

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        self.steps.append(state.global_step)
        self.losses.append(metrics["eval_loss"])


def held_out(folder: Any, taught: Any, *callbacks: TrainerCallback, **options: Any) -> Any:
    return SelectiveTrainer(
        llama(),
        arguments(folder, eval_strategy="epoch", **options),
        train_dataset=rows(),
        eval_dataset=rows(9, seed=5),
        teacher=taught,
        callbacks=list(callbacks),
    )


def test_the_end_of_a_pass_that_stops_training_is_there_once(tmp_path):
    """Early stopping ends it within the plan, where the trainer ends an epoch of its own."""
    seen, options = Held(), {"save_strategy": "epoch", "metric_for_best_model": "loss"}
    callbacks = (seen, EarlyStoppingCallback(1))
    taught = teacher()
    trainer = held_out(tmp_path, taught, *callbacks, **options, load_best_model_at_end=True)
    trainer.train()
    assert not taught.finished
    assert len(seen.steps) == len(set(seen.steps))
    assert seen.losses[-1] > seen.losses[-2] == min(seen.losses)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(min(seen.losses))


def test_more_steps_than_were_planned(tmp_path):
    """A rule that selects fewer than its ratio says: 26 were planned, and 27 are made."""
    taught = teacher(rule=infobatch(0.3), ratio=constant(0.95), budget=6 * N)
    planned = sum(taught.coming(5))
    seen = Held()
    trainer = held_out(tmp_path, taught, seen, per_device_train_batch_size=5)
    trainer.train()
    sizes = [len(step) for step in taught.steps]
    assert trainer.state.global_step == len(sizes) == planned + 1
    assert sum(sizes) == 6 * N
    # The trainer's epoch ends after step 26, in the middle of the last pass.
    assert planned not in seen.steps
    assert seen.steps[-1] == planned + 1
    assert len(seen.steps) == int(taught.state["clock", "passes"]) + 1


@pytest.mark.parametrize("strategy", ["steps", "best"])
def test_the_best_weights_are_taken_at_the_end(tmp_path, strategy):
    seen = Held()
    options = {"eval_strategy": "steps", "eval_steps": 3, "save_steps": 3}
    args = arguments(
        tmp_path,
        **ACCUMULATED | options,
        save_strategy=strategy,
        metric_for_best_model="loss",
        load_best_model_at_end=True,
    )
    trainer = SelectiveTrainer(
        llama(),
        args,
        train_dataset=rows(),
        eval_dataset=rows(9, seed=5),
        teacher=teacher(),
        callbacks=[seen],
    )
    trainer.train()
    best = seen.losses.index(min(seen.losses))
    assert 0 < best < len(seen.losses) - 1
    assert trainer.evaluate()["eval_loss"] == pytest.approx(seen.losses[best])
    again = teacher()
    resumed = SelectiveTrainer(llama(), arguments(tmp_path), train_dataset=rows(), teacher=again)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{seen.steps[best]}"))
    assert again.finished


def test_a_checkpoint_of_weights_alone(tmp_path):
    """The teacher goes on; optimiser and schedule begin anew, as the trainer has it."""
    options = {
        **ACCUMULATED,
        "optim": "adamw_torch",
        "lr_scheduler_type": "linear",
        "save_strategy": "steps",
        "save_steps": 7,
        "save_only_model": True,
        "logging_strategy": "steps",
        "logging_steps": 1,
    }
    whole = teacher()
    steps = trained(tmp_path, whole, **options).state.global_step
    again = teacher()
    resumed = made(tmp_path, again, **options)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    assert again.finished
    assert [sorted(step) for step in again.steps[:1]] == [sorted(whole.steps[7])]
    rates = [log["learning_rate"] for log in resumed.state.log_history if "learning_rate" in log]
    assert rates[0] == 0.5
    assert rates[-1] == pytest.approx(0.5 * (1 - (steps - 8) / steps))


@pytest.mark.parametrize("done", [0, 9])
def test_workers_do_not_draw_what_they_drew_before(tmp_path, done):
    taught = teacher()
    args = arguments(tmp_path, save_strategy="steps", save_steps=9)
    trainer = SelectiveTrainer(llama(), args, train_dataset=rows(), teacher=taught)
    fresh = seed_of(trainer)
    trainer.train()
    again = SelectiveTrainer(llama(), args, train_dataset=rows(), teacher=teacher())
    if done:
        again._resume(str(tmp_path / f"checkpoint-{done}"))
    assert (seed_of(again) == fresh) == (done == 0)


def seed_of(trainer: Any) -> int:
    return trainer.get_train_dataloader().loop.loader.generator.initial_seed()


@pytest.mark.parametrize(
    "adapter",
    [
        LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False),
        PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
    ],
    ids=["lora", "prefix"],
)
@OLD_NAME
def test_adapters(tmp_path, adapter):
    """At first losses are those of the model as it was made; the adapter alone moves."""
    torch.manual_seed(0)
    model = get_peft_model(llama(), adapter)
    model.eval()
    data = rows()
    with torch.no_grad():
        expected = {
            i: model(input_ids=row["input_ids"][None], labels=row["labels"][None]).loss
            for i, row in enumerate(data)
        }
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    taught = teacher()
    trained(tmp_path, taught, model=model, **ACCUMULATED)
    first = zip(taught.noted[0], taught.losses[0], strict=True)
    for i, loss in first:
        torch.testing.assert_close(loss, expected[i])
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name, p in model.named_parameters() if p.requires_grad}


@OLD_NAME
def test_tokens_before_a_row(tmp_path):
    tuned = get_peft_model(llama(), PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"))
    with pytest.raises(ValueError, match=r"of \[1, 9, 13\]: .* as prompt tuning does, give per_ex"):
        trained(tmp_path, teacher(), model=tuned)


class Plain(nn.Module):
    """No model of transformers; its batches are columns of tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(2, 1)

    def forward(self, x: Any, y: Any) -> Any:
        return {"loss": (self.line(x) - y).square().mean()}


def test_a_model_without_a_config(tmp_path):
    def losses(model: Any, inputs: Any) -> Any:
        return (model.line(inputs["x"]) - inputs["y"]).square().mean(dim=1)

    data = [{"x": torch.tensor([i / N, 1.0]), "y": torch.tensor([i / 7])} for i in range(N)]
    args, taught = arguments(tmp_path, learning_rate=0.05), teacher()
    options = {"train_dataset": data, "teacher": taught}
    SelectiveTrainer(Plain(), args, **options, per_example_loss=losses).train()
    assert taught.finished
    with pytest.raises(ValueError, match="single rows of a Plain are not known"):
        SelectiveTrainer(Plain(), args, **options)


def made(folder: Any, taught: Any = None, **options: Any) -> Any:
    args = arguments(folder, **options)
    return SelectiveTrainer(llama(), args, train_dataset=rows(), teacher=taught or teacher())


def test_several_gpus_in_one_process(tmp_path):
    args = arguments(tmp_path)
    args._n_gpu = 2
    with pytest.raises(ValueError, match=r"\(DataParallel\): start with accelerate or torchrun"):
        SelectiveTrainer(llama(), args, train_dataset=rows(), teacher=teacher())


@pytest.mark.parametrize("kind", ["tp", "cp", "sp"])
def test_processes_that_read_the_same_rows(tmp_path, monkeypatch, kind):
    """Of tensor, context and sequence parallelism."""
    trainer = made(tmp_path)
    monkeypatch.setattr(trainer.accelerator.state, "num_processes", 2, raising=False)
    monkeypatch.setattr(type(trainer.args), "world_size", property(lambda args: 2))
    monkeypatch.setattr(trainer, f"get_{kind}_size", lambda: 2)
    with pytest.raises(ValueError, match="several processes read the same examples here"):
        trainer.train()


def test_searches(tmp_path):
    with pytest.raises(ValueError, match="trains several times: not with a teacher"):
        made(tmp_path).train(trial={"learning_rate": 0.1})


class Sampled(Trainer):
    """It has an order of its own."""

    def _get_train_sampler(self, *args: Any) -> Any:
        raise AssertionError


class Loaded(Trainer):
    """It has a loader of its own."""

    def get_train_dataloader(self) -> Any:
        raise AssertionError


@pytest.mark.parametrize("cls", [Sampled, Loaded])
def test_orders_of_ones_own(tmp_path, cls):
    with pytest.raises(ValueError, match=f"{cls.__name__} has .* of its own: the teacher gives"):
        selective(cls)(llama(), arguments(tmp_path), train_dataset=rows(), teacher=teacher())


class Past(SelectiveTrainer):
    """It goes past the teacher."""

    def get_train_dataloader(self) -> Any:
        return Trainer.get_train_dataloader(self)


def test_a_loader_past_the_teacher(tmp_path):
    trainer = Past(llama(), arguments(tmp_path), train_dataset=rows(), teacher=teacher())
    with pytest.raises(
        ValueError, match=r"which examples they are of: .* super\(\)\.get_train_dataload"
    ):
        trainer.train()


def test_a_loss_that_is_not_finite(tmp_path):
    """It ends training, whatever the trainer would do of it in its logs."""

    def losses(model: Any, inputs: Any) -> Any:
        found = model(input_ids=inputs["input_ids"]).logits.square().mean(dim=(1, 2))
        return found.masked_fill(inputs["input_ids"].eq(bad).all(1), torch.inf)

    bad = rows()[5]["input_ids"]
    trainer = SelectiveTrainer(
        llama(),
        arguments(tmp_path, logging_nan_inf_filter=True),
        train_dataset=rows(),
        teacher=teacher(),
        per_example_loss=losses,
    )
    with pytest.raises(ValueError, match=r"the loss of example 5 is not finite \(inf\)"):
        trainer.train()


@pytest.mark.parametrize("options", [{}, {"max_steps": 5}], ids=["", "max_steps"])
def test_streams_of_datasets(tmp_path, options):
    """The trainer asks for max_steps of a stream, which is not what is to be said of one."""
    listed = [{name: value.tolist() for name, value in row.items()} for row in rows()]
    stream = Dataset.from_list(listed).to_iterable_dataset()
    message = "is iterable: what is selected is read by index" if options else "max_steps has to"
    with pytest.raises(ValueError, match=message):
        SelectiveTrainer(
            llama(), arguments(tmp_path, **options), train_dataset=stream, teacher=teacher()
        )
