"""prove, fullprove, verify, setup, wtns, zkey and config: arguments in, library call, answer out."""

from __future__ import annotations

import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

from gpuprover.cli.console import BOLD, DIM, GREEN, RED, format_bytes, format_seconds
from gpuprover.cli.context import Context, job_of
from gpuprover.errors import EXIT_INVALID, EXIT_OK, Cancelled, InvalidInput, UnsatisfiedWitness
from gpuprover.settings import seconds, whole_number

if TYPE_CHECKING:
    from gpuprover.proving import ProofResult
    from gpuprover.systems.system import ProvingKey, VerificationKey


MAX_PIPED_WITNESS = 1 << 30
"""Bytes: a file is mapped, a pipe's content lies in memory."""


def check_paths(inputs: Iterable[str], outputs: Iterable[str]) -> None:
    """Finds out before long work that its outputs could not be written, or would destroy an input.

    Raises:
        InvalidInput: an output's folder is missing or not writable, an output is a folder, or two paths
            are the same file.
    """
    taken = {os.path.realpath(path) for path in inputs}
    for path in outputs:
        real = os.path.realpath(path)
        if os.path.isdir(real):
            raise InvalidInput(f"{path}: cannot write: it is a folder")
        folder = os.path.dirname(real)
        if not os.path.isdir(folder):
            raise InvalidInput(f"{path}: cannot write: the folder {folder} does not exist")
        if os.path.exists(real) and not os.path.isfile(real):
            continue  # a device or a pipe is written in place, as often as wanted
        if not os.access(folder, os.W_OK | os.X_OK):
            raise InvalidInput(f"{path}: cannot write: no permission for the folder {folder}")
        if real in taken:
            raise InvalidInput(f"{path}: cannot write: it is another argument of this command too")
        taken.add(real)


def write_proof(result: ProofResult, proof: str, public: str) -> None:
    """Writes both files, or leaves neither."""
    from gpuprover.formats.files import write_atomic
    from gpuprover.formats.json_files import dump_json

    public_written = False
    try:
        with write_atomic(proof) as file:
            file.write(dump_json(result.proof))
            file.flush()  # a full disk shows here, before public.json takes its place
            with write_atomic(public) as other:
                other.write(dump_json(result.public_signals))
            public_written = True
    except BaseException:
        if public_written and os.path.isfile(public):
            with suppress(OSError):
                os.unlink(public)
        raise


def open_key(path: str, context: Context, protocol: str | None = None) -> ProvingKey:
    """The key, its warnings shown; ``protocol``: a key of another one is refused."""
    import gpuprover
    from gpuprover.formats.zkey import identify

    if protocol is not None:
        identify(path, [protocol])
    key = gpuprover.load_key(path)
    for warning in key.warnings:
        context.console.warn(f"{path}: {warning}")
    return key


def prove(args: Namespace, context: Context) -> int:
    return _prove(args, context, _witness(args.witness), [args.zkey, args.witness])


def _witness(path: str) -> bytes | str:
    """A witness's path, or what a pipe of this name holds."""
    from gpuprover.formats.files import read_pipe

    piped = read_pipe(path, MAX_PIPED_WITNESS)
    return path if piped is None else piped


def fullprove(args: Namespace, context: Context) -> int:
    from gpuprover.formats.json_files import read_json

    check_paths([args.inputs, args.wasm, args.zkey], [args.proof, args.public])
    witness = {"inputs": read_json(args.inputs, pipe=True), "wasm": args.wasm, "fuel": _fuel(args)}
    with _named_inputs(args.inputs):
        return _prove(args, context, witness, [args.inputs, args.wasm, args.zkey])


@contextmanager
def _named_inputs(path: str) -> Iterator[None]:
    """Puts the file's name before what is wrong with a circuit's inputs."""
    try:
        yield
    except InvalidInput as error:
        if not error.message.startswith("circuit inputs: "):
            raise
        raise InvalidInput(f"{path}: {error.message}") from None


def _fuel(args: Namespace) -> int | None:
    return None if args.fuel is None else whole_number(args.fuel, "--fuel", high=10**18)


def _prove(args: Namespace, context: Context, witness: Any, inputs: list[str]) -> int:
    import gpuprover

    timeout = None if args.timeout is None else seconds(args.timeout, "--timeout")
    check_paths(inputs, [args.proof, args.public])
    check_device(context)
    key = open_key(args.zkey, context, args.protocol)
    begun = time.perf_counter()
    with context.work("prove") as limits:
        result = gpuprover.prove(key, witness, verify=not args.no_verify, timeout=timeout, **limits)
        if context.interrupts.event.is_set():
            raise Cancelled("interrupted; no output was written")
        write_proof(result, args.proof, args.public)
    _warn_of_run(result.warnings, key, context)
    record = proof_record(result, args, time.perf_counter() - begun)
    context.console.answer(record, _proof_text(result, args, context, record["seconds"]))
    return EXIT_OK


