"""Circuits, files and statements of the Midnight network, in both of its lines.

Line 0.7 has ZKIR 2.0 circuits and verifier keys of version 6; line 0.8 has ZKIR 3.0 and version 7. What
differs between them is data in a :class:`~gpuprover.midnight.profile.Profile`. The path of the data: files
(:mod:`.encoding`, :mod:`.keys`, :mod:`.srs`, :mod:`.preimage`, :mod:`.envelopes`), circuits and their
execution on integers (:mod:`.ir`), their layout as a table of columns and its values (:mod:`.circuit`), and
the identities that the table has to satisfy (:mod:`.constraint_system`). The prover that takes all this is
:mod:`gpuprover.systems.midnight`.
"""
