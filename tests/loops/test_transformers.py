"""Selective trainers against a loop by hand, against plain trainers and against themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import Trainer, TrainerCallback
from transformers.modeling_outputs import CausalLMOutput

from attent.loops.micro_batches import cut
from attent.loops.transformers import FILE, selective
from attent.pipeline import hard, infobatch
from tests.loops.training import (
    BUDGET,
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


@pytest.mark.parametrize("rule", [hard(), infobatch()], ids=["hard", "infobatch"])
@pytest.mark.parametrize(("rows_at_once", "parts"), [(4, 1), (2, 2), (1, 4)])
def test_it_trains_on_what_a_loop_by_hand_does(tmp_path, rule, rows_at_once, parts):
    """One wrong choice, weight or share, and all losses after it differ."""
    plain, mine = teacher(rule=rule), teacher(rule=rule)
    model = by_hand(plain)
    trainer = trained(
        tmp_path,
        mine,
        per_device_train_batch_size=rows_at_once,
        gradient_accumulation_steps=parts,
    )
    sizes = [len(batch) for batch in plain.noted]
    assert set(sizes) >= ({2, 3, 4, 5} if rule.name == "hard" else {4, 5})
    assert sum(sizes) == BUDGET
    assert mine.steps == plain.noted
    state, expected = mine.state, plain.state
    assert torch.equal(state["mask"], expected["mask"])
    torch.testing.assert_close(state["scores", "loss"], expected["scores", "loss"])
    assert_weights_close(trainer.model, model, atol=1e-5)
    assert mine.finished
    assert trainer.state.global_step == trainer.state.max_steps == len(sizes)
    assert trainer.state.epoch == pytest.approx(BUDGET / N)
    assert int(state["clock", "passes"]) > 4


def test_parts_of_a_step():
    """5 in 2 parts, 4 in 4, 2 in 4: what is missing is stood in for by the first."""
    assert cut([7, 8, 9, 5, 6], 2) == [[7, 8, 9], [5, 6]]
    assert cut([7, 8, 9, 5], 4) == [[7], [8], [9], [5]]
    assert cut([7, 8], 4) == [[7], [8], [7], [7]]


class Stopping(TrainerCallback):
    """Ends the run after a step, as somebody's Ctrl-C would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stopped_run_goes_on_with_the_next_example(tmp_path, workers):
    """Saved after step 7, within the second pass; stopped after 9, in the third; all bits the same.

    Dropout draws from the generator whose state the checkpoint puts back.
    """
    options: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "lr_scheduler_type": "linear",
        "optim": "adamw_torch",
        "learning_rate": 0.02,
        "save_strategy": "steps",
        "save_steps": 7,
        "dataloader_num_workers": workers,
    }
    whole = teacher()
    expected = trained(tmp_path / "whole", whole, model=llama(0.3), **options)

    first = teacher()
    args = arguments(tmp_path / "parts", **options)
    trainer = SelectiveTrainer(
        llama(0.3), args, train_dataset=rows(), teacher=first, callbacks=[Stopping(9)]
    )
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert [len(step) for step in first.steps] == [4, 4, 4, 4, 5, 4, 4, 2, 4]

    torch.rand(7)  # another process has drawn other numbers
    second = teacher()
    resumed = SelectiveTrainer(llama(0.3), args, train_dataset=rows(), teacher=second)
    resumed.train(resume_from_checkpoint=True)
    assert first.steps[:7] + second.steps == whole.steps
    assert_weights_close(resumed.model, expected.model, atol=0)
    assert resumed.state.global_step == expected.state.global_step
    assert resumed.args.max_steps == -1  # the user's own are left as they were


def test_evaluation_is_the_trainers_own(tmp_path):
    """At the end of each pass; of all rows, by the model's own loss."""
    held_out = rows(9, seed=5)
    taught = teacher()
    args = arguments(tmp_path, eval_strategy="epoch", per_device_eval_batch_size=4)
    trainer = SelectiveTrainer(
        llama(), args, train_dataset=rows(), eval_dataset=held_out, teacher=taught
    )
    plain = Trainer(trainer.model, args, eval_dataset=held_out)
    assert trainer.evaluate()["eval_loss"] == plain.evaluate()["eval_loss"]
    trainer.train()
    ends = [log["epoch"] for log in trainer.state.log_history if "eval_loss" in log]
    # All of 21; 10 of them (0.48) until about 7/8 of 86 are spent: 71 is nearer to 75.25 than 81
    # is; of all what is left.
    expected = [21, 31, 41, 51, 61, 71, 86]
    assert ends == pytest.approx([seen / N for seen in expected])
    assert trainer.state.log_history[-2]["eval_loss"] == plain.evaluate()["eval_loss"]


def test_logs_say_how_much_is_selected_and_spent(tmp_path):
    taught = teacher()
    trainer = trained(tmp_path, taught, logging_strategy="steps", logging_steps=1)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == trainer.state.global_step
    assert [log["selection_ratio"] for log in logs][4:6] == [1.0, 0.48]  # 5 batches of all
    assert logs[5]["budget_spent"] == pytest.approx((N + 4) / BUDGET)
    assert logs[-1]["budget_spent"] == 1.0
    for log, losses in zip(logs, taught.losses, strict=True):
        assert log["loss"] == pytest.approx(float(losses.mean()), rel=1e-5)


