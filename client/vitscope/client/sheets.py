"""From answers to sheets; imported only when a picture is asked for, since Pillow is."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from vitscope.client.client import Client
from vitscope.client.entries import BoxedImage, ChangedImage, PatchGrid, ScoredImage, ScoredPatch
from vitscope.client.errors import UsageError
from vitscope.client.pictures import Cell, Section, decode
from vitscope.client.results import (
    AnalyzedImage,
    ChangedImages,
    Image,
    Neighbours,
    PatchMap,
    PatchMaps,
    SimilarImages,
    SimilarPatches,
    TopImages,
    TopImagesAlong,
    TopImagesByBox,
    TopPatches,
)

Named = Image | ScoredImage | ScoredPatch | BoxedImage | ChangedImage
R = TypeVar("R", ScoredImage, ScoredPatch, BoxedImage)

_PAIRS = 3
"""Of pictures side by side, so that none is torn apart."""


def top_images_section(client: Client, index: str, top: TopImages, how: str = "top") -> Section:
    """Every image of the answer beside its map, where one is stored; `how` they were ranked.

    An empty `how` is for an answer that nobody remembers the question of.
    """
    pictures = _pictures(client, index, [image.row for image in top.images], top.generation)
    maps = {} if top.maps is None else _by_row(top.maps)
    grid = top.maps.grid if top.maps else None
    cells = _cells(
        top.images,
        pictures,
        lambda image: f"{top.pooling} {image.score:.4g} · row {image.row}",
        maps,
        grid,
    )
    ranked = f"{how} {len(cells)}" if how else f"{len(cells)} images"
    title = f"{top.layer} · channel {top.channel} · {ranked} by {top.pooling}"
    return Section(title, cells, note=_note(client, index, top.generation))


def top_patches_section(client: Client, index: str, top: TopPatches) -> Section:
    """Every image with a patch of the answer, beside its map."""
    rows = list(dict.fromkeys(patch.row for patch in top.patches))
    pictures = _pictures(client, index, rows, top.generation)
    maps = _by_row(maps_of(client, index, top, rows)) if rows else {}
    cells = _cells(
        top.patches,
        pictures,
        lambda patch: f"{patch.score:.4g} · row {patch.row} · patch {patch.y}, {patch.x}",
        maps,
        top.grid,
    )
    title = f"{top.layer} · channel {top.channel} · top {len(cells)} patches"
    return Section(title, cells, note=_note(client, index, top.generation))


def by_box_section(client: Client, index: str, top: TopImagesByBox) -> Section:
    """Every image of the answer beside its map."""
    rows = [image.row for image in top.images]
    pictures = _pictures(client, index, rows, top.generation)
    found = maps_of(client, index, top, rows)
    cells = _cells(
        top.images,
        pictures,
        lambda image: (
            f"contrast {image.scores.contrast:.4g} · auc {image.scores.auc:.3f} · row {image.row}"
        ),
        _by_row(found),
        found.grid,
    )
    title = f"{top.layer} · channel {top.channel} · {len(cells)} images by their boxes"
    return Section(title, cells, note=_note(client, index, top.generation))


def patch_map_section(client: Client, index: str, answer: PatchMap) -> Section:
    """One image beside its map."""
    [image] = _images(client, index, [answer.row], answer.generation)
    cell = _map_cell(image, answer.values, answer.grid)
    title = f"{answer.layer} · channel {answer.channel} · row {answer.row}"
    return Section(title, [cell], note=_note(client, index, answer.generation))


def patch_maps_section(client: Client, index: str, maps: PatchMaps) -> Section:
    """Every map beside its image; one scale for those of one channel."""
    rows = list(dict.fromkeys(maps.rows.tolist()))
    images = {image.row: image for image in _images(client, index, rows, maps.generation)}
    channels = maps.channels.tolist()
    several = len(set(channels)) > 1
    cells = [
        _map_cell(images[row], values, maps.grid, f"channel {channel}" if several else "")
        for row, channel, values in zip(maps.rows.tolist(), channels, maps.values, strict=True)
    ]
    what = f"{len(cells)} maps" if several else f"channel {channels[0]} · {len(cells)} maps"
    note = _note(client, index, maps.generation)
    return Section(f"{maps.layer} · {what}", cells, note=note, own_scales=several)


def _map_cell(
    image: Image, values: NDArray[np.float16], grid: PatchGrid | None, heading: str = ""
) -> Cell:
    finite = values[np.isfinite(values)]
    return Cell(
        picture=decode(image.jpeg) if image.jpeg else None,
        patch_map=values,
        heading=f"{heading} · {_name(image)}" if heading else _name(image),
        detail=f"highest {finite.max():.4g} · row {image.row}" if finite.size else "",
        grid=grid,
    )


def image_section(image: Image) -> Section:
    """One picture."""
    size = f" · {image.width} x {image.height} pixels" if image.valid else " · not readable"
    picture = decode(image.jpeg) if image.jpeg else None
    cell = Cell(picture, None, _name(image), f"row {image.row}{size}")
    return Section(f"row {image.row} · {image.key}", [cell], maps=False)


def similar_images_section(client: Client, index: str, near: SimilarImages) -> Section:
    """The image asked about, then its neighbours."""
    rows = [near.row, *(image.row for image in near.images)]
    pictures = _pictures(client, index, rows, near.generation)
    neighbours = _near_cells(near.images, pictures)
    asked = Cell(pictures[near.row], None, "the image asked about", f"row {near.row}")
    title = f"{near.layer} · images nearest to row {near.row}"
    note = f"{_note(client, index, near.generation)} · {_found(near)}"
    return Section(title, [asked, *neighbours], note=note, maps=False)


def analyzed_section(client: Client, index: str, own: AnalyzedImage, what: str) -> Section:
    """The picture under every map there is of it; `what` scores are called."""
    picture = decode(own.jpeg) if own.jpeg else None
    scored = {(each.layer, each.channel): (n, each) for n, each in enumerate(own.channels, 1)}
    cells = []
    for map_ in own.maps:
        name = f"{map_.layer} · {map_.channel}"
        detail: list[str] = []
        if found := scored.get((map_.layer, map_.channel)):
            rank, each = found
            name = f"{rank}  {name}"
            detail.append(f"{what} {each.score:.4g}")
        if what != "max" or not found:
            detail.append(f"highest {float(map_.values.max()):.4g}")
        if found and each.percentile is not None:
            detail.append(f"above {each.percentile:.2%}")
        cells.append(Cell(picture, map_.values, name, " · ".join(detail), map_.grid))
    note = _note(client, index, own.generation)
    if not cells:
        size = f"{own.width} x {own.height} pixels"
        return Section("own picture", [Cell(picture, None, size, "")], note=note, maps=False)
    by = "percentile" if any(each.percentile is not None for each in own.channels) else what
    ranked = all((map_.layer, map_.channel) in scored for map_ in own.maps)
    named = f"strongest {len(cells)} channels by {by}" if ranked else f"{len(cells)} channels"
    title = f"own picture · {named}"
    return Section(title, cells, note=note, own_scales=True)


def neighbours_section(client: Client, index: str, own: AnalyzedImage, near: Neighbours) -> Section:
    """The images nearest to an own picture in one layer."""
    rows = [image.row for image in near.images]
    pictures = _pictures(client, index, rows, own.generation)
    asked = Cell(decode(own.jpeg) if own.jpeg else None, None, "the own picture", "")
    title = f"{near.layer} · images nearest to the own picture"
    note = _found(near)
    return Section(title, [asked, *_near_cells(near.images, pictures)], note=note, maps=False)


def _near_cells(
    images: Sequence[ScoredImage], pictures: Mapping[int, NDArray[np.uint8] | None]
) -> list[Cell]:
    return _cells(images, pictures, lambda image: f"cosine {image.score:.4f} · row {image.row}")


def similar_patches_section(client: Client, index: str, near: SimilarPatches) -> Section:
    """The patch asked about, then its neighbours, each framed in its image."""
    rows = list(dict.fromkeys([near.row, *(patch.row for patch in near.patches)]))
    pictures = _pictures(client, index, rows, near.generation)
    neighbours = _cells(
        near.patches,
        pictures,
        lambda patch: f"cosine {patch.score:.4f} · row {patch.row} · patch {patch.y}, {patch.x}",
        grid=near.grid,
    )
    y, x = near.patch
    detail = f"row {near.row} · patch {y}, {x}"
    picture = pictures[near.row]
    asked = Cell(picture, None, "the patch asked about", detail, near.grid, near.patch)
    title = f"{near.layer} · patches nearest to {y}, {x} of row {near.row}"
    note = f"{_note(client, index, near.generation)} · {_found(near)}"
    return Section(title, [asked, *neighbours], note=note, maps=False)


def along_section(client: Client, index: str, along: TopImagesAlong, name: str) -> Section:
    """The images that lie farthest along the direction called `name`."""
    rows = [image.row for image in along.images]
    pictures = _pictures(client, index, rows, along.generation)
    cells = _cells(
        along.images,
        pictures,
        lambda image: f"{along.measure} {image.score:.4g} · row {image.row}",
    )
    title = f"{along.layer} · along {name} · top {len(cells)} by {along.measure}"
    note = f"{_note(client, index, along.generation)} · {along.pooling} pooling"
    return Section(title, cells, note=note, maps=False)


def changed_images_section(
    client: Client, index: str, other: str, found: ChangedImages, how: str
) -> Section:
    """Every image of the answer beside what the other index has of it; `how` they were ranked."""
    rows = [image.row for image in found.images]
    mine = _pictures(client, index, rows, found.generation)
    theirs = _pictures(client, other, rows, found.other_generation)
    cells = []
    for rank, image in enumerate(found.images, 1):
        heading = f"{rank}  {_name(image)}"
        detail = f"{image.score:.4g} · row {image.row}"
        changed = f"{image.other_score:.4g} ({image.difference:+.4g})"
        cells.append(Cell(mine[image.row], None, heading, detail))
        cells.append(Cell(theirs[image.row], None, f"in {other}", changed))
    ranked = f"{len(rows)} images of {how}" if how else f"{len(rows)} images beside their copies"
    title = f"{found.layer} · channel {found.channel} · {ranked} in {other}"
    note = _note(client, index, found.generation)
    return Section(title, cells, note=note, columns=_PAIRS * 2, maps=False)


def _cells(
    ranked: Sequence[R],
    pictures: Mapping[int, NDArray[np.uint8] | None],
    detail: Callable[[R], str],
    maps: Mapping[int, NDArray[np.float16]] | None = None,
    grid: PatchGrid | None = None,
) -> list[Cell]:
    """A cell for each image, under its rank and name; beside its map, if there is one."""
    return [
        Cell(
            picture=pictures[each.row],
            patch_map=maps.get(each.row) if maps else None,
            heading=f"{rank}  {_name(each)}",
            detail=detail(each),
            grid=grid,
            mark=(each.y, each.x) if isinstance(each, ScoredPatch) else None,
        )
        for rank, each in enumerate(ranked, 1)
    ]


def _found(near: SimilarImages | SimilarPatches | Neighbours) -> str:
    return "exact" if near.exact else f"finds {near.recall_at_10:.1%} of the true ten nearest"


def maps_of(
    client: Client, index: str, top: TopImages | TopPatches | TopImagesByBox, rows: Sequence[int]
) -> PatchMaps:
    """The maps of an answer's channel on these rows, one at least."""
    [maps] = client.patch_maps([(top.layer, top.channel, row) for row in rows], index=index)
    _require_generation(maps.generation, top.generation)
    return maps


def _pictures(
    client: Client, index: str, rows: Sequence[int], generation: str
) -> dict[int, NDArray[np.uint8] | None]:
    images = _images(client, index, rows, generation)
    return {image.row: decode(image.jpeg) if image.jpeg else None for image in images}


def _images(client: Client, index: str, rows: Sequence[int], generation: str) -> list[Image]:
    """Those of these rows; a later generation may have other pictures there."""
    images = client.images(rows, index=index)
    for image in images:
        _require_generation(image.generation, generation)
    return images


def _require_generation(generation: str, wanted: str) -> None:
    if generation != wanted:
        raise UsageError(
            f"The index was published anew ({generation} after {wanted}); ask again for pictures."
        )


def _name(image: Named) -> str:
    """What to call an image in a caption: its label, else its key."""
    return image.label or image.key


def _by_row(maps: PatchMaps) -> dict[int, NDArray[np.float16]]:
    return {int(row): values for row, values in zip(maps.rows, maps.values, strict=True)}


def _note(client: Client, index: str, generation: str) -> str:
    described = client.index(index)
    return f"{described.name or 'index'} · {described.model.name} · generation {generation}"
