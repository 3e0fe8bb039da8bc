"""A real S3 server on loopback (SeaweedFS), and a relay to it that sees every request coming."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Self

KEY, SECRET = "key-of-tests", "secret-of-tests"
BUCKET = "tests"

_WEED = Path(sys.executable).with_name("weed")
_STARTING_SECONDS = 60.0
_REQUEST = re.compile(rb"(GET|HEAD|PUT|POST|DELETE) (\S+) HTTP/1\.1\r\n")


class BucketServer:
    """A `weed server` of its own process with one empty bucket; a context manager."""

    def __init__(self, folder: Path) -> None:
        """Keep everything in the new folder `folder`."""
        folder.mkdir()
        ports = _free_ports(8)
        self.address = ("127.0.0.1", ports[6])
        who = {"name": "tests", "credentials": [{"accessKey": KEY, "secretKey": SECRET}]}
        rights = {"actions": ["Admin", "Read", "Write", "List"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [who | rights]}))
        command = f"{_WEED} server -ip=127.0.0.1 -dir={folder} -master.telemetry=false \
-master.volumeSizeLimitMB=1024 -volume.max=8 -filer -s3 -s3.config={folder}/s3.json \
-filer.localSocket={folder}/filer.sock -s3.localSocket={folder}/s3.sock \
-s3.port.iceberg=0 -s3.port.lance=0".split()
        names = ("master", "volume", "filer", "s3")
        options = [f"-{name}.port{kind}" for name in names for kind in ("", ".grpc")]
        command += [f"{option}={port}" for option, port in zip(options, ports, strict=True)]
        # It puts them there whatever it is told, and a killed one leaves them.
        sockets = zip(names, ports[1::2], strict=True)
        self._sockets = [Path(f"/tmp/seaweedfs-{name}-grpc-{port}.sock") for name, port in sockets]
        self.errors = folder / "stderr"
        with self.errors.open("wb") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=file)
        self._wait(f"http://127.0.0.1:{ports[4]}/buckets/{BUCKET}/")

    def _wait(self, bucket: str) -> None:
        deadline = time.monotonic() + _STARTING_SECONDS
        while True:
            try:
                # The last to listen; a folder of its file server is a bucket.
                socket.create_connection(self.address).close()
                urllib.request.urlopen(urllib.request.Request(bucket, method="POST")).close()
                return
            except (OSError, urllib.error.URLError):
                if self._process.poll() is not None or time.monotonic() > deadline:
                    self._process.kill()
                    raise RuntimeError(f"no S3 server: {self.errors.read_text()}") from None
                time.sleep(0.05)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for path in self._sockets:
            path.unlink(missing_ok=True)


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


class Relay:
    """Passes on what clients send, after `told(method, path)` of every request returned.

    Where that returns False the request is lost, and its connection closed.
    """

    def __init__(self, server: BucketServer, told: Callable[[str, str], bool]) -> None:
        self._server = server.address
        self._told = told
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                server = socket.create_connection(self._server)
                for source, target in ((client, server), (server, client)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with source, target:
            with suppress(OSError):
                while data := source.recv(1 << 16):
                    request = _REQUEST.match(data)
                    if request and not self._told(request[1].decode(), request[2].decode()):
                        break
                    target.sendall(data)
            # The other direction waits for one of them.
            for end in (source, target):
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
