"""Style, colors and scaffolding shared by all figures."""

import io
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec

import numpy as np
import pandas as pd
import yaml
from matplotlib import style as stylesheets
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import ArrayLike
from PIL import Image

from steadymap.analysis.readings import MEASURES
from steadymap.report.document import text_file
from steadymap.store.atomic import atomic_file

DPI = 144

_MAX_BYTES = 300_000

P = ParamSpec("P")

_STYLE = ["default", "steadymap.report.figures.style"]

INK, QUIET, FRAME, PALE = "#22272e", "#6a737d", "#111111", "#c3c8ce"

_WORDS = yaml.safe_load(text_file("figures.yaml"))

# Dark for a regular model, light of the same hue for its robust twin.
HUES: list[tuple[str, str]] = [(dark, light) for dark, light in _WORDS["hues"]]

# Few colors make small files: 65 of them in pictures of many maps.
COARSE = 4

# Exactly white at 0, which an even number of colors can't be.
HEAT = LinearSegmentedColormap.from_list(
    "blue-white-red",
    ["#053061", "#2166ac", "#74add1", "#ffffff", "#f08a62", "#b2182b", "#67001f"],
    N=257,
).with_extremes(bad="#b9bdc2")

NOTHING = "No map pair with a defined score: nothing to draw."

STAR = "; star: the reference, 1 by definition"


class NothingToDrawError(ValueError):
    """A figure's tables have nothing to draw; the message stands in the figure's place."""


