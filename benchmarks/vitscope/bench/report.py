"""A run as pages for people: one Markdown file and plots beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from vitscope.bench import plots
from vitscope.bench.figures import Body, Figure, Limits, bound_of, figures_of, limits_of, told
from vitscope.bench.growth import COSTS
from vitscope.bench.suite import SUITE

NAME = "report.md"
HEADINGS = {
    "index": "Indexing",
    "store": "The store",
    "query": "Questions",
    "serve": "Serving",
    "growth": "How cost grows",
    "peers": "Beside other tools",
}
_READING = """\
Every figure is a median; in brackets are the quartiles. `×` is the ratio to the floor of the same
row (its first line, ×1), the median of the ratios of rounds that were run in turns: it carries over
to other machines, milliseconds do not. The bound is what this machine would take at least for the
same work, by the limits that were measured in the same run; the percentage is how much of the time
the bound explains. More than 100 % means that the limit can be passed a little by work of another
size or shape than it was measured with.
"""


def write_report(body: Body, folder: Path) -> Path:
    """Write `report.md` and the plots it shows; gives its path."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = [*_head(body), *_limits(body)]
    limits = limits_of(body)
    figures = {part: list(some) for part, some in groupby(figures_of(body), lambda f: f.part)}
    for area, heading in HEADINGS.items():
        parts = [each.name for each in SUITE if each.area == area and each.name in body["parts"]]
        if not parts:
            continue
        lines += [f"## {heading}", ""]
        for part in parts:
            lines += _part(part, body["parts"][part], figures.get(part, []), folder, limits)
    path = folder / NAME
    path.write_text("\n".join(lines).rstrip() + "\n")
    return path


def _head(body: Body) -> Iterator[str]:
    yield "# What vitscope costs on this machine"
    yield ""
    yield f"`{body['command']}`, {body['date']}, {body['seconds'] / 60:.0f} minutes."
    yield f"{body['processor']}, {body['threads']} threads, Python {body['python']}."
    versions = (f"{name} {found}" for name, found in body["versions"].items() if found != "absent")
    yield ", ".join(versions) + "."
    yield ""
    yield _READING
    if body.get("quick"):
        yield "A quick run: small data and few rounds. Use it to look around, not to decide.\n"
    if body["gpu"] != "none":
        yield f"Indexed on {body['gpu']}; all else is the processor's.\n"
    else:
        yield (
            "**No figure of a GPU is in it.** They come from `vitscope bench index --device cuda` "
            "on a machine that has one.\n"
        )


def _limits(body: Body) -> Iterator[str]:
    rows = body["parts"].get("limits", {}).get("rows", ())
    if rows:
        yield from ("## The machine's limits", "", "| | |", "|---|---:|")
        for row in rows:
            yield f"| {row['what']} | {told(row['value'])} {row['unit']} |"
        yield ""


def _part(
    name: str, body: Body, figures: Sequence[Figure], folder: Path, limits: Limits
) -> Iterator[str]:
    about = (import_module(f"vitscope.bench.{name}").__doc__ or "").split("\n\n")
    yield f"### {about[0].strip()}"
    yield ""
    yield from (" ".join(each.split()) + "\n" for each in about[2:])
    if figures:
        yield from _table(figures)
        for number, some in enumerate(plots.pages(figures)):
            page = f"-{number + 1}" if number else ""
            yield from _picture(plots.ratios(some), f"ratios-{name}{page}.png", folder)
    special = _SPECIAL.get(name)
    if special:
        yield from special(body, folder, limits)


def _table(figures: Sequence[Figure]) -> Iterator[str]:
    yield from ("| | | ms | × | bound, ms | |", "|---|---|---:|---:|---:|---:|")
    for what, some in groupby(figures, lambda figure: figure.what):
        for number, each in enumerate(some):
            ratio = "1" if each.is_floor else _spread(each.ratio, each.ratio_quartiles)
            bound = share = ""
            if each.bound:
                bound, share = told(each.bound.ms), f"{each.bound.ms / each.ms:.0%}"
            taken = _spread(each.ms, each.quartiles)
            name = "" if number else what
            yield f"| {name} | {each.side} | {taken} | {ratio} | {bound} | {share} |"
    yield ""
    why = sorted({figure.bound.why for figure in figures if figure.bound})
    if why:
        yield f"Bounds: {'; '.join(why)}.\n"


def _spread(value: float, quartiles: tuple[float, float]) -> str:
    low, high = map(told, quartiles)
    # Of one round there is none.
    return told(value) if low == high else f"{told(value)} ({low}–{high})"


def _decoders(body: Body, _: Path, __: Limits) -> Iterator[str]:
    for row in body["rows"]:
        yield "| | pictures/s | input differs in | best 20 by mean, the same | in the worst layer |"
        yield "|---|---:|---:|---:|---:|"
        for name, side in row["sides"].items():
            apart = side.get(
                "mean_scores", {"top20_overlap_mean": 1, "top20_overlap_worst_layer": 1}
            )
            yield (
                f"| {name} | {told(side['images_per_second'])} | {side['differing_pictures']} of "
                f"{row['pictures']} | {apart['top20_overlap_mean']:.1%} | "
                f"{apart['top20_overlap_worst_layer']:.1%} |"
            )
        yield ""


