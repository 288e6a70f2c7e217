"""``gpuprover bench --calibrate``: what proofs take on this machine's devices, for placement.

Chain circuits of growing size are proven by every proof system on every device, with the key loaded and where
it is needed. Measured besides is the sum in G2 of Groth16's proofs, which the CPU may do for a GPU. A size
starts only if it is likely to end in time.
"""

from __future__ import annotations

import tempfile
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import gpuprover
from gpuprover import calibration
from gpuprover.circuits import chain_circuit
from gpuprover.curves import CurveParams, Group
from gpuprover.devices import open_backend
from gpuprover.errors import EXIT_OK, DeviceError, OutOfMemory
from gpuprover.formats.wtns import read_witness
from gpuprover.job import Job
from gpuprover.scheduler import DeviceInfo
from gpuprover.systems.groth16.key import ProvingKey as Groth16Key
from gpuprover.systems.system import ProofSystem
from gpuprover.version import VERSION

from .measure import fastest
from .proofs import CHAIN_ROOM
from .rows import significant

if TYPE_CHECKING:
    from gpuprover.cli.context import Context

LOGS = (6, 8, 10, 12, 14, 16, 18, 20)
SECONDS = 90.0
"""For all of it, after a proof of each kind that compiles what is not compiled yet."""
GROWTH = 5.0
"""The next size is four times as large, and so is what it takes, nearly."""


def run(
    args: Namespace, context: Context, curves: Sequence[CurveParams], systems: Sequence[ProofSystem]
) -> int:
    """Measures and keeps; what cannot be opened is left out, with a warning."""
    settings = context.settings
    kinds = [(system, curve) for system in systems for curve in curves if curve in system.curves]
    machine = [
        d
        for d in calibration.devices(settings.threads)
        if settings.device in ("auto", d.kind, d.name) and not d.problem
    ]
    with context.work("calibrate") as limits, tempfile.TemporaryDirectory(prefix="gpuprover-") as folder:
        job = Job(threads=limits["threads"], cancel=limits["cancel"], progress=limits["progress"])
        entries = [
            entry
            for system, curve in kinds
            for entry in measure(
                system, curve, machine, job, Path(folder), SECONDS / len(kinds), context.console.warn, LOGS
            )
        ]
    if not entries:
        raise DeviceError(f"device {settings.device!r}: nothing could be measured")
    file = calibration.keep(entries)
    kept = calibration.load()
    works = [calibration.work_name(system.name, curve) for system, curve in kinds]
    lines = calibration.describe(kept, machine, works)
    record = {"ok": True, "calibration": str(file), "entries": len(entries), "times": lines}
    context.console.answer(record, "\n".join([*lines, f"kept in {file}"]))
    return EXIT_OK


def measure(
    system: ProofSystem,
    curve: CurveParams,
    machine: Sequence[DeviceInfo],
    job: Job,
    folder: Path,
    seconds: float,
    warn: Callable[[str], None],
    logs: Sequence[int],
) -> list[calibration.Entry]:
    """An entry for each device that can be opened; of equal GPUs only the first is measured."""
    models = {(d.kind, d.model, d.path): d for d in reversed(machine)}
    whole: dict[DeviceInfo, list[calibration.Row]] = {d: [] for d in models.values()}
    sums: dict[DeviceInfo, list[calibration.Row]] = {d: [] for d in models.values()}
    deadline, took = float("inf"), 0.0
    # The first size twice: whatever is not compiled yet is compiled then.
    for i, log in enumerate([logs[0], *logs]):
        begun = time.perf_counter()
        if i > 1 and begun + GROWTH * took > deadline:
            break
        with job.phase(f"calibrate, {system.name} {curve.name}"):
            zkey, wtns = _circuit(system.name, curve, log, folder, job)
            for device in list(whole):
                try:
                    whole_row, sum_row = _measure(device, zkey, wtns, job)
                except (DeviceError, OutOfMemory) as error:
                    warn(f"{device.name}: 2^{log}: {error.message}")
                    if not whole[device]:
                        del whole[device]
                    continue
                whole[device].append(whole_row)
                if sum_row is not None:
                    sums[device].append(sum_row)
            job.report((i + 1) / (len(logs) + 1))
        now = time.perf_counter()
        took = now - begun
        if i == 0:
            deadline, took = now + seconds, 0.0
            for rows in (*whole.values(), *sums.values()):
                rows.clear()
    when = time.strftime("%Y-%m-%d", time.gmtime())
    return [
        calibration.Entry(
            device.kind,
            device.model,
            device.path,
            calibration.work_name(system.name, curve),
            tuple(rows),
            {part: tuple(sums[device]) for part in system.host_parts},
            VERSION,
            f"measured here on {when} with {job.threads} threads",
        )
        for device, rows in whole.items()
        if rows
    ]


def _circuit(protocol: str, curve: CurveParams, log: int, folder: Path, job: Job) -> tuple[Path, Path]:
    r1cs, wtns, zkey = (folder / f"{protocol}_{curve.name}_{log}.{kind}" for kind in ("r1cs", "wtns", "zkey"))
    chain_circuit((1 << log) - min(CHAIN_ROOM, 1 << log >> 3), curve).write(r1cs, wtns)
    gpuprover.setup(r1cs, zkey, protocol=protocol, insecure=True, device="cpu", threads=job.threads)
    return zkey, wtns


def _measure(
    device: DeviceInfo, zkey: Path, wtns: Path, job: Job
) -> tuple[calibration.Row, calibration.Row | None]:
    """Rows of a whole proof, and of Groth16's sum in G2."""
    key, witness = gpuprover.load_key(zkey), read_witness(wtns)
    counts = sorted({1, device.threads}) if device.kind == "cpu" else [job.threads]

    def proof(threads: int) -> float:
        def call() -> None:
            gpuprover.prove(key, wtns, device=device.name, threads=threads)

        call()
        wall = fastest(call).wall
        assert wall is not None
        return significant(wall)

    def total(key: Groth16Key, threads: int) -> float:
        backend = open_backend(device.name, key.curve, Job(threads=threads))
        bases = backend.prepare_bases(Group.G2, key.b2)
        wall = fastest(lambda: backend.msm(bases, witness.values)).wall
        backend.free(bases)
        assert wall is not None
        return significant(wall)

    def row(call: Callable[[int], float]) -> calibration.Row:
        one, many = call(counts[0]), call(counts[-1])
        if device.kind != "cpu":
            return key.constraints, one, 0.0
        return calibration.row(key.constraints, one, many, counts[-1])

    return row(proof), row(partial(total, key)) if isinstance(key, Groth16Key) else None
