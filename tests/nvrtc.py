"""NVIDIA's run-time compiler and disassembler from their PyPI packages; neither needs a GPU or a driver."""

from __future__ import annotations

import ctypes
import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path
from typing import Any

import pytest

from gpuprover.cuda.source import sources
from gpuprover.curves import CurveParams


def _file(package: str, name: str) -> Path:
    """A file of an installed package; skips without it."""
    try:
        return next(Path(str(f.locate())) for f in files(package) or () if f.name == name)
    except (PackageNotFoundError, StopIteration):
        pytest.skip(f"the NVRTC tests need {package} with {name} (pip install 'gpuprover[test]')")


@lru_cache
def _library() -> Any:
    path = _file("nvidia-cuda-nvrtc", "libnvrtc.so.13")
    # NVRTC opens this by name, and finds it where it is loaded already.
    (builtins,) = path.parent.glob("libnvrtc-builtins.so.*")
    ctypes.CDLL(str(builtins), ctypes.RTLD_GLOBAL)
    return ctypes.CDLL(str(path))


def _check(code: int, log: str = "") -> None:
    if code:
        nvrtc = _library()
        nvrtc.nvrtcGetErrorString.restype = ctypes.c_char_p
        raise AssertionError(f"NVRTC: {nvrtc.nvrtcGetErrorString(code).decode()}\n{log}")


@dataclass(frozen=True)
class Kernel:
    """What the assembler reports of a kernel; bytes a thread for the last two."""

    registers: int
    stack: int
    spilled: int


@dataclass(frozen=True)
class Compiled:
    cubin: bytes
    ptx: str
    kernels: dict[str, Kernel]


REPORT = re.compile(
    r"Function properties for (\w+)\n"
    r".*?(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads\n"
    r".*?Used (\d+) registers"
)


def compile_cubin(curve: CurveParams, name: str, text: str, arch: str, *options: str) -> Compiled:
    """``text`` with the kernels' sources as its include files, compiled for one architecture (``sm_90``)."""
    nvrtc, headers = _library(), sources(curve)
    program = ctypes.c_void_p()
    texts = (ctypes.c_char_p * len(headers))(*(t.encode() for t in headers.values()))
    names = (ctypes.c_char_p * len(headers))(*(n.encode() for n in headers))
    _check(
        nvrtc.nvrtcCreateProgram(
            ctypes.byref(program), text.encode(), name.encode(), len(headers), texts, names
        )
    )
    try:
        flags = [f"-arch={arch}", "--std=c++17", "--ptxas-options=-v", *options]
        code = nvrtc.nvrtcCompileProgram(
            program, len(flags), (ctypes.c_char_p * len(flags))(*(f.encode() for f in flags))
        )
        log = _read(nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog, program).rstrip(b"\0").decode()
        _check(code, log)
        kernels = {
            function: Kernel(int(registers), int(stack), int(stores) + int(loads))
            for function, stack, stores, loads, registers in REPORT.findall(log)
        }
        ptx = _read(nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX, program).rstrip(b"\0").decode()
        return Compiled(_read(nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN, program), ptx, kernels)
    finally:
        nvrtc.nvrtcDestroyProgram(ctypes.byref(program))


def _read(size_of: Any, read: Any, program: ctypes.c_void_p) -> bytes:
    size = ctypes.c_size_t()
    _check(size_of(program, ctypes.byref(size)))
    buffer = ctypes.create_string_buffer(size.value)
    _check(read(program, buffer))
    return buffer.raw


def disassemble(cubin: bytes, folder: Path) -> dict[str, Counter[str]]:
    """Kernel -> how often each opcode occurs, with its modifiers (``IMAD.WIDE.U32.X``)."""
    path = folder / "kernels.cubin"
    path.write_bytes(cubin)
    tool = _file("nvidia-cuda-nvdisasm", "nvdisasm")
    text = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout
    kernels = {}
    for section in text.split(".section\t.text.")[1:]:
        lines = re.findall(r"^\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)", section, re.MULTILINE)
        kernels[section.split(",", 1)[0]] = Counter(lines)
    return kernels
