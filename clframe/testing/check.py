"""What a check is: a named callable that raises `ContractError` with one sentence."""

from __future__ import annotations

import contextlib
import json
import random
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from clframe.errors import ClframeError, ConfigurationError, ContractError
from clframe.spec import Configurable, build, fields_of, to_dict
from clframe.testing.bench import first_difference
from clframe.training.seeds import global_state, isolated

__all__ = ["Check", "global_rng_unchanged", "no_files_opened", "reports"]


@dataclass(frozen=True)
class Check:
    """One law that a strategy or scenario must keep.

    Attributes:
        name: Short, for reports and tables of known failures.
        run: Raises `ContractError` when the law is broken.
    """

    name: str
    run: Callable[..., None]

    @property
    def __name__(self) -> str:
        """The name, as functions have it."""
        return self.name

    @property
    def summary(self) -> str:
        """The law in one sentence."""
        return (self.run.__doc__ or "").strip().splitlines()[0]

    def __call__(self, subject: Any, **options: Any) -> None:
        """Check one strategy or scenario.

        Raises:
            ContractError: The law is broken, in one sentence.
        """
        with isolated():
            self.run(subject, **options)

    def __repr__(self) -> str:
        return f"Check({self.name})"


@contextlib.contextmanager
def reports(what: str) -> Iterator[None]:
    """Turn whatever is raised inside into one sentence about a broken contract."""
    try:
        yield
    except ContractError as error:
        raise ContractError(f"{what}: {error}") from error
    except Exception as error:
        kind = "" if isinstance(error, ClframeError) else f"{type(error).__name__}: "
        raise ContractError(f"{what} failed ({kind}{_one_line(error)}).") from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


@contextlib.contextmanager
def global_rng_unchanged(what: str) -> Iterator[None]:
    """Raise when torch's, NumPy's or Python's global generator is drawn from inside.

    Raises:
        ContractError: One was; names it.
    """
    torch.manual_seed(11)
    random.seed(11)
    np.random.seed(11)
    before = global_state()
    yield
    moved = first_difference(before, global_state())
    if moved is not None:
        owner = moved.split("[")[0].split("_")[0]
        raise ContractError(
            f"{what} draws from the global generator of {owner}: draw from self.run.rng(purpose) or a generator of its own."
        )


_opened: list[str] | None = None
_hooked = False


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None:
        _opened.append(str(arguments[0]))


@contextlib.contextmanager
def no_files_opened(what: str) -> Iterator[None]:
    """Raise when a file is opened inside.

    Raises:
        ContractError: One was; names it.
    """
    global _hooked, _opened
    if not _hooked:
        sys.addaudithook(_audit)
        _hooked = True
    found: list[str] = []
    _opened = found
    try:
        yield
    finally:
        _opened = None
    if found:
        raise ContractError(f"{what} opens {found[0]}: read nothing before the run starts.")


def construction(subject: Configurable) -> None:
    """Constructing only stores: the very same values, nothing computed, read or drawn."""
    cls = type(subject)
    values = {f.name: getattr(subject, f.name) for f in fields_of(cls)}
    with reports(f"Constructing {cls.__name__}"):
        cls(**values)  # what an import does the first time is no fault
        with global_rng_unchanged(f"Constructing {cls.__name__}"), no_files_opened(f"Constructing {cls.__name__}"):
            made = cls(**values)
    stored = vars(made)
    changed = [n for n, v in values.items() if n not in stored or stored[n] is not v]
    if changed:
        raise ContractError(
            f"The constructor of {cls.__name__} must store {changed[0]!r} as the very object that was given: "
            "convert it when it is used."
        )
    extra = sorted(set(stored) - set(values))
    if extra:
        raise ContractError(
            f"The constructor of {cls.__name__} makes {extra[0]!r}: only hyperparameters belong there, "
            "build state when the run starts."
        )


def round_trip(subject: Configurable, where: str) -> None:
    """The configuration survives JSON: to_dict, and build from it, give an equal object."""
    cls = type(subject)
    with reports(f"The configuration of {cls.__name__} must survive JSON, but"):
        plain = json.loads(json.dumps(to_dict(subject)))
        again = build(cls, plain, where)
    if again != subject:
        raise ContractError(
            f"{cls.__name__} is another one after to_dict and build: expected {subject!r}, received {again!r}."
        )


def unknown_field(subject: Configurable, where: str) -> None:
    """An unknown hyperparameter is refused, and the closest one suggested."""
    cls = type(subject)
    names = [f.name for f in fields_of(cls)]
    longest = max(names, key=len, default="option")
    wrong = longest[:-1] + ("x" if longest[-1] != "x" else "y")
    try:
        build(cls, {wrong: 1}, where)
    except ConfigurationError as error:
        if not names or "Did you mean" in str(error):
            return
    raise ContractError(f"{cls.__name__} must refuse the unknown option {wrong!r} and suggest {longest!r}.")


def described(subject: Configurable, needs: str, own: bool) -> None:
    """The class says what it does, and every field what it means."""
    cls = type(subject)
    text = cls.__dict__.get("__doc__") or ""
    if not text.strip() or text.startswith(f"{cls.__name__}("):
        raise ContractError(
            f"{cls.__name__} must have a docstring whose first line names it: `clframe describe` shows it."
        )
    if own and not any(needs in (base.__doc__ or "") for base in cls.__mro__):
        raise ContractError(
            f"The docstring of {cls.__name__} must have a section {needs!r}; say 'nothing known' where that is so."
        )
    silent = [f.name for f in fields_of(cls) if not f.help]
    if silent:
        raise ContractError(f"The field {silent[0]!r} of {cls.__name__} must have a sentence of help: field(help=...).")
    _versioned(cls)


def _versioned(cls: Any) -> None:
    version, history = getattr(cls, "version", None), getattr(cls, "history", ())
    if not isinstance(version, int) or version < 1 or not history or not str(history[-1]).startswith(f"{version}:"):
        raise ContractError(
            f"{cls.__name__} must have an integer version and a history whose last line begins with it, "
            f"received {version!r} and {history!r}."
        )