def _indexing(body: Body, _: Path, __: Limits) -> Iterator[str]:
    for row in body["rows"]:
        if "recall_at_10" in row:
            yield (
                f"{row['what']}: the search structure finds {row['recall_at_10']:.1%} of them; it "
                f"was built in {told(row['build_seconds'])} s and has "
                f"{told(row['bytes'] / 1e6)} MB.\n"
            )


def _overload(body: Body, _: Path, limits: Limits) -> Iterator[str]:
    for row in body["rows"]:
        yield from ("| | calls | median, ms | 99 %, ms |", "|---|---:|---:|---:|")
        for what in ("unloaded", "onset", "accepted", "refused", "after"):
            found = row[what]["all"]
            yield (
                f"| {what} | {found['calls']:,} | {found['p50_ms']:,.2f} | {found['p99_ms']:,.1f} |"
            )
        if bound := bound_of({"trips": 1}, limits):
            yield f"| a byte over loopback, the machine's limit | | {bound.ms:,.2g} | |"
        yield ""
        memory = row["memory_MB"]
        yield (
            f"{row['begun_per_second']:,.0f} calls a second, {row['capacity_per_second']:,.0f} are "
            f"what it can answer. Accepted calls take × {row['accepted_p99_to_unloaded']:.2f} as "
            f"long as unloaded (99 %); memory grew by {memory['growth']:+.1%}; health was "
            f"{', '.join(row['health']['codes'])}. Calls ended with "
            + ", ".join(f"{code} ({count:,})" for code, count in row["codes"].items())
            + f", begun up to {told(row['late_p99_ms'])} ms late (99 %).\n"
        )
        missed = [row["targets"][what] for what, held in row["held"].items() if not held]
        yield f"**Missed: {'; '.join(missed)}.**\n" if missed else "Every target was held.\n"


def _growth(body: Body, folder: Path, limits: Limits) -> Iterator[str]:
    for row in body["rows"]:
        costs = [cost for cost in COSTS if cost in row["points"][0]]
        yield f"{row['what'][0].upper()}{row['what'][1:]}:\n"
        yield "| n | " + " | ".join(f"{cost}, {COSTS[cost]}" for cost in costs) + " |"
        yield "|---:" * (len(costs) + 1) + "|"
        for point in row["points"]:
            yield f"| {point['n']:,} | " + " | ".join(told(point[c]) for c in costs) + " |"
        found = " | ".join(f"**{row['exponents'][cost]:.2f}**" for cost in costs)
        yield f"| **exponent** | {found} |"
        least = " | ".join(_least(row["points"][-1], cost, limits) for cost in costs)
        yield f"| the machine's limit at the last n | {least} |"
        yield ""
    yield from _picture(plots.growth(body["rows"]), "growth.png", folder)


def _least(point: Mapping[str, Any], cost: str, limits: Limits) -> str:
    bound = bound_of(point.get("work", {}).get(cost, {}), limits)
    if bound is None:
        return ""
    return told(bound.ms / 1e3 if COSTS[cost] == "s" else bound.ms)


def _peers(body: Body, folder: Path, limits: Limits) -> Iterator[str]:
    names = body["tools"]
    if "device_memory" in limits:
        # Tools run on the processor, whose rate was not measured then.
        limits = {name: limit for name, limit in limits.items() if "matrix" not in name}
    yield "| | " + " | ".join(names) + " | the machine's limit |"
    yield "|---" + "|---:" * (len(names) + 1) + "|"
    for row in body["rows"]:
        cells = [*(_cell(row, name) for name in names), ""]
        if bound := bound_of(row.get("work", {}), limits):
            cells[-1] = told(1e3 / bound.ms if row["unit"] == "images/s" else bound.ms)
        yield f"| {row['what']}, {row['unit']} | " + " | ".join(cells) + " |"
    yield ""
    yield "In brackets: how many times better (more than 1) or worse vitscope does.\n"
    yield from (f"- {line}" for line in body["notes"])
    yield ""
    yield from _picture(plots.peers(body), "peers.png", folder)


def _cell(row: Mapping[str, Any], name: str) -> str:
    value = row["values"].get(name)
    if value is None:
        return "–"
    ours = row["values"].get("vitscope")
    if name == "vitscope" or not ours or not value:
        return told(value)
    factor = ours / value if row["better"] == "more" else value / ours
    return f"{told(value)} ({told(factor)})"


def _picture(figure: Any, name: str, folder: Path) -> Iterator[str]:
    figure.savefig(folder / name, dpi=110)
    yield f"![{name.removesuffix('.png')}]({name})\n"


_SPECIAL = {
    "decoders": _decoders,
    "indexing": _indexing,
    "overload": _overload,
    "growth": _growth,
    "peers": _peers,
}
