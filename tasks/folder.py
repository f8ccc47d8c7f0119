"""A run folder: what is in it.

```
config.yaml        every option, resolved
environment.json   versions, threads, device: what the bits depend on
log.jsonl          a line for each tick
checkpoints/       checkpoint-<step>.safetensors, best.safetensors
selections/        selection-<pass>.npz
model.safetensors  the final weights, under the model's own names; of language models adapter/ or
                   model/, as peft and transformers load them
report/            report.html and its pictures
```
"""

from __future__ import annotations

import contextlib
import fcntl
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from attent.pipeline import processes
from attent.tasks.commands import COMMANDS
from attent.tasks.config import ConfigError, from_dict


@dataclass(frozen=True)
class RunFolder:
    """The paths of a run."""

    path: Path

    @property
    def config(self) -> Path:
        """Every option, resolved."""
        return self.path / "config.yaml"

    @property
    def environment(self) -> Path:
        """What the bits depend on beside the options."""
        return self.path / "environment.json"

    @property
    def log(self) -> Path:
        """A line for each tick."""
        return self.path / "log.jsonl"

    @property
    def checkpoints(self) -> Path:
        """The states."""
        return self.path / "checkpoints"

    @property
    def selections(self) -> Path:
        """The masks and scores."""
        return self.path / "selections"

    @property
    def weights(self) -> Path:
        """The final weights."""
        return self.path / "model.safetensors"

    def load_config(self) -> tuple[str, Any]:
        """The command and the options of the run.

        Raises:
            ConfigError: no run there, or its config is not what was written.
        """
        if not self.config.is_file():
            raise ConfigError(f"{self.path} is not a run folder: it has no config.yaml")
        try:
            values = yaml.safe_load(self.config.read_text())
        except yaml.YAMLError as error:
            raise ConfigError(f"{self.config} is not YAML: {error}") from error
        command = values.pop("command", None) if isinstance(values, dict) else None
        if command not in COMMANDS:
            raise ConfigError(f"{self.config} names no known command, but {command!r}")
        values["output_dir"] = str(self.path)  # it may have been moved
        return command, from_dict(COMMANDS[command].config, upgraded(values), str(self.config))


def upgraded(options: dict[str, Any]) -> dict[str, Any]:
    """The options of a run as what they meant when it began.

    Before ``reselect`` was there, attent_simple always observed, whatever ``scores`` said.
    """
    if options.get("method") == "attent_simple" and "reselect" not in options:
        return options | {"scores": None}
    return options


def new_folder(command: str, config: Any) -> Path:
    """Where a new run goes: where its options say, or the next free ``out/COMMAND-N``.

    Raises:
        ConfigError: something is there already.
    """
    if config.output_dir is not None:
        path = Path(config.output_dir)
        refuse_taken(RunFolder(path))
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ConfigError(f"output_dir: {path} exists and is not an empty folder")
        return path
    names = (re.fullmatch(rf"{command}-(\d+)", p.name) for p in Path("out").glob("*"))
    taken = [int(match[1]) for match in names if match]
    return Path("out") / f"{command}-{max(taken, default=0) + 1}"


def refuse_taken(folder: RunFolder) -> None:
    """Refuse a folder that holds a run.

    Raises:
        ConfigError: it does.
    """
    if folder.config.exists():
        raise ConfigError(
            f"output_dir: {folder.path} holds a run already; go on with it (attent resume "
            f"{folder.path}), or name another folder"
        )


def make_folder(path: Path, option: str) -> None:
    """Make a folder where it is not there yet.

    Raises:
        ConfigError: it cannot be made; names the option that asked for it.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be made: {error.strerror}") from error


@contextlib.contextmanager
def only_one(folder: RunFolder) -> Iterator[None]:
    """Refuse to run a folder that somebody else is running; of several processes the main one asks.

    Raises:
        ConfigError: somebody does.
    """
    with contextlib.ExitStack() as held:

        def lock() -> None:
            file = held.enter_context((folder.path / ".lock").open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ConfigError(f"{folder.path} is being run by another process") from None

        processes().on_main(lock)
        yield


def load_runs(paths: Sequence[str]) -> list[RunFolder]:
    """Run folders by path, each checked to be one.

    Raises:
        ConfigError: a path that is no run folder.
    """
    folders = [RunFolder(Path(path)) for path in paths]
    for folder in folders:
        folder.load_config()
    return folders
