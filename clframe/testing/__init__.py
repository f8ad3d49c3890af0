"""The conformance suite, public: does a strategy or scenario keep the contract that the engine relies on?

`check_strategy` and `check_scenario` run every check; `parametrize_with_checks` makes a pytest test of each; the command
is `clframe check path/to/file.py:Class`. `SyntheticScenario` and `TinyBackbone` serve tests of one's own.
"""

from __future__ import annotations

from clframe.testing.bench import Bench, MemoryRecorder, Outcome
from clframe.testing.check import Check
from clframe.testing.streams import SyntheticScenario, TinyBackbone, synthetic_stream
from clframe.testing.suite import (
    check_named,
    check_scenario,
    check_strategy,
    parametrize_with_checks,
    scenario_checks,
    strategy_checks,
)

__all__ = [
    "Bench",
    "Check",
    "MemoryRecorder",
    "Outcome",
    "SyntheticScenario",
    "TinyBackbone",
    "check_named",
    "check_scenario",
    "check_strategy",
    "parametrize_with_checks",
    "scenario_checks",
    "strategy_checks",
    "synthetic_stream",
]
