"""Commands that say what there is: list, describe, check, data."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

from clframe.cli.colour import painted
from clframe.cli.overrides import parse_overrides
from clframe.errors import ConfigurationError

__all__ = ["add"]


def add(command: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the commands."""
    listing = command("list", "name the strategies, scenarios, backbones, trackers and metrics", _list)
    listing.add_argument(
        "kind", nargs="?", metavar="KIND", help="strategies, scenarios, backbones, trackers or metrics; default all"
    )
    listing.add_argument("--json", action="store_true", help="as JSON")
    describe = command(
        "describe", "show one strategy, scenario, backbone, tracker or metric and its options", _describe, True
    )
    describe.add_argument(
        "what", nargs="+", metavar="[KIND] NAME", help="for instance: strategy replay; also: run, optimizer, head"
    )
    describe.add_argument(
        "--plot", type=Path, metavar="FILE", help="of a scenario: draw its stream into a .png, .pdf or .svg file"
    )
    describe.add_argument("--json", action="store_true", help="as JSON")
    describe.add_argument("--data-root", metavar="DIR", help="where data is looked for")
    check = command("check", "check that a strategy or scenario of your own keeps the contract", _check)
    check.add_argument("name", metavar="FILE.py:Class")
    check.add_argument("--json", action="store_true", help="a list of checks, each with its problem or null")
    data = command("data", "show which data sets are found where, and how to get the others", _data)
    data.add_argument("--data-root", metavar="DIR", help="where data is looked for")
    data.add_argument("--json", action="store_true", help="as JSON")


def _list(options: argparse.Namespace) -> None:
    from clframe.report.describe import listing

    rows = listing(options.kind)
    if options.json:
        print(json.dumps(rows))
        return
    from clframe.report import Table

    print(Table(["kind", "name", "what"], [[r["kind"], r["name"], r["what"]] for r in rows]).to_text())


def _describe(options: argparse.Namespace) -> None:
    from clframe.report.describe import describe

    if options.plot is not None:
        _plot_scenario(options)
        return
    if options.overrides:
        raise ConfigurationError(f"describe takes options such as {options.overrides[0]} only with --plot FILE.")
    if options.json:
        from clframe.report.facts import facts

        print(json.dumps(facts(*options.what), default=str))
        return
    print(describe(*options.what))


def _plot_scenario(options: argparse.Namespace) -> None:
    """Draw the stream of a scenario with the options given."""
    from clframe.api import open_scenario
    from clframe.report.stream_plot import plot_stream

    given = parse_overrides(options.overrides)
    unknown = [name for name in given if name != "scenario"]
    if unknown:
        raise ConfigurationError(f"describe --plot takes the options of the scenario, received --{unknown[0]}.")
    if options.plot.suffix.lower() not in (".png", ".pdf", ".svg"):
        raise ConfigurationError(f"--plot: expected a .png, .pdf or .svg file, received {str(options.plot)!r}.")
    stream = open_scenario({**given.get("scenario", {}), "name": options.what[-1]}, data_root=options.data_root)
    plot_stream(stream).savefig(options.plot, dpi=200)
    print(options.plot)


def _check(options: argparse.Namespace) -> int:
    from clframe.testing import check_named

    if options.json:
        found = [{"check": name, "problem": problem} for name, problem in check_named(options.name)]
        print(json.dumps(found))
        return 6 if any(one["problem"] for one in found) else 0
    failures = 0
    for name, problem in check_named(options.name):
        mark = painted("ok  ", "green", sys.stdout) if problem is None else painted("FAIL", "red", sys.stdout)
        print(f"{mark}  {name}" + (f": {problem}" if problem else ""))
        failures += problem is not None
    return 6 if failures else 0


def _data(options: argparse.Namespace) -> None:
    from clframe.data import DataRoot, describe_data
    from clframe.report import Table

    root = DataRoot.resolve(options.data_root)
    if options.json:
        found = [{"name": r.name, "found": r.found and str(r.found), "how": r.how} for r in describe_data(root)]
        print(json.dumps(found))
        return
    rows = [[r.name, str(r.found or "–"), "" if r.found else r.how] for r in describe_data(root)]
    print(Table(["data set", "found at", "how to get it"], rows).to_text())
    print(f"cache: {_cache_sizes()}")


def _cache_sizes() -> str:
    """Say what the cache holds; all of it can be made again."""
    from clframe.data.root import cache_dir

    sizes = {
        what: sum(p.stat().st_size for p in (cache_dir() / folder).rglob("*") if p.is_file())
        for what, folder in (("decoded images", "stores"), ("features of frozen networks", "features"))
    }
    return f"{', '.join(f'{what} {size / 2**20:.1f} MiB' for what, size in sizes.items())} in {cache_dir()}"
