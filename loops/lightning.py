"""Selection in Lightning's ``Trainer``: a callback for a `Teacher`, and the loader that it makes.

An epoch of Lightning is one pass of the teacher; the run ends where the teacher's budget does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader, default_collate

from attent.loops.collate import Collate
from attent.pipeline.processes import processes
from attent.pipeline.teacher import Teacher

try:
    from lightning.pytorch import Callback, LightningModule, Trainer
except ImportError as missing:
    raise ValueError(
        'attent.loops.lightning needs Lightning: pip install "attent[lightning]"'
    ) from missing

OURS = ("batch_sampler", "drop_last", "sampler", "shuffle")
"""Options of a loader that are the teacher's to say."""


class TeacherCallback(Callback):
    """Puts a `Teacher` behind ``Trainer.fit``.

    ```python
    teacher = Teacher(len(dataset), budget=epochs * len(dataset))
    callback = TeacherCallback(teacher)
    trainer = Trainer(max_epochs=-1, callbacks=[callback])
    trainer.fit(Model(teacher), callback.loader(dataset, batch_size=128))
    ```

    The module's ``training_step`` is given ``(index, batch)``, where ``batch`` is what its loader
    would have given, and returns ``teacher.observe(index, losses)`` of losses ``[b]``. Each of
    several processes is given its part of every batch, as `Teacher` says; Lightning need not be
    told to leave the loader alone.

    The callback stops the trainer where the budget is spent, sees to it that each batch is
    observed, and keeps the teacher's state in Lightning's checkpoints, so that
    ``fit(..., ckpt_path=...)`` goes on in the middle of a pass.

    Args:
        teacher: of which the loader is made and to which ``training_step`` tells its losses.
        log: ``teacher/progress`` and ``teacher/ratio`` after each batch, also in the progress bar,
            which has no other end to show.

    Raises:
        ValueError: where a fit begins, options of the trainer or a loader that do not go with it;
            in a fit, a batch that was not observed; where a checkpoint is loaded, one of another
            teacher or of none.
    """

    def __init__(self, teacher: Teacher, *, log: bool = True) -> None:
        self.teacher, self.log = teacher, log
        self._fitting = False
        self._before = 0.0  # the teacher's progress before the present batch
        self._length: float | None = None  # of epochs, while another is told

    def loader(self, dataset: Any, *, batch_size: int, **options: Any) -> Passes:
        """What to train on: a pass of what is selected of a data set at each iteration.

        Args:
            dataset: map-style, of the N examples that the teacher was made for.
            batch_size: of all processes together.
            options: of `torch.utils.data.DataLoader`, such as ``num_workers`` and ``collate_fn``.

        Raises:
            ValueError: an option that is the teacher's to say; what `Teacher.with_index` and
                `Teacher.batches` refuse.
        """
        return Passes(self.teacher, dataset, batch_size, options)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a trainer that would not make whole passes up to the budget."""
        self._fitting = stage == "fit"
        if self._fitting:
            check_trainer(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse another loader; end at once where nothing is left of the budget."""
        found: Any = trainer.train_dataloader
        if not isinstance(found, Passes) or found.teacher is not self.teacher:
            raise ValueError(
                f"the trainer was given a {type(found).__name__} to train on: make what fit or "
                "train_dataloader is to give by callback.loader(dataset, batch_size=...), of the "
                "same callback, and give that loader alone"
            )
        self._stop_if_finished(trainer)
        self._number_from_zero(trainer)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Note where the teacher is."""
        self._before = self.teacher.progress
        if self._length is not None:
            trainer.fit_loop.max_batches, self._length = self._length, None

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Tensor | Mapping[str, Any] | None,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """See that the batch was observed; end where the budget is spent.

        Raises:
            ValueError: it was not, or not all of it.
        """
        if self.teacher.progress == self._before:
            raise ValueError(
                f"training_step has not told the losses of batch {batch_idx}, or not of all its "
                "examples: it returns teacher.observe(index, losses), of the callback's teacher"
            )
        if self.log and not trainer.barebones:
            known = {"teacher/progress": self.teacher.progress, "teacher/ratio": self.teacher.ratio}
            pl_module.log_dict(known, prog_bar=True, on_step=True, on_epoch=False)
        self._stop_if_finished(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The teacher's, for a checkpoint; Lightning asks all processes for it."""
        return self.teacher.state_dict()

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Refuse to go on from a checkpoint that knows of no teacher, as if it were a new one."""
        if self._fitting and self.state_key not in checkpoint["callbacks"]:
            raise ValueError(
                "the checkpoint was made without a TeacherCallback, and does not say what was "
                "selected: load its weights alone, and train anew"
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where a checkpoint was made; to evaluate its weights leaves the teacher alone."""
        if self._fitting:
            self.teacher.load_state_dict(state_dict)

    def _stop_if_finished(self, trainer: Trainer) -> None:
        if self.teacher.finished:
            trainer.should_stop = True

    def _number_from_zero(self, trainer: Trainer) -> None:
        """Let the next batch be the first of its epoch, where the last of one was saved at its end.

        Lightning begins anew to count batches, and so those over which gradients are accumulated,
        by an epoch's length, which it is not told here: it is told the one that has ended, until
        the next batch comes.
        """
        progress = trainer.fit_loop.epoch_loop.batch_progress
        if progress.is_last_batch and progress.current.completed < progress.current.ready:
            self._length = trainer.fit_loop.max_batches
            trainer.fit_loop.max_batches = progress.current.ready


