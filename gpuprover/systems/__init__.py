"""Proof systems, one folder each; :mod:`gpuprover.systems.system` is all that is known of them above.

A :class:`~gpuprover.systems.system.ProofSystem` is a record of functions; ``system`` has the registry, which
names the records as text. A folder holds the protocol in the order of its paper: ``key`` (its proving keys),
``documents`` (proofs and verification keys), ``prover``, ``verifier``, ``setup``, and ``record``, which ties
them together. Provers and verifiers call a backend and nothing else. A prover's steps are one function,
which a proof runs on a key and ``rehearse`` on arrays without contents: a device plans its memory by the
second.

What is said of a key follows from its points, in one function for proving and verification keys
(:mod:`.groth16.key_warnings`); contributions that a file names are shown as a claim.
:mod:`.groth16.consistency` compares a key's sections with each other, with an ``.r1cs`` and with powers of
tau, by sums under random weights.
"""
