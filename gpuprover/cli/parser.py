"""The commands and their arguments; imports nothing that is slow to import."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any, NoReturn

from gpuprover.cli.console import write_lines
from gpuprover.errors import InvalidInput
from gpuprover.settings import SETTINGS
from gpuprover.verifier.arguments import add_arguments

EPILOG = """\
exit codes:
  0    done; the proof is valid
  1    the proof is invalid; the witness does not satisfy the circuit
  2    unusable input or arguments
  3    out of memory, device error, time limit, disk full
  130  cancelled (Ctrl-C, SIGTERM)

environment:
  PROVER_DEVICE, PROVER_THREADS, PROVER_MEMORY_LIMIT   defaults of the options of that name
  PROVER_...                                           the other settings: see gpuprover config
  GPUPROVER_CACHE_DIR                                  folder of compiled code
  GPUPROVER_DEBUG=1                                    traceback of an internal error

`gpuprover COMMAND --help` shows a command's arguments."""


PROTOCOLS = ("groth16", "plonk", "fflonk")
"""Names of the proof systems: groups of commands with snarkjs's arguments."""


class _Formatter(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=32)
        self._action_max_length = 16  # argparse forgets that commands are indented twice


class Parser(argparse.ArgumentParser):
    """argparse with errors as one line, without abbreviations of options."""

    def __init__(self, **options: object) -> None:
        options.setdefault("allow_abbrev", False)
        options.setdefault("formatter_class", _Formatter)
        super().__init__(**options)  # type: ignore[arg-type]

    def error(self, message: str) -> NoReturn:
        raise InvalidInput(f"{message} (see {self.prog} --help)")

    def _print_message(self, message: str, file: Any = None) -> None:
        if message:
            write_lines(file or sys.stdout, message.rstrip("\n"), must=True)


class _Mixed(Parser):
    """Takes options between positional arguments of which some may be left out."""

    _inside = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._inside or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False


class _Group:
    """A command that only holds commands, the root included."""

    def __init__(self, parser: Parser, *, required: bool = True, kind: type[Parser] = Parser) -> None:
        self._commands = parser.add_subparsers(
            title="commands", dest="command", metavar="COMMAND", required=required, parser_class=kind
        )

    def group(self, name: str, about: str, kind: type[Parser] = Parser) -> _Group:
        return _Group(self._commands.add_parser(name, help=about, description=about), kind=kind)

    def command(self, name: str, run: str, about: str, details: str = "") -> Parser:
        """A leaf with the common options; ``run`` is ``module:function`` in this package."""
        description = f"{about}\n\n{details}" if details else about
        parser = self._commands.add_parser(name, help=about, description=description)
        parser.set_defaults(run=run)
        common = parser.add_argument_group("common options")
        common.add_argument("--device", metavar="NAME", help="auto, cpu, cuda or cuda:N; default: auto")
        common.add_argument("--threads", metavar="N", help="at most N threads; default: the CPUs there are")
        common.add_argument(
            "--memory-limit", metavar="MIB", help="memory to stay within, the mapped key aside"
        )
        common.add_argument(
            "--json", action="store_true", help="one JSON object on stdout, JSON lines on stderr"
        )
        common.add_argument("--quiet", action="store_true", help="no progress and no summary")
        return parser


def _add_proving_options(parser: Parser) -> None:
    parser.add_argument(
        "--no-verify", action="store_true", help="do not check the proof, but every point of the key"
    )
    parser.add_argument("--timeout", metavar="SECONDS", help="give up after this time")


def _add_protocol(parser: Parser, about: str, default: str | None = PROTOCOLS[0]) -> None:
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        default=default,
        help=f"{about}: {', '.join(PROTOCOLS)}; default: {PROTOCOLS[0]}",
    )


def _add_fuel(parser: Parser) -> None:
    parser.add_argument(
        "--fuel", metavar="N", help="WebAssembly instructions that the program may run; default: 10^11"
    )


def _prove(parser: Parser) -> None:
    _files(parser, zkey="CIRCUIT.zkey", witness="WITNESS.wtns", proof="PROOF.json", public="PUBLIC.json")
    _add_proving_options(parser)


def _fullprove(parser: Parser) -> None:
    _files(
        parser,
        inputs="INPUT.json",
        wasm="CIRCUIT.wasm",
        zkey="CIRCUIT.zkey",
        proof="PROOF.json",
        public="PUBLIC.json",
    )
    _add_proving_options(parser)
    _add_fuel(parser)