def themed(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw in the style of all figures; where there is nothing to draw, say so in the figure."""

    @wraps(draw)
    def draw_themed(*args: P.args, **kwargs: P.kwargs) -> Figure:
        with stylesheets.context(_STYLE):
            try:
                return draw(*args, **kwargs)
            except NothingToDrawError as nothing:
                text = str(nothing)
                figure = Figure(figsize=(8, 0.8 + 0.2 * text.count("\n")))
                figure.text(0.5, 0.5, text, ha="center", va="center", color=QUIET)
                return figure

    return draw_themed


def require(content: Sized, words: str = NOTHING) -> None:
    """Raise NothingToDrawError with these words where there is no content."""
    if len(content) == 0:
        raise NothingToDrawError(words)


def finite_rows(frame: pd.DataFrame, *columns: str, words: str = NOTHING) -> pd.DataFrame:
    """Rows whose `columns` are all finite numbers.

    Parameters
    ----------
    frame : DataFrame
    *columns : str
    words : str
        Said in the figure's place where there is no such row.

    Raises
    ------
    NothingToDrawError
    """
    rows = frame[np.isfinite(frame[list(columns)].astype(float)).all(axis=1)]
    require(rows, words)
    return rows


@dataclass(frozen=True)
class Style:
    """Color, line, marker and hatch of a model."""

    color: str
    linestyle: str
    marker: str
    hatch: str = ""

    @property
    def line(self) -> dict[str, Any]:
        """A line with its markers, as matplotlib takes it."""
        look = {"color": self.color, "linestyle": self.linestyle, "marker": self.marker}
        return {**look, "markersize": 4.5, "linewidth": 1.6, "zorder": 3}


@dataclass(frozen=True)
class Look:
    """What the figures of a study have in common.

    Attributes
    ----------
    models : sequence of str
        All models of the study, so that colors agree between figures; those drawn where empty.
    confidence : float
        Level of the tables' intervals, in (0, 1).
    convention : str
        Of SSIM.
    """

    models: Sequence[str] = ()
    confidence: float = 0.95
    convention: str = "common"

    @property
    def percent(self) -> str:
        """Level of intervals in words."""
        return f"{100 * self.confidence:g} %"

    @property
    def measures(self) -> list[tuple[str, str | None, str]]:
        """Metric, convention and label of what the paper's bar charts show."""
        ssim = ("ssim", self.convention, f"SSIM ({self.convention})")
        return [("spearman", None, "Spearman"), ("hog_pearson", None, "HOG-Pearson"), ssim]

    def sample_note(self, rows: pd.DataFrame, marks: str = "bars") -> str:
        """Number of images, and what the intervals' `marks` are, for a figure's foot."""
        return f"{n_images(rows)}; {marks}: {self.percent} intervals"

    def styles(self, names: Iterable[str]) -> dict[str, Style]:
        """Style of each model named, robust twins behind regular models."""
        names = model_order(names)
        styles = model_styles(self.models or names)
        return {name: styles[name] for name in names}


PLAIN = Look()


def model_order(models: Iterable[str]) -> list[str]:
    """Models as given, each once, every robust twin behind its regular one."""
    names = list(dict.fromkeys(models))
    families = dict.fromkeys(name.removesuffix("-r") for name in names)
    return [name for family in families for name in (family, f"{family}-r") if name in names]


def model_styles(models: Iterable[str]) -> dict[str, Style]:
    """Style of each model and its robust twin; a hue and a marker per family."""
    families = dict.fromkeys(name.removesuffix("-r") for name in models)
    styles = {}
    for index, family in enumerate(families):
        (dark, light), marker = HUES[index % len(HUES)], "oDs^vP"[index % 6]
        styles[family] = Style(dark, "-", marker)
        styles[f"{family}-r"] = Style(light, "--", marker, "////")
    return styles


def by_model(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Models in order, each with its rows."""
    for name in model_order(rows["model"]):
        yield name, rows[rows["model"] == name]


def panels(
    n: int, size: tuple[float, float], *, columns: int | None = None, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """Figure with `n` panels that share their vertical axis.

    Parameters
    ----------
    n : int
    size : tuple of float
        Width and height of the figure, in inches.
    columns : int, optional
        Panels per line; all where not given.
    **shared
        Further options of `Figure.subplots`.
    """
    columns = columns or n
    figure = Figure(figsize=size, layout="constrained")
    options: dict[str, Any] = {"squeeze": False, "sharey": True} | shared
    axes: list[Axes] = list(figure.subplots(-(-n // columns), columns, **options).flat)
    if n > columns:
        figure.get_layout_engine().set(h_pad=0.06)  # type: ignore[union-attr,call-arg]
    for axis in axes[n:]:
        axis.set_axis_off()
    # The lowest of each column has the labels, whatever is switched off below it.
    for axis in axes[max(n - columns, 0) : n]:
        axis.tick_params(labelbottom=True)
    return figure, axes[:n]


def small_multiples(
    n: int, *, height: float, extra: float, **shared: Any
) -> tuple[Figure, list[Axes]]:
    """Panels in as many lines as they need.

    Parameters
    ----------
    n : int
        Number of panels.
    height, extra : float
        Of a line, and of what stands above and below all lines, in inches.
    **shared
        Further options of `Figure.subplots`.
    """
    columns = 3 if n in (5, 6, 9) else min(n, 4)
    size = max(2.45 * columns + 0.5, 5.4), height * -(-n // columns) + extra
    return panels(n, size, columns=columns, **shared)


def save(figure: Figure, path: Path, *, max_bytes: int = _MAX_BYTES) -> None:
    """Write a figure as PNG whose bytes depend on the drawing alone.

    Parameters
    ----------
    figure : Figure
    path : Path
    max_bytes : int
        Above that, colors are reduced, to 64 at least.
    """
    raw = io.BytesIO()
    with stylesheets.context(_STYLE):
        figure.savefig(raw, format="png", dpi=DPI, metadata={"Software": None})
    with Image.open(raw) as image:
        pixels = image.convert("RGB")
    data = png(pixels, dpi=(DPI, DPI))
    for n_colors in (256, 128, 64):
        if len(data) <= max_bytes:
            break
        # Median cut, the default, drops rare colors, which are the strong ends of maps.
        reduced = pixels.quantize(
            n_colors, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE
        )
        data = png(reduced, dpi=(DPI, DPI))
    with atomic_file(path) as temporary:
        temporary.write_bytes(data)


def png(image: Image.Image, **options: Any) -> bytes:
    """Image as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True, **options)
    return buffer.getvalue()


def select(frame: pd.DataFrame, metric: str, convention: str | None) -> pd.DataFrame:
    """Rows of one metric and convention; None stands for any convention.

    Parameters
    ----------
    frame
        Table with columns metric and convention.
    metric
        Name of a metric.
    convention
        Name of a convention; None stands for any.
    """
    is_measure = frame["metric"] == metric
    return frame[
        is_measure if convention is None else is_measure & frame["convention"].eq(convention)
    ]


def measure_label(metric: str, convention: str | None) -> str:
    """Axis label of a measure."""
    other = f"{metric} ({convention})" if convention else metric
    return MEASURES.get((metric, convention), MEASURES.get((metric, None), other))


def span(numbers: Iterable[Any]) -> str:
    """Least and largest of whole numbers, `4` or `4 to 8`; `0` where there is none."""
    counts = sorted({int(number) for number in numbers}) or [0]
    return " to ".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))


