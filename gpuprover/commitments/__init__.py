"""Challenges from transcripts, and polynomial commitments: what proof systems share besides a backend.

:mod:`.transcript` has one class for each hash that a system's verifier computes: Keccak-256, BLAKE2b, a
Poseidon sponge. :mod:`.kzg` commits to polynomials that a backend holds, opens the commitments and checks
openings; :mod:`.powers` tells whether points are the powers of one τ. None knows a proof system: the order in
which a transcript absorbs, and the points at which polynomials are opened, are the business of the provers
and verifiers in :mod:`gpuprover.systems`.
"""
