"""Poseidon as Midnight's circuits have it: width 3 over the scalar field of BLS12-381.

Source: Grassi, Khovratovich, Rechberger, Roy, Schofnegger, "Poseidon: A New Hash Function for Zero-Knowledge
Proof Systems", USENIX Security 2021, with S-box x^5, 8 full rounds around 60 partial ones, and the constants
of its Grain generator. Partial rounds raise the last element here, not the first.

The functions on integers are the specification; :func:`sponge` and :func:`poseidon_hash` are compiled.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

from gpuprover import devices
from gpuprover.curves import BLS12_381
from gpuprover.limbs import Words, field_to_words, ints_to_words, words_to_ints

R = BLS12_381.r
WIDTH, RATE = 3, 2
FULL_ROUNDS, PARTIAL_ROUNDS = 8, 60
ROUNDS = FULL_ROUNDS + PARTIAL_ROUNDS
FIRST_PARTIAL, LAST_PARTIAL = FULL_ROUNDS // 2, FULL_ROUNDS // 2 + PARTIAL_ROUNDS - 1
"""Rounds with one S-box, both included."""

State = tuple[int, int, int]
Matrix = tuple[State, State, State]


def _grain_numbers() -> Iterator[int]:
    """Numbers of 255 bits from the LFSR of 80 bits that the parameters seed."""
    fields = (
        (1, 2),
        (0, 4),
        (255, 12),
        (WIDTH, 12),
        (FULL_ROUNDS, 10),
        (PARTIAL_ROUNDS, 10),
        ((1 << 30) - 1, 30),
    )
    state = [int(bit) for value, size in fields for bit in f"{value:0{size}b}"]

    def step() -> int:
        bit = state[62] ^ state[51] ^ state[38] ^ state[23] ^ state[13] ^ state[0]
        state.append(bit)
        del state[0]
        return bit

    for _ in range(160):
        step()
    while True:
        number, size = 0, 0
        while size < 255:
            keep, bit = step(), step()
            if keep:
                number, size = 2 * number + bit, size + 1
        yield number


@lru_cache(maxsize=1)
def constants() -> tuple[tuple[State, ...], Matrix]:
    """(constants of each of the 68 rounds, MDS matrix by rows); row i makes element i of the new state."""
    numbers = _grain_numbers()
    drawn: list[int] = []
    while len(drawn) < WIDTH * ROUNDS:
        if (number := next(numbers)) < R:
            drawn.append(number)
    rounds = tuple((drawn[i], drawn[i + 1], drawn[i + 2]) for i in range(0, len(drawn), WIDTH))
    points: list[int] = []
    while len(set(points)) < 2 * WIDTH:
        points = [next(numbers) % R for _ in range(2 * WIDTH)]
    a, b, c = (
        (pow(x + points[3], -1, R), pow(x + points[4], -1, R), pow(x + points[5], -1, R))
        for x in points[:WIDTH]
    )
    return rounds, (a, b, c)


def permute(state: State) -> State:
    """The permutation of three elements below r."""
    rounds, (row_0, row_1, row_2) = constants()
    x, y, z = state
    for i, (a, b, c) in enumerate(rounds):
        x, y, z = x + a, y + b, pow(z + c, 5, R)
        if not FIRST_PARTIAL <= i <= LAST_PARTIAL:
            x, y = pow(x, 5, R), pow(y, 5, R)
        x, y, z = (
            (row_0[0] * x + row_0[1] * y + row_0[2] * z) % R,
            (row_1[0] * x + row_1[1] * y + row_1[2] * z) % R,
            (row_2[0] * x + row_2[1] * y + row_2[2] * z) % R,
        )
    return x, y, z


def absorbed(values: Sequence[int], capacity: int) -> State:
    """The state of the sponge after all values, two at a time, each pair followed by the permutation.

    Args:
        values: elements below r.
        capacity: the third element at the start: the number of values where that is fixed.
    """
    state = (0, 0, capacity)
    for start in range(0, len(values), RATE):
        x, y = state[0] + values[start], state[1]
        if start + 1 < len(values):
            y += values[start + 1]
        state = permute((x % R, y % R, state[2]))
    return state


@lru_cache(maxsize=1)
def constant_words() -> Words:
    """The rounds' constants, then the matrix by rows: Montgomery uint64[213, 4], only read."""
    rounds, matrix = constants()
    words = field_to_words(BLS12_381.scalar, [x for row in (*rounds, *matrix) for x in row])
    words.flags.writeable = False
    return words


def sponge(values: Sequence[int], capacity: int) -> State:
    """As :func:`absorbed`, by a kernel."""
    state = ints_to_words((0, 0, capacity), 4)
    words = ints_to_words(values, 4)
    x, y, z = words_to_ints(devices.poseidon_sponge(BLS12_381, state, words, constant_words(), FULL_ROUNDS))
    return x, y, z


def poseidon_hash(values: Sequence[int]) -> int:
    """The hash of elements below r: the first element of the sponge, with their number as capacity."""
    return sponge(values, len(values))[0]
