"""Arguments and output that the commands share."""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from vitscope.client.client import Client
from vitscope.client.connection import Connection, check_token
from vitscope.client.entries import ScoredChannel, ScoredImage, ScoredPatch
from vitscope.client.errors import UsageError, Words
from vitscope.client.fields import POOLINGS
from vitscope.client.filters import ImageFilter
from vitscope.client.local import open_local
from vitscope.client.text import table
from vitscope.client.trust import Tls

DEFAULT_SERVER = "127.0.0.1:50051"
_DEFAULT_TIMEOUT = 30.0
FLAGS = Words("--tls", "--tls-ca FILE", "--tls-cert FILE --tls-key FILE", "--tls-name NAME")
_MOST_NUMBERS = 1_000_000


def add_server(parser: argparse.ArgumentParser) -> None:
    """Which server, which of its indexes, and how long to wait."""
    add_address(parser, "the server to ask, or its replicas in turn")
    parser.add_argument(
        "--local",
        metavar="FOLDER",
        action="append",
        default=[],
        help="ask the index in this folder, or in several, without a server",
    )
    add_trust(parser).add_argument(
        "--token-file",
        metavar="FILE",
        help="file whose first line is the token to ask with (default: the token VITSCOPE_TOKEN)",
    )
    parser.add_argument(
        "--index",
        metavar="NAME",
        default="",
        help="which index of the server (default: its only one)",
    )
    parser.add_argument(
        "--timeout",
        metavar="SECONDS",
        type=float,
        help=f"the longest that one call may take (default: {_DEFAULT_TIMEOUT:g})",
    )


def add_address(parser: argparse.ArgumentParser, what: str) -> None:
    """`--server`, with `what` for its help."""
    parser.add_argument(
        "--server",
        metavar="HOST:PORT[,…]",
        help=f"{what} (default: VITSCOPE_SERVER, else {DEFAULT_SERVER})",
    )


def add_trust(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """How the server is trusted, and how it can trust this client."""
    group = parser.add_argument_group("trust (PEM files)")
    add = group.add_argument
    add("--tls", action="store_true", help="ask over TLS")
    add("--tls-ca", metavar="FILE", help="authorities that vouch for the server")
    add("--tls-cert", metavar="FILE", help="certificate of this client")
    add("--tls-key", metavar="FILE", help="its key")
    add("--tls-name", metavar="NAME", help="name in the server's certificate, if not the host")
    return group


def connect(args: argparse.Namespace) -> Client:
    """The client that `add_server`'s arguments describe."""
    if args.local:
        return _open_local(args)
    timeout = _DEFAULT_TIMEOUT if args.timeout is None else args.timeout
    token = _token(args.token_file)
    return Client.over(
        Connection(addresses_from(args), timeout, tls_from(args), token, words=FLAGS)
    )


def _open_local(args: argparse.Namespace) -> Client:
    """What is said of a server is refused; the environment may well say it for other commands."""
    of_servers = ("server", "timeout", "tls", "tls_ca", "tls_cert", "tls_key", "tls_name")
    given = [
        name for name in (*of_servers, "token_file") if getattr(args, name) not in (None, False)
    ]
    if given:
        flags = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise UsageError(f"--local asks no server; leave out {flags}, or --local.")
    return open_local(*args.local)


def addresses_from(args: argparse.Namespace) -> list[str]:
    """HOST:PORT of each server that `add_address`'s argument, or the environment, names."""
    server: str | None = args.server
    if server is None:
        server = os.environ.get("VITSCOPE_SERVER") or DEFAULT_SERVER
    return server.split(",")


def tls_from(args: argparse.Namespace) -> Tls | None:
    """What `add_trust`'s arguments describe; None where they say nothing."""
    files = {"roots": args.tls_ca, "certificate": args.tls_cert, "key": args.tls_key}
    if args.tls or args.tls_name or any(files.values()):
        return Tls(**files, server_name=args.tls_name)
    return None


def _token(name: str | None) -> str | None:
    if name is None:
        where, token = "VITSCOPE_TOKEN", os.environ.get("VITSCOPE_TOKEN")
        if not token:
            return None
    else:
        where = f"The first line of {name}"
        try:
            text = Path(name).read_text(encoding="ascii", errors="replace")
        except OSError as error:
            raise UsageError(f"Cannot read {name}: {error.strerror}.") from None
        token = text.partition("\n")[0].strip()
    check_token(token, where)
    return token


def add_layer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--layer", required=True, help="module path of the block, as `vitscope layers` lists it"
    )


