"""Indexes in a bucket: there and back, read in place, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import obstore
import pytest
import tensorstore as ts
import zarr
from buckets import BUCKET
from pictures import write_pictures
from remotes import LARGE, bucket, check_pulled, objects, published
from runs import files_of, tiny
from started import VITSCOPE, ServerProcess
from zarr.storage import ObjectStore

from vitscope.client import Client
from vitscope.client.cli import main
from vitscope.store.errors import NotAnIndexError
from vitscope.store.generation import open_generation
from vitscope.store.pull import pull
from vitscope.store.push import push
from vitscope.store.verify import verify

SCORES = "arrays.zarr/layers/blocks.0.mlp/scores_mean"


def test_an_index_lies_there_as_on_the_disk_and_comes_back(
    made: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, files = open_generation(made).name, len(files_of(made)) - 2
    out = tmp_path / "deep" / "out"
    for command, moved in (
        (["push", str(made), url], "sent"),
        (["pull", url, str(out)], "received"),
    ):
        for expected in (files, 0):
            assert main([*command, "--json"]) == 0
            body = json.loads(capsys.readouterr().out)
            assert (body["generation"], body["files"]) == (name, files)
            assert body[moved] == expected
    assert objects(url) == files_of(made)
    lock = {"lock": b""}
    assert files_of(out) == files_of(made) | lock
    assert verify(out, deep=True).problems == ()


def test_for_people(
    made: Path, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = open_generation(made).name
    assert main(["push", str(made), url]) == 0
    assert capsys.readouterr().out.startswith(f"Published {name} at {url}: ")
    assert main(["pull", url, str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith(f"Published {name} in {tmp_path / 'out'}: ")
    assert "kB pulled: " in captured.err


def test_a_large_file_goes_in_parts(grown: Path, url: str, tmp_path: Path) -> None:
    index, name = grown, open_generation(grown).name
    push(index, url)
    tag = obstore.head(bucket(url), f"generations/{name}/{LARGE}")["e_tag"]
    assert tag is not None
    assert tag.strip('"').endswith("-2")
    assert push(index, url).sent == 0
    check_pulled(url, tmp_path / "out", index)


def test_the_root_of_a_bucket_is_a_place_too(made: Path, environment: None, tmp_path: Path) -> None:
    push(made, f"s3://{BUCKET}/")
    check_pulled(f"s3://{BUCKET}", tmp_path / "out", made)


def test_arrays_are_read_in_place(made: Path, url: str) -> None:
    push(made, url)
    generation = open_generation(made)
    truth = [generation.scores("blocks.0.mlp", "mean", channel) for channel in range(5)]
    path = f"generations/{generation.name}/{SCORES}"
    place = {
        "driver": "s3",
        "bucket": BUCKET,
        "path": f"{url.removeprefix(f's3://{BUCKET}/')}/{path}/",
        "endpoint": os.environ["AWS_ENDPOINT_URL"],
        "aws_region": "us-east-1",
        "aws_credentials": {"type": "environment"},
    }
    there = ts.open({"driver": "zarr3", "kvstore": place}).result().read().result()
    np.testing.assert_array_equal(there, truth)
    array = zarr.open_array(ObjectStore(bucket(url), read_only=True), path=path, mode="r")
    np.testing.assert_array_equal(np.asarray(array[:]), truth)


def test_what_was_pulled_is_served(made: Path, url: str, tmp_path: Path) -> None:
    push(made, url)
    pull(url, tmp_path / "out")
    served = ServerProcess(tmp_path / "out", errors=tmp_path / "stderr")
    try:
        with Client(served.address) as client:
            top = client.top_images("blocks.0.mlp", 3, pooling="max", k=3)
    finally:
        served.close()
    rows, scores = open_generation(made).top("blocks.0.mlp", "max", 3)
    assert [(image.row, image.score) for image in top.images] == list(
        zip(rows.tolist(), scores.tolist(), strict=True)
    )


def test_pictures_are_added_to_what_was_pulled_and_pushed_again(url: str, tmp_path: Path) -> None:
    from vitscope.indexer.run import index as run_index

    first, second = tmp_path / "first", tmp_path / "second"
    write_pictures(tmp_path / "one", 8)
    write_pictures(tmp_path / "two", 12)
    run_index(tiny(tmp_path / "one", first))
    push(first, url)
    pull(url, second)
    name = run_index(tiny(tmp_path / "two", second, append=True))
    pushed = push(second, url)
    assert pushed.copied > 0
    assert pushed.sent + pushed.copied == pushed.files
    assert objects(url).keys() == {path for path in files_of(second) if path != "lock"}
    pulled = pull(url, first)
    assert (pulled.generation, pulled.linked) == (name, pushed.copied)
    assert published(first) == published(second)
    assert verify(first, deep=True).problems == ()


@pytest.mark.parametrize(
    ("url", "changes", "code", "sentence"),
    [
        ("s4://bucket/x", {}, 2, "'s4://bucket/x' is not of the form s3://BUCKET/PREFIX."),
        ("/tmp/index", {}, 2, "'/tmp/index' is not of the form s3://BUCKET/PREFIX."),
        ("s3://", {}, 2, "'s3://' is not of the form s3://BUCKET/PREFIX."),
        ("s3://b/a/../c", {}, 2, "'s3://b/a/../c' is not of the form s3://BUCKET/PREFIX."),
        ("s3://none/x", {}, 3, "There is no bucket none at {url}; make it or mend its name."),
        (
            f"s3://{BUCKET}/x",
            {"AWS_SECRET_ACCESS_KEY": "other"},
            3,
            "{url} refuses s3://tests/x to these credentials (SignatureDoesNotMatch); see "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
        ),
        (
            f"s3://{BUCKET}/x",
            {"AWS_ENDPOINT_URL": "127.0.0.1:9"},
            3,
            "AWS_ENDPOINT_URL is '127.0.0.1:9'; it begins with http:// or https://.",
        ),
        (
            f"s3://{BUCKET}/x",
            {"AWS_ENDPOINT_URL": "http://127.0.0.1:9"},
            5,
            "http://127.0.0.1:9 does not answer (error sending request); see AWS_ENDPOINT_URL and "
            "the network, and run the same command again.",
        ),
    ],
)
def test_a_place_that_cannot_be_used_is_one_sentence(
    made: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    url: str,
    changes: dict[str, str],
    code: int,
    sentence: str,
    environment: None,
) -> None:
    sentence = sentence.format(url=os.environ["AWS_ENDPOINT_URL"])
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    for command in (["push", str(made), url], ["pull", url, str(tmp_path / "out")]):
        assert main(command) == code
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", f"vitscope: {sentence}\n")
    assert not (tmp_path / "out").exists()


def test_where_no_index_is(made: Path, url: str, tmp_path: Path) -> None:
    with pytest.raises(NotAnIndexError, match=f"^No index is published at {url}; "):
        pull(url, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(NotAnIndexError, match="is not an index"):
        push(tmp_path, url)
    push(made, url)
    (tmp_path / "mine").write_text("x")
    for other in (tmp_path, tmp_path / "mine"):
        with pytest.raises(NotAnIndexError, match=f"^{other} holds something else; "):
            pull(url, other)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_without_the_client_the_extra_is_named(made: Path) -> None:
    code = f"""
