"""What is measured, fixed before it is measured: protocol.yaml, read and checked.

The file has ``worlds``, each a name with the fields of `World`, ``defaults``, fields that worlds
share unless they give their own, and ``earlier``, what was claimed before and is claimed again in
``worlds``. Seeds are a list, or a range such as ``100-119``, both ends in it.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import math
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any

import yaml

BASELINE = "full"
"""The arm that trains on everything. At a budget below 1 it is the shortened one, its schedule
compressed; at budget 1 it is what all are held against, unless a world names another baseline."""


class ProtocolError(ValueError):
    """What is wrong with a protocol, and where in it."""


@dataclass(frozen=True, kw_only=True)
class World:
    """The part of the protocol that is about one world.

    Args:
        name: as `worlds.world` knows it; after a ``-`` may stand what is asked of it besides, so
            that a world can have several parts (`digits_grown-prior`).
        arms: what is compared with the baseline, which is always run and not listed; a list among
            them stands for its items.
        budgets: shares of full's cost, in (0, 1], at which every arm is run.
        baseline_budgets: those of the baseline; 1 and all of ``budgets`` are among them.
        lrs: learning rates tried for every arm at every budget; with one, nothing is tuned.
        tune_seeds, pilot_seeds: seeds of tuning and of looking for recipes.
        claim_seeds: seeds of the claim; none of the others is among them.
        metric: what is compared, on the test split; rates are chosen by it on the validation split.
        margin: how much worse than full at budget 1 counts as equal, in the metric's unit.
        higher_is_better: of the metric.
        percent: tables show the metric and its margin times 100.
        also: further metrics of the test split, shown and not judged.
        size: passed on to `worlds.world`.
        headline: the arm whose figures are quoted, chosen before the claim; without one they are of
            the best arm, which is said to be chosen afterwards.
        results: name of the results file; the world's own if not given.
        baseline: the arm that all are held against, shortened and at budget 1.
    """

    name: str
    arms: tuple[str, ...]
    budgets: tuple[float, ...]
    baseline_budgets: tuple[float, ...]
    lrs: tuple[float, ...]
    tune_seeds: tuple[int, ...]
    claim_seeds: tuple[int, ...]
    metric: str
    margin: float
    pilot_seeds: tuple[int, ...] = ()
    higher_is_better: bool = True
    percent: bool = False
    also: tuple[str, ...] = ()
    size: int | None = None
    headline: str = ""
    results: str = ""
    baseline: str = BASELINE

    @property
    def all_arms(self) -> tuple[str, ...]:
        """The baseline and the arms."""
        return (self.baseline, *self.arms)

    def budgets_of(self, arm: str) -> tuple[float, ...]:
        """The budgets at which an arm is run."""
        return self.baseline_budgets if arm == self.baseline else self.budgets

    def seeds_of(self, stage: str) -> tuple[int, ...]:
        """The seeds of a stage: tune, pilot or claim."""
        seeds = {"tune": self.tune_seeds, "pilot": self.pilot_seeds, "claim": self.claim_seeds}
        return seeds[stage]

    @property
    def shortens(self) -> bool:
        """Whether arms are run below budget 1, so that something can be saved."""
        return min(self.budgets) < 1

    @property
    def has_curves(self) -> bool:
        """Whether arms are run at more than one budget."""
        return len(self.budgets) > 1

    @property
    def hash(self) -> str:
        """Twelve hexadecimal digits of all that the protocol says of this world."""
        text = json.dumps(dataclasses.asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """All worlds, by name, and the file they were read from.

    Args:
        path: the file.
        worlds: by name.
        readme: the arms that the README's short table has a line of, by world; of a world that is
            not named, none. It is no part of a world's hash.
        earlier: protocols that ones of ``worlds`` have replaced, under names of their own; nothing
            is run under them, and their claims stand beside those that were made again.
    """

    path: Path
    worlds: Mapping[str, World]
    readme: Mapping[str, Sequence[str]]
    earlier: Mapping[str, World]


class _Loader(yaml.SafeLoader):
    """Refuses a key given twice, of which YAML would silently take the last."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key) for key, _ in node.value]  # type: ignore[no-untyped-call]
    for i, key in enumerate(keys):
        if key in keys[:i]:
            line = node.value[i][0].start_mark.line + 1
            raise ProtocolError(f"line {line}: {key!r} is given twice")
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load(path: Path) -> Protocol:
    """The protocol in a file.

    Raises:
        ProtocolError: the file is missing, or what it says cannot be run or would not be fair.
    """
    try:
        given = yaml.load(path.read_text(), _Loader)
    except OSError as error:
        raise ProtocolError(f"{path}: cannot be read: {error.strerror}") from error
    except (ProtocolError, yaml.YAMLError) as error:
        raise ProtocolError(f"{path}: {error}") from error
    try:
        worlds, earlier = _all_worlds(given)
        readme = _readme(given, worlds)
        return Protocol(path=path, worlds=worlds, readme=readme, earlier=earlier)
    except ProtocolError as error:
        raise ProtocolError(f"{path}: {error}") from None


