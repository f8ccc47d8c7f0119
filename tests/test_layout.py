"""The rule of imports: tasks -> models, pipeline; loops -> pipeline; and nothing back."""

from __future__ import annotations

import ast
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FORBIDDEN = {
    "pipeline": {"attent.models", "attent.tasks", "attent.loops"},
    "models": {"attent.pipeline", "attent.tasks", "attent.loops"},
    "tasks": {"attent.loops"},
    "loops": {"attent.models", "attent.tasks"},
}
FILES = [path for part in FORBIDDEN for path in sorted((ROOT / part).rglob("*.py"))]


def package_of(path: Path) -> list[str]:
    """The package a file is in, as it is imported: ``pipeline/fit.py`` is in attent.pipeline."""
    return ["attent", *path.relative_to(ROOT).parent.parts]


def imports(text: str, package: list[str]) -> Iterator[str]:
    """The parts of attent (``attent.models``) that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(text)):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names]
        for name in names:
            if name.split(".")[0] == "attent":
                yield ".".join(name.split(".")[:2])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("import torch, attent.tasks.cli as cli", ["attent.tasks"]),
        ("from attent.models.vit import tiny", ["attent.models"]),
        ("from attent import models, tasks", ["attent.models", "attent.tasks"]),
        ("def f():\n    from ..models import vit", ["attent.models"]),
        ("from .. import tasks", ["attent.tasks"]),
        ("from .stage import run\nfrom . import fit", ["attent.pipeline", "attent.pipeline"]),
        ("from torch import nn\nimport attention.models", []),
    ],
)
def test_every_way_to_import_is_seen(text, expected):
    assert list(imports(text, ["attent", "pipeline"])) == expected


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows_run_one_way(path):
    found = set(imports(path.read_text(), package_of(path)))
    assert not found & FORBIDDEN[path.relative_to(ROOT).parts[0]]


def test_the_walk_finds_the_arrows_that_are_there():
    arrows = {
        (path.relative_to(ROOT).parts[0], to.split(".")[1])
        for path in FILES
        for to in imports(path.read_text(), package_of(path))
    }
    assert {("tasks", "models"), ("tasks", "pipeline"), ("loops", "pipeline")} <= arrows


def test_every_package_is_installed():
    """A package left out is missing from a wheel, though an editable install finds it."""
    listed = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    found = {".".join(package_of(path)) for path in FILES}
    assert set(listed["packages"]) == found | {"attent.tasks.configs"}
    assert all(listed["package-dir"][name] == "/".join(name.split(".")[1:]) for name in found)