def _warn_of_run(warnings: tuple[str, ...], key: ProvingKey, context: Context) -> None:
    """Shows what the work itself warns of; the key's warnings were shown when it was opened."""
    for warning in warnings:
        if warning not in key.warnings:
            context.console.warn(warning)


def proof_record(result: ProofResult, args: Namespace, taken: float) -> dict[str, Any]:
    """The JSON answer to a proof that was made and written in ``taken`` seconds; the worker's too."""
    return {
        "ok": True,
        "proof": args.proof,
        "public": args.public,
        "device": result.device,
        "seconds": round(taken, 6),
        "timings": {phase: round(value, 6) for phase, value in result.timings.items()},
        "memory": result.memory,
        "warnings": result.warnings,
    }


def _proof_text(result: ProofResult, args: Namespace, context: Context, total: float) -> str:
    checked = "not verified" if args.no_verify else "verified"
    console, out = context.console, sys.stdout
    threads = context.settings.threads
    head = f"{checked}, {format_seconds(total)} on {result.device}, {threads} thread{'s' * (threads != 1)}"
    if not out.isatty():
        return f"proof {checked}: {args.proof}, {args.public} ({format_seconds(total)})"
    width = max((len(phase) for phase in result.timings), default=0)
    lines = [f"{console.paint('Proof made', GREEN, out)} ({head})"]
    for phase, value in result.timings.items():
        bar = "▇" * round(24 * value / total) if total else ""
        lines.append(
            f"  {phase:<{width}}  {format_seconds(value):>9}  {console.paint(bar, DIM, out)}".rstrip()
        )
    lines.append(f"  {'peak memory':<{width}}  {format_bytes(result.memory['peak']):>9}")
    lines.append(f"Wrote {console.paint(args.proof, BOLD, out)} and {console.paint(args.public, BOLD, out)}")
    return "\n".join(lines)


def check_device(context: Context) -> str:
    """The backend's name, before anything is loaded. Raises InvalidInput or DeviceError."""
    from gpuprover.devices import resolve_device, use_images

    if context.own_process:
        use_images()  # half a second less than with the compiler
    return resolve_device(context.settings.device)


def verify(args: Namespace, context: Context) -> int:
    import gpuprover
    from gpuprover.formats.json_files import read_json
    from gpuprover.systems.system import system_named, verification_key_at

    check_device(context)
    console = context.console
    key: VerificationKey
    if args.protocol is None:
        key = verification_key_at(args.vkey)
    else:
        key = system_named(args.protocol).parse_verification_key(read_json(args.vkey), args.vkey)
    for warning in key.warnings:
        console.warn(f"{args.vkey}: {warning}")
    threads = context.settings.threads
    valid = gpuprover.verify(key, args.public, args.proof, threads=threads, strict=args.strict)
    word = console.paint("OK", GREEN, sys.stdout) if valid else console.paint("INVALID", RED, sys.stdout)
    console.answer({"valid": valid, "warnings": key.warnings}, word)
    return EXIT_OK if valid else EXIT_INVALID


def setup(args: Namespace, context: Context) -> int:
    import gpuprover
    from gpuprover.systems.system import system_asked_for

    inputs = [args.r1cs] if args.insecure else [args.r1cs, args.ptau]
    system_asked_for(args.protocol, "--protocol")
    check_paths(inputs, [args.zkey])
    check_device(context)
    with context.work("setup") as limits:
        ptau = None if args.insecure else args.ptau
        result = gpuprover.setup(
            args.r1cs, args.zkey, protocol=args.protocol, ptau=ptau, insecure=args.insecure, **limits
        )
    key = open_key(args.zkey, context)
    _warn_of_run(result.warnings, key, context)
    record = {"ok": True, "zkey": args.zkey, **_key_record(key), "warnings": result.warnings}
    context.console.answer(record, f"wrote {args.zkey} ({key_size(key)}, {key.curve.name})")
    return EXIT_OK


