"""The benchmark: tiny runs end to end, ratios, targets, reports. Figures here are made up, and stay here."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from gpuprover.bench import command, measure, operations, peers, pictures, report, rows, setups, targets

from gpuprover import errors
from gpuprover.cli import main
from gpuprover.cpu.path import cpu_path
from gpuprover.job import Job
from gpuprover.systems import system
from tests.support.paths import ROOT, VECTORS
from tests.support.plonk import sample
from tests.support.running import Run

RESULTS = ROOT / "bench" / "results"
PNG = b"\x89PNG\r\n"

COMMON = {"run", "seed", "commit", "version", "processor", "processors", "python", "numba", "load", "time"}


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of one small run of everything, beside a prover that copies a proof and one that fails."""
    folder = tmp_path_factory.mktemp("bench")
    proof, public = VECTORS / "chain5.bn254.proof.json", VECTORS / "chain5.bn254.public.json"
    copies = f"""copies=sh -c 'cp "$0" "$2" && cp "$1" "$3"' {proof} {public} {{proof}} {{public}}"""
    inner = folder / "inner.py"
    inner.write_text(
        "print('loops of another library')\n"
        'print(\'{"operation": "msm g1", "log": 5, "cpu_s": 1.5, "wall_s": 2}\')\n'
    )
    arguments = [
        *("bench", "--quick", "--logs", "5", "--rounds", "1", "--threads", "2", "--quiet"),
        *("--files", f"five={VECTORS}/chain5.bn254.zkey,{VECTORS}/chain5.bn254.wtns"),
        *("--peer", copies, "--peer", f"fails={sys.executable} -c 'import sys; sys.exit(\"no {{zkey}}\")'"),
        *("--peer-inner", f"loops={sys.executable} {inner}", "--peer-inner", "absent=/no/such/program"),
        *("--work", str(folder / "keys"), "--output", str(folder / "rows.jsonl")),
    ]
    assert main(arguments) == 0
    return folder / "rows.jsonl"


def chosen(found: list[dict[str, Any]], **fields: Any) -> list[dict[str, Any]]:
    return [row for row in found if all(row.get(name) == value for name, value in fields.items())]


# A run ----------------------------------------------------------------------------


def test_rows_say_what_was_measured_where_and_how(ran: Path) -> None:
    found = read(ran)
    assert all(COMMON | {"operation", "implementation"} <= row.keys() for row in found)
    assert len({row["run"] for row in found}) == 1
    ours = [row for row in chosen(found, implementation="gpuprover", mode="warm") if "path" in row]
    assert {row["path"] for row in ours} == {cpu_path().name}
    for row in ours:
        assert 0 < row["cpu"]["min_s"] <= row["cpu"]["q1_s"] <= row["cpu"]["median_s"]
        assert row["cpu"]["median_s"] <= row["cpu"]["q3_s"] <= row["cpu"]["max_s"]
        assert row["cpu"]["rounds"] == 1
    assert {row["operation"] for row in ours} == {
        "field mul",
        "ntt",
        "ntt to coset",
        *(f"columns {name}" for name in operations.COLUMNS),
        "msm G1",
        "msm G2",
        "groth16 prove",
        "groth16 verify",
    }
    kinds = {"full width", "32 bits", "0 and 1", "half equal"}
    assert {row["scalars"] for row in chosen(found, operation="msm G2")} == kinds
    assert chosen(found, operation="field mul")[0]["each_ns"]["cpu"] > 0
    assert {row["batch"] for row in chosen(found, operation="groth16 verify")} == {1, 100}


def test_proofs_have_phases_threads_and_the_memory_of_a_whole_process(ran: Path) -> None:
    found = chosen(read(ran), operation="groth16 prove", implementation="gpuprover", circuit="chain 2^5")
    assert [(row["mode"], row["threads"]) for row in found] == [("warm", 1), ("warm", 2), ("cold", 1)]
    assert {"quotient", "msm", "verify"} <= found[0]["phases"].keys()
    assert 10 << 20 < found[2]["peak"] < 4 << 30
    assert found[2]["wall"]["median_s"] > found[0]["wall"]["median_s"]


