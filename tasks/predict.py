"""Trained models on somebody's photographs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from attent.tasks.commands import COMMANDS
from attent.tasks.config import ConfigError
from attent.tasks.data.decode import rgb
from attent.tasks.run import RunFolder, load_trained, make_folder


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
        ConfigError: a command that predicts nothing of photographs, or a file that is not there.
        ValueError: a file that is no photograph.
    """
    name, config = folder.load_config()
    make = COMMANDS[name].predict
    if make is None:
        able = ", ".join(other for other, command in COMMANDS.items() if command.predict)
        raise ConfigError(f"{folder.path} is a run of {name}; predictions are made by {able}")
    gone = [path for path in images if not Path(path).is_file()]
    if gone:
        raise ConfigError(f"there is no picture {', '.join(gone[:4])}")
    run, _ = load_trained(folder)
    where = Path(output_dir) if output_dir else folder.path / "predictions"
    make_folder(where, "output_dir")
    for path, stem in zip(images, _stems(images), strict=True):
        prediction = make(run, config, rgb(path))
        figure = where / f"{stem}.png"
        prediction.figure.savefig(figure, dpi=110)
        for kind, values in prediction.arrays.items():
            if values.dtype == np.uint8:
                Image.fromarray(values).save(where / f"{stem}_{kind}.png")
            else:
                np.save(where / f"{stem}_{kind}.npy", values)
        yield figure, prediction.words


def _stems(paths: Sequence[str]) -> list[str]:
    """A name for each picture, those of one name told apart by number."""
    seen: dict[str, int] = {}
    names = []
    for path in paths:
        stem = Path(path).stem
        seen[stem] = seen.get(stem, 0) + 1
        names.append(stem if seen[stem] == 1 else f"{stem}_{seen[stem]}")
    return names
