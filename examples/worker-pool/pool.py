"""A pool of workers that prove side by side, one of which is killed: every proof is still made, once.

    python pool.py [KEYS]

KEYS is a folder with ``chain.zkey`` and ``chain.wtns``; without it they are made in a temporary one. There is
no ``if __name__ == "__main__"`` here: workers are programs of their own and never run this file again.
"""

import os
import signal
import sys
import tempfile
import time
from pathlib import Path

import gpuprover
from gpuprover.circuits import chain_circuit

PROOFS = 12
WORKERS = 2

folder = tempfile.TemporaryDirectory()
keys = Path(sys.argv[1] if len(sys.argv) > 1 else folder.name)
if not (keys / "chain.zkey").exists():
    chain_circuit(3000).write(keys / "chain.r1cs", keys / "chain.wtns")
    gpuprover.setup(keys / "chain.r1cs", keys / "chain.zkey", insecure=True)
witness = (keys / "chain.wtns").read_bytes()

with gpuprover.create_prover(
    circuit_keys_path=keys,
    preload_circuits=["chain"],
    threads=WORKERS,
    min_workers=WORKERS,
    max_workers=WORKERS,
) as prover:
    begun = time.perf_counter()
    jobs = [prover.submit("chain", witness) for _ in range(PROOFS)]
    jobs[0].wait()
    print(f"first proof after {time.perf_counter() - begun:.2f} s")

    running = [worker for worker in prover.get_status().workers if worker.pid is not None]
    victim = next((worker for worker in running if worker.state == "busy"), running[0]).pid
    os.kill(victim, signal.SIGKILL)
    print(f"killed worker {victim} with {sum(not job.done() for job in jobs)} proofs to go")

    results = [job.wait() for job in jobs]
    print(f"{len(results)} proofs after {time.perf_counter() - begun:.2f} s")
    again = sum(job.attempts - 1 for job in jobs)
    print(f"{again} of them begun again")

    statements = [(result.public_signals, result.proof) for result in results]
    assert all(prover.verify_batch("chain", statements)), "a proof does not hold"
    # Every proof has a blinding of its own: one that was delivered twice would be there twice.
    assert len({str(result.proof) for result in results}) == PROOFS
    assert victim not in [worker.pid for worker in prover.get_status().workers]
    print("all hold, each is another")
folder.cleanup()
