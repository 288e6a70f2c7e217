"""What Midnight's routes share: the ledger's own circuits, keys by digest, and the first proof."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.resources import files
from pathlib import Path

import numpy as np

from gpuprover.engine import ProofJob
from gpuprover.errors import InvalidInput, MalformedFile, ProverError, UnsatisfiedWitness
from gpuprover.formats.files import open_regular
from gpuprover.midnight.envelopes import KeyMaterial
from gpuprover.midnight.ir.failure import explain
from gpuprover.midnight.ir.files import read_circuit
from gpuprover.midnight.ir.run import run
from gpuprover.midnight.keys import read_prover_key, read_verifier_key
from gpuprover.midnight.preimage import Preimage, write_preimage
from gpuprover.midnight.srs import srs_folder
from gpuprover.proving import ProofResult
from gpuprover.service.bodies import Reservation
from gpuprover.service.core import Service
from gpuprover.service.midnight.keys import KeyStore, StoredKey
from gpuprover.service.midnight.parameters import require_parameters
from gpuprover.service.results import Record

log = logging.getLogger("gpuprover.service")

TEST_SECONDS = 600.0
"""For the first proof: code may have to be compiled."""
TEST_AGAIN_SECONDS = 10.0
MAX_KEY = 1 << 30
"""Bytes of a file of the ledger's own circuits."""

_BUILT_IN = {
    "midnight/zswap/spend": ("zswap", "spend"),
    "midnight/zswap/output": ("zswap", "output"),
    "midnight/zswap/sign": ("zswap", "sign"),
    "midnight/dust/spend": ("dust", "spend"),
}
"""Location of a key -> folder of its versions beside the parameters, name of its files."""
_VERSION = re.compile(r"\d{1,6}")


@contextmanager
def sent() -> Iterator[None]:
    """Errors of the block are about a request's body, whatever file in it they name."""
    try:
        yield
    except ProverError as error:
        if error.path is not None and error.role != "body":
            error.part = ": ".join(filter(None, (error.role, error.part)))
            error.role = "body"
        raise


def check_material(material: KeyMaterial) -> None:
    """Whether the three files that come with a request belong together.

    Raises:
        MalformedFile, UnsupportedFile: one is damaged; or they are of different circuits.
    """
    key = read_prover_key(material.prover, "prover key")
    verifier = read_verifier_key(material.verifier, "verifier key")
    if key.profile is not verifier.profile or key.k != verifier.k:
        raise MalformedFile("body", "verifier key", "it is of another kind or size than the prover key")
    for ours, theirs in (
        (key.fixed_commitments, verifier.fixed),
        (key.permutation_commitments, verifier.permutation),
    ):
        if not np.array_equal(ours, theirs):
            raise MalformedFile(
                "body", "verifier key", "its commitments are not those of the prover key: two circuits"
            )
    if bytes(material.circuit) != key.circuit:
        raise MalformedFile("body", "circuit", "it is not the circuit of the prover key")


