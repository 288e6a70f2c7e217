"""The kernels as cubins: built before and found again, or compiled here for the device's architecture.

The compiler is NVRTC, a library of NVIDIA's that comes from PyPI and needs neither a GPU nor a driver nor
nvcc. It is called through ctypes: CuPy's binding drops the last byte of a cubin.

A cubin is looked for, by a name that says what it was made of, in the folder ``GPUPROVER_CUBIN_DIR`` and in
the package's ``kernels/cubins``, which ``python -m gpuprover.cuda.build`` fills; then in the user's cache. A
file is a cubin and its SHA-256, so that a damaged one is noticed and made anew. It is run: outside of the
package it counts only if nobody but this user and root could have put it there (:mod:`gpuprover.folders`).
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gpuprover.cuda.device import Program
from gpuprover.cuda.source import sources
from gpuprover.errors import DeviceError
from gpuprover.folders import Store, Untrusted, read_file, warn

CUBIN_VARIABLE = "GPUPROVER_CUBIN_DIR"
OPTIONS = ("--std=c++17",)
MAJORS = (13, 12)
"""CUDA releases whose NVRTC is looked for, the best first."""
_CHECKSUM = hashlib.sha256().digest_size


# The compiler -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Compiled:
    """What NVRTC makes of a file; ``log`` holds the assembler's report if it was asked for."""

    cubin: bytes
    ptx: str
    log: str


class Nvrtc:
    """The compiler's library.

    Attributes:
        version: CUDA's version, such as (13, 0).
    """

    def __init__(self, library: str | Path) -> None:
        """``library`` is a path, or a name for the loader. Raises OSError if it cannot be loaded."""
        if isinstance(library, Path):
            for builtins in library.parent.glob("libnvrtc-builtins.so.*"):
                # NVRTC opens it by name, and finds it where it is loaded already.
                ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
        self._library: Any = ctypes.CDLL(str(library))
        self._library.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self._check(self._library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "version")
        self.version = (major.value, minor.value)

    def __str__(self) -> str:
        return "NVRTC {}.{}".format(*self.version)

    def architectures(self) -> list[str]:
        """What it compiles for, ``sm_75`` first, say."""
        count = ctypes.c_int()
        self._check(self._library.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "architectures")
        numbers = (ctypes.c_int * count.value)()
        self._check(self._library.nvrtcGetSupportedArchs(numbers), "architectures")
        return [f"sm_{number}" for number in numbers]

    def compile(
        self, text: str, name: str, headers: dict[str, str], architecture: str, options: Sequence[str] = ()
    ) -> Compiled:
        """``text``, whose include files are ``headers``, for one architecture such as ``sm_90``.

        Raises:
            DeviceError: it does not compile, or not for this architecture.
        """
        nvrtc, program, what = self._library, ctypes.c_void_p(), f"{name} for {architecture}"
        texts = (ctypes.c_char_p * len(headers))(*(t.encode() for t in headers.values()))
        names = (ctypes.c_char_p * len(headers))(*(n.encode() for n in headers))
        self._check(
            nvrtc.nvrtcCreateProgram(
                ctypes.byref(program), text.encode(), name.encode(), len(headers), texts, names
            ),
            what,
        )
        try:
            flags = [f"-arch={architecture}", *OPTIONS, *options]
            code = nvrtc.nvrtcCompileProgram(
                program, len(flags), (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags))
            )
            log = self._read("ProgramLog", program, what).rstrip(b"\0").decode(errors="replace")
            errors = [line for line in log.splitlines() if "error" in line]
            self._check(code, what, *errors[:1])
            ptx = self._read("PTX", program, what).rstrip(b"\0").decode()
            return Compiled(self._read("CUBIN", program, what), ptx, log)
        finally:
            nvrtc.nvrtcDestroyProgram(ctypes.byref(program))

    def _read(self, part: str, program: ctypes.c_void_p, what: str) -> bytes:
        size = ctypes.c_size_t()
        self._check(getattr(self._library, f"nvrtcGet{part}Size")(program, ctypes.byref(size)), what)
        buffer = ctypes.create_string_buffer(size.value)
        self._check(getattr(self._library, f"nvrtcGet{part}")(program, buffer), what)
        return buffer.raw

    def _check(self, code: int, what: str, *details: str) -> None:
        if code:
            problem = self._library.nvrtcGetErrorString(code).decode()
            raise DeviceError(": ".join(["NVRTC", what, problem, *details]))


def _libraries(major: int) -> Iterator[str | Path]:
    """Where the library may be: in NVIDIA's packages, in a toolkit, wherever the loader looks."""
    name = f"libnvrtc.so.{major}"
    spec = find_spec("nvidia")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        yield from sorted(Path(folder).glob(f"*/lib/{name}"))
    for root in filter(None, map(os.environ.get, ("CUDA_PATH", "CUDA_HOME"))):
        yield from sorted(Path(root).glob(f"lib*/{name}"))
    yield name
    yield Path("/usr/local/cuda/lib64") / name


