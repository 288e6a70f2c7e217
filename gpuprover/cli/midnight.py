"""midnight prove, verify, check, k, keygen, info and srs: arguments in, library call, answer out."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from gpuprover.cli.commands import check_device, check_paths
from gpuprover.cli.console import GREEN, RED, format_bytes, format_seconds
from gpuprover.cli.context import Context
from gpuprover.errors import EXIT_INVALID, EXIT_OK, Cancelled, InvalidInput, MalformedFile, UnsatisfiedWitness
from gpuprover.settings import seconds, whole_number

if TYPE_CHECKING:
    from gpuprover.systems.system import ProvingKey, VerificationKey

MAX_PIPED = 16 << 20
"""Bytes of a preimage that comes through a pipe."""
_DECIMALS = 80


def prove(args: Namespace, context: Context) -> int:
    from gpuprover import midnight_api
    from gpuprover.formats.files import write_atomic

    preimage, proof = _statement(args)
    timeout = None if args.timeout is None else seconds(args.timeout, "--timeout")
    binding = _binding(args)
    inputs = [path for path in (args.prover, args.verifier, preimage, args.advice, args.public) if path]
    check_paths(inputs, [proof])
    check_device(context)
    begun = time.perf_counter()
    with context.work("prove") as limits, _values_shown(args):
        key = midnight_api.load_key(args.prover, args.verifier, parameters=args.srs)
        _warn(key, context, args.prover)
        result = midnight_api.prove(
            key,
            None if preimage is None else _piped(preimage),
            binding=binding,
            advice=args.advice,
            public=args.public,
            verify=not args.no_verify,
            timeout=timeout,
            **limits,
        )
        if context.interrupts.event.is_set():
            raise Cancelled("interrupted; no output was written")
        raw = midnight_api.raw_proof(result.proof)
        with write_atomic(proof) as file:
            file.write(raw if args.raw else midnight_api.ledger_proof(raw))
    for warning in result.warnings:
        if warning not in key.warnings:
            context.console.warn(warning)
    taken = time.perf_counter() - begun
    record = {
        "ok": True,
        "proof": proof,
        "bytes": len(raw),
        "device": result.device,
        "seconds": round(taken, 6),
        "timings": {phase: round(value, 6) for phase, value in result.timings.items()},
        "memory": result.memory,
        "warnings": result.warnings,
    }
    checked = "not verified" if args.no_verify else "verified"
    text = f"proof {checked}: {proof} ({len(raw):,} bytes, {format_seconds(taken)} on {result.device})"
    context.console.answer(record, text)
    return EXIT_OK


def _statement(args: Namespace) -> tuple[str | None, str]:
    """(path of the preimage or None, path of the proof) of the arguments behind the keys."""
    if args.advice is None and args.public is None:
        if len(args.files) != 2:
            problem = f"expected PREIMAGE and PROOF behind the keys, found {len(args.files)} arguments"
            raise InvalidInput(f"{problem} (see gpuprover midnight prove --help)")
        return args.files[0], args.files[1]
    if args.advice is None or args.public is None:
        raise InvalidInput("--advice and --public: expected both or neither")
    if len(args.files) != 1:
        problem = f"expected PROOF alone behind the keys, found {len(args.files)} arguments"
        raise InvalidInput(f"--advice: {problem} (see gpuprover midnight prove --help)")
    return None, args.files[0]


def _binding(args: Namespace) -> int | None:
    from gpuprover.curves import BLS12_381

    text = args.binding
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= _DECIMALS) or int(text) >= BLS12_381.r:
        raise InvalidInput("--binding: expected a whole number below the prime of the scalar field")
    return int(text)


def _piped(path: str) -> bytes | str:
    """A preimage's path, or what a pipe of this name holds."""
    from gpuprover.formats.files import read_pipe

    piped = read_pipe(path, MAX_PIPED)
    return path if piped is None else piped


@contextmanager
def _values_shown(args: Namespace) -> Iterator[None]:
    """Says with --show-values what a failed check found."""
    try:
        yield
    except UnsatisfiedWitness as error:
        if not args.show_values:
            raise
        from gpuprover.midnight.ir.failure import explain

        raise UnsatisfiedWitness(explain(error, values=True)) from None


