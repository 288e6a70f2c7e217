"""Groth16 setup: from a constraint system to a proving key, streamed to disk.

For every wire s, with L_i the Lagrange polynomials of the domain:

    A_s = Σ a[i,s]·L_i(τ)     B_s, C_s alike
    K_s = (β·A_s + α·B_s + C_s)/γ for the constant and public wires (IC), /δ for the others
    H_i = Z(τ)/δ · (the Lagrange polynomial of the odd coset at its i-th point)(τ)

The domain has a row for every constraint and one for the constant and every public
signal, where A_s = 1: these make A's public part independent (Groth16, section 3.2,
eprint 2016/260; libsnark's remark on malleability). Two ways to the points:
:mod:`.from_ptau` combines those of a ceremony, :mod:`.from_secret` multiplies by a secret's powers.
"""

from __future__ import annotations

from gpuprover.backend import Backend
from gpuprover.formats.files import Pathish
from gpuprover.formats.ptau import read_ptau
from gpuprover.formats.r1cs import R1CS
from gpuprover.systems.groth16.consistency import log_domain
from gpuprover.systems.groth16.from_ptau import setup_from_ptau
from gpuprover.systems.groth16.from_secret import setup_insecure
from gpuprover.systems.groth16.key_writer import key_layout
from gpuprover.systems.groth16.prover import demand
from gpuprover.systems.system import KeyOutline, SetupResult

BLOCK_BYTES = 80 << 20
"""Memory of a block of points in G2 with its copies, and of a table of multiples."""


def setup(r1cs: R1CS, ptau: Pathish | None, zkey: Pathish, backend: Backend) -> SetupResult:
    """Writes a circuit's proving key, from a prepared powers-of-tau file or else from a fresh secret.

    Raises:
        ProverError: what :func:`.setup_from_ptau` and :func:`.setup_insecure` raise, and
            :func:`~gpuprover.formats.ptau.read_ptau`.
    """
    if ptau is None:
        return setup_insecure(r1cs, zkey, backend)
    return setup_from_ptau(r1cs, read_ptau(ptau), zkey, backend)


def outline(r1cs: R1CS, _: Backend) -> KeyOutline:
    """The key that :func:`setup` would make of a circuit.

    Raises:
        UnsupportedFile: the curve's scalar field has no domain of that size.
    """
    layout = key_layout(r1cs, log_domain(r1cs))
    sizes = layout.n_vars, layout.n_public, layout.domain_size, layout.n_coefficients
    return KeyOutline(r1cs.n_constraints, layout.file_bytes, demand(r1cs.curve, *sizes))


def memory_needed(r1cs: R1CS, ceremony: bool) -> int:
    """Bytes at the peak of a setup, the circuit included, mapped files not; a little more than measured.

    The key goes to disk in blocks. What stays is, for a ceremony, the places of every matrix's terms by
    wire; for a local secret the values of the polynomials at τ.
    """
    curve = r1cs.curve
    scalar, longest = curve.scalar.bytes, max(m.nnz for m in r1cs.matrices)
    n, wires = 1 << log_domain(r1cs), r1cs.n_wires
    if ceremony:
        # A position and a row a term, starts of wires; 32 bytes a term while a matrix is sorted.
        work = 8 * sum(m.nnz for m in r1cs.matrices) + 3 * 8 * wires + 32 * longest
    else:
        # The Lagrange polynomials, three vectors and a copy of the last; the rows of its terms.
        work = (n + 4 * wires) * scalar + 4 * longest
    return r1cs.nbytes + work + BLOCK_BYTES
