"""ZKIR: the instructions of a circuit, their files, and their execution on integers."""
