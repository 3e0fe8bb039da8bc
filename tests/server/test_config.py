"""Where options come from: flags, the environment, a file, or nowhere."""

from __future__ import annotations

import argparse
import os
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from server.refusals import check_start_error
from started import VITSCOPE, ServerProcess, run_vitscope
from synthetic import Synthetic

from vitscope.server.commands import serve as command
from vitscope.server.errors import StartError

DEFAULTS: dict[str, Any] = {
    "listen": "127.0.0.1:50051",
    "reflection": False,
    "grace": 10.0,
    "tls_cert": None,
    "insecure": False,
    "live": False,
    "checkpoint": [],
    "device": "",
    "threads": None,
    "workers": 1,
    "in_hand": "",
    "metrics": "",
    "follow": 1.0,
    "log_format": "text",
    "log_level": "info",
    "log_calls": "none",
    "otel": None,
}
# Neither a flag's dashes nor a list's bracket, and not empty, which the environment cannot say.
TEXTS = st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1).filter(
    lambda text: text[0] not in "-["
)
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "listen": TEXTS,
    "reflection": st.booleans(),
    "grace": st.floats(0, 1e9),
    "tls_cert": TEXTS.map(Path),
    "insecure": st.booleans(),
    "live": st.booleans(),
    "checkpoint": st.lists(TEXTS, min_size=1, max_size=3),
    "device": TEXTS,
    "threads": st.integers(1, 1000),
    "workers": st.integers(1, 1000),
    "in_hand": TEXTS,
    "metrics": TEXTS,
    "follow": st.floats(0, 1e9),
    "log_format": st.sampled_from(["text", "json"]),
    "log_level": st.sampled_from(["debug", "info", "warning", "error"]),
    "log_calls": st.sampled_from(["none", "failed", "all"]),
    "otel": st.booleans(),
}
SOURCE = st.fixed_dictionaries({}, optional=VALUES)


def resolved(
    arguments: Sequence[str], environ: Mapping[str, str] | None = None
) -> tuple[argparse.Namespace, str]:
    """The options in force, and how they are printed."""
    parser = argparse.ArgumentParser("vitscope serve", allow_abbrev=False)
    command.add_arguments(parser)
    args = parser.parse_args(arguments)
    values = args.options.resolve(args, environ or {})
    return values, args.options.to_toml(values)


def as_flags(source: Mapping[str, Any]) -> list[str]:
    flags: list[str] = []
    for key, value in source.items():
        flag = f"--{key.replace('_', '-')}"
        if isinstance(value, bool):
            flags.append(flag if value else f"--no-{flag[2:]}")
            continue
        for each in value if isinstance(value, list) else [value]:
            flags += [flag, str(each)]
    return flags


def as_environment(source: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"VITSCOPE_SERVE_{key.upper()}": toml(value) if isinstance(value, list) else str(value)
        for key, value in source.items()
    }


