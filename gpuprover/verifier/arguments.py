"""The arguments that every way to start a verifier has; imports nothing that is slow to import."""

from __future__ import annotations

import argparse
from typing import Any

from gpuprover.settings import seconds, whole_number

MOST_CONNECTIONS = 1 << 16
MOST_USER = (1 << 32) - 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--socket", metavar="PATH", action="append", default=[], help="a Unix socket to listen on"
    )
    parser.add_argument(
        "--listen",
        metavar="HOST:PORT",
        action="append",
        default=[],
        help="a TCP address to listen on: of this machine alone, unless there is a secret",
    )
    parser.add_argument(
        "--vkey",
        metavar="NAME=FILE",
        action="append",
        default=[],
        help="a verification key that every client may use by this name; may be repeated",
    )
    parser.add_argument(
        "--secret-file",
        metavar="FILE",
        help="a secret of 32 bytes or more, mode 0600; over TCP only clients that share it are answered",
    )
    parser.add_argument(
        "--insecure",
        action="store_true",
        help="let other machines reach --listen without a secret: anybody on the way can then say that a "
        "wrong proof holds",
    )
    parser.add_argument(
        "--client-user",
        metavar="UID",
        action="append",
        default=[],
        help="a user who may connect to --socket besides this one and root; may be repeated",
    )
    parser.add_argument("--connections", metavar="N", help="clients at once; default: 128")
    parser.add_argument(
        "--message-memory", metavar="MIB", help="for long messages of all clients together; default: 16"
    )
    parser.add_argument(
        "--idle-timeout", metavar="S", help="a client that asks nothing for so long is let go; default: 600"
    )
    parser.add_argument(
        "--grace-period", metavar="S", help="for requests to be answered after SIGTERM; default: 20"
    )


def serving(args: argparse.Namespace, threads: int) -> dict[str, Any]:
    """What :func:`gpuprover.verifier.serve.serve` is called with.

    Raises:
        InvalidInput: an argument cannot be used.
    """
    from gpuprover.verifier.connections import Limits

    limits: dict[str, Any] = {"threads": threads}
    if args.connections is not None:
        limits["connections"] = whole_number(args.connections, "--connections", high=MOST_CONNECTIONS)
    if args.message_memory is not None:
        limits["buffered"] = whole_number(args.message_memory, "--message-memory", high=1 << 20) << 20
    if args.idle_timeout is not None:
        limits["idle"] = seconds(args.idle_timeout, "--idle-timeout")
    if args.grace_period is not None:
        limits["grace"] = seconds(args.grace_period, "--grace-period")
    return {
        "sockets": args.socket,
        "addresses": args.listen,
        "keys": args.vkey,
        "limits": Limits(**limits),
        "secret_file": args.secret_file,
        "insecure": args.insecure,
        "users": [whole_number(uid, "--client-user", low=0, high=MOST_USER) for uid in args.client_user],
    }