def test_the_hosts_part_of_a_proof_on_a_gpu_needs_no_gpu(ran: Path) -> None:
    found = read(ran)
    (row,) = chosen(found, operation="groth16 prove, host")
    (outside,) = chosen(found, operation="groth16 prove, outside launches")
    assert (row["device"], row["circuit"], row["threads"]) == ("nothing", "chain 2^5", 1)
    assert row["launches"] == outside["launches"] > 20
    assert 0 < outside["cpu"]["min_s"] < 1
    assert "wall" not in row, "nobody waits for a device that does nothing"
    assert row["phases"].keys() == {"while the device works", "operations as launches"}
    assert all(seconds > 0 for seconds in row["phases"].values())


def test_devices_that_cannot_be_had_are_told(ran: Path) -> None:
    (row,) = chosen(read(ran), device="cuda")
    assert "not available" in row["skipped"]


def test_a_peer_is_compared_round_by_round_on_the_same_files(ran: Path) -> None:
    (row,) = chosen(read(ran), implementation="copies", circuit="five")
    assert row["mode"] == "cold"
    assert row["wall"]["rounds"] == 1
    assert [(e["mode"], e["threads"]) for e in row["faster"]] == [("warm", 1), ("warm", 2), ("cold", 1)]
    for entry in row["faster"]:
        assert 0 < entry["wall"]["min"] <= entry["wall"]["median"] <= entry["wall"]["max"]


def test_a_peer_that_fails_or_proves_something_else_is_a_row_with_the_reason(ran: Path) -> None:
    found = read(ran)
    for circuit in ("five", "chain 2^5"):
        (row,) = chosen(found, implementation="fails", circuit=circuit)
        assert "exit code 1: no " in row["error"]
        assert "cpu" not in row
    (row,) = chosen(found, implementation="copies", circuit="chain 2^5")
    assert row["error"] == "copies: its proof does not hold"


def test_set_ups_are_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of whole processes, which tests/interop runs."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> tuple[measure.Sample, str]:
        commands.append(command)
        return measure.Sample(1.5, 2.0, 3), ""

    monkeypatch.setattr(setups, "run_process", run)
    circuit = setups.Circuit("one gate", sample("one-gate").circuit, VECTORS / "chain5.bn254.ptau")
    found = rows.Rows(tmp_path / "rows.jsonl")
    variants = [measure.Variant("cpu", None), measure.Variant("cpu", None, 2)]
    systems = [system.system_named("plonk")]
    setups.measure_setups(circuit, systems, variants, 1, found, Job(threads=1), peer=False, limit=60.0)
    found.close()
    (row,) = found.all
    assert (row["operation"], row["mode"], row["constraints"]) == ("plonk setup", "cold", 1)
    assert row["cpu"]["median_s"] == 1.5
    assert all(command[3:5] == ["plonk", "setup"] for command in commands)
    with pytest.raises(errors.InvalidInput, match="--setup: expected NAME=R1CS,PTAU"):
        setups.named_circuit("name=r1cs")


def test_whole_processes_count_for_goals_beside_whole_processes() -> None:
    """Of PLONK's peers, which have no key in memory; elsewhere ours with its key loaded does."""
    faster = [
        {"device": "cpu", "threads": 1, "mode": m, "cpu": {"median": x}}
        for m, x in (("warm", 90), ("cold", 50))
    ]
    row = {"curve": "bn254", "circuit": "merkle20", "operation": "plonk prove", "implementation": "snarkjs"}
    (outcome,) = targets.outcomes([{**row, "faster": faster}])["PLONK proof, merkle20"]
    assert (outcome.value, outcome.met, outcome.dreamt) == (50, True, False)


def test_inner_loops_stand_beside_ours(ran: Path) -> None:
    (row,) = chosen(read(ran), implementation="loops")
    assert (row["operation"], row["log"], row["scalars"]) == ("msm G1", 5, "full width")
    assert row["cpu"]["median_s"] == 1.5
    ours = chosen(read(ran), implementation="gpuprover", operation="msm G1", scalars="full width")[0]
    entry = row["faster"][0]
    assert entry["path"] == ours["path"]
    assert entry["cpu"]["median"] == pytest.approx(1.5 / ours["cpu"]["median_s"], rel=0.5)
    assert "cannot be run" in chosen(read(ran), implementation="absent")[0]["error"]


