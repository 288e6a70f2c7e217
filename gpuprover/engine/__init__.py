"""The prover engine: circuits by name, a bounded queue, proofs where they are best made, and degradation.

:mod:`.prover` is what users see, with :mod:`.terms` and :mod:`.status`; :mod:`.driver` is its thread.
:mod:`.dispatch` has the way of each job, over the scheduler and an executor, and under its one lock

- :mod:`.seats`: the bounded queue, and what of it one tenant may have,
- :mod:`.loading`: circuits that are loaded, and who waits for those that are not,
- :mod:`.sharing`: kept proofs, and one proof for equal witnesses,
- :mod:`.offer`: devices that there are,
- :mod:`.headroom`: memory that is left, and who waits for it,
- :mod:`.timers`: what is due when; :mod:`.records`: what they hand to each other.

:mod:`.directory` finds circuits; :mod:`.local` makes proofs in this process; :mod:`.verification` verifies.
"""

from gpuprover.engine.proof_job import JobState, ProofJob
from gpuprover.engine.prover import Prover, acreate_prover, create_prover
from gpuprover.engine.status import ProverStatus

__all__ = ["JobState", "ProofJob", "Prover", "ProverStatus", "acreate_prover", "create_prover"]
