"""The log of a long-running process: one line for each record on standard error, as JSON or as text.

Fields of a JSON line, those without a value left out:

=======================  ==============================================================================
time, level, logger      UTC with milliseconds; ``INFO`` and so on; the logger's name
message                  one line without values of a witness
request_id, trace_id,    of the HTTP request that is being answered
span_id
job_id, circuit          of the proof that it is about
step, why                of a proof that is retried or goes on elsewhere, and the like
protocol, outcome,       of a proof that has ended: its proof system, once the key is known; ``succeeded``,
kind, role, why,         ``rejected`` (what the client sent is no good), ``failed`` or ``cancelled``; the
device, attempts,        error's kind and what it is about; seconds until its first start, and from there to
waited, proven           its end
client, method, route,   of an answered HTTP request; ``route`` is the template that matched, if one did,
path, status, kind,      ``path`` what the client asked for, without its query; the error's kind; ``seconds``
seconds                  where known
where                    of an exception that nobody caught: file:line of its frames, the innermost last
=======================  ==============================================================================

Lines from WARNING on that repeat themselves are counted rather than written (:class:`Repetition`).

Nothing else gets into a line, whatever a record carries: the message of an exception that is not one of
:mod:`gpuprover.errors` may quote its input, and that may be a witness.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType, TracebackType
from typing import Any, TextIO

from gpuprover.config import log_format, log_level
from gpuprover.errors import ProverError, code_location

_log = logging.getLogger("gpuprover.service")

MAX_MESSAGE = 2000
MAX_FRAMES = 12
MAX_WAITING = 10_000
"""Lines that wait to be written."""
FLUSH_SECONDS = 1.0
MINUTE = 60.0
A_MINUTE = 20
"""Lines of one form, of different words."""
MAX_FORMS = 512
FIELDS = (
    *("request_id", "trace_id", "span_id", "job_id", "circuit", "step", "why"),
    *("protocol", "outcome", "kind", "role", "device", "attempts", "waited", "proven"),
    *("client", "method", "route", "path", "status", "seconds"),
)
_NAMES = {"job": "job_id"}
"""Fields that the engine's events call otherwise."""
_TRUSTED = ("gpuprover", "uvicorn")
"""Loggers whose messages have no repr of an exception in them; of others, the first line is."""

_bound: ContextVar[Mapping[str, Any]] = ContextVar("gpuprover_log", default=MappingProxyType({}))


@contextmanager
def bound(**fields: Any) -> Iterator[None]:
    """Within it, records of this thread or task have these fields as well, of :data:`FIELDS`.

    A field that the record has itself counts more.
    """
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def configure(
    form: str | None = None,
    stream: TextIO | None = None,
    *,
    level: str | None = None,
    background: bool = False,
) -> str:
    """Has all loggers write to ``stream``, standard error by default; once more, it is done anew.

    Records of gpuprover and of uvicorn (to be started with ``log_config=None``) count from ``level`` on,
    those of others from WARNING on, or from ``level`` if that is higher.

    Args:
        form: ``json`` or ``text``; by default what ``PROVER_LOG`` says, else text on a terminal and JSON
            elsewhere.
        level: ``debug``, ``info``, ``warning`` or ``error``; by default what ``PROVER_LOG_LEVEL`` says.
        background: a thread writes, and a reader that does not read holds nobody up: beyond
            :data:`MAX_WAITING` lines the newest are lost, and counted.

    Returns:
        The form.

    Raises:
        InvalidInput: a variable has another value.
    """
    stream = sys.stderr if stream is None else stream
    form = form or log_format() or ("text" if stream.isatty() else "json")
    least = logging.getLevelNamesMapping()[(level or log_level()).upper()]
    handler = _Background(stream) if background else _Handler(stream)
    handler.setFormatter(_Json() if form == "json" else _Text())
    root = logging.getLogger()
    for old in [old for old in root.handlers if isinstance(old, _Handler)]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(max(least, logging.WARNING))
    for name in _TRUSTED:
        logging.getLogger(name).setLevel(least)
    return form


