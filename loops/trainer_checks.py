"""What selection does not go with in a Trainer, and what to do then."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from typing import Any

TRAINER, SFT_TRAINER = ("transformers", "Trainer"), ("trl", "SFTTrainer")
"""Of these it is known what their ``compute_loss`` does."""


def check_trainer(trainer: Any, mixin: type, *, known: bool, given: Callable | None) -> None:
    """Refuse options by which a trainer would do something else than they say.

    Args:
        trainer: all but its teacher is set up.
        mixin: the class whose ``compute_loss`` is taken in place of that of those after it.
        known: whether the losses of the model's rows are known.
        given: the user's ``per_example_loss``.

    Raises:
        ValueError: all that was found, each with what to do.
    """
    found = [*_of_loading(trainer.args, trainer.train_dataset)]
    if trainer.args.n_gpu > 1:
        found.append(
            "several GPUs in one process (DataParallel): start with accelerate or torchrun"
        )
    found += [*_of_order(type(trainer), mixin), *_of_losses(trainer, given is None)]
    router = given is None and _trains_router(trainer)
    if router:
        found.append(
            "a mixture of experts that trains its router, by a loss that is of a batch: set "
            "router_aux_loss_coef=0.0 of SFTConfig, output_router_logits=False of the model's "
            "config, or give per_example_loss"
        )
    elif given is None and not known:
        name = type(trainer.accelerator.unwrap_model(trainer.model)).__name__
        found.append(
            f"the losses of single rows of a {name} are not known here: give "
            "per_example_loss=(model, inputs) -> [rows]"
        )
    owner = _passed_over(type(trainer), mixin)
    if given is None and not found and owner not in (TRAINER, SFT_TRAINER):
        found.append(
            f"{owner[1]} has a compute_loss of its own, which gives one number for a batch: give "
            "per_example_loss=(model, inputs) -> [rows]"
        )
    if found:
        raise ValueError("selection does not go with: " + "; ".join(found))


def _of_loading(args: Any, dataset: Any) -> Iterator[str]:
    # A stream must be given with max_steps, and is itself what is to be refused.
    if args.max_steps > 0 and (dataset is None or hasattr(dataset, "__len__")):
        yield (
            f"max_steps={args.max_steps}: the teacher's budget says how long training is; leave it "
            "at -1"
        )
    if getattr(args, "packing", False) or getattr(args, "padding_free", False):
        yield (
            "packing and padding_free, which put several examples into one row, so that it is not "
            "known which loss is whose: set both to False"
        )
    strategy = getattr(args, "train_sampling_strategy", "random")
    if getattr(args, "group_by_length", False):  # its older name
        strategy = "group_by_length"
    if strategy != "random":
        yield f"train_sampling_strategy={strategy!r}: the teacher gives the order; leave 'random'"
    if args.dataloader_drop_last:
        yield "dataloader_drop_last: what is selected is trained on; leave it False"
    if args.auto_find_batch_size:
        yield "auto_find_batch_size: training would begin again with a teacher that has begun"
    for name in ("split_batches", "dispatch_batches"):
        if getattr(args.accelerator_config, name, None):
            yield f"{name}: the teacher gives each process its part; leave it unset"


def _of_losses(trainer: Any, by_us: bool) -> Iterator[str]:
    if trainer.args.label_smoothing_factor:
        yield "label_smoothing_factor: leave it 0, and smooth in a per_example_loss"
    if trainer.compute_loss_func is not None:
        yield "compute_loss_func, which gives one number for a batch: give per_example_loss"
    if by_us and getattr(trainer.args, "loss_type", "nll") not in ("nll", "chunked_nll"):
        yield f"loss_type={trainer.args.loss_type!r}: give it as per_example_loss"


def _trains_router(trainer: Any) -> bool:
    config = getattr(trainer.accelerator.unwrap_model(trainer.model), "config", None)
    asked = getattr(config, "output_router_logits", False)
    return bool(asked) or getattr(trainer, "aux_loss_enabled", False)


def _of_order(cls: type, mixin: type) -> Iterator[str]:
    for method, what in (("_get_train_sampler", "sampler"), ("get_train_dataloader", "loader")):
        owner = _passed_over(cls, mixin, method)
        if owner != TRAINER:
            yield (
                f"{owner[1]} has a {what} of its own: the teacher gives the order; what makes a "
                "batch of rows is given as data_collator"
            )


def _passed_over(cls: type, mixin: type, method: str = "compute_loss") -> tuple[str, str]:
    """Whose method a mixin's takes the place of: the class's library and name."""
    after = cls.__mro__[cls.__mro__.index(mixin) + 1 :]
    owner = next(each for each in after if method in vars(each))
    return owner.__module__.partition(".")[0], owner.__name__


def has_fused_head(cls: type, mixin: type) -> bool:
    """Whether it is an SFTTrainer, of a version whose models tell tokens' log-probabilities."""
    if _passed_over(cls, mixin) != SFT_TRAINER:
        return False
    return hasattr(importlib.import_module("trl.trainer.utils"), "add_fused_lm_head")
