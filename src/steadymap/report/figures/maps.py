"""Pictures of images and attribution maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from steadymap.report.figures.theme import (
    BARS,
    COARSE,
    DPI,
    FRAME,
    HEAT,
    INK,
    NOTHING,
    PLAIN,
    QUIET,
    Look,
    canvas,
    footnote,
    legend,
    model_order,
    n_images,
    patches,
    placeholder,
    png,
    select,
    theme,
)


@dataclass(frozen=True)
class MapCell:
    """One map of a picture row.

    Attributes
    ----------
    label : str
        The setting's value.
    heatmap : ndarray
        Signed, (height, width), at any scale.
    score, rank : float or None
        SSIM and rank correlation with the reference map, printed below.
    is_reference, degenerate, inverted : bool
        Framed; marked; marked.
    """

    label: str
    heatmap: NDArray[Any]
    score: float | None = None
    rank: float | None = None
    is_reference: bool = False
    degenerate: bool = False
    inverted: bool = False


@dataclass(frozen=True)
class PictureRow:
    """One line of maps; without an image of its own it shares the one above.

    Attributes
    ----------
    label : str
        Name of the model, say.
    cells : sequence of MapCell
    image : ndarray or None
        uint8, (height, width, 3).
    box : tuple of int or None
        Half-open x0, y0, x1, y1, outlined on the image.
    caption : str
        Printed below the image.
    """

    label: str
    cells: Sequence[MapCell]
    image: NDArray[Any] | None = None
    box: tuple[int, int, int, int] | None = None
    caption: str = ""


def picture_rows(
    rows: Sequence[PictureRow],
    *,
    hyperparameter: str = "",
    score_name: str = "SSIM",
    title: str = "",
    note: str = "",
) -> Figure:
    """Image with its box, then the map of each setting with its score below.

    Each map is divided by its largest absolute value: blue speaks against, red for the class,
    white is 0.

    Parameters
    ----------
    rows : sequence of PictureRow
        All with the same settings in the same order.
    hyperparameter : str
        What the columns vary.
    score_name : str
        What the numbers below the maps are.
    title, note : str
        Printed above and below.
    """
    if not rows or not any(row.cells for row in rows):
        return placeholder("No maps: nothing to draw.")
    n_cells = max(len(row.cells) for row in rows)
    with theme():
        # 192 or 128 dots: whole multiples of a 64 px map, whose pixels then stay sharp.
        tile = next((t for t in (192 / DPI, 128 / DPI) if t * (n_cells + 1) <= 9.4), 8.6 / n_cells)
        gap, foot, top, left, label = 0.09, 0.24, 0.62, 0.05, 0.3
        first = left + tile + label
        width = max(first + n_cells * (tile + gap), 6.3)
        head = 0.24 + (0.3 if title else 0.0)
        height = head + len(rows) * (tile + foot + gap) + top
        figure = Figure(figsize=(width, height))
        axis = canvas(figure, width, height)
        if title:
            axis.text(left, 0.2, title, size=10.5, weight="bold", va="center")
        if hyperparameter:
            across = first - 0.1
            axis.text(across, head - 0.11, f"{hyperparameter} =", ha="right", size=8.5)
        down = head
        for index, row in enumerate(rows):
            if row.image is not None:
                span = 1
                while index + span < len(rows) and rows[index + span].image is None:
                    span += 1
                middle = down + (span - 1) * (tile + foot + gap) / 2
                _tile(axis, row.image, left, middle, tile)
                if row.box is not None:
                    _outline(axis, row.box, row.image.shape, left, middle, tile)
                axis.text(left + tile / 2, middle + tile + 0.12, row.caption, ha="center", size=8)
            axis.text(
                first - 0.1,
                down + tile / 2,
                row.label,
                rotation=90,
                va="center",
                ha="right",
                size=9,
            )
            scores = [c.score for c in row.cells if c.score is not None and np.isfinite(c.score)]
            for column, cell in enumerate(row.cells):
                across = first + column * (tile + gap)
                _tile(axis, _heat(cell.heatmap), across, down, tile)
                frame = {"ec": FRAME, "lw": 2.2} if cell.is_reference else {"ec": "#c3c8ce"}
                axis.add_patch(Rectangle((across, down), tile, tile, fill=False, **frame))
                if index == 0:
                    axis.text(across + tile / 2, down - 0.11, cell.label, ha="center", size=8.5)
                lowest = cell.score is not None and scores and cell.score == min(scores)
                axis.text(
                    across + tile / 2,
                    down + tile + 0.12,
                    _under(cell),
                    ha="center",
                    size=8.5,
                    weight="bold" if lowest and len(scores) > 1 else "normal",
                    color=INK,
                )
            down += tile + foot + gap
        _key(axis, left, down + 0.12)
        every = [cell for row in rows for cell in row.cells]
        if any(cell.rank is not None for cell in every):
            score_name += " / Spearman"
        marks = [f"below: {score_name} to the framed reference map, lowest in bold"]
        marks += ["† degenerate map"] if any(cell.degenerate for cell in every) else []
        marks += ["‡ inverted map"] if any(cell.inverted for cell in every) else []
        axis.text(left + 1.95, down + 0.12, "; ".join(marks), size=7.5, va="center", color=QUIET)
        if note:
            axis.text(left, down + 0.34, note, size=7.5, va="center", color=QUIET)
    return figure


def contact_sheet(
    images: Sequence[NDArray[Any]],
    labels: Sequence[str],
    *,
    columns: int = 8,
    boxes: Sequence[tuple[int, int, int, int] | None] | None = None,
    note: str = "",
) -> Figure:
    """Images in lines, each with its label above.

    Parameters
    ----------
    images : sequence of ndarray
        uint8, (height, width, 3) each.
    labels : sequence of str
        An empty one leaves its place blank.
    columns : int
        Images per line.
    boxes : sequence, optional
        Half-open x0, y0, x1, y1 or None per image, outlined.
    note : str
        Printed below.
    """
    if len(images) == 0:
        return placeholder("No images: nothing to draw.")
    with theme():
        columns = min(columns, len(images))
        lines = -(-len(images) // columns)
        tile = 128 / DPI if columns * 128 / DPI <= 9.6 else 9.6 / columns
        gap, head, left = 0.06, 0.2, 0.05
        width = max(left + columns * (tile + gap), 4.0)
        height = lines * (tile + head + gap) + 0.3
        figure = Figure(figsize=(width, height))
        axis = canvas(figure, width, height)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            across = left + index % columns * (tile + gap)
            down = head + index // columns * (tile + head + gap)
            _tile(axis, image, across, down, tile)
            if boxes is not None and (box := boxes[index]) is not None:
                _outline(axis, box, image.shape, across, down, tile)
            axis.text(across, down - 0.09, label, size=8, va="center")
        axis.text(left, height - 0.14, note, size=7.5, color=QUIET)
    return figure


@dataclass(frozen=True)
class Tile:
    """One square of a picture.

    Attributes
    ----------
    pixels : ndarray
        An image, uint8 (height, width, 3), or a map, (height, width).
    above, below : str
        Printed there.
    scale : float or None
        Value of a map that gets the full color; its own largest absolute one where None.
    framed : bool
        Marked as what others are compared with.
    box : tuple of int or None
        Half-open x0, y0, x1, y1, outlined.
    """

    pixels: NDArray[Any]
    above: str = ""
    below: str = ""
    scale: float | None = None
    framed: bool = False
    box: tuple[int, int, int, int] | None = None


@dataclass(frozen=True)
class TileRow:
    """One line of squares; None leaves a place blank."""

    label: str
    tiles: Sequence[Tile | None]


def tile_rows(
    rows: Sequence[TileRow],
    *,
    title: str = "",
    notes: Sequence[str] = (),
    key: str = "against, for",
    bars: pd.DataFrame | None = None,
    look: Look = PLAIN,
    levels: int | None = None,
) -> Figure:
    """Lines of images and maps, each with its own words; beside them, bars of average similarity.

    Parameters
    ----------
    rows : sequence of TileRow
    title : str
        Printed above.
    notes : sequence of str
        Printed below, a line each.
    key : str
        Words at the ends of the color key, with a comma between; none where empty.
    bars : DataFrame, optional
        As `similarity_bars` takes; drawn to the left.
    look : Look, optional
    levels : int, optional
        Colors on either side of white: fewer make smaller files.
    """
    step = COARSE if levels is None else 128 // levels
    if not any(row.tiles for row in rows):
        return placeholder("No maps: nothing to draw.")
    n_tiles = max(len(row.tiles) for row in rows)
    with theme():
        gap, pad = 0.09, 0.08
        label = 0.27 + 0.14 * max(row.label.count("\n") for row in rows)
        beside = 3.3 if bars is not None else 0.0
        # 128 dots: a whole multiple of a 64 px map, whose pixels then stay sharp.
        tile = min(128 / DPI, (10.2 - beside - label - pad) / n_tiles - gap)
        marked = [any(t and t.above for t in row.tiles) for row in rows]
        heights = [
            (0.2 if above else 0.02) + tile + (0.2 if any(t and t.below for t in row.tiles) else 0)
            for row, above in zip(rows, marked, strict=True)
        ]
        head = 0.34 if title else 0.08
        foot = 0.12 + 0.17 * len(notes) + (0.2 if key else 0.0)
        body = sum(heights) + gap * (len(rows) - 1)
        height = max(head + body + foot, 2.9 if bars is not None else 0.0)
        longest = max((len(note) for note in notes), default=0)
        width = max(beside + label + n_tiles * (tile + gap) + pad, beside + 0.2 + 0.062 * longest)
        figure = Figure(figsize=(width, height))
        axis = canvas(figure, width, height)
        if title:
            axis.text(0.06, 0.17, title, size=10, weight="bold", va="center")
        down = head
        for row, has_words, tall in zip(rows, marked, heights, strict=True):
            top = down + (0.2 if has_words else 0.02)
            axis.text(
                beside + label - 0.06,
                top + tile / 2,
                row.label,
                rotation=90,
                va="center",
                ha="right",
                ma="center",
                size=8 if max(map(len, row.label.split("\n"))) * 0.075 < tile + 0.3 else 6.5,
            )
            for place, square in enumerate(row.tiles):
                if square is not None:
                    _square(axis, square, beside + label + place * (tile + gap), top, tile, step)
            down += tall + gap
        low = height - foot + 0.1
        if key:
            ends = [word.strip() for word in key.split(",")]
            _key(axis, beside + 0.06, low, *ends)
            low += 0.2
        for line, note in enumerate(notes):
            axis.text(beside + 0.06, low + 0.17 * line, note, size=7.5, va="center", color=QUIET)
        if bars is not None:
            own = figure.add_axes(
                (0.55 / width, 0.62 / height, 2.55 / width, (height - 1.42) / height)
            )
            _metric_bars(own, bars, look)
            own.set_ylabel("average similarity", fontsize=8)
            own.set_xlabel(
                f"{n_images(bars)}; lines: {look.percent} intervals",
                fontsize=7,
                color=QUIET,
                loc="right",
            )
            names = model_order(bars["model"])
            looks = look.styles(names)
            own.legend(
                handles=patches({name: looks[name] for name in names}),
                loc="lower left",
                bbox_to_anchor=(-0.03, 1.0),
                ncols=2,
                fontsize=7.5,
                handlelength=1.6,
                borderpad=0,
            )
    return figure


def _square(axis: Axes, square: Tile, x: float, y: float, side: float, step: int) -> None:
    values = square.pixels
    colors = values if values.ndim == 3 else _heat(values, square.scale, step=step)
    _tile(axis, colors, x, y, side)
    if square.box is not None:
        _outline(axis, square.box, values.shape, x, y, side)
    frame: dict[str, Any] = {"ec": "#c3c8ce", "lw": 0.8}
    if square.framed:
        frame = {"ec": FRAME, "lw": 2.2}
    axis.add_patch(Rectangle((x, y), side, side, fill=False, **frame))
    for words, place in ((square.above, y - 0.09), (square.below, y + side + 0.11)):
        size = 8 if len(words) * 0.062 < side + 0.1 else 6.5
        axis.text(x + side / 2, place, words, ha="center", va="center", size=size)


def _metric_bars(axis: Axes, rows: pd.DataFrame, look: Look) -> None:
    """Spearman, HOG-Pearson and SSIM of each model, with intervals of the mean."""
    measures = [*BARS, ("ssim", look.convention, f"SSIM ({look.convention})")]
    measures = [m for m in measures if not select(rows, m[0], m[1]).empty]
    names = model_order(rows["model"])
    styles = look.styles(names)
    thickness = 0.8 / max(len(names), 1)
    for place, (metric, kind, _) in enumerate(measures):
        keyed = select(rows, metric, kind).drop_duplicates("model").set_index("model")
        for index, name in enumerate(names):
            if name not in keyed.index:
                continue
            row = keyed.loc[name]
            here = place + (index - (len(names) - 1) / 2) * thickness
            shade = styles[name]
            axis.bar(
                here,
                float(row["mean"]),
                0.9 * thickness,
                color=shade.color,
                hatch=shade.hatch,
                edgecolor="white",
                linewidth=0,
            )
            ends = [float(row["ci_low"]), float(row["ci_high"])]
            if np.isfinite(ends).all():
                axis.plot([here, here], ends, color=INK, lw=1.3)
    axis.set_xticks(range(len(measures)), [label.replace(" (", "\n(") for *_, label in measures])
    axis.set_ylim(min(0.0, axis.get_ylim()[0]), max(1.03, axis.get_ylim()[1]))
    axis.axhline(0, color=INK, linewidth=0.6)
    axis.tick_params(axis="x", length=0)
    axis.grid(False, axis="x")


def similarity_bars(
    panels: Mapping[str, pd.DataFrame],
    *,
    look: Look = PLAIN,
) -> Figure:
    """Average similarity by three measures, a panel per comparison.

    Parameters
    ----------
    panels : mapping of str to DataFrame
        Per title, rows with columns model, metric, convention, n_images, mean, ci_low, ci_high.
    look : Look, optional
    """
    panels = {name: rows for name, rows in panels.items() if rows["mean"].notna().any()}
    if not panels:
        return placeholder(NOTHING)
    everything = pd.concat(panels.values())
    with theme():
        figure = Figure(figsize=(max(3.6 * len(panels), 5), 3.1), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axis, (name, rows) in zip(axes, panels.items(), strict=True):
            _metric_bars(axis, rows, look)
            axis.set_title(name, loc="left")
        axes[0].set_ylabel("similarity (higher: closer)")
        names = model_order(everything["model"])
        legend(figure, look, names, lines=False)
        footnote(figure, f"{n_images(everything)}; lines: {look.percent} intervals")
    return figure


def thumbnail(
    image: NDArray[Any], *, box: tuple[int, int, int, int] | None = None, size: int = 96
) -> bytes:
    """Small PNG of one uint8 image (height, width, 3), its box outlined, never enlarged."""
    picture = Image.fromarray(np.ascontiguousarray(image))
    scale = min(1.0, size / max(picture.size))
    if box is not None and box[2] > box[0]:
        pixels = np.array(picture)
        x0, y0, x1, y1 = box
        thick = max(1, round(1 / scale))
        inner = np.zeros(pixels.shape[:2], bool)
        inner[y0:y1, x0:x1] = True
        inner[y0 + thick : y1 - thick, x0 + thick : x1 - thick] = False
        pixels[inner] = (255, 214, 10)
        picture = Image.fromarray(pixels)
    if scale < 1:
        shape = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(shape, Image.Resampling.LANCZOS)
    return png(picture)


def _tile(axis: Axes, pixels: NDArray[Any], x: float, y: float, side: float) -> None:
    axis.imshow(
        pixels,
        extent=(x, x + side, y + side, y),
        aspect="auto",
        interpolation="nearest" if max(pixels.shape[:2]) <= side * DPI else "antialiased",
        zorder=1,
    )


def _outline(
    axis: Axes,
    box: tuple[int, int, int, int],
    shape: tuple[int, ...],
    x: float,
    y: float,
    side: float,
) -> None:
    x0, y0, x1, y1 = box
    if x1 <= x0 or y1 <= y0:
        return
    across, down = side / shape[1], side / shape[0]
    corner = x + x0 * across, y + y0 * down
    size = (x1 - x0) * across, (y1 - y0) * down
    axis.add_patch(Rectangle(corner, *size, fill=False, ec="black", lw=2.4, zorder=2))
    axis.add_patch(Rectangle(corner, *size, fill=False, ec="#ffd60a", lw=1.2, zorder=3))


def _heat(heatmap: NDArray[Any], scale: float | None = None, *, step: int = 1) -> NDArray[Any]:
    """Colors of a map divided by `scale`, its largest absolute value; gray where not finite.

    Of the 257 colors every `step`-th is used.
    """
    values = np.asarray(heatmap, np.float64)
    finite = np.isfinite(values)
    largest = np.abs(values[finite]).max(initial=0.0) if scale is None else scale
    scaled = np.where(finite, values, np.nan) / (largest or 1.0)
    levels = 128 // step
    scaled = np.round(scaled * levels) / levels if step > 1 else scaled
    colors = HEAT(Normalize(-1, 1)(np.ma.masked_invalid(scaled)))
    return np.asarray(np.round(255 * colors[..., :3]), np.uint8)


def _under(cell: MapCell) -> str:
    mark = f" {'†' * cell.degenerate}{'‡' * cell.inverted}".rstrip()
    if cell.is_reference:
        return "reference" + mark
    if cell.score is None:
        return mark.strip()
    if not np.isfinite(cell.score):
        return "no score" + mark
    rank = "" if cell.rank is None else f" / {cell.rank:.2f}".replace("nan", "–")
    return f"{cell.score:.2f}{rank}{mark}"


def _key(axis: Axes, x: float, y: float, low: str = "against", high: str = "for") -> None:
    """Color key of the maps."""
    ramp = HEAT(np.linspace(0, 1, 256))[None, :, :3]
    axis.imshow(ramp, extent=(x + 0.5, x + 1.5, y + 0.06, y - 0.06), aspect="auto")
    axis.text(x, y, low, size=7.5, va="center", color=QUIET)
    axis.text(x + 1.57, y, high, size=7.5, va="center", color=QUIET)
