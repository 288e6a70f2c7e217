"""The exception tree: every failure a caller can meet, and the exit code it maps to.

A message is one line of at most 600 characters that names the file, the part of it,
and what was expected. Nothing here imports anything: every layer may use it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

MAX_MESSAGE = 600

EXIT_OK = 0
EXIT_INVALID = 1
EXIT_BAD_INPUT = 2
EXIT_RESOURCES = 3
EXIT_CANCELLED = 130


class ProverError(Exception):
    """Base of every error that gpuprover raises on purpose.

    Attributes:
        exit_code: what the command line returns for it.
        message: one line, at most 600 characters.
    """

    exit_code = EXIT_BAD_INPUT

    def __init__(self, message: str) -> None:
        line = " ".join(message.split())
        if not line.isprintable():
            # Names in strangers' files may hold what a terminal obeys.
            shown = line[: MAX_MESSAGE + 1]
            line = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in shown)
        if len(line) > MAX_MESSAGE:
            line = line[: MAX_MESSAGE - 1] + "…"
        super().__init__(line)
        self.message = line

    @property
    def kind(self) -> str:
        """The name to match on, e.g. ``"MalformedFile"``."""
        return type(self).__name__


class MalformedFile(ProverError):
    """A file or document is damaged: truncated, inconsistent, values out of range."""

    def __init__(self, path: object, part: str, problem: str) -> None:
        self.path, self.part, self.problem = str(path), part, problem
        super().__init__(f"{path}: {part}: {problem}")


class UnsupportedFile(ProverError):
    """A well-formed file of a version, protocol, curve or feature we do not handle."""

    def __init__(self, path: object, part: str, problem: str) -> None:
        self.path, self.part, self.problem = str(path), part, problem
        super().__init__(f"{path}: {part}: {problem}")


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


def to_record(error: ProverError) -> dict[str, object]:
    """``{"kind", "message", "exit_code"}``: what answers and messages between processes say of an error."""
    return {"kind": error.kind, "message": error.message, "exit_code": error.exit_code}


def from_record(record: object) -> ProverError:
    """The error that :func:`to_record` described; one of an unknown kind is a ProofGenerationFailed.

    Its message is the same; what a :class:`MalformedFile` knows of its parts is only in there.
    """
    fields: dict[str, object] = record if isinstance(record, dict) else {}
    known: dict[str, type[ProverError]] = {cls.__name__: cls for cls in _descendants(ProverError)}
    cls = known.get(str(fields.get("kind")), ProofGenerationFailed)
    error = cls.__new__(cls)
    ProverError.__init__(error, str(fields.get("message", "an error without a message")))
    return error


def place(trace: TracebackType | None) -> str:
    """``module:line`` of the innermost frame in this package: what may be told of an unexpected exception,
    whose text may hold secret values."""
    found = "an unknown place"
    while trace is not None:
        module = trace.tb_frame.f_globals.get("__name__", "")
        if module.split(".")[0] == "gpuprover":
            found = f"{module}:{trace.tb_lineno}"
        trace = trace.tb_next
    return found


def _descendants(cls: type[ProverError]) -> list[type[ProverError]]:
    return [d for child in cls.__subclasses__() for d in (child, *_descendants(child))]
