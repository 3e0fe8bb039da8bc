"""Sentences of the queries that need an index of its own."""

from __future__ import annotations

from pathlib import Path

import pytest
from synthetic import build

from vitscope.server.errors import InvalidArgumentError
from vitscope.server.queries.images import Question, similar_images, top_images
from vitscope.store.generation import open_generation


def test_one_image_is_no_plural(tmp_path: Path) -> None:
    build(tmp_path / "index", rows=4)
    generation = open_generation(tmp_path / "index")
    assert generation.manifest.valid_rows == 2
    with pytest.raises(InvalidArgumentError, match=r"but there is 1 other valid image\."):
        similar_images(generation, "blocks.0.mlp", 1, 5)
    with pytest.raises(InvalidArgumentError, match=r"but there are 2 valid images\."):
        top_images(generation, "blocks.0.mlp", 0, Question(k=5))
