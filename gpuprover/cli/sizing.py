"""estimate and profile: what a machine can do, where a proof's time and memory go, and what to change."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

from gpuprover import sizing
from gpuprover.cli.commands import check_device, check_paths, key_size, open_key
from gpuprover.cli.console import BOLD, DIM, format_bytes, format_seconds
from gpuprover.cli.context import Context
from gpuprover.config import load_engine_settings
from gpuprover.errors import EXIT_OK, DeviceError, InvalidInput
from gpuprover.settings import MAX_THREADS, seconds, whole_number

if TYPE_CHECKING:
    from gpuprover.backend import Backend
    from gpuprover.curves import CurveParams
    from gpuprover.demand import Demand, MemoryPlan
    from gpuprover.profiling import Advice, Observed
    from gpuprover.sizing import Estimate, Memory
    from gpuprover.systems.system import ProofSystem


def estimate(args: Namespace, context: Context) -> int:
    check_device(context)
    cores = context.settings.threads
    if args.cores is not None:
        cores = whole_number(args.cores, "--cores", high=MAX_THREADS)
    each = None
    if args.cores_per_proof is not None:
        each = whole_number(args.cores_per_proof, "--cores-per-proof", high=MAX_THREADS)
    proof_time = None if args.proof_time is None else seconds(args.proof_time, "--proof-time")
    sizes = [getattr(args, name) for name in ("constraints", "r1cs", "zkey")]
    known = any(size is not None for size in sizes)
    if sum(size is not None for size in sizes) > 1:
        raise InvalidInput("estimate: expected one of --constraints, --r1cs and --zkey, found more")
    if args.zkey is not None and args.protocol is not None:
        raise InvalidInput("estimate: --zkey names the protocol itself; expected no --protocol")
    if args.measured:
        if proof_time is not None:
            raise InvalidInput("estimate: --measured has this machine's times; expected no --proof-time")
        if not known:
            raise InvalidInput("estimate: --measured needs --constraints N, --r1cs FILE or --zkey FILE")
    elif proof_time is None:
        raise InvalidInput("estimate: expected --proof-time SECONDS, or --measured")
    work = _work(args, context)
    machine = sizing.machine()
    if args.measured:
        result = _measured(context, work, cores, each, machine)
    else:
        assert proof_time is not None
        each = 1 if each is None else each
        at_once = max(1, cores // each)
        result = sizing.estimate(cores, each, proof_time, [m.times(at_once) for m in work.memory], machine)
    record = {
        "ok": True,
        "proofs_per_hour": round(result.per_hour, 3),
        "cores": result.cores,
        "cores_per_proof": result.cores_per_proof,
        "proof_time": result.proof_time,
        "proofs_at_once": result.at_once,
        "work": work.name,
        "constraints": work.constraints,
        "key_bytes": work.key_bytes,
        "memory": [m.as_dict() for m in result.memory],
        "choices": [asdict(choice) for choice in result.choices],
        "origin": result.origin or None,
        "cautions": result.cautions,
    }
    context.console.answer(record, _estimate_text(result, work, context))
    return EXIT_OK


class _Work(NamedTuple):
    """What is proved: the work's name, and what rows of its circuits are called; their number and bytes of
    the key's file, where they are known; memory of one proof, by its plan, by its tier, or of all tiers."""

    name: str
    rows: str
    constraints: int | None
    key_bytes: int | None
    memory: list[Memory]


