"""Circuits laid out as tables, and the size of table that a circuit gets."""

from __future__ import annotations

from hashlib import sha256

from gpuprover.caching import Cache
from gpuprover.errors import UnsupportedFile
from gpuprover.midnight.circuit.front_v2 import FrontV2
from gpuprover.midnight.circuit.front_v3 import FrontV3
from gpuprover.midnight.circuit.native import Native, NativeOfFour
from gpuprover.midnight.circuit.table import Layout, Table, TooManyRows
from gpuprover.midnight.constraint_system import constraint_system
from gpuprover.midnight.ir.circuit import Circuit
from gpuprover.midnight.ir.files import architecture_of, write_circuit

SMALLEST_BITS, LARGEST_K = 8, 25
"""The fewest bits of a range table's largest entries that are tried, and the largest table there is."""
KEPT_BYTES, KEPT_SIZES = 256 << 20, 4096
"""Bytes of layouts that are kept, and the number of sizes that are remembered."""


def synthesise(circuit: Circuit, max_bit_len: int, most_k: int = LARGEST_K, room: int = 0) -> Table:
    """A circuit laid out with limbs of at most so many bits, on at most 2^(most_k + room) rows.

    Args:
        most_k: what the message of a refusal says.
        room: for rows that longer limbs can save.

    Raises:
        UnsupportedFile: an operation or a type that cannot be proven here, or more rows.
    """
    table = Table(architecture_of(circuit), max_bit_len, 1 << most_k + room)
    try:
        if circuit.version[0] == 2:
            FrontV2(Native(table)).lay_out(circuit)
        else:
            FrontV3(NativeOfFour(table)).lay_out(circuit)
    except TooManyRows:
        raise _too_large(circuit, most_k) from None
    return table


def _too_large(circuit: Circuit, k: int) -> UnsupportedFile:
    return UnsupportedFile(circuit.path, "circuit", f"expected at most 2^{k} rows, found more")


_layouts: Cache[tuple[bytes, int, int], Layout] = Cache(KEPT_BYTES)
_sizes: Cache[bytes, tuple[int, int]] = Cache(KEPT_SIZES)


def layout_of(circuit: Circuit, k: int, max_bit_len: int) -> Layout:
    """The layout of a circuit on 2^k rows; kept.

    Raises:
        UnsupportedFile: an operation or a type that cannot be proven here, or too few rows.
    """
    return _layouts.get_or_make(
        (_digest(circuit), k, max_bit_len), lambda: _made(circuit, k, max_bit_len), lambda made: made.nbytes
    )


def _digest(circuit: Circuit) -> bytes:
    return sha256(write_circuit(circuit)).digest()


def _made(circuit: Circuit, k: int, max_bit_len: int) -> Layout:
    table = synthesise(circuit, max_bit_len, k)
    if smallest_k(table) > k:
        raise _too_large(circuit, k)
    return table.layout(k)


def smallest_k(table: Table) -> int:
    """The logarithm of the rows that a table needs, blinding rows included."""
    return _k_of(table, table.needed_rows)


def _k_of(table: Table, rows: int) -> int:
    return (rows + constraint_system(table.architecture).blinding).bit_length()


def choose(circuit: Circuit, most_k: int = LARGEST_K) -> tuple[int, int]:
    """(k, bits of the largest limbs): the smallest table, and the first that gives it, as keys have it.

    Raises:
        UnsupportedFile: see :func:`synthesise`, or the circuit needs more than 2^most_k rows.
    """
    found = _sizes.get_or_make(_digest(circuit), lambda: _chosen(circuit, most_k), lambda _: 1)
    if found[0] > most_k:
        raise _too_large(circuit, most_k)
    return found


def _chosen(circuit: Circuit, most_k: int) -> tuple[int, int]:
    best: tuple[int, int] | None = None
    for bits in range(SMALLEST_BITS, LARGEST_K):
        # Limbs of 24 bits instead of 8 take a third of the rows.
        table = synthesise(circuit, bits, most_k, room=2)
        k = smallest_k(table)
        if best is None or k < best[0]:
            best = k, bits
        # The second condition only saves time: no other length gives a smaller table.
        if table.rows < 1 << (bits + 1) or _k_of(table, table.least_rows) >= best[0]:
            break
    assert best is not None
    # In the newer line the bits follow from k.
    return best if circuit.version[0] == 2 else (best[0], best[0] - 1)
