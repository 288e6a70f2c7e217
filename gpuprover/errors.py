"""The exception tree: every failure a caller can meet, and the exit code it maps to.

An error is data. Fields say which file it is about (``path``), what that file is to us (``role``), which part
of it, and the problem. Two texts are made of them: ``message`` for whoever owns the files, with the path, and
``told`` for strangers, where the role stands in its place. What a text leaves out was never put into it:
nobody searches texts for paths. Nothing of the package is imported here: every layer may use it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from types import TracebackType

MAX_MESSAGE = 600
MAX_PATH = 4096
"""Characters of a path that travels between processes."""

_SHORT = (errno.EMFILE, errno.ENFILE, errno.EAGAIN, errno.ENOBUFS, errno.ETOOMANYREFS, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)

EXIT_OK = 0
EXIT_INVALID = 1
EXIT_BAD_INPUT = 2
EXIT_RESOURCES = 3
EXIT_CANCELLED = 130

ROLES = frozenset(
    {
        *("key", "witness program", "verification key", "circuits"),
        *("witness", "inputs", "proof", "public signals", "body"),
        *("circuit", "powers of tau", "parameters"),
    }
)
"""What a file or document is to us; ``circuits`` is the folder of a prover."""


class ProverError(Exception):
    """Base of every error that gpuprover raises on purpose.

    Args:
        problem: what is wrong, and what was expected; without a path, and without what others wrote.
        path: the file or folder that it is about, or the name of a document that has none.
        role: what that is, of :data:`ROLES`; empty if who raises it does not know, see :func:`about`.
        part: the part of that, such as a section or a field; empty for all of it.
        more: ends the message, and is told to no stranger: further paths, texts of the system's.

    Attributes:
        exit_code: what the command line returns for it.
        message: one line, at most 600 characters: path, part, problem and more.
    """

    exit_code = EXIT_BAD_INPUT

    def __init__(
        self, problem: str, *, path: object = None, role: str = "", part: str = "", more: str = ""
    ) -> None:
        self.path = None if path is None else str(path)
        self.role, self.part, self.problem = role, part, problem
        self.message = _line(f"{_joined(self.path, part, problem)} {more}")
        super().__init__(self.message)

    @property
    def kind(self) -> str:
        """The name to match on, e.g. ``"MalformedFile"``."""
        return type(self).__name__

    @property
    def told(self) -> str:
        """The message for those who may not know where files lie; one line, at most 600 characters."""
        source = None if self.path is None else self.role or "a file"
        return _line(_joined(source, self.part, self.problem))

    def __reduce__(self) -> tuple[Any, ...]:
        """Exceptions are pickled by their arguments, which are not those of every kind here."""
        return _restored, (type(self), dict(self.__dict__))


def _joined(*texts: str | None) -> str:
    return ": ".join(text for text in texts if text)


def _line(text: str, limit: int = MAX_MESSAGE) -> str:
    """One line that can be written anywhere: names in strangers' files may hold what is no text, or what a
    terminal obeys."""
    line = " ".join(text.encode("utf-8", "backslashreplace").decode().split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in line[: limit + 1])
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _restored(cls: type[ProverError], fields: dict[str, Any]) -> ProverError:
    error = cls.__new__(cls)
    error.__dict__.update(fields)
    error.args = (error.message,)
    return error


@contextmanager
def about(role: str) -> Iterator[None]:
    """Gives errors of the block, or of a function that is decorated, that are about a file their role.

    An error that has one keeps it: who opens a file knows best what it is.
    """
    try:
        yield
    except ProverError as error:
        if error.path is not None and not error.role:
            error.role = role
        raise


class MalformedFile(ProverError):
    """A file or document is damaged: truncated, inconsistent, values out of range."""

    def __init__(self, path: object, part: str, problem: str, *, role: str = "", more: str = "") -> None:
        super().__init__(problem, path=path, role=role, part=part, more=more)


class UnsupportedFile(ProverError):
    """A well-formed file of a version, protocol, curve or feature we do not handle."""

    def __init__(self, path: object, part: str, problem: str, *, role: str = "", more: str = "") -> None:
        super().__init__(problem, path=path, role=role, part=part, more=more)


class WitnessMismatch(ProverError):
    """The witness belongs to another circuit or another field than the key."""


class UnsatisfiedWitness(ProverError):
    """The witness does not satisfy the circuit's constraints."""

    exit_code = EXIT_INVALID


