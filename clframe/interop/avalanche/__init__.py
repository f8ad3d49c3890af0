"""Avalanche (ContinualAI, avalanche-lib 0.6.0) and clframe: streams both ways, plugins, whole strategies.

Nothing of Avalanche is imported before something here is used.
"""

from __future__ import annotations

from clframe.interop.avalanche.benchmark import to_avalanche
from clframe.interop.avalanche.plugins import AvalanchePlugins
from clframe.interop.avalanche.runs import run_avalanche
from clframe.interop.avalanche.stream import from_avalanche

__all__ = ["AvalanchePlugins", "from_avalanche", "run_avalanche", "to_avalanche"]