def _warn(key: ProvingKey | VerificationKey, context: Context, path: str) -> None:
    for warning in key.warnings:
        context.console.warn(f"{path}: {warning}")


def verify(args: Namespace, context: Context) -> int:
    from gpuprover import midnight_api

    check_device(context)
    key = midnight_api.read_verification_key(args.verifier, parameters=args.srs)
    _warn(key, context, args.verifier)
    public = midnight_api.read_public_inputs(args.public)
    try:
        proof = midnight_api.raw_proof(args.proof)
        valid = midnight_api.verify(key, public, proof, threads=context.settings.threads)
    except MalformedFile as error:
        # A proof is bytes without a form of their own: damaged ones are no proof of anything.
        if error.role != "proof":
            raise
        context.console.warn(error.message)
        valid = False
    word = ("OK", GREEN) if valid else ("INVALID", RED)
    record = {"valid": valid, "warnings": key.warnings}
    context.console.answer(record, context.console.paint(*word, sys.stdout))
    return EXIT_OK if valid else EXIT_INVALID


def check(args: Namespace, context: Context) -> int:
    from gpuprover import midnight_api

    binding = _binding(args)
    check_device(context)
    with _values_shown(args):
        groups = midnight_api.check(args.circuit, _piped(args.preimage), binding=binding)
    lines = ["active" if skipped is None else f"skipped {skipped}" for skipped in groups]
    record = {"ok": True, "satisfied": True, "groups": groups}
    context.console.answer(record, "\n".join(["OK", *lines]))
    return EXIT_OK


def k(args: Namespace, context: Context) -> int:
    from gpuprover import midnight_api

    check_device(context)
    found = midnight_api.k(args.circuit)
    if context.console.json:
        context.console.answer({"ok": True, "k": found}, "")
    else:
        context.console.data(str(found))
    return EXIT_OK


def keygen(args: Namespace, context: Context) -> int:
    from gpuprover import midnight_api

    check_paths([args.circuit], [args.prover, args.verifier])
    check_device(context)
    with context.work("keygen") as limits:
        del limits["memory_limit"]  # type: ignore[misc]
        key = midnight_api.keygen(args.circuit, args.prover, args.verifier, parameters=args.srs, **limits)
    _warn(key, context, args.verifier)
    sizes = {name: os.path.getsize(path) for name, path in _outputs(args)}
    record = {"ok": True, "prover": args.prover, "verifier": args.verifier, "bytes": sizes}
    text = " and ".join(f"{path} ({format_bytes(sizes[name])})" for name, path in _outputs(args))
    context.console.answer({**record, "n_public": key.n_public, "warnings": key.warnings}, f"wrote {text}")
    return EXIT_OK


def _outputs(args: Namespace) -> list[tuple[str, str]]:
    return [("prover", args.prover), ("verifier", args.verifier)]


def info(args: Namespace, context: Context) -> int:
    from gpuprover import midnight_api

    found = midnight_api.info(args.file)
    rows = [(name.replace("_", " "), _shown(value)) for name, value in found.items()]
    context.console.answer({"ok": True, "file": args.file, **found}, context.console.table(rows))
    return EXIT_OK


def _shown(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "-"}[value]
    if isinstance(value, dict):
        return "\n".join(f"{name}: {_shown(part)}" for name, part in value.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "-"
    return f"{value:,}" if isinstance(value, int) else str(value)


def srs_check(args: Namespace, context: Context) -> int:
    from gpuprover import midnight_api

    found = midnight_api.check_parameters(args.file)
    record = {"ok": True, "file": args.file, "k": found}
    context.console.answer(record, f"OK: the network's parameters for k = {found}")
    return EXIT_OK


def srs_downsize(args: Namespace, context: Context) -> int:
    from gpuprover import midnight_api

    size = whole_number(args.k, "--k", low=0, high=25)
    check_paths([args.file], [args.target])
    check_device(context)
    with context.work("downsize") as limits:
        midnight_api.downsize_parameters(
            args.file,
            size,
            args.target,
            threads=limits["threads"],
            progress=limits["progress"],
            cancel=limits["cancel"],
        )
    record = {"ok": True, "target": args.target, "k": size, "bytes": os.path.getsize(args.target)}
    context.console.answer(record, f"wrote {args.target} (k = {size})")
    return EXIT_OK
