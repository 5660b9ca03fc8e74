"""The command line. Does nothing that the Python interface cannot."""

import argparse
import sys
from collections.abc import Sequence

from fastcka.info import describe


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="fastcka",
        description="How alike do networks represent the same images, layer by layer?",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    commands.add_parser(
        "info", help="versions, instruction sets, and which backend runs where and why"
    ).set_defaults(run=lambda _: print(describe()))
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (RuntimeError, ValueError, TypeError) as error:
        print(f"fastcka: {error}", file=sys.stderr)
        return 1
    return 0