class ProofServer:
    """Of one event loop, but for :meth:`material`.

    Attributes:
        keys: keys that came with requests.
        problem: why no proof can be had now; empty once the first proof was made.
        values: whether answers may hold values of a preimage.
    """

    def __init__(self, service: Service) -> None:
        settings = service.settings
        self._service = service
        self._folder = srs_folder(settings.midnight_parameters)
        self.values = settings.midnight_values
        self.keys = KeyStore(None, settings.midnight_key_cache << 20, check_material)
        self.problem = "the first proof is being made"
        self._testing: asyncio.Task[None] | None = None
        service.prover.look_in(self.keys.folder)

    def require_parameters(self, k: int) -> None:
        """Raises InvalidInput if there are none for circuits of 2^k rows; names the file and its hash."""
        require_parameters(k, self._folder)

    async def start(self) -> None:
        self._testing = asyncio.create_task(self._test())

    async def stop(self) -> None:
        if self._testing is not None:
            self._testing.cancel()
            await asyncio.wait([self._testing])
        self.keys.close()

    # The first proof -------------------------------------------------------------------

    async def _test(self) -> None:
        """Proves a small circuit, again and again until that succeeds once."""
        folder = files("gpuprover.service.midnight").joinpath("selftest")
        prover, verifier, preimage = (
            folder.joinpath(f"increment.{name}").read_bytes() for name in ("prover", "verifier", "preimage")
        )
        while not self._service.draining:
            try:
                circuit = read_prover_key(prover, "self-test").circuit
                key = await self._service.briefly(self.keys.put, KeyMaterial(prover, verifier, circuit))
                with self._service.budget.reserve() as reservation:
                    record = await self._service.submit(key.name, preimage, reservation, timeout=TEST_SECONDS)
                await record.ended.wait()
                record.fetched = True
                if isinstance(record.outcome, ProofResult):
                    self.problem = ""
                    log.info("the first proof of Midnight's was made and verified")
                    return
                assert record.outcome is not None
                raise record.outcome
            except ProverError as error:
                self.problem = f"the first proof failed: {error.told}"
                log.warning("the first proof of Midnight's failed: %s", error.message)
            await asyncio.sleep(TEST_AGAIN_SECONDS)

    # Requests --------------------------------------------------------------------------

    def material(self, preimage: Preimage) -> KeyMaterial:
        """The keys of one of the ledger's own circuits, which lie beside the parameters.

        Raises:
            InvalidInput: there is none of that name, or its files are missing; names them.
        """
        location = preimage.key_location
        if location not in _BUILT_IN:
            raise InvalidInput(
                f"couldn't find key {location[:80]!r}: the request has none, and it is none of "
                f"{', '.join(sorted(_BUILT_IN))}"
            )
        family, name = _BUILT_IN[location]
        try:
            versions = [path for path in (self._folder / family).iterdir() if _VERSION.fullmatch(path.name)]
        except OSError:
            versions = []
        for folder in sorted(versions, key=lambda path: int(path.name), reverse=True):
            paths = [folder / f"{name}.{suffix}" for suffix in ("prover", "verifier", "bzkir")]
            if all(path.exists() for path in paths):
                return KeyMaterial(*(_content(path) for path in paths))
        raise InvalidInput(
            f"couldn't find built-in key {location}: {family}/VERSION/{name}.prover, .verifier and .bzkir "
            "are not beside the parameters",
        )

    def stored(self, preimage: Preimage, material: KeyMaterial | None) -> StoredKey:
        """The keys of a request, as a circuit of the engine's; raises as :meth:`KeyStore.put`."""
        if material is None:
            return self.keys.put(self.material(preimage))
        with sent():
            return self.keys.put(material)

    def check(self, preimage: Preimage, circuit: bytes | None) -> list[int | None]:
        """What a circuit finds of a preimage: of each group of public inputs None, or how many are skipped.

        Raises:
            UnsatisfiedWitness: the preimage does not satisfy the circuit.
            MalformedFile, UnsupportedFile, InvalidInput: the circuit cannot be used.
        """
        if circuit is None:
            found = read_circuit(self.material(preimage).circuit)
        else:
            with sent():
                found = read_circuit(circuit)
        try:
            return run(found, preimage).skips
        except UnsatisfiedWitness as failure:
            if not self.values:
                raise
            raise UnsatisfiedWitness(explain(failure, values=True)) from None

    async def submit(
        self, key: StoredKey, preimage: Preimage, binding: int | None, reservation: Reservation, tenant: str
    ) -> Record:
        """Begins a proof; the files of its key stay until it ends. Raises as :meth:`Service.submit`."""
        if binding is not None:
            preimage = replace(preimage, binding_input=binding)
        witness = write_preimage(preimage)
        reservation.shrink(2 * len(witness))
        record = await self._service.submit(key.name, witness, reservation, tenant=tenant)
        record.job.add_done_callback(partial(_keep, key))
        return record


def _keep(key: StoredKey, _: ProofJob) -> None:
    """Holds a key until a proof has ended."""


def _content(path: Path) -> bytes:
    file, size = open_regular(path)
    with file:
        if size > MAX_KEY:
            raise InvalidInput(f"{size} bytes, expected at most {MAX_KEY}", path=path, role="key")
        return file.read()