import sys
from vitscope.client.cli import main
sys.modules["obstore"] = None
sys.exit(main(["push", {str(made)!r}, "s3://bucket/x"]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        3,
        "vitscope: push needs obstore; install it with `pip install 'vitscope[s3]'`.\n",
    )


def test_a_full_disk_is_said_and_room_mends_it(made: Path, url: str, tmp_path: Path) -> None:
    push(made, url)
    disk = tmp_path / "disk"
    disk.mkdir()
    script = f"""
mount -t tmpfs -o size=$1 disk {disk} || exit 77
cp -a {tmp_path}/kept/. {disk}
{VITSCOPE} pull {url} {disk}/index
code=$?
cp -a {disk}/. {tmp_path}/kept
exit $code
"""
    (tmp_path / "kept").mkdir()
    codes = []
    for size in ("200k", "20m"):
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script, "sh", size], capture_output=True, text=True
        )
        if done.returncode in (1, 77):
            pytest.skip(f"no file system can be mounted here: {done.stderr}")
        codes.append(done.returncode)
        if codes == [4]:
            assert done.stderr.splitlines()[-1].startswith(
                f"vitscope: {disk}/index cannot be written: {os.strerror(errno.ENOSPC)} ("
            )
    assert codes == [4, 0]
    assert published(tmp_path / "kept" / "index") == published(made)
