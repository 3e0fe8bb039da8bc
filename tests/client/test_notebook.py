"""What notebooks show of answers: pages parsed, their pictures decoded, and a real notebook run."""

from __future__ import annotations

import asyncio
import base64
import copy
import dataclasses
import io
import pickle
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from client.answers import DENSE, EXPECTED, OTHER
from client.truth import WIDE
from PIL import Image as Pictures
from started import ServerProcess
from synthetic import build

from vitscope.client import AnalyzedImage, AsyncClient, Client, Image, TopImages, notebook
from vitscope.client.answer import Answer, source_of, with_source
from vitscope.client.cli import main
from vitscope.client.text import printable

Captured = pytest.CaptureFixture[str]
Answers = dict[type[Answer], Answer]

KINDS = sorted(EXPECTED, key=lambda kind: kind.__name__)
PICTURED = {*get_args(notebook.PICTURED), Image}
START = "data:image/png;base64,"


class Page(HTMLParser):
    """The parts of a page; tags that do not close in order, and unknown ones, are refused."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.images: list[dict[str, str | None]] = []
        self.said: list[str] = []
        self.titles: list[str] = []
        self.tables: list[list[list[str]]] = []
        """By table, the heads and then the rows."""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag in ["div", "img", "p", "table", "caption", "thead", "tbody", "tr", "th", "td"]
        if tag == "img":
            self.images.append(dict(attrs))
            return
        self.titles += [value or "" for name, value in attrs if name == "title"]
        self._open.append(tag)
        match tag:
            case "table":
                self.tables.append([])
            case "tr":
                self.tables[-1].append([])
            case "th" | "td":
                self.tables[-1][-1].append("")
            case "p":
                self.said.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        match self._open[-1:]:
            case ["th" | "td"]:
                self.tables[-1][-1][-1] += data
            case ["p"]:
                self.said[-1] += data

    def png(self) -> bytes:
        [image] = self.images
        source = image["src"] or ""
        assert source.startswith(START)
        return base64.b64decode(source.removeprefix(START), validate=True)

    def picture(self) -> Any:
        """The pixels (H, W, 3)."""
        with Pictures.open(io.BytesIO(self.png())) as picture:
            assert picture.format == "PNG"
            return np.asarray(picture.convert("RGB"))


def page(answer: Answer) -> Page:
    return Page(answer._repr_html_())


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Heads and rows as a page shows them."""
    return [list(rows[0]), *([cell(value) for value in row.values()] for row in rows)]


