"""Lines of the log: their fields, and what must never get into them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gpuprover import logs
from gpuprover.errors import InvalidInput, OutOfMemory

SECRET = "21888242871839275222246405745257275088548364400416034343698204186575808495616"

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Logging is of the whole process: as it was before."""
    names = ["", "gpuprover", "uvicorn"]
    before = {name: (logging.getLogger(name).level, list(logging.getLogger(name).handlers)) for name in names}
    yield
    for name, (level, handlers) in before.items():
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.handlers[:] = handlers


@pytest.fixture
def lines() -> Lines:
    stream = io.StringIO()
    logs.configure("json", stream)
    return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_record_is_one_object_on_one_line(lines: Lines) -> None:
    logging.getLogger("gpuprover.service").info("ready\nafter %d s", 3)
    logging.getLogger("gpuprover.service").debug("not shown")
    (line,) = lines()
    assert line.pop("time").endswith("Z")
    assert line == {"level": "INFO", "logger": "gpuprover.service", "message": "ready\nafter 3 s"}


def test_fields_come_from_the_request_the_record_and_the_event(lines: Lines) -> None:
    log = logging.getLogger("gpuprover.engine")
    with logs.bound(request_id="r1", trace_id="t1"), logs.bound(job_id="j0", circuit="other"):
        event = {"step": "retries_alone", "circuit": "transfer", "job": "j1", "why": "too little memory"}
        log.warning("again", extra={"event": event, "seconds": 1.5})
    log.warning("after")
    first, second = lines()
    expected = {"request_id": "r1", "trace_id": "t1", "job_id": "j1", "circuit": "transfer"}
    expected |= {"step": "retries_alone", "why": "too little memory"}
    assert {name: first[name] for name in expected} == expected
    assert first["seconds"] == 1.5
    assert not second.keys() & expected.keys()


def test_tasks_and_threads_do_not_mix_their_requests(lines: Lines) -> None:
    log = logging.getLogger("gpuprover.service")

    async def request(name: str) -> None:
        with logs.bound(request_id=name):
            await asyncio.sleep(0)
            log.info(name)

    async def both() -> None:
        await asyncio.gather(*(request(f"r{i}") for i in range(5)))

    with logs.bound(request_id="main"):
        thread = threading.Thread(target=log.info, args=("thread",))
        thread.start()
        thread.join()
    asyncio.run(both())
    found = {line["message"]: line.get("request_id") for line in lines()}
    assert found == {"thread": None, **{f"r{i}": f"r{i}" for i in range(5)}}


def test_what_is_not_a_field_stays_out(lines: Lines) -> None:
    event = {"step": "refused", "witness": SECRET}
    logging.getLogger("gpuprover").error("x", extra={"inputs": {"secret": SECRET}, "event": event})
    (line,) = lines()
    assert SECRET not in json.dumps(line)
    assert line["step"] == "refused"


def test_of_a_stranger_exception_only_type_and_place_are_told(lines: Lines) -> None:
    try:
        int(f"{SECRET}?")
    except ValueError as error:
        logging.getLogger("uvicorn.error").error("Exception in ASGI application", exc_info=error)
        # asyncio quotes the exception in the message itself.
        logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: %r", error)
    first, second = lines()
    assert SECRET not in json.dumps([first, second])
    assert first["message"] == "Exception in ASGI application: ValueError"
    assert first["where"][-1].startswith("test_logs.py:")
    assert second["message"] == "Task exception was never retrieved"


def test_our_own_exceptions_are_told_in_full(lines: Lines) -> None:
    try:
        raise OutOfMemory("the key needs 5 MiB")
    except OutOfMemory:
        logging.getLogger("gpuprover").exception("load")
    (line,) = lines()
    assert line["message"] == "load: OutOfMemory: the key needs 5 MiB"
    assert "where" not in line


def test_an_access_has_fields_and_no_query(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    # A service that ran in this process before has switched it off.
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "propagate", True)
    arguments = ("127.0.0.1:5", "POST", f"/v1/circuits/a/proofs?x={SECRET}", "1.1", 200)
    logging.getLogger("uvicorn.access").info('%s - "%s %s HTTP/%s" %d', *arguments)
    (line,) = lines()
    assert SECRET not in json.dumps(line)
    expected = {"client": "127.0.0.1:5", "method": "POST", "path": "/v1/circuits/a/proofs", "status": 200}
    assert {name: line[name] for name in expected} == expected


