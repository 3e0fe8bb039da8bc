"""Write exemplars of channels into a folder, or whole tables into Parquet files."""

import argparse
from collections.abc import Callable

from vitscope.client.commands import _common, _export_tables, top_images

_DESCRIPTIONS = {
    "images": "a channel's top images, their maps as masks and as overlays, in a folder",
    "scores": "the scores of all images as Parquet, a row for each image, a column a channel",
    "table": "another answer as Parquet",
}
_TABLES = {
    "images": "the row list: key, label, state and size of every image",
    "top-images": "the top images of channels: channel, rank, image, score",
    "statistics": "moments and quantiles of channels' scores",
    "box-scores": "how far channels look at labelled boxes",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = _sub_commands(parser, "WHAT")
    images = add("images", _DESCRIPTIONS["images"])
    _add_layer_and_channels(images, required=True)
    top_images.add_ranking(images)
    images.add_argument(
        "--out", metavar="FOLDER", required=True, help="a folder, new or of the same export"
    )
    images.set_defaults(export=_images)
    scores = add("scores", _DESCRIPTIONS["scores"])
    _add_layer_and_channels(scores, required=False)
    _common.add_pooling(scores)
    _add_file(scores, _export_tables.scores)
    _add_tables(add("table", _DESCRIPTIONS["table"]))


def _add_tables(parser: argparse.ArgumentParser) -> None:
    add = _sub_commands(parser, "TABLE")
    rows = add("images", _TABLES["images"])
    _common.add_server(rows)
    _add_file(rows, _export_tables.rows)
    ranked = add("top-images", _TABLES["top-images"])
    _add_layer_and_channels(ranked, required=False)
    top_images.add_ranking(ranked)
    _add_file(ranked, _export_tables.top_images)
    statistics = add("statistics", _TABLES["statistics"])
    _add_layer_and_channels(statistics, required=False)
    _common.add_pooling(statistics)
    _add_file(statistics, _export_tables.statistics)
    boxes = add("box-scores", _TABLES["box-scores"])
    _add_layer_and_channels(boxes, required=False)
    _common.add_box_labels(boxes)
    _common.add_filter(boxes)
    _add_file(boxes, _export_tables.box_scores)


def _sub_commands(
    parser: argparse.ArgumentParser, what: str
) -> Callable[[str, str], argparse.ArgumentParser]:
    choices = parser.add_subparsers(metavar=what, required=True)

    def add(name: str, help_: str) -> argparse.ArgumentParser:
        return choices.add_parser(name, help=help_, description=help_, allow_abbrev=False)

    return add


def _add_layer_and_channels(parser: argparse.ArgumentParser, *, required: bool) -> None:
    _common.add_server(parser)
    _common.add_layer(parser)
    _common.add_channels(parser, required=required)


def _add_file(
    parser: argparse.ArgumentParser, export: Callable[[argparse.Namespace], None]
) -> None:
    parser.add_argument("--out", metavar="FILE.parquet", required=True, help="the file to write")
    parser.set_defaults(export=export)


def _images(args: argparse.Namespace) -> None:
    # Imported only here, since Pillow is.
    from vitscope.client.commands import _export_images

    _export_images.export(args)


def run(args: argparse.Namespace) -> int:
    args.export(args)
    return 0
