"""The command line around the commands: arguments, streams, errors, signals, the worker's protocol.

The prover is a stand-in here, so that failures come when a test wants them;
tests/cli/test_commands.py runs the real one.
"""

from __future__ import annotations

import errno
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import gpuprover
from gpuprover import errors
from gpuprover.cli import commands, main
from gpuprover.cli.parser import PROTOCOLS, build_parser
from tests.support.running import Ran, Run

PROOF = {"pi_a": ["1", "2", "1"], "protocol": "groth16", "curve": "bn128"}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, Path]:
    names = {"zkey": "c.zkey", "witness": "w.wtns", "proof": "proof.json", "public": "public.json"}
    paths = {name: tmp_path / file for name, file in names.items()}
    paths["zkey"].write_bytes(b"key")
    paths["witness"].write_bytes(b"witness")
    return paths


class StandIn:
    """gpuprover.load_key and gpuprover.prove, scripted."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.loads: list[str] = []
        self.warnings: tuple[str, ...] = ()
        self.work: Callable[[dict[str, Any]], None] = lambda limits: None

    def load_key(self, path: str) -> Any:
        self.loads.append(path)
        Path(path).open("rb").close()
        return SimpleNamespace(path=path, warnings=self.warnings)

    def prove(self, key: Any, witness: Any, **limits: Any) -> Any:
        self.calls.append({"key": key.path, "witness": witness, **limits})
        self.work(limits)
        return SimpleNamespace(
            proof=PROOF,
            public_signals=["33"],
            timings={"quotient": 0.25, "verify": 0.01},
            device="cpu",
            memory={"before": 1, "peak": 3, "after": 2},
            warnings=self.warnings,
        )


@pytest.fixture
def prover(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    stand_in = StandIn()
    monkeypatch.setattr(gpuprover, "load_key", stand_in.load_key, raising=False)
    monkeypatch.setattr(gpuprover, "prove", stand_in.prove, raising=False)
    return stand_in


def prove_arguments(files: dict[str, Path]) -> list[object]:
    return ["prove", files["zkey"], files["witness"], files["proof"], files["public"]]


def nothing_written(files: dict[str, Path]) -> bool:
    return {p.name for p in files["proof"].parent.iterdir()} == {"c.zkey", "w.wtns"}


# Arguments ---------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["--help"], ["prove", "--help"], ["zkey", "export", "--help"], ["--version"]]
)
def test_help_and_version_go_to_stdout(run: Run, arguments: list[str]) -> None:
    ran = run(*arguments)
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith(("usage: gpuprover", "gpuprover "))


ORDERS = {
    "prove K W P S": "zkey witness proof public",
    "fullprove I C K P S": "inputs wasm zkey proof public",
    "verify V S P": "vkey public proof",
    **{
        f"{protocol} {line}": names
        for protocol in PROTOCOLS
        for line, names in {
            "prove K W P S": "zkey witness proof public",
            "fullprove I C K P S": "inputs wasm zkey proof public",
            "verify V S P": "vkey public proof",
            "setup R T K": "r1cs ptau zkey",
        }.items()
    },
    "setup R K --ptau T": "r1cs zkey",
    "setup R K --insecure": "r1cs zkey",
    "wtns calculate C I W": "wasm inputs witness",
    "wtns check R W": "r1cs witness",
    "zkey info K": "zkey",
    "zkey check K": "zkey",
    "zkey verify R T K": "r1cs ptau zkey",
    "zkey export verificationkey K V": "zkey vkey",
    "zkey export solidityverifier K S": "zkey contract",
    "zkey export soliditycalldata S P": "public proof",
    "midnight prove K V W P": "prover verifier",
    "midnight verify V S P": "verifier public proof",
    "midnight check C W": "circuit preimage",
    "midnight k C": "circuit",
    "midnight keygen C K V": "circuit prover verifier",
    "midnight info F": "file",
    "midnight srs check F": "file",
    "midnight srs downsize F T --k 4": "file target",
    "worker": "",
    "verifier": "",
    "estimate": "",
    "profile K W": "zkey witness",
    "bench": "",
    "config": "",
    "bench processes": "",
    "bench network": "",
    "bench service": "",
    "bench fill D --rows R": "",
    "doctor": "",
    "warmup": "",
}


@pytest.mark.parametrize("line", ORDERS)
def test_argument_orders_and_common_options(line: str) -> None:
    common = ["--device", "cpu", "--threads", "2", "--memory-limit", "64", "--json", "--quiet"]
    args = build_parser().parse_args([*line.split(), *common])
    given = [word for word in line.split() if len(word) == 1 and not word.islower()]
    assert [getattr(args, name) for name in ORDERS[line].split()] == given[: len(ORDERS[line].split())]
    assert (args.device, args.threads, args.memory_limit, args.json, args.quiet) == (
        "cpu",
        "2",
        "64",
        True,
        True,
    )
    module, _, function = args.run.partition(":")
    assert callable(getattr(__import__(f"gpuprover.cli.{module}", fromlist=[function]), function))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "required: COMMAND"),
        (["frobnicate"], "invalid choice: 'frobnicate'"),
        (["prove", "a", "b", "c"], "required: PUBLIC.json"),
        (["prove", "a", "b", "c", "d", "e"], "unrecognized arguments: e"),
        (["prove", "a", "b", "c", "d", "--thread", "1"], "unrecognized arguments: --thread"),
        (["prove", "a", "b", "c", "d", "--threads"], "expected one argument"),
        (["prove", "a", "b", "c", "d", "--threads", "0"], "--threads: expected a whole number"),
        (["prove", "a", "b", "c", "d", "--memory-limit", "1G"], "--memory-limit: expected a whole number"),
        (["prove", "a", "b", "c", "d", "--timeout", "-1"], "--timeout: expected a positive number"),
        (["setup", "a", "b"], "one of the arguments --ptau --insecure is required"),
        (["setup", "a", "b", "--ptau", "p", "--insecure"], "not allowed with argument"),
        (
            ["setup", "a", "b", "--insecure", "--protocol", "stark"],
            "--protocol: expected one of groth16, plonk",
        ),
        (["prove", "x" * 5000, "b", "c"], "required: PUBLIC.json"),
        (["frob\x1b[31m\nnicate"], "invalid choice"),
    ],
)
def test_bad_arguments_are_one_line_and_exit_code_2(run: Run, arguments: list[str], says: str) -> None:
    ran = run(*arguments)
    assert ran.code == errors.EXIT_BAD_INPUT
    assert ran.out == ""
    assert ran.err.startswith("error: InvalidInput: ")
    assert ran.err.count("\n") == 1
    assert says in ran.err
    assert "\x1b" not in ran.err
    as_json = run(*arguments, "--json")
    assert as_json.code == errors.EXIT_BAD_INPUT
    assert as_json.answer["error"]["kind"] == "InvalidInput"


def test_bad_environment_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVER_THREADS", "many")
    ran = run("doctor")
    assert ran.code == errors.EXIT_BAD_INPUT
    assert "PROVER_THREADS: expected a whole number" in ran.err


@pytest.mark.parametrize(
    ("device", "code", "says"),
    [
        ("cuda", 3, "DeviceError: device 'cuda' is not available"),
        ("tpu", 2, "expected one of auto, cpu, cuda"),
    ],
)
def test_devices_that_cannot_be_had_are_refused_by_name(
    run: Run, prover: StandIn, files: dict[str, Path], device: str, code: int, says: str
) -> None:
    ran = run(*prove_arguments(files), "--device", device)
    assert ran.code == code
    assert says in ran.err
    assert prover.loads == []


# prove, with its outputs --------------------------------------------------------


def test_prove_passes_its_options_and_writes_as_snarkjs_does(
    run: Run, prover: StandIn, files: dict[str, Path]
) -> None:
    options = ["--device", "CPU", "--threads", 3, "--memory-limit", 512, "--timeout", 9, "--no-verify"]
    ran = run(*prove_arguments(files), *options)
    assert ran.code == 0, ran.err
    (call,) = prover.calls
    assert (call["device"], call["threads"], call["memory_limit"]) == ("cpu", 3, 512)
    assert (call["verify"], call["timeout"]) == (False, 9.0)
    assert files["proof"].read_text() == (
        '{\n "pi_a": [\n  "1",\n  "2",\n  "1"\n ],\n "protocol": "groth16",\n "curve": "bn128"\n}'
    )
    assert files["public"].read_text() == '[\n "33"\n]'
    assert "not verified" in ran.out
    assert ran.err == ""


def test_prove_answers_in_json(run: Run, prover: StandIn, files: dict[str, Path]) -> None:
    prover.warnings = ("can be forged",)
    ran = run(*prove_arguments(files), "--json")
    assert ran.code == 0
    answer = ran.answer
    assert answer["ok"] is True
    assert answer["timings"] == {"quotient": 0.25, "verify": 0.01}
    assert answer["memory"] == {"before": 1, "peak": 3, "after": 2}
    assert answer["warnings"] == ["can be forged"]
    assert answer["seconds"] >= 0
    assert json.loads(ran.err) == {"warning": f"{files['zkey']}: can be forged"}


def test_quiet_prints_nothing_but_warnings(run: Run, prover: StandIn, files: dict[str, Path]) -> None:
    assert run(*prove_arguments(files), "--quiet") == Ran(0, "", "")
    prover.warnings = ("can be forged",)
    assert run(*prove_arguments(files), "--quiet") == Ran(0, "", f"warning: {files['zkey']}: can be forged\n")


def test_progress_goes_to_stderr_as_json_lines(run: Run, prover: StandIn, files: dict[str, Path]) -> None:
    from gpuprover.job import Progress

    prover.work = lambda limits: limits["progress"](Progress("quotient", 0.5, 1.25))
    ran = run(*prove_arguments(files), "--json")
    assert json.loads(ran.err) == {"phase": "quotient", "fraction": 0.5, "elapsed": 1.25}
    assert ran.answer["ok"] is True
    assert run(*prove_arguments(files)).err == ""


def test_a_symbolic_link_is_written_through_and_modes_follow_the_umask(
    run: Run, prover: StandIn, files: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    target = tmp_path / "elsewhere" / "p.json"
    files["proof"].symlink_to(target)
    old = os.umask(0o027)
    try:
        assert run(*prove_arguments(files)).code == 0
    finally:
        os.umask(old)
    assert files["proof"].is_symlink()
    assert json.loads(target.read_text()) == PROOF
    assert target.stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"proof": "missing/proof.json"}, "missing does not exist"),
        ({"public": "."}, "it is a folder"),
        ({"public": "proof.json"}, "another argument"),
        ({"proof": "c.zkey"}, "another argument"),
        ({"proof": "c.zkey/proof.json"}, "does not exist"),
    ],
)
def test_unusable_outputs_are_found_before_the_work(
    run: Run, prover: StandIn, files: dict[str, Path], change: dict[str, str], says: str
) -> None:
    folder = files["zkey"].parent
    ran = run(*prove_arguments({**files, **{name: folder / path for name, path in change.items()}}))
    assert ran.code == errors.EXIT_BAD_INPUT
    assert says in ran.err
    assert prover.calls == []
    assert nothing_written(files)


def test_a_folder_without_permission_is_named(
    run: Run, prover: StandIn, files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    ran = run(*prove_arguments(files))
    assert ran.code == errors.EXIT_BAD_INPUT
    assert "no permission for the folder" in ran.err


@pytest.mark.parametrize("broken", ["proof", "public"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_leaves_neither_output(
    run: Run,
    prover: StandIn,
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    broken: str,
    number: int,
) -> None:
    # Whichever of the two cannot be put in place, neither is there.
    replace = os.replace

    def full(source: Any, target: Any) -> None:
        if Path(target) == files[broken]:
            raise OSError(number, os.strerror(number))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    ran = run(*prove_arguments(files))
    assert ran.code == errors.EXIT_RESOURCES
    assert ran.err.startswith(f"error: DeviceError: {files[broken]}: ")
    assert nothing_written(files)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
def test_a_device_is_written_in_place(run: Run, prover: StandIn, files: dict[str, Path]) -> None:
    ran = run("prove", files["zkey"], files["witness"], "/dev/full", files["public"])
    assert ran.code == errors.EXIT_RESOURCES
    assert "error: DeviceError: /dev/full: " in ran.err
    assert nothing_written(files)
    assert run("prove", files["zkey"], files["witness"], "/dev/null", "/dev/null").code == 0
    assert Path("/dev/null").is_char_device()


# Failures ----------------------------------------------------------------------


FAILURES: list[tuple[BaseException, int, str]] = [
    (
        errors.MalformedFile("c.zkey", "section 2", "truncated"),
        2,
        "MalformedFile: c.zkey: section 2: truncated",
    ),
    (
        errors.UnsupportedFile("c.zkey", "header", "version 9"),
        2,
        "UnsupportedFile: c.zkey: header: version 9",
    ),
    (errors.WitnessMismatch("another circuit"), 2, "WitnessMismatch: another circuit"),
    (errors.UnsatisfiedWitness("constraint 7"), 1, "UnsatisfiedWitness: constraint 7"),
    (errors.Timeout("too long"), 3, "Timeout: too long"),
    (errors.Cancelled("by the caller"), 130, "Cancelled: by the caller"),
    (errors.InvalidInput("x" * 9000), 2, "InvalidInput: xxx"),
    (errors.InvalidInput("a\x1b[2Jb\nc\u2028d"), 2, "InvalidInput: a\\u001b[2Jb c d"),
    (KeyboardInterrupt(), 130, "Cancelled: interrupted"),
    (MemoryError(), 3, "OutOfMemory: the machine refused memory"),
    (OSError(errno.ENOMEM, "no memory", "k"), 3, "OutOfMemory: k: the machine refused memory"),
    (OSError(errno.ENOSPC, "full", "k"), 3, "DeviceError: k: cannot read or write: no space left"),
    (OSError(errno.EDQUOT, "quota"), 3, "DeviceError: a file: cannot read or write: no space left"),
    (
        FileNotFoundError(errno.ENOENT, "No such file or directory", "k"),
        2,
        "InvalidInput: k: cannot read or write",
    ),
    (PermissionError(errno.EACCES, "Permission denied", b"k"), 2, "InvalidInput: k: cannot read or write"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "k"), 2, "InvalidInput: k: cannot read or write"),
    (ValueError("the secret is 42"), 3, "InternalError: ValueError in gpuprover.cli.commands:"),
    (RecursionError("deep"), 3, "InternalError: RecursionError"),
    (AssertionError(), 3, "InternalError: AssertionError"),
]


@pytest.mark.parametrize(("error", "code", "says"), FAILURES, ids=lambda value: str(value)[:30])
def test_every_failure_is_one_line_and_an_exit_code(
    run: Run,
    prover: StandIn,
    files: dict[str, Path],
    error: BaseException,
    code: int,
    says: str,
) -> None:
    def fail(limits: dict[str, Any]) -> None:
        raise error

    prover.work = fail
    ran = run(*prove_arguments(files))
    assert (ran.code, ran.out) == (code, "")
    assert ran.err.startswith(f"error: {says}")
    assert ran.err.count("\n") == 1
    assert "secret" not in ran.err.replace("secret inputs", "")
    assert nothing_written(files)

    ran = run(*prove_arguments(files), "--json")
    assert ran.code == code
    assert ran.answer["error"] == json.loads(ran.err)["error"]
    assert set(ran.answer["error"]) == {"kind", "message", "exit_code"}
    assert says.startswith(ran.answer["error"]["kind"])
    assert ran.answer["error"]["exit_code"] == code
    assert len(ran.answer["error"]["message"]) <= errors.MAX_MESSAGE


def test_debug_shows_the_traceback_of_an_internal_error(
    prover: StandIn,
    files: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GPUPROVER_DEBUG", "1")
    monkeypatch.setattr(commands, "write_proof", lambda *_: 1 // 0)
    assert main([str(a) for a in prove_arguments(files)]) == errors.EXIT_RESOURCES
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "error: InternalError: ZeroDivisionError in gpuprover.cli.commands:" in err


# Signals -----------------------------------------------------------------------


def _wait_for_cancel(limits: dict[str, Any]) -> None:
    """What a running job does: it notices the event, and does not end by itself."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if limits["cancel"].is_set():
            raise errors.Cancelled("cancelled by the caller")
        time.sleep(0.01)
    raise AssertionError("no signal came")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_cancels_the_work(
    run: Run, prover: StandIn, files: dict[str, Path], number: signal.Signals
) -> None:
    before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)}

    def work(limits: dict[str, Any]) -> None:
        os.kill(os.getpid(), number)
        _wait_for_cancel(limits)

    prover.work = work
    ran = run(*prove_arguments(files))
    assert ran == Ran(130, "", "error: Cancelled: interrupted; no output was written\n")
    assert nothing_written(files)
    assert {n: signal.getsignal(n) for n in before} == before


