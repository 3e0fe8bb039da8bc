"""What both clients need to be told before they ask."""

import os
import re
from pathlib import Path

from vitscope.client.errors import UsageError

_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\]]+):(?P<port>[0-9]{1,5})")
OPTIONS = [
    # An answer that ranks very many images may pass gRPC's 4 MiB.
    ("grpc.max_receive_message_length", 64 << 20),
    # HOST:PORT is dialled as it stands, whatever http_proxy says.
    ("grpc.enable_http_proxy", 0),
]


def picture_bytes(picture: bytes | os.PathLike[str]) -> bytes:
    if isinstance(picture, bytes):
        return picture
    path = Path(picture)
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"Cannot read the picture {path}: {error.strerror}.") from None


def checked_address(address: str) -> str:
    match = _ADDRESS.fullmatch(address)
    if match is None or not 1 <= int(match["port"]) <= 65535:
        raise UsageError(
            f"{address!r} is not a server address; write HOST:PORT, such as 127.0.0.1:50051."
        )
    return address


def checked_timeout(timeout: float) -> float:
    if not 0 < timeout < float("inf"):
        raise UsageError(f"A timeout of {timeout} seconds cannot be; give a positive number.")
    return float(timeout)
