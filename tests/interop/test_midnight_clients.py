"""Midnight's own clients before our proof server: what they send, what they take, what they try again."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from gpuprover import midnight_api, verify
from gpuprover.config import load_engine_settings
from gpuprover.engine import Prover
from gpuprover.midnight.envelopes import read_proof
from gpuprover.midnight.preimage import read_preimage, write_preimage
from gpuprover.midnight.srs import file_name
from gpuprover.systems.system import read_verification_key
from tests.interop.conftest import MidnightClients, OracleError, cached
from tests.service.midnight.test_routes import midnight, proof_server, until
from tests.support.midnight import SMALL, data_folder, public_inputs
from tests.support.service_stage import SECONDS, Stage, circuits, stage

HELLO = SMALL / "hello"
START_SECONDS = 250
"""Code may have to be compiled first."""


def files(stem: Path) -> dict[str, str]:
    return {
        suffix: str(stem.with_name(f"{stem.name}.{suffix}")) for suffix in ("prover", "verifier", "bzkir")
    }


@contextmanager
def proving(folder: Path, parameters: Path) -> Iterator[Stage]:
    """A proof server that proves in threads of this process."""
    settings = {"circuit_keys_path": circuits(folder), "max_workers": 0, "min_workers": 0}
    limits = {"verifier": "inline", "threads": 2, "memory_limit": 4096}
    prover = Prover(load_engine_settings({**settings, **limits}, {}))
    given = {"midnight": True, "midnight_parameters": parameters, "tenant_share": 1}
    with stage(folder, prover=prover, settings=given) as found:
        end = time.monotonic() + START_SECONDS
        while found.get("/ready").status_code != 200:
            assert time.monotonic() < end, found.get("/ready").text
            time.sleep(0.05)
        yield found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIDNIGHT_PP", str(SMALL))
        with proving(tmp_path_factory.mktemp("circuits"), SMALL) as found:
            yield found


def requests(found: Stage, route: str) -> int:
    """Those of a route so far."""
    lines = found.get("/metrics").text.splitlines()
    name = f'prover_http_requests_total{{route="{route}"'
    return int(sum(float(line.rsplit(" ", 1)[1]) for line in lines if line.startswith(name)))


def valid(reply: str, stem: Path, public: list[int]) -> bool:
    """Whether an answer is a proof of a circuit's."""
    document = {"protocol": "midnight", "curve": "bls12381", "proof": read_proof(bytes.fromhex(reply)).hex()}
    key = read_verification_key(stem.with_name(f"{stem.name}.verifier"))
    return verify(key, [str(value) for value in public], document)


def test_midnight_js(server: Stage, clients: MidnightClients) -> None:
    preimage, url = f"{HELLO}.preimage", server.url
    given: dict[str, Any] = {"preimage": preimage, "location": "hello", "keys": files(HELLO)}
    assert clients("check", url, "js", **given) == [None, None, None]
    public = public_inputs(HELLO.with_name("hello.pis.json"))
    assert valid(clients("prove", url, "js", **given), HELLO, public)
    bound = clients("prove", f"{url}/", "js", binding="77", **given)
    assert valid(bound, HELLO, [77, *public[1:]])
    assert not valid(bound, HELLO, public)


def test_midnight_js_does_not_try_again_what_fails(
    server: Stage, clients: MidnightClients, tmp_path: Path
) -> None:
    """Nor does it show why: the answer's body is dropped."""
    wrong = replace(read_preimage(HELLO.with_name("hello.preimage").read_bytes()), inputs=(5,))
    (tmp_path / "wrong.preimage").write_bytes(write_preimage(wrong))
    before = requests(server, "POST /prove")
    with pytest.raises(OracleError, match='code="400"'):
        clients(
            "prove",
            server.url,
            "js",
            preimage=str(tmp_path / "wrong.preimage"),
            location="hello",
            keys=files(HELLO),
        )
    assert requests(server, "POST /prove") == before + 1


