"""The tests of a module are where its name says, or where the table here says, with a reason."""

from __future__ import annotations

from tests.support.paths import ROOT, TESTS

EXCEPTIONS: dict[str, tuple[str, str]] = {
    "test_backend.py": (
        "demand naive polynomial cpu/backend cpu/points cpu/buckets cpu/combine cpu/membership cpu/ntt"
        " cpu/rows cpu/kernels/inversion cpu/kernels/vector cpu/endomorphisms",
        "the suite that every backend passes, on both paths of the CPU",
    ),
    "test_backend_columns.py": ("cpu/columns", "the same suite, continued"),
    "test_layers.py": ("version", "one line"),
    "test_config.py": ("settings", "the table is read through config"),
    "cli/test_entry.py": (
        "__main__ cli/console cli/context cli/parser cli/stdin_worker",
        "whole commands over a stand-in for the prover",
    ),
    "cli/test_midnight.py": (
        "midnight_api midnight/circuit/keygen systems/midnight/consistency systems/midnight/key",
        "the commands and the calls behind them, on real files",
    ),
    "midnight/test_engine.py": (
        "systems/midnight/record systems/midnight/witness",
        "what a prover and the service make of the record",
    ),
    "cli/test_commands.py": ("cli/doctor cpu/warm", "whole commands on real files"),
    "test_sizing.py": ("cli/sizing", "the command's answers beside what they are made of"),
    "service/test_server.py": ("cli/serve", "a service as a process"),
    "service/midnight/test_routes.py": (
        "service/midnight/cors service/midnight/keys service/midnight/offer service/midnight/parameters"
        " service/midnight/proof_server",
        "a whole service over a stand-in for what proves",
    ),
    "service/midnight/test_command.py": ("cli/midnight_serve", "its settings, and a service as a process"),
    "cpu/test_image.py": ("cpu/bake cpu/compiled cpu/sources", "images are made, and used, by these"),
    "cpu/kernels/test_field.py": ("cpu/layout cpu/kernels/jit", "what compiled fields are made of"),
    "cpu/test_lanes_anywhere.py": ("cpu/path", "it chooses the suites' path"),
    "cpu/test_encoded_points.py": ("cpu/kernels/roots", "its kernel"),
    "cpu/test_pairing.py": ("cpu/kernels/extension_lanes", "its operators, at their bounds"),
    "cpu/test_ntt_lanes.py": (
        "cpu/kernels/limbs cpu/kernels/lanes cpu/kernels/lanes_memory cpu/kernels/loose",
        "the transforms are made of them",
    ),
    "cuda/test_compile.py": ("cuda/build cuda/source", "from sources to cubins"),
    "cuda/test_cupy_device.py": ("cuda/device cuda/gpus", "the protocol's real device, and their registry"),
    "cuda/test_backend.py": (
        "cuda/residency cuda/handles cuda/sums",
        "what of a key stays on a device, and the sums over it",
    ),
    "cuda/test_msm.py": ("cuda/msm_plan cuda/msm_launches", "the plan of each sum, and its launches"),
    "cuda/test_calls.py": ("cuda/rehearsal rehearsal", "a rehearsed proof asks for no memory later"),
    "formats/test_circom.py": (
        "formats/binfile formats/points formats/ptau formats/r1cs formats/wtns formats/zkey"
        " systems/groth16/key",
        "one damage, every container",
    ),
    "systems/groth16/test_documents.py": (
        "formats/groth16_json formats/snarkjs_json",
        "the protocol's documents",
    ),
    "systems/groth16/test_consistency.py": (
        "groth16/consistency formats/key_warnings systems/groth16/key_warnings",
        "what is said of keys",
    ),
    "systems/groth16/test_prover.py": (
        "groth16/prover systems/groth16/record",
        "whole proofs, of every kind of witness",
    ),
    "systems/plonk/test_documents.py": (
        "plonkish/documents plonkish/key systems/plonk/key",
        "the protocol's",
    ),
    "systems/plonk/test_prover.py": (
        "systems/plonk/record plonkish/diagnosis plonkish/permutation plonkish/wires",
        "whole proofs, and why one does not hold",
    ),
    "systems/plonk/test_verifier.py": ("plonkish/verification", "the protocol's, at its challenges"),
    "systems/fflonk/test_prover.py": ("systems/fflonk/record plonkish/checks", "whole proofs, good and bad"),
    "systems/groth16/test_setup.py": (
        "systems/groth16/from_ptau systems/groth16/from_secret systems/groth16/key_writer",
        "set-ups as a whole: what they write",
    ),
    "plonkish/test_setup.py": (
        "commitments/powers plonkish/key_writer",
        "powers of tau, and sections as keys hold them",
    ),
    "plonkish/test_consistency.py": (
        "systems/plonk/consistency systems/fflonk/consistency",
        "both systems' whole keys, one damage at a time",
    ),
    "systems/groth16/test_verifier.py": ("groth16/verifier", "the protocol's"),
    "test_witness.py": ("witness_program circuit_inputs", "whole runs of programs"),
    "systems/groth16/test_solidity.py": ("solidity systems/ethereum", "the protocol's"),
    "commitments/test_transcript.py": (
        "keccak cpu/keccak cpu/kernels/keccak formats/compressed",
        "what transcripts absorb",
    ),
    "engine/test_prover.py": (
        "engine/local engine/proof_job engine/verification engine/driver engine/status engine/terms",
        "real proofs in this process",
    ),
    "engine/test_dispatch.py": (
        "engine/device_queue engine/entrance engine/records engine/runs engine/seats",
        "what the dispatcher works on",
    ),
    "workers/test_pool.py": (
        "executor workers/records workers/troubles workers/wire workers/worker workers/__main__",
        "real processes, from the supervisor's side",
    ),
    "service/test_routes.py": (
        "service/app service/core service/models service/rapidsnark service/results",
        "the service over HTTP",
    ),
    "service/test_hostile.py": (
        "service/bodies service/connections service/shares service/surroundings",
        "bounds, under clients that go to them",
    ),
    "verifier/test_process.py": (
        "verifier/__main__ verifier/address verifier/arguments verifier/client verifier/connections"
        " verifier/keys verifier/secret verifier/serve verifier/server",
        "real processes, from the client's side",
    ),
    "midnight/test_constraint_system.py": (
        "midnight/architecture midnight/profile systems/midnight/argument",
        "the numbers that follow from each architecture, in both lines",
    ),
    "midnight/test_layout.py": (
        "midnight/circuit/synthesis midnight/circuit/poseidon_chip",
        "whole circuits, cell by cell",
    ),
    "midnight/circuit/test_fronts.py": (
        "midnight/circuit/front_v2 midnight/circuit/front_v3",
        "instructions of both languages",
    ),
    "cpu/test_tape.py": ("midnight/circuit/tape", "what operations mean, beside the machine"),
    "systems/midnight/test_prover.py": ("systems/midnight/diagnosis", "what a table breaks, of whole proofs"),
    "systems/midnight/test_verifier.py": ("systems/midnight/documents", "official proofs, and damaged ones"),
    "midnight/ir/test_files.py": (
        "midnight/ir/circuit midnight/ir/codec midnight/ir/v2 midnight/ir/v3",
        "both forms of both versions, there and back",
    ),
    "midnight/ir/test_run.py": (
        "midnight/ir/failure midnight/ir/hashing midnight/ir/machine midnight/ir/machine_v2"
        " midnight/ir/machine_v3",
        "whole statements, and every way in which one does not hold",
    ),
    "test_calibration.py": ("bench/calibrate bench/fit", "measured, kept and read again"),
    "bench/test_command.py": (
        "bench/host bench/measure bench/operations bench/peers bench/pictures bench/proofs bench/report"
        " bench/rows bench/setups bench/targets",
        "tiny runs end to end",
    ),
    "bench/test_processes.py": (
        "bench/documents bench/drawings bench/engine_command bench/network bench/node",
        "runs with a stand-in for the engine",
    ),
    "bench/test_load.py": ("bench/launch bench/load_command", "runs with a stand-in for the service"),
    "bench/gpu/test_command.py": (
        "bench/gpu/__main__ bench/gpu/cases bench/gpu/checks bench/gpu/journal bench/gpu/measures"
        " bench/gpu/preparing bench/gpu/processes bench/gpu/worker",
        "whole runs on the emulated device",
    ),
}
"""Test file -> the modules whose tests it holds beside those of its name, and why."""
UNTESTED = {"demo": "what make demo shows; the calls that it consists of have tests"}