def counted(numbers: Iterable[Any], noun: str) -> str:
    """Least and largest of whole numbers with their noun, `4 to 8 units`."""
    text = span(numbers)
    return f"{text} {noun}{'' if text == '1' else 's'}"


def n_images(rows: pd.DataFrame) -> str:
    """Number of images as text."""
    return f"n = {span(rows['n_images'])} images"


def plural(n: int, noun: str) -> str:
    """Number with its noun, in the plural where it is not 1."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def panel_titles(*columns: str) -> dict[str, str]:
    """Titles of the panels of these columns or metrics."""
    return {column: _WORDS["panels"][column] for column in columns}


def value_label(rows: pd.DataFrame, sweep: str) -> str:
    """Axis label of a sweep's hyperparameter, with its unit."""
    name = rows.loc[rows["sweep"] == sweep, "hyperparameter"].iloc[0]
    unit = _WORDS["units"].get(name)
    return f"{name} ({unit})" if unit else name


def reference_value(settings: pd.DataFrame, sweep: str) -> str | None:
    """Value of a sweep's reference, which only the dynamic range has a row for."""
    is_reference = (settings["sweep"] == sweep) & settings["is_reference"].astype(bool)
    return next(iter(settings.loc[is_reference, "value"].astype(str)), None)


def in_order(values: Iterable[str]) -> list[str]:
    """Values, each once: numbers in ascending order, else as they come."""
    names = list(dict.fromkeys(values))
    numbers = pd.to_numeric(pd.Series(names), errors="coerce").to_numpy(float)
    if not np.isfinite(numbers).all():
        return names
    return [names[position] for position in np.argsort(numbers, kind="stable")]


@dataclass(frozen=True)
class ValueAxis:
    """Horizontal axis of a sweep's values.

    Attributes
    ----------
    positions : dict of str to float
        Of each value: its number, or the number's logarithm over a range of 8 times and more;
        words, and numbers too close to each other, at equal steps.
    joined : bool
        Whether a line may join the values.
    reference : str or None
    """

    positions: Mapping[str, float]
    joined: bool
    reference: str | None

    @classmethod
    def of(cls, rows: pd.DataFrame, reference: str | None) -> "ValueAxis":
        """Axis of the values in `rows` and of their reference."""
        names = in_order([*rows["value"], *([] if reference is None else [reference])])
        numbers = pd.to_numeric(pd.Series(names), errors="coerce").to_numpy(float)
        joined = bool(np.isfinite(numbers).all())
        if joined and len(names) > 1:
            if numbers[0] > 0 and numbers[-1] / numbers[0] >= 8:
                numbers = np.log10(numbers)
            if np.diff(numbers).min() > 0.03 * (numbers[-1] - numbers[0]):
                joined = rows["hyperparameter"].iloc[0] != "seed"
                return cls(dict(zip(names, numbers.tolist(), strict=True)), joined, reference)
        return cls({name: float(step) for step, name in enumerate(names)}, joined, reference)

    @property
    def width(self) -> float:
        """Distance between the outermost values; 1 where there is one value."""
        return (max(self.positions.values()) - min(self.positions.values())) or 1.0

    def draw(self, axis: Axes, *, room: int = 8) -> None:
        """Set up a panel's axis, with `room` labels at most, and mark the reference."""
        if self.reference is not None:
            peak = self.positions[self.reference]
            axis.axvline(peak, color=QUIET, linestyle=":", linewidth=1.2, zorder=0)
            star: dict[str, Any] = {"marker": "*", "markersize": 8, "linestyle": "none"}
            axis.plot(peak, 1, color=QUIET, clip_on=False, **star)
        shown = self._labels(room)
        axis.set_xticks([self.positions[name] for name in shown], shown)
        ends, reach = list(self.positions.values()), 0.09 * self.width
        if len(ends) == 1:
            reach = 0.5
        axis.set_xlim(min(ends) - reach, max(ends) + reach)
        if any(len(name) > 7 for name in shown):
            axis.tick_params(axis="x", rotation=30)
        axis.grid(False, axis="x")

    def _labels(self, room: int) -> list[str]:
        """Values whose labels have room beside each other, the reference among them."""
        names = list(self.positions)
        first = [self.reference] if self.reference is not None else []
        shown: list[str] = []
        for name in [*first, names[0], names[-1], *names]:
            distances = [abs(self.positions[name] - self.positions[other]) for other in shown]
            if min(distances, default=np.inf) > 0.8 * self.width / room:
                shown.append(name)
        return [name for name in names if name in shown]


