"""Errors between processes keep their kind, message and exit code."""

from __future__ import annotations

import copy
import json
import pickle

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
    """Those of the package and its client's, whatever else a run has imported."""
    assert issubclass(gpuprover.ServiceError, ProverError)
    found = errors._descendants(ProverError)
    # A failed check of Midnight's has a form of its own, and crosses processes as its parent.
    return sorted((cls for cls in found if cls.__name__ != "FailedCheck"), key=lambda cls: cls.__name__)


def sample(cls: type[ProverError], path: str, role: str = "key", more: str = "") -> ProverError:
    """One of a kind, with every field that it may have."""
    if cls.__name__ in ("MalformedFile", "UnsupportedFile"):
        return cls(path, "section 4", "is damaged", role=role, more=more)  # type: ignore[call-arg,arg-type]
    return cls("is damaged", path=path, part="section 4", role=role, more=more)


FIELDS = ("message", "told", "path", "role", "part", "problem", "exit_code", "kind", "args")


@pytest.mark.parametrize("cls", kinds(), ids=lambda cls: cls.__name__)
def test_every_kind_survives_a_message_and_a_pickle(cls: type[ProverError]) -> None:
    bare = cls.__name__ == "ServiceError"
    error = cls("is damaged") if bare else sample(cls, "/a b/key.zkey", more="(again)")
    if error.path is not None:
        assert error.message == "/a b/key.zkey: section 4: is damaged (again)"
        assert error.told == "key: section 4: is damaged"
    over_the_wire = errors.from_record(json.loads(json.dumps(errors.to_record(error))))
    for again in (over_the_wire, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(again) is cls
        assert [getattr(again, name) for name in FIELDS] == [getattr(error, name) for name in FIELDS]


def test_what_is_told_has_no_path_and_no_more() -> None:
    assert ProverError("expected a number").told == "expected a number"
    assert ProverError("damaged", path="/k/c.zkey").told == "a file: damaged"
    assert ProverError("damaged", path="/k/c.zkey", role="key", more="in /k").told == "key: damaged"
    with pytest.raises(InvalidInput) as caught, errors.about("key"), errors.about("witness program"):
        raise InvalidInput("cannot read", path="/k/c.wasm")
    assert caught.value.role == "witness program", "who is nearest knows best"
    with pytest.raises(InvalidInput) as caught, errors.about("key"):
        raise InvalidInput("threads: expected a number")
    assert caught.value.role == "", "it is about no file"


def test_records_are_bounded_whatever_others_send() -> None:
    error = ProverError("x\ny" * 9999, path="/" + "p" * 99_999, part="q" * 9999)
    assert len(error.message) == errors.MAX_MESSAGE
    record = errors.to_record(error)
    assert len(json.dumps(record)) < 10_000
    long = "x" * 10**6
    hostile = {"kind": "MalformedFile", "message": long, "role": "root", "path": ["x"], "part": long}
    again = errors.from_record({**hostile, "problem": {"a": 1}})
    assert (len(again.message), again.role, again.path, len(again.part)) == (600, "", None, 600)
    odd = ProverError("damaged", path="/k/\udcff\n.zkey")
    assert odd.message.encode() == b"/k/\\udcff .zkey: damaged"


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
