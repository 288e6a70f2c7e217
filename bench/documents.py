"""Tables of measured figures in documents, filled in from rows.

A document holds ``<!-- rows: NAME -->``, a table, ``<!-- end -->``; what is between is replaced by the table
of that name (``processes.TABLES``). ``gpuprover bench fill FILE.md --rows ROWS.jsonl`` does it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from gpuprover.errors import InvalidInput
from gpuprover.formats.files import write_atomic

from .processes import TABLES
from .rows import Row

_BLOCK = re.compile(r"(<!-- rows: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
NOTHING = "Not measured yet."


def filled(text: str, rows: Sequence[Row], source: str) -> str:
    """A document with its blocks filled in.

    Raises:
        InvalidInput: it has no block, or one of a name that no table has.
    """
    names = [found[2] for found in _BLOCK.finditer(text)]
    if not names:
        raise InvalidInput(f"{source}: no block between <!-- rows: NAME --> and <!-- end -->")
    for name in names:
        if name not in TABLES:
            raise InvalidInput(f"{source}: no table is named {name!r}; they are: {', '.join(TABLES)}")

    def block(found: re.Match[str]) -> str:
        head, *body = TABLES[found[2]](rows)
        lines = [head, *body] if len(body) > 1 else [NOTHING]
        return found[1] + "\n" + "\n".join(lines) + "\n\n" + found[4]

    return _BLOCK.sub(block, text)


def fill(path: Path, rows: Sequence[Row]) -> None:
    """Fills in a file.

    Raises:
        InvalidInput: it cannot be read or written, or :func:`filled` refuses it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"{path}: cannot read: {getattr(error, 'strerror', None) or error}") from None
    with write_atomic(path) as file:
        file.write(filled(text, rows, str(path)).encode())
