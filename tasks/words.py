"""The words of a command line: names that mean the same, and the parser's complaints about them."""

from __future__ import annotations

import contextlib
import itertools
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from attent.tasks.config import RUNTIME, ConfigError, did_you_mean

OTHER_NAMES = {"data_path": "data"}
"""Other names of options -> their own, on command lines and in files."""

FEW = 8
"""A command's options that are all named where another is asked for, at most."""


def config_files(argv: Sequence[str]) -> list[str]:
    """The files of options that a command line names."""
    files = [argv[i + 1] for i, word in enumerate(argv[:-1]) if word == "--config"]
    return files + [word.partition("=")[2] for word in argv if word.startswith("--config=")]


def given_options(argv: Sequence[str]) -> dict[str, Any]:
    """The options of a command line as they were given, in files and by flags, which win."""
    found: dict[str, Any] = {}
    for file in config_files(argv):
        with contextlib.suppress(OSError, yaml.YAMLError, UnicodeDecodeError):
            values = yaml.safe_load(Path(file).read_text())
            found |= values if isinstance(values, dict) else {}
    own = {OTHER_NAMES.get(name, name): value for name, value in found.items()}
    return own | given_flags(argv)


def asked_for(argv: Sequence[str]) -> set[str]:
    """The options that a command line asks for by name.

    They are its flags. Those of its files too, where no method is named: whoever gives options of
    selection means to select. A resolved config names one, and has every option.
    """
    given = given_options(argv)
    return set(given_flags(argv) if "method" in given else given)


def given_flags(argv: Sequence[str]) -> dict[str, str]:
    """The options that a command line gives by flags, under their own names."""
    found = {}
    for word, after in itertools.pairwise([*argv, ""]):
        if word.startswith("--"):
            name, equals, value = word[2:].partition("=")
            found[OTHER_NAMES.get(name, name)] = value if equals else after
    return found


def one_name(argv: Sequence[str]) -> list[str]:
    """The command line with each option under its own name, in flags and in files.

    A file that uses another name is handed on as its text, the name replaced where it stands.

    Raises:
        ConfigError: both names of an option, by flags or in one file.
    """
    flags = {word.partition("=")[0].removeprefix("--") for word in argv if word.startswith("--")}
    _refuse_both(flags, "the command line")
    words, found = iter(argv), []
    for word in words:
        name, equals, value = word.partition("=")
        if name == "--config":
            file = value if equals else next(iter(itertools.islice(words, 1)), None)
            found += [word] if file is None else [f"--config={_renamed(file)}"]
        else:
            own = OTHER_NAMES.get(name.removeprefix("--")) if name.startswith("--") else None
            found.append(word if own is None else f"--{own}{equals}{value}")
    return found


def _renamed(file: str) -> str:
    """The file's path, or its text under the options' own names if it uses another."""
    path = Path(file)
    try:
        text = path.read_text() if path.is_file() else ""
        node = yaml.compose(text)
    except (OSError, yaml.YAMLError, UnicodeDecodeError):
        return file  # the parser says what is wrong with it
    keys = _keys(node)
    _refuse_both({key.value for key in keys}, file)
    others = [key for key in keys if key.value in OTHER_NAMES]
    for key in reversed(others):
        begin, end = key.start_mark.index, key.end_mark.index
        text = text[:begin] + OTHER_NAMES[key.value] + text[end:]
    return text if others else file


def _refuse_both(names: set[str], origin: str) -> None:
    for other, own in OTHER_NAMES.items():
        if {other, own} <= names:
            raise ConfigError(f"{own} and {other} are one option, and {origin} gives both")