def test_midnight_js_tries_again_what_may_succeed(server: Stage, clients: MidnightClients) -> None:
    """A second later: the service is not there yet."""
    before = requests(server, "POST /prove")
    server.service.draining = True
    timer = threading.Timer(0.7, setattr, (server.service, "draining", False))
    timer.start()
    try:
        proof = clients(
            "prove", server.url, "js", preimage=f"{HELLO}.preimage", location="hello", keys=files(HELLO)
        )
    finally:
        timer.join()
        server.service.draining = False
    assert valid(proof, HELLO, public_inputs(HELLO.with_name("hello.pis.json")))
    assert requests(server, "POST /prove") >= before + 2


def test_wallet_shows_the_reason(server: Stage, clients: MidnightClients) -> None:
    given = {"preimage": f"{HELLO}.preimage", "location": "hello"}
    with pytest.raises(OracleError, match=r"^Failed to prove: couldn't find key 'hello'"):
        clients("prove", server.url, "wallet", **given)
    with pytest.raises(OracleError, match=r"^Failed to check: couldn't find key 'hello'"):
        clients("check", server.url, "wallet", **given)


# Transactions ----------------------------------------------------------------------------------


def outputs(folder: Path, prover: bytes, verifier: bytes, circuit: bytes) -> None:
    """Keys of the ledger's circuit of outputs, where the proof server looks for them."""
    place = folder / "zswap" / "8"
    place.mkdir(parents=True)
    for suffix, content in (("prover", prover), ("verifier", verifier), ("bzkir", circuit)):
        (place / f"output.{suffix}").write_bytes(content)


@pytest.mark.parametrize("client", ["js", "wallet"])
def test_proofs_of_a_transaction_are_asked_for_at_once(
    tmp_path: Path, clients: MidnightClients, client: str
) -> None:
    """And the ledger tells that these are none: the keys are another circuit's, the proofs made up."""
    outputs(tmp_path, *(HELLO.with_name(f"hello.{s}").read_bytes() for s in ("prover", "verifier", "bzkir")))
    (tmp_path / file_name(6)).write_bytes((SMALL / file_name(6)).read_bytes())
    with (
        proof_server(tmp_path / "circuits", midnight_parameters=tmp_path) as found,
        ThreadPoolExecutor(1) as pool,
    ):
        midnight(found).slow = True
        proved = pool.submit(clients, "transaction", found.url, client, outputs=3)
        until(lambda: len(found.service.results.open) == 3)
        midnight(found).slow = False
        midnight(found).end_all()
        answer = proved.result(SECONDS)
    assert answer["asked"] == ["midnight/zswap/output"] * 3
    assert "Invalid proof" in answer["wellFormed"]


PUBLISHED = "d992b04f13c3fd432f55fb8bfe6466d87bc181f1a2acf233ec228030bbdd4ed8"
"""SHA-256 of the prover key of outputs, as it stands beside its circuit in the ledger's repository."""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_transaction_of_three_outputs(
    tmp_path: Path, clients: MidnightClients, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Keys from the circuit, as they are published; three proofs at once; the ledger accepts them."""
    circuit = (SMALL / "zswap_output.bzkir").read_bytes()

    def make(folder: Path) -> None:
        midnight_api.keygen(circuit, folder / "prover", folder / "verifier", parameters=data_folder())

    made = cached("midnight-zswap-output", circuit, make)
    prover, verifier = (made / "prover").read_bytes(), (made / "verifier").read_bytes()
    assert verifier == (SMALL / "zswap_output.verifier").read_bytes()
    assert sha256(prover).hexdigest() == PUBLISHED
    outputs(tmp_path, prover, verifier, circuit)
    (tmp_path / file_name(14)).symlink_to(data_folder() / file_name(14))
    monkeypatch.setenv("MIDNIGHT_PP", str(tmp_path))
    with proving(tmp_path / "circuits", tmp_path) as found:
        for client in ("js", "wallet"):
            answer = clients("transaction", found.url, client, outputs=3)
            assert answer == {"asked": ["midnight/zswap/output"] * 3, "wellFormed": True}