def _work(args: Namespace, context: Context) -> _Work:
    from gpuprover.calibration import work_name
    from gpuprover.curves import CURVES, curve_by_name
    from gpuprover.formats.r1cs import read_r1cs
    from gpuprover.memory import budget
    from gpuprover.scheduler import TIERS, tier_of
    from gpuprover.systems import system as systems

    mark = load_engine_settings({}).memory_watermark
    if args.zkey is not None:
        key = open_key(args.zkey, context)
        memory = sizing.plan_memory(_plan(key.demand), mark)
        name, rows = work_name(key.protocol, key.curve), systems.system_named(key.protocol).rows
        return _Work(name, rows, key.constraints, key.size, [memory])
    system = systems.system_asked_for(args.protocol or systems.names()[0], "--protocol")
    if args.r1cs is not None:
        circuit = read_r1cs(args.r1cs, budget(context.settings.memory_limit))
        _check_curve(system, circuit.curve)
        outline = system.outline(circuit, _backend(circuit.curve))
        memory = sizing.plan_memory(_plan(outline.demand), mark, "the plan of this circuit's key")
        name = work_name(system.name, circuit.curve)
        return _Work(name, system.rows, outline.constraints, outline.size, [memory])
    name = CURVES[0].name if args.curve is None else args.curve
    try:
        curve = curve_by_name(name)
    except KeyError:
        known = ", ".join(curve.name for curve in CURVES)
        raise InvalidInput(f"--curve: expected one of {known}; found {name!r}") from None
    _check_curve(system, curve)
    work = work_name(system.name, curve)
    if args.constraints is None:
        return _Work(work, system.rows, None, None, [sizing.tier_memory(tier, mark) for tier in TIERS])
    constraints = whole_number(args.constraints, "--constraints", high=1 << 28)
    return _Work(work, system.rows, constraints, None, [sizing.tier_memory(tier_of(constraints), mark)])


def _backend(curve: CurveParams) -> Backend:
    from gpuprover.devices import open_backend
    from gpuprover.job import Job

    return open_backend("cpu", curve, Job(threads=1))


def _plan(demand: Demand) -> MemoryPlan:
    from gpuprover.demand import UNLIMITED

    return _backend(demand.curve).plan(demand, UNLIMITED)


def _check_curve(system: ProofSystem, curve: CurveParams) -> None:
    if curve not in system.curves:
        known = " or ".join(one.name for one in system.curves)
        raise InvalidInput(f"estimate: {system.name} is over {known}, not over {curve.name}")


