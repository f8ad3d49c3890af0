"""TensorBoard: a run as event files, in its own directory or in a folder of logs."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from clframe.spec import field
from clframe.tracking.board import Axis, Board
from clframe.tracking.files import to_yaml

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["TensorBoard"]

_ROWS = 1000
"""Rows of a table that TensorBoard draws in a moment."""

_LINES = {
    "loss": ["train/loss", "train/terms/.*"],
    "accuracy on each task": ["task/.*"],
    "heads": ["eval/.*/seen_(accuracy|squared_error)$"],
}
"""Charts of several lines, in TensorBoard's tab *custom scalars*."""


class TensorBoard(Board):
    """TensorBoard, whose event files lie in the run directory: `tensorboard --logdir runs` shows all runs in it."""

    needs: ClassVar[tuple[str, ...]] = ("tensorboard",)

    logdir: str | None = field(
        default=None, help="Folder of logs, with a folder per run inside; none: `tensorboard` in the run directory."
    )

    def open(self) -> None:
        """Begin an event file."""
        from torch.utils.tensorboard import SummaryWriter

        run = self.run_
        folder = run.path / "tensorboard" if self.logdir is None else Path(self.logdir).expanduser() / run.path.name
        first = "at" not in self.kept
        for old in folder.glob("events.out.tfevents.*") if first else ():
            old.unlink()
        self.kept["at"] = str(folder)
        self.writer_: Any = SummaryWriter(str(folder))
        if first:
            self.writer_.add_text("config", f"```yaml\n{to_yaml(run.config)}```")
            charts = {name: ["Multiline", keys] for name, keys in _LINES.items()}
            self.writer_.add_custom_scalars({"clframe": charts})
        print(f"clframe: tensorboard: `tensorboard --logdir {folder}` shows it", file=sys.stderr)

    def scalars(self, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """Add scalars; the step of those over experiences is the experience."""
        for key, value in values.items():
            self.writer_.add_scalar(key, value, at)

    def picture(self, key: str, figure: Figure, at: int) -> None:
        """Add an image."""
        self.writer_.add_figure(key, figure, at, close=False)

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table as text; of a long one its beginning."""
        lines = [columns, ["---"] * len(columns), *[[_shown(cell) for cell in row] for row in rows[:_ROWS]]]
        more = f"\n\n… and {len(rows) - _ROWS} more rows" if len(rows) > _ROWS else ""
        self.writer_.add_text(key, "\n".join(f"| {' | '.join(line)} |" for line in lines) + more)

    def result(self, values: Mapping[str, float]) -> None:
        """Add the numbers as scalars; the tab *hparams* shows those of the primary head beside the options."""
        from torch.utils.tensorboard.summary import hparams

        for key, value in values.items():
            self.writer_.add_scalar(key, value, self.experiences_)
        headline = {key: value for key, value in values.items() if key.count("/") == 1}
        options = dict(_options("", self.run_.config))
        for part in hparams(options, headline):  # type: ignore[no-untyped-call]  # `add_hparams` repeats every number
            self.writer_.file_writer.add_summary(part)

    def finish(self, complete: bool) -> None:
        """Write what is left."""
        self.writer_.close()


def _shown(cell: Any) -> str:
    return f"{cell:.4f}" if isinstance(cell, float) else str(cell)


def _options(key: str, value: Any) -> list[tuple[str, Any]]:
    """Options of a nested configuration by their dotted names, as far as TensorBoard takes them."""
    if isinstance(value, Mapping):
        return [one for name, inner in value.items() for one in _options(f"{key}.{name}" if key else str(name), inner)]
    return [(key, value if isinstance(value, (bool, int, float, str)) else str(value))]