def wtns_calculate(args: Namespace, context: Context) -> int:
    from gpuprover.formats.json_files import read_json
    from gpuprover.formats.wtns import write_witness
    from gpuprover.witness import calculate_witness

    check_paths([args.wasm, args.inputs], [args.witness])
    check_device(context)
    inputs, fuel = read_json(args.inputs, pipe=True), _fuel(args)
    with _named_inputs(args.inputs), context.work("witness") as limits:
        job = job_of(limits)
        curve, words = calculate_witness(
            args.wasm, inputs, job=job, fuel=fuel, memory_limit=limits["memory_limit"]
        )
        job.check()
        write_witness(args.witness, curve.scalar, words)
    record = {"ok": True, "witness": args.witness, "values": len(words), "curve": curve.name}
    context.console.answer(record, f"wrote {args.witness} ({len(words):,} values, {curve.name})")
    return EXIT_OK


def wtns_check(args: Namespace, context: Context) -> int:
    from gpuprover import memory
    from gpuprover.devices import open_backend
    from gpuprover.formats.r1cs import read_r1cs
    from gpuprover.formats.wtns import read_witness
    from gpuprover.witness import check_witness

    device = check_device(context)
    r1cs = read_r1cs(args.r1cs, memory.budget(context.settings.memory_limit))
    witness = read_witness(_witness(args.witness))
    with context.work("check") as limits:
        job = job_of(limits)
        with job.phase("check constraints"):
            wrong = check_witness(r1cs, witness, open_backend(device, r1cs.curve, job))
    if wrong is not None:
        raise UnsatisfiedWitness(
            f"{args.witness}: the witness does not satisfy constraint {wrong} of {args.r1cs} (counted from 0)"
        )
    constraints = r1cs.n_constraints
    context.console.answer(
        {"ok": True, "satisfied": True, "constraints": constraints},
        f"OK: the witness satisfies all {constraints:,} constraints",
    )
    return EXIT_OK


def _description(key: ProvingKey) -> dict[str, Any]:
    """What the key's system says of it."""
    from gpuprover.systems.system import system_named

    return system_named(key.protocol).describe_key(key)


def key_size(key: ProvingKey) -> str:
    """How large a circuit is, in words."""
    from gpuprover.systems.system import system_named

    return f"{key.constraints:,} {system_named(key.protocol).rows}"


def _key_record(key: ProvingKey) -> dict[str, Any]:
    return {name: value for name, value in _description(key).items() if name != "ceremony"}


def _contribution_text(contribution: dict[str, Any]) -> str:
    return f"{contribution['name'] or 'unnamed'}{' (beacon)' if contribution['beacon'] else ''}"


def zkey_info(args: Namespace, context: Context) -> int:
    from gpuprover.systems.system import system_named

    key = open_key(args.zkey, context)
    said = _description(key)
    record = {"ok": True, "zkey": args.zkey, "bytes": key.size, **said, "warnings": key.warnings}
    rows = [
        ("file", f"{args.zkey} ({format_bytes(key.size)})"),
        ("protocol", key.protocol),
        ("curve", key.curve.name),
        (system_named(key.protocol).rows, f"{key.constraints:,}"),
        ("variables", f"{key.n_vars:,}"),
        ("public signals", f"{key.n_public:,}"),
        ("domain", f"2^{said['domain_size'].bit_length() - 1}"),
    ]
    if "contributions" in said:
        claimed = f"{said['contributions']} claimed, not verified"
        rows.append(("contributions", "\n".join([claimed, *map(_contribution_text, said["ceremony"])])))
    context.console.answer(record, context.console.table(rows))
    return EXIT_OK


def zkey_check(args: Namespace, context: Context) -> int:
    beside = os.path.splitext(args.zkey)[0] + ".r1cs"
    return _check_key(args, context, args.r1cs or (beside if os.path.isfile(beside) else None), None)


def zkey_verify(args: Namespace, context: Context) -> int:
    return _check_key(args, context, args.r1cs, args.ptau)


def _check_key(args: Namespace, context: Context, circuit: str | None, powers: str | None) -> int:
    """Checks a key by itself, against a circuit, and with both against the powers of tau."""
    from gpuprover import memory
    from gpuprover.devices import open_backend
    from gpuprover.systems.system import system_named

    check_device(context)
    key = open_key(args.zkey, context)  # checks the structure, the header and the coefficients
    with context.work("check") as limits:
        # Sums and pairings of a moment: no device is worth the way there.
        backend = open_backend("cpu", key.curve, job_of(limits))
        budget = memory.budget(context.settings.memory_limit)
        system = system_named(key.protocol)
        found = system.check_whole_key(key, circuit, powers, backend, budget)
    for warning in found.warnings:
        context.console.warn(f"{args.zkey}: {warning}")
    record = {
        "ok": True,
        "zkey": args.zkey,
        "r1cs": circuit,
        "points": sum(bases.size for bases in key.demand.bases),
        "checked": found.checked,
        "unchecked": found.unchecked,
        **_key_record(key),
        "warnings": [*key.warnings, *found.warnings],
    }
    rows = [("checked", "\n".join(found.checked))]
    if found.unchecked:
        rows.append(("not checked", "\n".join(found.unchecked)))
    context.console.answer(record, f"OK, as far as this was checked:\n{context.console.table(rows)}")
    return EXIT_OK


