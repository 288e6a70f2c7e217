"""Kept proofs, and proofs in the making that several jobs share."""

from __future__ import annotations

from dataclasses import replace

from gpuprover.engine.sharing import SharedProofs, proof_name
from gpuprover.memory import MIB
from tests.support.engine_stage import FakeExecutor, result


def shared(capacity: int = MIB) -> SharedProofs[str]:
    return SharedProofs(capacity, 60.0, lambda: 0.0)


def test_the_first_makes_a_proof_and_the_others_share_it() -> None:
    proofs = shared()
    assert not proofs.join(b"x", "maker")
    assert not proofs.join(b"y", "other maker")
    assert [proofs.join(b"x", who) for who in ("1", "2", "3")] == [True] * 3
    assert (proofs.makes("maker"), proofs.waits("maker")) == (True, False)
    assert (proofs.makes("1"), proofs.waits("1")) == (False, True)
    proofs.leave("2")
    proofs.leave("2")
    proofs.leave("maker")
    assert not proofs.waits("2")
    assert proofs.end("1") == [], "it makes nothing"
    assert proofs.end("maker") == ["1", "3"]
    assert (proofs.waits("1"), proofs.makes("maker"), len(proofs)) == (False, False, 1)
    assert not proofs.join(b"x", "3"), "it makes the proof now"
    assert proofs.join(b"x", "1")


def test_whoever_gets_a_kept_proof_gets_a_copy() -> None:
    proofs, made = shared(), result()
    assert proofs.find(b"x") is None
    proofs.keep(b"x", made)
    made.public_signals.append("changed by its owner")
    first = proofs.find(b"x")
    assert first is not None
    first.proof["number"] = 7
    assert proofs.find(b"x") == result()
    assert proofs.kept.statistics.entries == 1


def test_without_capacity_nothing_is_kept() -> None:
    proofs = shared(0)
    proofs.keep(b"x", result())
    assert proofs.find(b"x") is None


def test_a_name_is_of_key_file_and_witness(tmp_path: object) -> None:
    from pathlib import Path

    path = Path(str(tmp_path)) / "a.zkey"
    path.write_text("key")
    info = FakeExecutor().info(str(path))
    names = {
        proof_name(info, b"witness"),
        proof_name(info, b"another"),
        proof_name(replace(info, digest="another key"), b"witness"),
        proof_name(replace(info, identity=info.identity._replace(modified=0)), b"witness"),
    }
    assert len(names) == 4
    assert proof_name(info, b"witness") in names
