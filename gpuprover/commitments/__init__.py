"""What argument systems are made of besides circuits: challenges from transcripts, and polynomial
commitments.

``transcript`` has one class for each hash that a system's verifier computes; ``kzg`` commits to polynomials
that a backend holds, opens the commitments and checks openings. Neither knows a proof system: what is
absorbed in which order, and which polynomials are opened where, stands in the provers and verifiers under
``systems``.
"""
