"""``attent instruct``."""

from __future__ import annotations

from attent.tasks.command import Command, Measure
from attent.tasks.language.base import prepare
from attent.tasks.language.build import build_instruct, load_data, load_held_out
from attent.tasks.language.config import InstructConfig
from attent.tasks.language.pictures import as_text, samples
from attent.tasks.text.folder import save

INSTRUCT = Command(
    name="instruct",
    config=InstructConfig,
    build=build_instruct,
    measures=(
        Measure(metric="val_perplexity", title="held-out perplexity", short="ppl"),
        Measure(metric="val_loss", title="held-out loss", short="val loss"),
    ),
    load_data=load_data,
    load_held_out=load_held_out,
    text=as_text,
    passages=samples,
    prepare=prepare,
    save=save,
)
