"""What the machine itself can do: the bounds that stand beside every figure.

    python -m vitscope.bench.limits [--quick] [--device DEVICE] [--json FILE]

Products of matrices as large as those of a ViT-B, of which the fastest counts, copies within memory
that are too large for the caches, with a device also within its memory and to it, a file written to
the disk and read from it again past the page cache where the system allows it, and a byte that goes
there and back over loopback. Each is the best of its rounds: a bound, not an average.
"""

from __future__ import annotations

import argparse
import mmap
import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from vitscope.bench import arguments
from vitscope.bench.record import Row, timed, write

PACKAGES = ("vitscope", "torch", "numpy")
TOKENS, WIDTH, HIDDEN = 197 * 16, 768, 3072
"""Of a ViT-B's feed-forward layer, 16 images at a time; a device is given 256."""
BLOCK = 1 << 22


def main() -> int:
    """Measure, print a table, write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--quick", action="store_true", help="less memory and disk, fewer rounds")
    parser.add_argument(
        "--device", type=arguments.device, default="cpu", help="where matrices are multiplied"
    )
    parser.add_argument("--json", type=arguments.result, help="where to write the results")
    args = parser.parse_args()
    rows = list(limits(args.device, quick=args.quick))
    for row in rows:
        print(f"{row['what']:<44} {row['value']:>12,.2f} {row['unit']}", flush=True)
    if args.json:
        command = "python -m vitscope.bench.limits" + " --quick" * args.quick
        write(args.json, f"{command} --device {args.device}", rows, PACKAGES)
    return 0


def limits(device: str, *, quick: bool) -> Iterator[Row]:
    """One row for each bound."""
    rounds, size = (5, 1 << 29) if quick else (20, 1 << 30)
    for dtype in (torch.float32, torch.bfloat16):
        rate = matrix_rate(device, dtype, rounds)
        name = str(dtype).removeprefix("torch.")
        yield _row(f"matrix product, {name}", rate / 1e9, "GFLOP/s", f"matrix_{name}")
    if device != "cpu":
        # Much of a card's memory is cache at the sizes that do for a processor.
        inside = copy_rate(8 * size, rounds, device, device)
        yield _row("copy within the device's memory", inside / 1e9, "GB/s", "device_memory")
        over = copy_rate(size, rounds, "cpu", device) / 2
        yield _row("copy to the device", over / 1e9, "GB/s", "to_device")
    yield _row("copy within memory", copy_rate(size, rounds) / 1e9, "GB/s", "memory")
    with tempfile.TemporaryDirectory() as folder:
        # A disk may take little faster than much.
        sizes = (1 << 26, size)
        found = [disk_rates(Path(folder) / "file", each, max(3, rounds // 4)) for each in sizes]
        written, read = map(max, zip(*found, strict=True))
    yield _row("disk, written and synced", written / 1e6, "MB/s", "disk_write")
    yield _row("disk, read past the page cache", read / 1e6, "MB/s", "disk_read")
    trip = round_trip(200 if quick else 5_000)
    yield _row("a byte there and back over loopback", trip * 1e3, "ms", "loopback")


def _row(what: str, value: float, unit: str, name: str) -> Row:
    return {"what": what, "name": name, "value": value, "unit": unit}


def matrix_rate(device: str, dtype: torch.dtype, rounds: int) -> float:
    """Floating point operations a second of (T, M) x (M, N), of the shape that is the fastest."""
    tokens = TOKENS * (1 if device == "cpu" else 16)
    rates = []
    for width, hidden in ((WIDTH, HIDDEN), (HIDDEN, WIDTH), (HIDDEN, HIDDEN)):
        left = torch.randn(tokens, width, device=device).to(dtype)
        right = torch.randn(width, hidden, device=device).to(dtype)
        taken = best(done(device, partial(torch.mm, left, right)), rounds)
        rates.append(2.0 * tokens * width * hidden / taken)
    return max(rates)


def copy_rate(size: int, rounds: int, source: str = "cpu", target: str = "cpu") -> float:
    """Bytes a second that are read and written again, by all threads of torch or a device."""
    there = torch.empty(size, dtype=torch.uint8, device=target)
    here = torch.ones(size, dtype=torch.uint8, device=source, pin_memory=source != target)
    return 2.0 * size / best(done(target, lambda: there.copy_(here)), rounds)


def done(device: str, call: Callable[[], object]) -> Callable[[], None]:
    """A call that ends when a device has done what it was given."""

    def wait() -> None:
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()

    return wait


def disk_rates(path: Path, size: int, rounds: int) -> tuple[float, float]:
    """Bytes a second to the disk and from it."""
    # Noise: some disks and file systems store repetitions in less.
    data = np.random.default_rng(0).bytes(size)

    def writing() -> None:
        with path.open("wb", buffering=0) as file:
            file.write(data)
            os.fsync(file.fileno())

    written = size / best(writing, rounds)

    def reading() -> None:
        with unbuffered(path) as (number, block):
            while os.readv(number, [block]):
                pass

    return written, size / best(reading, rounds)


@contextmanager
def unbuffered(path: Path) -> Iterator[tuple[int, mmap.mmap]]:
    """A file that is read from the disk, and aligned memory for a block of it."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        number = os.open(path, os.O_RDONLY | direct)
    except OSError:
        # A file system in memory has no other way.
        number = os.open(path, os.O_RDONLY)
    try:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(number, 0, 0, os.POSIX_FADV_DONTNEED)
        yield number, mmap.mmap(-1, BLOCK)
    finally:
        os.close(number)


def round_trip(count: int) -> float:
    """Seconds of the best of so many."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def echo() -> None:
            connection, _ = listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with connection:
                while byte := connection.recv(1):
                    connection.sendall(byte)

        thread = threading.Thread(target=echo, daemon=True)
        thread.start()
        with socket.create_connection(listener.getsockname()) as there:
            there.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

            def trip() -> None:
                there.sendall(b"x")
                there.recv(1)

            found = best(trip, count)
        thread.join()
    return found


def best(call: Callable[[], object], rounds: int) -> float:
    """Seconds of the fastest of so many rounds, after one that warms up."""
    call()
    return min(timed(call) for _ in range(rounds)) / 1e3


if __name__ == "__main__":
    raise SystemExit(main())
