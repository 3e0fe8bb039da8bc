"""`vitscope info` and `vitscope verify`, as a person or a script runs them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from started import run_vitscope
from synthetic import Synthetic, build

from vitscope.client.cli import main


def test_info_as_json_describes_the_index(
    synthetic: Synthetic, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["info", str(synthetic.path), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    files = [path for path in synthetic.folder.rglob("*") if path.is_file()]
    assert body["generation"] == synthetic.generation
    assert (body["rows"], body["valid_rows"]) == (70, 65)
    assert body["files"] == len(files) - 1
    assert [layer["name"] for layer in body["layers"]] == list(synthetic.layers)
    assert body["model"]["name"] == "vit_synthetic.none"
    assert [record["row"] for record in body["invalid"]] == [0, 17, 31, 32, 69]
    for record in body["invalid"]:
        truth = synthetic.records[record["row"]]
        assert (record["key"], record["reason"]) == (truth.key, truth.reason)


def test_info_for_people(synthetic: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(synthetic.path)]) == 0
    text = capsys.readouterr().out
    assert synthetic.generation in text
    assert "70, 65 of them valid" in text
    (line,) = [line for line in text.splitlines() if line.startswith("blocks.0.mlp")]
    assert line.split()[1:5] == ["11", "cls+reg+reg", "3x5", "mean,max,cls"]
    (line,) = [line for line in text.splitlines() if line.startswith("stages.1.blocks.0.mlp")]
    assert line.split()[1:5] == ["24", "none", "4x2", "mean,max"]
    assert "invalid images: 5" in text
    assert "row 17  зоопарк/野 017.jpg: cannot identify image №17" in text


def test_verify_of_a_sound_index(synthetic: Synthetic, capsys: pytest.CaptureFixture[str]) -> None:
    for options, state in (([], ", nothing amiss ("), (["--deep"], ", sound (")):
        assert main(["verify", str(synthetic.path), *options]) == 0
        captured = capsys.readouterr()
        assert captured.err == ""
        assert captured.out.startswith(f"Generation {synthetic.generation}: ")
        assert state in captured.out
    assert main(["verify", str(synthetic.path), "--json"]) == 0
    body = json.loads(capsys.readouterr().out)
    assert (body["generation"], body["problems"]) == (synthetic.generation, [])


def test_verify_of_a_damaged_index(
    synthetic: Synthetic, synthetic_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "arrays.zarr/layers/blocks.0.mlp/scores_mean/c/0/1"
    shard = synthetic_copy / "generations" / synthetic.generation / name
    data = bytearray(shard.read_bytes())
    data[40] ^= 1
    shard.write_bytes(data)
    assert main(["verify", str(synthetic_copy), "--deep"]) == 4
    captured = capsys.readouterr()
    assert captured.err == f"vitscope: {name} has other bytes than were published.\n"
    assert ", 1 problem (" in captured.out
    assert main(["verify", str(synthetic_copy), "--deep", "--json"]) == 4
    captured = capsys.readouterr()
    assert json.loads(captured.out)["problems"] == [f"{name} has other bytes than were published."]


@pytest.mark.parametrize("command", ["info", "verify"])
def test_what_is_no_index_ends_with_4_and_one_sentence(tmp_path: Path, command: str) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        done = run_vitscope(command, path)
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.startswith("vitscope: ")
        assert done.stderr.count("\n") == 1
        assert str(path) in done.stderr


@pytest.mark.parametrize("command", ["info", "verify"])
def test_a_damaged_manifest_ends_with_4(
    synthetic: Synthetic, synthetic_copy: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (synthetic_copy / "generations" / synthetic.generation / "manifest.json").write_bytes(b"{}")
    assert main([command, str(synthetic_copy)]) == 4
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vitscope: manifest.json of generation")
    assert "is not what was published" in captured.err


def test_the_console_script_prints_json_and_nothing_else(synthetic: Synthetic) -> None:
    for command in ("info", "verify"):
        done = run_vitscope(command, synthetic.path, "--json")
        assert (done.returncode, done.stderr) == (0, "")
        assert json.loads(done.stdout)["generation"] == synthetic.generation


def test_info_of_an_index_without_invalid_images_or_thumbnails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Row 0 of one is bad everywhere, so the list is there; thumbnails are not."""
    built = build(tmp_path / "few", rows=4, thumbnails=False)
    assert main(["info", str(built.path)]) == 0
    assert "invalid images: 2" in capsys.readouterr().out
    assert main(["verify", str(built.path), "--deep"]) == 0
