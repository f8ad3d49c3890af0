"""The plan of a sweep: read from YAML or Python, checked as a whole, and taken apart into configurations."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from clframe.config import SECTIONS, merged, resolve
from clframe.errors import ConfigurationError, did_you_mean
from clframe.launch.executors import Executor, executor_for
from clframe.launch.search import SearchOptions, nested
from clframe.registry import load_object
from clframe.spec import build
from clframe.tracking.files import read_config

__all__ = ["Plan", "read_plan"]

T = TypeVar("T")

_AXES = {"strategies": "strategy", "scenarios": "scenario", "backbones": "backbone"}
_KEYS = ("out", "base", *_AXES, "seeds", "grid", "search", "processes", "threads", "executor")


@dataclass(frozen=True, eq=False)
class Plan:
    """A plan whose own form has been checked; its runs have not.

    Attributes:
        out: The folder of the sweep.
        configs: A configuration per combination of everything but the seed.
        seeds: The seeds of each; empty for the configuration's own.
        search: How hyperparameters are chosen first; None: they aren't.
        processes: Runs at a time; None leaves it to the executor.
        threads: CPU threads of each run.
        executor: Where runs are done.
    """

    out: Path
    configs: tuple[dict[str, Any], ...]
    seeds: tuple[Any, ...]
    search: SearchOptions | None
    processes: int | None
    threads: int
    executor: Executor

    @classmethod
    def of(cls, given: Mapping[str, Any], executor: str | None = None) -> Plan:
        """Check a plan's own form.

        Args:
            given: The plan.
            executor: Chosen instead of the plan's.

        Raises:
            ConfigurationError: Every problem.
        """
        plan = {str(k): _listed(v) for k, v in given.items() if v is not None}
        problems = _problems(plan)
        chosen = plan.get("executor", "local")
        if executor is not None and not (isinstance(chosen, Mapping) and chosen.get("name") == executor):
            chosen = executor
        where = _tried(problems, executor_for, chosen)
        search = _tried(problems, _search, plan.get("search"))
        configs = () if problems else _tried(problems, _combinations, plan)
        if where is None or configs is None or problems:
            raise ConfigurationError("\n".join(problems))
        seeds = tuple(plan.get("seeds", ()))
        processes, threads = plan.get("processes"), plan.get("threads", 1)
        return cls(Path(str(plan["out"])), tuple(configs), seeds, search, processes, threads, where)


def read_plan(path: str | Path) -> Mapping[str, Any]:
    """Read a plan from a YAML file, or from a Python file that defines `plan`, a mapping or a function that returns one.

    Raises:
        ConfigurationError: The file is missing, broken, or holds no plan.
    """
    file = Path(path)
    if file.suffix != ".py":
        return read_config(file, "a sweep's options")
    found = load_object(f"{file}:plan")
    if callable(found):
        try:
            found = found()
        except Exception as error:
            raise ConfigurationError(
                f"The function plan of {file} failed ({type(error).__name__}: {error}): correct it there."
            ) from error
    if not isinstance(found, Mapping):
        raise ConfigurationError(
            f"Expected plan in {file} to be a mapping of a sweep's options, or a function that returns one, received "
            f"{type(found).__name__}."
        )
    return found


def _problems(plan: Mapping[str, Any]) -> list[str]:
    """Everything that is wrong with a plan's own form, but for its executor and its search."""
    problems = [f"{k} is not an option of a sweep.{did_you_mean(k, _KEYS)}" for k in plan if k not in _KEYS]
    if not plan.get("out"):
        problems.append("out must be given: the folder for the runs.")
    problems += [
        f"{key}: expected a list of at least one, received {plan[key]!r}: write [{plan[key]!r}]."
        for key in (*_AXES, "seeds")
        if key in plan and (not isinstance(plan[key], list) or not plan[key])
    ]
    problems += [
        f"{key}: expected a mapping, received {plan[key]!r}: write it as name: value."
        for key in ("base", "grid", "search")
        if not isinstance(plan.get(key, {}), Mapping)
    ]
    grid = plan.get("grid", {})
    problems += [
        f"grid.{option}: expected a list of values, received {values!r}: write [{values!r}]."
        for option, values in (grid.items() if isinstance(grid, Mapping) else ())
        if not isinstance(values, list) or not values
    ]
    for key in ("processes", "threads"):
        number = plan.get(key, 1)
        if not isinstance(number, int) or isinstance(number, bool) or number < 1:
            problems.append(f"{key}: expected int ≥ 1, received {number!r}.")
    return [*problems, *_twice(grid, plan.get("search"))]


def _twice(grid: Any, search: Any) -> list[str]:
    """A sentence per option that both the grid and the search would set."""
    space = search.get("space") if isinstance(search, Mapping) else None
    if not isinstance(grid, Mapping) or not isinstance(space, Mapping):
        return []
    return [
        f"{option} stands in grid and in search.space: leave it in one of them." for option in grid if option in space
    ]


def _tried(problems: list[str], make: Callable[[Any], T], given: Any) -> T | None:
    """Make something, or note why it can't be made."""
    try:
        return make(given)
    except ConfigurationError as error:
        problems.append(str(error))
        return None


def _listed(value: Any) -> Any:
    """What Python gives as a tuple or range as the list that YAML gives; the values of a mapping too."""
    if isinstance(value, Mapping):
        return {k: _listed(v) for k, v in value.items()}
    return list(value) if isinstance(value, (tuple, range)) else value


def _search(given: Any) -> SearchOptions | None:
    return build(SearchOptions, given, "search").checked() if isinstance(given, Mapping) else None


def _combinations(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the plan's axes but the seeds."""
    axes = [[{section: _plain(section, v)} for v in plan[key]] for key, section in _AXES.items() if key in plan]
    axes += [[nested(str(option), v) for v in values] for option, values in plan.get("grid", {}).items()]
    base = {k: _plain(str(k), v) for k, v in plan.get("base", {}).items()}
    found = []
    for choices in itertools.product(*axes):
        config = base
        for change in choices:
            config = merged(config, change)
        found.append(config)
    return found


def _plain(section: str, value: Any) -> Any:
    """An object given in Python as the name and options under which another process finds it.

    Raises:
        ConfigurationError: It has no name.
    """
    if section not in SECTIONS or isinstance(value, (str, Mapping)):
        return {"name": value} if section in _AXES.values() and isinstance(value, str) else value
    found = resolve({section: value}).record[section]
    if "python:" in str(found.get("name", "")):
        raise ConfigurationError(
            f"The {section} {found['name'].replace('python:', '')!r} of a sweep must be known by name to the processes that "
            "do its runs: put its class into a file, and give it as path/to/file.py:Name."
        )
    return found
