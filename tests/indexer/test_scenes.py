"""The drawn scenes, their ground truth, and the model trained on them."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.config import resolve_data_config
from timm.models.vision_transformer import VisionTransformer

from vitscope.indexer import scenes
from vitscope.indexer.scenes import render
from vitscope.indexer.scenes.backdrops import PAINTERS
from vitscope.indexer.scenes.model import MODEL_NAME, WEIGHTS
from vitscope.indexer.scenes.noise import Field

UNSEEN_SEED = 41  # neither trained on, nor held out during training, nor the demo's
DOCS = Path(__file__).parents[2] / "docs"


def _in_new_process(code: str) -> str:
    """What ``code`` prints in a fresh interpreter that finds the same packages."""
    path = os.pathsep.join(entry for entry in sys.path if entry)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def _digest(scene: scenes.Scene) -> str:
    return hashlib.sha256(scene.image.tobytes() + scene.mask.tobytes()).hexdigest()


# --- what the set holds, without drawing a pixel ---------------------------------------------


def test_classes_and_backgrounds_are_named_once_and_in_order() -> None:
    assert len(scenes.CLASSES) == 16
    assert list(scenes.CLASSES) == sorted(set(scenes.CLASSES))
    assert list(scenes.BACKGROUNDS) == sorted(set(scenes.BACKGROUNDS))
    assert all(re.fullmatch(r"[a-z]+-[a-z]+-[a-z]+", name) for name in scenes.CLASSES)
    assert set(PAINTERS) == set(scenes.BACKGROUNDS)
    assert set(scenes.HABITAT) == set(scenes.CLASSES)
    assert Counter(scenes.HABITAT.values()) == dict.fromkeys(scenes.BACKGROUNDS, 2)


@pytest.mark.parametrize("trait", ["shape", "texture", "colour"])
def test_no_single_trait_settles_the_class(trait: str) -> None:
    carriers = Counter(getattr(kind, trait) for kind in scenes.KINDS.values())
    assert set(carriers.values()) == {4}


@pytest.mark.parametrize("trait", ["shape", "texture", "colour"])
def test_every_trait_is_needed_by_some_pair_alike_in_the_others(trait: str) -> None:
    alike = Counter(
        tuple(getattr(kind, other) for other in ("shape", "texture", "colour") if other != trait)
        for kind in scenes.KINDS.values()
    )
    assert max(alike.values()) == 2


def test_classes_are_balanced() -> None:
    labels = Counter(scenes.plan_scene(index).label for index in range(320))
    assert labels == dict.fromkeys(scenes.CLASSES, 20)


def test_habitual_background_comes_at_the_stated_rate() -> None:
    plans = [scenes.plan_scene(index, seed=5) for index in range(4000)]
    home = np.mean([plan.background == scenes.HABITAT[plan.label] for plan in plans])
    rate = scenes.BACKGROUND_RATE
    assert home == pytest.approx(rate, abs=4 * np.sqrt(rate * (1 - rate) / 4000))


def test_other_backgrounds_share_the_rest_evenly() -> None:
    plans = [scenes.plan_scene(index, seed=6) for index in range(6400)]
    away = [p for p in plans if p.background != scenes.HABITAT[p.label]]
    # Each background is the habitat of two classes of sixteen, so all are met alike when away.
    counts = Counter(plan.background for plan in away)
    expected = len(away) / len(scenes.BACKGROUNDS)
    assert set(counts) == set(scenes.BACKGROUNDS)
    assert all(abs(count - expected) < 4 * np.sqrt(expected) for count in counts.values())


# --- one scene -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn() -> list[scenes.Scene]:
    """Twelve scenes of every class."""
    return [scenes.render_scene(index, seed=3) for index in range(192)]


def test_scene_is_the_same_in_another_process() -> None:
    code = (
        "import hashlib; from vitscope.indexer.scenes import render_scene\n"
        "for index in (0, 7, 1234):\n"
        "    s = render_scene(index, seed=9)\n"
        "    print(hashlib.sha256(s.image.tobytes() + s.mask.tobytes()).hexdigest())"
    )
    here = [_digest(scenes.render_scene(index, seed=9)) for index in (0, 7, 1234)]
    assert _in_new_process(code).split() == here


def test_scene_does_not_depend_on_what_was_drawn_before() -> None:
    alone = _digest(scenes.render_scene(7))
    for index in (3, 200, 6, 8):
        scenes.render_scene(index, seed=index)
    assert _digest(scenes.render_scene(7)) == alone


def test_index_and_seed_both_change_the_picture() -> None:
    cases = [(7, 0), (23, 0), (7, 1), (23, 1)]
    assert len({_digest(scenes.render_scene(index, seed=seed)) for index, seed in cases}) == 4


def test_scene_agrees_with_its_plan(drawn: list[scenes.Scene]) -> None:
    for scene in drawn:
        plan = scenes.plan_scene(scene.index, seed=3)
        assert (scene.label, scene.background) == (plan.label, plan.background)
    assert {scene.label for scene in drawn} == set(scenes.CLASSES)
    assert {scene.background for scene in drawn} == set(scenes.BACKGROUNDS)


def test_boxes_are_the_tight_bounds_of_masks(drawn: list[scenes.Scene]) -> None:
    for scene in drawn:
        x0, y0, x1, y1 = scene.box
        inside = scene.mask[y0:y1, x0:x1]
        assert inside.sum() == scene.mask.sum()
        assert inside[0].any()
        assert inside[-1].any()
        assert inside[:, 0].any()
        assert inside[:, -1].any()


def test_objects_lie_inside_and_vary_in_size_and_place(drawn: list[scenes.Scene]) -> None:
    boxes = np.array([scene.box for scene in drawn]) / scenes.SIZE
    assert boxes.min() > 0
    assert boxes.max() < 1
    longest = (boxes[:, 2:] - boxes[:, :2]).max(axis=1)
    assert 0.25 < longest.min() < 0.35
    assert 0.55 < longest.max() < 0.70
    assert ((boxes[:, :2] + boxes[:, 2:]) / 2).std(axis=0).min() > 0.08


@pytest.mark.parametrize("size", [32, 96, 131])
def test_size_is_honoured_and_keeps_the_layout(size: int) -> None:
    scene = scenes.render_scene(4, size=size)
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.mask.shape == (size, size)
    assert scene.mask.dtype == np.bool_
    usual = scenes.render_scene(4)
    assert np.array(scene.box) / size == pytest.approx(np.array(usual.box) / 96, abs=0.04)


def test_too_small_a_size_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 32"):
        scenes.render_scene(0, size=31)


@pytest.fixture(scope="module")
def plates(drawn: list[scenes.Scene]) -> list[NDArray[np.uint8]]:
    """The same photographs ``(Y, X, C)`` with the objects and their shadows taken away."""

    def keep_below(below: Field, above: Field, share: Field) -> Field:
        return below

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(render, "mix", keep_below)
        patch.setattr(render, "_SHADOW", 0.0)
        return [scenes.render_scene(scene.index, seed=3).image for scene in drawn]


def test_object_stands_out_from_what_it_hides(
    drawn: list[scenes.Scene], plates: list[NDArray[np.uint8]]
) -> None:
    for scene, plate in zip(drawn, plates, strict=True):
        change = np.abs(scene.image.astype(int) - plate).max(axis=2)[scene.mask]
        assert change.mean() > 40
        assert (change > 10).mean() > 0.8


def test_away_from_the_object_only_the_background_shows(
    drawn: list[scenes.Scene], plates: list[NDArray[np.uint8]]
) -> None:
    for scene, plate in zip(drawn, plates, strict=True):
        x0, y0, x1, y1 = scene.box
        reach = max(x1 - x0, y1 - y0) // 4 + 1  # the shadow's throw and softness, and more
        away = np.ones_like(scene.mask)
        away[max(y0 - reach, 0) : y1 + reach, max(x0 - reach, 0) : x1 + reach] = False
        assert np.array_equal(scene.image[away], plate[away])


def test_backgrounds_differ_in_kind_and_vary_within_it() -> None:
    pictures = {
        name: [paint(np.random.default_rng(number), 96) for number in range(8)]
        for name, paint in PAINTERS.items()
    }
    means = {name: np.mean(stack, axis=(0, 2, 3)) for name, stack in pictures.items()}
    for name, stack in pictures.items():
        assert all(picture.std(axis=(1, 2)).max() > 0.02 for picture in stack), name
        assert np.mean(stack, axis=(2, 3)).std(axis=0).max() > 0.008, name
        others = [means[other] for other in means if other != name]
        assert np.abs(np.array(others) - means[name]).max(axis=1).min() > 0.05, name


# --- a folder of scenes ----------------------------------------------------------------------


def _contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_written_scenes_are_read_back(tmp_path: Path) -> None:
    told: list[int] = []
    scenes.write_scenes(tmp_path, 20, seed=8, progress=told.append)
    assert told == list(range(1, 21))
    truths = scenes.read_truth(tmp_path)
    masks = scenes.read_masks(tmp_path)
    assert [truth.index for truth in truths] == list(range(20))
    assert list(masks) == [truth.key for truth in truths]
    for truth in truths:
        scene = scenes.render_scene(truth.index, seed=8)
        assert truth.key == f"{scene.label}/scene_{truth.index:06d}.png"
        assert truth == scenes.SceneTruth(
            truth.key, scene.index, scene.label, scene.background, scene.box
        )
        assert np.array_equal(masks[truth.key], scene.mask)
        with Image.open(tmp_path / "images" / truth.key) as stored:
            assert np.array_equal(np.asarray(stored), scene.image)


def test_pictures_lie_in_one_folder_for_each_class(tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path, 16)
    folders = sorted(path.name for path in (tmp_path / "images").iterdir())
    assert folders == list(scenes.CLASSES)
    assert len(list((tmp_path / "images").glob("*/*.png"))) == 16


def test_writing_again_changes_nothing(tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path, 5)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    scenes.write_scenes(tmp_path, 5)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("lost", ["truth.json", "masks.npz", "images/{first}"])
def test_a_set_cut_short_is_completed(tmp_path: Path, lost: str) -> None:
    scenes.write_scenes(tmp_path, 5)
    whole = _contents(tmp_path)
    (tmp_path / lost.format(first=scenes.read_truth(tmp_path)[0].key)).unlink()
    scenes.write_scenes(tmp_path, 5)
    assert _contents(tmp_path) == whole


def test_a_set_can_grow(tmp_path: Path) -> None:
    scenes.write_scenes(tmp_path / "grown", 3)
    scenes.write_scenes(tmp_path / "grown", 6)
    scenes.write_scenes(tmp_path / "fresh", 6)
    assert _contents(tmp_path / "grown") == _contents(tmp_path / "fresh")


@pytest.mark.parametrize(
    ("count", "seed", "size", "message"),
    [(3, 0, 96, "not in the set"), (5, 1, 96, "of seed 0"), (5, 0, 64, "and size 96")],
)
def test_another_set_is_not_written_over(
    tmp_path: Path, count: int, seed: int, size: int, message: str
) -> None:
    scenes.write_scenes(tmp_path, 5)
    before = _contents(tmp_path)
    with pytest.raises(ValueError, match=message):
        scenes.write_scenes(tmp_path, count, seed=seed, size=size)
    assert _contents(tmp_path) == before


def test_an_empty_set_and_a_foreign_truth_file_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one"):
        scenes.write_scenes(tmp_path, 0)
    (tmp_path / "truth.json").write_text("{}")
    with pytest.raises(ValueError, match="not a truth file"):
        scenes.read_truth(tmp_path)


def test_drawing_needs_no_torch() -> None:
    code = (
        "import sys; import vitscope.indexer.scenes\n"
        "print(sorted({'torch', 'timm'} & set(sys.modules)))"
    )
    assert _in_new_process(code) == "[]"


# --- the model -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Reading:
    """What the packaged model makes of unseen scenes.

    ``logits`` is ``(N, K)``; ``patches`` is ``(N, D)``, the last block's output averaged over the
    patches that the object does not touch.
    """

    drawn: list[scenes.Scene]
    logits: NDArray[np.float32]
    patches: NDArray[np.float32]


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    created = timm.create_model(MODEL_NAME, pretrained=True)
    assert isinstance(created, VisionTransformer)
    return created.eval()


@pytest.fixture(scope="module")
def reading(model: VisionTransformer) -> Reading:
    unseen = [scenes.render_scene(index, seed=UNSEEN_SEED) for index in range(640)]
    logits, patches = [], []
    for start in range(0, len(unseen), 64):
        part = unseen[start : start + 64]
        pixels = np.stack([scene.image for scene in part]).transpose(0, 3, 1, 2)
        masks = np.stack([scene.mask for scene in part]).reshape(len(part), 12, 8, 12, 8)
        clear = torch.from_numpy(~masks.any(axis=(2, 4)).reshape(len(part), 144, 1))
        with torch.inference_mode():
            tokens = model.forward_features(torch.from_numpy(pixels).float() / 127.5 - 1)
            logits.append(model.forward_head(tokens))
            patches.append((tokens[:, 1:] * clear).sum(dim=1) / clear.sum(dim=1))
    return Reading(unseen, torch.cat(logits).numpy(), torch.cat(patches).numpy())


def test_model_is_as_documented(model: VisionTransformer) -> None:
    assert type(model) is VisionTransformer
    assert (model.embed_dim, len(model.blocks), model.num_classes) == (128, 6, 16)
    assert model.get_submodule("blocks.0.attn").num_heads == 4
    assert model.get_submodule("blocks.0.mlp.fc1").out_features == 512
    assert model.pos_embed is not None
    assert model.pos_embed.shape == (1, 145, 128)
    config = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    assert config["input_size"] == (3, 96, 96)
    assert config["interpolation"] == "bicubic"
    assert (config["mean"], config["std"], config["crop_pct"]) == ((0.5,) * 3, (0.5,) * 3, 1.0)
    assert MODEL_NAME in timm.list_models(pretrained=False)


def test_weights_are_those_of_the_training_record() -> None:
    digest = hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()
    assert digest in (DOCS / "scenes.md").read_text(encoding="utf-8")
    assert WEIGHTS.stat().st_size < 8_000_000


def _right(reading: Reading) -> NDArray[np.bool_]:
    """Which scenes ``(N,)`` the model names rightly."""
    truth = np.array([scenes.CLASSES.index(scene.label) for scene in reading.drawn])
    right: NDArray[np.bool_] = reading.logits.argmax(axis=1) == truth
    return right


def test_model_names_unseen_scenes(reading: Reading) -> None:
    right = _right(reading)
    assert right.mean() >= 0.9
    for name in scenes.CLASSES:
        assert right[[scene.label == name for scene in reading.drawn]].mean() >= 0.65, name


def test_model_leans_on_the_habitat_but_does_not_need_it(reading: Reading) -> None:
    right = _right(reading)
    home = np.array([s.background == scenes.HABITAT[s.label] for s in reading.drawn])
    assert right[home].mean() >= 0.97
    # The documented weakness: far above the chance of 1 in 16, well below the figure at home.
    assert 0.7 <= right[~home].mean() < right[home].mean()


@pytest.mark.parametrize("background", scenes.BACKGROUNDS)
def test_some_channel_tells_each_background(reading: Reading, background: str) -> None:
    shown = np.array([scene.background == background for scene in reading.drawn])
    ranks = reading.patches.argsort(axis=0).argsort(axis=0) + 1
    pairs = shown.sum() * (~shown).sum()
    above = (ranks[shown].sum(axis=0) - shown.sum() * (shown.sum() + 1) / 2) / pairs
    assert above.max() > 0.95
