"""``gpuprover midnight serve`` and ``healthcheck``: flags and variables; a service as a process."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpuprover.cli import midnight_serve
from gpuprover.cli.context import Context
from gpuprover.config import EngineSettings, ServiceSettings
from gpuprover.midnight.envelopes import read_proof
from gpuprover.midnight.srs import published_hashes
from tests.service.midnight.test_routes import check_body, prove_body
from tests.service.test_server import ended, running
from tests.support.midnight import SMALL
from tests.support.running import Run

START_SECONDS = 120
"""A worker may compile first."""


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[tuple[EngineSettings, ServiceSettings]]:
    """What is served, in place of serving it."""
    found: list[tuple[EngineSettings, ServiceSettings]] = []

    def serve(engine: EngineSettings, settings: ServiceSettings, context: Context) -> int:
        assert engine.circuit_keys_path.is_dir()
        found.append((engine, settings))
        return 0

    monkeypatch.setattr("gpuprover.cli.serve.serve", serve)
    for name in ("PORT", "JOB_CAPACITY", "NUM_WORKERS", "JOB_TIMEOUT", "VERBOSE", "NO_FETCH_PARAMS"):
        monkeypatch.delenv(midnight_serve.PREFIX + name, raising=False)
    monkeypatch.delenv("PROVER_LOG_LEVEL", raising=False)
    monkeypatch.setenv("PROVER_LOG_LEVEL", "")
    return found


def started(run: Run, *arguments: str) -> None:
    assert run("midnight", "serve", *arguments).code == 0


def test_defaults_are_the_network_s(run: Run, served: list[Any], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    started(run)
    ((engine, settings),) = served
    assert (settings.host, settings.port, settings.midnight) == ("127.0.0.1", 6300, True)
    assert (engine.job_timeout, engine.queue_limit) == (600, midnight_serve.UNLIMITED)
    assert settings.tenant_share == 1


def test_flags(run: Run, served: list[Any]) -> None:
    arguments = ["--job-capacity", "7", "--num-workers", "3", "--job-timeout", "20.5", "--no-fetch-params"]
    started(run, "-p", "6301", *arguments, "--midnight-parameters", str(SMALL))
    ((engine, settings),) = served
    assert (settings.port, settings.midnight_parameters) == (6301, SMALL)
    assert (engine.queue_limit, engine.max_workers, engine.job_timeout) == (7, 3, 20.5)


def test_variables(run: Run, served: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """The network's count where there is no flag; ours, where they are set, before its defaults."""
    for name, value in (("PORT", "6302"), ("JOB_CAPACITY", "0"), ("NUM_WORKERS", "1"), ("JOB_TIMEOUT", "9")):
        monkeypatch.setenv(midnight_serve.PREFIX + name, value)
    started(run, "--num-workers", "2")
    for name in ("PORT", "JOB_CAPACITY", "JOB_TIMEOUT"):
        monkeypatch.delenv(midnight_serve.PREFIX + name)
    monkeypatch.setenv("PROVER_PORT", "6303")
    monkeypatch.setenv("PROVER_QUEUE_LIMIT", "5")
    started(run)
    (first, its), (second, others) = served
    assert (its.port, first.queue_limit, first.max_workers) == (6302, midnight_serve.UNLIMITED, 2)
    assert first.job_timeout == 9
    assert (others.port, second.queue_limit, second.max_workers) == (6303, 5, 1)


@pytest.mark.parametrize(
    ("name", "value"), [("JOB_CAPACITY", "many"), ("NUM_WORKERS", "0"), ("JOB_TIMEOUT", "-1"), ("PORT", "x")]
)
def test_values_that_are_none(
    run: Run, served: list[Any], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(midnight_serve.PREFIX + name, value)
    ran = run("midnight", "serve")
    assert ran.code == 2
    assert served == []
    assert len(ran.err.splitlines()) == 1


def test_without_parameters_it_does_not_listen(run: Run, tmp_path: Path) -> None:
    ran = run("midnight", "serve", "--port", "0", "--midnight-parameters", str(tmp_path))
    assert ran.code == 2
    assert "bls_midnight_2p15" in ran.err
    assert published_hashes()["bls_midnight_2p15"] in ran.err
    assert str(tmp_path) in ran.err


@pytest.fixture
def answering() -> Iterator[dict[str, Any]]:
    """A server on a free port that answers with the status in ``status``."""
    state: dict[str, Any] = {"status": 200, "asked": []}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state["asked"].append(self.path)
            self.send_response(state["status"])
            self.end_headers()
            self.wfile.write(b'{"status":"busy"}')

        def log_message(self, *arguments: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    state["port"] = server.server_port
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def test_healthcheck(run: Run, answering: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(f"{midnight_serve.PREFIX}PORT", str(answering["port"]))
    assert run("midnight", "healthcheck").code == 0
    answering["status"] = 503
    ran = run("midnight", "healthcheck")
    assert ran.code == 3
    assert "503" in ran.out
    assert answering["asked"] == ["/ready", "/ready"]
    url = f"http://127.0.0.1:{answering['port']}/other"
    assert run("midnight", "healthcheck", "--json", "--url", url).answer == {"ready": False, "status": 503}
    assert run("midnight", "healthcheck", "--url", "file:///etc/passwd").code == 2


@pytest.mark.slow
def test_it_proves_and_ends(tmp_path: Path) -> None:
    command = ("-m", "gpuprover", "midnight", "serve", "--json", "--threads", "2", "--port", "0")
    environment = {"MIDNIGHT_PP": str(SMALL), "TMPDIR": str(tmp_path)}
    with running(*command, **environment) as (process, line):
        url = json.loads(line)["url"]
        with httpx.Client(base_url=url, timeout=START_SECONDS, trust_env=False) as client:
            end = time.monotonic() + START_SECONDS
            while client.get("/ready").status_code != 200:
                assert process.poll() is None
                assert time.monotonic() < end, client.get("/ready").text
                time.sleep(0.1)
            assert client.post("/check", content=check_body()).status_code == 200
            answer = client.post("/prove", content=prove_body())
            assert answer.status_code == 200, answer.text
            assert len(read_proof(answer.content)) == 2912
        process.send_signal(signal.SIGTERM)
        code, errors = ended(process)
    assert code == 0, errors
    assert list(tmp_path.iterdir()) == []
