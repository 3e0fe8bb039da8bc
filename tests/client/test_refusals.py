"""What goes wrong is one sentence on stderr with its exit code, and leaves no picture behind."""

from __future__ import annotations

import http.server
import socket
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from client.truth import PLAIN, WHOLE, WIDE
from started import ServerProcess, run_vitscope
from synthetic import Synthetic

from client import truth
from vitscope.client import (
    Client,
    DamagedIndexError,
    DeadlineError,
    InvalidRequestError,
    NotFoundError,
    NotKeptError,
    UnavailableError,
    UsageError,
)
from vitscope.client.cli import main

pytestmark = pytest.mark.usefixtures("ask_synthetic")

Captured = pytest.CaptureFixture[str]

TOP = ["top-images", "--layer", WIDE, "--channel", "4"]
MAP = ["patch-map", "--layer", WIDE, "--channel", "4"]
NEAR = ["similar-images", "--layer", WIDE]
SHOW = ["gallery", "--show"]


def check_sentence(text: str) -> None:
    assert text.startswith("vitscope: ")
    assert text.endswith((".\n", "?\n"))
    assert text.count("\n") == 1
    assert "Traceback" not in text


def refused(line: list[str], code: int, capsys: Captured) -> str:
    """The sentence, after the exit code and the shape of it are checked."""
    assert main(line) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    check_sentence(captured.err)
    return captured.err


