"""Errors between processes keep their kind, message and exit code."""

from __future__ import annotations

import pytest

import gpuprover
from gpuprover import errors
from gpuprover.errors import (
    MAX_MESSAGE,
    Aborted,
    InvalidInput,
    MalformedFile,
    OutOfMemory,
    ProofGenerationFailed,
    ProverError,
)


def kinds() -> list[type[ProverError]]:
    return sorted(errors._descendants(ProverError), key=lambda cls: cls.__name__)


@pytest.mark.parametrize("cls", kinds(), ids=lambda cls: cls.__name__)
def test_every_kind_survives_a_message(cls: type[ProverError]) -> None:
    parts = ("key.zkey", "section 4", "is damaged") if "File" in cls.__name__ else ("out of luck",)
    error = cls(*parts)
    again = errors.from_record(errors.to_record(error))
    assert type(again) is cls
    assert (again.message, again.exit_code, str(again)) == (error.message, error.exit_code, str(error))


@pytest.mark.parametrize(
    "record", [None, [], {}, {"kind": "SystemExit", "message": "x"}, {"kind": 7}, {"message": 3}]
)
def test_anything_else_is_a_failed_proof(record: object) -> None:
    assert type(errors.from_record(record)) is ProofGenerationFailed


def test_kinds_are_public_and_have_an_exit_code() -> None:
    assert {cls.__name__ for cls in kinds() if cls.__module__ == "gpuprover.errors"} <= set(gpuprover.__all__)
    assert (Aborted("x").exit_code, OutOfMemory("x").exit_code) == (130, 3)
    assert MalformedFile("a", "b", "c").exit_code == 2


def test_messages_hold_nothing_that_a_terminal_obeys() -> None:
    """Names of signals and imports come from strangers' files."""
    error = InvalidInput("circuit inputs: \x1b[31m\x07\ud800\u202e: no such input")
    assert error.message == "circuit inputs: \\u001b[31m\\u0007\\ud800\\u202e: no such input"
    assert len(InvalidInput("\x07" * 10_000).message) == MAX_MESSAGE
