"""Audits of finished runs, which need the models that they kept: open set, compatibility, unlearning.

A kind is a class of options in a file of its own, named in `KINDS`. What an audit finds is kept as JSON in the directory of
every run that it is about.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clframe.errors import ConfigurationError, did_you_mean
from clframe.spec import build
from clframe.tracking.files import write_json
from clframe.tracking.rundir import RunDirectory

if TYPE_CHECKING:
    from clframe.audits.base import Audit, AuditResult
    from clframe.results import Run

__all__ = ["KINDS", "audit", "audit_class"]

KINDS = {
    "open-set": "clframe.audits.open_set:OpenSet",
    "compatibility": "clframe.audits.compatibility:CompatibilityAudit",
    "unlearning": "clframe.audits.unlearning:UnlearningAudit",
}
"""Every kind of audit by name."""


def audit_class(kind: str) -> type[Audit]:
    """Return the class of a kind.

    Raises:
        ConfigurationError: There is no such kind.
    """
    name = kind.replace("_", "-")
    if name not in KINDS:
        hint = did_you_mean(name, KINDS) or f" There are: {', '.join(KINDS)}."
        raise ConfigurationError(f"There is no audit {kind!r}.{hint}")
    module, _, attribute = KINDS[name].partition(":")
    found: type[Audit] = getattr(importlib.import_module(module), attribute)
    return found


def audit(
    kind: str,
    runs: Run | str | Path | Sequence[Run | str | Path],
    *,
    references: Sequence[Run | str | Path] = (),
    data_root: str | Path | None = None,
    device: str = "auto",
    objects: Mapping[str, Any] | None = None,
    **options: Any,
) -> AuditResult:
    """Audit finished runs by the models that they kept, and keep in each run's directory what was found.

    Args:
        kind: `open-set`, `compatibility` or `unlearning`.
        runs: What is audited: runs, or their directories; several only for `unlearning`.
        references: What it is compared with.
        data_root: Folders to look for data in.
        device: Where models compute.
        objects: `scenario`, `strategy` or `backbone`, where the runs were given an object that has no name.
        **options: Of the kind: fields of `clframe.audits.open_set.OpenSet` and its siblings.

    Raises:
        ConfigurationError: The runs can't be audited so, or an option is wrong.
        RunDirectoryError: A run hasn't finished, or lacks a model.
        DataError: Data is missing or damaged.
    """
    from clframe.audits.base import AuditResult
    from clframe.audits.models import AuditedRun
    from clframe.training.seeds import isolated

    cls = audit_class(kind)
    name = kind.replace("_", "-")
    made = build(cls, options, f"audit {name}")
    asked = list(runs) if isinstance(runs, Sequence) and not isinstance(runs, str) else [runs]
    if references and not cls.takes_references:
        raise ConfigurationError(
            f"The audit {name} compares with no other run, received {len(references)} --reference."
        )
    if not asked or (len(asked) > 1 and not cls.takes_several):
        expected = "at least one run" if cls.takes_several else "one run"
        raise ConfigurationError(f"The audit {name} expects {expected}, received {len(asked)}.")
    how: dict[str, Any] = {"data_root": data_root, "device": device, "objects": objects}
    audited, others = ([AuditedRun(_directory_of(r), **how) for r in given] for given in (asked, references))
    with isolated():
        found = made.make(audited, others)
    for run, result in zip(audited, found, strict=True):
        write_json(run.directory.path / cls.file, result)
    return AuditResult(name, tuple(found), tuple(cls.tables(found)))


def _directory_of(run: Any) -> RunDirectory:
    return RunDirectory.open(Path(run)) if isinstance(run, (str, Path)) else run.directory
