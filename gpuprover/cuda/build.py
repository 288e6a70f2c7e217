"""``python -m gpuprover.cuda.build``: all kernels compiled in advance, each in a process of its own.

No GPU and no driver are needed. An image or a package carries the cubins; whoever has no folder of them
compiles at first use, which takes minutes::

    python -m gpuprover.cuda.build --arch sm_90 --output cubins
    GPUPROVER_CUBIN_DIR=cubins gpuprover prove --device cuda …

What is there already is kept.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from gpuprover.cuda.compile import (
    Nvrtc,
    checked,
    compile_program,
    file_name,
    find_nvrtc,
    program_name,
    read_cubin,
    write_cubin,
)
from gpuprover.cuda.device import Program
from gpuprover.cuda.source import programs
from gpuprover.curves import CURVES
from gpuprover.errors import EXIT_CANCELLED, EXIT_OK, DeviceError, InvalidInput, ProverError
from gpuprover.machine import available_cpus
from gpuprover.settings import whole_number

POLL_SECONDS = 0.02
PACKAGE = Path(__file__).resolve().parents[1]


@dataclass
class _Running:
    process: subprocess.Popen[str]
    program: Program
    architecture: str
    begun: float


def build(
    units: Iterable[tuple[Program, str]],
    folder: Path,
    nvrtc: Nvrtc,
    *,
    processes: int = 1,
    check: Callable[[], None] = lambda: None,
    done: Callable[[str, float], None] = lambda name, seconds: None,
) -> None:
    """Compiles programs for architectures into a folder, where they are not there yet.

    Args:
        units: programs of :func:`gpuprover.cuda.source.programs`, and architectures such as ``sm_90``.
        processes: at most this many compile at once.
        check: called now and then; an exception of its ends everything.
        done: called with each cubin's name and the seconds that it took.

    Raises:
        DeviceError: a program does not compile, or its process fails.
    """
    waiting = [
        (program, architecture)
        for program, architecture in units
        if read_cubin(folder / file_name(program, architecture)) is None
    ]
    running: list[_Running] = []
    try:
        while waiting or running:
            check()
            while waiting and len(running) < processes:
                running.append(_start(*waiting.pop(0), folder, nvrtc))
            for one in [one for one in running if one.process.poll() is not None]:
                running.remove(one)
                _finish(one, folder)
                done(file_name(one.program, one.architecture), time.perf_counter() - one.begun)
            time.sleep(POLL_SECONDS)
    finally:
        for one in running:
            one.process.kill()
            one.process.communicate()


def _start(program: Program, architecture: str, folder: Path, nvrtc: Nvrtc) -> _Running:
    # The same sources for the child, however this package was found.
    path = os.pathsep.join(filter(None, [str(PACKAGE.parent), os.environ.get("PYTHONPATH")]))
    command = ["--only", program_name(program), "--arch", architecture]
    command += ["--output", str(folder), "--cuda", str(nvrtc.version[0])]
    process = subprocess.Popen(
        # -P: nothing is imported from the current folder, which may be anybody's.
        [sys.executable, "-P", "-m", "gpuprover.cuda.build", *command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    return _Running(process, program, architecture, time.perf_counter())


def _finish(one: _Running, folder: Path) -> None:
    _, said = one.process.communicate()
    name = file_name(one.program, one.architecture)
    with suppress(OSError):
        if one.process.returncode == 0 and checked((folder / name).read_bytes()) is not None:
            return
    problem = (said.strip().splitlines() or [f"exit code {one.process.returncode}"])[-1]
    raise DeviceError(f"{name}: {problem.removeprefix('error: ')}")


# The command ------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = ArgumentParser(
        prog="python -m gpuprover.cuda.build", description="Compiles the CUDA kernels; needs no GPU."
    )
    parser.add_argument("--arch", action="append", required=True, metavar="LIST", help="sm_90,sm_100, say")
    parser.add_argument("--output", required=True, metavar="DIR", help="where the cubins go")
    parser.add_argument("--only", metavar="NAME", help="one program, such as vector.bn254")
    parser.add_argument("--jobs", metavar="N", help="processes at once; default: the CPUs")
    parser.add_argument("--cuda", metavar="MAJOR", help="with the NVRTC of this release; default: the newest")
    args = parser.parse_args(arguments)
    try:
        count = _run(args)
    except ProverError as error:
        print(f"error: {error.message}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"error: {args.output}: {error.strerror or error}", file=sys.stderr)
        return InvalidInput.exit_code
    except KeyboardInterrupt:
        return EXIT_CANCELLED
    print(f"{count} cubins in {args.output}")
    return EXIT_OK


def _run(args: Namespace) -> int:
    jobs = whole_number(args.jobs, "--jobs", high=1024) if args.jobs else available_cpus()
    nvrtc = find_nvrtc(whole_number(args.cuda, "--cuda") if args.cuda else None)
    if nvrtc is None:
        raise DeviceError("NVRTC is missing: pip install 'gpuprover[cuda13]'")
    architectures = [name for part in args.arch for name in part.split(",")]
    for name in architectures:
        if name not in nvrtc.architectures():
            known = ", ".join(nvrtc.architectures())
            raise InvalidInput(f"--arch: expected some of {known} for {nvrtc}; found {name[:40]!r}")
    # Curves in turn: what takes longest in each is started first.
    wanted = {
        program_name(program): program for row in zip(*map(programs, CURVES), strict=True) for program in row
    }
    if args.only is not None:
        if args.only not in wanted:
            raise InvalidInput(f"--only: expected one of {', '.join(wanted)}; found {args.only[:40]!r}")
        wanted = {args.only: wanted[args.only]}
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True, mode=0o755)
    units = [(program, architecture) for architecture in architectures for program in wanted.values()]
    if len(units) == 1:
        ((program, architecture),) = units
        cubin = compile_program(program, architecture, nvrtc)
        write_cubin(folder / file_name(program, architecture), cubin)
    else:
        build(units, folder, nvrtc, processes=jobs, done=_say)
    return len(units)


def _say(name: str, seconds: float) -> None:
    print(f"{name} ({seconds:.1f} s)", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
