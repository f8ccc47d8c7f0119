"""Training commands, once each, over the processes that a launcher has started.

    torchrun --nproc-per-node 2 -m tests.tasks.launched FOLDER NAME...

`tests/tasks/test_launched.py` runs them in one process and in two, and compares.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

from attent.tasks.commands import COMMANDS
from attent.tasks.launch import session
from attent.tasks.run import start
from tests.tasks.finetuned import SELECT, options
from tests.tasks.test_detect_cli import SMALL as DETECT
from tests.tasks.test_language_cli import LLAMA
from tests.tasks.test_language_cli import OPTIONS as INSTRUCT

SGD = {"optimizer": "sgd", "lr": 0.02, "weight_decay": 0.0, "progress": False}
"""Adam makes whole steps of gradients that are nothing but rounding."""


def configs(folder: Path) -> dict[str, Any]:
    """The options of each run by its name."""
    instruct = COMMANDS["instruct"].config(**INSTRUCT)
    rows = {"data": str(folder / "rows.json"), "model_name_or_path": LLAMA, "threads": 1}
    return {
        "segment": options("segment", **SGD, **SELECT | {"signal": "grad_norm"}),
        "depth": options("depth", **SGD, ema=0.9, accumulate=2),
        "classify": options("classify", **SGD, mixup=0.0),
        "pretrain": options("pretrain", **SGD, task_balancer="uncertainty"),
        "detect": COMMANDS["detect"].config(**DETECT | SGD),
        "instruct": dataclasses.replace(
            instruct, **rows, **SGD, pretrain_epochs=1, packing=True, method="attent_simple"
        ),
    }  # fmt: skip


def main(folder: Path, *names: str) -> None:
    """Run some of them, each in a folder of its name."""
    found = configs(folder)
    with session(found[names[0]]):  # once: a launcher's processes meet once
        for name in names:
            config = dataclasses.replace(found[name], output_dir=str(folder / name))
            start(name, config, lambda message: None)


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
