"""A command's options from its flags, the environment and one TOML file; the first that says wins.

The flags are declared as to argparse, once: the names in the other two follow from them.
"""

from __future__ import annotations

import argparse
import difflib
import json
import os
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from vitscope.server.errors import StartError

_SWITCH = {
    **dict.fromkeys(("true", "1", "yes", "on"), True),
    **dict.fromkeys(("false", "0", "no", "off"), False),
}
_NAMES: Mapping[Any, str] = {int: "a whole number", float: "a number"}


class Options:
    """Declares options to a parser, and says what they are once it has parsed.

    `add` takes what `add_argument` takes; `store_true` gets a `--no-` besides, or a flag could not
    undo what a file says. A positional argument may come from the other sources too.
    """

    def __init__(self, parser: argparse.ArgumentParser, prefix: str) -> None:
        """`prefix` begins the names of environment variables; `args.options` becomes this."""
        self._parser = parser
        self._prefix = prefix
        self._known: dict[str, _Option] = {}
        parser.set_defaults(options=self)
        group = parser.add_argument_group(
            f"configuration (flags, then {prefix}FLAG, then the file)"
        )
        group.add_argument(
            "--config",
            type=Path,
            metavar="FILE",
            help="TOML, with the names of the flags as keys, such as tls_cert",
        )
        group.add_argument(
            "--print-config", action="store_true", help="print what is in force, as such a file"
        )

    def add(self, *names: str, **how: Any) -> None:
        """Declare one option."""
        self._declare(self._parser.add_argument, *names, **how)

    def group(self, title: str) -> Callable[..., None]:
        """An `add` whose options the help lists under a title."""
        return partial(self._declare, self._parser.add_argument_group(title).add_argument)

    def _declare(self, add: Callable[..., argparse.Action], *names: str, **how: Any) -> None:
        switch = how.get("action") == "store_true"
        if switch:
            how["action"] = argparse.BooleanOptionalAction
        default = how.pop("default", False if switch else None)
        # What the command line leaves out has to be seen to be left out.
        action = add(*names, default=argparse.SUPPRESS, **how)
        self._known[action.dest] = _Option(
            parse=how.get("type", str),
            default=default,
            switch=switch,
            many=how.get("action") == "append" or how.get("nargs") in ("*", "+"),
            choices=tuple(how.get("choices") or ()),
            required=None if names[0].startswith("-") else str(action.metavar or action.dest),
        )

    def resolve(
        self, args: argparse.Namespace, environ: Mapping[str, str] = os.environ
    ) -> argparse.Namespace:
        """Every option's value; raises `StartError` for what a source says wrongly."""
        flags = {key: value for key, value in vars(args).items() if key in self._known}
        environment = self._of_environment(environ)
        file = args.config or environment.pop("config", None)
        values = self._of_file(file) if file else {}
        values |= environment | flags
        for key, option in self._known.items():
            if key not in values:
                values[key] = list(option.default or []) if option.many else option.default
            if option.required and not values[key] and not args.print_config:
                self._parser.error(f"the following arguments are required: {option.required}")
        return argparse.Namespace(**values)

    def to_toml(self, values: argparse.Namespace) -> str:
        """The options as a file for `--config`, without those that are not set.

        Raises `StartError` where a text cannot be written as TOML.
        """
        pairs = ((key, getattr(values, key)) for key in self._known)
        return "".join(
            f"{key} = {_toml(key, value)}\n" for key, value in pairs if value is not None
        )

    def _of_environment(self, environ: Mapping[str, str]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        names = {self._prefix + key.upper(): key for key in self._known}
        config = f"{self._prefix}CONFIG"
        for name, text in environ.items():
            # Compose files pass on variables that are not set as empty ones.
            if not name.startswith(self._prefix) or not text:
                continue
            if name == config:
                values["config"] = Path(text)
            elif name in names:
                values[names[name]] = self._known[names[name]].of_text(name, text)
            else:
                self._unknown("The environment", name, [*names, config])
        return values

    def _of_file(self, path: Path) -> dict[str, Any]:
        try:
            table = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise StartError(
                f"--config {path} cannot be read ({error.strerror}); name a file that can."
            ) from None
        except UnicodeDecodeError:
            raise StartError(f"--config {path} is not UTF-8, as TOML is; save it so.") from None
        except tomllib.TOMLDecodeError as error:
            raise StartError(f"--config {path} is not TOML; mend it: {error}.") from None
        except (ValueError, RecursionError):
            raise StartError(
                f"--config {path} has a number of too many digits or too many lists in lists; "
                "take it out."
            ) from None
        for key in table:
            if key not in self._known:
                self._unknown(f"--config {path}", key, self._known)
        return {
            key: self._known[key].of_toml(f"{key} in --config {path}", value)
            for key, value in table.items()
        }

    def _unknown(self, where: str, name: str, known: Iterable[str]) -> NoReturn:
        close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else f"see `{self._parser.prog} --help`."
        raise StartError(f"{where} sets {name!r}, which is no option; {hint}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Option:
    parse: Callable[[str], Any]
    """Of one value."""
    default: Any
    switch: bool
    many: bool
    choices: tuple[Any, ...]
    required: str | None
    """What usage calls a positional argument; None for a flag."""

    def of_text(self, where: str, text: str) -> Any:
        """The value that the environment gives."""
        if self.switch:
            if text.lower() not in _SWITCH:
                raise self._wrong(where, text)
            return _SWITCH[text.lower()]
        if not self.many:
            return self._parsed(where, text)
        if not text.startswith("["):
            return [self._parsed(where, text)]
        try:
            return self.of_toml(where, tomllib.loads(f"many = {text}")["many"])
        except (ValueError, RecursionError):
            raise self._wrong(where, text) from None

    def of_toml(self, where: str, value: Any) -> Any:
        """The value that a file gives."""
        if self.switch:
            if not isinstance(value, bool):
                raise self._wrong(where, value)
            return value
        if not self.many:
            return self._typed(where, value)
        if not isinstance(value, list):
            raise self._wrong(where, value)
        return [self._typed(where, each) for each in value]

    def _typed(self, where: str, value: Any) -> Any:
        if self.parse is int:
            fits = isinstance(value, int)
        elif self.parse is float:
            fits = isinstance(value, (int, float))
        elif self.parse in (str, Path):
            fits = isinstance(value, str)
        else:
            fits = isinstance(value, (int, float, str))
        if not fits or isinstance(value, bool):
            raise self._wrong(where, value)
        try:
            text = str(value)
        except ValueError:
            # Longer than Python writes.
            raise self._wrong(where, value) from None
        return self._parsed(where, text)

    def _parsed(self, where: str, text: str) -> Any:
        if "\0" in text:
            # No flag can have one, and the system takes none.
            raise StartError(f"{where} has a NUL character; take it out.")
        try:
            value = self.parse(text)
        except (ValueError, TypeError, argparse.ArgumentTypeError):
            raise self._wrong(where, text) from None
        if self.choices and value not in self.choices:
            raise self._wrong(where, text)
        return value

    def _wrong(self, where: str, value: Any) -> StartError:
        if self.switch:
            what = "true or false"
        elif self.choices:
            what = f"one of {', '.join(map(str, self.choices))}"
        elif self.many:
            what = 'a list of texts, such as ["a", "b"]'
        else:
            what = _NAMES.get(self.parse, "a text that its flag takes")
        try:
            shown = value if isinstance(value, str) else repr(value)
        except ValueError:
            shown = "a number of too many digits"
        return StartError(f"{where} is {shown[:80]!r}; it has to be {what}.")


def _toml(key: str, value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(_toml(key, each) for each in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise StartError(f"{key} is no UTF-8, as TOML is; rename the file {text!r}.") from None
    # JSON's escapes are TOML's, but for the one control character that JSON writes as it is.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