def readable(message: str, argv: Sequence[str], options: Sequence[str]) -> str:
    """Jsonargparse's message on one line, in words that people use.

    Args:
        message: of the parser.
        argv: the command line, the command first.
        options: names of those that the command takes. Of one that it does not take the nearest is
            named, or all where there are few.
    """
    message = re.sub(r"\s*\n\s*", " ", message).strip()
    files = config_files(argv)
    message = message.replace("<unicode string>", files[-1] if files else "the command line")
    message = re.sub(r'Parser key "([^"]+)":', r"\1:", message)
    message = message.replace("typing.Literal", "one of ").replace("<class '", "").replace("'>", "")
    message = re.sub(
        r"Does not validate against any of the Union subtypes Subtypes: \[(.*?)\] Errors: .*"
        r"Given value type: \S+ Given value: ",
        lambda match: f"Expected {_alternatives(match[1])}. Got value: ",
        message,
    )
    unknown = re.search(
        r"[Uu]nrecognized arguments?: (.*)|does not accept option '([^']+)'", message
    )
    if unknown:
        words = [unknown[2]] if unknown[2] else re.findall(r"--([\w-]+)", unknown[1])
        named = words[0] if words else (unknown[1] or "").strip()
        return f"unknown option {named!r}{_instead(named, argv[0], options)}"
    command = re.search(r"invalid choice: '([^']+)' \(choose from (.*)\)", message)
    if command:
        known = re.findall(r"\w+", command[2])
        return (
            f"unknown command {command[1]!r}{did_you_mean(command[1], known)} ({', '.join(known)})"
        )
    if message.startswith("the following arguments are required:"):
        return message.replace(f" {argv[0]}.", " ")
    return message


def _instead(named: str, command: str, options: Sequence[str]) -> str:
    """What a command takes in place of an option that it does not take."""
    from attent.tasks.commands import COMMANDS

    owners = [name for name, other in COMMANDS.items() if named in other.options]
    if owners and command in COMMANDS:
        return f"; it is of attent {', '.join(owners)}{_forms([command, *owners])}"
    near = did_you_mean(named.replace("-", "_"), options)
    if near or len(options) > FEW:
        return near
    free = command == "resume" and named in RUNTIME
    kept = f"; a run's {named} stands in its config.yaml, where it may be changed" if free else ""
    return f"; attent {command} takes {', '.join(f'--{name}' for name in options)}{kept}"


def _forms(names: Sequence[str]) -> str:
    """When one of these commands is meant where another of them is named."""
    from attent.tasks.commands import forms_of

    told = [w for name in names for form, w in forms_of(name).items() if form in names]
    return f" ({'; '.join(told)})" if told else ""


def _alternatives(subtypes: str) -> str:
    """Types as jsonargparse names them, for people: ``float, NoneType`` -> ``a float or null``."""
    names = [re.sub(r"\w+\.", "", name) for name in re.split(r", (?![^\[]*\])", subtypes)]
    return " or ".join("null" if name == "NoneType" else f"a {name}" for name in names)


def explain(message: str, argv: Sequence[str]) -> str:
    """The message, with where each option it names was set: a flag, or a line of a YAML file.

    Args:
        message: of an error.
        argv: the command line.
    """
    origins = _origins(argv)
    first = message.partition(":")[0]
    if first in origins:  # it is about that option, whatever else its words are
        origins = {first: origins[first]}
    said = [
        f"  {name}: {origin}"
        for name, origin in origins.items()
        if not (origin.endswith(f" --{name}") and f"unknown option {name!r}" in message)
        and re.search(rf"(?<![\w/]){re.escape(name)}(?!\w)", message)
    ]
    return "\n".join([message, *said])


def _origins(argv: Sequence[str]) -> dict[str, str]:
    """Where each option was set last: flags win over files, later flags over earlier ones."""
    from_files: dict[str, str] = {}
    from_flags: dict[str, str] = {}
    for position, word in enumerate(argv):
        if not word.startswith("--"):
            continue
        name, _, value = word[2:].partition("=")
        value = value or (argv[position + 1] if position + 1 < len(argv) else "")
        if name == "config" and Path(value).is_file():
            from_files |= {
                k: f"set in {value}, line {n}" for k, n in key_lines(Path(value)).items()
            }
        else:
            own = name.replace("-", "_")
            from_flags[OTHER_NAMES.get(own, own)] = f"set by the flag --{name}"
    return from_files | from_flags


def key_lines(path: Path) -> dict[str, int]:
    """The line of each top-level key of a YAML file, from 1; empty if it is no mapping."""
    try:
        node = yaml.compose(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError):
        return {}
    lines = [(str(key.value), key.start_mark.line + 1) for key in _keys(node)]
    return {OTHER_NAMES.get(name, name): line for name, line in lines}


def _keys(node: yaml.Node | None) -> list[yaml.ScalarNode]:
    if not isinstance(node, yaml.MappingNode):
        return []
    return [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
