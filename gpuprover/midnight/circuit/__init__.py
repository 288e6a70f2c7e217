"""Circuits as tables: where each value of an instruction stands, and how it is computed from the inputs.

A layout depends on the circuit alone. It holds fixed columns, copies and a tape of operations, which a
witness runs; so one program makes the keys and the tables of proofs.
"""