def modules() -> list[str]:
    """Paths below ``gpuprover/``, of which ``bench/`` is a part; packages' own files hold no code to test."""
    package, bench = ROOT / "gpuprover", ROOT / "bench"
    paths = [path.relative_to(package) for path in package.rglob("*.py")]
    paths += [path.relative_to(ROOT) for path in bench.rglob("*.py")]
    return sorted(path.with_suffix("").as_posix() for path in paths if path.name != "__init__.py")


def by_name(module: str) -> str | None:
    """The test file that the name of a module finds: its own; a kernel's driver's; of lanes, the path's."""
    folder, _, name = module.rpartition("/")
    own = f"{folder}/test_{name}.py" if folder else f"test_{name}.py"
    if (TESTS / own).exists():
        return own
    if folder == "cpu/kernels":
        return by_name(f"cpu/{name}") or excepted(f"cpu/{name}") or _of_lanes(module)
    return _of_lanes(module)


def _of_lanes(module: str) -> str | None:
    """Suites run on both paths: what has one name but for the suffix has the same tests."""
    plain = module.removesuffix("_lanes")
    return None if plain == module else by_name(plain) or excepted(plain)


def excepted(module: str) -> str | None:
    return next((file for file, (those, _) in EXCEPTIONS.items() if module in those.split()), None)


def test_every_module_has_tests_that_are_found() -> None:
    homes = {module: (by_name(module), excepted(module), UNTESTED.get(module)) for module in modules()}
    assert [m for m, home in homes.items() if not any(home)] == [], "a test file of its name, or a line above"


def test_the_table_names_test_files_that_are_there() -> None:
    there = set(modules())
    for file, (those, reason) in EXCEPTIONS.items():
        assert reason
        assert (TESTS / file).is_file() or not there & set(those.split()), file
    listed = [module for those, _ in EXCEPTIONS.values() for module in those.split()]
    assert len(listed) == len(set(listed))


def test_every_folder_of_tests_is_a_package() -> None:
    """Else names of files could not repeat, and helpers would be imported in more than one way."""
    folders = {path.parent for path in TESTS.rglob("test_*.py")}
    assert not [str(folder) for folder in folders if not (folder / "__init__.py").exists()]
