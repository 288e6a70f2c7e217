"""Compiled kernels in a file that is mapped: a process that verifies needs neither Numba nor LLVM.

An image holds position-independent machine code with its constants, relocated when it was made
(:mod:`gpuprover.cpu.bake`), and an index of the kernels in it. It is mapped readable and executable, never
writable, and processes share its pages. It is code, and is run: only a file that nobody but this user and
root could have put there (:mod:`gpuprover.folders`), with the right checksum, made of these sources, on a CPU
with these features, is used. Everything else is passed over, and Numba compiles as ever.

Kernels keep the calling convention that Numba gives them: an int32 status comes back, the first two arguments
say where the result and an exception go, and an array is passed as (owner, object, size, item size, data,
shape …, strides …), the first two of them null. Fields are known at compile time, and passed as null.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import mmap
import os
import struct
import sys
import weakref
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gpuprover.cpu.layout import Field
from gpuprover.cpu.sources import callers_digest, store
from gpuprover.curves import PAIRING_CURVES, CurveParams
from gpuprover.folders import LARGEST, warn
from gpuprover.limbs import address

MAGIC = b"gpuprover kernels 1\n"
HEADER = struct.Struct("<20s32sQQ")
"""Magic, SHA-256 of all that follows, length of the index (JSON), place of the code in the file."""
PATH_VARIABLE = "PROVER_CPU_PATH"

Kinds = tuple[str, ...]
"""What tells compiled forms of one kernel apart: ``int64``, ``uint32[2]``, ``Field[…]`` for each argument."""


# Arguments ------------------------------------------------------------------------------------


@lru_cache(maxsize=64)
def _name(dtype: np.dtype[Any]) -> str:
    """NumPy makes the name anew each time, in microseconds."""
    return dtype.name


def kind_of(value: Any) -> str:
    """The kind of an argument, as Numba would see it; ``""`` for one that no image can take."""
    kind = type(value)
    if kind is int:
        return "int64" if -(1 << 63) <= value < 1 << 63 else ""
    if kind is bool:
        return "bool"
    if kind is np.ndarray:
        # Contiguous, aligned and writable.
        fits = value.flags.carray and value.dtype.isnative
        return f"{_name(value.dtype)}[{value.ndim}]" if fits else ""
    if isinstance(value, Field):
        return value.name
    return value.dtype.name if isinstance(value, np.integer) else ""


_Described = tuple["weakref.ref[Any]", str, tuple[int | None, ...]]
_described: dict[int, _Described] = {}
"""Of arrays that live, by ``id``: their kind, and what a kernel gets of them. A kernel that is called for
each window of a sum gets the same arrays every time, and to look at them takes longer than the kernel."""


def _describe(array: Any) -> _Described:
    number = id(array)

    def forget(gone: object) -> None:
        _described.pop(number, None)

    flat = (None, None, array.size, array.itemsize, address(array), *array.shape, *array.strides)
    known = _described[number] = weakref.ref(array, forget), kind_of(array), flat
    return known


def described(arguments: Iterable[Any]) -> tuple[Kinds, list[int | None]]:
    """The kinds of a call's arguments, and what a :class:`Function` takes in their place.

    Shape, place and flags of an array do not change while it lives.
    """
    kinds: list[str] = []
    flat: list[int | None] = []
    for value in arguments:
        kind = type(value)
        if kind is int:
            kinds.append("int64" if -(1 << 63) <= value < 1 << 63 else "")
            flat.append(value)
        elif kind is np.ndarray:
            known = _described.get(id(value))
            if known is None or known[0]() is not value:
                known = _describe(value)
            kinds.append(known[1])
            flat += known[2]
        elif isinstance(value, Field):
            kinds.append(value.name)
            flat.append(None)
        else:
            kinds.append(kind_of(value))
            flat.append(int(value) if kinds[-1] else None)
    return tuple(kinds), flat


_SCALARS: dict[str, Any] = {
    "bool": ctypes.c_uint8,
    "int64": ctypes.c_int64,
    "uint64": ctypes.c_uint64,
}
_RESULTS: dict[str, Callable[[bytes], Any]] = {
    "none": lambda raw: None,
    "bool": lambda raw: bool(raw[0]),
    "int64": lambda raw: struct.unpack_from("<q", raw)[0],
    "(int64, int64)": lambda raw: struct.unpack_from("<qq", raw),
}


def _c_types(kind: str) -> list[Any]:
    dimensions = kind[kind.find("[") + 1 : -1]
    if dimensions.isdigit():
        sizes = [ctypes.c_ssize_t] * (2 * int(dimensions))
        return [*[ctypes.c_void_p] * 2, *[ctypes.c_ssize_t] * 2, ctypes.c_void_p, *sizes]
    return [_SCALARS.get(kind, ctypes.c_void_p)]


def callable_kinds(kinds: Iterable[str], result: str) -> bool:
    """Whether calls with such arguments and such a result can go to an image."""
    return result in _RESULTS and all(kind in _SCALARS or kind.endswith("]") for kind in kinds)


class Function:
    """One compiled form of a kernel, in mapped memory. Calling it releases the GIL."""

    def __init__(self, name: str, kinds: Sequence[str], result: str, place: int) -> None:
        types = [ctypes.c_void_p, ctypes.c_void_p]
        for kind in kinds:
            types += _c_types(kind)
        self._name = name
        self._result = _RESULTS[result]
        self._call = ctypes.CFUNCTYPE(ctypes.c_int32, *types)(place)

    def __call__(self, flat: Sequence[int | None]) -> Any:
        """``flat``: as :func:`described` gives it."""
        room = (ctypes.c_uint64 * 3)()  # the result, and where an exception would be
        start = ctypes.addressof(room)
        status = self._call(start, start + 16, *flat)
        if status not in (0, -2):  # Numba's codes for a result and for None
            raise RuntimeError(f"{self._name} failed with status {status}")
        return self._result(bytes(room))


# Files ----------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One compiled form of a kernel in an image: its name, and where in the code it begins."""

    name: str
    kinds: Kinds
    result: str
    offset: int


