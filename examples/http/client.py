"""Proofs from a proving service, many at once: python client.py URL CIRCUIT WITNESS.wtns [COUNT]"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path

from gpuprover import AsyncClient, ProverError


async def main(url: str, circuit: str, witness: str, count: int) -> None:
    content = Path(witness).read_bytes()
    async with AsyncClient(url, token=os.environ.get("PROVER_TOKEN")) as client:
        begun = time.perf_counter()
        made = await asyncio.gather(*(client.prove(circuit, content, timeout=300) for _ in range(count)))
        seconds = time.perf_counter() - begun
        ids = len({proof.id for proof in made})
        print(f"{count} proofs of {circuit} in {seconds:.2f} s, each from another run: {ids} ids")
        statements = [(proof.public_signals or [], proof.proof or {}) for proof in made]
        print("all hold" if all(await client.verify_batch(circuit, statements)) else "some do not hold")
        status = await client.status()
        waiting = status["queued_jobs"] or "none"
        print(f"the service has made {status['counters']['succeeded']} proofs, {waiting} waits")


if __name__ == "__main__":
    if len(sys.argv) not in (4, 5):
        sys.exit(__doc__)
    try:
        asyncio.run(main(*sys.argv[1:4], int(sys.argv[4]) if len(sys.argv) == 5 else 8))
    except ProverError as error:
        sys.exit(f"{error.kind}: {error.message}")
