"""A tracker: accuracies as a CSV file in the run directory."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import clframe
from clframe.spec import Configurable


class CSV(clframe.Tracker, Configurable):
    """A line for every evaluation and report head, in a file of the run directory."""

    file: str = clframe.field(default="accuracies.csv", help="Name of the file.")

    def begin(self, run: clframe.Run) -> None:
        """Write the head of the file, unless the run goes on in it."""
        self.path_ = run.path / self.file
        if not self.path_.exists():
            self.path_.write_text("experience,head,accuracy\n", encoding="utf-8")

    def event(self, kind: str, values: Mapping[str, Any]) -> None:
        """Add the accuracies of an evaluation."""
        if kind == "evaluation":
            with self.path_.open("a", encoding="utf-8") as file:
                for head, accuracy in values.get("seen_accuracy", {}).items():
                    file.write(f"{values['experience']},{head},{accuracy:.6f}\n")
