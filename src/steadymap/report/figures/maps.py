"""Pictures of images and attribution maps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray
from PIL import Image

from steadymap.report.figures import theme
from steadymap.report.figures.theme import DPI, HEAT, PLAIN, QUIET, Look

Box = tuple[int, int, int, int]

_NO_MAPS = "No maps: nothing to draw."

# Whole multiples of a 64 px map, whose pixels then stay sharp; inches.
_LARGE, _SMALL = 192 / DPI, 128 / DPI

# Inches between tiles, of a line of words above or below them, and of bars beside them.
_GAP, _WORDS, _BARS = 0.09, 0.2, 3.3


class Scored(NamedTuple):
    """A map held against its reference: similarity, rank correlation, flags; None where unknown."""

    score: float | None = None
    rank: float | None = None
    degenerate: bool = False
    inverted: bool = False

    @property
    def marks(self) -> str:
        """What stands behind a score below a map: `†` degenerate, `‡` inverted."""
        return f" {'†' * self.degenerate}{'‡' * self.inverted}".rstrip()

    @property
    def words(self) -> str:
        """What stands below a map: both scores, and marks."""
        text = score_text(self.score)
        if self.score is not None and np.isfinite(self.score) and self.rank is not None:
            text += f" / {score_text(self.rank, undefined='–')}"
        return (text + self.marks).strip()


def score_text(score: float | None, *, undefined: str = "no score") -> str:
    """Score below a map; '' where there is none."""
    if score is None:
        return ""
    # No -0.00.
    return f"{round(score, 2) + 0.0:.2f}" if np.isfinite(score) else undefined


@dataclass(frozen=True)
class Tile:
    """One square of a picture.

    Attributes
    ----------
    pixels : ndarray or None
        An image, uint8 (height, width, 3), or a map, (height, width); None leaves the words alone.
    above, below : str
        Printed there.
    scale : float or None
        Value of a map that gets the full color; its own largest absolute one where None.
    framed : bool
        Marked as what others are compared with.
    box : tuple of int or None
        Half-open x0, y0, x1, y1, outlined.
    bold : bool
        Whether the words below are.
    """

    pixels: NDArray[Any] | None
    above: str = ""
    below: str = ""
    scale: float | None = None
    framed: bool = False
    box: Box | None = None
    bold: bool = False


@dataclass(frozen=True)
class TileRow:
    """One line of squares; None leaves a place blank."""

    label: str
    tiles: Sequence[Tile | None]


def scored_row(
    label: str,
    image: Tile | None,
    heatmaps: Mapping[str, NDArray[Any]],
    scores: Mapping[str, Scored],
    reference: str | None,
    *,
    bold_lowest: bool = True,
) -> TileRow:
    """Line of an image and its map at each value, the score to the framed reference below.

    Parameters
    ----------
    label : str
        Name of the model, say.
    image : Tile or None
    heatmaps, scores : mapping
        By value; heatmaps (height, width).
    reference : str or None
        Value of the reference.
    bold_lowest : bool
        Whether the lowest of several scores is bold.
    """
    others = {value: scores[value].score for value in heatmaps if value != reference}
    known = [score for score in others.values() if score is not None and np.isfinite(score)]
    lowest = min(known) if bold_lowest and len(known) > 1 else None
    tiles = [image]
    for value, heatmap in heatmaps.items():
        framed, bold = value == reference, lowest is not None and others.get(value) == lowest
        below = f"reference{scores[value].marks}" if framed else scores[value].words
        tiles.append(Tile(heatmap, value, below, framed=framed, bold=bold))
    return TileRow(label, tiles)


@theme.themed
def picture_rows(
    rows: Sequence[TileRow], *, hyperparameter: str = "", title: str = "", note: str = ""
) -> Figure:
    """Image with its box, then the map of each setting with its score below.

    Each map is divided by its largest absolute value: blue speaks against, red for the class,
    white is 0.

    Parameters
    ----------
    rows : sequence of TileRow
        As `scored_row` makes them, all with the same settings in the same order.
    hyperparameter : str
        What the columns vary.
    title, note : str
        Printed above and below.
    """
    words = "".join(tile.below for row in rows for tile in row.tiles[1:] if tile)
    theme.require([tile for row in rows for tile in row.tiles[1:]], _NO_MAPS)
    image = rows[0].tiles[0] or Tile(None)
    named = replace(image, above=f"{hyperparameter} =" if hyperparameter else "")
    lines = [TileRow(rows[0].label, [named, *rows[0].tiles[1:]])]
    # Values stand above the first line alone.
    for row in rows[1:]:
        tiles = [tile and replace(tile, above="") for tile in row.tiles]
        lines.append(TileRow(row.label, tiles))
    score_name = "SSIM / Spearman" if "/" in words else "SSIM"
    marks = [f"below: {score_name} to the framed reference map, lowest in bold"]
    marks += [name for name in ("† degenerate map", "‡ inverted map") if name[0] in words]
    notes = ["; ".join(marks), *([note] if note else [])]
    return _draw_rows(lines, title=title, notes=notes, sides=(_LARGE, _SMALL))


@theme.themed
def contact_sheet(
    images: Sequence[NDArray[Any]],
    labels: Sequence[str],
    *,
    columns: int = 8,
    boxes: Sequence[Box | None] | None = None,
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
    theme.require(images, "No images: nothing to draw.")
    boxes = boxes or [None] * len(images)
    tiles = [Tile(*tile[:2], box=tile[2]) for tile in zip(images, labels, boxes, strict=True)]
    lines = [TileRow("", tiles[start : start + columns]) for start in range(0, len(tiles), columns)]
    return _draw_rows(lines, notes=[note] if note else [], key="")


@theme.themed
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
    theme.require([tile for row in rows for tile in row.tiles], _NO_MAPS)
    step = theme.COARSE if levels is None else 128 // levels
    left = 0.0 if bars is None else _BARS
    figure = _draw_rows(rows, title=title, notes=notes, key=key, step=step, left=left)
    if bars is not None:
        _bars_beside(figure, bars, look)
    return figure


def _draw_rows(
    rows: Sequence[TileRow],
    *,
    title: str = "",
    notes: Sequence[str] = (),
    key: str = "against, for",
    sides: Sequence[float] = (_SMALL,),
    step: int = 1,
    left: float = 0.0,
) -> Figure:
    """Lines of tiles as large as fits of `sides`, right of what takes `left` inches."""
    n_tiles = max(len(row.tiles) for row in rows)
    labels = [row.label.split("\n") for row in rows]
    start = left + (0.13 + 0.14 * max(map(len, labels)) if any(row.label for row in rows) else 0.06)
    room = (10.3 - start) / n_tiles - _GAP
    side = next((side for side in sides if side <= room), room)
    tops = [_WORDS if any(t and t.above for t in row.tiles) else 0.02 for row in rows]
    feet = [_WORDS if any(t and t.below for t in row.tiles) else 0.0 for row in rows]
    head = 0.34 if title else 0.08
    foot = 0.12 + 0.17 * len(notes) + (0.2 if key else 0.0)
    body = sum(tops) + sum(feet) + len(rows) * (side + _GAP) - _GAP
    height = max(head + body + foot, 2.9 if left else 0.0)
    longest = max((0.062 * len(note) for note in notes), default=0.0)
    width = max(start + n_tiles * (side + _GAP) + 0.08, left + 0.2 + longest)
    figure = Figure(figsize=(width, height))
    # Axes measured in inches from the upper left corner.
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.set_axis_off()
    axis.text(0.06, 0.17, title, size=10, weight="bold", va="center")
    down = head
    for row, label, top, below in zip(rows, labels, tops, feet, strict=True):
        down += top
        size = 8 if max(map(len, label)) * 0.075 < side + 0.3 else 6.5
        beside: dict[str, Any] = {"rotation": 90, "va": "center", "ha": "right", "ma": "center"}
        axis.text(start - 0.06, down + side / 2, row.label, size=size, **beside)
        for place, tile in enumerate(row.tiles):
            if tile is not None:
                _draw_tile(axis, tile, start + place * (side + _GAP), down, side, step)
        down += side + below + _GAP
    low = height - foot + 0.1
    small: dict[str, Any] = {"size": 7.5, "va": "center", "color": QUIET}
    if key:
        against, for_ = (word.strip() for word in key.split(","))
        ramp = HEAT(np.linspace(0, 1, 256))[None, :, :3]
        extent = (left + 0.56, left + 1.56, low + 0.06, low - 0.06)
        axis.imshow(ramp, extent=extent, aspect="auto")
        axis.text(left + 0.06, low, against, **small)
        axis.text(left + 1.63, low, for_, **small)
        low += 0.2
    for line, note in enumerate(notes):
        axis.text(left + 0.06, low + 0.17 * line, note, **small)
    return figure


def _draw_tile(axis: Axes, tile: Tile, x: float, y: float, side: float, step: int) -> None:
    """Pixels, box, frame and words of a tile of `side` inches, its upper left corner at (x, y)."""
    if tile.pixels is not None:
        shape, image = tile.pixels.shape, tile.pixels.ndim == 3
        axis.imshow(
            tile.pixels if image else heat(tile.pixels, tile.scale, step=step),
            extent=(x, x + side, y + side, y),
            aspect="auto",
            interpolation="nearest" if max(shape[:2]) <= side * DPI else "antialiased",
            zorder=1,
        )
        x0, y0, x1, y1 = tile.box or (0, 0, 0, 0)
        if x0 < x1 and y0 < y1:
            across, down = side / shape[1], side / shape[0]
            corner, extent = (
                (x + x0 * across, y + y0 * down),
                ((x1 - x0) * across, (y1 - y0) * down),
            )
            axis.add_patch(Rectangle(corner, *extent, fill=False, ec="black", lw=2.4, zorder=2))
            axis.add_patch(Rectangle(corner, *extent, fill=False, ec="#ffd60a", lw=1.2, zorder=3))
        frame: dict[str, Any] = (
            {"ec": theme.FRAME, "lw": 2.2} if tile.framed else {"ec": theme.PALE, "lw": 0.8}
        )
        axis.add_patch(Rectangle((x, y), side, side, fill=False, **frame))
    weight = "bold" if tile.bold else "normal"
    for words, place, look in ((tile.above, -0.09, "normal"), (tile.below, side + 0.11, weight)):
        size = 8 if len(words) * 0.062 < side + 0.1 else 6.5
        centered: dict[str, Any] = {"ha": "center", "va": "center", "size": size}
        axis.text(x + side / 2, y + place, words, weight=look, **centered)


def _bars_beside(figure: Figure, bars: pd.DataFrame, look: Look) -> None:
    """Bars of average similarity in the left of a figure of tiles."""
    width, height = figure.get_size_inches()
    axis = figure.add_axes((0.55 / width, 0.62 / height, 2.55 / width, 1 - 1.42 / height))
    _metric_bars(axis, bars, look)
    axis.set_ylabel("average similarity", fontsize=8)
    axis.set_xlabel(look.sample_note(bars, "lines"), fontsize=7, color=QUIET, loc="right")
    handles = theme.patches(look.styles(bars["model"]))
    above: dict[str, Any] = {"loc": "lower left", "bbox_to_anchor": (-0.03, 1.0), "ncols": 2}
    axis.legend(handles=handles, fontsize=7.5, handlelength=1.6, borderpad=0, **above)


def _metric_bars(axis: Axes, rows: pd.DataFrame, look: Look) -> None:
    """Spearman, HOG-Pearson and SSIM of each model, with intervals of the mean."""
    measures = [((metric, convention), label) for metric, convention, label in look.measures]
    groups = {label: theme.select(rows, *measure) for measure, label in measures}
    groups = {label: group for label, group in groups.items() if not group.empty}
    bars = pd.concat([group.assign(group=label) for label, group in groups.items()])
    theme.model_bars(axis, bars, list(groups), look.styles(rows["model"]), upright=True)
    axis.set_xticks(range(len(groups)), [label.replace(" (", "\n(") for label in groups])
    low, high = axis.get_ylim()
    axis.set_ylim(min(0.0, low), max(1.03, high))
    axis.axhline(0, color=theme.INK, linewidth=0.6)
    axis.tick_params(axis="x", length=0)
    axis.grid(False, axis="x")


@theme.themed
def similarity_bars(panels: Mapping[str, pd.DataFrame], *, look: Look = PLAIN) -> Figure:
    """Average similarity by three measures, a panel per comparison.

    Parameters
    ----------
    panels : mapping of str to DataFrame
        Per title, rows with columns model, metric, convention, n_images, mean, ci_low, ci_high.
    look : Look, optional
    """
    panels = {name: rows for name, rows in panels.items() if rows["mean"].notna().any()}
    theme.require(panels)
    everything = pd.concat(panels.values())
    figure, axes = theme.panels(len(panels), (max(3.6 * len(panels), 5), 3.1))
    for axis, (name, rows) in zip(axes, panels.items(), strict=True):
        _metric_bars(axis, rows, look)
        axis.set_title(name, loc="left")
    axes[0].set_ylabel("similarity (higher: closer)")
    theme.headed(figure, "", theme.patches(look.styles(everything["model"])))
    theme.footnote(figure, look.sample_note(everything, "lines"))
    return figure


def thumbnail(image: NDArray[Any], *, box: Box | None = None, size: int = 96) -> bytes:
    """Small PNG of one image, never enlarged.

    Parameters
    ----------
    image : ndarray
        uint8, (height, width, 3).
    box : tuple of int, optional
        Half-open x0, y0, x1, y1, outlined.
    size : int
        Longest side, in pixels.
    """
    pixels = np.array(image)
    scale = min(1.0, size / max(pixels.shape[:2]))
    x0, y0, x1, y1 = box or (0, 0, 0, 0)
    if x1 > x0:
        thick = max(1, round(1 / scale))
        outline = np.zeros(pixels.shape[:2], bool)
        outline[y0:y1, x0:x1] = True
        outline[y0 + thick : y1 - thick, x0 + thick : x1 - thick] = False
        pixels[outline] = (255, 214, 10)
    picture = Image.fromarray(pixels)
    if scale < 1:
        shape = round(picture.width * scale), round(picture.height * scale)
        picture = picture.resize(shape, Image.Resampling.LANCZOS)
    return theme.png(picture)


def heat(heatmap: NDArray[Any], scale: float | None = None, *, step: int = 1) -> NDArray[Any]:
    """Colors of a map, blue below and red above 0; gray where it is not finite.

    Parameters
    ----------
    heatmap : ndarray
        (height, width).
    scale : float, optional
        Value that gets the full color; the largest absolute one where not given.
    step : int
        Of the 257 colors every `step`-th is used.

    Returns
    -------
    ndarray
        uint8, (height, width, 3).
    """
    values = np.asarray(heatmap, np.float64)
    finite = np.isfinite(values)
    largest = np.abs(values[finite]).max(initial=0.0) if scale is None else scale
    scaled = np.where(finite, values, np.nan) / (largest or 1.0)
    levels = 128 // step
    scaled = np.round(scaled * levels) / levels if step > 1 else scaled
    colors = HEAT(Normalize(-1, 1)(np.ma.masked_invalid(scaled)))
    return np.asarray(np.round(255 * colors[..., :3]), np.uint8)
