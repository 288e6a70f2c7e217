"""Documents that make parsers work hard: families by size, and how time and memory grow with it.

A family makes a document of about n bytes. What a parser takes is measured by the thread's own CPU time, the
least of several, and by tracemalloc's peak: a busy machine makes both no larger.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1])]

from gpuprover.errors import ProverError  # noqa: E402
from gpuprover.formats.ptau import read_ptau  # noqa: E402
from gpuprover.formats.r1cs import read_r1cs  # noqa: E402
from gpuprover.formats.snarkjs_json import parse_public_signals  # noqa: E402
from gpuprover.formats.wtns import read_witness  # noqa: E402
from gpuprover.systems.fflonk import key as fflonk  # noqa: E402
from gpuprover.systems.groth16.documents import parse_verification_key  # noqa: E402
from gpuprover.systems.groth16.key import load_key  # noqa: E402
from gpuprover.systems.plonk import key as plonk  # noqa: E402
from tests.fuzz.mutations import SEEDS, loaded  # noqa: E402
from tests.support.containers import pack, unpack  # noqa: E402

Family = Callable[[int], Any]


def repeated(unit: bytes, head: bytes = b"[", tail: bytes = b"1]") -> Callable[[int], bytes]:
    return lambda n: head + unit * max(1, (n - len(head) - len(tail)) // len(unit)) + tail


def names(form: str, last: str = "") -> Callable[[int], bytes]:
    """An object of distinct names, and perhaps a last part."""

    def make(n: int) -> bytes:
        parts = [form % i for i in range(max(1, n // len(form % 99999)))]
        return ("{" + ",".join(parts) + last + "}").encode()

    return make


JSON_FAMILIES: dict[str, Callable[[int], bytes]] = {
    "empty lists": repeated(b"[],"),
    "empty objects": repeated(b"{},"),
    "lists of one": repeated(b"[1],"),
    "objects of one": repeated(b'{"a":0},'),
    "objects in objects": repeated(b'{"":{}},'),
    "objects of six": repeated(b'{"a":0,"b":1,"c":2,"d":3,"e":4,"f":5},'),
    "fractions": repeated(b"1.5,"),
    "long fractions": repeated(b"1." + b"1" * 398 + b","),
    "exponents": repeated(b"1e-300,"),
    "numbers": repeated(b"1000,"),
    "long numbers": repeated(b"1" * 400 + b","),
    "numbers too long": repeated(b"1" * 401 + b","),
    "one number": repeated(b"7", b"[", b"]"),
    "short texts": repeated(b'"ab",'),
    "decimal texts": repeated(b'"' + b"7" * 77 + b'",'),
    "one text": repeated(b"a", b'["', b'"]'),
    "one wide text": repeated(b"a", '["\U0001f600'.encode(), b'"]'),
    "wide texts": repeated('"\U0001f600abc",'.encode()),
    "escapes": repeated(b'"\\u0100\\n",'),
    "backslashes": repeated(b"\\", b'["', b'"]'),
    "pairs of backslashes": repeated(b"\\\\", b'["', b'"]'),
    "commas in texts": repeated(b'"' + b"," * 99 + b'",'),
    "brackets in texts": repeated(b'"' + b"[]{}" * 25 + b'",'),
    "literals": repeated(b"true,"),
    "nested lists": repeated(b"[" * 200 + b"]" * 200 + b","),
    "nested objects": repeated(b'{"a":' * 200 + b"0" + b"}" * 200 + b","),
    "deep list": repeated(b"1,", b"[" * 250, b"1" + b"]" * 250),
    "too deep": repeated(b"[", b"", b""),
    "closed too often": repeated(b"]", b"", b""),
    "open objects": repeated(b'{"a":', b"", b""),
    "quotes": repeated(b'"', b"", b""),
    "commas": repeated(b",", b"", b""),
    "spaces": repeated(b" ", b"[", b"]"),
    "lines": repeated(b"1,\n", b"[", b"x]"),
    "not UTF-8 at the end": repeated(b'"\xc3\xa9",', b"[", b'"\xc3"]'),
    "names": names('"%x":0'),
    "the last name twice": names('"%x":0', ',"z":0,"z":1'),
    "every name twice": lambda n: b"{" + repeated(b'"a":0,', b"", b"")(n) + b'"a":0}',
}


def signals(n: int) -> Any:
    return ["7" * 76] * (n // 80)


def key_of(n: int) -> Any:
    document = loaded("bn254.vkey.json")
    points = n // 160
    return {**document, "nPublic": points - 1, "IC": [document["IC"][0]] * points}


DOCUMENT_FAMILIES: dict[str, tuple[Family, Callable[[Any], object]]] = {
    "public signals": (signals, lambda d: parse_public_signals(d, _bn254())),
    "many wrong signals": (lambda n: [None] * (n // 8), lambda d: parse_public_signals(d, _bn254())),
    "verification key": (key_of, parse_verification_key),
}

READERS: dict[str, Callable[[bytes], object]] = {
    "r1cs": read_r1cs,
    "wtns": read_witness,
    "ptau": read_ptau,
    "zkey": load_key,
    "plonk.zkey": plonk.load_key,
    "fflonk.zkey": fflonk.load_key,
}


def _bn254() -> Any:
    from gpuprover.curves import BN254

    return BN254


def lengthened(kind: str, section: int, fill: bytes) -> Callable[[int], bytes]:
    """A real file, one section of it filled up to n bytes with its own content, or with ``fill``."""
    magic, version, sections = unpack(SEEDS[f"bn254.{kind}"])

    def make(n: int) -> bytes:
        changed = [
            (number, (content + (fill or content) * (n // max(1, len(fill or content))))[:n])
            if i == section and (fill or content)
            else (number, content)
            for i, (number, content) in enumerate(sections)
        ]
        return pack(magic, version, changed)

    return make


def many_sections(kind: str) -> Callable[[int], bytes]:
    magic, version, _ = unpack(SEEDS[f"bn254.{kind}"])
    return lambda n: pack(magic, version, [(i, b"") for i in range(n // 12)])


def file_families() -> dict[str, tuple[str, Callable[[int], bytes]]]:
    families: dict[str, tuple[str, Callable[[int], bytes]]] = {}
    for kind in READERS:
        families[f"{kind}, many sections"] = kind, many_sections(kind)
        for i in range(len(unpack(SEEDS[f"bn254.{kind}"])[2])):
            for name, fill in (("itself", b""), ("zeros", bytes(64)), ("ones", b"\1\0\0\0")):
                families[f"{kind}, section {i} of {name}"] = kind, lengthened(kind, i, fill)
    return families


def cpu_time(parse: Callable[[Any], object], document: Any, tries: int = 3) -> float:
    """Seconds of this thread, the least of some tries. A refusal is an answer like any other."""
    best = float("inf")
    gc.collect()
    for _ in range(tries):
        before = time.thread_time()
        with suppress(ProverError):
            parse(document)
        best = min(best, time.thread_time() - before)
    return best


def peak(parse: Callable[[Any], object], document: Any) -> int:
    """Bytes that a parser takes at most, what it returns included."""
    result = None
    tracemalloc.start()
    try:
        with suppress(ProverError):
            result = parse(document)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
        del result


GROWTH = 3.0
"""Time may grow by so much more than the size: a square would make it the size's growth."""
FLOOR = 2e-3
"""Seconds below which a time says nothing."""


def assert_linear(
    parse: Callable[[Any], object], make: Family, size: int, per_byte: float, steps: int = 4
) -> None:
    """Documents of ``size`` to ``size``·2^(steps-1) bytes take at most ``per_byte`` s, and in proportion."""
    times = [cpu_time(parse, make(size << i)) for i in range(steps)]
    growth = 1 << (steps - 1)
    assert times[-1] <= max(FLOOR, times[0]) * growth * GROWTH, times
    assert times[-1] <= max(10 * FLOOR, per_byte * (size << (steps - 1))), times
