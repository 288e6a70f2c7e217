"""The arguments that every way to start a verifier has; imports nothing that is slow to import."""

from __future__ import annotations

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket", metavar="PATH", action="append", default=[], help="a Unix socket to listen on"
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="an address to listen on; whoever reaches it may verify",
    )
    parser.add_argument(
        "--vkey",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="a verification key that every client may use by this name; may be repeated",
    )
