"""What a command line test sees of a command."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple


class Ran(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def answer(self) -> dict[str, Any]:
        lines = self.out.splitlines()
        assert len(lines) == 1, self.out
        record: dict[str, Any] = json.loads(lines[0])
        return record


Run = Callable[..., Ran]