@lru_cache
def find_nvrtc(major: int | None = None) -> Nvrtc | None:
    """The compiler of a CUDA release, or of the newest that is found; None where there is none."""
    for wanted in MAJORS if major is None else (major,):
        for library in _libraries(wanted):
            try:
                return Nvrtc(library)
            except OSError:
                continue
    return None


# Cubins -----------------------------------------------------------------------------------------


def _texts(program: Program) -> tuple[str, dict[str, str]]:
    """The program's own file, and all that it might include."""
    texts = sources(program.curve)
    return texts[program.source], {n: t for n, t in texts.items() if n.endswith(".cuh")}


def _options(program: Program) -> list[str]:
    return [f"-D{name}={value}" for name, value in program.defines]


def program_name(program: Program) -> str:
    """For people and file names: ``msm.bn254.GROUP-2``."""
    defines = (f"{name}-{value}" for name, value in program.defines)
    return ".".join([Path(program.source).stem, program.curve.name, *defines])


def file_name(program: Program, architecture: str) -> str:
    """The cubin's name, with a hash of all that it is made of but the compiler."""
    text, headers = _texts(program)
    made_of = repr((program.source, text, sorted(headers.items()), OPTIONS, _options(program)))
    digest = hashlib.sha256(made_of.encode()).hexdigest()[:20]
    return f"{program_name(program)}.{architecture}.{digest}.cubin"


def checked(data: bytes | None) -> bytes | None:
    """The cubin in a file's bytes; None if it is damaged."""
    if data is None:
        return None
    cubin, checksum = data[:-_CHECKSUM], data[-_CHECKSUM:]
    return cubin if hashlib.sha256(cubin).digest() == checksum else None


def packed(cubin: bytes) -> bytes:
    """A file's bytes."""
    return cubin + hashlib.sha256(cubin).digest()


def read_cubin(path: Path) -> bytes | None:
    """A cubin from its file; None if there is none, or it is damaged.

    Nor is one taken that somebody other than this user or root could have written, since it is run: a warning
    tells.
    """
    try:
        return checked(read_file(path))
    except Untrusted as error:
        warn(f"compiled code is not used: {error}")
    except OSError:
        pass
    return None


def write_cubin(path: Path, cubin: bytes) -> None:
    """Writes the file whole or not at all, whoever else writes it at the same time. Raises OSError.

    Others may read it, and nobody else may write it, whatever the umask.
    """
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        with open(descriptor, "wb") as file:
            file.write(packed(cubin))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def package_folder() -> Path:
    """Where cubins lie that came with this program."""
    from importlib.resources import files  # with zipfile, for a process that may have no GPU

    return Path(str(files("gpuprover.kernels"))) / "cubins"


def built_folders() -> list[Path]:
    """Where cubins lie that were built before, for this program or for an image."""
    explicit = os.environ.get(CUBIN_VARIABLE)
    return [*([Path(explicit)] if explicit else []), package_folder()]


def store(nvrtc: Nvrtc) -> Store:
    """What this compiler made for the user."""
    return Store("cubin-nvrtc{}.{}".format(*nvrtc.version))


def _candidates(name: str, nvrtc: Nvrtc | None) -> Iterator[bytes | None]:
    explicit = os.environ.get(CUBIN_VARIABLE)
    if explicit:
        yield read_cubin(Path(explicit) / name)
    with suppress(OSError):  # no looks: who may write there may change this program
        yield checked((package_folder() / name).read_bytes())
    if nvrtc is not None:
        yield checked(store(nvrtc).read(name))


def find_cubin(program: Program, architecture: str, nvrtc: Nvrtc | None) -> bytes | None:
    """The program's cubin if it was built before; the cache is one compiler's."""
    return next(filter(None, _candidates(file_name(program, architecture), nvrtc)), None)


def compile_program(program: Program, architecture: str, nvrtc: Nvrtc) -> bytes:
    """The program's cubin, made now. Raises DeviceError."""
    text, headers = _texts(program)
    return nvrtc.compile(text, program.source, headers, architecture, _options(program)).cubin


def load_cubin(program: Program, architecture: str, nvrtc: Nvrtc | None) -> bytes:
    """The program's cubin, found or made, and then kept in the cache.

    Raises:
        DeviceError: it is not there and cannot be compiled.
    """
    found = find_cubin(program, architecture, nvrtc)
    if found is not None:
        return found
    if nvrtc is None:
        raise DeviceError(
            f"{program.source}: no cubin for {architecture} was built, and NVRTC, which compiles one, "
            "is missing: pip install 'gpuprover[cuda13]'"
        )
    cubin = compile_program(program, architecture, nvrtc)
    # A full disk costs a compilation at the next start, no more.
    store(nvrtc).write(file_name(program, architecture), packed(cubin))
    return cubin