def add_channel(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--channel", metavar="C", type=int, required=True, help="channel of the layer, from 0"
    )


def add_channels(parser: argparse.ArgumentParser, *, required: bool) -> None:
    parser.add_argument(
        "--channel",
        metavar="C",
        dest="channels",
        type=channel_list,
        required=required,
        help="channel of the layer, from 0; or several, such as 3,7,20-25; or all",
    )


def channel_list(text: str) -> list[int] | None:
    """`7`, `3,7,20-25`, or `all`, which is None."""
    return None if text == "all" else number_list(text)


def number_list(text: str) -> list[int]:
    """`7` or `3,7,20-25`."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(-?[0-9]{1,12})(?:-([0-9]{1,12}))?", part.strip())
        if match is None:
            raise argparse.ArgumentTypeError(
                f"{part!r} is no number and no range; write such as 7 or 3,7,20-25"
            )
        first, last = int(match[1]), int(match[2] or match[1])
        if not first <= last < first + _MOST_NUMBERS:
            raise argparse.ArgumentTypeError(
                f"{part!r} ends before it begins, or has more than {_MOST_NUMBERS:,} numbers"
            )
        found += range(first, last + 1)
    return found


def add_filter(parser: argparse.ArgumentParser) -> None:
    """Which images take part."""
    group = parser.add_argument_group("images that take part (all valid ones if nothing is said)")
    group.add_argument(
        "--label",
        metavar="NAME",
        dest="labels",
        action="append",
        default=[],
        help="with this label, or one of these where it is given several times",
    )
    group.add_argument(
        "--rows", metavar="R", type=number_list, help="of these rows, such as 3,7,20-25"
    )
    group.add_argument(
        "--with-box",
        dest="has_box",
        action=argparse.BooleanOptionalAction,
        help="that have a labelled box, or have none",
    )
    group.add_argument(
        "--box-label",
        metavar="NAME",
        dest="box_labels",
        action="append",
        default=[],
        help="with a box of this label, or one of these",
    )


def filter_from(args: argparse.Namespace) -> ImageFilter | None:
    """The filter that `add_filter`'s arguments describe; None where they say nothing."""
    where = ImageFilter(args.labels, args.rows, args.has_box, args.box_labels)
    return None if where == ImageFilter([], None, None, []) else where


def filter_told(args: argparse.Namespace) -> dict[str, object] | None:
    """The same as JSON values."""
    where = filter_from(args)
    return None if where is None else asdict(where)


def add_box_labels(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--of",
        metavar="NAME",
        dest="of",
        action="append",
        default=[],
        help="only boxes of this label count, or of one of these (default: all boxes)",
    )


def add_layers(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--layers",
        metavar="NAMES",
        type=lambda text: text.split(","),
        default=[],
        help=f"layers that are searched, comma-separated (default: {default})",
    )


def add_row(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--row", metavar="R", type=int, required=True, help="the image's row in the index"
    )


def add_pooling(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--pooling",
        choices=list(POOLINGS),
        default="mean",
        help="how a patch map becomes a score (default: %(default)s)",
    )


def add_count(parser: argparse.ArgumentParser, what: str = "images") -> None:
    parser.add_argument(
        "-k", metavar="N", type=int, help=f"how many {what} (default: 20, or all if fewer)"
    )