def test_work_that_does_not_look_is_interrupted(run: Run, prover: StandIn, files: dict[str, Path]) -> None:
    begun = time.monotonic()

    def work(limits: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(100)

    prover.work = work
    assert run(*prove_arguments(files)).code == 130
    assert time.monotonic() - begun < 100, "it slept to the end"
    assert nothing_written(files)


def test_a_signal_just_before_the_writing_leaves_no_output(
    run: Run, prover: StandIn, files: dict[str, Path]
) -> None:
    prover.work = lambda limits: limits["cancel"].set()
    assert run(*prove_arguments(files)).code == 130
    assert nothing_written(files)


def test_signals_are_left_alone_outside_the_main_thread(prover: StandIn, files: dict[str, Path]) -> None:
    codes: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    prover.work = lambda limits: codes.append(int(signal.getsignal(signal.SIGINT) is before))
    thread = threading.Thread(target=lambda: codes.append(main([str(a) for a in prove_arguments(files)])))
    thread.start()
    thread.join(20)
    assert codes == [1, 0]


# Streams, in processes of their own ----------------------------------------------


def process(*arguments: object, **options: Any) -> subprocess.Popen[bytes]:
    options = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-m", "gpuprover", *map(str, arguments)], **options)


def finish(child: subprocess.Popen[bytes], timeout: float = 60) -> Ran:
    out, err = child.communicate(timeout=timeout)
    assert b"Traceback" not in err
    assert b"Exception ignored" not in err
    return Ran(child.returncode, (out or b"").decode(), err.decode())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full on this system")
@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"], ["--help"]])
def test_a_full_disk_under_stdout_is_told(arguments: list[str]) -> None:
    with open("/dev/full", "wb") as full:
        ran = finish(process(*arguments, stdout=full))
    assert ran.code == errors.EXIT_RESOURCES
    assert "DeviceError" in ran.err
    assert "standard output" in ran.err


def test_a_reader_that_went_away_is_no_error() -> None:
    read, write = os.pipe()
    os.close(read)
    child = process("doctor", stdout=write)
    os.close(write)
    assert finish(child) == Ran(0, "", "")


def test_closed_streams_and_a_plain_locale_do_no_harm() -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    ran = finish(process("zkey", "info", "/nowhere/ключ.zkey", env=environment))
    assert ran.code == errors.EXIT_BAD_INPUT
    assert "No such file" in ran.err
    closed = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -m gpuprover doctor >&- 2>&-'], check=False, timeout=60
    )
    assert closed.returncode in (0, errors.EXIT_RESOURCES)