class Passes:
    """A loader of ``(index, batch)``, a pass of a teacher at each iteration; without a length.

    How many batches a pass has is known when its examples are selected, as it begins. Lightning
    asks for a length once, before, and would cut or prolong all passes to that; where there is
    none, it goes by where they end. It is no `DataLoader`, or Lightning would share it out.

    Args:
        teacher: says what comes.
        dataset: map-style.
        batch_size: of all processes together.
        options: of the `DataLoader` that reads the examples.

    Raises:
        ValueError: see `TeacherCallback.loader`.
    """

    def __init__(
        self, teacher: Teacher, dataset: Any, batch_size: int, options: Mapping[str, Any]
    ) -> None:
        given = [name for name in OURS if name in options]
        if given:
            raise ValueError(
                f"loader is given {', '.join(given)}: which examples come, in which order and in "
                f"which batches, the teacher says; of DataLoader's options all but "
                f"{', '.join(OURS)} may be given"
            )
        self.teacher, self.batch_size = teacher, batch_size
        self.batch_sampler = teacher.batches(batch_size)
        collate = options.get("collate_fn") or default_collate
        self.loader: DataLoader[Any] = DataLoader(
            teacher.with_index(dataset),
            batch_sampler=self.batch_sampler,
            **{**options, "collate_fn": Collate(collate)},
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        return iter(self.loader)

    @property
    def dataset(self) -> Any:
        """With indices."""
        return self.loader.dataset

    @property
    def num_workers(self) -> int:
        """Of the loader."""
        return self.loader.num_workers

    @property
    def worker_init_fn(self) -> Any:
        """Of the loader; Lightning's ``seed_everything(..., workers=True)`` sets it."""
        return self.loader.worker_init_fn

    @worker_init_fn.setter
    def worker_init_fn(self, function: Any) -> None:
        self.loader.worker_init_fn = function

    # Those who have a state are what Lightning takes for loaders that can be gone on with.
    def state_dict(self) -> dict[str, Any]:
        """Nothing: where training stands is in the teacher's state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take nothing from it."""

    # By this name of a DataLoader's, Lightning ends workers that are kept, when a fit ends.
    @property
    def _iterator(self) -> Any:
        return self.loader._iterator

    @_iterator.setter
    def _iterator(self, iterator: Any) -> None:
        self.loader._iterator = iterator


def check_trainer(trainer: Trainer) -> None:
    """Refuse options of a trainer that would end passes or the run elsewhere than the teacher does.

    Raises:
        ValueError: names the option, and what to give.
    """
    shares = trainer.distributed_sampler_kwargs or {"num_replicas": trainer.world_size, "rank": 0}
    world = processes()
    if (shares["num_replicas"], shares["rank"]) != (world.count, world.rank):
        raise ValueError(
            f"strategy {type(trainer.strategy).__name__} parts batches in "
            f"{shares['num_replicas']}, but torch.distributed knows {world.count} processes, to "
            "each of which a teacher gives a part: use one that trains all of them on parts of "
            "their own, such as 'ddp'"
        )
    options: Any = trainer  # type checkers do not see what its constructor leaves to others
    if options.fast_dev_run:
        return  # a few batches, to see whether they run at all
    wanted = "an epoch is a pass of what is selected, and the run ends where the budget does"
    if trainer.max_epochs != -1:
        raise ValueError(f"give Trainer(max_epochs=-1), not {trainer.max_epochs}: {wanted}")
    for name, given in (("min_steps", trainer.min_steps), ("min_epochs", trainer.min_epochs)):
        if given:
            raise ValueError(f"give no Trainer({name}={given}): {wanted}")
    # As an int, 1 is one batch.
    if repr(trainer.limit_train_batches) != "1.0" or options.overfit_batches:
        raise ValueError(
            "give neither Trainer(limit_train_batches) nor overfit_batches: a pass that is cut is "
            "gone on with, and no other examples are selected; for a shorter run give the teacher "
            "a smaller budget"
        )
    interval = trainer.val_check_interval
    if isinstance(interval, float) and interval != 1.0:
        raise ValueError(
            f"val_check_interval={interval} is a share of an epoch, of which the "
            "length is not known beforehand: give a number of batches, with "
            "check_val_every_n_epoch=None to count them over all epochs, or 1.0"
        )
