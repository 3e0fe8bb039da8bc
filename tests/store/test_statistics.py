"""Statistics of channels: exact sums in the order of the rows, whatever the memory allowed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from synthetic import layer_records

from vitscope.store import layout, statistics
from vitscope.store.arrays import ArraySpec, write_array
from vitscope.store.manifest import QUANTILES
from vitscope.store.ranking import quantile_place
from vitscope.store.statistics import read_statistics, write_statistics


def in_order(values: list[float]) -> float:
    """The sum of `values`, each added to the sum of those before it."""
    total = 0.0
    for value in values:
        total += value
    return total


def write_scores(group: Path, scores: npt.NDArray[np.float16]) -> None:
    shape = scores.shape
    spec = ArraySpec("float16", shape, ("channel", "row"), (-(-shape[0] // 8) * 8, 32), (8, 32))
    write_array(group / layout.scores_name("mean"), scores, spec)


@pytest.mark.parametrize("elements", [1, 700, 3000, statistics._ELEMENTS])
@pytest.mark.parametrize("channels", [1, 11, 64, 65, 150])
def test_statistics_do_not_depend_on_how_many_channels_are_read_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, channels: int, elements: int
) -> None:
    monkeypatch.setattr(statistics, "_ELEMENTS", elements)
    chance = np.random.default_rng(channels)
    scores = chance.normal(1, 3, (channels, 77)).astype(np.float16)
    rows = np.flatnonzero(np.arange(77) % 9)
    write_scores(tmp_path, scores)
    layer = replace(layer_records(77)[0], channels=channels)
    write_statistics(tmp_path, layer, "mean", rows)
    found = read_statistics(tmp_path, "mean")
    count = len(rows)
    # The smallest score that at least the given share of images does not exceed.
    places = [max(0, int(np.ceil(round(level * count, 9))) - 1) for level in QUANTILES]
    for channel in range(channels):
        values = scores[channel, rows].tolist()
        mean = in_order(values) / count
        assert found.mean[channel] == mean
        squares = [(x - mean) * (x - mean) for x in values]
        assert found.variance[channel] == in_order(squares) / count
        assert found.active[channel] == sum(x > 0 for x in values) / count
        assert found.quantiles[channel].tolist() == [sorted(values)[place] for place in places]


def test_without_a_valid_image_there_are_no_statistics(tmp_path: Path) -> None:
    write_scores(tmp_path, np.full((11, 5), np.nan, np.float16))
    layer = layer_records(5)[0]
    write_statistics(tmp_path, layer, "mean", np.zeros(0, np.int64))
    found = read_statistics(tmp_path, "mean")
    for values in (found.mean, found.variance, found.active, found.quantiles):
        assert len(values) == 11
        assert np.isnan(values).all()


def test_a_score_that_is_no_number_leaves_nothing_known_of_its_channel(tmp_path: Path) -> None:
    scores = np.arange(80, dtype=np.float16).reshape(8, 10)
    scores[3, 4] = np.nan
    write_scores(tmp_path, scores)
    layer = replace(layer_records(10)[0], channels=8)
    write_statistics(tmp_path, layer, "mean", np.arange(10))
    found = read_statistics(tmp_path, "mean")
    for values in (found.mean, found.variance, found.quantiles[:, 4]):
        assert np.isnan(values).tolist() == [channel == 3 for channel in range(8)]


@pytest.mark.filterwarnings("error")
def test_an_infinite_score_leaves_no_variance_known(tmp_path: Path) -> None:
    scores = np.arange(80, dtype=np.float16).reshape(8, 10)
    scores[3, 4] = np.inf
    write_scores(tmp_path, scores)
    write_statistics(tmp_path, replace(layer_records(10)[0], channels=8), "mean", np.arange(10))
    found = read_statistics(tmp_path, "mean")
    assert np.isinf(found.mean).tolist() == [channel == 3 for channel in range(8)]
    assert np.isnan(found.variance).tolist() == [channel == 3 for channel in range(8)]


@pytest.mark.parametrize("images", [*range(1, 300), 1_000, 12_345, 50_000, 1_281_167])
def test_quantiles_are_numpys(images: int) -> None:
    order = np.arange(images, dtype=np.float64)
    expected = np.quantile(order, QUANTILES, method="inverted_cdf")
    places = [quantile_place(level, images) for level in QUANTILES]
    assert places == expected.tolist()