def test_losses_of_ones_own(tmp_path):
    """A vector of them is told as it is; of batches that hold nothing else than they did."""
    seen: list[set[str]] = []

    def losses(model, inputs):
        seen.append(set(inputs))
        return model(input_ids=inputs["input_ids"]).logits.float().square().mean(dim=(1, 2))

    taught = teacher()
    args = arguments(tmp_path)
    trainer = selective(Trainer)(
        llama(), args, train_dataset=rows(), teacher=taught, per_example_loss=losses
    )
    assert type(trainer).__name__ == "SelectiveTrainer"
    trainer.train()
    assert {frozenset(names) for names in seen} == {frozenset({"input_ids", "labels"})}
    assert taught.finished
    assert taught.losses[-1].mean() < taught.losses[0].mean()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_steps": 5}, "max_steps=5: the teacher's budget"),
        ({"train_sampling_strategy": "group_by_length"}, "'group_by_length'"),
        ({"dataloader_drop_last": True}, "dataloader_drop_last"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
        ({"accelerator_config": {"dispatch_batches": True}}, "dispatch_batches"),
    ],
)
def test_options_that_would_do_something_else(tmp_path, options, message):
    args = arguments(tmp_path, **options)
    with pytest.raises(ValueError, match=message):
        SelectiveTrainer(llama(), args, train_dataset=rows(), teacher=teacher())


def own_function(tmp_path) -> Any:
    def function(outputs: CausalLMOutput, labels: Any, num_items_in_batch: Any = None) -> Any:
        raise AssertionError

    return SelectiveTrainer(
        llama(),
        arguments(tmp_path),
        train_dataset=rows(),
        teacher=teacher(),
        compute_loss_func=function,
    )


def own_class(tmp_path) -> Any:
    class Penalised(Trainer):
        def compute_loss(self, *args, **kwargs):
            raise AssertionError

    return selective(Penalised)(
        llama(), arguments(tmp_path), train_dataset=rows(), teacher=teacher()
    )


def unknown_model(tmp_path) -> Any:
    class Other(type(llama())):
        pass

    return SelectiveTrainer(
        Other(llama().config), arguments(tmp_path), train_dataset=rows(), teacher=teacher()
    )


class Endless(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from rows()

    def __len__(self):
        return N


def endless(tmp_path) -> Any:
    return SelectiveTrainer(
        llama(), arguments(tmp_path), train_dataset=Endless(), teacher=teacher()
    )


def another_length(tmp_path) -> Any:
    return SelectiveTrainer(
        llama(), arguments(tmp_path), train_dataset=rows(N - 1), teacher=teacher()
    )


def one_loss(tmp_path) -> Any:
    trainer = SelectiveTrainer(
        llama(),
        arguments(tmp_path),
        train_dataset=rows(),
        teacher=teacher(),
        per_example_loss=lambda model, inputs: model(**inputs).loss,
    )
    trainer.train()


def no_mapping(tmp_path) -> Any:
    trainer = SelectiveTrainer(
        llama(),
        arguments(tmp_path, remove_unused_columns=False),
        train_dataset=rows(),
        teacher=teacher(),
        data_collator=lambda items: [item["input_ids"] for item in items],
    )
    trainer.train()


def trained_before(tmp_path) -> Any:
    trained(tmp_path, teacher()).train()


def no_teacher_in_it(tmp_path) -> Any:
    trainer = trained(tmp_path, teacher(), save_strategy="epoch")
    (tmp_path / f"checkpoint-{trainer.state.global_step}" / FILE).unlink()
    again = SelectiveTrainer(llama(), arguments(tmp_path), train_dataset=rows(), teacher=teacher())
    again.train(resume_from_checkpoint=True)


def another_teacher(tmp_path) -> Any:
    trained(tmp_path, teacher(), save_strategy="epoch")
    again = SelectiveTrainer(
        llama(), arguments(tmp_path), train_dataset=rows(), teacher=teacher(seed=4)
    )
    again.train(resume_from_checkpoint=True)


def no_trainer(tmp_path) -> Any:
    selective(torch.nn.Linear)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (own_function, "compute_loss_func, which gives one number"),
        (own_class, "Penalised has a compute_loss of its own"),
        (unknown_model, "single rows of a Other are not known"),
        (endless, "Endless is iterable"),
        (another_length, "has 20 examples, but the teacher was made for 21"),
        (one_loss, r"a loss for each of 4 examples is needed, got \[\]"),
        (no_mapping, "the data collator makes a list"),
        (trained_before, "the teacher has spent 100% of its budget"),
        (no_teacher_in_it, f"has no {FILE}"),
        (another_teacher, "differs in seed"),
        (no_trainer, "selective is for Trainer"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_mistakes(tmp_path, make: Callable, message):
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


def test_a_finished_run_that_is_resumed_does_nothing_more(tmp_path):
    first = trained(tmp_path, teacher(), save_strategy="epoch")
    again = SelectiveTrainer(llama(), arguments(tmp_path), train_dataset=rows(), teacher=teacher())
    again.train(resume_from_checkpoint=True)
    assert again.state.global_step == first.state.global_step
    assert again.teacher.noted == []
    assert_weights_close(again.model, first.model, atol=0)
