"""The package's version, on the ground, where every module may import it."""

VERSION = "0.1.0"
