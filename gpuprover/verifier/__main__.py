"""``python -m gpuprover.verifier``: a verifier's process, without the rest of the command line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from gpuprover import processes
from gpuprover.config import default_threads
from gpuprover.errors import EXIT_RESOURCES, InvalidInput, ProverError
from gpuprover.folders import remove_private
from gpuprover.settings import MAX_THREADS, whole_number
from gpuprover.verifier.arguments import add_arguments, serving


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InvalidInput(f"{message} (see {self.prog} --help)")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m gpuprover.verifier",
        description="Verifies proofs for whoever connects.",
        allow_abbrev=False,
    )
    add_arguments(parser)
    parser.add_argument("--fd", metavar="N", help="an inherited socket; the process ends with its other side")
    parser.add_argument("--parent", metavar="PID", help="the process to end with")
    parser.add_argument("--threads", metavar="N", help="verifications at once; default: the CPUs there are")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a verifier and returns its exit code."""
    try:
        args = _parser().parse_args(argv)
        parent = None if args.parent is None else whole_number(args.parent, "--parent")
        processes.harden(parent)
        from gpuprover.verifier.serve import serve

        threads = (
            default_threads()
            if args.threads is None
            else whole_number(args.threads, "--threads", high=MAX_THREADS)
        )
        descriptor = None if args.fd is None else whole_number(args.fd, "--fd", low=3, high=1 << 20)
        return serve(**serving(args, threads), descriptor=descriptor)
    except ProverError as error:
        print(f"error: {error.kind}: {error.message}", file=sys.stderr, flush=True)
        return error.exit_code
    except MemoryError:
        print("error: OutOfMemory: the machine refused memory", file=sys.stderr, flush=True)
        return EXIT_RESOURCES


if __name__ == "__main__":
    code = main()
    sys.stdout.flush()
    remove_private()
    # Threads that still compile would hold up the interpreter.
    os._exit(code)