@pytest.mark.parametrize("arguments", [["--help"], ["prove", "a"], ["--version"]])
def test_help_and_errors_import_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; from gpuprover.cli import main; main(sys.argv[1:]);"
        "print(*sorted({m.split('.')[0] for m in sys.modules}), file=sys.stderr)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(ran.stderr.splitlines()[-1].split())
    assert loaded.isdisjoint({"numpy", "numba", "rich", "wasmtime"})


# The worker --------------------------------------------------------------------


@pytest.fixture
def work(
    prover: StandIn, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, list[dict[str, Any]]]]:
    def work(*lines: str | bytes, options: tuple[str, ...] = ()) -> tuple[int, list[dict[str, Any]]]:
        data = b"\n".join(line.encode() if isinstance(line, str) else line for line in lines)
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        code = main(["worker", *options])
        out, err = capsys.readouterr()
        assert "Traceback" not in out + err
        return code, [json.loads(line) for line in out.splitlines()]

    return work


def job(files: dict[str, Path], *more: str) -> str:
    names = ("zkey", "witness", "proof", "public")
    return " ".join(["prove", *(f"--{name} '{files[name]}'" for name in names), *more])


Work = Callable[..., tuple[int, list[dict[str, Any]]]]


def test_worker_proves_and_keeps_keys(work: Work, prover: StandIn, files: dict[str, Path]) -> None:
    prover.warnings = ("can be forged",)
    options = ["--device CPU", "--threads 1", "--memory-limit 99", "--timeout 5", "--no-verify"]
    code, answers = work(job(files), "", "# a remark", job(files, *options), "quit", job(files))
    assert code == 0
    assert [a["ok"] for a in answers] == [True, True]
    assert [a["key_loaded"] for a in answers] == [False, True]
    assert len(prover.loads) == 1
    assert answers[0]["proof"] == str(files["proof"])
    assert answers[0]["timings"]["quotient"] == 0.25
    assert answers[0]["warnings"] == ["can be forged"]
    assert json.loads(files["proof"].read_text()) == PROOF
    call = prover.calls[1]
    assert (call["device"], call["threads"], call["memory_limit"]) == ("cpu", 1, 99)
    assert (call["timeout"], call["verify"]) == (5.0, False)


