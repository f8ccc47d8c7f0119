"""The engine: pure stages over one TensorDict. Knows tensors; knows no model and no data set."""

from attent.pipeline.candidates import WithColumn, reducible_loss, shuffled
from attent.pipeline.checkpoint import (
    CheckpointError,
    CheckpointFolder,
    export_weights,
    load_state,
    restore,
    save_state,
)
from attent.pipeline.combinators import repeat, sequence, when
from attent.pipeline.describe import describe, to_mermaid
from attent.pipeline.evaluate import evaluate
from attent.pipeline.fit import fit
from attent.pipeline.keyed import example_keys, fold, generator, uniform, uniforms
from attent.pipeline.laws import assert_stage_laws
from attent.pipeline.observers import Checkpoints, JsonLog, Observer, Selections, summary
from attent.pipeline.online import attent_online, attent_threshold, online_plan, threshold_plan
from attent.pipeline.optimizer import Optimizer, adamw, sgd
from attent.pipeline.permutation import Permutation
from attent.pipeline.pipes import selected_pipe
from attent.pipeline.plan import Phase, Plan, PlanError, in_tokens, spent
from attent.pipeline.plans import complex_plan, full_plan, paced_plan, simple_plan
from attent.pipeline.processes import AgreedError, Processes, processes
from attent.pipeline.published import averaged, inverse, known_scores, percentile
from attent.pipeline.quantile import above_quantile
from attent.pipeline.rank import aged, patient, rank, reducible
from attent.pipeline.reader import StreamEnded
from attent.pipeline.recipes import (
    attent_adaptive,
    attent_complex,
    attent_paced,
    attent_simple,
    full,
    tick,
)
from attent.pipeline.refined import balanced, blended, easy, trimmed, within
from attent.pipeline.rescaled import concentrated, importance, infobatch
from attent.pipeline.reschedule import plan_of, reschedule
from attent.pipeline.rules import Rule, hard, random, soft
from attent.pipeline.schedules import (
    constant,
    cosine,
    cyclic,
    fixed_interval,
    geometric,
    incremental,
    incremental_interval,
    warmup_cosine,
)
from attent.pipeline.score import score
from attent.pipeline.select import select
from attent.pipeline.signals import SIGNALS, Signal, per_example
from attent.pipeline.source import DatasetSource, ExampleError, Source, TensorSource
from attent.pipeline.stage import Stage, allocate, initialize, run
from attent.pipeline.step import Step
from attent.pipeline.stream import Loading
from attent.pipeline.task import Task, bare_state, initial_state
from attent.pipeline.teacher import Teacher
from attent.pipeline.threshold import count, top_k_mask
from attent.pipeline.train import train
from attent.pipeline.validate import GraphError, validate
from attent.pipeline.window import Keep, Window, refill, window
from attent.pipeline.workers import KeptWorkers

__all__ = [
    "SIGNALS",
    "AgreedError",
    "CheckpointError",
    "CheckpointFolder",
    "Checkpoints",
    "DatasetSource",
    "ExampleError",
    "GraphError",
    "JsonLog",
    "Keep",
    "KeptWorkers",
    "Loading",
    "Observer",
    "Optimizer",
    "Permutation",
    "Phase",
    "Plan",
    "PlanError",
    "Processes",
    "Rule",
    "Selections",
    "Signal",
    "Source",
    "Stage",
    "Step",
    "StreamEnded",
    "Task",
    "Teacher",
    "TensorSource",
    "Window",
    "WithColumn",
    "above_quantile",
    "adamw",
    "aged",
    "allocate",
    "assert_stage_laws",
    "attent_adaptive",
    "attent_complex",
    "attent_online",
    "attent_paced",
    "attent_simple",
    "attent_threshold",
    "averaged",
    "balanced",
    "bare_state",
    "blended",
    "complex_plan",
    "concentrated",
    "constant",
    "cosine",
    "count",
    "cyclic",
    "describe",
    "easy",
    "evaluate",
    "example_keys",
    "export_weights",
    "fit",
    "fixed_interval",
    "fold",
    "full",
    "full_plan",
    "generator",
    "geometric",
    "hard",
    "importance",
    "in_tokens",
    "incremental",
    "incremental_interval",
    "infobatch",
    "initial_state",
    "initialize",
    "inverse",
    "known_scores",
    "load_state",
    "online_plan",
    "paced_plan",
    "patient",
    "per_example",
    "percentile",
    "plan_of",
    "processes",
    "random",
    "rank",
    "reducible",
    "reducible_loss",
    "refill",
    "repeat",
    "reschedule",
    "restore",
    "run",
    "save_state",
    "score",
    "select",
    "selected_pipe",
    "sequence",
    "sgd",
    "shuffled",
    "simple_plan",
    "soft",
    "spent",
    "summary",
    "threshold_plan",
    "tick",
    "to_mermaid",
    "top_k_mask",
    "train",
    "trimmed",
    "uniform",
    "uniforms",
    "validate",
    "warmup_cosine",
    "when",
    "window",
    "within",
]
