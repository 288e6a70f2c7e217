"""Warnings that follow from the points of a key: sentences that its user has to read.

A file's own list of contributions is a claim of whoever wrote the file. The points cannot lie in that way: a
key whose δ, β or α is a known multiple of another point can be forged for by anyone who looks at it. Only
logarithms of 1 and −1 are looked for here, which costs some comparisons; ``groth16.consistency`` looks for
more. That a logarithm is found by nobody does not show that nobody knows it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from gpuprover.curves import CurveParams, Group
from gpuprover.limbs import Words, generator

NO_CONTRIBUTION = (
    "this key has no phase-2 contribution, whatever its file claims: delta is 1 or a known multiple of "
    "gamma, so anyone can forge proofs for it. Contribute before any use, e.g. with: "
    "snarkjs zkey contribute KEY.zkey FINAL.zkey"
)
INSECURE = (
    "this key has no phase-2 contribution and comes from a local secret: whoever made "
    "it can forge proofs for it. Use it for tests, demos and benchmarks only"
)
OWN_GAMMA = (
    "gamma is not 1, as snarkjs's ceremonies leave it: this key comes from a secret, and whoever made it "
    "can forge proofs for it unless the secret is gone. A key of gpuprover setup --insecure is such a one"
)
NO_FIRST_PHASE = (
    "alpha or beta of this key is 1 or a known multiple of gamma: its powers of tau are of a ceremony that "
    "nobody contributed to, and anyone can forge proofs for it. Make the key anew from another .ptau file"
)
DEPENDENT = (
    "two of alpha, beta and delta are the same in this key, which no ceremony gives: do not trust it, proofs "
    "for it may be forged"
)


def key_warnings(
    curve: CurveParams,
    *,
    alpha1: Words,
    beta2: Words,
    gamma2: Words,
    delta2: Words,
    ic: Words,
    beta1: Words | None = None,
    delta1: Words | None = None,
    contributions: int | None = None,
) -> tuple[str, ...]:
    """Sentences about a proving key or a verification key, the worst first; none for a key that looks sound.

    Args:
        alpha1, beta2, gamma2, delta2: points, uint64[words].
        ic: uint64[n_public + 1, g1_words], the constant's first.
        beta1, delta1: points that a verification key does not have.
        contributions: how many the file claims; None where it makes no claim.
    """
    known, first = NO_CONTRIBUTION, NO_FIRST_PHASE
    g1, g2 = generator(curve, Group.G1), generator(curve, Group.G2)
    pairs: tuple[tuple[str, Words | None, Words | None], ...] = (
        (known, delta2, gamma2),
        (known, delta2, g2),
        (known, delta1, g1),
        (first, beta2, gamma2),
        (first, beta2, g2),
        (first, beta1, g1),
        (first, alpha1, g1),
        (DEPENDENT, delta2, beta2),
        (DEPENDENT, delta1, beta1),
        (DEPENDENT, delta1, alpha1),
        (DEPENDENT, alpha1, beta1),
    )
    found = dict.fromkeys(sentence for sentence, p, q in pairs if same_up_to_sign(p, q))
    if NO_CONTRIBUTION not in found:
        if contributions == 0:
            found[INSECURE] = None
        elif not same_up_to_sign(gamma2, g2):
            found[OWN_GAMMA] = None
    xs = ic[1:, : curve.base.limbs]
    return (*found, *_loose_signals([x.tobytes() if x.any() else None for x in xs]))


def same_up_to_sign(p: Words | None, q: Words | None) -> bool:
    """Whether p = ±q for two points of one group, uint64[words]; infinity equals nothing."""
    if p is None or q is None or not p.any():
        return False
    half = len(p) // 2
    return bool((p[:half] == q[:half]).all())


def _loose_signals(signals: Sequence[Hashable]) -> tuple[str, ...]:
    """IC points that let a proof hold for other signals too; of x-coordinates, None for infinity."""
    if len(set(signals)) == len(signals) and None not in signals:
        return ()
    seen: dict[Hashable, int] = {}
    for i, x in enumerate(signals):
        if x is None:
            return (f"public signal {i} is not bound by this key, IC[{i + 1}] is infinity: any value passes",)
        if x in seen:
            return (
                f"public signals {seen[x]} and {i} are bound by the same point of this key, or its negative: "
                "a proof holds for other values of them, too",
            )
        seen[x] = i
    return ()
