"""NVIDIA's run-time compiler and disassembler from their PyPI packages; neither needs a GPU or a driver."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, files
from pathlib import Path

import pytest

from gpuprover.cuda.compile import find_nvrtc
from gpuprover.cuda.source import sources
from gpuprover.curves import CurveParams


def _file(package: str, name: str) -> Path:
    """A file of an installed package; skips without it."""
    try:
        return next(Path(str(f.locate())) for f in files(package) or () if f.name == name)
    except (PackageNotFoundError, StopIteration):
        pytest.skip(f"the NVRTC tests need {package} with {name} (pip install 'gpuprover[test]')")


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
    nvrtc = find_nvrtc(13)
    if nvrtc is None:
        pytest.skip("the NVRTC tests need nvidia-cuda-nvrtc (pip install 'gpuprover[test]')")
    done = nvrtc.compile(text, name, sources(curve), arch, ["--ptxas-options=-v", *options])
    kernels = {
        function: Kernel(int(registers), int(stack), int(stores) + int(loads))
        for function, stack, stores, loads, registers in REPORT.findall(done.log)
    }
    return Compiled(done.cubin, done.ptx, kernels)


INSTRUCTION = re.compile(r"\s+/\*[0-9a-f]+\*/\s+(?:@!?\w+\s+)?([A-Z][\w.]*)(.*)")


def _listings(cubin: bytes, folder: Path) -> dict[str, list[str]]:
    """Kernel -> lines of its assembly."""
    path = folder / "kernels.cubin"
    path.write_bytes(cubin)
    tool = _file("nvidia-cuda-nvdisasm", "nvdisasm")
    text = subprocess.run([tool, "-c", path], capture_output=True, text=True, check=True).stdout
    sections = text.split(".section\t.text.")[1:]
    return {section.split(",", 1)[0]: section.splitlines() for section in sections}


def disassemble(cubin: bytes, folder: Path) -> dict[str, Counter[str]]:
    """Kernel -> how often each opcode occurs, with its modifiers (``IMAD.WIDE.U32.X``)."""
    return {
        kernel: Counter(found[1] for found in map(INSTRUCTION.match, lines) if found)
        for kernel, lines in _listings(cubin, folder).items()
    }


def loops(cubin: bytes, kernel: str, folder: Path) -> list[Counter[str]]:
    """The opcodes from the target of each backward branch of a kernel to the branch, in their order."""
    opcodes: list[str] = []
    labels: dict[str, int] = {}
    found = []
    for line in _listings(cubin, folder)[kernel]:
        if label := re.match(r"(\.L_\w+):", line):
            labels[label[1]] = len(opcodes)
        elif instruction := INSTRUCTION.match(line):
            opcodes.append(instruction[1])
            target = re.search(r"`\((\.L_\w+)\)", instruction[2])
            if instruction[1].startswith("BRA") and target and target[1] in labels:
                found.append(Counter(opcodes[labels[target[1]] :]))
    return found
