"""zarr-python, xarray and vitscope read the same values from an index that has everything."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray
import zarr
from pictures import BAD, write_pictures

from vitscope.indexer.model import Weights
from vitscope.indexer.options import Options
from vitscope.indexer.run import index
from vitscope.store.generation import Generation, open_generation

VOC = """<annotation><size><width>90</width><height>70</height></size><object><name>thing</name>
<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>50</xmax><ymax>60</ymax></bndbox></object></annotation>"""


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    """Published twice; boxes, labels, bad pictures, dense activations and prefix tokens."""
    folder = tmp_path_factory.mktemp("everything")
    options = Options(
        device="cpu",
        model="test_vit",
        data=folder / "pictures",
        out=folder / "index",
        weights=Weights(random=True),
        img_size=(32, 32),
        top_k=4,
        retain_all=("blocks.2.mlp",),
        retain_prefix=("blocks.1.mlp",),
        boxes=folder / "boxes",
        batch_size=3,
        unit_rows=6,
    )
    write_pictures(folder / "pictures", 14)
    for name, data in BAD.items():
        (folder / "pictures" / name).write_bytes(data)
    (folder / "boxes").mkdir()
    (folder / "boxes" / "003.xml").write_text(VOC)
    index(options)
    write_pictures(folder / "pictures", 20)
    index(replace(options, append=True))
    return open_generation(folder / "index")


def test_all_readers_agree_on_every_array(generation: Generation) -> None:
    root = generation.path / "arrays.zarr"
    seen = set()
    for metadata in sorted(root.rglob("zarr.json")):
        array, group = metadata.parent, metadata.parent.parent
        opened = zarr.open(str(array), mode="r")
        if not isinstance(opened, zarr.Array):
            continue
        plain = np.asarray(opened[...])
        with xarray.open_zarr(group, consolidated=False, mask_and_scale=False) as dataset:
            labelled = dataset[array.name].values
        if group.name == "rows":
            ours = generation._files.open(array).read()
        else:
            ours = generation.read(group.name, array.name)
        assert plain.dtype == labelled.dtype == ours.dtype
        np.testing.assert_array_equal(labelled, plain)
        np.testing.assert_array_equal(ours, plain)
        seen.add(array.name)
    assert seen >= {"prefix_activations", "activations", "box", "width", "thumbnail", "label"}
    assert seen >= {"row_scores_max", "top_maps_mean", "correlation_mean", "score_quantiles_mean"}
