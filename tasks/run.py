"""How a run is started and how it goes on; its folder is described in `attent.tasks.folder`."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import save
from tensordict import TensorDict

from attent.pipeline import (
    CheckpointFolder,
    Checkpoints,
    ExampleError,
    JsonLog,
    Observer,
    Selections,
    Task,
    export_weights,
    fit,
    restore,
)
from attent.pipeline.checkpoint import CheckpointError, load_state, write_atomically
from attent.pipeline.fit import finished
from attent.pipeline.keys import has
from attent.pipeline.observers import read_log
from attent.pipeline.processes import processes
from attent.tasks.build import Run
from attent.tasks.commands import COMMANDS
from attent.tasks.config import RUNTIME, ConfigError, as_dict
from attent.tasks.data.named import is_named, refuse_ambiguous
from attent.tasks.environment import warn_of_changes, write_environment
from attent.tasks.folder import (
    RunFolder,
    make_folder,
    new_folder,
    only_one,
    refuse_taken,
    upgraded,
)
from attent.tasks.launch import session
from attent.tasks.lost import noticing_the_lost
from attent.tasks.pretraining.task import MaskedPretraining
from attent.tasks.progress import ProgressBar
from attent.tasks.trackers import Trackers, check_trackers
from attent.tasks.unreadable import UnreadableExamples

Say = Callable[[str], None]


def start(command: str, config: Any, say: Say) -> tuple[TensorDict, RunFolder]:
    """Start a run in a new folder.

    Where a launcher has started several processes, all of them call it (see `attent.tasks.launch`);
    the main one alone writes and speaks.

    Raises:
        ConfigError: the folder holds a run already.
        ValueError: what the options ask for cannot be.
    """
    _set_threads(config)
    check_trackers(config.report_to)
    refuse_ambiguous(command, getattr(config, "data", None))
    config = _from_anywhere(command, config)
    with noticing_the_lost(), session(config):
        world = processes()
        say = say if world.main else _silent
        run = world.main_first(lambda: COMMANDS[command].build(config))
        for warning in run.plan.warnings():
            say(f"warning: {warning}")
        for note in run.notes:
            say(note)
        folder = world.on_main(lambda: _made_folder(command, config))
        with noticing_the_lost(str(folder.path)), only_one(folder):
            device = str(next(run.task.model.parameters()).device)
            world.on_main(lambda: _begin_folder(command, config, folder, device))
            config, run = _prepared(command, config, run, folder, say)
            return _go_on(command, config, run, run.state, folder, say), folder


def _silent(message: str) -> None:
    """What the other processes say: the main one says it for all."""


def _made_folder(command: str, config: Any) -> RunFolder:
    folder = RunFolder(new_folder(command, config))
    make_folder(folder.path, "output_dir")
    return folder


def _begin_folder(command: str, config: Any, folder: RunFolder, device: str) -> None:
    refuse_taken(folder)
    _write_config(command, config, folder)
    write_environment(folder.environment, device)


def _prepared(command: str, config: Any, run: Run, folder: RunFolder, say: Say) -> tuple[Any, Run]:
    """Options and run, after what the command makes in the folder beforehand."""
    config = dataclasses.replace(config, output_dir=str(folder.path))
    prepare = COMMANDS[command].prepare
    if prepare is not None and prepare(config, run, say):
        run = processes().main_first(lambda: COMMANDS[command].build(config))
    return config, run


def _from_anywhere(command: str, config: Any) -> Any:
    """Its paths absolute: the run may be resumed and reported from another directory."""
    found = {}
    paths = ("data", "held_out_data", "data_cache", "pretrained_weights", "model_name_or_path")
    for name in paths:
        value = getattr(config, name, None)
        if value is None or (name == "data" and is_named(command, value)):
            continue
        # A cache is yet to be made; what else is not there is no path, or a mistake told later.
        if name == "data_cache" or Path(value).exists():
            found[name] = str(Path(value).resolve())
    return dataclasses.replace(config, **found)


def _write_config(command: str, config: Any, folder: RunFolder) -> None:
    values = {"command": command, **as_dict(config), "output_dir": str(folder.path)}
    write_atomically(folder.config, yaml.safe_dump(values, sort_keys=False).encode())


def resume(
    path: str | Path, say: Say, *, allow_previous: bool = False
) -> tuple[TensorDict, RunFolder]:
    """Go on with a run from its latest checkpoint.

    Args:
        path: the run folder.
        say: told what is going on.
        allow_previous: if the latest checkpoint is damaged, use the last good one.

    Raises:
        CheckpointError: no usable checkpoint, or one of another task or recipe.
        ConfigError: no run there, or its options were changed since.
    """
    folder = RunFolder(Path(path))
    command, config = folder.load_config()
    _set_threads(config)
    store = CheckpointFolder(folder.checkpoints, keep=config.keep)
    with noticing_the_lost(str(path)), session(config), only_one(folder):
        world = processes()
        say = say if world.main else _silent
        if world.on_main(lambda: not store.steps() and not read_log(folder.log)):
            # Killed before its first checkpoint: there is nothing to lose by starting anew.
            run = world.main_first(lambda: COMMANDS[command].build(config))
            say(f"starting {folder.path}: it was stopped before anything was saved")
            config, run = _prepared(command, config, run, folder, say)
            return _go_on(command, config, run, run.state, folder, say), folder

        saved: list[_Saved] = []  # in the main process alone: others may not see the file

        def load() -> None:
            saved.append(_Saved(*store.load_last(allow_previous=allow_previous)))
            _same_run(command, config, saved[0].about, folder)

        world.on_main(load)  # before anything is built of other options
        warn_of_changes(folder.environment, say)
        run = world.main_first(lambda: COMMANDS[command].build(config, initial=False))
        step = world.on_main(lambda: saved[0].fitted(run))
        state = saved[0].state if saved else run.state  # `fit` gives the others the main one's
        world.on_main(lambda: _set_aside(store, step))
        say(f"resuming {folder.path} at step {step}")
        for note in run.notes:
            say(note)
        return _go_on(command, config, run, state, folder, say), folder


@dataclass
class _Saved:
    """A checkpoint as it was loaded; its state fitted to a run."""

    state: TensorDict
    about: dict[str, Any]
    origin: Path

    def fitted(self, run: Run) -> int:
        """Make the state one of the run; returns its step."""
        if self.about["task"] != run.task.name:
            raise CheckpointError(
                f"{self.origin} is of the task {self.about['task']!r}, the run of {run.task.name!r}"
            )
        self.state = restore(run.state, self.state, self.origin)
        return int(self.about["step"])


def _set_aside(store: CheckpointFolder, step: int) -> None:
    """Damaged checkpoints, passed over on request: they would be taken for the latest again."""
    for later in (other for other in store.steps() if other > step):
        damaged = store.path_of(later)
        damaged.rename(damaged.with_suffix(".damaged"))


def load_trained(
    folder: RunFolder, *, best: bool = False, device: str | None = None
) -> tuple[Run, int]:
    """What a run is made of, with the state of its last usable checkpoint.

    Args:
        folder: of the run.
        best: of the best checkpoint instead.
        device: the model is put there; None for where the run's options say.

    Returns:
        The run, its state holding the weights that were evaluated, and the step of the
        checkpoint.

    Raises:
        CheckpointError: it has none.
        ValueError: what it was made of is no longer there.
    """
    command, config = folder.load_config()
    if device is not None:
        config = dataclasses.replace(config, device=device)
    store = CheckpointFolder(folder.checkpoints, keep=config.keep)
    if best:
        origin = store.best
        if not origin.is_file():
            raise CheckpointError(f"there is no {origin}: nothing was saved when it was measured")
        saved, about = load_state(origin)
    else:
        saved, about, origin = store.load_last(allow_previous=True)
    run = COMMANDS[command].build(config, initial=False)
    state = measured(restore(run.state, saved, origin))
    return dataclasses.replace(run, state=state), int(about["step"])


def measured(state: TensorDict) -> TensorDict:
    """The state with the weights that were evaluated as its parameters."""
    if not has(state, "ema"):
        return state
    state = state.copy()
    state["params"] = state["ema"]
    return state


def _go_on(
    command: str, config: Any, run: Run, state: TensorDict, folder: RunFolder, say: Say
) -> TensorDict:
    best = COMMANDS[command].measures[0]
    splits = {"train": run.source, "val": run.held_out}
    unreadable = UnreadableExamples(folder.path / "skipped.jsonl", run.skipped, splits)
    observers: list[Observer] = [
        JsonLog(folder.log),
        unreadable,
        Selections(folder.selections, signal=run.signal),
        Checkpoints(
            CheckpointFolder(folder.checkpoints, keep=config.keep),
            every=max(1, round(config.save_every * run.plan.num_examples)),
            about={"command": command, "task": run.task.name, "options": _result_options(config)},
            best=best.metric,
            larger_is_better=best.larger_is_better,
        ),
    ]
    if config.progress:
        observers.insert(0, ProgressBar(run.plan, best))
    if config.report_to:
        observers.append(Trackers(config.report_to, folder.path, _result_options(config)))
    try:
        state = fit(run.tick, state, observers=observers, donate=True)
    except ExampleError as error:
        raise type(error)(f"{error}. {_how_to_go_on(error, config, folder)}") from error

    def save() -> None:
        save_as = COMMANDS[command].save
        if save_as is not None:
            save_as(dataclasses.replace(run, state=measured(state)), folder.path)
        else:
            _write_weights(run.task, measured(state), folder.weights)

    if finished(state):
        processes().on_main(save)
    lines = processes().gather_objects(unreadable.found())
    processes().on_main(lambda: unreadable.add(itertools.chain.from_iterable(lines)))
    if unreadable.summary is not None:
        say(unreadable.summary)
    return state


def _how_to_go_on(error: ExampleError, config: Any, folder: RunFolder) -> str:
    """What can be done where an example has stopped a run."""
    hint = f"What was done is saved: attent resume {folder.path} goes on from there"
    if "cannot be fetched" in str(error) and not config.skip_unreadable:
        hint += (
            f"; with skip_unreadable: true in {folder.config} it passes over what cannot be read"
        )
    return hint


def _write_weights(task: Task, state: TensorDict, path: Path) -> None:
    """The final weights as safetensors, under the names that loaders expect."""
    if isinstance(task, MaskedPretraining):
        write_atomically(path, save(task.weights(state), {"format": "pt"}))
    else:
        export_weights(state, path)


def _result_options(config: Any) -> dict[str, Any]:
    """The options that decide what comes out."""
    return {name: value for name, value in as_dict(config).items() if name not in RUNTIME}


def _same_run(command: str, config: Any, about: dict[str, Any], folder: RunFolder) -> None:
    if about.get("command") != command:
        raise CheckpointError(
            f"the checkpoint in {folder.checkpoints} is of {about.get('command')!r}, the run of "
            f"{command!r}"
        )
    # An option that there was not yet had no other effect than its default.
    was, now = (
        json.loads(json.dumps(options))
        for options in (
            _result_options(type(config)()) | upgraded(about["options"]),
            _result_options(config),
        )
    )
    changed = [f"{name} {was[name]} -> {now[name]}" for name in now if was[name] != now[name]]
    if changed:
        raise ConfigError(
            f"{folder.config} was changed since the checkpoint was written: {', '.join(changed)}; "
            "put it back, or start a new run"
        )


def _set_threads(config: Any) -> None:
    if config.threads is not None:
        torch.set_num_threads(config.threads)
