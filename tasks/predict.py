"""Trained models on somebody's photographs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from attent.tasks.commands import COMMANDS
from attent.tasks.config import ConfigError
from attent.tasks.data.decode import rgb
from attent.tasks.folder import RunFolder, make_folder
from attent.tasks.run import load_trained


def predict(
    folder: RunFolder, images: Sequence[str], output_dir: str | None = None
) -> Iterator[tuple[Path, str]]:
    """Write what a run's model makes of some pictures.

    Args:
        folder: of the run; its last checkpoint is taken.
        images: files of photographs; all are looked for before the first is read.
        output_dir: where; None for ``predictions/`` in the run's folder.

    Yields:
        For each picture the figure written, and what is to be said of it. Beside the figure lies
        what was predicted itself: label maps as PNG, other arrays as ``.npy``.

    Raises:
        ConfigError: a command that predicts nothing of photographs, a file that is not there, or
            one that would be written over.
        ValueError: a file that is no photograph.
    """
    name, config = folder.load_config()
    make = COMMANDS[name].predict
    if make is None:
        able = ", ".join(other for other, command in COMMANDS.items() if command.predict)
        form = COMMANDS[name].form
        run = f"attent {name}" if form is None else f"attent {form.of} {form.when} ({name})"
        raise ConfigError(
            f"{folder.path} is a run of {run}; predictions are made of photographs, by runs of "
            f"{able} on pictures"
        )
    gone = [path for path in images if not Path(path).is_file()]
    if gone:
        raise ConfigError(f"there is no picture {', '.join(gone[:4])}")
    where = Path(output_dir) if output_dir else folder.path / "predictions"
    for path in map(Path, images):
        if path.suffix.lower() == ".png" and path.resolve().parent == where.resolve():
            raise ConfigError(f"output_dir: {path} would be written over; name another folder")
    run, _ = load_trained(folder)
    make_folder(where, "output_dir")
    taken: set[str] = set()
    for path in images:
        prediction = make(run, config, rgb(path, upright=True))
        ends = {kind: _end(kind, values) for kind, values in prediction.arrays.items()}
        stem = _free(Path(path).stem, [".png", *ends.values()], taken)
        figure = where / f"{stem}.png"
        prediction.figure.savefig(figure, dpi=110)
        for kind, values in prediction.arrays.items():
            file = where / f"{stem}{ends[kind]}"
            if values.dtype == np.uint8:
                Image.fromarray(values).save(file)
            else:
                np.save(file, values)
        yield figure, prediction.words


def _end(kind: str, values: np.ndarray) -> str:
    return f"_{kind}.png" if values.dtype == np.uint8 else f"_{kind}.npy"


def _free(stem: str, ends: Sequence[str], taken: set[str]) -> str:
    """The stem, numbered where one of its files was written already; its files are now taken."""
    name, number = stem, 1
    while any(name + end in taken for end in ends):
        number += 1
        name = f"{stem}_{number}"
    taken.update(name + end for end in ends)
    return name
