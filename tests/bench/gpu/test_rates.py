"""kernels/rates.cu and what measures with it: on the host, and as assembly."""

from __future__ import annotations

import random
import re
import subprocess
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from gpuprover.bench.gpu import rates

from gpuprover.cuda.cupy_device import CupyDevice
from gpuprover.cuda.device import Program
from gpuprover.cuda.source import sources
from gpuprover.curves import BN254, CurveParams, Group
from gpuprover.limbs import Words, ints_to_words, words_to_field, words_to_ints
from tests.support.emulator import EmulatedDevice
from tests.support.fake_cupy import Machine
from tests.support.nvrtc import _file, compile_cubin, disassemble
from tests.support.samples import point, to_words

pytestmark = pytest.mark.kernels_offline
THREADS = 3


@pytest.fixture(params=[False, True], ids=["forward", "reversed"])
def device(request: pytest.FixtureRequest) -> EmulatedDevice:
    return EmulatedDevice(reversed=request.param)


def launched(
    device: EmulatedDevice, curve: CurveParams, kernel: str, given: Words, words: int, *rest: int
) -> Words:
    """What THREADS threads write, ``words`` each."""
    address, out = device.allocate(given.nbytes), device.allocate(8 * words * THREADS)
    device.write(address, given)
    before, after = rest[:-1], rest[-1:]
    device.launch(Program(curve, rates.SOURCE), kernel, 1, THREADS, address, *before, out, *after)
    result = np.empty((THREADS, words), np.uint64)
    device.read(result, out)
    return result


