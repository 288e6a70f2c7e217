"""Random constraint systems with witnesses that satisfy them."""

from __future__ import annotations

import random

from gpuprover.circuits import Circuit, CircuitBuilder, LinearCombination
from gpuprover.curves import CurveParams

LONGEST = 6
"""Terms of a combination, at most."""


def random_circuit(rng: random.Random, curve: CurveParams, constraints: int, public: int) -> Circuit:
    """So many constraints over combinations of all lengths: products, sums, constants in every place."""
    builder = CircuitBuilder(curve)
    wires = [builder.public_input(rng.randrange(curve.r)) for _ in range(public)]
    wires += [builder.private_input(rng.randrange(curve.r)) for _ in range(3)]

    def combination() -> LinearCombination:
        kind = rng.random()
        if kind < 0.15:
            return builder.constant(rng.choice([0, 1, rng.randrange(curve.r)]))
        found = builder.constant(rng.choice([0, 0, 5]))
        for wire in rng.choices(wires, k=rng.randint(1, LONGEST)):
            found += wire * rng.choice([1, -1, 2, rng.randrange(curve.r)])
        return found

    for _ in range(constraints):
        a, b, known = combination(), combination(), combination()
        wire = builder.wire(a.value * b.value - known.value)
        builder.constrain(a, b, known + wire)
        wires.append(wire)
    return builder.build()
