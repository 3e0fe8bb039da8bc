"""answer questions about published indexes over gRPC"""

from __future__ import annotations

import argparse
from pathlib import Path

EXTRA = "server"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add = parser.add_argument
    add("paths", type=Path, nargs="+", metavar="INDEX", help="folder of an index")
    add(
        "--listen",
        default="127.0.0.1:50051",
        metavar="HOST:PORT",
        help="address (default 127.0.0.1:50051); port 0 takes a free one",
    )
    add("--reflection", action="store_true", help="let tools such as grpcurl list the service")
    add("--grace", type=float, default=10.0, help="seconds for calls in flight at the end")


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    import asyncio
    import logging

    from vitscope.server.app import Settings, serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    # FAISS tells how it probed the processor.
    logging.getLogger("faiss").setLevel(logging.WARNING)
    settings = Settings(
        indexes=args.paths, listen=args.listen, reflection=args.reflection, grace=args.grace
    )
    asyncio.run(serve(settings, lambda address: print(f"Serving on {address}", flush=True)))
    return 0