def _verify(parser: Parser) -> None:
    _files(parser, vkey="VKEY.json", public="PUBLIC.json", proof="PROOF.json")
    parser.add_argument(
        "--strict", action="store_true", help="refuse numbers that are not decimal text without leading zeros"
    )


def _files(parser: Parser, **names: str) -> None:
    """Positional arguments; their metavars say all, so they stand in the usage line alone."""
    for name, metavar in names.items():
        parser.add_argument(name, metavar=metavar, help=argparse.SUPPRESS)
    parser.usage = f"%(prog)s {' '.join(names.values())} [options]"


# What gpuprover and `gpuprover groth16` share: name, function, about, details, arguments.
_SHARED: list[tuple[str, str, str, str, Callable[[Parser], None]]] = [
    (
        "prove",
        "commands:prove",
        "prove a statement from a key and a witness",
        "Writes PROOF.json and PUBLIC.json as snarkjs does, both or neither. A witness that does not\n"
        "satisfy the circuit is refused with exit code 1.",
        _prove,
    ),
    (
        "fullprove",
        "commands:fullprove",
        "calculate the witness from inputs, then prove",
        "Runs the circuit's witness calculator in a sandbox; the witness is never written to disk.",
        _fullprove,
    ),
    (
        "verify",
        "commands:verify",
        "verify a proof; exit code 0 if it is valid, 1 if not",
        "",
        _verify,
    ),
]


