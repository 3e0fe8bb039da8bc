"""The command `vitscope`: finds the module of a sub-command, runs it, and reports its errors.

A sub-command is a light module named by an entry point of the group `vitscope.commands`. The first
line of its docstring is its help; it has `add_arguments(parser)` and `run(args) -> int`, and, where
it needs one, `EXTRA`: the name of the pip extra that brings its libraries.
"""

import argparse
import difflib
import io
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import EntryPoint, entry_points, version
from typing import NoReturn, Protocol, cast

from vitscope.client.extras import mend_for

GROUP = "vitscope.commands"
BAD_INPUT = 3
INTERRUPTED = 130
OUTPUT_CLOSED = 141

EPILOG = """\
exit codes:
  0    done
  1    `health`: it does not serve; `bench --check`: slower than the baseline
  2    wrong usage, or a request that the server refused
  3    bad input: model, data, checkpoint, or a library that is not installed
  4    damaged or missing index
  5    a server that could not be reached, or failed
  6    a server that could not start
  130  interrupted
  141  the reader of the output went away
  143  stopped by SIGTERM

`vitscope COMMAND --help` describes a command. Answers go to stdout, all else to stderr."""


class Command(Protocol):
    """What `main` asks of a sub-command's module."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None: ...

    def run(self, args: argparse.Namespace, /) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line (`sys.argv` where none is given) and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    _tolerate_odd_characters()
    if os.getpid() == 1:
        # Of a container: the system ends it by no signal that it has no handler for.
        signal.signal(signal.SIGTERM, _stop)
    try:
        code = _dispatch(arguments)
        sys.stdout.flush()
    except SystemExit as stop:  # argparse, after its own message
        return _exit_code(stop)
    except KeyboardInterrupt:
        return _complain("Interrupted.", INTERRUPTED)
    except BrokenPipeError:
        return _drop_output()
    except PermissionError as error:
        return _complain(f"{error.filename or 'A file'} may not be read by this user.", BAD_INPUT)
    except Exception as error:
        known = getattr(error, "exit_code", None)
        if not isinstance(known, int):
            raise
        return _complain(str(error), known)
    return code


def _dispatch(arguments: Sequence[str]) -> int:
    commands = {point.name: point for point in entry_points(group=GROUP)}
    match list(arguments):
        case []:
            print(_overview(commands), file=sys.stderr)
            return 2
        case ["-h" | "--help", *_]:
            print(_overview(commands))
            return 0
        case ["--version", *_]:
            print(f"vitscope {version('vitscope')}")
            return 0
        case [name, *rest] if name in commands:
            return _run(commands[name], rest)
        case [name, *_]:
            return _complain(_unknown(name, list(commands)), 2)
    raise AssertionError("every list of arguments has its case")


def _run(point: EntryPoint, arguments: Sequence[str]) -> int:
    extra = None
    try:
        command = _load(point)
        extra = getattr(command, "EXTRA", None)
        parser = argparse.ArgumentParser(
            prog=f"vitscope {point.name}", description=command.__doc__, allow_abbrev=False
        )
        command.add_arguments(parser)
        return command.run(parser.parse_args(arguments))
    except ModuleNotFoundError as error:
        mend = mend_for(error, extra)
        if mend is None:
            raise
        return _complain(f"{point.name} needs {mend[0]}; install it with {mend[1]}.", BAD_INPUT)


def _load(point: EntryPoint) -> Command:
    return cast(Command, point.load())


def _overview(commands: Mapping[str, EntryPoint]) -> str:
    width = max(map(len, commands), default=0)
    lines = [f"  {name:<{width}}  {_summary(commands[name])}" for name in sorted(commands)]
    head = "usage: vitscope [--help] [--version] COMMAND ..."
    return "\n".join([head, "", "commands:", *lines, "", EPILOG])


def _summary(point: EntryPoint) -> str:
    """The first line of a command's docstring, as argparse writes its own helps."""
    try:
        command = _load(point)
    except ImportError as error:
        return f"(cannot be loaded: {error})"
    line = (command.__doc__ or "").strip().partition("\n")[0]
    return line[:1].lower() + line[1:].rstrip(".")


def _unknown(name: str, names: Sequence[str]) -> str:
    if name.startswith("-"):
        return f"There is no option {name} before the command; see `vitscope --help`."
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(close)}?" if close else "see `vitscope --help`."
    return f"There is no command {name!r}; {hint}"


def _complain(sentence: str, code: int) -> int:
    print(f"vitscope: {sentence}", file=sys.stderr)
    return code


def _stop(signum: int, _: object) -> NoReturn:
    raise SystemExit(128 + signum)


def _exit_code(stop: SystemExit) -> int:
    if isinstance(stop.code, int):
        return stop.code
    return 0 if stop.code is None else _complain(str(stop.code), 2)


def _drop_output() -> int:
    """Keep the interpreter from failing again when it flushes a closed stdout at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return OUTPUT_CLOSED


def _tolerate_odd_characters() -> None:
    """Names from a data set may hold characters that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


if __name__ == "__main__":
    sys.exit(main())
