"""Groth16 over circom's keys: ``record`` ties together what the other modules do."""
