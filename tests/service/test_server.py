"""``gpuprover serve`` as a process: it listens, proves, drains on SIGTERM; what is wrong is one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from gpuprover import Client
from gpuprover.cli import serve
from gpuprover.config import load_engine_settings, load_service_settings
from gpuprover.errors import InvalidInput
from gpuprover.service import server
from gpuprover.settings import SETTINGS
from tests.support.paths import ROOT
from tests.support.running import Run
from tests.support.service_stage import CHAIN, SECONDS, SLOW, SUCCEED, circuits

START_SECONDS = 120
"""A worker may compile first."""

STAGED = """
import sys, threading
from pathlib import Path
from typing import Any
from tests.support.engine_stage import FakeTimes
from gpuprover.config import load_engine_settings, load_service_settings
from gpuprover.engine import Prover
from gpuprover.service import server
from gpuprover.witness_source import WitnessBytes
from tests.support.service_stage import SLOW, Executor, circuits

class Timed(Executor):
    def prove(self, request, done, progress=None):
        super().prove(request, done, progress)
        if request.witness == WitnessBytes(SLOW):
            timer = threading.Timer(float(sys.argv[2]), self.end_all)
            timer.daemon = True
            timer.start()

engine = load_engine_settings({
    "circuit_keys_path": circuits(Path(sys.argv[1])), "verifier": "inline", "threads": 4, "grace_period": 20,
})
prover = Prover(engine, executor=Timed(), times=FakeTimes())
settings = load_service_settings({}, engine)
listener = server.listen("127.0.0.1", 0)
url = server.url_of(listener)
sys.exit(server.serve(prover, settings, listener, started=lambda: print(url, flush=True)))
"""


@contextmanager
def running(*command: str, **environment: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process that says first where it listens -> it, and that line."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PROVER_")} | environment
    process = subprocess.Popen(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=variables,
        cwd=ROOT,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate(timeout=SECONDS)[1]
        yield process, line
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=SECONDS)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and standard error."""
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def test_it_proves_and_verifies_and_ends(tmp_path: Path) -> None:
    folder = circuits(tmp_path / "keys")
    command = ("-m", "gpuprover", "serve", "--json", "--threads", "2", "--preload-circuits", "chain")
    environment = {"PROVER_CIRCUIT_KEYS_PATH": str(folder), "PROVER_PORT": "0"}
    with running(*command, **environment) as (process, line), Client(json.loads(line)["url"]) as client:
        end = time.monotonic() + START_SECONDS
        while not client.ready():
            assert process.poll() is None
            assert time.monotonic() < end, client.status()
            time.sleep(0.1)
        found = client.prove("chain", f"{CHAIN}.wtns")
        assert found.public_signals == json.loads(Path(f"{CHAIN}.public.json").read_text())
        assert found.proof is not None
        assert client.verify("chain", found.public_signals, found.proof)
        both = [(found.public_signals, found.proof), (["1", "2"], found.proof)]
        assert client.verify_batch("chain", both) == [True, False]
        assert client.circuit("chain")["loaded"]
        url = json.loads(line)["url"]
        shell_of_the_document(url, tmp_path)
        ran = subprocess.run(
            [sys.executable, ROOT / "examples" / "http" / "client.py", url, "chain", f"{CHAIN}.wtns", "8"],
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.returncode == 0, ran.stderr
        # README shows what it prints, figures aside; a status may be a moment old, with proofs that wait.
        shown = (ROOT / "examples" / "http" / "README.md").read_text().split("```")[3].strip().splitlines()
        said = ran.stdout.splitlines()
        assert said[0].endswith("8 ids")
        figures = re.compile(r"[\d.]+|none(?= waits)")
        assert [figures.sub("N", one) for one in said] == [figures.sub("N", one) for one in shown]
        # A status may be a moment old.
        end = time.monotonic() + SECONDS
        while (status := client.status())["counters"]["succeeded"] < 11 and time.monotonic() < end:
            time.sleep(0.1)
        assert status["counters"]["succeeded"] == 11
        children = [worker["pid"] for worker in status["workers"] if worker["pid"] != process.pid]
        process.send_signal(signal.SIGTERM)
        code, errors = ended(process)
        assert code == 0, errors
        assert "Traceback" not in errors
        for pid in children:
            assert not Path(f"/proc/{pid}").exists()


def shell_of_the_document(url: str, folder: Path) -> None:
    """What docs/http.md has for curl, as it stands there, for another address and circuit."""
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    text = (ROOT / "docs" / "http.md").read_text()
    script = text.split("```sh\n")[1].split("```")[0]
    script = script.replace("http://127.0.0.1:8080", url).replace("transfer", "chain")
    shutil.copy(f"{CHAIN}.wtns", folder / "witness.wtns")
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], capture_output=True, text=True, cwd=folder, timeout=60
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.startswith('{"valid":true}{"ready":true,')
    for name in ("proof.json", "later.json"):
        made = json.loads((folder / name).read_text())
        assert (made["state"], made["error"]) == ("succeeded", None)
    assert json.loads((folder / "verification_key.json").read_text())["protocol"] == "groth16"


