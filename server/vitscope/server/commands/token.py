"""make a token for callers of a server, and its line for `serve --tokens`"""

from __future__ import annotations

import argparse
import os
import sys


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    from vitscope.server.tokens import Rate

    def rate(text: str) -> Rate:
        try:
            return Rate.of(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    parser.set_defaults(parser=parser)
    parser.epilog = (
        "The line, with a hash, goes to stdout: `vitscope token NAME >> FILE`. The token goes to "
        "stderr, this once."
    )
    parser.add_argument("name", metavar="NAME", help="whose token it is, for people")
    parser.add_argument(
        "--rate", type=rate, metavar="RATE", help="calls it allows, such as 50/s, 100/m or 1000/h"
    )


def run(args: argparse.Namespace) -> int:
    """Print the line on stdout and the token on stderr."""
    from vitscope.server.errors import StartError
    from vitscope.server.tokens import line_of, new_token

    token = new_token()
    try:
        line = line_of(args.name, token, args.rate)
    except ValueError as error:
        args.parser.error(str(error))
    # First, or a full disk would leave a token that no file knows.
    try:
        print(line, flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        # The interpreter would fail again when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise StartError(
            f"The token's line cannot be written ({error.strerror}); mend that, and make another."
        ) from None
    print(token, file=sys.stderr)
    return 0
