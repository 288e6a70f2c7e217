"""Contracts compiled by solc and run in an Ethereum virtual machine, by ``tests/interop/evm.mjs``."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.support.paths import ROOT, TESTS

COMPILERS = {"solc-oldest": "0.8.4", "solc-middle": "0.8.13", "solc": "0.8.37"}
"""npm's names -> versions: the oldest that contracts allow, the first with viaIR for use, the newest."""
OPTIMISED = {"optimizer": {"enabled": True}}


@dataclass(frozen=True)
class Contract:
    """A source with one contract in it, and what is asked of it.

    Attributes:
        calls: words of each call, in hex.
        gas: of each call; None is plenty.
    """

    source: str
    calls: Sequence[list[str]]
    gas: int | None = None


def run_contracts(
    node: Path,
    contracts: Sequence[Contract],
    compiler: str = "solc",
    settings: dict[str, Any] = OPTIMISED,
    warnings: bool = False,
) -> list[dict[str, Any]]:
    """For each contract ``version``, ``selector``, ``bytes`` of code, ``results`` of its calls, gas ``used``.

    ``warnings``: whether a compiler's warnings are let pass.
    """
    request = {
        "contracts": [asdict(contract) for contract in contracts],
        "compiler": compiler,
        "settings": settings,
        "warnings": warnings,
    }
    done = subprocess.run(
        [node, TESTS / "interop" / "evm.mjs", ROOT / ".node"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


def words(calldata: str) -> list[str]:
    """The words of a call as exported, without what stands for an empty array."""
    return re.findall(r"0x([0-9a-f]{64})", calldata)


def altered(call: list[str], index: int, by: int) -> list[str]:
    """A call with something added to one word."""
    call = list(call)
    call[index] = f"{(int(call[index], 16) + by) % 2**256:064x}"
    return call
