"""Options of the configuration on the command line: `--section.option value`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from clframe.errors import ConfigurationError, did_you_mean

__all__ = ["configuration", "parse_overrides", "tracked"]


def parse_overrides(tokens: Sequence[str]) -> dict[str, Any]:
    """Turn `--section.option value` tokens into a nested configuration.

    >>> parse_overrides(["--strategy", "replay", "--strategy.memory-size", "50", "--seed=3"])
    {'strategy': {'name': 'replay', 'memory_size': '50'}, 'seed': '3'}

    Raises:
        ConfigurationError: A token is no option.
    """
    from clframe.config import SECTIONS

    found: dict[str, Any] = {}
    rest = list(tokens)
    while rest:
        token = rest.pop(0)
        key, equals, value = token[2:].partition("=")
        path = key.replace("-", "_").split(".")
        if not token.startswith("--") or not all(path):
            raise ConfigurationError(f"Expected an option such as --strategy.epochs 5, received {token!r}.")
        if not equals:
            value = rest.pop(0) if rest and not rest[0].startswith("--") else "true"
        if len(path) == 1 and path[0] in SECTIONS:
            path.append("name")
        inner = found
        for part in path[:-1]:
            inner = inner.setdefault(part, {})
            if not isinstance(inner, dict):
                raise ConfigurationError(f"--{key}: {part!r} is a value already and can't have options of its own.")
        inner[path[-1]] = value
    return found


def configuration(options: argparse.Namespace) -> dict[str, Any]:
    """Put the file and the options beside it together.

    Raises:
        ConfigurationError: An option isn't known; further problems of the rest are named with it.
    """
    from clframe.config import merged, option_names, resolve
    from clframe.tracking.files import read_config

    changes = parse_overrides(options.overrides)
    watched = changes.pop("track", {})
    known = [
        *option_names(),
        *(name for name in vars(options) if name not in ("handler", "takes_overrides", "overrides")),
    ]
    unknown = [name for name in changes if name not in option_names()]
    base = {} if options.config is None else read_config(options.config)
    if watched or options.track is not None:
        base["track"] = tracked(base.get("track"), options.track, watched)
    if not unknown:
        return merged(base, changes)
    problems = [f"There is no option {_dashed(n)}.{_similar_option(n, known)}" for n in unknown]
    try:
        resolve(merged(base, {k: v for k, v in changes.items() if k not in unknown}))
    except ConfigurationError as error:
        problems.append(str(error))
    raise ConfigurationError("\n".join(problems))


def tracked(base: Any, names: str | None, options: Any) -> list[Any]:
    """Put the trackers of a file and of the command line together.

    Args:
        base: `track` of the file.
        names: Trackers named on the command line, which stand for those of the file.
        options: By the name of a tracker, as in `--track.wandb.project mine`, which also asks for it.

    >>> tracked(["tensorboard"], None, {"wandb": {"project": "mine"}})
    [{'name': 'tensorboard'}, {'name': 'wandb', 'project': 'mine'}]

    Raises:
        ConfigurationError: An option is of no tracker.
    """
    from clframe.tracking.choice import listed

    wrong = [name for name, given in options.items() if not isinstance(given, dict)]
    if wrong:
        raise ConfigurationError(
            f"--track.{wrong[0]}: expected an option of a tracker, such as --track.wandb.project mine."
        )
    found = listed(base if names is None else names)
    known = [one["name"] for one in found if isinstance(one, dict)]
    found += [{"name": name} for name in options if name not in known]
    return [{**one, **options.get(one["name"], {})} if isinstance(one, dict) else one for one in found]


def _dashed(name: str) -> str:
    return "--" + name.replace("_", "-")


def _similar_option(name: str, known: Sequence[str]) -> str:
    return did_you_mean(_dashed(name), [_dashed(k) for k in known]) or " `clframe describe run` shows what there is."