class InvalidInput(ProverError):
    """An argument or a circuit's input signal is missing, unknown or out of range."""


class OutOfMemory(ProverError):
    """The work does not fit the memory limit, or the machine refused memory."""

    exit_code = EXIT_RESOURCES


class QueueFull(ProverError):
    """As many proofs wait as may; try again later."""

    exit_code = EXIT_RESOURCES


class CircuitNotFound(ProverError):
    """No circuit of that name is among the circuit keys."""


class ProofGenerationFailed(ProverError):
    """The proof could not be made, although nothing is wrong with its input: what made it died or failed."""

    exit_code = EXIT_RESOURCES


class ShuttingDown(ProverError):
    """The prover takes no more work."""

    exit_code = EXIT_RESOURCES


class DeviceError(ProverError):
    """A device was asked for that is missing, unsupported or failing; or the disk is full."""

    exit_code = EXIT_RESOURCES


class Timeout(ProverError):
    """A time or fuel limit was reached."""

    exit_code = EXIT_RESOURCES


class Cancelled(ProverError):
    """The caller cancelled the work."""

    exit_code = EXIT_CANCELLED


class Aborted(Cancelled):
    """A job of a prover was cancelled, by its caller or because the prover was closed."""


def brief(value: object) -> str:
    """A caller's value as a message may show it: text as it is, up to 40 characters of it."""
    try:
        return (value if isinstance(value, str) else repr(value))[:40]
    except ValueError:  # Python writes no number of thousands of digits
        return "a number of thousands of digits"


class InsecureKeyWarning(UserWarning):
    """A verification key was used that proofs can be forged for, as far as its points show."""


class InsecureBlindingWarning(UserWarning):
    """A proof under fixed blinding: whoever sees it and knows the blinding can learn the witness."""


def to_record(error: ProverError) -> dict[str, object]:
    """What messages between processes say of an error: kind, message, exit code, and the fields it has."""
    fields = {"path": error.path, "role": error.role, "part": error.part, "problem": error.problem}
    return {
        "kind": error.kind,
        "message": error.message,
        "exit_code": error.exit_code,
        **{name: _line(text, _bound(name)) for name, text in fields.items() if text},
    }


def from_record(record: object) -> ProverError:
    """The error that :func:`to_record` described; one of an unknown kind is a ProofGenerationFailed.

    A record that has only kind and message, as answers over HTTP do, makes an error without further fields.
    What is no text, too long or no role counts as if it were not there.
    """
    fields: dict[str, object] = record if isinstance(record, dict) else {}
    known: dict[str, type[ProverError]] = {cls.__name__: cls for cls in _descendants(ProverError)}
    cls = known.get(str(fields.get("kind")), ProofGenerationFailed)

    def text(name: str) -> str:
        value = fields.get(name)
        return _line(value, _bound(name)) if isinstance(value, str) else ""

    message = _line(str(fields.get("message", "an error without a message")))
    role = text("role")
    return _restored(
        cls,
        {
            "path": text("path") or None,
            "role": role if role in ROLES else "",
            "part": text("part"),
            "problem": text("problem") or message,
            "message": message,
        },
    )


def _bound(name: str) -> int:
    return MAX_PATH if name == "path" else MAX_MESSAGE


def code_location(trace: TracebackType | None) -> str:
    """``module:line`` of the innermost frame in this package: what may be told of an unexpected exception,
    whose text may hold secret values."""
    found = "an unknown place"
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.split(".")[0] == "gpuprover":
            found = f"{module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def shortage(error: BaseException) -> ProverError | None:
    """The typed error for what the system has refused; None for an exception that is about anything else.

    Its message holds nothing of the exception's own text.
    """
    if isinstance(error, MemoryError):
        return OutOfMemory("the machine refused memory")
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return OutOfMemory("the machine refused a thread")
    if isinstance(error, OSError) and error.errno is not None:
        what = os.strerror(error.errno)
        if error.errno == errno.ENOMEM:
            return OutOfMemory(f"the machine refused memory: {what}")
        if error.errno in _FULL:
            return DeviceError(f"no space left on the disk: {what}")
        if error.errno in _SHORT:
            return DeviceError(f"the machine refused a resource: {what}")
        return DeviceError(f"the system refused: {what}")
    return None


def _descendants(cls: type[ProverError]) -> list[type[ProverError]]:
    return [d for child in cls.__subclasses__() for d in (child, *_descendants(child))]
