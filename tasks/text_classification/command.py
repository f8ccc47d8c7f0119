"""``attent classify`` on text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attent.tasks.classification.command import CLASSIFY
from attent.tasks.command import Command, Form
from attent.tasks.data.rows import are_rows
from attent.tasks.text.folder import save
from attent.tasks.text_classification.build import (
    build_classify_text,
    load_data,
    load_held_out,
    prepare,
)
from attent.tasks.text_classification.config import TextClassifyConfig
from attent.tasks.text_classification.pictures import as_text, hardest_and_easiest


def _is_text(given: Mapping[str, Any]) -> bool:
    """Whether options are those of texts: a model of transformers, or rows."""
    return are_rows(str(given.get("data"))) or given.get("model_name_or_path") is not None


CLASSIFY_TEXT = Command(
    name="classify_text",
    config=TextClassifyConfig,
    build=build_classify_text,
    measures=CLASSIFY.measures,
    load_data=load_data,
    load_held_out=load_held_out,
    text=as_text,
    passages=hardest_and_easiest,
    prepare=prepare,
    save=save,
    form=Form(
        of="classify",
        when="with model_name_or_path, or rows of text as data",
        holds=_is_text,
    ),
)
