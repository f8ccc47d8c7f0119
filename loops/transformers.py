"""Selection in transformers' Trainer and in TRL's SFTTrainer.

Shapes: b rows in a micro-batch.
"""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import TrainerCallback
from transformers.trainer_utils import get_last_checkpoint

from attent.loops.micro_batches import CHOSEN, Chosen, CollateMapping, MicroBatches, StepLoader
from attent.loops.row_losses import check_row_losses, fused_losses, kind_of, row_losses
from attent.loops.trainer_checks import check_trainer, has_fused_head
from attent.pipeline.checkpoint import write_atomically
from attent.pipeline.keyed import fold
from attent.pipeline.teacher import Teacher

if TYPE_CHECKING:
    from transformers import Trainer as _Base
else:
    _Base = object

FILE = "attent_teacher.pt"
"""Beside the other files of a checkpoint: the teacher's state."""

PerExampleLoss = Callable[[Any, Mapping[str, Any]], Tensor]
"""``(model, inputs) -> [b]``: the loss of each row of a batch, with its graph."""


class Selective(_Base):
    """A trainer that trains on what a `Teacher` chooses; to be put before a Trainer's class.

    ```python
    class SelectiveTrainer(Selective, Trainer): ...

    teacher = Teacher(len(dataset), ratio=cosine(0.2, 0.8), budget=3 * len(dataset))
    SelectiveTrainer(model, args, train_dataset=dataset, teacher=teacher).train()
    ```

    The budget takes the place of ``num_train_epochs``. What one optimiser step trains on, over
    accumulated gradients and over processes, is one batch of the teacher, and its loss is the
    weighted mean over rows of their own losses. Data set, collator, optimiser, evaluation, logs and
    checkpoints stay the trainer's; a checkpoint holds the teacher's state too, and training that is
    resumed goes on with the next example. ``epoch`` in logs counts the examples trained on by the
    data set's length; strategies of "epoch" do what they say at the end of each pass.

    Args:
        *args: of the trainer.
        teacher: new, made for as many examples as the training set has.
        per_example_loss: ``(model, inputs) -> [b]``; without it, the losses of causal and masked
            language models and of classifiers of transformers are known.
        **kwargs: of the trainer.

    Raises:
        ValueError: something that selection does not go with; says what to do.
    """

    teacher: Teacher

    def __init__(
        self,
        *args: Any,
        teacher: Teacher,
        per_example_loss: PerExampleLoss | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.teacher, self._per_example_loss = teacher, per_example_loss
        self._kind = kind_of(self.accelerator.unwrap_model(self.model))
        self._fused = has_fused_head(type(self), Selective)
        known = self._fused or self._kind is not None
        check_trainer(self, Selective, known=known, given=per_example_loss)
        if self.train_dataset is not None:
            teacher.with_index(self.train_dataset)
        self.add_callback(_Following(self))
        self._chosen: MicroBatches | None = None
        self._checked = False

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any):  # type: ignore[override]
        """Train until the teacher's budget is spent; arguments and result are the trainer's.

        Raises:
            ValueError: the teacher was trained with before and nothing is resumed, or a checkpoint
                without its state is.
        """
        if kwargs.get("trial") or (args and args[0]):
            raise ValueError(
                "a search for hyperparameters trains several times: not with a teacher"
            )
        planned = self._resume(resume_from_checkpoint)
        given = self.args
        self.args = copy.copy(given)
        # Iterables of no known length, which ours is, are read until so many steps are made; and
        # the teacher knows where it stands, so that nothing is to be passed over.
        self.args.max_steps = planned or sum(self.teacher.coming(self._step_size()))
        self.args.ignore_data_skip = True
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self.args = given

    def get_train_dataloader(self) -> Any:
        """The trainer's loader, of what the teacher chooses and to the budget's end."""
        plain: Any = super().get_train_dataloader()
        size = self._step_size()
        self.teacher.batches(size)  # for its checks
        sampler = MicroBatches(self.teacher, size, self.args.gradient_accumulation_steps)
        workers = {
            name: getattr(plain, name)
            for name in (
                "num_workers",
                "pin_memory",
                "timeout",
                "worker_init_fn",
                "multiprocessing_context",
                "prefetch_factor",
                "persistent_workers",
                "in_order",
            )
        }
        # A generator of its own: passes are begun anew where training is resumed, and must not draw
        # from the one that the checkpoint has put back. Workers are not to draw what they drew at
        # the beginning, either.
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        seed = fold(seed, "workers", round(self.teacher.progress * self.teacher.plan.budget))
        loader = DataLoader(
            self.teacher.with_index(plain.dataset),
            batch_sampler=sampler,
            collate_fn=CollateMapping(plain.collate_fn),
            generator=torch.Generator().manual_seed(seed),
            **workers,
        )
        self._chosen = sampler
        return StepLoader(self.teacher.loop(loader), sampler)

    def training_step(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Tensor:
        """A micro-batch's forward and backward; it is rows that count, not the step's tokens.

        Raises:
            ValueError: the batch is of another loader, and would be trained on past the teacher.
        """
        if CHOSEN not in inputs:
            raise ValueError(
                "the batches do not say which examples they are of: let get_train_dataloader give "
                "what super().get_train_dataloader() does"
            )
        return super().training_step(model, inputs)

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """In training the weighted mean of rows, which the teacher is told; else the trainer's."""
        chosen = inputs.get(CHOSEN)
        if chosen is None:
            return super().compute_loss(model, inputs, *args, **kwargs)
        losses = self._losses(model, {k: v for k, v in inputs.items() if k != CHOSEN}, chosen)
        if not chosen.share:
            return losses.sum() * 0.0
        # The trainer divides by the number of parts, whatever their sizes.
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        parts = 1 if scaled else self.args.gradient_accumulation_steps
        return self.teacher.observe(chosen.index, losses) * (chosen.share * parts)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """What the trainer logs; with the loss, ``selection_ratio`` and ``budget_spent``."""
        if "loss" in logs:
            logs["selection_ratio"] = self.teacher.ratio
            logs["budget_spent"] = self.teacher.progress
        super().log(logs, *args, **kwargs)

    def _losses(self, model: Any, inputs: dict[str, Any], chosen: Chosen) -> Tensor:
        if self._per_example_loss is not None:
            losses = self._per_example_loss(model, inputs)
        elif self._fused:
            losses = fused_losses(self._seen_by_sft(model, inputs))
        else:
            assert self._kind is not None
            config: Any = getattr(self.accelerator.unwrap_model(model), "config", None)
            problem = getattr(config, "problem_type", None)
            if not self._checked and inputs.get("labels") is not None:
                check_row_losses(self._kind, model, inputs, problem)
                self._checked = True
            losses = row_losses(self._kind, model, inputs, problem)
        if not isinstance(losses, Tensor) or losses.shape != chosen.index.shape:
            found = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise ValueError(
                f"a loss for each of {len(chosen.index)} examples is needed, got {found}: let the "
                "data collator keep one row an example (no packing, no padding_free), and "
                "per_example_loss give a vector"
            )
        return losses

    def _seen_by_sft(self, model: Any, inputs: dict[str, Any]) -> Any:
        """What the model says of a batch, of which SFTTrainer notes what it logs: one forward."""
        outputs: list[Any] = []

        def noted(**given: Any) -> Any:
            outputs.append(model(**given))
            return outputs[-1]

        super().compute_loss(noted, inputs)  # type: ignore[arg-type]
        (output,) = outputs
        return output

    def _step_size(self) -> int:
        """Examples an optimiser step is made of, in all processes."""
        args, world = self.args, self.accelerator.num_processes
        size = args.per_device_train_batch_size * args.gradient_accumulation_steps * world
        if self.get_total_train_batch_size(args) != size:
            raise ValueError(
                "several processes read the same examples here (tensor, context or sequence "
                "parallelism): a teacher gives each process examples of its own"
            )
        return min(size, self.teacher.plan.num_examples)

    def _resume(self, given: str | bool | None) -> int | None:
        """Take the teacher's state from a checkpoint; the steps that were planned in it."""
        folder = get_last_checkpoint(str(self.args.output_dir)) if given is True else given
        if not folder:
            if self.teacher.progress:
                raise ValueError(
                    f"the teacher has spent {self.teacher.progress:.0%} of its budget: give "
                    "resume_from_checkpoint, or make a new one (and a new trainer with it)"
                )
            return None
        file = Path(folder) / FILE
        if not file.is_file():
            raise ValueError(
                f"{folder} has no {FILE}: it was written without a teacher, or the run was stopped "
                "while it was being written; resume from another checkpoint"
            )
        saved = torch.load(file, map_location="cpu", weights_only=True)
        self.teacher.load_state_dict(saved["teacher"])
        return saved["max_steps"]


def selective(trainer: type) -> Any:
    """A trainer's class with `Selective` before it.

    ```python
    trainer = selective(SFTTrainer)(model, args, train_dataset=rows, teacher=teacher)
    ```

    Raises:
        ValueError: no class of a Trainer.
    """
    from transformers import Trainer

    if not (isinstance(trainer, type) and issubclass(trainer, Trainer)):
        raise ValueError(f"selective is for Trainer and classes made of it, got {trainer!r}")
    return type(f"Selective{trainer.__name__}", (Selective, trainer), {"__doc__": trainer.__doc__})


class _Following(TrainerCallback):
    """Keeps the trainer's counts at the teacher's, and the teacher in its checkpoints."""

    def __init__(self, trainer: Selective) -> None:
        self.trainer = trainer
        self._pass: Any = None
        self._ended = -1  # the step that ended a pass last

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Plan anew as a pass begins: now it is known how many were selected."""
        chosen = self.trainer._chosen
        if chosen is not None and chosen.present is not self._pass:
            self._pass = chosen.present
            state.max_steps = state.global_step + sum(
                self.trainer.teacher.coming(chosen.batch_size)
            )

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Let the step that spends the budget be the last."""
        if self.trainer.teacher.finished:
            state.max_steps = state.global_step + 1  # this one is counted after its callbacks

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count epochs by examples; the end of a pass is that of an epoch."""
        teacher, chosen = self.trainer.teacher, self.trainer._chosen
        state.epoch = teacher.progress * teacher.plan.budget / teacher.plan.num_examples
        # The last pass ends with the training, where the trainer does all this itself.
        if chosen is not None and chosen.pass_is_whole and not teacher.finished:
            self._ended = state.global_step
            control.should_log |= args.logging_strategy == "epoch"
            control.should_save |= args.save_strategy == "epoch"
            evaluates = args.eval_strategy == "epoch" and args.eval_delay <= state.epoch
            control.should_evaluate |= evaluates

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Do nothing again that was done as a pass ended, and nothing in the middle of one.

        Epochs of the trainer are as long as the plan; a rule that selects fewer than its ratio says
        makes more steps, in another epoch.
        """
        goes_on = not (self.trainer.teacher.finished or control.should_training_stop)
        if goes_on or state.global_step == self._ended:
            control.should_log = control.should_evaluate = control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the teacher's state, which all processes make together."""
        saved = {"teacher": self.trainer.teacher.state_dict(), "max_steps": args.max_steps}
        if args.should_save:
            buffer = io.BytesIO()
            torch.save(saved, buffer)
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            write_atomically(folder / FILE, buffer.getvalue())
