"""Show a graph: as an indented tree, or as a Mermaid flowchart."""

from __future__ import annotations

import itertools

from attent.pipeline.keys import Key, key_name
from attent.pipeline.stage import Stage
from attent.pipeline.validate import walk


def describe(graph: Stage) -> str:
    """The graph as a tree, with what each stage reads and writes.

    Example:
        >>> from attent.pipeline import Stage, sequence
        >>> a = Stage(name="a", reads={"x"}, writes={"y"}, apply=lambda s: s)
        >>> print(describe(sequence("both", a)))
        both (sequence)
          a: x -> y
    """
    lines = []
    for depth, stage in walk(graph):
        if stage.kind == "stage":
            what = f": {_names(stage.read_keys)} -> {_names(stage.write_keys)}"
        elif stage.flag is not None:
            shown = key_name(stage.flag) in stage.name  # as in the name it has by default
            what = "" if shown else f" (when {key_name(stage.flag)})"
        else:
            what = f" ({stage.kind})"
        note = f"  [{_note(stage)}]" if stage.note else ""
        lines.append("  " * depth + stage.name + what + note)
    return "\n".join(lines)


def to_mermaid(graph: Stage) -> str:
    """The graph as a Mermaid flowchart: stages in the order they run, combinators around them."""
    lines = ["flowchart TD"]
    order: list[tuple[str, str | None]] = []
    counter = iter(range(1_000_000))

    def draw(stage: Stage, indent: str, condition: str | None) -> None:
        node = f"n{next(counter)}"
        if not stage.children:
            note = f"<br/>{_note(stage)}" if stage.note else ""
            lines.append(f'{indent}{node}["{_escape(stage.name + note)}"]')
            order.append((node, condition))
            return
        if stage.flag is not None:
            condition = key_name(stage.flag)
        label = f"{stage.name} ({_note(stage)})" if stage.note else stage.name
        lines.append(f'{indent}subgraph {node} ["{_escape(label)}"]')
        for child in stage.children:
            draw(child, indent + "  ", condition)
            condition = None
        lines.append(f"{indent}end")

    draw(graph, "  ", None)
    for (before, _), (after, condition) in itertools.pairwise(order):
        label = f"|{_escape('if ' + condition)}|" if condition else ""
        lines.append(f"  {before} -->{label} {after}")
    return "\n".join(lines)


def _names(keys: frozenset[Key]) -> str:
    """Keys in order, those of one container together: ``clock/{seen, step}, mask``."""
    groups: dict[Key, list[str]] = {}
    for key in sorted(keys):
        groups.setdefault(key[:-1], []).append(key[-1])
    shown = []
    for parent, names in groups.items():
        if not parent:
            shown += names
        elif len(names) == 1:
            shown.append(key_name((*parent, names[0])))
        else:
            shown.append(f"{key_name(parent)}/{{{', '.join(names)}}}")
    return ", ".join(shown) or "nothing"


def _escape(text: str) -> str:
    return text.replace('"', "#quot;")


def _note(stage: Stage) -> str:
    return stage.note() if callable(stage.note) else stage.note