def test_keys_are_kept_for_the_next_run(ran: Path, run: Run, tmp_path: Path) -> None:
    key = ran.parent / "keys" / "chain_5.bn254.zkey"
    before = key.stat().st_mtime_ns
    out = tmp_path / "more.jsonl"
    quick = ("--quick", "--only", "verify", "--logs", "5", "--rounds", "1", "--curves", "bn254")
    again = run("bench", *quick, "--work", key.parent, "--output", out, "--json")
    assert again.code == 0
    assert key.stat().st_mtime_ns == before
    assert again.answer["count"] == len(read(out))
    assert again.answer["rows"] == str(out)
    assert {t["target"] for t in again.answer["targets"]} == {"verification, BN254"}
    assert json.loads(again.err.splitlines()[0])["warning"].startswith("skipped: device 'cuda'")


def test_protocols_are_measured_with_keys_of_their_own(run: Run, tmp_path: Path) -> None:
    out, work = tmp_path / "rows.jsonl", tmp_path / "keys"
    names = [n for n in system.names() if n != "groth16" and system.system_named(n).sets_up]
    quick = ("--quick", "--only", "verify", "--logs", "4", "--rounds", "1", "--threads", "1")
    again = run("bench", *quick, "--protocols", ",".join(names), "--work", work, "--output", out, "--json")
    assert again.code == 0
    measured = {(row["operation"], row.get("curve")) for row in read(out) if "cpu" in row}
    for name in names:
        assert (f"{name} verify", "bn254") in measured
        assert (work / f"chain_4.bn254.{name}.zkey").exists()


def test_an_interruption_keeps_what_is_measured(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    whole = measure.Contestant.round

    def until_interrupted(self: measure.Contestant, counts: bool) -> None:
        nonlocal calls
        calls += 1
        if calls > 8:
            raise KeyboardInterrupt
        whole(self, counts)

    monkeypatch.setattr(measure.Contestant, "round", until_interrupted)
    out = tmp_path / "rows.jsonl"
    quick = ("--quick", "--only", "field,ntt", "--logs", "5", "--rounds", "3", "--curves", "bn254")
    ended = run("bench", *quick, "--output", out)
    assert ended.code == errors.EXIT_CANCELLED
    assert "rows are kept in" in ended.err
    found = [row for row in read(out) if "skipped" not in row]
    assert [row["operation"] for row in found] == ["field mul", "ntt"]
    assert found[1]["cpu"]["rounds"] == 3


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--only", "msm,fly"], "--only: expected some of field,"),
        (["--logs", "4,x"], "--logs: expected a whole number"),
        (["--logs", ""], "--logs: expected sizes"),
        (["--curves", "secp256k1"], "--curves: expected some of bn254,"),
        (["--protocols", "stark"], "--protocols: expected one of groth16"),
        (["--paths", "fast"], "expected ifma or portable"),
        (["--peer", "rapid"], "--peer: expected NAME=COMMAND or one of snarkjs"),
        (["--peer", "rapid='x"], "--peer: expected NAME=COMMAND"),
        (["--files", "a=b"], "--files: expected NAME=ZKEY,WTNS"),
        (["--files", "a=/no/such.zkey,/no/such.wtns"], "/no/such.zkey: cannot read"),
        (["--device", "cuda"], "not available"),
        (["--output", "rows.txt"], "--output: expected a file named *.jsonl"),
    ],
)
def test_bad_arguments_are_told_before_any_work(
    run: Run, arguments: list[str], says: str, tmp_path: Path
) -> None:
    output = [] if "--output" in arguments else ["--output", tmp_path / "rows.jsonl"]
    ran = run("bench", *arguments, *output)
    assert ran.code in (errors.EXIT_BAD_INPUT, errors.EXIT_RESOURCES)
    assert says in ran.err
    assert not (tmp_path / "rows.jsonl").exists()


# Peers ----------------------------------------------------------------------------


