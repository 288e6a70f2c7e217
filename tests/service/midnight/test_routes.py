"""Midnight's routes: bodies, statuses, permissions for pages, keys by digest, and what is never told."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpuprover.demand import MemoryPlan
from gpuprover.errors import (
    Aborted,
    DeviceError,
    InvalidInput,
    MalformedFile,
    OutOfMemory,
    ProofGenerationFailed,
    ProverError,
    Timeout,
    UnsatisfiedWitness,
)
from gpuprover.executor import Done, KeyInfo, ProofRequest
from gpuprover.formats.files import identity_of
from gpuprover.job import Progress
from gpuprover.midnight.encoding import tagged
from gpuprover.midnight.envelopes import (
    CheckRequest,
    KeyMaterial,
    ProveRequest,
    write_check_request,
    write_prove_request,
)
from gpuprover.midnight.preimage import Preimage, read_preimage
from gpuprover.midnight.srs import file_name, published_hashes
from gpuprover.proving import ProofResult
from gpuprover.service.midnight import proof_server as first_proof
from gpuprover.service.midnight.parameters import use_parameters
from gpuprover.service.midnight.proof_server import ProofServer
from gpuprover.version import VERSION
from gpuprover.witness_source import WitnessBytes
from tests.service.test_routes import until
from tests.support.engine_stage import FakeExecutor
from tests.support.midnight import SMALL
from tests.support.service_stage import SECONDS, Executor, Stage, stage
from tests.support.service_stage import proof as any_proof

PROOF = bytes(range(200))
HELLO = SMALL / "hello"


def content(stem: Path, suffix: str) -> bytes:
    return stem.with_name(f"{stem.name}.{suffix}").read_bytes()


def preimage_of(stem: Path) -> Preimage:
    return read_preimage(content(stem, "preimage"))


def material_of(stem: Path) -> KeyMaterial:
    return KeyMaterial(*(content(stem, suffix) for suffix in ("prover", "verifier", "bzkir")))


def prove_body(stem: Path = HELLO, **changes: Any) -> bytes:
    return write_prove_request(replace(ProveRequest(preimage_of(stem), material_of(stem), None), **changes))


def check_body(stem: Path = HELLO, **changes: Any) -> bytes:
    return write_check_request(replace(CheckRequest(preimage_of(stem), content(stem, "bzkir")), **changes))


class Midnight(Executor):
    """Makes the proof, or the error, that a test has set: at once, or while ``slow`` when a test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.slow = False
        made = {"protocol": "midnight", "curve": "bls12381", "proof": PROOF.hex()}
        self.outcome: ProofResult | ProverError = replace(any_proof(), proof=made)
        self.preimages: list[Preimage] = []

    def info(self, path: str) -> KeyInfo:
        return KeyInfo(
            path=path,
            identity=identity_of(path),
            protocol="groth16",
            curve="bn254",
            constraints=1 << 6,
            n_public=1,
            n_vars=1 << 6,
            host_parts=frozenset(),
            plans={"cpu": (MemoryPlan(0, 0, 1 << 20, 0),)},
            verification_key={},
            digest=Path(path).name,
            warnings=(),
        )

    def prove(
        self, request: ProofRequest, done: Done, progress: Callable[[Progress], None] | None = None
    ) -> None:
        assert isinstance(request.witness, WitnessBytes)
        with self.lock:
            FakeExecutor.prove(self, request, done, progress)
            self.preimages.append(read_preimage(request.witness.content))
            run = self.runs[-1]
        if not self.slow:
            self.end(run, self.outcome)

    def end_all(self) -> None:
        with self.lock:
            runs = list(self.runs)
        for run in runs:
            self.end(run, self.outcome)


@contextmanager
def proof_server(folder: Path, ready: bool = True, **settings: Any) -> Iterator[Stage]:
    """A service with Midnight's routes; its first proof was made, unless told otherwise."""
    executor = Midnight()
    executor.slow = not ready
    given = {"midnight": True, "midnight_parameters": SMALL, "tenant_share": 1, **settings}
    engine = {name: given.pop(name) for name in ("queue_limit", "job_timeout") if name in given}
    with stage(folder, executor=executor, settings=given, **engine) as found:
        if ready:
            until(lambda: found.get("/ready").status_code == 200)
            executor.preimages.clear()
        yield found


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with proof_server(tmp_path_factory.mktemp("circuits")) as found:
        yield found