def test_wide_multiplies_and_their_rows(
    device: EmulatedDevice, curve: CurveParams, rng: random.Random
) -> None:
    given = [rng.getrandbits(64) for _ in range(THREADS)]
    found = launched(device, curve, "wide_multiplies", ints_to_words(given, 1), 1, 5)
    for value, result in zip(given, found[:, 0].tolist(), strict=True):
        x, y = value % 2**32, value >> 32
        expected = 0
        for k in range(rates.CHAINS):
            begin = (x + k) % 2**32 | (y - k) % 2**32 << 32
            expected ^= (begin + 5 * x * y) % 2**64
        assert result == expected
    limbs, width = 2 * curve.base.limbs, 32
    given = [rng.getrandbits(width * limbs) for _ in range(THREADS)]
    found = launched(device, curve, "wide_rows", ints_to_words(given, limbs // 2), limbs // 2, 2)
    for value, result in zip(given, words_to_ints(found), strict=True):
        words = [value >> width * j & 0xFFFFFFFF for j in range(limbs)]
        expected = 0
        for k in range(rates.ROWS):
            sum_ = sum((k * limbs + j) << width * j for j in range(limbs))
            sum_ += 2 * rates.TURNS * sum(words[j] * words[k] << width * j for j in range(0, limbs, 2))
            expected ^= sum_ % 2 ** (width * limbs)
        assert result == expected


def test_doubles(device: EmulatedDevice) -> None:
    given = np.array([0.5, -0.25, 2.0])
    found = launched(device, BN254, "double_multiplies", given.view(np.uint64), 1, 3)[:, 0].view(np.float64)
    for x, result in zip(given, found, strict=True):
        assert result == sum(k * x**3 + x**3 + x**2 + x for k in range(rates.CHAINS))


def test_products_and_squares(device: EmulatedDevice, curve: CurveParams, rng: random.Random) -> None:
    for kernel, field, power in (
        ("products_fq", curve.base, 5),
        ("products_fr", curve.scalar, 5),
        ("squares_fq", curve.base, 16),
    ):
        values = [rng.randrange(field.modulus) for _ in range(THREADS)]
        words = ints_to_words(map(field.to_montgomery, values), field.limbs)
        found = launched(device, curve, kernel, words, field.limbs, 4)
        assert words_to_field(field, found) == [pow(v, power, field.modulus) for v in values]


def test_sums_of_points(device: EmulatedDevice, curve: CurveParams) -> None:
    words, count, rounds, p = curve.g1_words, 4, 6, curve.q
    table = to_words(curve, Group.G1, [point(curve, Group.G1, k) for k in (1, 2, 3, -4)])
    found = launched(device, curve, "additions_g1", table, 2 * words, count, rounds)
    for i, row in enumerate(found):
        log = sum((1, 2, 3, -4)[(i + r) % count] for r in range(rounds))
        x, y, zz, zzz = words_to_field(curve.base, row.reshape(-1, curve.base.limbs))
        assert point(curve, Group.G1, log) == (x * pow(zz, -1, p) % p, y * pow(zzz, -1, p) % p)


@pytest.mark.parametrize("record", [64, 128])
def test_gathers(device: EmulatedDevice, record: int, rng: random.Random) -> None:
    words, count = record // 8, 20
    records = np.array([[rng.getrandbits(64) for _ in range(words)] for _ in range(count)], np.uint64)
    order = np.array(rng.choices(range(count), k=11), np.uint32)
    start, index = device.allocate(records.nbytes), device.allocate(order.nbytes)
    out = device.allocate(16 * THREADS)
    device.write(start, records)
    device.write(index, order)
    program = Program(BN254, rates.SOURCE)
    device.launch(program, f"gather_{record}", 1, THREADS, start, index, out, len(order))
    found = np.empty((THREADS, 2), np.uint64)
    device.read(found, out)
    quads = records.reshape(count, -1, 2)
    for i in range(THREADS):
        assert (found[i] == np.bitwise_xor.reduce(quads[order[i::THREADS]].reshape(-1, 2), axis=0)).all()
    copy = device.allocate(records.nbytes)
    device.launch(program, "copy_quads", 2, THREADS, start, copy, records.nbytes // 16)
    moved = np.empty_like(records)
    device.read(moved, copy)
    assert (moved == records).all()


@pytest.mark.parametrize("name", rates.RATES)
def test_every_rate_has_a_row(name: str, tmp_path: Path) -> None:
    device = EmulatedDevice()
    try:
        row = rates.measure(device, BN254, name, 0.0, tmp_path)
    except rates.Skipped as reason:
        pytest.skip(str(reason))
    assert row["operation"] == f"rate {name}"
    assert row["per_second"] > 0
    assert row["wall"]["rounds"] == rates.REPEATS
    assert device.used == 0
    assert not list(tmp_path.iterdir())


def test_the_bus_is_measured_from_pinned_memory_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine()
    machine.install(monkeypatch)
    runtime, freed, copied = machine.runtime, [], set()
    runtime.freeHost, runtime.streamDestroy = freed.append, lambda stream: None
    runtime.streamSynchronize = lambda stream: sum(iter(lambda: runtime.streamQuery(stream), 0))
    copy = runtime.memcpyAsync
    runtime.memcpyAsync = lambda *words: copied.add(words[1:3]) or copy(*words)
    row = rates.measure(CupyDevice(0), BN254, "pinned host to device", 0.0, tmp_path)
    assert row["per_second"] > 0
    assert copied == {(freed[0], 1 << 14)}
    assert machine.pinned == 1 << 14  # no buffer of the device's
    assert (machine.used, len(freed)) == (0, 1)


def test_additions_are_measured_at_the_occupancy_of_sums(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the two kernels, whichever leaves room for fewer blocks of those that sums have."""
    asked = {}

    def resident(self: EmulatedDevice, program: Program, kernel: str, threads: int, shared: int = 0) -> int:
        asked[kernel] = threads, shared
        return 5 if kernel == "additions_g1" else 4

    monkeypatch.setattr(EmulatedDevice, "resident_blocks", resident)
    grids = []
    launch = EmulatedDevice.launch
    monkeypatch.setattr(
        EmulatedDevice,
        "launch",
        lambda self, *words, **o: grids.append(words[2]) or launch(self, *words, **o),
    )
    row = rates.measure(EmulatedDevice(), BN254, "additions G1", 0.0, tmp_path)
    assert asked == {"accumulate": (128, 128 * 128), "additions_g1": (128, 0)}
    assert set(grids) == {4 * 4}
    assert row["warps"] == 16


def test_a_rate_is_measured_for_long_enough(tmp_path: Path) -> None:
    bench = rates._Bench(EmulatedDevice(), BN254, 0.01, tmp_path)
    rounds: list[int] = []
    list(bench.runs(rounds.append, 1.0))
    assert rounds[0] < 1 << 10
    assert set(rounds[-rates.REPEATS :]) == {max(rounds)}
    assert max(rounds) >= 1 << 30  # a call that takes no time ends all the same


@pytest.mark.slow
def test_the_loops_hold_what_is_counted(tmp_path: Path) -> None:
    """The assembler has neither split a multiply-add nor taken it out of its loop."""
    built = compile_cubin(BN254, rates.SOURCE, sources(BN254)[rates.SOURCE], "sm_90")
    kernels, tool = disassemble(built.cubin, tmp_path), _file("nvidia-cuda-nvdisasm", "nvdisasm")

    def count(kernel: str, pattern: str) -> int:
        found: Counter[str] = kernels[kernel]
        return sum(n for name, n in found.items() if re.match(pattern, name))

    def rounds(kernel: str) -> dict[str, int]:
        """What the kernel's longest loop gives the multiplier, by opcode."""
        listing = subprocess.run(
            [tool, "-c", tmp_path / "kernels.cubin"], capture_output=True, text=True
        ).stdout
        text = listing.split(f".section\t.text.{kernel},")[1].split(".section\t")[0]
        labels = {m[1]: m.start() for m in re.finditer(r"^(\.L_x_\d+):", text, re.MULTILINE)}
        loops = [
            text[labels[m[1]] : m.start()]
            for m in re.finditer(r"BRA `\((\.L_x_\d+)\)", text)
            if labels.get(m[1], m.start()) < m.start()
        ]
        found = re.findall(
            r"\b(IMAD(?:\.WIDE|\.MOV|\.X|\.IADD|\.SHL|\.HI)?|HFMA2|FFMA)\b", max(loops, key=len)
        )
        return dict(Counter(found))

    # Loops of four rounds, one of one round for the rest, and an address.
    assert count("wide_multiplies", "IMAD.WIDE") >= 5 * rates.CHAINS
    assert count("double_multiplies", "DFMA") >= 5 * rates.CHAINS
    assert count("wide_rows", "IMAD.WIDE") == rates.TURNS * rates.ROWS * 4 + 1
    # What rows are held against is the multiplier alone: nothing else of a round takes it.
    assert rounds("wide_rows") == {"IMAD.WIDE": rates.TURNS * rates.ROWS * 4}
    assert count("gather_64", "LDG.E.128") >= 4
    assert count("products_fq", "IMAD.WIDE") <= 130
    for name, kernel in built.kernels.items():
        assert kernel.spilled == 0, name