def _measured(
    context: Context,
    work: _Work,
    cores: int,
    each: int | None,
    machine: sizing.Machine,
) -> Estimate:
    from gpuprover import calibration

    asked = context.settings.device
    devices = [d for d in calibration.devices(cores) if not d.problem and (asked in ("auto", d.kind, d.name))]
    if not devices:
        raise DeviceError(f"device {asked!r}: nothing to estimate for")
    assert work.constraints is not None  # as the arguments were checked
    return sizing.measured(
        calibration.load(context.console.warn),
        work.name,
        devices,
        work.constraints,
        cores,
        None if each is None else max(1, cores // each),
        work.memory,
        machine,
    )


def _estimate_text(e: Estimate, work: _Work, context: Context) -> str:
    formula = f"{e.cores} cores / {e.cores_per_proof} a proof × 3600 s / {e.proof_time:g} s"
    rows = [("proofs an hour", f"{e.per_hour:,.0f}")]
    if e.choices:
        best = e.choices[0]
        threads = f", {best.threads} thread{'s' * (best.threads != 1)} each" if best.threads else ""
        rows = [
            (
                "proofs an hour",
                f"{e.per_hour:,.0f}: on {best.device}, {best.at_once} at once{threads}, "
                f"{format_seconds(best.seconds)} a proof",
            ),
            ("choices", "\n".join(_choice_lines(e))),
            ("times", e.origin),
        ]
    else:
        rows.append(("formula", formula))
        rows.append(("at once", str(e.at_once)))
    if work.key_bytes is not None:
        rows.append(("key", f"{work.name}, {work.constraints:,} {work.rows}, {format_bytes(work.key_bytes)}"))
    rows.append(("memory", "\n".join(_memory_text(m) for m in e.memory)))
    rows.append(("misleading", "\n".join(f"- {caution}" for caution in e.cautions)))
    return context.console.table(rows)


def _choice_lines(e: Estimate) -> list[str]:
    lines = [f"{'':<8}{'at once':>8}{'threads':>9}{'a proof':>10}{'an hour':>12}{'by the formula':>16}"]
    for c in e.choices:
        took, formula = format_seconds(c.seconds), f"{c.formula:,.0f}" if c.threads else "-"
        lines.append(
            f"{c.device:<8}{c.at_once:>8}{c.threads or '-':>9}{took:>10}{c.per_hour:>12,.0f}{formula:>16}"
        )
    return lines


def _memory_text(m: Memory) -> str:
    low, high = m.total
    size = format_bytes(low) if low == high else f"{format_bytes(low)} to {format_bytes(high)}"
    key = f"the key's {format_bytes(m.key)} once, " if m.key else ""
    process = f" and {format_bytes(m.process)} for its process" if m.process else ""
    each = (
        format_bytes(m.proof[0])
        if m.proof[0] == m.proof[1]
        else (f"{format_bytes(m.proof[0])} to {format_bytes(m.proof[1])}")
    )
    return f"{size} ({m.basis}: {key}{m.at_once} × {each}{process}); --memory-limit {m.limit_mib}"


def profile(args: Namespace, context: Context) -> int:
    from gpuprover import profiling

    proofs = whole_number(args.proofs, "--proofs", high=1000)
    check_device(context)
    outputs = [] if args.output is None else [args.output]
    check_paths([args.zkey, args.witness], outputs)
    draw = _painter(args.output)
    key = open_key(args.zkey, context)
    with context.work("profile") as limits:
        seen = profiling.observe(args.zkey, args.witness, proofs=proofs, compiled=_compiled_files, **limits)
    advice = profiling.advise(seen)
    record = {
        "ok": True,
        "zkey": args.zkey,
        **seen.as_dict(),
        "advice": [asdict(entry) for entry in advice],
        "picture": args.output,
    }
    if draw is not None:
        draw(record, args.output)
    context.console.answer(record, _profile_text(seen, advice, key_size(key), args, context))
    return EXIT_OK


def _painter(output: str | None) -> Callable[[dict[str, Any], str], None] | None:
    """What draws a profile, found before any work. By its name: pictures stand above this package."""
    from importlib import import_module

    if output is None:
        return None
    if not output.endswith((".png", ".svg")):
        raise InvalidInput(f"--output: expected FILE.png or FILE.svg, found {output!r}")
    pictures = import_module("gpuprover.bench.pictures")
    if not pictures.available():
        raise InvalidInput(f"--output: {pictures.MISSING}")
    paint: Callable[[dict[str, Any], str], None] = import_module("gpuprover.bench.drawings").draw_profile
    return paint


def _compiled_files() -> int | None:
    """Files of machine code in the cache; None where no folder is writable."""
    from gpuprover.cpu.sources import store
    from gpuprover.folders import places

    return None if places().writable is None else len(store().files())


def _profile_text(
    seen: Observed, advice: Sequence[Advice], size: str, args: Namespace, context: Context
) -> str:
    console, out = context.console, sys.stdout
    threads = f"{seen.threads} thread{'s' * (seen.threads != 1)}"
    head = f"{args.zkey}: {size}, {format_bytes(seen.key_bytes)}, on {seen.device}, {threads}"
    phases = {name: both for name, both in seen.phases.items() if max(both) >= 0.0005}
    longest = max(max(first, after) for first, after in phases.values())
    width = max(len(name) for name in ("peak memory", *phases))
    lines = [console.paint(head, BOLD, out), f"{'':<{width}}  {'first':>9}  {'next':>9}"]
    for name, (first, after) in phases.items():
        # What every proof takes, then what only the first took.
        bar = "▇" * round(24 * after / longest)
        more = console.paint("░" * round(24 * max(0.0, first - after) / longest), DIM, out)
        lines.append(
            f"{name:<{width}}  {format_seconds(first):>9}  {format_seconds(after):>9}  {bar}{more}".rstrip()
        )
    lines.append(f"{'all':<{width}}  {format_seconds(seen.first.seconds):>9}  {format_seconds(seen.next):>9}")
    if seen.single is not None:
        lines.append(f"{'one thread':<{width}}  {'':>9}  {format_seconds(seen.single.seconds):>9}")
    source = f", {format_bytes(seen.touch_read)} of it from a disk" if seen.touch_read else ""
    lines.append(
        f"{'read key':<{width}}  {format_seconds(seen.touch):>9}  {format_seconds(seen.touch_again):>9}  "
        f"before the first proof, and from memory{source}"
    )
    last = seen.warm[-1]
    lines.append(
        f"{'peak memory':<{width}}  {format_bytes(seen.first.peak):>9}  {format_bytes(last.peak):>9}"
    )
    lines.append(
        f"{'kept memory':<{width}}  {format_bytes(seen.first.after):>9}  {format_bytes(last.after):>9}"
    )
    for entry in advice:
        lines.append(f"{console.paint(entry.about, BOLD, out)}: {entry.text}")
    if not advice:
        lines.append("nothing to change")
    if args.output is not None:
        lines.append(f"wrote {args.output}")
    return "\n".join(lines)