def error_bars(
    axis: Axes,
    positions: ArrayLike,
    rows: pd.DataFrame,
    columns: Sequence[str] = ("mean", "ci_low", "ci_high"),
    *,
    scale: float = 1.0,
    **look: Any,
) -> None:
    """Draw means with their intervals.

    Parameters
    ----------
    axis : Axes
    positions : array_like
        Horizontal, one per row.
    rows : DataFrame
    columns : sequence of str
        Of the mean and of the interval's two ends.
    scale : float
        Factor of all three.
    **look
        Options of `Axes.errorbar`.
    """
    mean, low, high = scale * rows[list(columns)].to_numpy(float).T
    bars = np.clip([mean - low, high - mean], 0, None)
    axis.errorbar(positions, mean, yerr=bars, **look)


def value_curve(
    axis: Axes, rows: pd.DataFrame, values: ValueAxis, style: Style, *, offset: float = 0.0
) -> None:
    """Draw one model's means at each value, joined by a line that runs through (reference, 1).

    Parameters
    ----------
    axis : Axes
    rows : DataFrame
        With columns `value`, `mean`, `ci_low`, `ci_high`.
    values : ValueAxis
    style : Style
    offset : float
        Shift to the right as a share of the axis, so that bars of several models don't cover.
    """
    if rows.empty:
        return
    rows = rows.assign(position=rows["value"].map(values.positions).astype(float))
    rows = rows.sort_values("position", kind="stable")
    position, mean = rows["position"].to_numpy(), rows["mean"].to_numpy(float)
    shifted = position + offset * values.width
    dots: dict[str, Any] = {
        "color": style.color,
        "linestyle": "none",
        "marker": style.marker,
        "markersize": 5,
    }
    error_bars(axis, shifted, rows, elinewidth=1.2, capsize=2.5, **dots)
    if not values.joined:
        return
    line: dict[str, Any] = {"color": style.color, "linestyle": style.linestyle}
    peak = None if values.reference is None else values.positions[values.reference]
    if peak is None or peak in position:
        axis.plot(shifted, mean, linewidth=1.6, **line)
        return
    left, right = np.flatnonzero(position < peak), np.flatnonzero(position > peak)
    for side in (left, right):
        axis.plot(shifted[side], mean[side], linewidth=1.6, **line)
    # Towards the reference, where a map is compared with itself, the line only leads the eye.
    for nearest in (left[-1:], right[:1]):
        ends = [*shifted[nearest], peak], [*mean[nearest], 1]
        axis.plot(*ends, linewidth=0.9, alpha=0.55, **line)


def value_curves(
    axis: Axes, rows: pd.DataFrame, reference: str | None, look: Look, *, room: int = 8
) -> None:
    """Draw a sweep's means with intervals, a line per model.

    Parameters
    ----------
    axis : Axes
    rows : DataFrame
        Of one sweep and measure.
    reference : str or None
        The reference's value.
    look : Look
    room : int
        Most labels of values.
    """
    values, styles = ValueAxis.of(rows, reference), look.styles(rows["model"])
    # Independent draws differ at the reference too: their line doesn't run through 1.
    redrawn = (rows["draws"] == "independent").all()
    line = replace(values, reference=None) if redrawn else values
    for index, (name, group) in enumerate(by_model(rows)):
        offset = (index - (len(styles) - 1) / 2) * 0.014
        value_curve(axis, group, line, styles[name], offset=offset)
    values.draw(axis, room=room)


def limit_similarity(axis: Axes, rows: pd.DataFrame) -> None:
    """Upper end just above 1, where identical maps are; lower end below every interval."""
    lowest = float(np.nanmin(rows[["mean", "ci_low"]].to_numpy(float))) - 0.02
    step = 0.1 if lowest > 0.5 else 0.2
    axis.set_ylim(min(0.8, np.floor(lowest / step) * step), 1.03)


