"""Progress on the terminal: a live bar per experience, plain lines in a pipe."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from typing import Any

from clframe.tracking.rundir import Tracker

with warnings.catch_warnings():  # in Jupyter without ipywidgets it warns, and then falls back to plain text by itself
    warnings.simplefilter("ignore")
    from tqdm.auto import tqdm

__all__ = ["Progress", "tqdm"]


class Progress(Tracker):
    """A bar for every experience, counting optimiser steps; a line when it is done.

    Args:
        live: Whether to draw bars; None means when standard error is a terminal.
    """

    def __init__(self, live: bool | None = None) -> None:
        self.live = sys.stderr.isatty() if live is None else live
        self._bar: Any = None
        self._total = 0

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Advance the bar or print a line."""
        handler = getattr(self, f"_on_{kind}", None)
        if handler is not None:
            handler(values)

    def _on_run(self, values: Mapping[str, Any]) -> None:
        self._total = values["experiences"]

    def _on_experience(self, values: Mapping[str, Any]) -> None:
        self._drop()
        if self.live:
            number = f"experience {values['experience']}/{self._total}"
            self._bar = tqdm(total=values["steps"], desc=number, unit="step", leave=False, file=sys.stderr)

    def _on_steps(self, values: Mapping[str, Any]) -> None:
        if self._bar is not None:
            self._bar.update(values["steps"])

    def _on_epoch(self, values: Mapping[str, Any]) -> None:
        if self._bar is not None:
            self._bar.set_postfix_str(
                f"{values['phase']} {values['epoch']}/{values['epochs']} loss {values['loss']:.3f}", refresh=False
            )

    def _on_evaluation(self, values: Mapping[str, Any]) -> None:
        self._drop()
        scores = ", ".join(f"{head} {100 * value:.2f} %" for head, value in values.get("seen_accuracy", {}).items())
        scores = scores or ", ".join(f"{head} error {value:.4g}" for head, value in values.get("error", {}).items())
        print(f"experience {values['experience']}/{self._total}: {scores}", file=sys.stderr)

    def close(self) -> None:
        """Take the bar away."""
        self._drop()

    def _drop(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None
