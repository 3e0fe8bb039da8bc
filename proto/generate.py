"""Generate the committed stubs from the .proto files, or check that they are fresh.

python proto/generate.py [--check]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTO = Path(__file__).resolve().parent
PACKAGE = Path("vitscope/v1")


def generate(out: Path) -> None:
    """Write the Python modules and their types for every .proto file below `out`."""
    # The mypy plug-ins are scripts beside the interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    sources = sorted(str(path.relative_to(PROTO)) for path in (PROTO / PACKAGE).glob("*.proto"))
    for kinds, files in (
        (("python", "mypy"), sources),
        (("grpc_python", "mypy_grpc"), [str(PACKAGE / "service.proto")]),
    ):
        outs = [f"--{kind}_out={'quiet:' if 'mypy' in kind else ''}{out}" for kind in kinds]
        if protoc.main(["protoc", f"-I{PROTO}", *outs, *files]) != 0:
            raise SystemExit("protoc failed.")


def stubs(root: Path) -> dict[str, bytes]:
    """The generated files below `root`, by name."""
    return {path.name: path.read_bytes() for path in (root / PACKAGE).glob("*_pb2*.py*")}


def main() -> int:
    """Generate in place; with --check, only compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="fail where a stub is stale")
    if not parser.parse_args().check:
        generate(PROTO)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh, committed = stubs(Path(folder)), stubs(PROTO)
    stale = sorted(name for name in fresh | committed if fresh.get(name) != committed.get(name))
    if stale:
        print(f"Stale stubs, run `make protos`: {', '.join(stale)}", file=sys.stderr)
    return bool(stale)


if __name__ == "__main__":
    raise SystemExit(main())