@lru_cache(maxsize=1)
def machine() -> str | None:
    """Sixteen hex digits over what the CPU calls itself and can do; None where there are no images."""
    if sys.platform != "linux" or os.uname().machine != "x86_64":
        return None
    try:
        text = Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return None
    marks = ("vendor_id", "cpu family", "model", "stepping", "flags")
    lines = [line for line in text.split("\n\n")[0].splitlines() if line.startswith(marks)]
    settings = [os.environ.get(name, "") for name in ("NUMBA_CPU_NAME", "NUMBA_CPU_FEATURES", "NUMBA_OPT")]
    return hashlib.sha256("\n".join([*lines, *settings]).encode()).hexdigest()[:16]


def image_name(curve: CurveParams) -> str | None:
    """The file of the image for this curve, CPU and version, and the setting of ``PROVER_CPU_PATH``.

    It lies in :func:`gpuprover.cpu.sources.store`. None where there are no images.
    """
    cpu = machine()
    if cpu is None:
        return None
    forced = os.environ.get(PATH_VARIABLE, "").strip().lower()
    path = forced if forced.isalpha() else "auto"
    return f"{curve.name}-{path}-{cpu}-{callers_digest()}.image"


def identity(curve: CurveParams) -> dict[str, str | None]:
    """What an image has to say of itself to be used for the curve."""
    return {"sources": callers_digest(), "machine": machine(), "curve": curve.name}


def pack(index: dict[str, Any], code: bytes) -> bytes:
    """The bytes of an image. The index has :func:`identity`'s items, ``features`` and ``kernels``."""
    text = json.dumps(index, sort_keys=True).encode()
    start = -(-(HEADER.size + len(text)) // mmap.PAGESIZE) * mmap.PAGESIZE
    body = text.ljust(start - HEADER.size, b"\0") + code
    return HEADER.pack(MAGIC, hashlib.sha256(body).digest(), len(text), start) + body


class Image:
    """The kernels of a mapped image; see :func:`open_image`."""

    def __init__(self, descriptor: int, size: int, curve: CurveParams) -> None:
        """Raises OSError, ValueError, KeyError or TypeError where the file is not what it should be."""
        # Read first, so that of the mapped pages only those are in memory that are used.
        data = os.pread(descriptor, size, 0)
        magic, checksum, length, start = HEADER.unpack_from(data)
        body = memoryview(data)[HEADER.size :]
        if magic != MAGIC or hashlib.sha256(body).digest() != checksum:
            raise ValueError("not an image, or a damaged one")
        index = json.loads(bytes(body[:length]))
        for name, value in identity(curve).items():
            if index[name] != value:
                raise ValueError(f"made for another {name}")
        self.features = frozenset(map(str, index["features"]))
        mapping = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_EXEC)
        self._bytes = np.frombuffer(mapping, dtype=np.uint8)  # functions point into them
        self.functions: dict[str, dict[Kinds, Function]] = {}
        for name, kinds, result, offset in index["kernels"]:
            if not start <= start + offset < size or not callable_kinds(kinds, result):
                raise ValueError("an entry that cannot be called")
            function = Function(name, kinds, result, address(self._bytes) + start + offset)
            self.functions.setdefault(name, {})[tuple(kinds)] = function


def open_image(curve: CurveParams) -> Image | None:
    """The curve's image; None if there is none that may be used."""
    name = image_name(curve)
    descriptor = None if name is None else store().open(name)
    if descriptor is None:
        return None
    try:
        size = os.fstat(descriptor).st_size
        if not HEADER.size < size <= LARGEST:
            raise ValueError
        return Image(descriptor, size, curve)
    except OSError:  # a folder mounted noexec, for one
        return None
    except (ValueError, KeyError, TypeError, struct.error):
        warn(f"{store().folder}: {name} is damaged and not used: run `gpuprover warmup` to have it made anew")
        return None
    finally:
        os.close(descriptor)


# Use ------------------------------------------------------------------------------------------

_used: dict[str, Image] = {}


def use(curves: Sequence[CurveParams] | None = None) -> bool:
    """Lets kernels come from the images of these curves, default all; whether each curve has one.

    For the start of a process, before anything is verified: kernels that have been called stay what they
    are. What no image has still goes through Numba.
    """
    wanted = PAIRING_CURVES if curves is None else curves
    for curve in wanted:
        found = None if curve.name in _used else open_image(curve)
        if found is not None:
            _used[curve.name] = found
    return all(curve.name in _used for curve in wanted)


def used_features() -> frozenset[str] | None:
    """The CPU's features as the images in use know them; None if none is in use."""
    return next((image.features for image in _used.values()), None)


def functions(name: str) -> dict[Kinds, Function]:
    """All compiled forms of the kernel ``module.function`` in the images in use."""
    found: dict[Kinds, Function] = {}
    for image in _used.values():
        found.update(image.functions.get(name, {}))
    return found