def catch() -> None:
    """Has the log tell what the interpreter would print: warnings, and exceptions that nobody catches.

    Of those, kind and place: their text may hold values of a witness.
    """

    def tell(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        if not issubclass(kind, SystemExit | KeyboardInterrupt):
            _log.error("%s in %s, which nobody caught", kind.__name__, code_location(trace))

    logging.captureWarnings(True)
    sys.excepthook = tell
    threading.excepthook = lambda found: tell(found.exc_type, found.exc_value, found.exc_traceback)
    sys.unraisablehook = lambda found: tell(found.exc_type, found.exc_value, found.exc_traceback)


def flush(seconds: float = FLUSH_SECONDS) -> None:
    """Waits until what was logged is written, so long at most."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _Background):
            handler.wait(seconds)


class Repetition:
    """Keeps lines that come again and again from filling the log: of those from WARNING on, one a minute of
    the same words, and a few of the same form; the next one tells how many were left out.

    Of one handler, which calls it under its lock.

    Args:
        clock: seconds that never go backwards.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._forms: OrderedDict[tuple[str, ...], _Seen] = OrderedDict()
        self._words: OrderedDict[tuple[str, ...], _Seen] = OrderedDict()

    def pass_on(self, record: logging.LogRecord) -> logging.LogRecord | None:
        """The record, perhaps with a count of those before it that were left out; None to leave it out."""
        if record.levelno < logging.WARNING:
            return record
        now = self._clock()
        form = (record.name, record.levelname, str(record.msg)[:MAX_MESSAGE])
        kept = _see(self._forms, form, now)
        try:
            words = record.getMessage()[:MAX_MESSAGE]
        except Exception:  # the formatter's to tell
            return record
        error = record.exc_info[1] if record.exc_info else None
        where = () if error is None else (type(error).__name__, code_location(error.__traceback__))
        same = _see(self._words, (*form, words, *where), now)
        if same.told >= 1 or kept.told >= A_MINUTE:
            same.left_out += 1
            kept.left_out += 1
            return None
        same.told += 1
        kept.told += 1
        count = max(same.before, kept.before if kept.told == 1 else 0)
        if not count:
            return record
        told = copy.copy(record)
        told.msg, told.args = f"{record.getMessage()} (and {count} more like it before)", None
        return told


@dataclass
class _Seen:
    """Lines of one minute: those that were written, those that were not, and those of the minute before."""

    since: float
    before: int
    told: int = 0
    left_out: int = 0


def _see(known: OrderedDict[tuple[str, ...], _Seen], key: tuple[str, ...], now: float) -> _Seen:
    """What is known of a key in this minute."""
    seen = known.get(key)
    if seen is None or now - seen.since >= MINUTE:
        known[key] = seen = _Seen(now, 0 if seen is None else seen.left_out)
    known.move_to_end(key)
    while len(known) > MAX_FORMS:
        known.popitem(last=False)
    return seen


class _Handler(logging.StreamHandler[TextIO]):
    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._repetition = Repetition()

    def emit(self, record: logging.LogRecord) -> None:
        told = self._repetition.pass_on(record)
        if told is not None:
            self._write(told)

    def _write(self, record: logging.LogRecord) -> None:
        super().emit(record)

    def handleError(self, record: logging.LogRecord) -> None:
        """Nobody reads standard error any more, or a record cannot be formatted: work goes on."""


class _Background(_Handler):
    """Writes in a thread: who logs waits for no disk and no reader of a pipe."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._lines: queue.Queue[str] = queue.Queue(MAX_WAITING)
        self._lost = 0
        threading.Thread(target=self._drain, name="gpuprover-log", daemon=True).start()

    def _write(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait(self.format(record) + self.terminator)
        except queue.Full:
            self._lost += 1  # the handler's lock is held
        except Exception:
            self.handleError(record)

    def _drain(self) -> None:
        while True:
            line = self._lines.get()
            with suppress(Exception):
                self._put(line)
            self._lines.task_done()
            if self._lost and self._lines.empty():
                with self.lock or nullcontext():
                    lost, self._lost = self._lost, 0
                _log.warning("%d lines of the log were lost: it was not read", lost)

    def _put(self, line: str) -> None:
        """Past the stream, whose lock a write that blocks would hold when the interpreter ends."""
        try:
            descriptor = self.stream.fileno()
        except (OSError, ValueError):
            self.stream.write(line)
            return
        data = line.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(descriptor, data) :]

    def wait(self, seconds: float) -> None:
        """Until all is written, so long at most."""
        end = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < end:
            time.sleep(0.01)

    def flush(self) -> None:
        """What the thread does after each line; others must not wait for it."""

    def close(self) -> None:
        self.wait(FLUSH_SECONDS)
        super().close()


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """The fields of a record's line, without those that have no value."""
    trusted = record.name.split(".")[0] in _TRUSTED
    found: dict[str, Any] = dict(_bound.get())
    if record.name == "uvicorn.access" and isinstance(record.args, tuple) and len(record.args) == 5:
        client, method, path, _, status = record.args
        path = str(path).split("?")[0]
        found |= {"client": client, "method": method, "path": path, "status": status}
        message = f"{method} {path} {status}"
    else:
        message = record.getMessage()
        if not trusted:
            message = message.splitlines()[0] if message else ""
    for source in (getattr(record, "event", None), vars(record)):
        if isinstance(source, Mapping):
            found |= {_NAMES.get(k, k): v for k, v in source.items() if _NAMES.get(k, k) in FIELDS}
    error = record.exc_info[1] if record.exc_info else None
    if error is not None:
        message = (
            f"{message}: {error.kind}: {error.message}"
            if isinstance(error, ProverError)
            else (f"{message}: {type(error).__name__}")
        )
    seconds = time.gmtime(record.created)
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", seconds) + f".{int(record.msecs):03d}Z",
        "level": record.levelname,
        "logger": record.name,
        "message": message[:MAX_MESSAGE],
        **{name: _plain(found[name]) for name in FIELDS if found.get(name) is not None},
        **({} if error is None or isinstance(error, ProverError) else {"where": _where(error)}),
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float) else str(value)[:MAX_MESSAGE]


def _where(error: BaseException) -> list[str]:
    frames = traceback.extract_tb(error.__traceback__)[-MAX_FRAMES:]
    return [f"{os.path.basename(frame.filename)}:{frame.lineno}" for frame in frames]


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return json.dumps(fields_of(record))


class _Text(logging.Formatter):
    """``time level logger: message  name=value ...``; what is no printable character is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        fields = fields_of(record)
        head = (
            f"{fields.pop('time')} {fields.pop('level'):<7} {fields.pop('logger')}: {fields.pop('message')}"
        )
        shown = {name: ",".join(v) if isinstance(v, list) else v for name, v in fields.items()}
        line = "  ".join([head, *(f"{name}={value}" for name, value in shown.items())])
        return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