def toml(value: Any) -> str:
    """Written apart from the server's own way: every character escaped."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return "[" + ",\n".join(map(toml, value)) + "]"
    if isinstance(value, (int, float)):
        return repr(value)
    return '"' + "".join(f"\\U{ord(character):08X}" for character in str(value)) + '"'


@given(flags=SOURCE, environment=SOURCE, file=SOURCE)
def test_the_first_source_that_says_wins(
    tmp_path_factory: pytest.TempPathFactory,
    flags: dict[str, Any],
    environment: dict[str, Any],
    file: dict[str, Any],
) -> None:
    path = tmp_path_factory.getbasetemp() / "options.toml"
    path.write_text("".join(f"{key} = {toml(value)}\n" for key, value in file.items()), "utf-8")
    arguments = ["index", "--config", str(path), *as_flags(flags)]
    values, printed = resolved(arguments, as_environment(environment))
    wanted = DEFAULTS | file | environment | flags
    assert {key: getattr(values, key) for key in wanted} == wanted
    assert values.indexes == [Path("index")]
    # What is printed says the same alone.
    path.write_text(printed, "utf-8")
    again, same = resolved(["--config", str(path)])
    assert (again, same) == (values, printed)


def test_indexes_may_come_from_each_source(tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text('indexes = ["a", "b"]\n')
    config, environ = ["--config", str(path)], {"VITSCOPE_SERVE_INDEXES": "c"}
    assert resolved(config)[0].indexes == [Path("a"), Path("b")]
    assert resolved(config, environ)[0].indexes == [Path("c")]
    assert resolved([*config, "d", "e"], environ)[0].indexes == [Path("d"), Path("e")]
    environ = {"VITSCOPE_SERVE_CONFIG": str(path), "VITSCOPE_SERVE_GRACE": ""}
    values, _ = resolved([], environ)
    assert (values.indexes, values.grace) == ([Path("a"), Path("b")], 10.0)
    for arguments in ([], ["--config", str(path)]):
        path.write_text("indexes = []\n")
        with pytest.raises(SystemExit):
            resolved(arguments)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tls-cert = 'x'", "sets 'tls-cert', which is no option; did you mean tls_cert?"),
        ("graze = 1", "sets 'graze', which is no option; did you mean grace?"),
        ("[serve]\ngrace = 1", "sets 'serve', which is no option; "),
        ("xyz = 1", "sets 'xyz', which is no option; see `vitscope serve --help`."),
        ("config = 'x'", "sets 'config', which is no option; "),
        ("grace = 'soon'", "it has to be a number."),
        ("grace = true", "it has to be a number."),
        ("threads = 1.5", "is '1.5'; it has to be a whole number."),
        ("threads = true", "it has to be a whole number."),
        ("reflection = 1", "it has to be true or false."),
        ("reflection = 'true'", "it has to be true or false."),
        ("listen = 50051", "listen in --config"),
        ("tls_cert = ['x']", "tls_cert in --config"),
        ("indexes = 'x'", "it has to be a list of texts"),
        ("indexes = [1]", "it has to be a list of texts"),
        (f"grace = {'1' * 5000}", "has a number of too many digits"),
        (f"x = {'[' * 5000}", "too many lists in lists"),
        (f"workers = 0x{'f' * 5000}", "it has to be a whole number."),
        (f"listen = 0x{'f' * 5000}", "is 'a number of too many digits'; it has to be a text"),
        (r'tls_cert = "a\u0000b"', "has a NUL character; take it out."),
        (r'indexes = ["a\u0000b"]', "has a NUL character; take it out."),
        ("grace = ", "is not TOML; mend it: "),
        ("\udcff", "is not UTF-8"),
        (None, "cannot be read (No such file or directory)"),
    ],
)
def test_files_that_say_it_wrongly(tmp_path: Path, text: str | None, sentence: str) -> None:
    path = tmp_path / "options.toml"
    if text is not None:
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(StartError) as caught:
        resolved(["index", "--config", str(path)])
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("GRACE", "soon", "VITSCOPE_SERVE_GRACE is 'soon'; it has to be a number."),
        ("THREADS", "1.5", "it has to be a whole number."),
        ("REFLECTION", "maybe", "it has to be true or false."),
        ("INDEXES", "[1]", "it has to be a list of texts"),
        ("INDEXES", "[", "it has to be a list of texts"),
        ("INDEXES", "[" * 5000, "it has to be a list of texts"),
        ("INDEXES", f"[{'1' * 5000}]", "it has to be a list of texts"),
        ("WORKERS", "1" * 5000, "it has to be a whole number."),
        ("TLS_CERTS", "x", "did you mean VITSCOPE_SERVE_TLS_CERT?"),
        ("grace", "1", "sets 'VITSCOPE_SERVE_grace', which is no option; "),
    ],
)
def test_variables_that_say_it_wrongly(name: str, text: str, sentence: str) -> None:
    with pytest.raises(StartError) as caught:
        resolved(["index"], {f"VITSCOPE_SERVE_{name}": text})
    assert sentence in str(caught.value)


@pytest.mark.parametrize("text", ["true", "1", "YES", "on"])
def test_a_switch_is_put_on_by_the_environment_and_off_by_a_flag(text: str) -> None:
    environ = {"VITSCOPE_SERVE_REFLECTION": text}
    assert resolved(["index"], environ)[0].reflection is True
    assert resolved(["index", "--no-reflection"], environ)[0].reflection is False


def test_a_printed_configuration_serves(
    synthetic: Synthetic, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path / "options.toml"
    listen = ("--listen", "127.0.0.1:0", "--reflection")
    done = run_vitscope("serve", synthetic.path, *listen, "--print-config")
    assert (done.returncode, done.stderr) == (0, "")
    assert tomllib.loads(done.stdout)["indexes"] == [str(synthetic.path)]
    path.write_text(done.stdout)
    again = run_vitscope("serve", "--config", path, "--print-config")
    assert again.stdout == done.stdout
    server = ServerProcess(options=("--config", str(path)), errors=tmp_path / "stderr")
    try:
        assert server.terminate() == 0
    finally:
        server.close()


def test_a_process_tells_what_is_wrong(synthetic: Synthetic, tmp_path: Path) -> None:
    path = tmp_path / "options.toml"
    path.write_text("tls_crt = 'x'")
    text = check_start_error([synthetic.path, "--config", path], 6)
    assert "'tls_crt', which is no option; did you mean tls_cert?" in text
    done = subprocess.run(
        [str(VITSCOPE), "serve", "--print-config"],
        env=os.environ | {"VITSCOPE_SERVE_GRACE": "2", "VITSCOPE_SERVE_TOKENS": "tokens"},
        capture_output=True,
        text=True,
        check=True,
    )
    table = tomllib.loads(done.stdout)
    assert (table["grace"], table["tokens"]) == (2.0, "tokens")
    done = run_vitscope("serve")
    assert done.returncode == 2
    assert "the following arguments are required: INDEX" in done.stderr
