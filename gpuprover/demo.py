"""``make demo``: a real statement, from files to a verified proof, with the commands a user would type.

The statement: "I know a leaf of a Poseidon Merkle tree with this root, and the path to it",
for a tree of 2^20 leaves. Everything is written to ``demo-out/``.
"""

from __future__ import annotations

import shlex
import sys
import time
from pathlib import Path

DEPTH = 20


def main(folder: Path = Path("demo-out"), depth: int = DEPTH) -> int:
    """Runs the demo and returns the exit code of the first command that fails, or 0."""
    from gpuprover.circuits import merkle_circuit
    from gpuprover.cli import main as gpuprover

    begun = time.perf_counter()
    folder.mkdir(parents=True, exist_ok=True)
    circuit, witness, key, vkey, proof, public = (
        str(folder / name)
        for name in ("merkle.r1cs", "merkle.wtns", "merkle.zkey", "vkey.json", "proof.json", "public.json")
    )
    built = merkle_circuit(depth)
    built.write(circuit, witness)
    print(f"Statement: membership in a Poseidon Merkle tree of depth {depth}, leaf and path secret.")
    print(f"Circuit:   {built.r1cs.n_constraints:,} constraints over {built.r1cs.curve.name}")
    print(f"           {circuit} and {witness}")
    print("The first run on a machine compiles the arithmetic; the compiled code is kept.")
    commands = (
        ("setup", circuit, key, "--insecure"),
        ("zkey", "export", "verificationkey", key, vkey),
        ("prove", key, witness, proof, public),
        ("verify", vkey, public, proof),
    )
    for command in commands:
        print(f"\n$ gpuprover {shlex.join(command)}", flush=True)
        before = time.perf_counter()
        code = gpuprover(command)
        if code:
            return code
        print(f"  {time.perf_counter() - before:.1f} s", flush=True)
    _prove_again(key, witness)
    again = shlex.join(("gpuprover", "prove", key, witness, proof, public))
    print(f"\nDone in {time.perf_counter() - begun:.1f} s. To try next:\n  {_shown_folder()}{again}")
    return 0


def _prove_again(key: str, witness: str) -> None:
    """The same proof through the library, with everything compiled: seconds by phase."""
    import gpuprover

    print(f'\n>>> gpuprover.prove("{key}", "{witness}").timings')
    result = gpuprover.prove(key, witness)
    for phase, seconds in result.timings.items():
        print(f"  {phase:<20}{seconds:8.3f} s")
    total = sum(result.timings.values())
    print(f"  {'all, compiled':<20}{total:8.3f} s on {result.device}, verified", flush=True)


def _shown_folder() -> str:
    """How the command is reached from here: through the virtual environment's folder if need be."""
    folder = Path(sys.executable).parent
    try:
        return f"{folder.relative_to(Path.cwd())}/"
    except ValueError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
