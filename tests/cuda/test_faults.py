"""What goes wrong below the CUDA backend: the same proof, or a typed exception, and nothing left behind."""

from __future__ import annotations

import gc
import random
import threading
from typing import Any

import pytest

import gpuprover
from gpuprover.cuda.residency import Residency
from gpuprover.curves import BLS12_381, BN254, CurveParams
from gpuprover.job import Job
from gpuprover.systems.groth16.key import ProvingKey
from tests.support.cuda_proofs import chain_key, chain_witness, device_of, expected, opened, prove
from tests.support.emulator import Faults

pytestmark = [pytest.mark.kernels_offline, pytest.mark.usefixtures("quick_sums")]


# What the backend does about a fault has nothing to do with the curve; its kernels take twice the time.
@pytest.fixture(params=[BN254, pytest.param(BLS12_381, marks=pytest.mark.slow)], ids=lambda c: c.name)
def curve(request: pytest.FixtureRequest) -> CurveParams:
    return request.param


@pytest.fixture(params=[4, pytest.param(1 << 30, marks=pytest.mark.slow)], ids=["some", "all"])
def samples(request: pytest.FixtureRequest) -> int:
    """At how many places of a proof something goes wrong."""
    return request.param


class After:
    """An event that is set once it has been asked ``n`` times."""

    def __init__(self, n: int) -> None:
        self.left = n

    def is_set(self) -> bool:
        self.left -= 1
        return self.left < 0


def clean(gpu: Residency) -> bool:
    """Whether nothing is held but what keys keep; all of that can go."""
    gpu.pool.collect()
    pinned = [entry for entry in gpu.residents.all() if entry.pins]
    kept = sum(entry.size for entry in gpu.residents.all())
    left = gpu.pool.used - kept
    gpu.residents.clear()
    return not pinned and left == 0 and gpu.pool.used == 0 and device_of(gpu).used == 0


def attempt(faults: Faults, curve: CurveParams, proofs: int = 2) -> tuple[str, Residency, ProvingKey]:
    """The first exception's kind, or "proof" where all proofs are right."""
    gpu, key = opened(faults=faults), chain_key(curve)
    outcome = "proof"
    for _ in range(proofs):
        try:
            assert prove(key, chain_witness(curve), gpu) == expected(curve)
        except gpuprover.ProverError as error:
            outcome = error.kind
            break
    gc.collect()
    return outcome, gpu, key


def counts(curve: CurveParams) -> tuple[int, int, int]:
    """Allocations, launches and calls of two proofs."""
    _, gpu, _ = attempt(Faults(), curve)
    device = device_of(gpu)
    return device.allocations, device.launches, device.calls


def sample(rng: random.Random, total: int, samples: int) -> list[int]:
    return sorted({1, 2, total, *rng.sample(range(1, total + 1), min(total, samples))})


def test_no_memory(curve: CurveParams) -> None:
    """Every allocation: something is given up, or the proof is. The next one succeeds."""
    total, _, _ = counts(curve)
    outcomes = set()
    for n in range(1, total + 1):
        outcome, gpu, key = attempt(Faults(allocation=n), curve)
        outcomes.add(outcome)
        assert prove(key, chain_witness(curve), gpu) == expected(curve)
        assert gpu.leaked == 0
        assert clean(gpu), n
    assert outcomes <= {"proof", "OutOfMemory"}
    assert "proof" in outcomes


def test_a_launch_fails(curve: CurveParams, samples: int, rng: random.Random) -> None:
    _, total, _ = counts(curve)
    for n in sample(rng, total, samples):
        outcome, gpu, key = attempt(Faults(launch=n), curve)
        assert outcome == "DeviceError", n
        assert clean(gpu), n
        with pytest.raises(gpuprover.DeviceError):
            prove(key, chain_witness(curve), gpu)
        assert clean(gpu), n


def test_a_launch_is_refused(rng: random.Random) -> None:
    """The first proof fails, or the second; the next ones are right, of this key and of others."""
    curve = BN254
    _, total, _ = counts(curve)
    for n in (rng.randint(1, total // 2), rng.randint(total // 2, total)):
        outcome, gpu, key = attempt(Faults(refused=n), curve)
        assert outcome == "DeviceError", n
        for one in (key, chain_key(curve)):
            assert prove(one, chain_witness(curve), gpu) == expected(curve)
        assert gpu.leaked == 0
        del one, key
        gc.collect()
        assert clean(gpu), n


def test_the_device_is_lost(curve: CurveParams, samples: int, rng: random.Random) -> None:
    before: list[int] = []
    end = Residency.end

    def ended(gpu: Residency, *arguments: Any) -> None:
        before.append(device_of(gpu).calls)
        end(gpu, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Residency, "end", ended)
        _, _, total = counts(curve)
    key = None
    for n in [0, before[-1] - 1, before[-1], *sample(rng, total, samples)]:
        outcome, gpu, key = attempt(Faults(lost=n), curve)
        # The last calls wipe memory: with its sums read, a proof stands.
        assert outcome == ("DeviceError" if n < before[-1] else "proof"), n
        assert clean(gpu) or n >= total, n
    # A key that was on a lost device serves on another one.
    assert key is not None
    assert prove(key, chain_witness(curve), opened()) == expected(curve)


def test_the_device_is_lost_under_load(rng: random.Random) -> None:
    """Of proofs in several threads each is right or fails as it should, and none leaves anything behind."""
    curve = BN254
    total = 3 * counts(curve)[2]
    for n in sorted(rng.sample(range(1, total), 2)):
        gpu = opened(faults=Faults(lost=n))
        keys = [chain_key(curve) for _ in range(2)]
        outcomes: list[object] = []

        def run(key: ProvingKey, gpu: Residency = gpu, outcomes: list[object] = outcomes) -> None:
            for _ in range(3):
                try:
                    outcomes.append(prove(key, chain_witness(curve), gpu) == expected(curve))
                except gpuprover.DeviceError:
                    outcomes.append("DeviceError")
                except BaseException as error:
                    outcomes.append(error)

        threads = [threading.Thread(target=run, args=(keys[i % 2],)) for i in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(outcomes) == 9
        assert set(outcomes) <= {True, "DeviceError"}, outcomes
        assert "DeviceError" in outcomes
        with pytest.raises(gpuprover.DeviceError):
            prove(keys[0], chain_witness(curve), gpu)
        assert clean(gpu), n


def test_cancelled_at_every_moment(rng: random.Random) -> None:
    curve, total = BN254, 0
    gpu, key = opened(), chain_key(BN254)
    while True:
        try:
            proof = prove(key, chain_witness(curve), gpu, Job(threads=1, cancel=After(total)))
        except gpuprover.Cancelled:
            total += 1
            gpu.pool.collect()
            assert gpu.leaked == 0
            assert gpu.pool.used == sum(entry.size for entry in gpu.residents.all())
            assert all(entry.pins == 0 for entry in gpu.residents.all())
            continue
        break
    assert proof == expected(curve)
    assert total > 10
    assert clean(gpu)