@pytest.fixture
def server(shared: Stage) -> Iterator[Stage]:
    """Nothing waits or runs before a test and after it."""
    executor = midnight(shared)
    outcome = executor.outcome
    executor.preimages.clear()
    yield shared
    executor.slow, executor.outcome = False, outcome
    until(lambda: (executor.end_all(), not shared.service.results.open)[1])


def midnight(found: Stage) -> Midnight:
    assert isinstance(found.executor, Midnight)
    return found.executor


def server_of(found: Stage) -> ProofServer:
    server: ProofServer = found.app.state.midnight
    return server


def post(found: Stage, path: str, body: bytes, **headers: str) -> httpx.Response:
    return found.client.post(path, content=body, headers=headers)


def told(response: httpx.Response, status: int, *words: str) -> str:
    """The text of an error: one line, which has these words."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"].startswith("text/plain")
    assert "\n" not in response.text
    for word in words:
        assert word in response.text
    return response.text


# State -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/health"])
def test_health(server: Stage, path: str) -> None:
    answer = server.get(path)
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{1,9} \+00:00:00", answer.json()["timestamp"])
    assert list(answer.json()) == ["status", "timestamp"]


def test_browsers_get_the_page(server: Stage) -> None:
    answer = server.get("/", headers={"Accept": "text/html,application/xhtml+xml"})
    assert answer.headers["content-type"].startswith("text/html")
    assert "<!doctype html>" in answer.text.lower()


def test_texts(server: Stage) -> None:
    assert server.get("/version").text == VERSION
    assert server.get("/proof-versions").text == '["V2"]'


def test_wrong_methods_and_paths(server: Stage) -> None:
    """As the network's own server: 405 for its root and its health, 404 for everything else."""
    for path in ("/check", "/prove", "/k", "/prove-tx"):
        assert server.get(path).status_code == 404
    for path in ("/ready", "/version", "/proof-versions", "/fetch-params/5"):
        assert server.client.post(path).status_code == 404
    for path in ("/", "/health"):
        assert server.client.post(path).status_code == 405
    assert server.get("/nothing").status_code == 404


def test_parameters_that_are_there(server: Stage) -> None:
    """The largest in the folder have k = 9."""
    assert server.get("/fetch-params/9").text == "success"
    assert server.get("/fetch-params/7").text == "success"
    told(server.get("/fetch-params/10"), 404, "bls_midnight_2p10", published_hashes()["bls_midnight_2p10"])
    assert told(server.get("/fetch-params/26"), 400) == "k=26 out of range"
    assert server.get("/fetch-params/x").status_code == 404


def test_not_ready_before_the_first_proof(tmp_path: Path) -> None:
    with proof_server(tmp_path / "circuits", ready=False) as found:
        until(lambda: found.get("/ready").json()["jobsProcessing"])
        answer = found.get("/ready")
        assert answer.status_code == 503
        document = answer.json()
        assert document.pop("timestamp")
        assert document == {
            "status": "busy",
            "jobsProcessing": 1,
            "jobsPending": 0,
            "jobCapacity": 100,
            "problem": "the first proof is being made",
        }
        assert found.get("/health").status_code == 200
        midnight(found).end_all()
        until(lambda: found.get("/ready").status_code == 200)
        assert found.get("/ready").json()["status"] == "ok"
        assert midnight(found).preimages == [preimage_of(SMALL / "increment")]


def test_first_proof_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(first_proof, "TEST_AGAIN_SECONDS", 0.05)
    with proof_server(tmp_path / "circuits", ready=False) as found:
        until(lambda: midnight(found).runs)
        made = midnight(found).outcome
        midnight(found).outcome = ProofGenerationFailed("the worker was killed")
        midnight(found).end_all()
        until(lambda: "failed" in found.get("/ready").json()["problem"])
        midnight(found).outcome, midnight(found).slow = made, False
        midnight(found).end_all()
        until(lambda: found.get("/ready").status_code == 200)


def test_busy_while_the_queue_is_full(tmp_path: Path) -> None:
    with proof_server(tmp_path / "circuits", queue_limit=1) as found, ThreadPoolExecutor(4) as pool:
        midnight(found).slow = True
        running = [pool.submit(post, found, "/prove", prove_body()) for _ in range(65)]
        assert running
        until(lambda: found.get("/ready").status_code == 503)
        told(post(found, "/prove", prove_body()), 429)
        midnight(found).slow = False
        until(lambda: (midnight(found).end_all(), all(one.done() for one in running))[1])


