"""What an audit is: options, a result for each run, tables of it; a kind is a file in this folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from clframe.audits.models import AuditedRun
from clframe.report import Table
from clframe.spec import Configurable

__all__ = ["SCHEMA", "Audit", "AuditResult"]

SCHEMA = 1


class Audit(Configurable):
    """Base of every kind of audit; its fields are the audit's options."""

    file: ClassVar[str]
    """Where a run directory keeps the result."""
    takes_references: ClassVar[bool] = False
    """Whether runs are compared with others."""
    takes_several: ClassVar[bool] = False
    """Whether several runs make one audit."""

    def make(self, runs: Sequence[AuditedRun], references: Sequence[AuditedRun]) -> list[dict[str, Any]]:
        """Audit runs.

        Returns:
            What each run directory keeps, in JSON types.

        Raises:
            ClframeError: They can't be audited so; says why.
        """
        raise NotImplementedError

    @classmethod
    def tables(cls, found: Sequence[Mapping[str, Any]]) -> list[Table]:
        """Return the tables of what `make` returned."""
        raise NotImplementedError


@dataclass(frozen=True)
class AuditResult:
    """What an audit has found; in Jupyter it shows itself.

    Attributes:
        kind: The audit's name.
        data: For every run what its directory keeps.
        tables: The same for people.
    """

    kind: str
    data: tuple[dict[str, Any], ...]
    tables: tuple[Table, ...]

    def render(self, form: str = "text") -> str:
        """Return all tables in a form of `clframe.report.Table.render`."""
        return "\n".join(table.render(form) for table in self.tables)

    def __str__(self) -> str:
        """Return the tables as text."""
        return self.render()

    def _repr_html_(self) -> str:
        return self.render("html")
