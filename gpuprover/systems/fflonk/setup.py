"""FFLONK's set-up: from a constraint system to the proving key that ``snarkjs fflonk setup`` writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gpuprover.backend import Backend, Form, Vector
from gpuprover.curves import Group
from gpuprover.errors import UnsupportedFile
from gpuprover.formats.binfile import write_binfile
from gpuprover.formats.files import Pathish
from gpuprover.formats.r1cs import R1CS
from gpuprover.formats.zkey import VERSION
from gpuprover.limbs import Words, field_to_words
from gpuprover.plonkish import setup as shared
from gpuprover.plonkish.gates import gates_of
from gpuprover.plonkish.key_writer import KeyWriter, interleaved
from gpuprover.plonkish.outline import key_bytes, sizes_of
from gpuprover.plonkish.setup import K1, K2
from gpuprover.systems.fflonk.documents import CURVE, NAME, OTHER_CURVE, RESERVED, Constants
from gpuprover.systems.fflonk.key import (
    C0,
    LAGRANGE,
    MORE_POWERS,
    MULTIPLE,
    POLYNOMIALS,
    POWERS,
    SECTIONS,
)
from gpuprover.systems.fflonk.prover import demand
from gpuprover.systems.system import KeyOutline, SetupResult

KEEP_ZEROS = False
"""Terms with the coefficient 0 are left out."""
IN_C0 = ("Ql", "Qr", "Qo", "Qm", "Qc", "S1", "S2", "S3")
"""C0 is Σ X^i·P_i(X^8) of these polynomials P_0, …, P_7."""
_POWER = 3
"""A powers-of-tau file's power beyond the domain's."""
_W3 = 21888242871839275217838484774961031246154997185409878258781734729429964517155
"""31624^((r − 1)/18)."""
_WR = 467799165886069610036046866799264026481344299079011762026774533774345988080
"""A cube root of the primitive 2^28-th root of unity."""


def constants_for(power: int) -> Constants:
    """The numbers that snarkjs chooses for a domain of 2^power rows."""
    w4, w8 = (CURVE.scalar.root_of_unity(log) for log in (2, 3))
    wr = pow(_WR, 1 << (CURVE.scalar.two_adicity - power), CURVE.r)
    return Constants(K1, K2, _W3, w4, w8, wr)


def setup(r1cs: R1CS, ptau: Pathish | None, zkey: Pathish, backend: Backend) -> SetupResult:
    """Writes a circuit's proving key, from a prepared powers-of-tau file or else from a fresh secret.

    Raises:
        UnsupportedFile: the circuit is over another curve than BN254, or needs a larger domain than keys can
            have.
        ProverError: as :class:`.Ceremony` and :func:`~gpuprover.formats.ptau.read_ptau` raise.
    """
    _check_curve(r1cs)
    with backend.job.phase("gates"):
        gates = gates_of(r1cs, KEEP_ZEROS, backend)
    domain = shared.domain_for(r1cs, gates.count, RESERVED)
    count = MULTIPLE * domain.size + MORE_POWERS
    powers = shared.powers_for(r1cs, ptau, domain.log_n + _POWER, count, backend)
    coefficients: dict[str, Words] = {}

    def keep(name: str, v: Vector, _: Words) -> None:
        coefficients[name] = backend.download(v, Form.MONTGOMERY)

    with write_binfile(zkey, "zkey", VERSION, len(SECTIONS)) as out:
        key = KeyWriter(out, SECTIONS, gates, domain, RESERVED, backend)
        key.protocol(NAME)
        key.circuit()
        key.polynomials(POLYNOMIALS, keep)
        key.lagrange(LAGRANGE)
        key.powers(POWERS, powers)
        in_c0 = [coefficients[name] for name in IN_C0]
        with key.section(C0, sum(words.nbytes for words in in_c0)) as section:
            for block in interleaved(in_c0):
                section.write(block)
            c0 = commitment(in_c0, powers.commit, backend)
        roots = field_to_words(CURVE.scalar, constants_for(domain.log_n)[2:])
        key.header([roots, powers.tau_g2, c0])
    return SetupResult(b"", domain.size, powers.warnings)


def commitment(in_c0: Sequence[Words], commit: Callable[[Vector, int], Words], backend: Backend) -> Words:
    """[C0], uint64[g1_words], a block of coefficients at a time.

    Args:
        in_c0: coefficients of the polynomials :data:`IN_C0`, uint64[n, limbs], Montgomery.
        commit: (coefficients, index of the first one) -> their commitment.
    """
    sums, first = [], 0
    for block in interleaved(in_c0):
        v = backend.upload(block, Form.MONTGOMERY)
        sums.append(commit(v, first))
        backend.free(v)
        first += len(block)
        backend.job.check()
        backend.job.report(first / len(in_c0) / len(in_c0[0]))
    return backend.points.linear_combination(Group.G1, np.stack(sums), [1] * len(sums))


def outline(r1cs: R1CS, backend: Backend) -> KeyOutline:
    """The key that :func:`setup` would make of a circuit. Raises UnsupportedFile as there."""
    _check_curve(r1cs)
    sizes = sizes_of(r1cs, KEEP_ZEROS, RESERVED, backend)
    n, scalar = sizes.domain_size, CURVE.scalar.bytes
    rest = 4 * scalar + 8 * (CURVE.g1_words + CURVE.g2_words) + len(IN_C0) * n * scalar
    size = key_bytes(CURVE, sizes, len(SECTIONS), MULTIPLE * n + MORE_POWERS, rest)
    return KeyOutline(sizes.gates, size, demand(sizes))


def _check_curve(r1cs: R1CS) -> None:
    if r1cs.curve != CURVE:
        problem = f"a circuit over {r1cs.curve.name}: {OTHER_CURVE}"
        raise UnsupportedFile(r1cs.source, "section 1 (header)", problem, role="circuit")


def memory_needed(r1cs: R1CS, ceremony: bool) -> int:
    """Bytes at the peak of a set-up: see :func:`gpuprover.plonkish.setup.memory_needed`."""
    return shared.memory_needed(r1cs, RESERVED, kept=len(IN_C0))
