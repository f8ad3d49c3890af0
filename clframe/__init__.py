"""clframe: continual-learning experiments whose numbers can be trusted.

>>> import clframe
>>> run = clframe.run(scenario="split_digits", strategy="replay", epochs=1, seed=0)  # doctest: +SKIP
>>> run.metric("final_accuracy")  # doctest: +SKIP

Importing the package is cheap: a name below loads what it needs when it is first used.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clframe._version import __version__

if TYPE_CHECKING:
    from clframe.api import Plan, compare, load, open_scenario, plan, pretrain, resume, run, sweep
    from clframe.audits import audit
    from clframe.composite import Composite
    from clframe.errors import ClframeError
    from clframe.launch.equalise import equalise
    from clframe.launch.follow import log
    from clframe.memory import ExemplarMemory
    from clframe.reference import fresh_reference
    from clframe.registry import register
    from clframe.report.stream_plot import plot_stream
    from clframe.results import Run
    from clframe.scenario import Scenario
    from clframe.spec import field
    from clframe.strategy import Batch, DataView, ParameterGroup, Phase, Strategy, Tags, TensorView
    from clframe.stream import EvaluationTask, Experience, SampleTable, Stream
    from clframe.tracking.rundir import Tracker

_HOME = {
    "Plan": "api",
    "audit": "audits",
    "compare": "api",
    "equalise": "launch.equalise",
    "load": "api",
    "log": "launch.follow",
    "open_scenario": "api",
    "plot_stream": "report.stream_plot",
    "plan": "api",
    "pretrain": "api",
    "resume": "api",
    "run": "api",
    "sweep": "api",
    "Composite": "composite",
    "ClframeError": "errors",
    "ExemplarMemory": "memory",
    "fresh_reference": "reference",
    "register": "registry",
    "Run": "results",
    "Scenario": "scenario",
    "field": "spec",
    "Batch": "strategy",
    "DataView": "strategy",
    "ParameterGroup": "strategy",
    "Phase": "strategy",
    "Strategy": "strategy",
    "Tags": "strategy",
    "TensorView": "strategy",
    "EvaluationTask": "stream",
    "Experience": "stream",
    "SampleTable": "stream",
    "Stream": "stream",
    "Tracker": "tracking.rundir",
}

__all__ = [
    "Batch",
    "ClframeError",
    "Composite",
    "DataView",
    "EvaluationTask",
    "ExemplarMemory",
    "Experience",
    "ParameterGroup",
    "Phase",
    "Plan",
    "Run",
    "SampleTable",
    "Scenario",
    "Strategy",
    "Stream",
    "Tags",
    "TensorView",
    "Tracker",
    "__version__",
    "audit",
    "compare",
    "equalise",
    "field",
    "fresh_reference",
    "load",
    "log",
    "open_scenario",
    "plan",
    "plot_stream",
    "pretrain",
    "register",
    "resume",
    "run",
    "sweep",
]

# In a checkout the folders `strategies/` and `scenarios/` lie beside this one; an installed package holds them inside.
_checkout = Path(__file__).resolve().parent.parent
if (_checkout / "setup.cfg").is_file() and (_checkout / "strategies" / "__init__.py").is_file():
    __path__.append(str(_checkout))


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'clframe' has no attribute {name!r}")
    return getattr(importlib.import_module(f"clframe.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
