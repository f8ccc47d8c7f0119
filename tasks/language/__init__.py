"""Instruction tuning of causal language models."""

from attent.tasks.language.task import InstructionTuning

__all__ = ["InstructionTuning"]
