"""``gpuprover worker``: jobs on stdin, one JSON answer a line on stdout, keys kept loaded.

Answers come in the order of the jobs. A proof's answer is
``{"ok": true, "proof", "public", "device", "seconds", "timings", "memory", "warnings", "key_loaded"}``,
a failure's ``{"ok": false, "error": {"kind", "message", "exit_code"}}``. Blank lines, and lines that
start with ``#``, have no answer. SIGTERM and Ctrl-C end an idle worker with exit code 0; a running
job is cancelled and answered, and the exit code is 130.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from argparse import Namespace
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from gpuprover.caching import Cache
from gpuprover.cli.commands import check_paths, proof_record, write_proof
from gpuprover.cli.console import Console, error_record
from gpuprover.cli.context import Context, as_prover_error
from gpuprover.cli.parser import Parser
from gpuprover.config import load_settings
from gpuprover.errors import EXIT_CANCELLED, EXIT_OK, Cancelled, InvalidInput, ProverError
from gpuprover.formats.files import Identity, identity_of
from gpuprover.settings import seconds, whole_number

if TYPE_CHECKING:
    from gpuprover.systems.system import ProvingKey

MAX_LINE = 1 << 16
"""Bytes of a job's line; a longer one is refused and skipped."""


class KeyCache:
    """The keys used last, by path and by the file's identity: a replaced file is loaded anew.

    Args:
        size: keys that are kept.
    """

    def __init__(self, size: int) -> None:
        self._keys: Cache[str, tuple[Identity, ProvingKey]] = Cache(size)

    def get(self, path: str) -> tuple[ProvingKey, bool]:
        """The key, and whether it was loaded already. Raises what ``load_key`` raises."""
        import gpuprover

        name = os.path.realpath(path)
        try:
            identity = identity_of(name)
        except ProverError:
            self._keys.drop(name)
            return gpuprover.load_key(path), False  # says what is wrong with the path
        known = self._keys.get(name)
        if known is not None and known[0] == identity:
            return known[1], True
        self._keys.drop(name)
        key = gpuprover.load_key(path)
        self._keys.put(name, (identity, key), 1)
        return key, False


def job_parser() -> Parser:
    """The parser of one line."""
    parser = Parser(prog="gpuprover worker", add_help=False)
    parser.add_argument("command", choices=["prove"])
    for name in ("zkey", "witness", "proof", "public"):
        parser.add_argument(f"--{name}", required=True)
    for name in ("device", "threads", "memory-limit", "timeout"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--no-verify", action="store_true")
    return parser


def run(args: Namespace, context: Context) -> int:
    from gpuprover.devices import use_images

    keys = KeyCache(whole_number(args.keys, "--keys", high=1 << 20))
    if context.own_process:
        use_images()
    try:
        return _serve(keys, context)
    except KeyboardInterrupt:  # between two jobs
        return EXIT_OK


def _serve(keys: KeyCache, context: Context) -> int:
    parser = job_parser()
    console = Console(json=True)
    stream = sys.stdin.buffer
    while (line := stream.readline(MAX_LINE + 1)) and line.strip() not in (b"quit", b"exit"):
        try:
            answer = _answer(line, parser, keys, context)
        except BaseException as error:
            answer = {"ok": False, "error": error_record(as_prover_error(error, context.interrupts))}
        # The rest of a line that was too long.
        while len(line) > MAX_LINE and not line.endswith(b"\n"):
            line = stream.readline(MAX_LINE + 1)
        if answer is not None:
            console.data(json.dumps(answer))
        if context.interrupts.event.is_set():
            return EXIT_CANCELLED
    return EXIT_OK


def _answer(line: bytes, parser: Parser, keys: KeyCache, context: Context) -> dict[str, Any] | None:
    if len(line) > MAX_LINE:
        raise InvalidInput(f"a line of more than {MAX_LINE} bytes, expected a shorter one")
    try:
        words = shlex.split(os.fsdecode(line), comments=False)
    except ValueError as error:
        raise InvalidInput(f"the line cannot be split into words: {str(error).lower()}") from None
    if not words or words[0].startswith("#"):
        return None
    if b"\0" in line:
        raise InvalidInput("a line cannot contain a zero byte")
    return _prove(parser.parse_args(words), keys, context)


def _prove(args: Namespace, keys: KeyCache, context: Context) -> dict[str, Any]:
    import gpuprover

    given = {"device": args.device, "threads": args.threads, "memory_limit": args.memory_limit}
    own = load_settings(given, environment={})
    changed = {name: getattr(own, name) for name, text in given.items() if text is not None}
    context = replace(context, settings=replace(context.settings, **changed))
    timeout = None if args.timeout is None else seconds(args.timeout, "--timeout")
    check_paths([args.zkey, args.witness], [args.proof, args.public])
    begun = time.perf_counter()
    with context.work("prove") as limits:
        key, warm = keys.get(args.zkey)
        result = gpuprover.prove(key, args.witness, verify=not args.no_verify, timeout=timeout, **limits)
        if context.interrupts.event.is_set():
            raise Cancelled("interrupted; no output was written")
        write_proof(result, args.proof, args.public)
    return {**proof_record(result, args, time.perf_counter() - begun), "key_loaded": warm}