# Without --png; commands that can draw are asked to.
REFUSED: dict[str, tuple[list[str], str]] = {
    "top: unknown layer": (["top-images", "--layer", "x", "--channel", "0"], "no layer 'x'"),
    "top: empty layer": (["top-images", "--layer", "", "--channel", "0"], "layer is empty"),
    "top: channel out of range": ([*TOP[:-1], "11"], "it has channels 0 to 10"),
    "top: channel -1": ([*TOP[:-1], "-1"], "no channel -1"),
    "top: channel of no field": ([*TOP[:-1], str(1 << 31)], "channel 2147483648 is out of range"),
    "top: k 0": ([*TOP, "-k", "0"], "k is 0; it must be at least 1."),
    "top: k too large": ([*TOP, "-k", "66"], "k is 66, but there are 65 valid images."),
    "top: no class token": (
        ["top-images", "--layer", PLAIN, "--channel", "0", "--pooling", "cls"],
        "it has mean and max",
    ),
    "top: unknown index": ([*TOP, "--index", "none"], "this server holds: zoo."),
    "map: unknown layer": (
        ["patch-map", "--layer", "x", "--channel", "0", "--row", "1"],
        "no layer 'x'",
    ),
    "map: channel out of range": ([*MAP[:-1], "11", "--row", "1"], "it has channels 0 to 10"),
    "map: invalid row": ([*MAP, "--row", "17"], "row 17 is an invalid image"),
    "map: row out of range": ([*MAP, "--row", "70"], "the index has rows 0 to 69"),
    "map: row of no field": ([*MAP, "--row", str(1 << 63)], "does not fit in 64 bits"),
    "near: unknown layer": (["similar-images", "--layer", "x", "--row", "1"], "no layer 'x'"),
    "near: invalid row": ([*NEAR, "--row", "0"], "row 0 is an invalid image"),
    "near: row out of range": ([*NEAR, "--row", "-1"], "there is no row -1"),
    "near: k 0": ([*NEAR, "--row", "1", "-k", "0"], "k is 0; it must be at least 1."),
    "near: k too large": ([*NEAR, "--row", "1", "-k", "65"], "there are 64 other valid images."),
    "gallery: second layer unknown": (
        [*SHOW, f"{WIDE}:1", "--show", "x:1"],
        "no layer 'x'",
    ),
    "gallery: channel out of range": ([*SHOW, f"{WHOLE}:3"], "it has channels 0 to 2"),
    "gallery: k too large": ([*SHOW, f"{WIDE}:1", "-k", "99"], "k is 99"),
    "gallery: no channel": ([*SHOW, WIDE], "is not LAYER:CHANNEL"),
    "gallery: no number": ([*SHOW, f"{WIDE}:x"], "is not LAYER:CHANNEL"),
    "gallery: no layer": ([*SHOW, ":1"], "is not LAYER:CHANNEL"),
    "address without port": ([*TOP, "--server", "nowhere"], "write HOST:PORT"),
    "address of the web": ([*TOP, "--server", "http://localhost:1"], "write HOST:PORT"),
    "address of nothing": ([*TOP, "--server", ""], "write HOST:PORT"),
    "no time": ([*TOP, "--timeout", "0"], "give a positive number"),
    "no text": ([*TOP, "--index", "\udcff"], "is not text that UTF-8 can carry"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_leave_no_picture(name: str, empty_folder: Path, capsys: Captured) -> None:
    line, sentence = REFUSED[name]
    assert sentence in refused([*line, "--png", "sheet.png"], 2, capsys)
    assert list(empty_folder.iterdir()) == []


NO_TOKEN = "is no token; give the whole of one: letters, digits and signs without blanks."


@pytest.mark.parametrize("text", ["", "\nsecret", "two words", "schlüssel", "\N{BYTE ORDER MARK}x"])
def test_a_token_that_is_none(
    text: str, empty_folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    (empty_folder / "token").write_text(text)
    err = refused([*TOP, "--token-file", "token"], 2, capsys)
    assert err == f"vitscope: The first line of token {NO_TOKEN}\n"
    if text:
        monkeypatch.setenv("VITSCOPE_TOKEN", text)
        assert refused(TOP, 2, capsys) == f"vitscope: VITSCOPE_TOKEN {NO_TOKEN}\n"


def test_a_token_file_that_is_not_there(empty_folder: Path, capsys: Captured) -> None:
    err = refused([*TOP, "--token-file", "token"], 2, capsys)
    assert err == "vitscope: Cannot read token: No such file or directory.\n"


def test_an_empty_variable_is_none(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITSCOPE_TOKEN", "")
    assert main([*TOP, "-k", "1"]) == 0


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (
            ["--server", "gpu-7:1", "--token-file", "token"],
            "A token would go to gpu-7:1 for anyone to read; give --tls with it.",
        ),
        (
            ["--server", "a:1,b:1", "--tls"],
            "Replicas over TLS need one name that all their certificates have; give it as "
            "--tls-name NAME.",
        ),
        (["--tls-cert", "a.crt"], "A certificate and its key go together; give both or neither."),
        (["--tls-ca", "none.pem"], "Cannot read none.pem: No such file or directory."),
    ],
)
def test_what_is_said_in_flags(
    line: list[str], sentence: str, empty_folder: Path, capsys: Captured
) -> None:
    (empty_folder / "token").write_text("secret\n")
    assert refused([*TOP, *line], 2, capsys) == f"vitscope: {sentence}\n"


def test_a_map_that_was_not_kept(
    synthetic: Synthetic, empty_folder: Path, capsys: Captured
) -> None:
    kept = truth.kept_rows(synthetic, WIDE, 4)
    row = next(row for row in truth.good_rows(synthetic) if row not in kept)
    err = refused([*MAP, "--row", str(row), "--png", "sheet.png"], 2, capsys)
    assert f"the map of row {row} on channel 4 of {WIDE} was not kept" in err
    assert list(empty_folder.iterdir()) == []


def test_a_refusal_leaves_the_old_picture(empty_folder: Path, capsys: Captured) -> None:
    target = empty_folder / "sheet.png"
    target.write_bytes(b"old")
    refused([*TOP, "-k", "0", "--png", "sheet.png"], 2, capsys)
    assert target.read_bytes() == b"old"
    assert len(list(empty_folder.iterdir())) == 1


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["--row", "70"], "the index has rows 0 to 69"),
        (["--row", "1", "--row", "-1"], "there is no row -1"),
        (["--row", "1", "--index", "none"], "this server holds: zoo."),
        ([word for _ in range(1025) for word in ("--row", "1")], "at most 1024"),
    ],
)
def test_refused_images_leave_no_folder(
    line: list[str], sentence: str, empty_folder: Path, capsys: Captured
) -> None:
    assert sentence in refused(["images", *line, "--out", "pictures"], 2, capsys)
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        ("sheet.jpg", "must end in .png"),
        ("", "must end in .png"),
        ("none/sheet.png", "make none first"),
        ("file/sheet.png", "does not exist"),
        ("folder.png", "is a folder"),
        ("x" * 300 + ".png", "Cannot write"),
    ],
)
def test_a_picture_that_cannot_be_written_is_refused_before_asking(
    target: str, sentence: str, silent_address: str, empty_folder: Path, capsys: Captured
) -> None:
    (empty_folder / "folder.png").mkdir()
    (empty_folder / "file").write_bytes(b"")
    for line in (TOP, [*MAP, "--row", "1"], [*NEAR, "--row", "1"], [*SHOW, f"{WIDE}:1"]):
        whole = [*line, "--server", silent_address, "--png", target]
        assert sentence in refused(whole, 2, capsys)
    assert {path.name for path in empty_folder.iterdir()} == {"file", "folder.png"}


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("file", "is not a folder"),
        ("none/deeper", "Cannot make the folder none/deeper"),
        ("taken", "Cannot write taken/row_000001.jpg"),
    ],
)
def test_thumbnails_that_cannot_be_written(
    out: str, sentence: str, empty_folder: Path, capsys: Captured
) -> None:
    (empty_folder / "file").write_bytes(b"")
    (empty_folder / "taken" / "row_000001.jpg").mkdir(parents=True)
    assert sentence in refused(["images", "--row", "1", "--out", out], 2, capsys)
    assert {path.name for path in empty_folder.rglob("*")} == {"file", "taken", "row_000001.jpg"}


