"""vitscope as processes: a command to its end, and a server on a free port."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

VITSCOPE = Path(sys.executable).with_name("vitscope")
"""The console script beside this interpreter."""

_STARTING_SECONDS = 120.0


class ServerProcess:
    """A `vitscope serve` of its own process, on a free port unless told otherwise."""

    def __init__(
        self,
        *indexes: Path,
        options: Sequence[str] = (),
        errors: Path,
        program: Sequence[str] = (str(VITSCOPE),),
        environ: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        """`program` stands for the console script, `environ` is set besides."""
        command = [*program, "serve", *map(str, indexes), "--listen", "127.0.0.1:0", *options]
        self.errors = errors
        """Where its stderr goes."""
        with errors.open("wb") as file:
            self.process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=file, env={**os.environ, **environ}
            )
        # A server that never says its line must not hang the tests.
        guard = threading.Timer(_STARTING_SECONDS, self.process.kill)
        guard.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline().decode()
        guard.cancel()
        head, _, self.address = line.strip().rpartition(" ")
        if head != "Serving on":
            self.close()
            raise RuntimeError(f"The server did not start: {errors.read_text()}")

    def terminate(self) -> int:
        """Ask it to end, as a supervisor does, and give its exit code."""
        self.process.terminate()
        return self.process.wait(60)

    def interrupt(self) -> int:
        """Press Ctrl-C, and give its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(60)

    def close(self) -> None:
        """End it in any case."""
        self.process.kill()
        self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()


def run_vitscope(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """Run the command line to its end."""
    command = [str(VITSCOPE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
