"""gpuprover.Client and AsyncClient against a service."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

import gpuprover
from gpuprover import AsyncClient, Client, ServiceError
from gpuprover.errors import (
    Aborted,
    CircuitNotFound,
    InvalidInput,
    QueueFull,
    ShuttingDown,
    Timeout,
    UnsatisfiedWitness,
)
from gpuprover.service import client as module
from gpuprover.witness_source import WitnessInputs
from tests.support.service_stage import CHAIN, SECONDS, SLOW, SUCCEED, WRONG, Stage, proof, stage

SIGNALS = json.loads(Path(f"{CHAIN}.public.json").read_text())
PROOF = json.loads(Path(f"{CHAIN}.proof.json").read_text())


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("circuits")) as found:
        yield found


def test_a_client_for_threads(shared: Stage, tmp_path: Path) -> None:
    with Client(shared.url) as client:
        found = client.prove("chain", SUCCEED)
        assert (found.state, found.circuit_id, found.error) == ("succeeded", "chain", None)
        assert (found.proof, found.public_signals) == (proof().proof, proof().public_signals)
        (tmp_path / "w.wtns").write_bytes(SUCCEED)
        assert client.prove("chain", tmp_path / "w.wtns", timeout=SECONDS, priority=-3).done
        assert client.prove("chain", {"inputs": {"a": 2**200}}).done
        witness = shared.executor.requests[-1].witness
        assert isinstance(witness, WitnessInputs)
        assert json.loads(witness.inputs) == {"a": 2**200}
        slow = client.submit("chain", SLOW)
        assert not slow.done
        shared.executor.end_all()
        assert client.get(slow.id, wait=SECONDS).state == "succeeded"
        cancelled = client.cancel(client.submit("chain", SLOW).id)
        assert (cancelled.state, type(cancelled.error)) == ("cancelled", Aborted)
        once = [client.submit("chain", SUCCEED, idempotency_key="k").id for _ in range(2)]
        assert once[0] == once[1]
        assert client.verify("chain", SIGNALS, PROOF)
        assert not client.verify("chain", [1, 2], PROOF)
        assert client.verify_batch("chain", [(SIGNALS, PROOF), ([1, 2], PROOF)] * 6) == [True, False] * 6
        assert client.verify_batch("chain", []) == []
        assert client.circuits() == ["chain", "checked"]
        assert client.circuit("chain")["public_signals"] == len(SIGNALS)
        assert client.verification_key("chain")["protocol"] == "groth16"
        assert client.load("chain")["loaded"]
        assert not client.unload("chain")["loaded"]
        assert client.status()["ready"]
        assert client.ready()


def test_a_client_for_tasks(shared: Stage) -> None:
    async def main() -> None:
        async with AsyncClient(shared.url) as client:
            found = await asyncio.gather(*(client.prove("chain", SUCCEED) for _ in range(20)))
            assert {one.state for one in found} == {"succeeded"}
            assert len({one.id for one in found}) == 20
            slow = await client.submit("chain", SLOW)
            shared.executor.end_all()
            assert (await client.get(slow.id, wait=SECONDS)).done
            assert (await client.cancel((await client.submit("chain", SLOW)).id)).state == "cancelled"
            assert await client.verify("chain", SIGNALS, PROOF)
            assert await client.verify_batch("chain", [(SIGNALS, PROOF)]) == [True]
            assert await client.circuits() == ["chain", "checked"]
            assert (await client.circuit("chain"))["id"] == "chain"
            assert (await client.verification_key("chain"))["curve"] == "bn128"
            assert (await client.load("chain"))["loaded"]
            assert not (await client.unload("chain"))["loaded"]
            assert (await client.status())["queued_jobs"] == 0
            assert await client.ready()
            with pytest.raises(UnsatisfiedWitness):
                await client.prove("chain", WRONG)

    asyncio.run(main())


def test_errors_are_those_of_the_library(shared: Stage) -> None:
    with Client(shared.url) as client:
        with pytest.raises(UnsatisfiedWitness, match="does not satisfy"):
            client.prove("chain", WRONG)
        with pytest.raises(CircuitNotFound):
            client.prove("mint", SUCCEED)
        with pytest.raises(ServiceError, match="NotFound"):
            client.prove("../x", SUCCEED)
        with pytest.raises(Timeout):
            client.prove("chain", SLOW, timeout=0.3)
        with pytest.raises(ServiceError, match="ProofNotFound") as caught:
            client.get("0" * 32)
        assert caught.value.status == 404
        with pytest.raises(ServiceError, match="IdempotencyConflict"):
            for witness in (SUCCEED, WRONG):
                client.submit("chain", witness, idempotency_key="conflict")
        with pytest.raises(InvalidInput, match="expected 1 to 255"):
            client.submit("chain", SUCCEED, idempotency_key="x" * 256)
        with pytest.raises(InvalidInput, match="cannot be sent"):
            client.submit("chain", SUCCEED, idempotency_key="\n")
    with Client("127.0.0.1:8080") as client, pytest.raises(InvalidInput, match="expected http://HOST:PORT"):
        client.status()
        with pytest.raises(InvalidInput, match="the service has the witness program"):
            client.prove("chain", {"inputs": {}, "wasm": "x.wasm"})
        with pytest.raises(InvalidInput, match=r"nothing.wtns: cannot read"):
            client.prove("chain", "nothing.wtns")


def test_a_token_is_sent(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text("a-token-of-24-characters")
    with stage(tmp_path / "c", settings={"tokens_file": tmp_path / "tokens"}) as found:
        with Client(found.url, token="a-token-of-24-characters") as client:
            assert client.prove("chain", SUCCEED).done
        with Client(found.url) as client:
            assert client.ready()
            with pytest.raises(ServiceError, match="Unauthorized") as caught:
                client.status()
            assert caught.value.status == 401


def test_a_full_queue_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with stage(tmp_path / "c", queue_limit=1) as found:
        found.executor.prompt = False
        with Client(found.url) as client, ThreadPoolExecutor(1) as pool:
            first = client.submit("chain", SUCCEED)
            with pytest.raises(QueueFull):
                client.submit("chain", SUCCEED, timeout=0.1)
            waiting = pool.submit(client.prove, "chain", SUCCEED)
            time.sleep(0.5)
            assert not waiting.done()
            found.executor.prompt = True
            found.executor.answer_load()
            assert waiting.result(SECONDS).state == "succeeded"
            assert client.get(first.id, wait=SECONDS).state == "succeeded"
            found.service.draining = True
            monkeypatch.setattr(module, "PATIENCE", 0.1)
            with pytest.raises(ShuttingDown):
                client.submit("chain", SUCCEED)


class Breaking(BaseHTTPRequestHandler):
    """Breaks the first connections; then says what :attr:`script` says."""

    seen: list[tuple[str, Any]]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.seen.append((self.headers["Idempotency-Key"], body))
        if len(self.seen) < 3:
            self.connection.close()
            return
        document = {
            "id": "x",
            "state": "succeeded",
            "circuit_id": "c",
            "proof": {},
            "public_signals": [],
            "device": "cpu",
            "timings": {},
            "error": None,
        }
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"<html>another server</html>")

    def log_message(self, *_: object) -> None:
        pass


def test_a_broken_connection_is_tried_again_under_the_same_key() -> None:
    class Handler(Breaking):
        seen: list[tuple[str, Any]] = []  # noqa: RUF012

    with HTTPServer(("127.0.0.1", 0), Handler) as other:
        thread = threading.Thread(target=other.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            with Client(f"http://127.0.0.1:{other.server_port}") as client:
                assert client.prove("c", SUCCEED).id == "x"
                assert len(Handler.seen) == 3
                assert len(set(Handler.seen)) == 1
                with pytest.raises(ServiceError, match="answers no JSON"):
                    client.status()
                with pytest.raises(ServiceError, match="answers no JSON"):
                    client.get("x")
        finally:
            other.shutdown()
            thread.join(SECONDS)
        port = other.server_port
    with Client(f"http://127.0.0.1:{port}") as client:
        assert not client.ready()
        with pytest.raises(ServiceError, match=r"no answer: ConnectError") as caught:
            client.status()
        assert caught.value.status is None
        with pytest.raises(ServiceError, match="no answer"):
            client.prove("c", SUCCEED, timeout=0.1)


def test_without_httpx_the_client_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    with pytest.raises(InvalidInput, match=r"pip install 'gpuprover\[client\]'"):
        Client()


def test_the_client_imports_nothing_heavy() -> None:
    program = (
        "import sys, gpuprover; gpuprover.Client, gpuprover.AsyncClient; "
        "print(*sorted({m.split('.')[0] for m in sys.modules} & "
        "{'httpx', 'fastapi', 'uvicorn', 'numpy', 'numba', 'pydantic', 'prometheus_client'}))"
    )
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == ""
    assert {"Client", "AsyncClient", "RemoteProof", "ServiceError"} <= set(gpuprover.__all__)
