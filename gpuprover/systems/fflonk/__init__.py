"""FFLONK over snarkjs's keys: ``record`` ties together what the other modules do."""
