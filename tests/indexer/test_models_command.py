"""`vitscope models` and `vitscope plan`: what they say is what an index then has and takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pictures import write_pictures

from vitscope.client.cli import main
from vitscope.indexer.modelpage import page
from vitscope.indexer.survey import FAMILIES, names, survey
from vitscope.store.generation import open_generation

RUN = ("--model", "test_vit", "--random-weights", "--img-size", "64x96", "--top-k", "3")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    write_pictures(tmp_path / "pictures", 24)
    return tmp_path / "pictures"


def lines_of(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return capsys.readouterr().out.splitlines()


def test_models_tells_layers_and_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pit_ti*"]) == 0
    plain, distilled = (line.split() for line in lines_of(capsys)[1:3])
    grids = ["27x27,", "14x14,", "7x7"]
    assert plain == [
        *("pit_ti_224", "4.6", "224x224", "12", "256,", "512,", "1024", *grids, "cls"),
        *("123", "2.4", "257"),
    ]
    assert distilled[0] == "pit_ti_distilled_224"
    assert distilled[-4] == "cls+dist"
    assert main(["models", "mixer_s32_224"]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "mixer_s32_224 cannot be indexed: its forward computes no" in said.err


def test_models_tells_blocks_that_are_no_layers(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "vit_base_patch16_siglip_224"]) == 0
    assert capsys.readouterr().err == (
        "vit_base_patch16_siglip_224: attn_pool.mlp is no layer of the index: it sees one token "
        "for the whole picture.\n"
    )


def test_models_probes_where_it_is_asked(capsys: pytest.CaptureFixture[str]) -> None:
    # Shapes alone do not show that Hiera's tokens lie in another order.
    small = ["--probe", "--probe-up-to", "1000"]
    for options, refused in (([], False), (["--probe"], True), (small, False)):
        assert main(["models", "hiera_tiny_224", "--json", *options]) == 0
        [line] = lines_of(capsys)
        said = json.loads(line)
        assert bool(said["refused"]) == refused
        assert bool(said["layers"]) != refused
        assert said["probed"] == refused


def test_an_unknown_model_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["models", "pit_ti_224", "--img-size", "0"]) == 3
    assert capsys.readouterr().err == "vitscope: --img-size must be at least 1 pixel.\n"
    assert main(["models", "pit_ti_224", "--img-size", "100000"]) == 3
    assert "--img-size must be at most 4096 pixels a side." in capsys.readouterr().err
    assert main(["models", "nonesuch"]) == 3
    assert capsys.readouterr().err == "vitscope: timm has no model that matches 'nonesuch'.\n"


def test_every_family_has_models() -> None:
    found = names(families=True)
    assert len(found) > 300
    assert {survey(name).family for name in ("vit_tiny_patch16_224", "eva02_tiny_patch14_224")} <= {
        *FAMILIES
    }


def test_the_page_holds_every_model() -> None:
    surveyed = [survey(name) for name in ("convit_tiny", "mixer_s32_224")]
    text = page(surveyed, 32)
    assert (
        "Of the 2 models in the files below, 1 can be indexed\n(refused: 1). 0 were probed" in text
    )
    assert "| `convit_tiny` | 5.5 | 224 × 224 | 12 | 768 | 14x14 | none, cls |" in text
    assert "Refused: mixer_s32_224 cannot be indexed: its forward" in text


@pytest.mark.parametrize("retained", ["", "all"])
def test_a_plan_foretells_the_bytes(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], retained: str
) -> None:
    line = [*RUN, "--data", str(pictures), "--out", str(tmp_path / "index"), "--batch-size", "4"]
    line += ["--retain-all", retained, "--unit-rows", "8"]
    assert main(["plan", *line, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert not (tmp_path / "index").exists()
    assert (said["images"], said["units"], said["unit_rows"]) == (24, 3, 8)
    assert said["input_size"] == [64, 96]
    assert said["seconds"] > 0
    assert said["memory_bytes"] > 50_000_000
    assert main(["index", *line]) == 0
    manifest = open_generation(tmp_path / "index").manifest
    layers = [layer.name for layer in manifest.layers]
    assert said["layers"] == layers
    real = sum(file.bytes for file in manifest.files.values())
    # Shard indexes, metadata and statistics are not in the plan; they matter in small indexes.
    overhead = 100_000 * len(layers)
    assert said["bytes"] <= real <= 1.05 * said["bytes"] + overhead


def test_a_plan_is_told_in_lines(pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *RUN, "--data", str(pictures), "--workers", "2", "--threads", "1"]) == 0
    said = lines_of(capsys)
    heads = [line.split()[0] for line in said[:-1]]
    assert heads == ["model", "images", "disk", "memory", "time"]
    assert said[0] == "model    test_vit, 64 x 96 pixels, 6 layers, on cpu"
    assert "in each of 2 processes" in said[3]


def test_a_plan_where_nothing_can_be_written_is_one_sentence(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["plan", *RUN, "--data", str(pictures), "--out", "/proc/index"]) == 3
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("vitscope: Writing to /proc/index failed")


def test_a_plan_of_what_cannot_be_indexed_is_one_sentence(
    pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["--model", "mixer_s32_224", "--random-weights", "--data", str(pictures)]
    assert main(["plan", *line]) == 3
    said = capsys.readouterr()
    assert said.out == ""
    assert "mixer_s32_224 cannot be indexed" in said.err
    assert len(said.err.splitlines()) == 1
