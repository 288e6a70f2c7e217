"""The kernel of :mod:`gpuprover.cpu.poseidon`: the permutation of width 3 with S-box x^5, and its sponge.

Constants come from the caller: the rounds', three for each, then the matrix by rows, in Montgomery form.
"""

from __future__ import annotations

from gpuprover.cpu.kernels.field import bare_one, load, r_squared, store, times
from gpuprover.cpu.kernels.jit import inline, jit


@inline
def fifth_power(x):
    squared = times(x, x)
    return times(times(squared, squared), x)


@inline
def permute(F, x, y, z, constants, half_full, rounds, trace):
    """The permutation of (x, y, z), all in Montgomery form.

    Args:
        constants: the address of elements[3·rounds + 9].
        half_full: rounds with three S-boxes before, and after, those with one, which is z's.
        trace: 0, or the address of room for elements[3·rounds + 3]: the state before each round's S-boxes,
            with the round's constants added, and the last state.
    """
    matrix = 3 * rounds
    for i in range(rounds):
        x, y, z = (
            x + load(F, constants, 3 * i),
            y + load(F, constants, 3 * i + 1),
            z + load(F, constants, 3 * i + 2),
        )
        if trace != 0:
            store(trace, 3 * i, x)
            store(trace, 3 * i + 1, y)
            store(trace, 3 * i + 2, z)
        z = fifth_power(z)
        if i < half_full or i >= rounds - half_full:
            x, y = fifth_power(x), fifth_power(y)
        a = (
            times(load(F, constants, matrix), x)
            + times(load(F, constants, matrix + 1), y)
            + times(load(F, constants, matrix + 2), z)
        )
        b = (
            times(load(F, constants, matrix + 3), x)
            + times(load(F, constants, matrix + 4), y)
            + times(load(F, constants, matrix + 5), z)
        )
        c = (
            times(load(F, constants, matrix + 6), x)
            + times(load(F, constants, matrix + 7), y)
            + times(load(F, constants, matrix + 8), z)
        )
        x, y, z = a, b, c
    if trace != 0:
        store(trace, 3 * rounds, x)
        store(trace, 3 * rounds + 1, y)
        store(trace, 3 * rounds + 2, z)
    return x, y, z


@jit
def sponge(F, state, values, count, constants, half_full, rounds):
    """Absorbs values, two at a time, each pair followed by the permutation; all are canonical.

    Args:
        state: the address of elements[3], which change in place.
        values: the address of elements[count].
        constants, half_full, rounds: as :func:`permute` has them.
    """
    into, out = r_squared(F), bare_one(F)
    x, y, z = times(load(F, state, 0), into), times(load(F, state, 1), into), times(load(F, state, 2), into)
    for i in range(0, count, 2):
        x = x + times(load(F, values, i), into)
        if i + 1 < count:
            y = y + times(load(F, values, i + 1), into)
        x, y, z = permute(F, x, y, z, constants, half_full, rounds, 0)
    store(state, 0, times(x, out))
    store(state, 1, times(y, out))
    store(state, 2, times(z, out))
