"""What the command line writes, and where: results on stdout, everything else on stderr.

================  =====================================  =====================================
                  stdout                                 stderr
================  =====================================  =====================================
default           the answer, as text                    warnings, errors, progress
``--json``        one JSON object: the answer, or        warnings, errors and progress: JSON
                  ``{"error": {…}}``                     lines, plain text on a terminal
``--quiet``       nothing but exported data              warnings and errors only
================  =====================================  =====================================

Both streams are looked up when they are written to, so that callers may redirect them.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from dataclasses import dataclass
from typing import Any, TextIO

from gpuprover.display import Display, display
from gpuprover.errors import MAX_MESSAGE, ProverError

GREEN, RED, YELLOW, BOLD, DIM = "32", "31", "33", "1", "2"


def error_record(error: ProverError, kind: str | None = None) -> dict[str, Any]:
    """The JSON form of an error: ``{"kind", "message", "exit_code"}``."""
    return {"kind": kind or error.kind, "message": error.message, "exit_code": error.exit_code}


def one_line(text: str) -> str:
    """``text`` without control characters, as one line of at most 600 characters."""
    line = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in " ".join(text.split()))
    return line if len(line) <= MAX_MESSAGE else line[: MAX_MESSAGE - 1] + "…"


def format_seconds(value: float) -> str:
    """Seconds for people: ``0.004 s``, ``1.23 s``, ``75.1 s``."""
    digits = 3 if value < 0.1 else 2 if value < 10 else 1
    return f"{value:.{digits}f} s"


def format_bytes(size: float) -> str:
    """Bytes for people, in binary units: ``512 B``, ``1.4 MiB``."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1024 or unit == "GiB":
            break
    return f"{size:.1f} {unit}"


@dataclass(frozen=True)
class Console:
    """The streams of one command, under its ``--json`` and ``--quiet``."""

    json: bool = False
    quiet: bool = False

    def answer(self, record: dict[str, Any], text: str) -> None:
        """The command's result: ``record`` under --json, else ``text`` unless --quiet."""
        if self.json:
            self.data(json.dumps(record))
        elif not self.quiet:
            self.data(text)

    def data(self, text: str) -> None:
        """Lines for stdout whatever the options say."""
        write_lines(sys.stdout, text, must=True)

    def warn(self, message: str) -> None:
        line = one_line(message)
        if self._json_lines:
            write_lines(sys.stderr, json.dumps({"warning": line}))
        else:
            write_lines(sys.stderr, f"{self.paint('warning:', YELLOW, sys.stderr)} {line}")

    def error(self, error: ProverError, kind: str | None = None) -> None:
        """The error as one line on stderr, and as the JSON answer under --json."""
        record = error_record(error, kind)
        prefix = f"error: {record['kind']}:"
        line = one_line(f"{prefix} {record['message']}")
        record["message"] = one_line(record["message"])
        if self._json_lines:
            write_lines(sys.stderr, json.dumps({"error": record}))
        else:
            write_lines(sys.stderr, line.replace(prefix, self.paint(prefix, RED, sys.stderr), 1))
        if self.json:
            write_lines(sys.stdout, json.dumps({"error": record}))

    def progress(self, title: str) -> Display:
        """Where long work reports to, as a context manager."""
        return display(sys.stderr, title=title, as_json=self.json, quiet=self.quiet)

    def table(self, rows: list[tuple[str, str]]) -> str:
        """Names and values in two columns for stdout; a value's further lines stand under its first."""
        width = max((len(name) for name, _ in rows), default=0)
        lines = []
        for name, value in rows:
            first, *rest = value.split("\n")
            lines.append(f"{self.paint(f'{name:<{width}}', BOLD, sys.stdout)}  {first}")
            lines += [" " * (width + 2) + line for line in rest]
        return "\n".join(lines)

    @property
    def _json_lines(self) -> bool:
        return self.json and not sys.stderr.isatty()

    @staticmethod
    def paint(text: str, style: str, stream: TextIO) -> str:
        """``text`` in a colour where the stream is a terminal that has colours."""
        if not stream.isatty() or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
            return text
        return f"\x1b[{style}m{text}\x1b[0m"


def write_lines(stream: TextIO, text: str, *, must: bool = False) -> None:
    """One or more lines. A reader that went away is no error; a full disk is, for results.

    Raises:
        OSError: ``must`` and the stream cannot take the text.
    """
    try:
        try:
            stream.write(text + "\n")
        except UnicodeEncodeError:
            stream.write(text.encode("ascii", "backslashreplace").decode("ascii") + "\n")
        stream.flush()
    except BrokenPipeError:
        _discard(stream)
    except OSError as error:
        _discard(stream)
        if must:
            raise OSError(error.errno or errno.EIO, error.strerror, "standard output") from error


def _discard(stream: TextIO) -> None:
    """Lets what is left in the stream's buffer go nowhere, so that nothing fails at exit."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, descriptor)
    os.close(sink)
