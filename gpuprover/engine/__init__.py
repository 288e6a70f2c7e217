"""The prover engine: circuits by name, a bounded queue, proofs where they are best made, and degradation.

:mod:`.prover` is what users see; :mod:`.dispatch` decides what happens to each job, over the scheduler and an
executor; :mod:`.directory` finds circuits; :mod:`.local` makes proofs in this process; :mod:`.verification`
verifies.
"""

from gpuprover.engine.proof_job import JobState, ProofJob
from gpuprover.engine.prover import Prover, acreate_prover, create_prover
from gpuprover.engine.status import ProverStatus

__all__ = ["JobState", "ProofJob", "Prover", "ProverStatus", "acreate_prover", "create_prover"]