# Checks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hello", "increment", "fallible", "compact_is_odd", "t8c"])
def test_check(server: Stage, name: str) -> None:
    answer = post(server, "/check", check_body(SMALL / name))
    assert answer.status_code == 200, answer.text
    _, reader = tagged(answer.content, ["vec(option(u64))"], "reply")
    skips = reader.vector(lambda field: reader.option(reader.compact, field), "skips")
    reader.end("reply")
    assert skips
    assert set(skips) == {None}


def test_check_reply_counts_what_is_skipped(server: Stage) -> None:
    expected = json.loads(content(SMALL / "compact_is_odd.off", "pis.json"))
    answer = post(
        server,
        "/check",
        write_check_request(
            CheckRequest(
                preimage_of(SMALL / "compact_is_odd.off"), content(SMALL / "compact_is_odd", "bzkir")
            )
        ),
    )
    _, reader = tagged(answer.content, ["vec(option(u64))"], "reply")
    skips = reader.vector(lambda field: reader.option(reader.compact, field), "skips")
    assert list(skips) == next(
        value
        for value in expected.values()
        if None in value or not all(map(isinstance, value, [str] * len(value)))
    )


def test_failed_check_says_where_but_no_values(server: Stage) -> None:
    preimage = replace(preimage_of(HELLO), inputs=(98765432123456789,))
    answer = post(server, "/check", check_body(preimage=preimage))
    text = told(answer, 400, "instruction")
    assert "98765432123456789" not in text
    assert (98765432123456789).to_bytes(8, "little").hex()[:8] not in text


def test_failed_check_with_values_where_they_are_wanted(tmp_path: Path) -> None:
    with proof_server(tmp_path / "circuits", midnight_values=True) as found:
        preimage = replace(preimage_of(HELLO), public_transcript_inputs=(5, 6, 7))
        text = told(post(found, "/check", check_body(preimage=preimage)), 400)
        assert "expected" in text


def test_checks_do_not_wait_behind_proofs(server: Stage) -> None:
    midnight(server).slow = True
    with ThreadPoolExecutor(1) as pool:
        proof = pool.submit(post, server, "/prove", prove_body())
        until(lambda: midnight(server).runs)
        assert post(server, "/check", check_body()).status_code == 200
        assert not proof.done()
        midnight(server).end_all()
        assert proof.result(SECONDS).status_code == 200


def test_bodies_that_are_none(server: Stage) -> None:
    for path, other in (("/check", prove_body()), ("/prove", check_body())):
        told(post(server, path, other), 400, "expected header tag", "got")
        told(post(server, path, b"nonsense"), 400, "expected header tag")
        told(post(server, path, b""), 400, "empty")
    told(post(server, "/check", check_body()[:-3]), 400)
    told(post(server, "/check", check_body() + b"x"), 400)
    told(post(server, "/check", check_body(circuit=b"midnight:ir-source[v9]:")), 400, "ir-source[v9]")


def test_unknown_location(server: Stage) -> None:
    preimage = replace(preimage_of(HELLO), key_location="midnight/zswap/other")
    told(post(server, "/check", check_body(preimage=preimage, circuit=None)), 400, "couldn't find key")
    told(post(server, "/prove", prove_body(preimage=preimage, material=None)), 400, "couldn't find key")
    preimage = replace(preimage, key_location="midnight/zswap/output")
    told(
        post(server, "/prove", prove_body(preimage=preimage, material=None)),
        400,
        "zswap/VERSION/output.prover",
    )


def test_keys_of_the_ledger_s_own_circuits(tmp_path: Path) -> None:
    """The newest version beside the parameters."""
    for version, circuit in ((8, "increment"), (10, "hello"), (9, "increment")):
        folder = tmp_path / "parameters" / "zswap" / str(version)
        folder.mkdir(parents=True)
        for suffix in ("prover", "verifier", "bzkir"):
            (folder / f"output.{suffix}").write_bytes(content(SMALL / circuit, suffix))
    (tmp_path / "parameters" / file_name(6)).write_bytes((SMALL / file_name(6)).read_bytes())
    with proof_server(tmp_path / "circuits", midnight_parameters=tmp_path / "parameters") as found:
        preimage = replace(preimage_of(HELLO), key_location="midnight/zswap/output")
        assert post(found, "/check", check_body(preimage=preimage, circuit=None)).status_code == 200
        assert post(found, "/prove", prove_body(preimage=preimage, material=None)).status_code == 200
        assert midnight(found).preimages == [preimage]


