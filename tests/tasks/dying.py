"""The command line, the second of whose processes is killed on the way, always in the same step.

    torchrun --nproc-per-node 2 -m tests.tasks.dying COMMAND ...

The first is slow to take leave, so that the launcher, which ends it too, comes before it is done.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from accelerate import Accelerator

from attent.tasks.classification.task import Classification
from attent.tasks.cli import main

LAST = 28
"""Steps that the second process begins; it does not finish the last of them."""

LEAVE = 2.0  # seconds; the launcher looks at its processes ten times a second


def dying(view: Any) -> Any:
    """What makes examples ready, until it is called for the last time."""
    began: list[int] = []

    def viewed(*args: Any, training: bool, **options: Any) -> Any:
        began.extend([1] * training)
        if len(began) == LAST:
            os.kill(os.getpid(), signal.SIGKILL)
        return view(*args, training=training, **options)

    return viewed


def slow(leave: Any) -> Any:
    """The same, after a while."""

    def left(*args: Any) -> Any:
        time.sleep(LEAVE)
        return leave(*args)

    return left


if __name__ == "__main__":
    if os.environ["RANK"] == "1":
        Classification.view = dying(Classification.view)
    else:
        Accelerator.end_training = slow(Accelerator.end_training)
    sys.exit(main())