def export_verification_key(args: Namespace, context: Context) -> int:
    from gpuprover.formats.json_files import write_json

    check_paths([args.zkey], [args.vkey])
    key = open_key(args.zkey, context)
    write_json(args.vkey, key.verification_key)
    context.console.answer({"ok": True, "vkey": args.vkey, "warnings": key.warnings}, f"wrote {args.vkey}")
    return EXIT_OK


def export_solidity_verifier(args: Namespace, context: Context) -> int:
    from gpuprover.formats.files import write_atomic
    from gpuprover.systems.system import system_named

    check_paths([args.zkey], [args.contract])
    key = open_key(args.zkey, context)
    if key.warnings and not args.allow_insecure:
        raise InvalidInput(
            f"{args.zkey}: proofs can be forged for this key, so no contract was written; --allow-insecure "
            "writes one all the same, for tests"
        )
    source = system_named(key.protocol).solidity_verifier(key.verification_key, args.allow_insecure)
    with write_atomic(args.contract) as file:
        file.write(source.encode())
    context.console.answer(
        {"ok": True, "contract": args.contract, "warnings": key.warnings}, f"wrote {args.contract}"
    )
    return EXIT_OK


def export_calldata(args: Namespace, context: Context) -> int:
    from gpuprover.formats.json_files import read_json
    from gpuprover.systems.system import system_of_document

    public, proof = read_json(args.public), read_json(args.proof)
    calldata = system_of_document(proof).solidity_calldata(public, proof, args.public, args.proof)
    if context.console.json:
        context.console.answer({"ok": True, "calldata": calldata}, "")
    else:
        context.console.data(calldata)
    return EXIT_OK


def config(args: Namespace, context: Context) -> int:
    from gpuprover.config import describe, load_engine_settings, markdown_table, unknown_variables

    given = {name: getattr(args, name) for name in ("device", "threads", "memory_limit")}
    settings = describe(load_engine_settings(given, options=True))
    unknown = unknown_variables()
    for warning in unknown.values():
        context.console.warn(warning)
    rows = [(row["variable"], f"{_setting_text(row):<24}  {row['source']}") for row in settings.values()]
    record = {"settings": settings, "unknown": list(unknown)}
    text = markdown_table().rstrip("\n") if args.markdown else context.console.table(rows)
    context.console.answer(record, text)
    return EXIT_OK


def _setting_text(row: dict[str, Any]) -> str:
    value = row["value"]
    if value is None or value == []:
        return "-"
    if isinstance(value, list):
        return ",".join(value)
    number = f"{value:g}" if isinstance(value, float) else str(value)
    return f"{number} {row['unit']}".rstrip()


def verifier(args: Namespace, context: Context) -> int:
    from gpuprover.verifier.arguments import serving
    from gpuprover.verifier.serve import serve

    def announce(record: dict[str, Any]) -> None:
        context.console.answer(record, f"listening on {', '.join(record['listening'])}")

    return serve(**serving(args, context.settings.threads), announce=announce, warn=context.console.warn)


def bench(args: Namespace, context: Context) -> int:
    return _bench_command("run", args, context)


def bench_report(args: Namespace, context: Context) -> int:
    return _bench_command("report", args, context)


def bench_processes(args: Namespace, context: Context) -> int:
    return _bench_command("processes", args, context, "engine_command")


def bench_network(args: Namespace, context: Context) -> int:
    return _bench_command("network", args, context, "engine_command")


def bench_service(args: Namespace, context: Context) -> int:
    return _bench_command("service", args, context, "load_command")


def bench_fill(args: Namespace, context: Context) -> int:
    return _bench_command("fill", args, context, "engine_command")


def _bench_command(name: str, args: Namespace, context: Context, module: str = "command") -> int:
    """By its name: what measures stands above this package."""
    from importlib import import_module

    return int(getattr(import_module(f"gpuprover.bench.{module}"), name)(args, context))
