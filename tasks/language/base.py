"""The folder of the model made anew below adapters."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from attent.pipeline import processes
from attent.pipeline.fit import finished
from attent.tasks.build import Run
from attent.tasks.data.instructions import Instructions
from attent.tasks.language.build import base_of, build_instruct, has_base, own_tokenizer
from attent.tasks.language.config import InstructConfig
from attent.tasks.launch import whole_models
from attent.tasks.text.folder import list_dropped, save, write_model


def prepare(config: InstructConfig, run: Run, say: Callable[[str], None]) -> bool:
    """Make the model that a run's adapters are added to, in ``base/`` of its folder.

    It is a run of its own: on all of every row, without adapters and selection; it goes on where it
    was stopped. Rows that were dropped are listed in ``dropped.txt``.

    Args:
        config: the options, with the run's folder.
        run: what they give.
        say: told what is going on.

    Returns:
        Whether anything was made.
    """
    assert config.output_dir is not None
    assert isinstance(run.source, Instructions)
    assert isinstance(run.held_out, Instructions)
    world, made = processes(), Path(config.output_dir)
    dropped, tokenizer = [*run.source.dropped, *run.held_out.dropped], run.source.tokenizer
    world.on_main(lambda: list_dropped(made, dropped))
    own = config.is_fresh and config.adapter == "full"
    if world.on_main(lambda: own and own_tokenizer(config) is None):
        world.on_main(lambda: write_model(made / "tokenizer", tokenizer))
    if world.on_main(lambda: not has_base(config) or base_of(config) is not None):
        return False
    plain = dataclasses.replace(config, adapter="full", pretrain_epochs=0)
    with whole_models():
        if config.pretrain_epochs == 0:
            world.on_main(lambda: save(build_instruct(plain), made / "base"))
        else:
            _pretrain(_pretraining(plain, config, made / "base"), say)
    return True


def _pretrain(config: InstructConfig, say: Callable[[str], None]) -> None:
    """Train the model in its folder, or go on with it there."""
    from attent.tasks.folder import RunFolder
    from attent.tasks.run import resume, start

    folder = RunFolder(Path(str(config.output_dir)))
    if processes().on_main(folder.config.is_file):
        state, _ = resume(folder.path, say)
    else:
        say(f"pre-training {config.model_name_or_path} in {folder.path}")
        state, _ = start("instruct", config, say)
    if not finished(state):
        raise KeyboardInterrupt


def _pretraining(plain: InstructConfig, config: InstructConfig, folder: Path) -> InstructConfig:
    defaults = InstructConfig()
    return dataclasses.replace(
        plain,
        output_dir=str(folder),
        supervise="all",
        method="full",
        epochs=config.pretrain_epochs,
        lr=config.pretrain_lr,
        blr=None,
        min_lr=0.0,
        warmup_epochs=None,
        weight_decay=0.05,
        num_samples=0,
        # What has an effect on other methods alone goes back to what it was.
        selection_strategy=defaults.selection_strategy,
        signal=defaults.signal,
        scores=defaults.scores,
        reselect=defaults.reselect,
        score_length=defaults.score_length,
        ema=None,
    )