def add_exact(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--exact", action="store_true", help="hold it against all there are, however long it takes"
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")


def add_png(parser: argparse.ArgumentParser, *, required: bool = False) -> None:
    parser.add_argument(
        "--png", metavar="FILE", required=required, help="draw the answer into this file"
    )


def print_json(value: Mapping[str, object]) -> None:
    """One JSON object on stdout; numbers that JSON does not know become null."""
    print(json.dumps(finite(value), allow_nan=False))


def finite(value: object) -> object:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: finite(item) for key, item in value.items()}
        case list() | tuple():
            return [finite(item) for item in value]
    return value


def ranking_json(images: Iterable[ScoredImage]) -> list[dict[str, object]]:
    """Images of a ranked answer as JSON values."""
    return [
        {"row": image.row, "key": image.key, "label": image.label, "score": image.score}
        | ({"distinctness": asdict(image.distinctness)} if image.distinctness else {})
        for image in images
    ]


def print_ranking(images: Iterable[ScoredImage]) -> None:
    """Images of a ranked answer as a table."""
    rows = [
        (
            rank,
            f"{image.score:.5g}",
            *_distinctness(image),
            image.row,
            image.label or "-",
            image.key,
        )
        for rank, image in enumerate(images, 1)
    ]
    distinct = any(image.distinctness for image in images)
    more = ["distinct", "hubs"] if distinct else []
    print(table(["rank", "score", *more, "row", "label", "key"], rows))


def _distinctness(image: ScoredImage) -> tuple[object, ...]:
    distinct = image.distinctness
    return () if distinct is None else (f"{distinct.score:.4g}", distinct.hubs)


def tell_recall(exact: bool, recall: float) -> None:
    """Say of an approximate answer on stderr how much it finds."""
    if not exact:
        print(
            f"The search is approximate: it finds {recall:.1%} of the true ten nearest.",
            file=sys.stderr,
        )


def print_patches(patches: Iterable[ScoredPatch]) -> None:
    """Patches of a ranked answer as a table."""
    rows = [
        (
            rank,
            f"{patch.score:.5g}",
            patch.row,
            patch.y,
            patch.x,
            _pixels(patch),
            patch.label or "-",
            patch.key,
        )
        for rank, patch in enumerate(patches, 1)
    ]
    print(table(["rank", "score", "row", "y", "x", "pixels", "label", "key"], rows))


def _pixels(patch: ScoredPatch) -> str:
    """What the patch covers of the source picture, in whole pixels."""
    if patch.source is None:
        return "-"
    x0, y0, x1, y1 = (round(edge) for edge in patch.source)
    return f"{x0},{y0} to {x1},{y1}"


def patches_json(patches: Iterable[ScoredPatch]) -> list[dict[str, object]]:
    """Patches of a ranked answer as JSON values."""
    return [
        {
            "row": patch.row,
            "key": patch.key,
            "label": patch.label,
            "y": patch.y,
            "x": patch.x,
            "score": patch.score,
            "source": patch.source,
        }
        for patch in patches
    ]


def print_channels(channels: Iterable[ScoredChannel], what: str) -> None:
    """Channels of a ranked answer as a table; `what` their scores are called."""
    found = list(channels)
    shares = any(channel.percentile is not None for channel in found)
    rows = [
        (
            rank,
            f"{channel.score:.5g}",
            *((f"{channel.percentile or 0:.4%}",) if shares else ()),
            channel.layer,
            channel.channel,
        )
        for rank, channel in enumerate(found, 1)
    ]
    more = ["percentile"] if shares else []
    print(table(["rank", what, *more, "layer", "channel"], rows))


def channels_json(channels: Iterable[ScoredChannel]) -> list[dict[str, object]]:
    """Channels of a ranked answer as JSON values."""
    return [
        {"layer": channel.layer, "channel": channel.channel, "score": channel.score}
        | ({} if channel.percentile is None else {"percentile": channel.percentile})
        for channel in channels
    ]


def report_written(path: Path) -> None:
    print(f"Wrote {path}.", file=sys.stderr)