def _all_worlds(given: Any) -> tuple[dict[str, World], dict[str, World]]:
    """Those that are run, and those of earlier protocols."""
    if not isinstance(given, dict) or not isinstance(given.get("worlds"), dict):
        raise ProtocolError("a mapping with 'worlds' (name: its fields) is expected")
    _known(given, {"worlds", "defaults", "readme", "earlier"}, "the top")
    defaults = given.get("defaults") or {}
    if not isinstance(defaults, dict):
        raise ProtocolError(f"defaults: fields are expected, not {defaults!r}")
    worlds = _worlds("worlds", given["worlds"], defaults)
    earlier = _worlds("earlier", given.get("earlier") or {}, defaults)
    files = [world.results for world in (*worlds.values(), *earlier.values())]
    for file in files:
        if files.count(file) > 1:
            raise ProtocolError(f"two worlds keep their results under {file!r}: give one another")
    return worlds, earlier


def _worlds(key: str, given: Any, defaults: Mapping[str, Any]) -> dict[str, World]:
    if not isinstance(given, dict):
        raise ProtocolError(f"{key}: a mapping (name: its fields) is expected, not {given!r}")
    found: dict[str, World] = {}
    for name, fields in given.items():
        if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
            raise ProtocolError(f"{key}: a name of letters, digits, - and _, not {name!r}")
        if not isinstance(fields, dict):
            raise ProtocolError(f"{key}.{name}: fields are expected, not {fields!r}")
        found[name] = _world(name, {**defaults, **fields}, f"{key}.{name}")
    return found


def headlines(worlds: Mapping[str, World]) -> dict[str, tuple[str, ...]]:
    """The headline of each world that has one."""
    return {name: (world.headline,) for name, world in worlds.items() if world.headline}


def _readme(given: dict[Any, Any], worlds: Mapping[str, World]) -> dict[str, tuple[str, ...]]:
    """The lines of the README: the headlines of all worlds if none are given."""
    if "readme" not in given:
        return headlines(worlds)
    if not isinstance(given["readme"], dict):
        raise ProtocolError(f"readme: world: [arms] is expected, not {given['readme']!r}")
    _known(given["readme"], set(worlds), "readme")
    found = {}
    for name, value in given["readme"].items():
        arms = tuple(_text(item, f"readme.{name}") for item in _list(value, f"readme.{name}"))
        if unknown := [arm for arm in arms if arm not in worlds[name].arms]:
            raise ProtocolError(f"readme.{name}: {unknown} are none of the world's arms")
        found[name] = arms
    return found


def _world(name: str, given: dict[Any, Any], where: str) -> World:
    fields = {field.name: field for field in dataclasses.fields(World) if field.name != "name"}
    _known(given, set(fields), where)
    for field in fields.values():
        if field.default is MISSING and field.name not in {*given, "baseline_budgets"}:
            raise ProtocolError(f"{where}: {field.name} is missing")
    read: dict[str, Any] = {"name": name, "results": name}
    for key, value in given.items():
        read[key] = _value(key, value, f"{where}.{key}")
    read.setdefault("baseline_budgets", tuple(sorted({*read["budgets"], 1.0})))
    world = World(**read)
    _check(world, where)
    return world


