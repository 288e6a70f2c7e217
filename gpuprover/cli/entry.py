"""The process around a command: arguments, signals, every failure as one line and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module

from gpuprover import folders
from gpuprover.cli.console import Console
from gpuprover.cli.context import Context, Interrupts, as_prover_error
from gpuprover.cli.parser import build_parser
from gpuprover.config import load_settings
from gpuprover.errors import EXIT_CANCELLED
from gpuprover.processes import harden


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code; never raises.

    Args:
        argv: the arguments without the program's name; ``sys.argv[1:]`` by default.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "r+"))  # noqa: SIM115
    if argv is None:
        harden()  # witnesses pass through most commands
    # Only to form the messages of errors that come before the arguments are understood.
    console = Console(json="--json" in arguments, quiet="--quiet" in arguments)
    with Interrupts() as interrupts:
        try:
            code = _run(arguments, interrupts, own_process=argv is None)
        except SystemExit as exit_:  # argparse's --help and --version
            code = exit_.code if isinstance(exit_.code, int) else 0
        except BaseException as error:
            interrupts.ignore()
            failure = as_prover_error(error, interrupts)
            console.error(failure)
            code = failure.exit_code
    if argv is None and code == EXIT_CANCELLED:
        # A thread may still be compiling, and the interpreter would wait for it.
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        folders.remove_private()
        os._exit(code)
    return code


def _run(arguments: list[str], interrupts: Interrupts, own_process: bool) -> int:
    args = build_parser().parse_args(arguments)
    settings = load_settings({name: getattr(args, name) for name in ("device", "threads", "memory_limit")})
    module, _, function = args.run.partition(":")
    console = Console(json=args.json, quiet=args.quiet)
    context = Context(settings, console, interrupts, own_process)
    with folders.warnings_to(console.warn):
        return int(getattr(import_module(f"gpuprover.cli.{module}"), function)(args, context))
