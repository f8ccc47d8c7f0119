"""How options are refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class ConfigError(ValueError):
    """A wrong option; the message names it and says what is accepted."""


def need(config: Any, name: str, holds: Callable[[Any], bool], accepted: str) -> None:
    """Refuse an option's value where ``holds`` is false.

    Raises:
        ConfigError: names the option, its value and what is accepted.
    """
    value = getattr(config, name)
    if not holds(value):
        raise ConfigError(f"{name} must be {accepted}, got {value}")