def test_sigterm_drains(tmp_path: Path) -> None:
    with running("-c", STAGED, str(tmp_path / "c"), "4.0") as (process, line), ThreadPoolExecutor(1) as pool:
        url = line.strip()
        path, headers = f"{url}/v1/circuits/chain/proofs", {"Content-Type": "application/octet-stream"}
        polled = httpx.post(path, content=SLOW, headers=headers, timeout=SECONDS).headers["location"]
        waiting = pool.submit(
            httpx.post, path, content=SLOW, headers={**headers, "Prefer": "wait=30"}, timeout=SECONDS
        )
        while httpx.get(f"{url}/v1/status", timeout=SECONDS).json()["active_jobs"] < 2:
            time.sleep(0.05)
        process.send_signal(signal.SIGTERM)
        while (draining := httpx.get(f"{url}/readyz", timeout=SECONDS)).status_code == 200:
            time.sleep(0.05)
        assert draining.json() == {"status": "draining"}
        refused = httpx.post(path, content=SUCCEED, headers=headers, timeout=SECONDS)
        assert (refused.status_code, refused.json()["kind"]) == (503, "ShuttingDown")
        assert int(refused.headers["retry-after"]) > 0
        assert httpx.get(f"{url}/healthz", timeout=SECONDS).status_code == 200
        answer = waiting.result(SECONDS)
        assert (answer.status_code, answer.json()["state"]) == (200, "succeeded")
        later = httpx.get(url + polled, headers={"Prefer": "wait=20"}, timeout=SECONDS)
        assert later.json()["state"] == "succeeded"
        code, errors = ended(process)
        assert (code, "Traceback" in errors) == (0, False), errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
def test_a_second_signal_ends_it_at_once(tmp_path: Path, number: signal.Signals) -> None:
    with running("-c", STAGED, str(tmp_path / "c"), "600") as (process, line):
        url = line.strip()
        headers = {"Content-Type": "application/octet-stream"}
        httpx.post(f"{url}/v1/circuits/chain/proofs", content=SLOW, headers=headers, timeout=SECONDS)
        process.send_signal(number)
        while httpx.get(f"{url}/readyz", timeout=SECONDS).status_code == 200:
            time.sleep(0.05)
        process.send_signal(number)
        code, errors = ended(process)
        assert (code, "Traceback" in errors) == (130, False), errors


@contextmanager
def serving(folder: Path, *options: str, **given: Any) -> Iterator[subprocess.Popen[bytes]]:
    """``gpuprover serve`` on a port that it writes into its log."""
    variables = {k: v for k, v in os.environ.items() if not k.startswith("PROVER_")}
    command = ["-m", "gpuprover", "serve", "--circuit-keys-path", str(folder), "--port", "0", *options]
    environment = variables | given.pop("environment", {})
    process = subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        cwd=folder.parent,
        # Who runs the tests under nohup has it ignored.
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_DFL),
        **given,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait(SECONDS)


def url_in(log: Path) -> str:
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        for line in log.read_text().splitlines():
            if (match := re.search(r"gpuprover serves (http:\S+\d): ", line)) is not None:
                return match[1]
        time.sleep(0.05)
    raise AssertionError(log.read_text())


def test_an_empty_folder_is_warned_of_and_all_that_is_written_is_json(tmp_path: Path) -> None:
    folder, log = tmp_path / "keys", tmp_path / "log"
    folder.mkdir()
    # Both streams in one file, as containers have it.
    with log.open("wb") as file, serving(folder, stdout=file, stderr=file) as process:
        url = url_in(log)
        assert "prover_circuits 0.0" in httpx.get(f"{url}/metrics", timeout=SECONDS).text
        assert httpx.get(f"{url}/v1/status", timeout=SECONDS).json()["problems"] == [
            "there are no circuits in the folder of keys"
        ]
        with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2]))) as connection:
            connection.sendall(b"no HTTP\r\n\r\n")
            connection.recv(100)
        process.send_signal(signal.SIGHUP)
        assert httpx.get(f"{url}/healthz", timeout=SECONDS).status_code == 200
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"uvicorn.error", "gpuprover.service"} <= {line["logger"] for line in lines}
    messages = {line["message"]: line["level"] for line in lines}
    assert messages[f"no circuits are in {folder}: proofs are refused until there are"] == "WARNING"
    assert any(message.startswith("SIGHUP: ") for message in messages)
    assert "/v1/status" not in log.read_text()