def test_snarkjs_that_is_not_there_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(peers, "ROOT", tmp_path)
    monkeypatch.delenv(peers.SNARKJS_VARIABLE, raising=False)
    told: list[tuple[str, str]] = []
    found, _ = peers.peers_of(["snarkjs", "snarkjs-warm"], 1.0, lambda *reason: told.append(reason))
    assert found == []
    assert [name for name, _ in told] == ["snarkjs", "snarkjs-warm"]
    assert "npm install snarkjs" in told[0][1]
    monkeypatch.setenv(peers.SNARKJS_VARIABLE, "/no/such/folder")
    with pytest.raises(peers.Missing, match="GPUPROVER_SNARKJS=/no/such/folder"):
        peers.find_snarkjs()


def test_snarkjs_is_found_by_its_folder_its_command_and_node_modules(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "node_modules" / "snarkjs"
    (package / "build").mkdir(parents=True)
    for name in ("cli.cjs", "main.cjs"):
        (package / "build" / name).touch(mode=0o755)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "node").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(binaries))
    monkeypatch.setattr(peers, "ROOT", tmp_path / "elsewhere")
    inside = tmp_path / "a" / "b"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    expected = (str(binaries / "node"), package)
    monkeypatch.delenv(peers.SNARKJS_VARIABLE, raising=False)
    assert peers.find_snarkjs() == expected
    for place in (package, package / "build" / "cli.cjs"):
        monkeypatch.setenv(peers.SNARKJS_VARIABLE, str(place))
        assert peers.find_snarkjs() == expected
    monkeypatch.delenv(peers.SNARKJS_VARIABLE)
    monkeypatch.chdir("/")
    (binaries / "snarkjs").symlink_to(package / "build" / "cli.cjs")
    assert peers.find_snarkjs() == expected


def test_a_missing_library_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py_arkworks_bls12381", None)
    told: list[tuple[str, str]] = []
    _, arkworks = peers.peers_of(["arkworks"], 1.0, lambda *reason: told.append(reason))
    assert arkworks is None
    assert told == [("arkworks", "arkworks: run `pip install py_arkworks_bls12381`")]


def test_a_process_that_takes_too_long_is_ended_with_its_children() -> None:
    with pytest.raises(measure.Failed, match=r"took more than 0\.3 s"):
        measure.run_process(["sh", "-c", "sleep 60; true"], check=lambda: None, limit=0.3)


def test_commands_are_filled_word_by_word() -> None:
    filled = measure.fill("prove '{zkey}' {json: 1} {wtns}", {"zkey": "a key.zkey", "wtns": "w"})
    assert filled == ["prove", "a key.zkey", "{json:", "1}", "w"]


# Figures ----------------------------------------------------------------------------


def test_ratios_are_formed_round_by_round() -> None:
    ratio = rows.times_faster([1.0, 2.0, 4.0], [4.0, 4.0, 4.0])
    assert ratio == {"median": 2.0, "q1": 1.5, "q3": 3.0, "min": 1.0, "max": 4.0}
    assert rows.times_faster([], []) == {}
    assert rows.spread([3.0, 1.0, 2.0])["median_s"] == 2.0
    assert rows.spread([5.0])["q3_s"] == 5.0


class Clock:
    """A contestant whose runs take what they are told to."""

    def __init__(self, *walls: float) -> None:
        self.walls = iter(walls)

    def __call__(self) -> measure.Sample:
        wall = next(self.walls, None)
        if wall is None:
            raise measure.Failed("worn out")
        return measure.Sample(wall / 2, wall)


class Kept:
    def __init__(self) -> None:
        self.all: list[dict[str, Any]] = []
        self.add: Callable[[dict[str, Any]], None] = self.all.append


def contestant(name: str, *walls: float, case: str = "c") -> measure.Contestant:
    fields = {"operation": "o", "implementation": name, "mode": "warm"}
    return measure.Contestant(case, fields, Clock(*walls))


def test_the_warm_up_does_not_count_and_failures_end_only_their_own_contestant() -> None:
    kept = Kept()
    contest = [
        contestant("gpuprover", 9, 1, 2, 1),
        contestant("peer", 9, 3, 4, 5),
        contestant("tired", 9, 8),
        contestant("other", 9, 1, 1, 1, case="another"),
    ]
    measure.measure(contest, 3, kept, Job(threads=1))  # type: ignore[arg-type]
    ours, peer, tired, other = kept.all
    assert (ours["wall"]["median_s"], ours["wall"]["max_s"], ours["wall"]["rounds"]) == (1, 2, 3)
    assert peer["faster"][0]["wall"]["median"] == 3
    assert (tired["error"], tired["wall"]["rounds"]) == ("worn out", 1)
    assert tired["faster"][0]["wall"]["median"] == 8
    assert other["faster"] == []


