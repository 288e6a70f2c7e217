"""Midnight's proof system: PLONK with permuted lookups and multi-point KZG openings over BLS12-381."""
