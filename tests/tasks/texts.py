"""Texts of three kinds that every Python has, and encoders of some thousand weights.

Assignments, conditions and first lines of docstrings of the standard library.
"""

from __future__ import annotations

import argparse
import ast
import enum
import inspect
import json
import pathlib
import shutil
import subprocess
import tarfile
import typing
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForMaskedLM,
    DistilBertConfig,
    DistilBertModel,
    LlamaConfig,
    LlamaForCausalLM,
    ModernBertConfig,
    ModernBertModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaModel,
)

KINDS = ("assignment", "condition", "docstring")
SPECIAL = {
    "pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}  # fmt: skip
SMALL = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
}  # fmt: skip
POSITIONS = 48


def labelled(each: int = 200) -> list[dict[str, str]]:
    """As many pieces of every kind, in turn, each once; from all over the modules."""
    found: dict[str, dict[str, None]] = {kind: {} for kind in KINDS}
    for module in (argparse, inspect, typing, zipfile, subprocess, pathlib, tarfile, enum, shutil):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            kind, text = piece_of(node)
            if 12 < len(text) < 100:
                found[kind][text] = None
    chosen = {k: list(texts) for k, texts in found.items()}
    assert all(len(texts) >= each for texts in chosen.values())
    return [
        {"text": chosen[kind][i * len(chosen[kind]) // each], "label": kind}
        for i in range(each)
        for kind in KINDS
    ]


def piece_of(node: ast.AST) -> tuple[str, str]:
    """The kind of a piece of source, and itself; no text if it is of none."""
    if isinstance(node, ast.Assign):
        return "assignment", ast.unparse(node)
    if isinstance(node, ast.If):
        return "condition", f"if {ast.unparse(node.test)}"
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return "docstring", (ast.get_docstring(node) or "").partition("\n")[0]
    return "assignment", ""


def write(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def tokenizer_of(texts: Sequence[str], vocab_size: int = 400) -> PreTrainedTokenizerFast:
    """A WordPiece tokenizer as BERT's."""
    tokenizer: Any = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL.values()), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(name, tokenizer.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )  # fmt: skip
    seen = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_input_names=seen, model_max_length=POSITIONS, **SPECIAL
    )


def encoder_of(family: str, vocab_size: int) -> Any:
    """An encoder with fresh weights, far from even ones; a Llama as those that name no padding."""
    names = {"vocab_size": vocab_size, "pad_token_id": 0, "initializer_range": 0.15}
    made = {
        "bert": lambda: BertForMaskedLM(
            BertConfig(**names, **SMALL, max_position_embeddings=POSITIONS)
        ),
        "roberta": lambda: RobertaModel(
            RobertaConfig(**names, **SMALL, max_position_embeddings=POSITIONS + 1)
        ),
        "distilbert": lambda: DistilBertModel(
            DistilBertConfig(
                **names, dim=32, hidden_dim=64, n_layers=2, n_heads=2,
                max_position_embeddings=POSITIONS,
            )
        ),
        "modernbert": lambda: ModernBertModel(
            ModernBertConfig(
                **names, **SMALL, max_position_embeddings=POSITIONS, local_attention=8,
                bos_token_id=2, eos_token_id=3, cls_token_id=2, sep_token_id=3,
            )
        ),
        "llama": lambda: LlamaForCausalLM(
            LlamaConfig(
                **names | {"pad_token_id": None}, **SMALL, max_position_embeddings=POSITIONS,
                bos_token_id=2, eos_token_id=3,
            )
        ),
    }  # fmt: skip
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        torch.manual_seed(0)
        return made[family]()


def release(path: Path, family: str = "bert", texts: Sequence[str] | None = None) -> Path:
    """A folder with an encoder and its tokenizer, as others give them out."""
    if texts is None:
        texts = [row["text"] for row in labelled()]
    tokenizer = tokenizer_of(texts)
    encoder_of(family, len(tokenizer)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