def test_a_slow_contestant_sits_out_and_rounds_stay_aligned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "ENOUGH_SECONDS", -1.0)
    monkeypatch.setattr(measure, "ENOUGH_ROUNDS", 1)
    kept = Kept()
    contest = [contestant("gpuprover", 9, 1, 2, 4), contestant("slow", 9, 8, 8, 8)]
    contest[0].used = -1e9
    measure.measure(contest, 3, kept, Job(threads=1))  # type: ignore[arg-type]
    assert kept.all[0]["wall"]["rounds"] == 3
    assert kept.all[1]["wall"]["rounds"] == 1
    assert kept.all[1]["faster"][0]["wall"] == {"median": 8, "q1": 8, "q3": 8, "min": 8, "max": 8}


def made_up(operation: str, seconds: float, **fields: Any) -> dict[str, Any]:
    """A row with made-up figures."""
    figures = dict.fromkeys(("median_s", "q1_s", "q3_s", "min_s", "max_s"), seconds)
    row = {"operation": operation, "implementation": "gpuprover", "mode": "warm", "run": "r"}
    if "implementation" not in fields:
        row |= {"device": "cpu", "path": "ifma", "threads": 1}
    row |= {"curve": "bn254", "processor": "Imagined CPU", "processors": 2, "commit": "0", "load": 0.1}
    return {**row, "cpu": figures, "wall": figures, **fields}


def peer_row(
    operation: str, ratio: float, *, path: str = "ifma", peer: str = "rapidsnark", **fields: Any
) -> Any:
    entry = {"device": "cpu", "path": path, "threads": 1, "mode": "warm", "cpu": {"median": ratio}}
    return made_up(operation, 1.0, implementation=peer, faster=[entry], **fields)


def outcome(name: str, *found: dict[str, Any]) -> dict[str, targets.Outcome]:
    return {o.variant: o for o in targets.outcomes(found)[name]}


def test_targets_are_those_of_the_plan() -> None:
    goals = {t.name: (t.goal, t.dream, t.portable) for t in targets.TARGETS if t.peer == "rapidsnark"}
    assert goals["MSM G1 2^16"] == goals["MSM G1 2^18"] == goals["MSM G2 2^16"] == (4, 8, 1.0)
    assert goals["NTT 2^18"] == goals["NTT 2^20"] == (4, 6, 1.0)
    assert goals["change of cosets 2^18, two NTTs"] == goals["change of cosets 2^20, two NTTs"] == (4, 6, 1.0)
    assert goals["proof, chain 2^18"] == (4, 8, 1.0)
    assert goals["proof, four SHA-256 blocks"] == (3, 6, 1.0)
    assert len(goals) == 9
    whole = {t.name: (t.goal, t.dream, t.ours) for t in targets.TARGETS if t.peer == "snarkjs"}
    assert whole["PLONK proof, eddsa"] == (40, 80, "cold")
    assert whole["FFLONK proof, eddsa"] == (30, 60, "cold")
    assert whole["PLONK set-up, merkle20"] == (20, None, "cold")
    assert len(whole) == 7
    assert len({t.name for t in targets.TARGETS}) == len(targets.TARGETS) == 42


def test_ratios_against_targets() -> None:
    where = {"log": 16, "scalars": "full width"}
    found = outcome(
        "MSM G1 2^16",
        peer_row("msm G1", 9.0, **{**where, "scalars": "0 and 1"}),
        peer_row("msm G1", 2.0, **where),
        peer_row("msm G1", 3.0, **where),
        peer_row("msm G1", 1.2, path="portable", **where),
        peer_row("msm G1", 99.0, peer="snarkjs", **where),
    )
    assert (found["cpu ifma"].value, found["cpu ifma"].met) == (3.0, False)  # the newest counts
    assert targets.verdict(found["cpu ifma"]) == "missed by 25 %"
    assert (found["cpu portable"].goal, targets.verdict(found["cpu portable"])) == (1.0, "met")
    dreamt = outcome("MSM G1 2^16", peer_row("msm G1", 8.5, **where))["cpu ifma"]
    assert targets.verdict(dreamt) == "met, dream too"


