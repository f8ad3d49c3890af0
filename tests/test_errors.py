"""Exit codes tell the kinds of errors apart, and suggestions name only what is close."""

from __future__ import annotations

import pytest

from clframe import errors
from clframe.errors import ClframeError, did_you_mean


def test_every_error_is_a_clframe_error_with_an_exit_code_of_its_own() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__ if name.endswith("Error")]
    assert all(issubclass(kind, ClframeError) for kind in kinds)
    codes = [kind.exit_code for kind in kinds]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 126 for code in codes), "0 is success, from 126 on the shell speaks"


@pytest.mark.parametrize(
    ("name", "choices", "expected"),
    [
        ("replya", ["replay", "ewc"], " Did you mean 'replay'?"),
        ("Replay", ["replay", "ewc"], " Did you mean 'replay'?"),
        ("xyz", ["replay", "ewc"], ""),
        ("", ["replay"], ""),
        ("replay", [], ""),
    ],
)
def test_suggestion(name: str, choices: list[str], expected: str) -> None:
    assert did_you_mean(name, choices) == expected
