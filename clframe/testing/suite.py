"""The conformance suite: whether a strategy or scenario, one's own or a third party's, keeps the contract."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from clframe import registry
from clframe.data.root import DataRoot
from clframe.errors import ClframeError, ConfigurationError, ContractError
from clframe.models import BackboneConfig
from clframe.scenario import Scenario
from clframe.spec import build
from clframe.strategy import Strategy
from clframe.testing import scenario_checks as scenarios
from clframe.testing import strategy_checks as strategies
from clframe.testing import strategy_runs as runs
from clframe.testing.bench import Bench
from clframe.testing.check import Check

__all__ = [
    "check_named",
    "check_scenario",
    "check_strategy",
    "parametrize_with_checks",
    "scenario_checks",
    "strategy_checks",
]

KnownFailures = Mapping[str, str] | Callable[[Any], Mapping[str, str]]
"""Check to reason, or a function that gives this for an object."""


def strategy_checks() -> list[Check]:
    """Return the checks of strategies; each is called with a strategy, and optionally `backbone=`."""

    def of_bench(function: Callable[[Bench], None]) -> Check:
        def run(subject: Any, backbone: BackboneConfig | None = None) -> None:
            function(subject if isinstance(subject, Bench) else Bench(_strategy(subject), backbone))

        run.__doc__ = function.__doc__
        return Check(function.__name__, run)

    return [of_bench(f) for f in (*strategies.CHECKS, *runs.CHECKS)]


def scenario_checks() -> list[Check]:
    """Return the checks of scenarios; each is called with a scenario, and optionally `root=`."""

    def of_built(function: Callable[[scenarios.Built], None]) -> Check:
        def run(subject: Any, root: DataRoot | None = None) -> None:
            function(subject if isinstance(subject, scenarios.Built) else scenarios.Built(_scenario(subject), root))

        run.__doc__ = function.__doc__
        return Check(function.__name__, run)

    return [of_built(f) for f in scenarios.CHECKS]


def check_strategy(strategy: Strategy | type[Strategy] | str, *, backbone: BackboneConfig | None = None) -> None:
    """Run all checks of a strategy: some seconds of tiny runs on the CPU.

    Args:
        strategy: An object, a class that needs no values, a registered name, or `path/to/file.py:Class`. The phases of
            a trial are short and its memory small, whatever the object says.
        backbone: What it is tried on; by default a tiny convolutional network for 8×8 images.

    Raises:
        ContractError: One sentence per failing check.
    """
    bench = Bench(_strategy(strategy), backbone)
    _raise_all(_results(strategy_checks(), bench))


def check_scenario(scenario: Scenario | type[Scenario] | str, *, root: DataRoot | None = None) -> None:
    """Run all checks of a scenario.

    Args:
        scenario: An object, a class that needs no values, a registered name, or `path/to/file.py:Class`.
        root: Where its data lies; by default as for a run.

    Raises:
        ContractError: One sentence per failing check.
        DataError: Its data is missing.
    """
    built = scenarios.Built(_scenario(scenario), root)
    built.stream  # noqa: B018 - missing data is no broken contract
    _raise_all(_results(scenario_checks(), built))


def check_named(name: str) -> Iterator[tuple[str, str | None]]:
    """Run all checks of a registered name or of `path/to/file.py:Class`, one after the other.

    Yields:
        The check's name, and what is wrong or None.

    Raises:
        ConfigurationError: There is no such strategy or scenario.
    """
    subject = _subject(name)
    if isinstance(subject, Strategy):
        yield from _results(strategy_checks(), Bench(subject))
    else:
        yield from _results(scenario_checks(), scenarios.Built(subject))


def parametrize_with_checks(subjects: Sequence[Any], known_failures: KnownFailures | None = None) -> Any:
    """Make a pytest decorator: one test per object and check, with arguments `subject` and `check`.

    A known failure is expected to fail (strictly: a check that passes again is reported)::

        @parametrize_with_checks([MyStrategy()], {"resume_is_exact": "the sampler has no state yet"})
        def test_contract(subject, check):
            check(subject)

    Args:
        subjects: Strategies and scenarios: objects, classes or names.
        known_failures: Check to reason, or a function from the object to that.

    Raises:
        ConfigurationError: A known failure names no check.
    """
    import pytest

    cases = []
    for subject in map(_subject, subjects):
        checks = strategy_checks() if isinstance(subject, Strategy) else scenario_checks()
        known = dict(known_failures(subject) if callable(known_failures) else known_failures or {})
        unknown = set(known) - {c.name for c in [*strategy_checks(), *scenario_checks()]}
        if unknown:
            raise ConfigurationError(
                f"There is no check named {sorted(unknown)[0]!r}: remove it from the known failures."
            )
        trial: Any = Bench(subject) if isinstance(subject, Strategy) else scenarios.Built(subject)
        for check in checks:
            marks = [pytest.mark.xfail(reason=known[check.name], strict=True)] if check.name in known else []
            cases.append(pytest.param(trial, check, marks=marks, id=f"{_label(subject)}-{check.name}"))
    return pytest.mark.parametrize(("subject", "check"), cases)


def _label(subject: Any) -> str:
    return "+".join(type(p).__name__ for p in getattr(subject, "parts", [subject]))


def _results(checks: Sequence[Check], trial: Any) -> Iterator[tuple[str, str | None]]:
    for check in checks:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about the checks' tiny memories, not the user's class
                check(trial)
            yield check.name, None
        except ClframeError as error:
            yield check.name, " ".join(str(error).split())
        except Exception as error:
            yield check.name, f"{trial.name} raises {type(error).__name__}: {' '.join(str(error).split())}."


def _raise_all(results: Iterator[tuple[str, str | None]]) -> None:
    problems = [f"{name}: {problem}" for name, problem in results if problem is not None]
    if problems:
        raise ContractError("\n".join(problems))


def _subject(given: Any) -> Strategy | Scenario:
    """Return the strategy or scenario that an object, a class or a name stands for."""
    found = _class_of(given) if isinstance(given, str) else given
    if isinstance(found, type) and issubclass(found, (Strategy, Scenario)):
        found = build(found, {}, "strategy" if issubclass(found, Strategy) else "scenario")
    if isinstance(found, (Strategy, Scenario)):
        return found
    raise ConfigurationError(
        f"Expected a strategy or a scenario, received {given!r}: derive from clframe's Strategy or Scenario."
    )


def _class_of(name: str) -> Any:
    if name in registry.available("scenario"):
        return registry.load("scenario", name)
    if "+" in name and ":" not in name:
        from clframe.config import resolve

        return resolve({"strategy": name}).strategy
    return registry.load("strategy", name)


def _strategy(given: Any) -> Strategy:
    found = _subject(given)
    if isinstance(found, Strategy):
        return found
    raise ConfigurationError(f"Expected a strategy, received the scenario {type(found).__name__}: use check_scenario.")


def _scenario(given: Any) -> Scenario:
    found = _subject(given)
    if isinstance(found, Scenario):
        return found
    raise ConfigurationError(f"Expected a scenario, received the strategy {type(found).__name__}: use check_strategy.")
