"""Runs of benchmarks.proof that cost nothing: a runner whose results follow a known rule."""

from __future__ import annotations

import json
import math
import os
import random
import time
from pathlib import Path
from typing import Any

from benchmarks.proof.jobs import Job

GAIN = {"full": 0.0, "random": 0.0, "good": 0.012, "harmful": -0.03, "thirsty": 0.004}
"""Accuracy that an arm adds to full's at the same budget; full's is 0.90 + 0.05 * budget."""
BEST = 3e-3

PROTOCOL = """
worlds:
  digits:
    arms: [random, good, harmful, thirsty]
    budgets: [0.4, 0.6, 0.8]
    baseline_budgets: [0.4, 0.6, 0.8, 1.0]
    lrs: [1e-3, 3e-3, 1e-2]
    tune_seeds: 0-1
    claim_seeds: 100-109
    metric: accuracy
    margin: 0.005
    percent: true
    also: [loss]
    headline: good
"""


def record(job: Job) -> dict[str, Any]:
    """A job's record: accuracy by the rule above, less at other rates than the best, with noise."""
    seed = random.Random(f"{job.world} {job.seed}").gauss(0, 0.01)
    own = random.Random(str((job.arm, job.budget, job.lr, job.seed))).gauss(0, 0.003)
    miss = 0.05 * abs(math.log10(job.lr / BEST))
    accuracy = 0.90 + 0.05 * job.budget + GAIN[job.arm] - miss + seed + own
    return {
        "val": {"accuracy": accuracy - 0.001, "loss": 1 - accuracy},
        "test": {"accuracy": accuracy, "loss": 1 - accuracy},
        "units": job.budget * (1.05 if job.arm == "thirsty" else 1.0),
        "forwarded": 1000,
        "backwarded": 1000,
        "cpu_seconds": 20 * job.budget,
        "torch": "2.0",
    }


def run_job(job: Job) -> dict[str, Any]:
    """`record`, with faults and waits that the environment asks for.

    PROOF_LOG: a file that gets a line a run; PROOF_WAIT: seconds a run takes; PROOF_RAISE,
    PROOF_DIE, PROOF_NAN, PROOF_MISSING: seeds whose runs raise, end their process, measure nothing,
    or need a package that is not there.
    """
    if log := os.environ.get("PROOF_LOG"):
        with Path(log).open("a") as file:
            file.write(json.dumps([*job.key, os.environ.get("OMP_NUM_THREADS")]) + "\n")
    time.sleep(float(os.environ.get("PROOF_WAIT", 0)))
    if str(job.seed) == os.environ.get("PROOF_RAISE"):
        raise RuntimeError(f"seed {job.seed} is not to my taste")
    if str(job.seed) == os.environ.get("PROOF_MISSING"):
        raise ModuleNotFoundError("of nothing, which is not installed")
    if str(job.seed) == os.environ.get("PROOF_DIE"):
        os._exit(7)
    made = record(job)
    if str(job.seed) == os.environ.get("PROOF_NAN"):
        made["test"]["accuracy"] = float("nan")
    return made
