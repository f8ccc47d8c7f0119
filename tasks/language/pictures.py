"""Texts for the report: answers to held-out instructions, and rows as people read them."""

from __future__ import annotations

from typing import Any

import torch

from attent.models.language import LanguageModel, quietly
from attent.pipeline.task import bind, in_eval_mode
from attent.tasks.build import Run
from attent.tasks.command import Passage
from attent.tasks.data.instructions import Instructions
from attent.tasks.language.config import InstructConfig


def samples(run: Run, config: InstructConfig) -> list[Passage]:
    """A few held-out instructions, what was wanted, and what the model says (greedily).

    Args:
        run: its state holds the weights.
        config: its options.
    """
    source = run.held_out
    assert isinstance(source, Instructions)
    count = min(config.num_samples, len(source))
    chosen = [i * len(source) // count for i in range(count)]
    found = []
    for i in chosen:
        prompt, wanted = source.texts(i)
        if not len(prompt):  # a conversation that the assistant begins
            continue
        told = answer(run, prompt, config.max_new_tokens)
        asked = source.tokenizer.decode(prompt.tolist(), skip_special_tokens=True)
        text = f"{asked}\n\n--- wanted:\n{wanted}\n\n--- the model:\n{told}"
        found.append((source.locate(i), text))
    return [Passage(title="Held-out instructions answered", parts=tuple(found))] if found else []


def answer(run: Run, prompt: torch.Tensor, max_new_tokens: int) -> str:
    """What the model says after a prompt, the likeliest token each time.

    Args:
        run: its state holds the weights.
        prompt: ``[T]`` token ids, at least one.
        max_new_tokens: at most so many.
    """
    model, source = run.task.model, run.held_out
    assert isinstance(model, LanguageModel)
    assert isinstance(source, Instructions)
    bind(model, run.state)
    device = next(model.parameters()).device
    ids = prompt[None].to(device)
    causal: Any = model.causal
    with torch.no_grad(), in_eval_mode(model), quietly():
        said = causal.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=source.tokenizer.pad_token_id or source.tokenizer.eos_token_id,
            eos_token_id=source.tokenizer.eos_token_id,
        )
    return source.tokenizer.decode(said[0, len(prompt) :].tolist(), skip_special_tokens=True)


def as_text(source: Any, index: int) -> str:
    """A row: its prompt, and what is learned."""
    assert isinstance(source, Instructions)
    prompt, wanted = source.texts(index)
    asked = source.tokenizer.decode(prompt.tolist(), skip_special_tokens=True)
    return f"{source.locate(index)}\n\n{asked}\n\n--- learned:\n{wanted}"