def test_one_of_several_indexes_must_be_named(two_indexes: str, capsys: Captured) -> None:
    err = refused([*TOP, "--server", two_indexes], 2, capsys)
    assert err == "vitscope: index is not given, and there are several: zoo, пруд.\n"
    assert "holds: zoo, пруд." in refused(
        ["layers", "--server", two_indexes, "--index", "лес"], 2, capsys
    )


COMMANDS = {
    "layers": ["layers"],
    "top-images": [*TOP, "--png", "sheet.png"],
    "patch-map": [*MAP, "--row", "1", "--png", "sheet.png"],
    "similar-images": [*NEAR, "--row", "1", "--png", "sheet.png"],
    "images": ["images", "--row", "1", "--out", "pictures"],
    "gallery": [*SHOW, f"{WIDE}:1", "--png", "sheet.png"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_no_server_listens(
    command: str, silent_address: str, empty_folder: Path, capsys: Captured
) -> None:
    assert refused([*COMMANDS[command], "--server", silent_address], 5, capsys) == (
        f"vitscope: No vitscope server answers at {silent_address}; "
        f"start one with `vitscope serve INDEX --listen {silent_address}`.\n"
    )
    assert list(empty_folder.iterdir()) == []


def test_a_web_server_is_no_vitscope_server(capsys: Captured) -> None:
    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        address = f"127.0.0.1:{server.server_port}"
        err = refused([*TOP, "--server", address, "--timeout", "60"], 5, capsys)
        server.shutdown()
        thread.join()
    assert f"No vitscope server answers at {address}" in err


def test_a_server_that_says_nothing_is_given_up(capsys: Captured) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        err = refused([*TOP, "--server", address, "--timeout", "0.2"], 5, capsys)
        with Client(address, timeout=0.1) as client, pytest.raises(DeadlineError):
            client.indexes()
    assert err == (
        f"vitscope: The server at {address} did not answer in time; "
        "allow more with a longer timeout.\n"
    )


def test_a_damaged_index(
    synthetic: Synthetic,
    synthetic_copy: Path,
    serve: Callable[..., ServerProcess],
    empty_folder: Path,
    capsys: Captured,
) -> None:
    server = serve(synthetic_copy)
    folder = synthetic_copy / "generations" / synthetic.generation
    group = folder / "arrays.zarr" / "layers" / WIDE
    for path in [*group.glob("top_*/c/**/*"), *group.glob("scores_*/c/**/*")]:
        if path.is_file():
            data = np.fromfile(path, np.uint8)
            data[7::50] ^= 16
            data.tofile(path)
    for k in ("3", "60"):
        line = [*TOP, "-k", k, "--server", server.address, "--png", "sheet.png"]
        assert str(synthetic_copy) not in refused(line, 4, capsys)
    with Client(server.address) as client, pytest.raises(DamagedIndexError):
        client.top_images(WIDE, 4)
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize(
    "line", [TOP, [*MAP, "--row", "1"], [*NEAR, "--row", "1"], [*SHOW, f"{WIDE}:4"]]
)
def test_thumbnails_that_are_no_pictures(
    hostile: str, line: list[str], empty_folder: Path, capsys: Captured
) -> None:
    err = refused([*line, "--server", hostile, "--png", "sheet.png"], 5, capsys)
    assert err == "vitscope: The server sent a thumbnail that does not decode as JPEG.\n"
    assert list(empty_folder.iterdir()) == []


def test_the_client_raises_what_it_promises(
    client: Client, synthetic: Synthetic, silent_address: str
) -> None:
    nobody = Client(silent_address)
    kept = truth.kept_rows(synthetic, WIDE, 4)
    unkept = next(row for row in truth.good_rows(synthetic) if row not in kept)
    calls: list[tuple[type[Exception], Callable[[], object]]] = [
        (NotFoundError, lambda: client.top_images("x", 0)),
        (NotFoundError, lambda: client.top_images(WIDE, 11)),
        (NotFoundError, lambda: client.images([70])),
        (NotFoundError, lambda: client.index("none")),
        (InvalidRequestError, lambda: client.top_images(WIDE, 0, k=0)),
        (InvalidRequestError, lambda: client.similar_images(WIDE, 1, k=65)),
        (InvalidRequestError, lambda: client.patch_maps([])),
        (InvalidRequestError, lambda: client.images([])),
        (NotKeptError, lambda: client.top_images(PLAIN, 0, pooling="cls")),
        (NotKeptError, lambda: client.patch_map(WIDE, 4, unkept)),
        (NotKeptError, lambda: client.similar_images(WIDE, 17)),
        (UsageError, lambda: client.top_images(WIDE, 0, pooling="sum")),
        (UsageError, lambda: client.images([1 << 63])),
        (UnavailableError, nobody.indexes),
    ]
    for kind, call in calls:
        with pytest.raises(kind) as caught:
            call()
        assert type(caught.value) is kind
        check_sentence(f"vitscope: {caught.value}\n")
        # No trace of gRPC in what is shown.
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__ or caught.value.__context__ is None
    nobody.close()


@pytest.mark.parametrize(
    ("line", "code"),
    [
        (["top-images", "--layer", "x", "--channel", "0", "--png", "sheet.png"], 2),
        (["patch-map", "--layer", WIDE, "--channel", "4", "--row", "17", "--json"], 2),
        ([*TOP, "--server", "nowhere"], 2),
        ([*TOP, "--png", "none/sheet.png"], 2),
        ([*TOP, "--server", "127.0.0.1:1"], 5),
    ],
)
def test_the_console_script_refuses_alike(line: list[str], code: int, empty_folder: Path) -> None:
    done: subprocess.CompletedProcess[str] = run_vitscope(*line)
    assert (done.returncode, done.stdout) == (code, "")
    check_sentence(done.stderr)
    assert list(empty_folder.iterdir()) == []
