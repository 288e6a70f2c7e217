"""Proofs of PLONK and FFLONK for keys with a known τ: of any statement, without a circuit, over BN254.

Whoever knows τ chooses all commitments and values, and then solves the verifier's equation for the openings.
So a proof that holds needs no key to prove with: any number of public signals, points at infinity where one
likes. Everything is as the protocols' papers and snarkjs's verifiers have it, in plain integers.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from gpuprover import reference
from gpuprover.curves import BN254
from gpuprover.formats.snarkjs_json import g1_to_json, g2_to_json
from gpuprover.keccak import keccak256

FR, r = BN254.scalar, BN254.r
K1, K2 = 2, 3
THIRD_ROOT = pow(31624, (r - 1) // 18, r)
"""A cube root of 1, snarkjs's w3."""
THIRD_ROOT_OF_TOP = 467799165886069610036046866799264026481344299079011762026774533774345988080
"""A cube root of the root of unity of order 2^28."""


class Statement(NamedTuple):
    """Documents: a verification key, public signals and a proof that holds."""

    key: dict[str, Any]
    public: list[str]
    proof: dict[str, Any]


class Logs(dict[str, int]):
    """Points by their discrete logarithms to the generator; 0 is infinity."""

    def point(self, name: str) -> Any:
        return reference.g1(BN254).scalar_mul(BN254.g1, self[name]) if self[name] else None

    def json(self, *names: str) -> dict[str, Any]:
        return {name: g1_to_json(self.point(name)) for name in names}

    def hashed(self, *names: str) -> list[int]:
        return [x for name in names for x in self.point(name) or (0, 0)]


def challenge(words: Sequence[int]) -> int:
    data = b"".join(word.to_bytes(32, "big") for word in words)
    return int.from_bytes(keccak256(data), "big") % r


def inverse(x: int) -> int:
    return pow(x, -1, r)


def lagrange(power: int, count: int, xi: int) -> list[int]:
    """The first ``count`` Lagrange polynomials at ξ."""
    n, omega = 1 << power, FR.root_of_unity(power)
    zh, roots = pow(xi, n, r) - 1, [1]
    for _ in range(1, count):
        roots.append(roots[-1] * omega % r)
    # One inversion for all.
    before = [1]
    for root in roots:
        before.append(before[-1] * n * (xi - root) % r)
    after, found = inverse(before[-1]), []
    for root, product in zip(reversed(roots), reversed(before[:-1]), strict=True):
        found.append(root * zh * after * product % r)
        after = after * n * (xi - root) % r
    return found[::-1]


def _header(protocol: str, n_public: int, power: int) -> dict[str, Any]:
    return {
        "protocol": protocol,
        "curve": BN254.snarkjs_name,
        "nPublic": n_public,
        "power": power,
        "k1": str(K1),
        "k2": str(K2),
    }


def _tau_g2(tau: int) -> Any:
    return g2_to_json(reference.g2(BN254).scalar_mul(BN254.g2, tau))


def plonk(n_public: int, power: int, rng: random.Random, infinite: Sequence[str] = ()) -> Statement:
    """A PLONK proof; the points called ``infinite`` are at infinity."""
    draw = lambda: rng.randrange(1, r)  # noqa: E731
    omega, tau, public = FR.root_of_unity(power), draw(), [draw() for _ in range(n_public)]
    key_points = ("Qm", "Ql", "Qr", "Qo", "Qc", "S1", "S2", "S3")
    free = ("A", "B", "C", "Z", "T1", "T2", "T3")
    logs = Logs({name: 0 if name in infinite else draw() for name in (*key_points, *free)})
    a, b, c, s1, s2, zw = evaluations = [draw() for _ in range(6)]
    beta = challenge([*logs.hashed(*key_points), *public, *logs.hashed("A", "B", "C")])
    gamma = challenge([beta])
    alpha = challenge([beta, gamma, *logs.hashed("Z")])
    xi = challenge([alpha, *logs.hashed("T1", "T2", "T3")])
    v = challenge([xi, *evaluations])
    xn = pow(xi, 1 << power, r)
    first, *others = lagrange(power, max(1, n_public), xi)
    inputs = -sum(x * y for x, y in zip(public, [first, *others], strict=False))
    e2 = alpha * (a + beta * xi + gamma) * (b + beta * K1 * xi + gamma) * (c + beta * K2 * xi + gamma)
    e3 = alpha * (a + beta * s1 + gamma) * (b + beta * s2 + gamma) * zw
    e4 = alpha**2 * first
    at_xi = (
        a * b * logs["Qm"] + a * logs["Ql"] + b * logs["Qr"] + c * logs["Qo"] + logs["Qc"]
        + (e2 + e4) * logs["Z"] - e3 * beta * logs["S3"]
        - (xn - 1) * (logs["T1"] + xn * logs["T2"] + xn * xn * logs["T3"])
        + inputs - e3 * (c + gamma) - e4
    )  # fmt: skip
    for i, (name, value) in enumerate(zip(("A", "B", "C", "S1", "S2"), evaluations, strict=False), 1):
        at_xi += v**i * (logs[name] - value)
    logs["Wxi"] = at_xi * inverse(tau - xi) % r
    logs["Wxiw"] = (logs["Z"] - zw) * inverse(tau - xi * omega) % r
    key = {**_header("plonk", n_public, power), **logs.json(*key_points)}
    names = ("eval_a", "eval_b", "eval_c", "eval_s1", "eval_s2", "eval_zw")
    proof = {
        **logs.json(*free, "Wxi", "Wxiw"),
        **dict(zip(names, map(str, evaluations), strict=True)),
        "protocol": "plonk",
        "curve": BN254.snarkjs_name,
    }
    return Statement({**key, "X_2": _tau_g2(tau), "w": str(omega)}, [str(x) for x in public], proof)


