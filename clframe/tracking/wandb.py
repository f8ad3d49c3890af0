"""Weights & Biases: a run on its dashboards, online or offline."""

from __future__ import annotations

import io
import os
import secrets
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from clframe.spec import field
from clframe.tracking.board import Axis, Board
from clframe.tracking.rundir import group_name, run_name

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["WandB"]

_LONGEST_NAME, _LONGEST_TAG = 128, 64
"""Characters that W&B takes."""

_ATTEMPT = 20.0
"""Seconds in which the server must have answered."""


class WandB(Board):
    """Weights & Biases.

    Without a login, or where its server can't be reached, the run is kept offline in the run directory, and a line says
    how to send it. A resumed run continues the same W&B run. Runs that differ in nothing but the seed are one group, so
    that grouping by *Group* shows mean and band over seeds.

    `WANDB_MODE`, `WANDB_PROJECT` and `WANDB_ENTITY` stand for options that are not given.
    """

    needs: ClassVar[tuple[str, ...]] = ("wandb",)

    project: str | None = field(default=None, help="The project; none: $WANDB_PROJECT, else clframe.")
    entity: str | None = field(default=None, help="User or team; none: $WANDB_ENTITY, else the account's own.")
    mode: Literal["auto", "online", "offline"] = field(
        default="auto", help="auto: $WANDB_MODE, else online where there is a login."
    )
    tags: list[str] = field(default_factory=list, help="Tags beside scenario, strategy and backbone.")

    def open(self) -> None:
        """Begin the W&B run, or continue that of this run directory."""
        self.kept.setdefault("id", secrets.token_hex(4))
        self.wandb_ = self._begun()
        self.kept["at"] = self._place()
        for axis, families in (
            ("train/step", ["train/*"]),
            ("experience", ["eval/*", "task/*", "measured/*", "run/*"]),
        ):
            self.wandb_.define_metric(axis, hidden=True)
            for family in families:
                self.wandb_.define_metric(family, step_metric=axis)
        print(f"clframe: wandb: {self.kept['at']}", file=sys.stderr)

    def scalars(self, axis: Axis, at: int, values: Mapping[str, float]) -> None:
        """Add a row to the run's history."""
        self.wandb_.log({"train/step" if axis == "step" else "experience": at, **values})

    def picture(self, key: str, figure: Figure, at: int) -> None:
        """Add the figure as a picture."""
        import wandb
        from PIL import Image

        drawn = io.BytesIO()
        figure.savefig(drawn, format="png", dpi=120)
        self.wandb_.log({"experience": at, key: wandb.Image(Image.open(drawn))})

    def table(self, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Add a table."""
        import wandb

        self.wandb_.log({key: wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def result(self, values: Mapping[str, float]) -> None:
        """Put the numbers into the run's summary."""
        self.wandb_.summary.update(dict(values))

    def finish(self, complete: bool) -> None:
        """End the W&B run: as finished, or as failed when it may be resumed."""
        self.wandb_.finish(exit_code=0 if complete else 1)

    # -- how it begins ---------------------------------------------------------------------------------------------------

    def _begun(self) -> Any:
        """Begin online, else offline."""
        import wandb

        mode: Any = (os.environ.get("WANDB_MODE") or None) if self.mode == "auto" else self.mode
        try:
            return wandb.init(mode=mode, **self._start())
        except wandb.Error as error:
            if mode is not None and self.mode != "auto":
                raise
            wandb.teardown()
            begun = wandb.init(mode="offline", **self._start())
            login = "API key" in str(error)
            reason = "there is no login" if login else f"the server gave no run ({_first_line(error)})"
            then = "`wandb login`, then " if login else ""
            print(
                f"clframe: warning: wandb: {reason}, so the run is kept offline: {then}`wandb sync {self._folder(begun)}` "
                "sends it.",
                file=sys.stderr,
            )
            return begun

    def _start(self) -> dict[str, Any]:
        """What the W&B run is called and where it belongs."""
        import wandb

        record, run = self.run_.config, self.run_
        parts = [str(record[part]["name"]) for part in ("scenario", "strategy", "backbone")]
        tags = [tag[-_LONGEST_TAG:] for tag in (*parts, *self.tags)]
        stream = {name: run.directory.stream[name] for name in ("name", "setting", "score", "fingerprint")}
        return {
            "project": self.project or os.environ.get("WANDB_PROJECT") or "clframe",
            "entity": self.entity,
            "id": self.kept["id"],
            "resume": "allow",
            "name": run_name(record)[-_LONGEST_NAME:],
            "group": group_name(record)[-_LONGEST_NAME:],
            "tags": list(dict.fromkeys(tags)),
            "config": {**record, "stream": {**stream, "experiences": self.experiences_}, "run_dir": str(run.path)},
            "dir": str(run.path.resolve()),
            "settings": wandb.Settings(silent=True, console="off", init_timeout=_ATTEMPT),
        }

    def _place(self) -> str:
        """Where the W&B run can be seen."""
        if self.wandb_.disabled:
            return "disabled, nothing is kept"
        return (
            f"offline; `wandb sync {self._folder(self.wandb_)}` sends it"
            if self.wandb_.offline
            else str(self.wandb_.url)
        )

    def _folder(self, begun: Any) -> Path:
        """The folder that `wandb sync` takes."""
        return self.run_.path / "wandb" / Path(begun.dir).parent.name


def _first_line(error: Exception) -> str:
    return str(error).strip().split("\n")[0]
