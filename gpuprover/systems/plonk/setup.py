"""PLONK's set-up: from a constraint system to the proving key that ``snarkjs plonk setup`` writes."""

from __future__ import annotations

from gpuprover.backend import Backend
from gpuprover.errors import UnsupportedFile
from gpuprover.formats.binfile import write_binfile
from gpuprover.formats.files import Pathish
from gpuprover.formats.r1cs import R1CS
from gpuprover.formats.zkey import VERSION
from gpuprover.plonkish import setup as shared
from gpuprover.plonkish.column_commitments import ColumnCommitments
from gpuprover.plonkish.gates import gates_of
from gpuprover.plonkish.key_writer import KeyWriter
from gpuprover.plonkish.outline import key_bytes, sizes_of
from gpuprover.systems.plonk.documents import COMMITMENTS, NAME
from gpuprover.systems.plonk.key import LAGRANGE, MORE_POWERS, POLYNOMIALS, POWERS, SECTIONS
from gpuprover.systems.plonk.prover import demand
from gpuprover.systems.system import KeyOutline, SetupResult

KEEP_ZEROS = True
"""Terms with the coefficient 0 cost gates."""
RESERVED = 0
"""Rows at the end of the domain that belong to no gate."""


def setup(r1cs: R1CS, ptau: Pathish | None, zkey: Pathish, backend: Backend) -> SetupResult:
    """Writes a circuit's proving key, from a prepared powers-of-tau file or else from a fresh secret.

    Raises:
        UnsupportedFile: the circuit has no gate, or needs a larger domain than keys can have.
        ProverError: as :class:`.Ceremony` and :func:`~gpuprover.formats.ptau.read_ptau` raise.
    """
    with backend.job.phase("gates"):
        gates = gates_of(r1cs, KEEP_ZEROS, backend)
    if not gates.count:
        raise UnsupportedFile(
            r1cs.source,
            "section 2 (constraints)",
            "neither constraints nor public signals, expected at least one: PLONK has no key without gates",
            role="circuit",
        )
    domain = shared.domain_for(r1cs, gates.count, RESERVED)
    powers = shared.powers_for(r1cs, ptau, domain.log_n, domain.size + MORE_POWERS, backend)
    columns = ColumnCommitments(powers, domain, backend)
    with write_binfile(zkey, "zkey", VERSION, len(SECTIONS)) as out:
        key = KeyWriter(out, SECTIONS, gates, domain, RESERVED, backend)
        key.circuit()
        key.polynomials(POLYNOMIALS, columns.add)
        with backend.job.phase("check commitments"):
            commitments = columns.finish()
        key.lagrange(LAGRANGE)
        key.powers(POWERS, powers)
        key.protocol(NAME)
        key.header([*(commitments[name] for name in COMMITMENTS), powers.tau_g2])
    return SetupResult(b"", domain.size, powers.warnings)


def outline(r1cs: R1CS, backend: Backend) -> KeyOutline:
    """The key that :func:`setup` would make of a circuit. Raises UnsupportedFile as there."""
    sizes, curve = sizes_of(r1cs, KEEP_ZEROS, RESERVED, backend), r1cs.curve
    points = 8 * (len(COMMITMENTS) * curve.g1_words + curve.g2_words)
    size = key_bytes(curve, sizes, len(SECTIONS), sizes.domain_size + MORE_POWERS, points)
    return KeyOutline(sizes.gates, size, demand(curve, sizes))


def memory_needed(r1cs: R1CS, ceremony: bool) -> int:
    """Bytes at the peak of a set-up: see :func:`gpuprover.plonkish.setup.memory_needed`."""
    return shared.memory_needed(r1cs, RESERVED, kept=0)
