"""answer questions about published indexes over gRPC"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from vitscope.server.config import Options

if TYPE_CHECKING:
    from vitscope.server.liveoptions import LiveOptions

EXTRA = "server"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    options = Options(parser, "VITSCOPE_SERVE_")
    add = options.add
    add("indexes", type=Path, nargs="*", metavar="INDEX", help="folder of an index")
    add(
        "--listen",
        default="127.0.0.1:50051",
        metavar="HOST:PORT",
        help="address (default 127.0.0.1:50051); port 0 takes a free one",
    )
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes that share the port (default 1)",
    )
    add("--reflection", action="store_true", help="let tools such as grpcurl list the service")
    add("--grace", type=float, default=10.0, help="seconds for calls in flight at the end")
    add(
        "--in-hand",
        default="",
        metavar="CLASS=N,…",
        help="calls of a class (light, scan, model) that may be answered or wait at a time, in "
        "each process; more are refused (default: light 32 for each core, scan 16 for two cores, "
        "model 8)",
    )
    add(
        "--follow",
        type=float,
        default=1.0,
        metavar="SECONDS",
        help="how often to look for a newly published generation, which is then served instead; 0 "
        "for never (default 1)",
    )
    _add_log(options)
    _add_guard(options)
    _add_live(options)


def _add_log(options: Options) -> None:
    add = options.group("what the server says of itself")
    add(
        "--log-format",
        choices=("text", "json"),
        default="text",
        help="lines for people, or a JSON object a line (default text)",
    )
    add(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="from which level on (default info)",
    )
    add(
        "--log-calls",
        choices=("none", "failed", "all"),
        default="none",
        help="a line, of the level info, for calls that ended: those that failed, or all "
        "(default none)",
    )
    add("--metrics", default="", metavar="HOST:PORT", help="answer Prometheus over HTTP there")
    add(
        "--otel",
        action="store_true",
        default=None,
        help="send a span of each call over OTLP, as OpenTelemetry's variables say (default: "
        "where OTEL_EXPORTER_OTLP_ENDPOINT is set)",
    )


def _add_guard(options: Options) -> None:
    add = options.group("who may ask, and over what")
    add("--tls-cert", type=Path, metavar="FILE", help="the server's certificate and chain, PEM")
    add("--tls-key", type=Path, metavar="FILE", help="its key, PEM")
    add(
        "--tls-client-ca",
        type=Path,
        metavar="FILE",
        help="admit only callers with a certificate of these authorities, PEM",
    )
    add(
        "--tokens",
        type=Path,
        metavar="FILE",
        help="admit only callers with a token; lines of `vitscope token`",
    )
    add(
        "--insecure",
        action="store_true",
        help="listen where other machines reach it without TLS",
    )


def _add_live(options: Options) -> None:
    add = options.group("live model (of several indexes each says NAME=…)")
    add(
        "--live",
        action="store_true",
        help="run the models of the indexes for what these did not keep, and for own pictures",
    )
    add(
        "--checkpoint",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="weights that the index was made with, where they came from a file",
    )
    add(
        "--data",
        action="append",
        default=[],
        metavar="[NAME=]PATH",
        help="the pictures that were indexed, as `vitscope index --data` takes them; without, own "
        "pictures only",
    )
    add(
        "--split",
        action="append",
        default=[],
        metavar="[NAME=]SPLIT",
        help="which split of a Hugging Face data set",
    )
    add("--device", default="", help="cpu, cuda, cuda:1 (default: CUDA where there is one)")
    add(
        "--threads",
        type=int,
        metavar="T",
        help="CPU threads of a forward (default: as many as the index was made with)",
    )


def _live_from(args: argparse.Namespace) -> LiveOptions | None:
    from vitscope.server.errors import StartError
    from vitscope.server.liveoptions import LiveOptions

    names = ("checkpoint", "data", "split", "device", "threads")
    given = [f"--{name}" for name in names if getattr(args, name)]
    if given and not args.live:
        raise StartError(f"{given[0]} is for the live model; give --live too.")
    if not args.live:
        return None
    return LiveOptions(
        checkpoints=args.checkpoint,
        data=args.data,
        splits=args.split,
        device=args.device,
        threads=args.threads,
    )


def run(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM."""
    options = args.options
    args, only_print = options.resolve(args), args.print_config
    if only_print:
        print(options.to_toml(args), end="")
        return 0
    from vitscope.server.admission import in_hand_from
    from vitscope.server.app import Settings, start
    from vitscope.server.guard import GuardOptions
    from vitscope.server.log import LogOptions, set_up

    log = LogOptions(format=args.log_format, level=args.log_level, calls=args.log_calls)
    set_up(log)
    settings = Settings(
        indexes=args.indexes,
        listen=args.listen,
        reflection=args.reflection,
        grace=args.grace,
        follow=args.follow,
        metrics=args.metrics,
        log=log,
        otel=args.otel,
        in_hand=in_hand_from(args.in_hand),
        live=_live_from(args),
        guard=GuardOptions(
            tls_cert=args.tls_cert,
            tls_key=args.tls_key,
            tls_client_ca=args.tls_client_ca,
            tokens=args.tokens,
            insecure=args.insecure,
        ),
    )
    start(settings, args.workers, lambda address: print(f"Serving on {address}", flush=True))
    return 0