# Proofs ----------------------------------------------------------------------------------------


def test_proof(server: Stage) -> None:
    answer = post(server, "/prove", prove_body())
    assert answer.status_code == 200
    _, reader = tagged(answer.content, ["proof-versioned"], "reply")
    assert reader.byte("version") == 1
    assert bytes(reader.sized("proof")) == PROOF
    reader.end("reply")
    assert midnight(server).preimages == [preimage_of(HELLO)]


def test_binding_input_of_the_request(server: Stage) -> None:
    assert post(server, "/prove", prove_body(binding=77)).status_code == 200
    assert midnight(server).preimages == [replace(preimage_of(HELLO), binding_input=77)]


def test_keys_are_parsed_once(server: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    check = server_of(server).keys._check
    monkeypatch.setattr(
        server_of(server).keys, "_check", lambda material: (parsed.append(1), check(material))[1]
    )
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: post(server, "/prove", prove_body(SMALL / "fallible")), range(6)))
    assert {answer.status_code for answer in answers} == {200}
    assert len(parsed) == 1
    assert len({request.path for request in midnight(server).requests[-6:]}) == 1


def test_keys_of_several_circuits_are_refused(server: Stage) -> None:
    ours, others = material_of(HELLO), material_of(SMALL / "fallible")
    told(
        post(server, "/prove", prove_body(material=replace(ours, verifier=others.verifier))),
        400,
        "verifier key",
    )
    told(post(server, "/prove", prove_body(material=replace(ours, circuit=others.circuit))), 400, "circuit")
    broken = replace(ours, prover=ours.prover[:-100])
    told(post(server, "/prove", prove_body(material=broken)), 400)
    assert midnight(server).preimages == []


def test_forgotten_keys_stay_while_they_are_used(tmp_path: Path) -> None:
    with proof_server(tmp_path / "circuits", midnight_key_cache=0) as found, ThreadPoolExecutor(2) as pool:
        folder = server_of(found).keys.folder
        until(lambda: not list(folder.iterdir()))
        midnight(found).slow = True
        proof = pool.submit(post, found, "/prove", prove_body())
        until(lambda: midnight(found).runs)
        (path,) = {request.path for request in midnight(found).requests[-1:]}
        assert Path(path).read_bytes() == material_of(HELLO).prover
        midnight(found).end_all()
        assert proof.result(SECONDS).status_code == 200
        until(lambda: not list(folder.iterdir()))
    assert not folder.exists()


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (UnsatisfiedWitness("instruction 3, assert: failed direct assertion"), 400),
        (MalformedFile("/somewhere/x.prover", "header", "is damaged", role="key"), 500),
        (OutOfMemory("the proof does not fit the memory limit"), 507),
        (ProofGenerationFailed("what made it died three times"), 502),
        (Timeout("time limit reached after 600.0 s"), 504),
        (DeviceError("no device"), 503),
        (Aborted("the prover was closed"), 409),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else str(value),
)
def test_failures(server: Stage, error: ProverError, status: int) -> None:
    """Clients try again after a 500 or a 503, and after no other."""
    midnight(server).outcome = error
    text = told(post(server, "/prove", prove_body()), status)
    assert "/somewhere" not in text
    if status == 400:
        assert text == "instruction 3, assert: failed direct assertion"


def test_client_that_goes_away_cancels_its_proof(server: Stage) -> None:
    midnight(server).slow = True
    body = prove_body()
    host, port = server.client.base_url.host, server.client.base_url.port
    with socket.create_connection((host, port), timeout=SECONDS) as connection:
        head = f"POST /prove HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Length: {len(body)}\r\n\r\n"
        connection.sendall(head.encode() + body)
        until(lambda: midnight(server).runs)
    until(lambda: not midnight(server).runs)
    assert [record.state.value for record in server.service.results._ended.values()][-1] == "cancelled"


def test_waiting_proofs_hold_little_memory(server: Stage) -> None:
    midnight(server).slow = True
    body = prove_body()
    with ThreadPoolExecutor(3) as pool:
        proofs = [pool.submit(post, server, "/prove", body) for _ in range(3)]
        until(lambda: len(server.service.results.open) == 3)
        assert 0 < server.service.budget.used < len(body) / 4
        midnight(server).slow = False
        midnight(server).end_all()
        assert {proof.result(SECONDS).status_code for proof in proofs} == {200}
    until(lambda: server.service.budget.used == 0)


