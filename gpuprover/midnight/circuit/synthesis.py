"""Circuits laid out as tables, and the size of table that a circuit gets."""

from __future__ import annotations

from hashlib import sha256

from gpuprover.caching import Cache
from gpuprover.errors import UnsupportedFile
from gpuprover.midnight.circuit.front_v2 import FrontV2
from gpuprover.midnight.circuit.front_v3 import FrontV3
from gpuprover.midnight.circuit.native import Native, NativeOfFour
from gpuprover.midnight.circuit.table import Layout, Table
from gpuprover.midnight.constraint_system import constraint_system
from gpuprover.midnight.ir.circuit import Circuit
from gpuprover.midnight.ir.files import architecture_of, write_circuit

SMALLEST_BITS, LARGEST_K = 8, 25
"""The fewest bits of a range table's largest entries that are tried, and the largest table there is."""
KEPT = 64
"""Layouts that are kept."""


def synthesise(circuit: Circuit, max_bit_len: int) -> Table:
    """A circuit laid out with limbs of at most so many bits.

    Raises:
        UnsupportedFile: an operation or a type that cannot be proven here.
    """
    table = Table(architecture_of(circuit), max_bit_len)
    if circuit.version[0] == 2:
        FrontV2(Native(table)).lay_out(circuit)
    else:
        FrontV3(NativeOfFour(table)).lay_out(circuit)
    return table


_layouts: Cache[tuple[bytes, int, int], Layout] = Cache(KEPT)


def layout_of(circuit: Circuit, k: int, max_bit_len: int) -> Layout:
    """The layout of a circuit on 2^k rows; kept.

    Raises:
        UnsupportedFile: an operation or a type that cannot be proven here, or too few rows.
    """
    name = sha256(write_circuit(circuit)).digest(), k, max_bit_len
    if (found := _layouts.get(name)) is not None:
        return found
    table = synthesise(circuit, max_bit_len)
    if smallest_k(table) > k:
        raise UnsupportedFile(circuit.path, "k", f"expected at least {smallest_k(table)}, found {k}")
    layout = table.layout(k)
    _layouts.put(name, layout, 1)
    return layout


def smallest_k(table: Table) -> int:
    """The logarithm of the rows that a table needs, blinding rows included."""
    needed = table.needed_rows + constraint_system(table.architecture).blinding + 1
    return (needed - 1).bit_length()


def choose(circuit: Circuit) -> tuple[int, int]:
    """(k, bits of the largest limbs): the smallest table, and the first that gives it, as keys have it.

    Raises:
        UnsupportedFile: see :func:`synthesise`, or the circuit needs more than 2^25 rows.
    """
    # In the newer line the bits follow from k, which is asked for one more.
    newer = circuit.version[0] != 2
    best: tuple[int, int] | None = None
    for bits in range(SMALLEST_BITS, LARGEST_K):
        table = synthesise(circuit, bits)
        k = smallest_k(table)
        if best is None or k < best[0]:
            best = k, bits
        if table.rows < 1 << (bits + 1):
            break
    assert best is not None
    if best[0] > LARGEST_K:
        raise UnsupportedFile(circuit.path, "k", f"expected at most {LARGEST_K}, found {best[0]}")
    return (best[0], best[0] - 1) if newer else best
