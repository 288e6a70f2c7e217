"""Midnight's proof server: its routes and bodies over a prover of this package."""