@pytest.mark.slow
def test_a_log_that_nobody_reads_and_a_full_disk_hold_nobody_up(tmp_path: Path) -> None:
    folder = circuits(tmp_path / "keys")
    read, write = os.pipe()
    given = {"stderr": write, "environment": {"PROVER_LOG_LEVEL": "debug"}}
    with (
        os.fdopen(read, "rb", buffering=0) as reader,
        open("/dev/full", "wb") as full,
        serving(folder, "--json", stdout=full, **given) as process,
    ):
        os.close(write)
        received = b""
        while (match := re.search(rb"gpuprover serves (http:\S+\d): ", received)) is None:
            received += reader.read(4096)
        with httpx.Client(base_url=match[1].decode(), timeout=SECONDS) as client:
            for i in range(1000):  # some 300 KB of lines, and a pipe holds 64
                assert client.get(f"/nothing/{i}").status_code == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(SECONDS) == 0


@pytest.mark.parametrize("what", ["missing", "file"])
def test_a_folder_of_circuits_that_cannot_be_read_is_an_error(run: Run, tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_text("")
    ran = run("serve", "--port", "0", "--circuit-keys-path", str(tmp_path / what))
    assert (ran.code, ran.out) == (2, "")
    (line,) = ran.err.splitlines()
    reason = "No such file or directory" if what == "missing" else "Not a directory"
    assert line == f"error: CircuitNotFound: {tmp_path / what}: cannot read the folder of circuits: {reason}"


def test_every_setting_is_an_option(run: Run) -> None:
    ran = run("serve", "--help")
    assert ran.code == 0
    for row in SETTINGS:
        option = "--" + row.name.replace("_", "-")
        assert (option in ran.out) == (row.own or row.service), option


def test_what_is_wrong_is_said_in_one_line(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*arguments: str) -> str:
        ran = run("serve", "--circuit-keys-path", str(tmp_path), *arguments)
        assert (ran.code, ran.out) == (2, "")
        (line,) = ran.err.splitlines()
        return line

    assert "--port: expected a whole number from 0 to 65535" in refused("--port", "65536")
    assert "--queue-limit: expected" in refused("--queue-limit", "none")
    assert "missing: cannot read" in refused("--tokens-file", str(tmp_path / "missing"))
    assert "no-such-host.invalid:8080: cannot listen" in refused("--host", "no-such-host.invalid")
    assert "circuit 'mint': there is none of that name in" in refused(
        "--port", "0", "--preload-circuits", "mint"
    )
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        assert f"127.0.0.1:{port}: cannot listen: Address already in use" in refused("--port", port)
    monkeypatch.setenv("PROVER_PORT", "tcp://10.0.0.1:80")
    assert "PROVER_PORT: expected a whole number" in refused()
    monkeypatch.setattr(serve, "find_spec", lambda name: None if name == "fastapi" else object())
    assert "fastapi not installed: pip install 'gpuprover[server]'" in refused()


def test_settings_of_the_service() -> None:
    engine = load_engine_settings({"memory_limit": 1000}, {})
    settings = load_service_settings({"port": "1"}, engine, {"PROVER_PORT": "2", "PROVER_RAPIDSNARK": "Yes"})
    assert (settings.host, settings.port, settings.rapidsnark) == ("127.0.0.1", 1, True)
    assert (settings.body_memory, settings.body_limit, settings.json_memory) == (250, 125, 125)
    sources = settings.sources
    assert [sources[n] for n in ("port", "rapidsnark", "body_memory", "host")] == [
        *("argument", "PROVER_RAPIDSNARK", "machine", "default")
    ]
    assert load_service_settings({}, load_engine_settings({"memory_limit": 1}, {}), {}).body_memory == 16
    for bad, message in [
        ({"rapidsnark": "maybe"}, "--rapidsnark: expected on or off"),
        ({"host": " "}, "--host: expected an address"),
        ({"host": "a b"}, "--host: expected an address"),
        ({"body_limit": 126}, "body_limit: expected at most 125 MiB, which is tenant_share of body_memory"),
        ({"tenant_share": 0}, "--tenant-share: expected a number from 0.01 to 1"),
        ({"priority_limit": 1001}, "--priority-limit: expected a whole number from 0 to 1000"),
        ({"result_ttl": 0}, "--result-ttl: expected"),
    ]:
        with pytest.raises(InvalidInput, match=message):
            load_service_settings(bad, engine, {})


def test_addresses() -> None:
    listener = server.listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    assert server.url_of(listener) == f"http://127.0.0.1:{port}"
    listener.close()
    try:
        listener = server.listen("::1", 0)
    except InvalidInput as error:
        assert "[::1]:0: cannot listen" in error.message  # noqa: PT017
    else:
        assert server.url_of(listener).startswith("http://[::1]:")
        listener.close()