def model_bars(
    axis: Axes,
    rows: pd.DataFrame,
    groups: Sequence[str],
    styles: Mapping[str, Style],
    columns: Sequence[str] = ("mean", "ci_low", "ci_high"),
    *,
    upright: bool = False,
) -> list[np.ndarray]:
    """Draw groups of bars with intervals, a bar per model.

    Parameters
    ----------
    axis : Axes
    rows : DataFrame
        With columns `group`, `model` and `columns`; with `blank`, where that is true, a bar is
        hollow. Undefined values have no bar, undefined intervals no line.
    groups : sequence of str
        In the order in which they are drawn, at 0, 1, ...
    styles : mapping of str to Style
        Of the models.
    columns : sequence of str
        Of the bar's length and of the interval's two ends.
    upright : bool
        Whether bars run upwards; else to the right.

    Returns
    -------
    list of ndarray
        Positions of each model's bars.
    """
    thickness = 0.8 / max(len(styles), 1)
    draw = axis.bar if upright else axis.barh
    positions = []
    for index, (name, style) in enumerate(styles.items()):
        cells = rows[rows["model"] == name].drop_duplicates("group").set_index("group")
        position = np.arange(len(groups)) + (index - (len(styles) - 1) / 2) * thickness
        cells = cells.reindex(groups).assign(position=position)
        cells = cells[np.isfinite(cells[columns[0]].astype(float))]
        hollow = cells.get("blank", pd.Series(False, cells.index)).eq(True).to_numpy()
        draw(
            cells["position"],
            cells[columns[0]].astype(float),
            0.9 * thickness,
            linewidth=1.2 * hollow,
            color=np.where(hollow, "white", style.color),
            edgecolor=np.where(hollow, style.color, "white"),
            hatch=style.hatch,
        )
        bounded = cells[np.isfinite(cells[list(columns[1:])].astype(float)).all(axis=1)]
        ends = bounded[list(columns[1:])].to_numpy(float).T, np.tile(bounded["position"], (2, 1))
        axis.plot(*(ends[::-1] if upright else ends), color=INK, linewidth=1.6, zorder=4)
        positions.append(position)
    return positions


def label_lines(axes: Sequence[Axes], labels: Sequence[str]) -> None:
    """Name the lines of panels of horizontal bars, from the top down."""
    for axis in axes:
        axis.grid(False, axis="y")
        axis.tick_params(axis="y", length=0)
    axes[0].set_yticks(range(len(labels)), labels)
    axes[0].set_ylim(len(labels) - 0.45, -0.55)


def patches(styles: Mapping[str, Style]) -> list[Patch]:
    """Legend handles of filled areas, one per model."""
    return [
        Patch(facecolor=s.color, hatch=s.hatch, edgecolor="white", linewidth=0, label=name)
        for name, s in styles.items()
    ]


def mark(label: str, **look: Any) -> Line2D:
    """Legend handle of a line or marker."""
    return Line2D([], [], label=label, **look)


def lines(styles: Mapping[str, Style]) -> list[Line2D]:
    """Legend handles of lines with markers, one per model."""
    return [mark(name, **style.line | {"markersize": 5}) for name, style in styles.items()]


def headed(figure: Figure, title: str, handles: Sequence[Any]) -> None:
    """Title and legend above a figure, in as many columns as it has room for.

    Parameters
    ----------
    figure
        Figure to change.
    title
        What the figure shows.
    handles
        Entries of the legend.
    """
    inches = [0.65 + 0.08 * len(str(handle.get_label())) for handle in handles]
    fits = [
        n
        for n in range(1, len(handles) + 1)
        if sum(max(part, default=0.0) for part in map(list, np.array_split(inches, n)))
        < figure.get_figwidth()
    ]
    figure.legend(
        handles=handles,
        loc="outside upper left",
        ncols=max(fits, default=1),
        handlelength=2.4,
        title=textwrap.fill(title, int(11.5 * figure.get_figwidth())) or None,
        title_fontproperties={"size": 10.5, "weight": "bold"},
        alignment="left",
    )


def footnote(figure: Figure, text: str) -> None:
    """Write a note below a figure."""
    figure.supxlabel(text, x=0.995, ha="right", fontsize=7.5, color=QUIET)