def build_parser() -> Parser:
    """The parser of the whole command line. Its errors raise InvalidInput, --help raises SystemExit."""
    parser = Parser(
        prog="gpuprover",
        description="Makes and verifies zero-knowledge proofs from circom's files.",
        epilog=EPILOG,
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    root = _Group(parser)
    for name, run, about, details, arguments in _SHARED:
        command = root.command(name, run, about, details)
        arguments(command)
        command.set_defaults(protocol=None)  # the files say

    setup = root.command(
        "setup",
        "commands:setup",
        "make a proving key for a circuit",
        "A key of Groth16 has no phase-2 contribution: anybody can forge proofs for it until one is added.\n"
        "PLONK and FFLONK have no second phase. With --insecure the maker of the key can forge proofs,\n"
        "always: for tests and benchmarks.",
    )
    _files(setup, r1cs="CIRCUIT.r1cs", zkey="CIRCUIT.zkey")
    setup.usage = "%(prog)s CIRCUIT.r1cs CIRCUIT.zkey (--ptau FILE.ptau | --insecure) [options]"
    _add_protocol(setup, "proof system of the key")
    source = setup.add_mutually_exclusive_group(required=True)
    source.add_argument("--ptau", metavar="FILE.ptau", help="powers of tau, prepared for phase 2")
    source.add_argument("--insecure", action="store_true", help="a secret made here, and thrown away")

    for protocol in PROTOCOLS:
        group = root.group(protocol, f"setup, prove, fullprove, verify for {protocol}, as in snarkjs")
        ptau_setup = group.command("setup", "commands:setup", "make a proving key from powers of tau")
        _files(ptau_setup, r1cs="CIRCUIT.r1cs", ptau="FILE.ptau", zkey="CIRCUIT.zkey")
        ptau_setup.set_defaults(insecure=False, protocol=protocol)
        for name, run, about, details, arguments in _SHARED:
            command = group.command(name, run, about, details)
            arguments(command)
            command.set_defaults(protocol=protocol)

    wtns = root.group("wtns", "calculate or check a witness")
    calculate = wtns.command("calculate", "commands:wtns_calculate", "calculate a witness from inputs")
    _files(calculate, wasm="CIRCUIT.wasm", inputs="INPUT.json", witness="WITNESS.wtns")
    _add_fuel(calculate)
    check = wtns.command(
        "check", "commands:wtns_check", "check a witness against every constraint of its circuit"
    )
    _files(check, r1cs="CIRCUIT.r1cs", witness="WITNESS.wtns")

    zkey = root.group("zkey", "inspect, check or export from a proving key")
    _files(zkey.command("info", "commands:zkey_info", "show what a key holds"), zkey="CIRCUIT.zkey")
    key_check = zkey.command(
        "check",
        "commands:zkey_check",
        "check every point, and whether sections belong together",
        "Says what was checked and what was not: Groth16's IC and C need the powers of tau (zkey verify).",
    )
    _files(key_check, zkey="CIRCUIT.zkey")
    key_check.add_argument(
        "--r1cs", metavar="CIRCUIT.r1cs", help="compare the coefficients with it; default: one beside the key"
    )
    _files(
        zkey.command(
            "verify",
            "commands:zkey_verify",
            "check a key against its circuit and powers of tau",
            "Every section; of Groth16 for the key's own delta, and without its contributions' proofs.",
        ),
        r1cs="CIRCUIT.r1cs",
        ptau="FILE.ptau",
        zkey="CIRCUIT.zkey",
    )
    export = zkey.group("export", "verification key, Solidity verifier, calldata")
    vkey = export.command("verificationkey", "commands:export_verification_key", "write the verification key")
    _files(vkey, zkey="CIRCUIT.zkey", vkey="VKEY.json")
    solidity = export.command(
        "solidityverifier", "commands:export_solidity_verifier", "write a verifier contract"
    )
    _files(solidity, zkey="CIRCUIT.zkey", contract="VERIFIER.sol")
    solidity.add_argument(
        "--allow-insecure", action="store_true", help="also for a key that proofs can be forged for"
    )
    calldata = export.command(
        "soliditycalldata",
        "commands:export_calldata",
        "print a proof as arguments of the contract's verifyProof",
    )
    _files(calldata, public="PUBLIC.json", proof="PROOF.json")

    _midnight(root.group("midnight", "proofs, keys and circuits of the Midnight network", _Mixed))

    worker = root.command(
        "worker",
        "stdin_worker:run",
        "answer jobs from stdin, keeping keys loaded",
        "A line of stdin is a job, answered by one line of JSON on stdout, in order:\n"
        "  prove --zkey FILE --witness FILE --proof FILE --public FILE\n"
        "        [--device NAME] [--threads N] [--memory-limit MIB] [--timeout SECONDS] [--no-verify]\n"
        "  quit\n"
        "Quote names with blanks as in a shell. The worker ends at `quit`, at the end of stdin, or on\n"
        "SIGTERM; a job that fails is answered and ends nothing.",
    )
    worker.add_argument("--keys", metavar="N", default="4", help="keep at most N keys loaded; default: 4")

    serve = root.command(
        "serve",
        "serve:run",
        "answer over HTTP: proofs, verification, metrics, a status page",
        "Every setting of `gpuprover config` is an option here. SIGTERM lets what runs and waits end,\n"
        "within --grace-period; a second signal ends it at once. See docs/http.md.",
    )
    _settings(serve)

    config = root.command(
        "config",
        "commands:config",
        "show every setting, its value and where it comes from",
        "By option, else by variable, else by the machine; a container's limits count, not its host's.",
    )
    config.add_argument("--markdown", action="store_true", help="the table of all settings, for documents")

    verifier = root.command(
        "verifier",
        "commands:verifier",
        "verify for other processes, with no proving key, GPU or witness program in this one",
        "Listens until SIGTERM; requests that wait by then are still answered. A Unix socket is this user's\n"
        "alone. An address is one of this machine, open to all who reach it, or else asks for a secret that\n"
        "clients share (--secret-file). Clients: gpuprover.verifier.client.VerifierClient.",
    )
    add_arguments(verifier)
    verifier.usage = "%(prog)s (--socket PATH | --listen HOST:PORT) [--vkey NAME=FILE] [options]"

    _estimate(
        root.command(
            "estimate",
            "sizing:estimate",
            "proofs an hour and the memory for them, and where the common formula misleads",
            'By the formula cores / "proofs per core" * 3600 / seconds, where "proofs per core" is the\n'
            "number of cores that one proof occupies; or by what is measured on this machine (--measured).",
        )
    )
    _profile(
        root.command(
            "profile",
            "sizing:profile",
            "make a few proofs, show where time and memory go and what to change",
        )
    )
    doctor = root.command("doctor", "doctor:run", "show what this machine offers, what is used, and why")
    doctor.add_argument("--check", action="store_true", help="exit with 3 where nothing could be proved")
    warmup = root.command("warmup", "doctor:warmup", "compile everything now, into the cache")
    warmup.add_argument("--curve", metavar="NAME", help="only for this curve: bn254 or bls12-381")

    bench = root.command(
        "bench",
        "commands:bench",
        "measure speed and memory, alone or beside other provers",
        "Writes rows as they are measured, then pictures and a report beside them. LIST is comma-separated.",
    )
    _bench(bench)
    parts = _Group(bench, required=False)
    report = parts.command("report", "commands:bench_report", "make report and pictures anew from rows")
    report.add_argument("rows", metavar="ROWS.jsonl", nargs="+", help="rows of one or more runs")
    report.add_argument(
        "--output",
        metavar="FILE.html",
        default="report.html",
        help="pictures go beside it; default: report.html",
    )
    report.add_argument(
        "--notes", metavar="FILE", help="why targets are missed: text under ## NAME OF TARGET"
    )
    report.add_argument("--readme", action="store_true", help="print markdown tables for a README")
    _bench_engine(parts)
    return parser


def _midnight(group: _Group) -> None:
    prove = group.command(
        "prove",
        "midnight:prove",
        "prove a statement from a key and a preimage",
        "Writes PROOF in the ledger's envelope. A preimage that the circuit does not accept is refused with\n"
        "exit code 1. With --advice and --public there is no PREIMAGE.",
    )
    prove.add_argument("prover", metavar="CIRCUIT.prover", help=argparse.SUPPRESS)
    prove.add_argument("verifier", metavar="CIRCUIT.verifier", help=argparse.SUPPRESS)
    prove.add_argument("files", metavar="PREIMAGE PROOF", nargs="*", help=argparse.SUPPRESS)
    prove.usage = (
        "%(prog)s CIRCUIT.prover CIRCUIT.verifier PREIMAGE PROOF [options]\n"
        "       %(prog)s CIRCUIT.prover CIRCUIT.verifier PROOF --advice FILE --public PIS.json [options]"
    )
    prove.add_argument("--binding", metavar="N", help="a binding input in place of the preimage's")
    prove.add_argument("--raw", action="store_true", help="write the proof without an envelope")
    prove.add_argument("--advice", metavar="FILE", help="a table of advice columns, in place of a preimage")
    prove.add_argument("--public", metavar="PIS.json", help="with --advice: the public inputs")
    _add_values_option(prove)
    _add_proving_options(prove)
    verify = group.command(
        "verify",
        "midnight:verify",
        "verify a proof; exit code 0 if it is valid, 1 if not",
        "PIS.json is a list of decimal strings, or an object with one such list. PROOF is raw, or in either\n"
        "envelope.",
    )
    _files(verify, verifier="CIRCUIT.verifier", public="PIS.json", proof="PROOF")
    check = group.command(
        "check",
        "midnight:check",
        "run a circuit on a preimage, without a proof; exit code 1 if it is not satisfied",
        "Says of each group of declared inputs whether it is active, or how many values are skipped.",
    )
    _files(check, circuit="CIRCUIT.bzkir", preimage="PREIMAGE")
    check.add_argument("--binding", metavar="N", help="a binding input in place of the preimage's")
    _add_values_option(check)
    size = group.command("k", "midnight:k", "print k, the size of a circuit: it has 2^k rows")
    _files(size, circuit="CIRCUIT.bzkir")
    keygen = group.command(
        "keygen", "midnight:keygen", "make the keys of a circuit, as the network's tools make them"
    )
    _files(keygen, circuit="CIRCUIT.bzkir", prover="CIRCUIT.prover", verifier="CIRCUIT.verifier")
    for parser in (prove, verify, keygen):
        parser.add_argument(
            "--srs",
            metavar="DIR",
            help="the folder of the parameters; default: MIDNIGHT_PP, else midnight/zk-params in the cache",
        )
    info = group.command(
        "info", "midnight:info", "show what a key, a circuit, a preimage, a proof or parameters hold"
    )
    _files(info, file="FILE")

    _midnight_serve(group)
    srs = group.group("srs", "check or downsize parameters (bls_midnight_2pK)")
    _files(
        srs.command(
            "check",
            "midnight:srs_check",
            "compare parameters with the published SHA-256",
        ),
        file="FILE",
    )
    downsize = srs.command("downsize", "midnight:srs_downsize", "make parameters for fewer rows, exactly")
    downsize.add_argument("--k", metavar="K", required=True, help="the parameters are for 2^K rows")
    _files(downsize, file="FILE", target="TARGET")
    downsize.usage = "%(prog)s FILE TARGET --k K [options]"


def _midnight_serve(group: _Group) -> None:
    serve = group.command(
        "serve",
        "midnight_serve:run",
        "answer Midnight's clients: the network's proof server, with its flags, variables and port",
        "MIDNIGHT_PROOF_SERVER_PORT, _VERBOSE, _JOB_CAPACITY, _NUM_WORKERS, _JOB_TIMEOUT are defaults.\n"
        "Nothing is fetched: parameters are in --midnight-parameters or MIDNIGHT_PP. All options of\n"
        "`gpuprover serve` do, too; for other machines than this one, --host 0.0.0.0.",
    )
    serve.add_argument("-p", "--port", metavar="N", help="port; default: 6300")
    serve.add_argument("-v", "--verbose", action="store_true", help="log more; of requests never the bodies")
    serve.add_argument("--job-capacity", metavar="N", help="proofs that may wait; default: 0, no limit")
    serve.add_argument("--num-workers", metavar="N", help="worker processes; default: as for serve")
    serve.add_argument("--job-timeout", metavar="SECONDS", help="for one proof, with its wait; default: 600")
    serve.add_argument("--no-fetch-params", action="store_true", help="nothing: it is always so here")
    _settings(serve)
    health = group.command(
        "healthcheck",
        "midnight_serve:healthcheck",
        "exit code 0 if a proof server is ready",
    )
    health.add_argument("--url", metavar="URL", help="default: http://127.0.0.1:6300/ready")


def _add_values_option(parser: Parser) -> None:
    parser.add_argument(
        "--show-values", action="store_true", help="say values of the preimage where a check fails: secret"
    )


def _estimate(parser: Parser) -> None:
    def option(*names: str, metavar: str, about: str) -> None:
        parser.add_argument(*names, metavar=metavar, help=about)

    option("--cores", metavar="N", about="cores for proofs; default: --threads")
    option(
        "--cores-per-proof",
        "--proofs-per-core",
        metavar="N",
        about="cores that one proof occupies; default: 1, with --measured what makes most proofs",
    )
    option("--proof-time", metavar="SECONDS", about="of one proof, on average; needed without --measured")
    parser.add_argument("--measured", action="store_true", help="by this machine's measured times")
    option("--constraints", metavar="N", about="size of the circuit: constraints, or gates")
    option("--curve", metavar="NAME", about="with --constraints: bn254 or bls12-381; default: bn254")
    option("--r1cs", metavar="CIRCUIT.r1cs", about="size, curve and memory of the key of this circuit")
    option("--zkey", metavar="CIRCUIT.zkey", about="protocol, size, curve and memory of this key")
    _add_protocol(parser, "proof system, where no key says it", default=None)


def _profile(parser: Parser) -> None:
    _files(parser, zkey="CIRCUIT.zkey", witness="WITNESS.wtns")
    parser.add_argument("--proofs", metavar="N", default="3", help="proofs after the first; default: 3")
    parser.add_argument("--output", metavar="FILE", help="a picture: FILE.png or FILE.svg; needs matplotlib")


def _settings(parser: Parser) -> None:
    """An option for each setting of a prover and of the service, but for those that every command has."""
    own = parser.add_argument_group("settings")
    for row in SETTINGS:
        option = "--" + row.name.replace("_", "-")
        if (row.own or row.service) and option not in parser._option_string_actions:
            about = row.meaning.replace("`", "").replace("%", "%%")
            own.add_argument(option, metavar=row.unit.upper().split(" ")[0] or "VALUE", help=about)


def _bench(parser: Parser) -> None:
    def option(name: str, metavar: str, about: str) -> None:
        parser.add_argument(name, metavar=metavar, help=about)

    def repeated(name: str, metavar: str, about: str) -> None:
        parser.add_argument(name, metavar=metavar, help=f"{about}; may be repeated", action="append")

    parser.add_argument("--quick", action="store_true", help="small sizes, under half a minute")
    parser.add_argument(
        "--calibrate", action="store_true", help="only what --device auto needs to know; within two minutes"
    )
    option("--only", "LIST", "some of field,ntt,msm,columns,prove,verify,import")
    option("--logs", "LIST", "sizes as powers of two; default: 12,14,16,18")
    option("--curves", "LIST", "bn254,bls12-381; default: both")
    option("--protocols", "LIST", f"some of {','.join(PROTOCOLS)}; default: {PROTOCOLS[0]}, --calibrate: all")
    option("--merkle", "LIST", "levels of Merkle paths to prove; default: 32")
    repeated("--files", "NAME=ZKEY,WTNS", "a key and a witness to prove with")
    repeated(
        "--setup", "NAME=R1CS,PTAU", "a circuit to set up by each of --protocols, beside snarkjs if a peer"
    )
    option("--paths", "LIST", "ifma,portable; default: this CPU's")
    option("--rounds", "N", "rounds after a warm-up; default: 5")
    parser.add_argument("--first-use", action="store_true", help="time a proof that compiles everything, too")
    repeated(
        "--peer",
        "NAME=COMMAND",
        "a prover: {zkey} {wtns} {proof} {public}, also {protocol}; or snarkjs, snarkjs-warm, arkworks",
    )
    repeated("--peer-inner", "NAME=COMMAND", "another implementation's loops, as JSON lines")
    option("--peer-limit", "SECONDS", "give up on a peer's run after this time; default: 600")
    option("--work", "DIR", "keep circuits and keys here for the next run; default: a temporary folder")
    option("--output", "FILE.jsonl", "rows, appended; default: by date in bench/results or bench-results")


def _bench_engine(parts: _Group) -> None:
    processes = parts.command(
        "processes",
        "commands:bench_processes",
        "memory and latency of an engine's processes, for each of its policies",
        "Writes processes.jsonl (rows, appended), processes.csv (samples) and processes.png.",
    )
    network = parts.command(
        "network",
        "commands:bench_network",
        "the same of a small network of nodes that exchange proofs",
        "Writes network.jsonl (rows, appended), network.csv (samples) and network.png.",
    )
    for parser, log in ((processes, "18"), (network, "12")):
        parser.add_argument(
            "--output", metavar="FOLDER", default="bench-results", help="default: bench-results"
        )
        parser.add_argument(
            "--log", metavar="N", default=log, help=f"a circuit of 2^N constraints; default: {log}"
        )
        parser.add_argument("--work", metavar="DIR", help="keep keys here for the next run")
    processes.add_argument("--policies", metavar="LIST", help="some of eager,lazy,off")
    processes.add_argument("--workers", metavar="N", default="2", help="default: 2")
    processes.add_argument("--proofs", metavar="N", default="5", help="proofs in turn; default: 5")
    processes.add_argument("--verifications", metavar="N", default="1000", help="default: 1000")
    processes.add_argument("--first-use", action="store_true", help="a start that compiles everything, too")
    network.add_argument("--rounds", metavar="N", default="5", help="default: 5")
    service = parts.command(
        "service",
        "commands:bench_service",
        "throughput, latency and memory of the proving service under load",
        "Starts `gpuprover serve`, or asks a service that runs (--url). Writes service.jsonl (rows,\n"
        "appended), service.csv (samples of memory) and service.png.",
    )
    service.add_argument("--url", metavar="URL", help="a service that runs: http://HOST:PORT")
    service.add_argument("--token-file", metavar="FILE", help="with --url: the bearer token")
    service.add_argument("--circuit", metavar="NAME", help="with --url: the circuit to prove")
    service.add_argument("--witness", metavar="FILE.wtns", help="with --url: its witness")
    service.add_argument("--log", metavar="N", default="6", help="a circuit of 2^N constraints; default: 6")
    service.add_argument("--clients", metavar="LIST", default="1,2,4,8,16,32,64", help="numbers of clients")
    service.add_argument("--seconds", metavar="S", default="10", help="for each number; default: 10")
    service.add_argument("--burst", metavar="N", default="1000", help="clients at once; default: 1000")
    service.add_argument(
        "--proofs", metavar="N", default="20000", help="over which memory is watched; default: 20000"
    )
    service.add_argument("--output", metavar="FOLDER", default="bench-results", help="default: bench-results")
    service.add_argument("--work", metavar="DIR", help="keep keys here for the next run")
    fill = parts.command("fill", "commands:bench_fill", "put tables of rows into documents")
    fill.add_argument("documents", metavar="FILE.md", nargs="+", help="with blocks <!-- rows: NAME -->")
    fill.add_argument("--rows", metavar="ROWS.jsonl", action="append", required=True, help="may be repeated")


class _Version(argparse.Action):
    """--version, which looks the version up only when asked."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from gpuprover import __version__

        parser._print_message(f"gpuprover {__version__}\n", sys.stdout)
        parser.exit()