def _value(key: str, value: Any, where: str) -> Any:
    """A field's value in its type; YAML takes 1e-3 for a text."""
    if key in ("arms", "also"):
        return tuple(_text(item, where) for item in _flat(_list(value, where)))
    if key in ("budgets", "baseline_budgets", "lrs"):
        return tuple(_number(item, where) for item in _list(value, where))
    if key.endswith("_seeds"):
        return _seeds(value, where)
    if key == "margin":
        return _number(value, where)
    if key == "size":
        if value is not None and (type(value) is not int or value < 1):
            raise ProtocolError(f"{where}: a whole number from 1 on is expected, not {value!r}")
        return value
    if key in ("higher_is_better", "percent"):
        if not isinstance(value, bool):
            raise ProtocolError(f"{where}: true or false is expected, not {value!r}")
        return value
    return _text(value, where)


def _check(world: World, where: str) -> None:
    """What makes a comparison fair."""
    for key in ("arms", "budgets", "baseline_budgets", "lrs"):
        values = getattr(world, key)
        if not values:
            raise ProtocolError(f"{where}.{key}: at least one is needed")
        if len(set(values)) < len(values):
            raise ProtocolError(f"{where}.{key}: one is given twice: {list(values)}")
    if world.baseline in world.arms:
        raise ProtocolError(f"{where}.arms: {world.baseline!r} is always run, leave it out")
    for key in ("budgets", "baseline_budgets"):
        if wrong := [b for b in getattr(world, key) if not 0 < b <= 1]:
            raise ProtocolError(f"{where}.{key}: shares in (0, 1] are expected, not {wrong}")
    if missing := {*world.budgets, 1.0} - set(world.baseline_budgets):
        raise ProtocolError(
            f"{where}.baseline_budgets: {sorted(missing)} missing: every arm is compared with "
            f"{world.baseline} at the arm's own budget, and at 1"
        )
    if min(world.lrs) <= 0 or world.margin <= 0:
        raise ProtocolError(f"{where}: lrs and margin are above 0")
    for stage in ("tune", "claim"):
        if not world.seeds_of(stage) and not (stage == "tune" and len(world.lrs) == 1):
            raise ProtocolError(f"{where}.{stage}_seeds: at least one is needed")
    for stage in ("tune", "pilot"):
        if both := sorted(set(world.seeds_of(stage)) & set(world.claim_seeds)):
            raise ProtocolError(f"{where}: {stage}_seeds and claim_seeds share {both}")
    if world.headline and world.headline not in world.arms:
        raise ProtocolError(f"{where}.headline: {world.headline!r} is none of the arms")
    if not re.fullmatch(r"[\w-]+", world.results):
        raise ProtocolError(
            f"{where}.results: letters, digits, - and _ are expected, not {world.results!r}"
        )


def _known(given: dict[Any, Any], known: set[str], where: str) -> None:
    for key in given:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            meant = f"did you mean {close[0]!r}?" if close else f"known are {sorted(known)}"
            raise ProtocolError(f"{where}: unknown field {key!r}: {meant}")


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list):
        raise ProtocolError(f"{where}: a list is expected, not {value!r}")
    return value


def _flat(items: list[Any]) -> list[Any]:
    """A list with the items of lists in it: YAML can name a list, but not add to one."""
    return [one for item in items for one in (item if isinstance(item, list) else [item])]


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise ProtocolError(f"{where}: a text is expected, not {value!r}")
    return value


def _number(value: Any, where: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise ProtocolError(f"{where}: a number is expected, not {value!r}")
    return number


def _seeds(value: Any, where: str) -> tuple[int, ...]:
    if isinstance(value, str) and (match := re.fullmatch(r"(\d+)-(\d+)", value)):
        value = list(range(int(match[1]), int(match[2]) + 1))
    if not isinstance(value, list) or any(type(seed) is not int or seed < 0 for seed in value):
        raise ProtocolError(f"{where}: a list of seeds or a range (100-119) is expected: {value!r}")
    if len(set(value)) < len(value):
        raise ProtocolError(f"{where}: a seed is given twice: {value}")
    return tuple(value)


def require_committed(path: Path) -> None:
    """Refuse a protocol that git does not have as it is now.

    Raises:
        ProtocolError: it is not in the last commit, or differs from it.
    """
    shown = subprocess.run(
        ["git", "show", f"HEAD:./{path.name}"], cwd=path.resolve().parent, capture_output=True
    )
    if shown.returncode:
        raise ProtocolError(f"{path} is not committed: a claim is made under a committed protocol")
    if shown.stdout != path.read_bytes():
        raise ProtocolError(f"{path} differs from the last commit: commit it before a claim")