def test_text_is_one_printable_line_a_record() -> None:
    stream = io.StringIO()
    logs.configure("text", stream)
    with logs.bound(request_id="a\nb"):
        logging.getLogger("gpuprover").info("first\r\n\x1b[31msecond")
    (line,) = stream.getvalue().splitlines()
    assert line.endswith("gpuprover: first\\r\\n\\x1b[31msecond  request_id=a\\nb")
    assert line.split()[1] == "INFO"


@pytest.mark.parametrize(("terminal", "text"), [(True, True), (False, False)])
def test_a_terminal_gets_text_and_others_json(
    terminal: bool, text: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PROVER_LOG", raising=False)
    stream = io.StringIO()
    monkeypatch.setattr(stream, "isatty", lambda: terminal, raising=False)
    logs.configure(stream=stream)
    logs.configure(stream=stream)  # once more is no second handler
    logging.getLogger("gpuprover").info("once")
    (line,) = stream.getvalue().splitlines()
    assert line.startswith("{") is not text


def test_the_variable_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setenv("PROVER_LOG", "text")
    logs.configure(stream=stream)
    logging.getLogger("gpuprover").info("told")
    assert not stream.getvalue().startswith("{")
    monkeypatch.setenv("PROVER_LOG", "yaml")
    with pytest.raises(InvalidInput, match="PROVER_LOG: expected json or text, found 'yaml'"):
        logs.configure(stream=stream)


@pytest.mark.parametrize(("level", "shown"), [("debug", 4), (None, 3), ("warning", 2), ("error", 1)])
def test_the_level_decides(level: str | None, shown: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    if level is not None:
        monkeypatch.setenv("PROVER_LOG_LEVEL", level.upper())
    logs.configure("json", stream)
    for name in ("debug", "info", "warning", "error"):
        getattr(logging.getLogger("gpuprover.engine"), name)("x")
    logging.getLogger("of.others").info("not asked for")
    assert stream.getvalue().count("\n") == shown
    monkeypatch.setenv("PROVER_LOG_LEVEL", "loud")
    with pytest.raises(InvalidInput, match="PROVER_LOG_LEVEL: expected debug, info, warning or error"):
        logs.configure("json", stream)


def test_who_logs_waits_for_no_reader() -> None:
    read, write = os.pipe()
    with os.fdopen(write, "w") as stream, os.fdopen(read, "rb") as reader:
        logs.configure("json", stream, background=True)
        log = logging.getLogger("gpuprover.service")
        count = logs.MAX_WAITING + 2000  # and a pipe of 64 KiB holds a few hundred
        for i in range(count):
            log.info("line %d", i)
        found: list[str] = []
        while not found or "were lost" not in found[-1]:
            found.append(json.loads(reader.readline())["message"])
        lost = int(found[-1].split()[0])
        assert lost > 0
        assert found[:-1] == [f"line {i}" for i in range(count - lost)]
        log.info("after")
        logs.flush()
        assert json.loads(reader.readline())["message"] == "after"


def test_what_the_interpreter_would_print_is_logged_without_its_text(
    lines: Lines, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name in ((sys, "excepthook"), (sys, "unraisablehook"), (threading, "excepthook")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    logs.catch()
    try:
        thread = threading.Thread(target=int, args=(SECRET + "?",))
        thread.start()
        thread.join()
        warnings.warn("an old way", DeprecationWarning, stacklevel=1)
    finally:
        logging.captureWarnings(False)
    first, second = lines()
    assert first["message"] == "ValueError in an unknown place, which nobody caught"
    assert second["logger"] == "py.warnings"
    assert SECRET not in json.dumps([first, second])


def test_a_log_that_cannot_be_written_hurts_nobody(capfd: pytest.CaptureFixture[str]) -> None:
    stream = io.StringIO()
    logs.configure("json", stream)
    stream.close()
    logging.getLogger("gpuprover").error("lost")
    assert capfd.readouterr() == ("", "")
