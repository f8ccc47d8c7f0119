"""Functions of the running interpreter's own standard library: real instructions, offline.

The instruction is a function's signature and docstring, the response its body. Whole modules are
held out, so that no function is learned from its neighbours, and no text is on both sides.
"""

from __future__ import annotations

import ast
import hashlib
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Literal

from attent.pipeline.keyed import fold

Row = dict[str, str]

SKIPPED = frozenset({"test", "tests", "idlelib", "idle_test", "site-packages", "dist-packages"})
"""Folders and files that are passed over; ``lib2to3/tests`` and ``__pycache__`` among them."""

LONGEST = 4000
"""Characters of a body; longer ones are passed over."""


def harvest(
    split: Literal["train", "val"] = "train", *, held_out: float = 0.1, seed: int = 0
) -> list[Row]:
    """Functions with docstrings, about six thousand in all, in the order of modules and lines.

    Args:
        split: ``train``, or the functions of the modules that are held out, ``val``.
        held_out: share of the modules held out, in (0, 1), each by its own key.
        seed: of the split.

    Returns:
        Of each function ``instruction`` (signature and docstring), ``response`` (the body without
        the docstring), ``module`` and ``name`` (qualified by its classes). A function whose body is
        found twice is there once, and on the side of training if on both.

    Raises:
        ValueError: no such split, or a share out of range.
    """
    if split not in ("train", "val"):
        raise ValueError(f"the harvest has splits train and val, not {split!r}")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out is in (0, 1), got {held_out:g}")
    rows: dict[str, list[Row]] = {"train": [], "val": []}
    known: dict[str, set[str]] = {"train": set(), "val": set()}
    for row in functions():
        side = "val" if is_held_out(row["module"], held_out, seed=seed) else "train"
        if row["response"] not in known[side]:
            known[side].add(row["response"])
            rows[side].append(row)
    if split == "train":
        return rows["train"]
    return [row for row in rows["val"] if row["response"] not in known["train"]]


def is_held_out(module: str, held_out: float, *, seed: int = 0) -> bool:
    """Whether a module is held out: a function of its name, the share and the seed alone.

    The modules of a package go together (``json.decoder`` with ``json.encoder``), and a module of C
    with its twin in Python (``_pydecimal`` with ``decimal``).
    """
    package = module.partition(".")[0].removeprefix("_py").strip("_")
    return fold(seed, "harvest", package) < held_out * 2.0**63


@lru_cache(maxsize=1)
def functions() -> tuple[Row, ...]:
    """Every function with a docstring and something beside it, as `harvest` has them."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found: list[Row] = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if any(p in SKIPPED or p.startswith((".", "test_", "__py")) for p in parts):
            continue
        if parts[-1] == "__init__":
            parts = parts[:-1]
        found += _functions_of(path, ".".join(parts))
    return tuple(found)


def fingerprint() -> str:
    """Of the harvest: the same where it has the same functions in the same order."""
    digest = hashlib.blake2b(digest_size=8)
    for row in functions():
        digest.update(f"{row['module']}:{row['name']}\0{row['response']}\0".encode())
    return f"{sys.version_info.major}.{sys.version_info.minor}-{digest.hexdigest()}"


def _functions_of(path: Path, module: str) -> Iterator[Row]:
    try:
        text = path.read_text(encoding="utf-8")
        with warnings.catch_warnings():  # of escapes that are no escapes
            warnings.simplefilter("ignore")
            tree = ast.parse(text)
    except (SyntaxError, UnicodeDecodeError):  # templates, and files in other encodings
        return
    lines = text.split("\n")
    for name, node in _walk(tree, ""):
        doc, rest = node.body[0], node.body[1:]
        if not ast.get_docstring(node) or not rest or rest[0].lineno <= (doc.end_lineno or 0):
            continue
        body = _lines(lines, doc.end_lineno or 0, node.end_lineno or 0, rest[0].col_offset)
        if len(body) > LONGEST:
            continue
        yield {
            "instruction": _lines(lines, node.lineno - 1, doc.end_lineno or 0, node.col_offset),
            "response": body,
            "module": module,
            "name": name,
        }


def _walk(
    tree: ast.AST, above: str
) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Functions and methods in order, with their qualified names; not those within functions."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield above + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from _walk(node, f"{above}{node.name}.")
        elif not isinstance(node, ast.expr):  # under an if, a try, a with
            yield from _walk(node, above)


def _lines(lines: list[str], start: int, stop: int, indent: int) -> str:
    """Lines from ``start`` (counted from 0) up to ``stop``, without ``indent`` blanks before each.

    Lines of a text that goes over several may have fewer.
    """
    kept = (line[min(indent, len(line) - len(line.lstrip())) :] for line in lines[start:stop])
    return "\n".join(kept).strip("\n").rstrip()
