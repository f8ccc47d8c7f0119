"""From options to a run of text classification."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attent.models.text_classifier import (
    build_classifier,
    head_of,
    known_classes,
    load_text_tokenizer,
    pad_alike,
)
from attent.pipeline import Source
from attent.pipeline.checkpoint import write_atomically
from attent.pipeline.keyed import all_global_generators, fold
from attent.tasks.build import Run, assemble, device_of
from attent.tasks.config import ConfigError
from attent.tasks.data.rows import SUFFIXES, are_rows
from attent.tasks.data.texts import Texts
from attent.tasks.text.build import adapted, check_words, notes_of, rows_of_data, rows_of_other
from attent.tasks.text.folder import list_dropped
from attent.tasks.text_classification.config import TextClassifyConfig
from attent.tasks.text_classification.task import TextClassification


def build_classify_text(config: TextClassifyConfig, *, initial: bool = True) -> Run:
    """Everything `attent classify` needs on text, checked before any training.

    Args:
        config: the options.
        initial: not looked at: what is not trained is in no checkpoint, and is loaded in any case.

    Raises:
        ValueError: what the options ask for cannot be; the message says why.
    """
    device = device_of(config.device)
    source, held_out = load_data(config)
    _same_classes(config, source.classes)
    path = str(config.model_name_or_path)
    with all_global_generators(fold(config.seed, "model")):
        model, fresh = build_classifier(path, source.classes)
    check_words(model, source.tokenizer, config)
    pad_alike(model, source.tokenizer)
    model = adapted(config, model, head=head_of(model, fresh)).to(device)
    task = TextClassification(model, len(source.classes), label_smoothing=config.label_smoothing)
    run = assemble(config, task, source, held_out, frozen=False)
    notes = run.notes + notes_of(source, held_out)
    modules = dict.fromkeys(name.rpartition(".")[0] for name in fresh)
    if modules:
        notes += (f"{path} has no weights of {', '.join(modules)}: they are fresh, and trained",)
    return dataclasses.replace(run, notes=notes)


def load_data(config: TextClassifyConfig) -> tuple[Texts, Texts]:
    """The training and the held-out rows as tokens; the classes are those of the training rows.

    Raises:
        ValueError: no such data, or not in the form expected.
    """
    _check_given(config)
    path = str(config.model_name_or_path)
    tokenizer = load_text_tokenizer(path)
    train, val = rows_of_data(config)
    source = Texts(train, tokenizer, known=known_classes(path), **_options(config))
    return source, Texts(val, tokenizer, source.classes, **_options(config))


def load_held_out(config: TextClassifyConfig, own: Source) -> Texts:
    """The held-out rows alone, of data that may have no others: all of them, if they have no split.

    Args:
        config: the options, of the data to be read.
        own: the run's own, whose tokenizer and classes these have.

    Raises:
        ValueError: no such data, not in the form expected, or of another class.
    """
    assert isinstance(own, Texts)
    rows = rows_of_other(str(config.data), "data")
    return Texts(rows, own.tokenizer, own.classes, **_options(config))


def _options(config: TextClassifyConfig) -> dict[str, Any]:
    return {
        "fields": config.fields,
        "label_field": config.label_field,
        "max_length": config.model_max_length,
    }


def prepare(config: TextClassifyConfig, run: Run, say: Callable[[str], None]) -> bool:
    """Write which rows were dropped, and the names of the classes, into the run's folder.

    Args:
        config: the options, with the run's folder.
        run: what they give.
        say: not told anything.

    Returns:
        False: nothing that the run is built of.
    """
    assert config.output_dir is not None
    assert isinstance(run.source, Texts)
    assert isinstance(run.held_out, Texts)
    list_dropped(Path(config.output_dir), [*run.source.dropped, *run.held_out.dropped])
    text = json.dumps(run.source.classes, indent=2, ensure_ascii=False) + "\n"
    write_atomically(_classes_file(config), text.encode())
    return False


def _check_given(config: TextClassifyConfig) -> None:
    """Refuse to go on without rows of text and a model, or on pictures."""
    if config.model_name_or_path is None:
        raise ConfigError(
            "model_name_or_path: texts are classified by a model of transformers: give its folder, "
            "or its name on the hub"
        )
    if config.data is None:
        raise ConfigError(
            f"data: give texts with their classes: a file ({', '.join(SUFFIXES)}), a folder of "
            "such files, or a data set of the hub"
        )
    path = Path(config.data)
    pictures = config.data in ("digits", "scenes") or path.suffix == ".npz"
    folders = (path / "train").is_dir() and (path / "val").is_dir() and not are_rows(config.data)
    if pictures or folders:
        raise ConfigError(
            f"data: {config.data} are pictures, and model_name_or_path is of text: leave it out to "
            f"classify pictures, or give a file of texts ({', '.join(SUFFIXES)})"
        )


def _classes_file(config: TextClassifyConfig) -> Path:
    return Path(str(config.output_dir)) / "classes.json"


def _same_classes(config: TextClassifyConfig, classes: Sequence[str]) -> None:
    """Refuse rows of other classes than those that the run began with."""
    if config.output_dir is None or not _classes_file(config).is_file():
        return
    began = json.loads(_classes_file(config).read_text())
    if began != list(classes):
        raise ConfigError(
            f"data: {config.data} has the classes {', '.join(classes)}; the run began with "
            f"{', '.join(began)}"
        )
