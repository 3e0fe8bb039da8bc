"""Adding pictures to a published index."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from pathlib import Path

import make_golden
import numpy as np
import pytest
import timm
import torch
from pictures import BAD, jpeg, noise
from runs import tiny

from vitscope.indexer.errors import NothingNewError, OutputError
from vitscope.indexer.job import Job, prepare
from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.plan import Shard
from vitscope.indexer.run import index
from vitscope.indexer.sharded import index_shard
from vitscope.store.generation import Generation, open_generation
from vitscope.store.verify import verify


def options(pictures: Path, out: Path) -> Options:
    """One picture a forward: equal bits whatever stands beside it."""
    kept = {"retain_all": ("blocks.1.mlp",), "retain_prefix": ("blocks.0.mlp",)}
    return tiny(pictures, out, top_k=5, batch_size=1, **kept)


def folder(path: Path, numbers: range, *, bad: bool = False) -> Path:
    path.mkdir()
    for number in numbers:
        (path / f"{number:03d}.jpg").write_bytes(jpeg(noise(number)))
    if bad:
        for name, data in BAD.items():
            (path / name).write_bytes(data)
    return path


def assert_equal_but_for_names(mine: Generation, other: Generation) -> None:
    """Everything that can be asked of two indexes of the same pictures is the same."""
    assert mine.manifest.layers == other.manifest.layers
    assert (mine.manifest.rows, mine.manifest.valid_rows) == (
        other.manifest.rows,
        other.manifest.valid_rows,
    )
    for row in range(mine.manifest.rows):
        assert mine.rows.record(row) == other.rows.record(row)
        assert mine.thumbnail(row) == other.thumbnail(row)
    # All arrays and FAISS files, to the byte.
    files = {
        name: record
        for name, record in mine.manifest.files.items()
        if name.startswith(("arrays.zarr/layers", "faiss"))
    }
    assert files == {name: other.manifest.files[name] for name in files}
    assert mine.manifest.files.keys() == other.manifest.files.keys()


@pytest.mark.parametrize("first", [1, 4, 10])
def test_appending_equals_indexing_at_once(tmp_path: Path, first: int) -> None:
    """With sorted names and one picture a forward, all bytes but those of the manifest agree."""
    everything = folder(tmp_path / "all", range(19))
    small = replace(options(folder(tmp_path / "a", range(first)), tmp_path / "index"), unit_rows=4)
    index(small)
    name = index(
        replace(small, data=folder(tmp_path / "b", range(first, 19)), append=True),
    )
    index(options(everything, tmp_path / "once"))
    assert name.startswith("000002-")
    assert verify(tmp_path / "index", deep=True).problems == ()
    assert not (tmp_path / "index" / "building").exists()
    grown, once = open_generation(tmp_path / "index"), open_generation(tmp_path / "once")
    assert_equal_but_for_names(grown, once)


def test_full_units_are_shared_and_the_old_generation_stays(tmp_path: Path) -> None:
    base = options(folder(tmp_path / "a", range(10), bad=True), tmp_path / "index")
    old = index(base)
    before = open_generation(tmp_path / "index")
    truth = [before.scores("blocks.0.mlp", "mean", channel) for channel in range(20)]
    index(replace(base, data=folder(tmp_path / "b", range(10, 30)), append=True))
    after = open_generation(tmp_path / "index")
    assert (after.manifest.rows, after.manifest.valid_rows) == (33, 30)
    shard = "arrays.zarr/layers/blocks.0.mlp/scores_mean/c/0/1"
    assert (before.path / shard).samefile(after.path / shard)
    half_full = shard.replace("c/0/1", "c/0/3")
    assert not (before.path / half_full).samefile(after.path / half_full)
    assert before.name == old
    again = Generation(before.path)
    for channel, scores in enumerate(truth):
        np.testing.assert_array_equal(again.scores("blocks.0.mlp", "mean", channel), scores)
        np.testing.assert_array_equal(after.scores("blocks.0.mlp", "mean", channel)[:13], scores)
    # A third time, across a unit that was half carried over.
    index(replace(base, data=folder(tmp_path / "c", range(40, 43)), append=True))
    assert open_generation(tmp_path / "index").name.startswith("000003-")
    assert verify(tmp_path / "index", deep=True).problems == ()


def test_a_folder_that_grew_adds_what_is_new(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = folder(tmp_path / "a", range(6), bad=True)
    base = options(pictures, tmp_path / "index")
    index(base)
    with pytest.raises(NothingNewError, match="are in the index already"):
        index(replace(base, append=True))
    (pictures / "0005.jpg").write_bytes(jpeg(noise(77)))
    (pictures / "003.jpg").write_bytes(jpeg(noise(78)))
    capsys.readouterr()
    index(replace(base, append=True))
    said = capsys.readouterr().err
    assert "Passed over: 8 pictures that the index has already." in said
    assert "Renamed: 1 new picture with the name of another" in said
    rows = open_generation(tmp_path / "index").rows
    assert [rows.key(row) for row in (9, 10)] == ["0005.jpg", "003.jpg#2"]
    with pytest.raises(NothingNewError):
        index(replace(base, append=True))


def test_an_append_that_was_cut_off_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = options(folder(tmp_path / "a", range(10)), tmp_path / "index")
    first = index(base)
    more = replace(base, data=folder(tmp_path / "b", range(10, 21)), append=True)
    places = ["run.run_here", "run.merge", "merge.publish", "work.Work.remove"]
    for place in places:
        with monkeypatch.context() as patch:

            def stop(*given: object) -> None:
                raise KeyboardInterrupt

            patch.setattr(f"vitscope.indexer.{place}", stop)
            with pytest.raises(KeyboardInterrupt):
                index(more)
        rows = open_generation(tmp_path / "index").manifest.rows
        assert rows == (21 if place == places[-1] else 10)
    with pytest.raises(OutputError, match=rf"with --append to {first} \(not without it\)[,;]"):
        index(replace(more, append=False))
    name = index(more)
    assert name.startswith("000002-")
    assert open_generation(tmp_path / "index").name == name
    assert verify(tmp_path / "index", deep=True).problems == ()
    assert not (tmp_path / "index" / "building").exists()


def test_wrong_uses_are_refused(tmp_path: Path) -> None:
    pictures = folder(tmp_path / "a", range(9))
    base = options(pictures, tmp_path / "index")
    with pytest.raises(OutputError, match="holds no published index"):
        index(replace(base, append=True))
    index(base)
    more = replace(base, data=folder(tmp_path / "b", range(20, 23)), append=True)
    assert_other_options_are_refused(more)
    with pytest.raises(OutputError, match="add pictures to it with --append"):
        index(replace(more, append=False))
    assert not (tmp_path / "index" / "building").exists()


def test_an_index_that_records_no_views_is_refused(tmp_path: Path) -> None:
    pictures = folder(tmp_path / "a", range(3))
    shutil.copytree(make_golden.DATA / "golden-v1" / "index", tmp_path / "index")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match=r"by an earlier vitscope.* index all pictures anew"):
        index(replace(options(pictures, tmp_path / "index"), append=True))
    assert sorted(tmp_path.rglob("*")) == before


def assert_other_options_are_refused(same: Options) -> None:
    """The sentence has the option as it was typed, with both values, and nothing else."""
    for said, other in {
        "--model test_vit (not test_vit2); make another": replace(same, model="test_vit2"),
        "--dtype float32 (not bfloat16);": replace(same, dtype="bfloat16"),
        "--top-k 5 (not 4);": replace(same, top_k=4),
        "--poolings mean,max,cls (not mean);": replace(same, poolings=("mean",)),
        "--retain-all blocks.1.mlp (not all);": replace(same, retain_all=("all",)),
        "--patch-search for blocks.1.mlp (not none);": replace(same, patch_search=False),
        "--retain-prefix blocks.0.mlp (not none);": replace(same, retain_prefix=()),
        "--img-size 32 (not 48);": replace(same, img_size=(48, 48)),
        "--batch-size 1 (not 2);": replace(same, batch_size=2),
        "--unit-rows 4 (not 8);": replace(same, unit_rows=8),
        "--thumbnail-size 256 (not 0);": replace(same, thumbnail_size=0),
        "--decoder pillow (not pillow-dct);": replace(same, decoder="pillow-dct"),
        "--threads 1 (not 2);": replace(same, threads=2),
    }.items():
        with pytest.raises(OutputError, match=rf"was made with {re.escape(said)}"):
            index(other)


def test_options_are_compared_before_pictures(tmp_path: Path) -> None:
    """Pictures that are all there do not hide that other scores were asked for."""
    base = options(folder(tmp_path / "a", range(9)), tmp_path / "index")
    index(base)
    again = replace(base, append=True)
    with pytest.raises(NothingNewError):
        index(again)
    assert_other_options_are_refused(again)
    module = timm.create_model("test_vit", num_classes=0, img_size=32)
    torch.save(module.state_dict(), tmp_path / "other.pth")
    with pytest.raises(OutputError, match=r"weights from --random-weights \(not --checkpoint\);"):
        index(replace(again, weights=Weights(tmp_path / "other.pth")))


def test_other_weights_of_the_same_model_are_refused(tmp_path: Path) -> None:
    for name in ("one", "other"):
        module = timm.create_model("test_vit", num_classes=0, img_size=32)
        torch.save(module.state_dict(), tmp_path / f"{name}.pth")
    pictures = folder(tmp_path / "a", range(2))
    base = replace(options(pictures, tmp_path / "index"), weights=Weights(tmp_path / "one.pth"))
    index(base)
    with pytest.raises(
        OutputError, match=r"made with another --checkpoint \(or weights of the hub"
    ):
        index(replace(base, weights=Weights(tmp_path / "other.pth"), append=True))


def test_a_first_index_smaller_than_a_unit_may_grow(tmp_path: Path) -> None:
    base = replace(options(folder(tmp_path / "a", range(3)), tmp_path / "index"), unit_rows=8)
    index(base)
    assert open_generation(tmp_path / "index").manifest.unit_rows == 3
    index(replace(base, data=folder(tmp_path / "b", range(3, 20)), append=True))
    generation = open_generation(tmp_path / "index")
    assert (generation.manifest.rows, generation.manifest.unit_rows) == (20, 8)
    assert [layer.top_k for layer in generation.manifest.layers] == [5] * 6
    index(replace(base, data=folder(tmp_path / "all", range(20)), out=tmp_path / "once"))
    assert_equal_but_for_names(generation, open_generation(tmp_path / "once"))


def test_another_run_that_publishes_meanwhile_is_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures must not be lost, nor the index set back, where the base is no more the newest."""
    out = tmp_path / "index"
    mine = options(folder(tmp_path / "a", range(4)), out)
    index(mine)
    others = [folder(tmp_path / "b", range(4, 6)), folder(tmp_path / "c", range(6, 9))]
    late = replace(mine, data=folder(tmp_path / "d", range(9, 12)), append=True)
    for run in (index, lambda given: index_shard(given, Shard(0, 1))):
        with monkeypatch.context() as patch:

            def published_meanwhile(given: Options) -> Job:
                job = prepare(given)
                patch.setattr("vitscope.indexer.run.prepare", prepare)
                index(replace(mine, data=others.pop(), append=True))
                return job

            patch.setattr("vitscope.indexer.run.prepare", published_meanwhile)
            with pytest.raises(
                OutputError, match=r"Another run has published 00000\d-\w+ in .* mean"
            ):
                run(late)
        assert not (out / "building" / "plan.json").exists()
    assert open_generation(out).name.startswith("000003-")
    assert index(late).startswith("000004-")
    assert open_generation(out).manifest.rows == 12


def test_an_older_generation_that_was_put_back_can_be_added_to(tmp_path: Path) -> None:
    out = tmp_path / "index"
    mine = options(folder(tmp_path / "a", range(4)), out)
    first = index(mine)
    index(replace(mine, data=folder(tmp_path / "b", range(4, 6)), append=True))
    (out / "CURRENT").write_text(f"{first}\n")
    name = index(replace(mine, data=folder(tmp_path / "c", range(6, 9)), append=True))
    assert name.startswith("000003-")
    keys = [open_generation(out).rows.key(row) for row in range(7)]
    assert keys == [f"{number:03d}.jpg" for number in (*range(4), *range(6, 9))]
