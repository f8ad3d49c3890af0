"""What an executor is: it takes runs that are to be done, and tells what becomes of them."""

from __future__ import annotations

import sys
from abc import abstractmethod
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from clframe.launch.sweep_run import SweepRun
from clframe.spec import Configurable
from clframe.tracking.files import write_yaml

__all__ = ["Executor", "Update", "Work"]


@dataclass(frozen=True, eq=False)
class Work:
    """What is to be done.

    Attributes:
        runs: The runs, in the order in which they should start.
        folder: The sweep's own folder, for configurations and the scheduler's files.
        processes: Runs at a time; None leaves it to the executor.
        threads: CPU threads of each run.
        data_root: Folders to look for data in.
    """

    runs: Sequence[SweepRun]
    folder: Path
    processes: int | None = None
    threads: int = 1
    data_root: str | None = None

    def prepare(self) -> None:
        """Write the configuration of every run, for the process that will do it.

        Raises:
            RunDirectoryError: A file can't be written.
        """
        for run in self.runs:
            file = self.config(run)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_yaml(file, run.config)

    def config(self, run: SweepRun) -> Path:
        """The file that holds a run's configuration."""
        return self.folder / "configs" / f"{run.name}.yaml"

    def command(self, run: SweepRun) -> list[str]:
        """The command that does a run from the current folder, and goes on where it was stopped."""
        place = [] if self.data_root is None else ["--data-root", self.data_root]
        files = [str(self.config(run).absolute()), str(run.directory.absolute())]
        return [sys.executable, "-m", "clframe.launch.worker", *files, *place]


@dataclass(frozen=True)
class Update:
    """What has become of a run.

    Attributes:
        run: The run.
        state: `waiting` in a queue, `running`, or ended: `finished` or `failed`.
        complaint: Of a failed run: what was wrong, in a sentence.
    """

    run: SweepRun
    state: Literal["waiting", "running", "finished", "failed"]
    complaint: str = ""

    @property
    def ended(self) -> bool:
        """Whether there is nothing more to come."""
        return self.state in ("finished", "failed")


class Executor(Configurable):
    """Does the runs of a sweep somewhere."""

    elsewhere: ClassVar[bool] = False
    """Whether runs are done on other machines, whose devices this one can't check."""
    only_writes: ClassVar[bool] = False
    """Whether it does no run itself, and leaves that to the user."""

    def check(self, work: Work) -> None:
        """Refuse what can't be done here, before anything is started.

        Raises:
            ConfigurationError: Something is missing, or an option isn't to be had.
        """

    @abstractmethod
    def run(self, work: Work) -> Generator[Update | None]:
        """Do the runs, whose configurations have been written.

        Yields:
            What has become of a run; None every moment in which nothing happens.
        """

    def interrupted(self, work: Work) -> str:
        """Say what becomes of the runs under way after Ctrl-C."""
        return "the same command continues the sweep"