def test_no_proofs_while_it_drains(server: Stage) -> None:
    server.service.draining = True
    told(post(server, "/prove", prove_body()), 503, "shutting down")
    assert server.get("/ready").status_code == 503
    server.service.draining = False


def test_too_large_a_body(tmp_path: Path) -> None:
    with proof_server(tmp_path / "circuits", body_limit=1) as found:
        told(post(found, "/prove", prove_body() + bytes(2 << 20)), 413)


def test_deprecated_route(server: Stage) -> None:
    told(post(server, "/prove-tx", b"x"), 501, "deprecated")


# Access ----------------------------------------------------------------------------------------


def test_pages_of_any_site_may_ask(server: Stage) -> None:
    origin = {"Origin": "https://dapp.example"}
    answer = server.client.options(
        "/prove",
        headers={
            **origin,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type,authorization",
            "Access-Control-Request-Private-Network": "true",
        },
    )
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://dapp.example"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert answer.headers["access-control-allow-headers"] == "content-type,authorization"
    assert answer.headers["access-control-allow-private-network"] == "true"
    for given in (
        server.client.post("/check", content=check_body(), headers=origin),
        server.client.post("/check", content=b"nonsense", headers=origin),
        server.get("/ready", headers=origin),
        server.get("/fetch-params/5", headers=origin),
    ):
        assert given.headers["access-control-allow-origin"] == "https://dapp.example"
        assert "origin" in given.headers["vary"]
    assert "access-control-allow-origin" not in server.get("/v1/status", headers=origin).headers
    assert "access-control-allow-origin" not in server.get("/ready").headers


def test_tokens(tmp_path: Path) -> None:
    token = "a-token-of-24-characters"
    (tmp_path / "tokens").write_text(token)
    with proof_server(tmp_path / "circuits", tokens_file=tmp_path / "tokens") as found:
        for path in ("/check", "/prove", "/k"):
            told(post(found, path, check_body()), 401, "token")
        assert post(found, "/check", check_body(), Authorization=f"Bearer {token}").status_code == 200
        assert found.get("/health").status_code == 200


def test_metrics_have_the_routes(server: Stage) -> None:
    def counted(route: str, status: str) -> float:
        name = re.escape(f'prover_http_requests_total{{route="{route}",status="{status}"}}')
        found = re.search(rf"^{name} (\S+)$", server.get("/metrics").text, re.MULTILINE)
        assert found is not None
        return float(found[1])

    checked, refused = counted("POST /check", "2xx"), counted("POST /prove", "4xx")
    post(server, "/check", check_body())
    post(server, "/prove", b"nonsense")
    assert counted("POST /check", "2xx") == checked + 1
    assert counted("POST /prove", "4xx") == refused + 1
    assert counted("GET /fetch-params/{k}", "3xx") == 0


def test_logs_hold_no_values(server: Stage, caplog: pytest.LogCaptureFixture) -> None:
    secret = 98765432123456789
    preimage = replace(preimage_of(HELLO), inputs=(secret,))
    with caplog.at_level("DEBUG"):
        post(server, "/check", check_body(preimage=preimage))
        post(server, "/prove", prove_body(preimage=preimage))
    written = caplog.text + repr([record.__dict__ for record in caplog.records])
    assert str(secret) not in written
    assert secret.to_bytes(8, "little").hex() not in written


def test_ordinary_services_have_none_of_it(tmp_path: Path) -> None:
    with stage(tmp_path / "circuits") as found:
        assert found.client.post("/prove", content=prove_body()).status_code == 404
        assert found.get("/ready").status_code == 404


# Parameters ------------------------------------------------------------------------------------


def test_parameters_are_compared_with_the_published_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MIDNIGHT_PP", "elsewhere")
    assert use_parameters(SMALL) == (SMALL, [5, 6, 8, 9])
    assert os.environ["MIDNIGHT_PP"] == str(SMALL)
    with pytest.raises(InvalidInput) as caught:
        use_parameters(tmp_path)
    assert "bls_midnight_2p15" in caught.value.message
    assert published_hashes()["bls_midnight_2p15"] in caught.value.message
    changed = bytearray((SMALL / file_name(5)).read_bytes())
    changed[100] ^= 1
    (tmp_path / file_name(5)).write_bytes(changed)
    with pytest.raises(MalformedFile) as caught_too:
        use_parameters(tmp_path)
    assert str(tmp_path / file_name(5)) in caught_too.value.message
    assert published_hashes()[file_name(5)] in caught_too.value.message