def test_worker_loads_a_replaced_key_anew_and_forgets_the_oldest(
    work: Work, prover: StandIn, files: dict[str, Path]
) -> None:
    other = {**files, "zkey": files["zkey"].with_name("d.zkey")}
    other["zkey"].write_bytes(b"key")
    code, answers = work(job(files), job(other), job(files), options=("--keys", "1"))
    assert code == 0
    assert [a["key_loaded"] for a in answers] == [False, False, False]

    def replace(limits: dict[str, Any]) -> None:
        files["zkey"].write_bytes(b"another key")

    prover.work = replace
    _, answers = work(job(files), job(files), job(files))
    assert [a["key_loaded"] for a in answers][:2] == [False, False]


def test_worker_survives_bad_lines_and_bad_jobs(work: Work, prover: StandIn, files: dict[str, Path]) -> None:
    failures: Iterator[BaseException] = iter(
        [errors.UnsatisfiedWitness("constraint 7"), ZeroDivisionError(), MemoryError(), SystemError()]
    )

    def fail(limits: dict[str, Any]) -> None:
        if error := next(failures, None):
            raise error

    prover.work = fail
    missing = {**files, "zkey": files["zkey"].with_name("missing.zkey")}
    lines: list[tuple[str | bytes, str]] = [
        ("dance", "InvalidInput"),
        ("prove --zkey", "InvalidInput"),
        ("prove 'unclosed", "InvalidInput"),
        ("--help", "InvalidInput"),
        (b"prove \xff\xfe --zkey \x00", "InvalidInput"),
        (b"x" * 200_000, "InvalidInput"),
        (job(files, "--threads 0"), "InvalidInput"),
        (job(missing), "InvalidInput"),
        (job({**files, "proof": Path("/missing/p")}), "InvalidInput"),
        (job(files), "UnsatisfiedWitness"),
        (job(files), "InternalError"),
        (job(files), "OutOfMemory"),
        (job(files), "InternalError"),
    ]
    code, answers = work(*(line for line, _ in lines), job(files))
    assert code == 0
    assert [a["ok"] for a in answers] == [False] * len(lines) + [True]
    assert [a["error"]["kind"] for a in answers[:-1]] == [kind for _, kind in lines]
    assert all(len(a["error"]["message"]) <= errors.MAX_MESSAGE for a in answers[:-1])


def test_worker_answers_the_job_that_a_signal_ends(
    work: Work, prover: StandIn, files: dict[str, Path]
) -> None:
    def interrupted(limits: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        _wait_for_cancel(limits)

    prover.work = interrupted
    code, answers = work(job(files), job(files))
    assert code == errors.EXIT_CANCELLED
    assert [a["error"]["kind"] for a in answers] == ["Cancelled"]
    assert nothing_written(files)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_worker_ends_cleanly_on_a_signal(number: signal.Signals) -> None:
    child = process("worker", stdin=subprocess.PIPE)
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(b"dance\n")
    child.stdin.flush()
    assert json.loads(child.stdout.readline())["ok"] is False  # it listens
    child.send_signal(number)
    assert finish(child) == Ran(0, "", "")
