"""From answers to sheets; imported only when a picture is asked for, since Pillow is."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitscope.client.client import Client
from vitscope.client.commands._common import display_name, report_written
from vitscope.client.errors import UsageError
from vitscope.client.pictures import Cell, Section, decode, gallery_sheet, save_png
from vitscope.client.results import (
    AnalyzedImage,
    ChangedImages,
    Neighbours,
    PatchMap,
    PatchMaps,
    ScoredImage,
    SimilarImages,
    SimilarPatches,
    TopImages,
    TopImagesAlong,
    TopPatches,
)

MOST_DRAWN = 1_000
"""Images on a sheet that anyone can look at."""
_PAIRS = 3
"""Of pictures side by side, so that none is torn apart."""


def few(answers: Iterable[TopImages]) -> list[TopImages]:
    """All answers, if they fit on a sheet; no more of them are asked for where they do not."""
    tops, images = [], 0
    for top in answers:
        tops.append(top)
        images += len(top.images)
        _require_few(images)
    return tops


def _require_few(images: int) -> None:
    if images > MOST_DRAWN:
        raise UsageError(
            f"--png draws at most {MOST_DRAWN:,} images; ask for fewer with -k, or for fewer "
            "channels."
        )


def top_images_section(client: Client, index: str, top: TopImages, how: str = "top") -> Section:
    """Every image of the answer beside its map, where one is stored; `how` they were ranked."""
    pictures = _pictures(client, index, [image.row for image in top.images])
    maps = {} if top.maps is None else _by_row(top.maps)
    cells = [
        Cell(
            picture=pictures[image.row],
            patch_map=maps.get(image.row),
            heading=f"{rank}  {display_name(image)}",
            detail=f"{top.pooling} {image.score:.4g} · row {image.row}",
            grid=top.maps.grid if top.maps else None,
        )
        for rank, image in enumerate(top.images, 1)
    ]
    title = f"{top.layer} · channel {top.channel} · {how} {len(cells)} by {top.pooling}"
    return Section(title, cells, note=_note(client, index, top.generation))


def top_patches_section(client: Client, index: str, top: TopPatches) -> Section:
    """Every image with a patch of the answer, beside its map."""
    _require_few(len(top.patches))
    rows = list(dict.fromkeys(patch.row for patch in top.patches))
    pictures = _pictures(client, index, rows)
    asked = [(top.layer, top.channel, row) for row in rows]
    maps = {
        row: map_
        for each in client.patch_maps(asked, index=index)
        for row, map_ in _by_row(each).items()
    }
    cells = [
        Cell(
            picture=pictures[patch.row],
            patch_map=maps[patch.row],
            heading=f"{rank}  {patch.label or patch.key}",
            detail=f"{patch.score:.4g} · row {patch.row} · patch {patch.y}, {patch.x}",
            grid=top.grid,
            mark=(patch.y, patch.x),
        )
        for rank, patch in enumerate(top.patches, 1)
    ]
    title = f"{top.layer} · channel {top.channel} · top {len(cells)} patches"
    return Section(title, cells, note=_note(client, index, top.generation))


def patch_map_section(client: Client, index: str, answer: PatchMap) -> Section:
    """One image beside its map."""
    [image] = client.images([answer.row], index=index)
    finite = answer.values[np.isfinite(answer.values)]
    cell = Cell(
        picture=decode(image.jpeg) if image.jpeg else None,
        patch_map=answer.values,
        heading=display_name(image),
        detail=f"highest {finite.max():.4g} · row {answer.row}" if finite.size else "",
        grid=answer.grid,
    )
    title = f"{answer.layer} · channel {answer.channel} · row {answer.row}"
    return Section(title, [cell], note=_note(client, index, answer.generation))


def similar_images_section(client: Client, index: str, near: SimilarImages) -> Section:
    """The image asked about, then its neighbours."""
    _require_few(1 + len(near.images))
    rows = [near.row, *(image.row for image in near.images)]
    pictures = _pictures(client, index, rows)
    neighbours = _near_cells(near.images, pictures)
    asked = Cell(pictures[near.row], None, "the image asked about", f"row {near.row}")
    title = f"{near.layer} · images nearest to row {near.row}"
    note = f"{_note(client, index, near.generation)} · {_found(near)}"
    return Section(title, [asked, *neighbours], note=note, maps=False)


def analyzed_section(client: Client, index: str, own: AnalyzedImage, what: str) -> Section:
    """The picture under the map of each of its strongest channels; `what` its scores are called."""
    _require_few(len(own.channels))
    picture = decode(own.jpeg) if own.jpeg else None
    cells = [
        Cell(
            picture=picture,
            patch_map=map_.values,
            heading=f"{rank}  {each.layer} · {each.channel}",
            detail=f"{what} {each.score:.4g}"
            + ("" if what == "max" else f" · highest {float(map_.values.max()):.4g}")
            + ("" if each.percentile is None else f" · above {each.percentile:.2%}"),
            grid=map_.grid,
        )
        for rank, (each, map_) in enumerate(zip(own.channels, own.maps, strict=False), 1)
    ]
    by = "percentile" if any(each.percentile is not None for each in own.channels) else what
    title = f"own picture · strongest {len(cells)} channels by {by}"
    note = _note(client, index, own.generation)
    return Section(title, cells, note=note, own_scales=True)


def neighbours_section(client: Client, index: str, own: AnalyzedImage, near: Neighbours) -> Section:
    """The images nearest to an own picture in one layer."""
    pictures = _pictures(client, index, [image.row for image in near.images])
    asked = Cell(decode(own.jpeg) if own.jpeg else None, None, "the own picture", "")
    title = f"{near.layer} · images nearest to the own picture"
    note = _found(near)
    return Section(title, [asked, *_near_cells(near.images, pictures)], note=note, maps=False)


def _near_cells(
    images: Sequence[ScoredImage], pictures: Mapping[int, NDArray[np.uint8] | None]
) -> list[Cell]:
    return [
        Cell(
            picture=pictures[image.row],
            patch_map=None,
            heading=f"{rank}  {display_name(image)}",
            detail=f"cosine {image.score:.4f} · row {image.row}",
        )
        for rank, image in enumerate(images, 1)
    ]


def similar_patches_section(client: Client, index: str, near: SimilarPatches) -> Section:
    """The patch asked about, then its neighbours, each framed in its image."""
    _require_few(1 + len(near.patches))
    rows = list(dict.fromkeys([near.row, *(patch.row for patch in near.patches)]))
    pictures = _pictures(client, index, rows)
    neighbours = [
        Cell(
            picture=pictures[patch.row],
            patch_map=None,
            heading=f"{rank}  {patch.label or patch.key}",
            detail=f"cosine {patch.score:.4f} · row {patch.row} · patch {patch.y}, {patch.x}",
            grid=near.grid,
            mark=(patch.y, patch.x),
        )
        for rank, patch in enumerate(near.patches, 1)
    ]
    y, x = near.patch
    detail = f"row {near.row} · patch {y}, {x}"
    picture = pictures[near.row]
    asked = Cell(picture, None, "the patch asked about", detail, near.grid, near.patch)
    title = f"{near.layer} · patches nearest to {y}, {x} of row {near.row}"
    note = f"{_note(client, index, near.generation)} · {_found(near)}"
    return Section(title, [asked, *neighbours], note=note, maps=False)


def along_section(client: Client, index: str, along: TopImagesAlong, name: str) -> Section:
    """The images that lie farthest along the direction called `name`."""
    _require_few(len(along.images))
    pictures = _pictures(client, index, [image.row for image in along.images])
    cells = [
        Cell(
            picture=pictures[image.row],
            patch_map=None,
            heading=f"{rank}  {display_name(image)}",
            detail=f"{along.measure} {image.score:.4g} · row {image.row}",
        )
        for rank, image in enumerate(along.images, 1)
    ]
    title = f"{along.layer} · along {name} · top {len(cells)} by {along.measure}"
    note = f"{_note(client, index, along.generation)} · {along.pooling} pooling"
    return Section(title, cells, note=note, maps=False)


def changed_images_section(
    client: Client, index: str, other: str, found: ChangedImages, how: str
) -> Section:
    """Every image of the answer beside what the other index has of it; `how` they were ranked."""
    _require_few(2 * len(found.images))
    rows = [image.row for image in found.images]
    mine, theirs = (_pictures(client, name, rows) for name in (index, other))
    cells = []
    for rank, image in enumerate(found.images, 1):
        heading = f"{rank}  {image.label or image.key}"
        detail = f"{image.score:.4g} · row {image.row}"
        changed = f"{image.other_score:.4g} ({image.difference:+.4g})"
        cells.append(Cell(mine[image.row], None, heading, detail))
        cells.append(Cell(theirs[image.row], None, f"in {other}", changed))
    title = f"{found.layer} · channel {found.channel} · {len(rows)} images of {how} in {other}"
    note = _note(client, index, found.generation)
    return Section(title, cells, note=note, columns=_PAIRS * 2, maps=False)


def _found(near: SimilarImages | SimilarPatches | Neighbours) -> str:
    return "exact" if near.exact else f"finds {near.recall_at_10:.1%} of the true ten nearest"


def _pictures(
    client: Client, index: str, rows: Sequence[int]
) -> dict[int, NDArray[np.uint8] | None]:
    images = client.images(rows, index=index)
    return {image.row: decode(image.jpeg) if image.jpeg else None for image in images}


def _by_row(maps: PatchMaps) -> dict[int, NDArray[np.float16]]:
    return {int(row): values for row, values in zip(maps.rows, maps.values, strict=True)}


def _note(client: Client, index: str, generation: str) -> str:
    described = client.index(index)
    return f"{described.name or 'index'} · {described.model.name} · generation {generation}"


def save(target: Path, sections: Sequence[Section]) -> None:
    """Draw the sections under each other into a PNG file and say so."""
    save_png(gallery_sheet(sections), target)
    report_written(target)