FFLONK_EVALUATIONS = "ql qr qm qo qc s1 s2 s3 a b c z zw t1w t2w".split()


def fflonk(n_public: int, power: int, rng: random.Random, infinite: Sequence[str] = ()) -> Statement:
    """An FFLONK proof; the points called ``infinite`` are at infinity."""
    draw = lambda: rng.randrange(1, r)  # noqa: E731
    omega, tau, public = FR.root_of_unity(power), draw(), [draw() for _ in range(n_public)]
    logs = Logs({name: 0 if name in infinite else draw() for name in ("C0", "C1", "C2", "W1")})
    values = {name: draw() for name in FFLONK_EVALUATIONS}
    beta = challenge([*logs.hashed("C0"), *public, *logs.hashed("C1")])
    gamma = challenge([beta])
    seed = challenge([gamma, *logs.hashed("C2")])
    alpha = challenge([seed, *values.values()])
    y = challenge([alpha, *logs.hashed("W1")])
    xi = pow(seed, 24, r)
    remainders = _remainders(values, public, power, beta, gamma, xi)
    r0, r1, r2 = (sum(x * y**i for i, x in enumerate(coefficients)) for coefficients in remainders)
    m0, m1, m2 = y**8 - xi, y**4 - xi, (y**3 - xi) * (y**3 - xi * omega)
    q1, q2 = alpha * m0 * inverse(m1), alpha**2 * m0 * inverse(m2)
    left = logs["C0"] + q1 * logs["C1"] + q2 * logs["C2"] - (r0 + q1 * r1 + q2 * r2) - m0 * logs["W1"]
    logs["W2"] = left * inverse(tau - y) % r
    wr = pow(THIRD_ROOT_OF_TOP, 1 << (28 - power), r)
    proof = {
        "polynomials": logs.json("C1", "C2", "W1", "W2"),
        "evaluations": {name: str(value) for name, value in values.items()}
        | {"inv": str(_inv(seed, y, wr, n_public, power))},
        "protocol": "fflonk",
        "curve": BN254.snarkjs_name,
    }
    roots = {"w": omega, "w3": THIRD_ROOT, "w4": FR.root_of_unity(2), "w8": FR.root_of_unity(3), "wr": wr}
    key = _header("fflonk", n_public, power) | {name: str(root) for name, root in roots.items()}
    return Statement(key | {"X_2": _tau_g2(tau)} | logs.json("C0"), [str(x) for x in public], proof)


def _remainders(
    values: Mapping[str, int], public: Sequence[int], power: int, beta: int, gamma: int, xi: int
) -> tuple[list[int], list[int], list[int]]:
    """R0, R1 and R2 as coefficients, lowest first."""
    ql, qr, qm, qo, qc, s1, s2, s3, a, b, c, z, zw, t1w, t2w = values.values()
    omega = FR.root_of_unity(power)
    zh = inverse(pow(xi, 1 << power, r) - 1)
    first, *others = lagrange(power, max(1, len(public)), xi)
    inputs = -sum(x * y for x, y in zip(public, [first, *others], strict=False))
    t0 = (ql * a + qr * b + qm * a * b + qo * c + qc + inputs) * zh % r
    t1 = first * (z - 1) * zh % r
    t2 = (a + beta * xi + gamma) * (b + beta * K1 * xi + gamma) * (c + beta * K2 * xi + gamma) * z
    t2 = (t2 - (a + beta * s1 + gamma) * (b + beta * s2 + gamma) * (c + beta * s3 + gamma) * zw) * zh % r
    pairs = ((z, zw), (t1, t1w), (t2, t2w))
    slopes = [(later - now) * inverse(xi * omega - xi) % r for now, later in pairs]
    starts = [(now - slope * xi) % r for (now, _), slope in zip(pairs, slopes, strict=True)]
    return [ql, qr, qo, qm, qc, s1, s2, s3], [a, b, c, t0], [*starts, *slopes]


def _inv(seed: int, y: int, wr: int, n_public: int, power: int) -> int:
    """One over the product of all that a verifier with Lagrange's interpolation divides by."""
    omega, n, xi = FR.root_of_unity(power), 1 << power, pow(seed, 24, r)
    later = xi * omega % r
    product = (pow(xi, n, r) - 1) * (y**4 - xi) * (y**3 - xi) * (y**3 - later) % r
    h0, h1, h2 = (pow(seed, exponent, r) for exponent in (3, 6, 8))
    h3 = h2 * wr % r
    for count, factor, start, root in (
        (8, 8 * h0**6, h0, FR.root_of_unity(3)),
        (4, 4 * h1**2, h1, FR.root_of_unity(2)),
        (3, 3 * h2 * (xi - later), h2, THIRD_ROOT),
        (3, 3 * h3 * (later - xi), h3, THIRD_ROOT),
    ):
        points = [start * pow(root, i, r) % r for i in range(count)]
        product *= math.prod(factor * points[(count - 1) * i % count] * (y - points[i]) for i in range(count))
        product %= r
    root = 1
    for _ in range(max(1, n_public)):
        product, root = product * n * (xi - root) % r, root * omega % r
    return inverse(product)
