"""Types of options: whether a value is of one, and what it is called for people."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterator
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

_UNIONS = (types.UnionType, Union)  # of Literal and None typing makes the latter


def mistyped(config: Any) -> Iterator[str]:
    """What is to be said of each value of another type than its option's, or of no choice of it.

    Args:
        config: a dataclass of options.
    """
    hints = get_type_hints(type(config))
    for field in dataclasses.fields(config):
        value, accepted = getattr(config, field.name), hints[field.name]
        options = get_args(accepted) if get_origin(accepted) in _UNIONS else (accepted,)
        if not any(_is_a(value, option) for option in options):
            names = " or ".join(map(_type_name, options))
            yield f"{field.name} must be {names}, got {value!r}"


def _is_a(value: Any, accepted: Any) -> bool:
    if get_origin(accepted) is Literal:
        return isinstance(value, str) and value in get_args(accepted)
    if accepted is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if accepted is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if get_origin(accepted) is list:
        return isinstance(value, list) and all(_is_a(v, get_args(accepted)[0]) for v in value)
    return isinstance(value, get_origin(accepted) or accepted)


def _type_name(accepted: Any) -> str:
    if get_origin(accepted) is Literal:
        return "one of " + ", ".join(map(repr, get_args(accepted)))
    names = {float: "a number", int: "a whole number", str: "a text", bool: "true or false"}
    if get_origin(accepted) is list:
        return f"a list, each {_type_name(get_args(accepted)[0])}"
    return names.get(accepted, "null" if accepted is type(None) else "a mapping")
