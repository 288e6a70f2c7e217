"""Midnight's own clients before our proof server: what they send, what they take, what they try again."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpuprover import verify
from gpuprover.config import load_engine_settings
from gpuprover.engine import Prover
from gpuprover.midnight.envelopes import read_proof
from gpuprover.midnight.preimage import read_preimage, write_preimage
from gpuprover.systems.system import read_verification_key
from tests.interop.conftest import MidnightClients, OracleError
from tests.service.midnight.test_routes import until
from tests.support.midnight import SMALL, public_inputs
from tests.support.service_stage import Stage, circuits, stage

HELLO = SMALL / "hello"


def files(stem: Path) -> dict[str, str]:
    return {
        suffix: str(stem.with_name(f"{stem.name}.{suffix}")) for suffix in ("prover", "verifier", "bzkir")
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A proof server that proves in threads of this process."""
    folder = circuits(tmp_path_factory.mktemp("circuits"))
    settings = {"circuit_keys_path": folder, "max_workers": 0, "min_workers": 0, "verifier": "inline"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MIDNIGHT_PP", str(SMALL))
        prover = Prover(load_engine_settings({**settings, "threads": 2, "memory_limit": 4096}, {}))
        given = {"midnight": True, "midnight_parameters": SMALL, "tenant_share": 1}
        with stage(folder, prover=prover, settings=given) as found:
            until(lambda: found.get("/ready").status_code == 200)
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