def cell(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return "–" if value is None else printable(str(value))


@pytest.mark.parametrize("kind", KINDS)
def test_a_page_has_the_pictures_and_the_whole_table(answers: Answers, kind: type[Answer]) -> None:
    """Also where labels mean harm, and the client is closed."""
    answer = answers[kind]
    shown = page(answer)
    rows = EXPECTED[kind](answer)
    expected = cells(rows)
    assert shown.tables[0] == [line[:16] for line in expected[:61]]
    said = []
    if len(rows) > 60:
        said.append(f"The first 60 of {len(rows)} rows; to_pandas() has all.")
    assert shown.said == said
    if kind not in PICTURED:
        assert shown.images == []
        return
    picture = shown.picture()
    assert min(picture.shape[:2]) > 200
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20
    assert shown.images[0]["alt"]
    assert len(shown.tables) == (2 if kind is AnalyzedImage else 1)


LINES = {
    "TopPatches": f"top-patches --layer {DENSE} --channel 4 -k 9",
    "SimilarImages": f"similar-images --layer {OTHER} --row 3",
    "SimilarPatches": f"similar-patches --layer {DENSE} --row 3 --patch 1 0",
    "PatchMap": f"patch-map --layer {DENSE} --channel 4 --row 9",
}


@pytest.mark.parametrize("name", LINES)
def test_a_page_shows_what_the_command_draws(
    answers: Answers, name: str, pair_server: str, tmp_path: Path, capsys: Captured
) -> None:
    answer = next(answers[kind] for kind in KINDS if kind.__name__ == name)
    line = f"{LINES[name]} --server {pair_server} --index one --png {tmp_path}/sheet.png"
    assert main(line.split()) == 0
    assert page(answer).png() == (tmp_path / "sheet.png").read_bytes()


def test_maps_that_did_not_come_along_are_fetched(client: Client) -> None:
    with_maps, without = (client.top_images(WIDE, 4, k=5, maps=maps) for maps in (True, False))
    assert page(with_maps).png() == page(without).png()
    assert with_maps.maps is not None
    assert page(with_maps.maps).images


def test_maps_that_are_not_kept_are_told(client: Client) -> None:
    top = client.top_images(WIDE, 4, k=30)
    bare = page(top)
    assert bare.said == [
        "Not all maps of these images are kept; ask with maps=True for those that are."
    ]
    paired = page(client.top_images(WIDE, 4, k=30, maps=True))
    assert paired.said == []
    assert paired.png() != bare.png()


def test_no_more_is_shown_than_can_be_looked_at(client: Client) -> None:
    shown = page(client.top_images(WIDE, 4, k=65))
    assert "The first 60 of 65 are drawn." in shown.said
    assert "The first 60 of 65 rows; to_pandas() has all." in shown.said
    assert len(shown.tables[0]) == 61
    assert "60 pictures" in (shown.images[0]["alt"] or "")
    near = page(client.similar_images(WIDE, 8, k=64))
    assert "The first 59 of 64 are drawn." in near.said
    assert "60 pictures" in (near.images[0]["alt"] or "")
    wide = page(client.scores(WIDE, range(11)))
    assert wide.said == ["The first 60 of 70 rows; to_pandas() has all."]
    [maps] = client.patch_maps([("blocks.1.mlp", 1, row) for row in range(1, 17)] * 4)
    assert "The first 60 of 64 are drawn." in page(maps).said


def test_wide_tables_are_cut(client: Client) -> None:
    shown = page(client.scores("stages.1.blocks.0.mlp"))
    assert shown.said == ["The first 60 of 70 rows and 16 of 25 columns; to_pandas() has all."]
    assert {len(row) for row in shown.tables[0]} == {16}


def test_an_answer_of_nothing_is_a_table_alone(client: Client) -> None:
    shown = page(dataclasses.replace(client.top_images(WIDE, 4), images=()))
    assert shown.images == []
    assert len(shown.tables[0]) == 1


def test_a_picture_that_is_not_stored(two_indexes: str) -> None:
    with Client(two_indexes) as client:
        [image] = client.images([5], index="пруд")
        top = client.top_images(WIDE, 4, k=3, index="пруд")
    assert page(image).picture().size
    assert page(top).picture().size


def test_the_table_stays_where_the_server_is_gone(
    tmp_path: Path, serve: Callable[..., ServerProcess]
) -> None:
    server = serve(build(tmp_path / "gone").path)
    with Client(server.address) as client:
        top = client.top_images(WIDE, 4, k=3)
    before = page(top)
    assert server.terminate() == 0
    after = page(top)
    assert after.images == []
    [sentence] = after.said
    assert sentence.startswith(f"No pictures: No vitscope server answers at {server.address}")
    assert after.tables == before.tables


def test_the_table_stays_where_nobody_knows_the_server(answers: Answers) -> None:
    for kind in PICTURED - {Image}:
        shown = page(pickle.loads(pickle.dumps(answers[kind])))
        assert shown.images == []
        assert shown.said[0].startswith("No pictures: this answer does not know which server")
        assert shown.tables == page(answers[kind]).tables


def test_a_copy_shows_its_pictures(answers: Answers) -> None:
    """And a pickle, which may go anywhere, does not: it has neither address nor token."""
    top = answers[TopImages]
    for copied in (copy.copy, copy.deepcopy):
        assert page(copied(top)).png() == page(top).png()


def test_long_names_are_shortened_and_whole_where_a_pointer_rests(client: Client) -> None:
    name = f"\"<b>'{'begin' * 40}{'end' * 40}"
    top = client.top_images(WIDE, 4, k=2)
    [first, second] = top.images
    long = dataclasses.replace(top, images=(dataclasses.replace(first, label=name), second))
    source = source_of(top)
    assert source is not None
    shown = page(with_source(long, source))
    assert shown.titles == [name]
    [_, row, other] = shown.tables[0]
    assert row[4] == f"{name[:40]}…{name[-39:]}"
    assert other == page(top).tables[0][2]
    [image] = client.images([5])
    told = dataclasses.replace(image, key="k" * 5000)
    assert 0 < len(page(told).images[0]["alt"] or "") < 200


def test_pictures_of_a_later_generation_are_not_shown(client: Client) -> None:
    top = client.top_images(WIDE, 4, k=3)
    source = source_of(top)
    assert source is not None
    old = with_source(dataclasses.replace(top, generation="000000-0123456789abcdef"), source)
    shown = page(old)
    assert shown.images == []
    assert "published anew" in shown.said[0]


def test_thumbnails_that_do_not_decode(hostile: str) -> None:
    with Client(hostile) as client:
        shown = page(client.top_images(WIDE, 4))
    assert shown.images == []
    assert "does not decode as JPEG" in shown.said[0]
    assert shown.tables[0][1][-2] == "/etc/\N{REPLACEMENT CHARACTER}[2J"


def test_inside_of_an_event_loop(pair_server: str, answers: Answers) -> None:
    async def show() -> Page:
        async with AsyncClient(pair_server) as client:
            return page(await client.top_images(DENSE, 3, k=7, distinct=True, index="one"))

    shown = asyncio.run(show())
    assert shown.png() == page(answers[TopImages]).png()


CELLS = [
    """from vitscope.client import AsyncClient, Client
client = Client({address!r})
client.top_images({layer!r}, 3, k=4, index="one")""",
    """client.similar_patches({layer!r}, 3, (1, 0), k=3, index="one")""",
    """client.top_channels(3, k=5, index="one")""",
    """far = AsyncClient({address!r})
await far.compare_images("one", "two", {layer!r}, 3, k=3)""",
    """client.top_images({layer!r}, 3, k=4, index="one").to_pandas()""",
]


def test_a_notebook(pair_server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run without a screen, and made a page as `jupyter nbconvert` makes one."""
    import nbformat
    from nbclient import NotebookClient
    from nbconvert import HTMLExporter

    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    book = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
    for each in CELLS:
        source = each.format(address=pair_server, layer=DENSE)
        book.cells.append(nbformat.v4.new_code_cell(source))  # type: ignore[no-untyped-call]
    NotebookClient(book, timeout=60, kernel_name="python3").execute()
    shown = [each.outputs[-1]["data"] for each in book.cells]
    assert [len(Page(data["text/html"]).images) for data in shown[:4]] == [1, 1, 0, 1]
    assert shown[0]["text/plain"].startswith("TopImages(generation=")
    assert "dataframe" in shown[4]["text/html"]
    html, _ = HTMLExporter().from_notebook_node(book)  # type: ignore[no-untyped-call]
    assert html.count(f'src="{START}') == 3
    assert "<script>alert" not in html
    (tmp_path / "notebook.html").write_text(html, encoding="utf-8")