def test_seconds_threads_and_growth_against_targets() -> None:
    slow = outcome("verification, BN254", made_up("groth16 verify", 3e-3, batch=1))["cpu ifma"]
    assert targets.verdict(slow) == "missed: 1.50 times the goal"
    prove = {"circuit": "chain 2^16", "constraints": 65336}
    pair = [made_up("groth16 prove", 3.6, **prove), made_up("groth16 prove", 2.0, threads=2, **prove)]
    assert outcome("two threads over one, whole proofs", *pair)["cpu ifma"].value == pytest.approx(1.8)
    pair[1]["run"] = "another"
    assert outcome("two threads over one, whole proofs", *pair) == {}
    name = "growth against n log n, chain 2^12 to 2^22"
    steps = [(12, 12.0), (13, 26.0), (14, 26.0 * 2 * 14 / 13 * 1.3)]
    ladder = [made_up("groth16 prove", s, circuit=f"chain 2^{n}") for n, s in steps]
    worst = outcome(name, *ladder)["cpu ifma"]
    assert worst.value == pytest.approx(1.3)
    assert worst.detail == "worst step: 2^13 to 2^14"


# Reports ------------------------------------------------------------------------------


class Document(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.links: list[str | None] = []
        self.tables = self.headed = 0
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        named = dict(attributes)
        if tag == "img":
            self.images.append(named)
        self.links += [named.get(name) for name in ("src", "href") if name in named]
        self.tables += tag == "table"
        self.headed += tag == "thead"


def check_document(text: str) -> Document:
    document = Document(text)
    for image in document.images:
        assert image["alt"]
        assert str(image["src"]).startswith("data:image/png;base64,")
    assert all(str(link).startswith(("#", "data:")) for link in document.links), "requests something"
    assert "@import" not in text
    assert "url(" not in text
    assert document.tables == document.headed > 0
    return document


def test_a_run_leaves_a_report_with_its_pictures(ran: Path) -> None:
    document = check_document(ran.with_suffix(".html").read_text())
    drawn = sorted(path.name for path in ran.parent.glob("rows-*.png"))
    assert drawn == ["rows-msm.png", "rows-ntt.png", "rows-phases.png", "rows-proofs.png", "rows-scalars.png"]
    assert len(document.images) == len(drawn)
    assert all((ran.parent / name).read_bytes().startswith(PNG) for name in drawn)


def imagined() -> list[dict[str, Any]]:
    """Rows over sizes, of all that pictures show."""
    found: list[dict[str, Any]] = []
    for log in (12, 16, 18):
        t = log * 2.0**log * 1e-8
        chain = {"circuit": f"chain 2^{log}", "constraints": 1 << log}
        found.append(made_up("groth16 prove", t, phases={"msm H": t}, **chain))
        found.append(peer_row("groth16 prove", 4.5, **chain) | {"mode": "cold"})
        found.append(made_up("ntt", t / 50, log=log, order="natural"))
        for group in ("G1", "G2"):
            sized = {"log": log, "scalars": "full width"}
            found += [made_up(f"msm {group}", t / 5, **sized), peer_row(f"msm {group}", 3.0, **sized)]
        found.append(made_up("groth16 prove", t / 30, device="cuda", path=None, **chain))
    return found


def test_cpu_against_gpu_is_drawn_as_soon_as_there_are_rows_of_both(tmp_path: Path) -> None:
    both = {p.name: p for p in pictures.draw(imagined(), tmp_path, "b")}  # without: the run's pictures above
    assert both.keys() == {"ratios", "proofs", "msm", "ntt", "phases", "devices"}
    assert "GPU 30 times faster" in both["devices"].alt
    assert both["devices"].path.read_bytes().startswith(PNG)


def test_a_report_is_made_from_rows_alone(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "draw", lambda *_: [])
    source, out = tmp_path / "r.jsonl", tmp_path / "out" / "report.html"
    hostile = made_up("msm G1", 1.0, log=3, scalars="<script>alert(1)</script>")
    source.write_text("\n".join(json.dumps(row) for row in [*imagined(), hostile]))
    notes = tmp_path / "notes.md"
    notes.write_text("For all.\n\n## MSM G2 2^16\nThe gathers of `batch` wait for <memory>.\n")
    made = run("bench", "report", source, "--output", out, "--notes", notes, "--json")
    assert made.code == 0
    assert made.answer["report"] == str(out)
    text = out.read_text()
    check_document(text)
    assert "<script" not in text
    assert "The gathers of <code>batch</code> wait for &lt;memory&gt;." in text
    assert "missed by 25 %" in text
    assert "there is no figure of one" not in text
    source.write_text(json.dumps(hostile))
    assert run("bench", "report", source, "--output", out).code == 0
    assert "None of these rows is of a GPU: there is no figure of one." in out.read_text()
    notes.write_text("## MSM G9\nwhat?\n")
    refused = run("bench", "report", source, "--output", out, "--notes", notes)
    assert refused.code == errors.EXIT_BAD_INPUT
    assert "no target is named 'MSM G9'" in refused.err


def test_markdown_for_the_readme(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        pictures, "draw", lambda _, folder, stem: (folder / f"{stem}-ratios.png").touch() or []
    )
    Path("r.jsonl").write_text("\n".join(json.dumps(row) for row in imagined()))
    made = run("bench", "report", "r.jsonl", "--output", "results/cpu.html", "--readme")
    assert "![Ratios against other provers](results/cpu-ratios.png)" in made.out
    assert "| proof, chain 2^18, against rapidsnark | cpu ifma | 4.50× | ≥ 4×, dream 8× | met |" in made.out
    assert re.search(r"\[report\]\(results/cpu\.html\)", made.out)


def test_without_matplotlib_everything_else_is_written(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "available", lambda: False)
    source = tmp_path / "r.jsonl"
    source.write_text("\n".join(json.dumps(row) for row in imagined()))
    made = run("bench", "report", source, "--output", tmp_path / "r.html")
    assert made.code == 0
    assert made.err.splitlines() == [f"warning: {pictures.MISSING}"]
    document = check_document((tmp_path / "r.html").read_text())
    assert document.images == []


@pytest.mark.parametrize(
    ("content", "says"), [("{}", "line 1"), ('{"operation": "x"}\nnonsense', "line 2"), ("", "no rows")]
)
def test_files_that_hold_no_rows_are_refused(run: Run, tmp_path: Path, content: str, says: str) -> None:
    source = tmp_path / "r.jsonl"
    source.write_text(content)
    refused = run("bench", "report", source, "--output", tmp_path / "r.html")
    assert refused.code == errors.EXIT_BAD_INPUT
    assert says in refused.err


def test_rows_in_the_repository_can_be_read() -> None:
    sources = sorted(RESULTS.glob("*.jsonl"))
    assert sources
    found = rows.read_rows(sources)
    assert all({"operation", "implementation", "mode", "run"} <= row.keys() for row in found)
    check_document(report.build(found, [], {}))


def test_rows_of_the_first_version_have_todays_names(tmp_path: Path) -> None:
    old = tmp_path / "old.jsonl"
    shape = {"circuit": "chain 2^18", "curve": "bn254", "threads": 1, "path": "portable"}
    old.write_text(
        json.dumps({"operation": "groth16 prove, rapidsnark", **shape, "ours_over_theirs": 0.5}) + "\n"
    )
    (row,) = rows.read_rows([old])
    assert (row["operation"], row["implementation"], row["mode"]) == ("groth16 prove", "rapidsnark", "cold")
    assert outcome("proof, chain 2^18", row)["cpu portable"].value == 2.0


def test_rows_go_beside_the_sources_in_a_checkout_and_here_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    assert command.default_output().parent in (RESULTS, Path("bench-results"))
    monkeypatch.setattr(rows, "in_checkout", lambda: False)
    assert command.default_output().parent == Path("bench-results")
    assert command.default_output().suffix == ".jsonl"


def test_errors_in_rows_name_no_folder() -> None:
    """Rows are read on other machines, too; fractions and relative paths stay."""
    said = "error: /home/x/keys/a.ptau: power 3 at f (/opt/node/lib/cli.cjs:13:5), 3/4 of keys/b.zkey"
    assert measure.without_places(said) == "error: a.ptau: power 3 at f (cli.cjs:13:5), 3/4 of keys/b.zkey"
