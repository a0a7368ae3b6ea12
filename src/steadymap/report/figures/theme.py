"""Style, colors and axes shared by all figures."""

import io
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from PIL import Image

from steadymap.analysis.readings import MEASURES
from steadymap.store.atomic import atomic_file

DPI = 144

_MAX_BYTES = 300_000

INK, QUIET, FRAME = "#22272e", "#6a737d", "#111111"

NOT_DRAWN = ("dynamic_range", "pearson")

# What the paper's bar charts show, and with which convention.
BARS = (("spearman", None, "Spearman"), ("hog_pearson", None, "HOG-Pearson"))

_UNITS = {
    "n_samples": "noise samples",
    "n_trials": "baselines",
    "n_steps": "steps",
    "n_iterations": "steps",
    "n_superpixels": "superpixels",
    "patch_size": "pixels",
    "stride": "pixels",
    "blur_radius": "pixels",
    "sigma": "share of the image's value range",
}

# Dark for a regular model, light of the same hue for its robust twin.
HUES = (
    ("#175a94", "#7db4e0"),
    ("#b3470a", "#f2a65e"),
    ("#1f7a5c", "#7fcfae"),
    ("#6d4390", "#bf9fd8"),
    ("#6b5d15", "#cdbb55"),
    ("#8f1d4d", "#dd8fb2"),
)

# Few colors make small files: 65 of them in pictures of many maps.
COARSE = 4

# Exactly white at 0, which an even number of colors can't be.
HEAT = LinearSegmentedColormap.from_list(
    "blue-white-red",
    ["#053061", "#2166ac", "#74add1", "#ffffff", "#f08a62", "#b2182b", "#67001f"],
    N=257,
).with_extremes(bad="#b9bdc2")


@dataclass(frozen=True)
class Style:
    """Color, line and marker of a model."""

    color: str
    linestyle: Any
    marker: str
    hatch: str

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

    def styles(self, names: Iterable[str]) -> dict[str, Style]:
        """Colors, lines and markers of the models named, robust twins behind regular models."""
        names = model_order(names)
        found = _styles(self.models or names)
        return {name: found[name] for name in names}


PLAIN = Look()


def patches(styles: Mapping[str, Style]) -> list[Patch]:
    """Legend handles of filled areas, one per model."""
    return [
        Patch(facecolor=s.color, hatch=s.hatch, edgecolor="white", linewidth=0, label=name)
        for name, s in styles.items()
    ]


def panel_grid(
    n: int, *, height: float, extra: float, sharex: bool = True, width: float = 2.45
) -> tuple[Figure, list[Axes]]:
    """Small multiples with a shared vertical axis; `extra` inches are for what stands around."""
    columns = 3 if n in (5, 6, 9) else min(n, 4)
    lines = -(-n // columns)
    size = max(width * columns + 0.5, 5.4), height * lines + extra
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.06))
    axes = figure.subplots(lines, columns, squeeze=False, sharex=sharex, sharey=True)
    for axis in list(axes.flat)[n:]:
        axis.set_axis_off()
    # The lowest of each column has the labels, whatever is switched off below it.
    for axis in list(axes.flat)[max(n - columns, 0) : n]:
        axis.tick_params(labelbottom=True)
    return figure, list(axes.flat)[:n]


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
    with theme():
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


@contextmanager
def theme() -> Iterator[None]:
    """One look, whatever the user's matplotlibrc says; the font is the one matplotlib ships."""
    rc = {
        **sns.plotting_context("paper"),
        **sns.axes_style("whitegrid"),
        "font.family": "DejaVu Sans",
        "font.size": 9.0,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.labelsize": 9.0,
        "axes.edgecolor": "#9aa1a9",
        "axes.labelcolor": INK,
        "axes.linewidth": 0.8,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#e7eaee",
        "grid.linewidth": 0.8,
        "hatch.linewidth": 0.9,
        "legend.frameon": False,
        "legend.fontsize": 9.0,
        "text.color": INK,
        "xtick.color": INK,
        "xtick.labelsize": 8.5,
        "ytick.color": INK,
        "ytick.labelsize": 8.5,
    }
    with style.context(["default", rc]):
        yield


def model_order(models: Any) -> list[str]:
    """Models as given, each once, every robust twin behind its regular one."""
    names = list(dict.fromkeys(models))
    families = list(dict.fromkeys(name.removesuffix("-r") for name in names))
    return [name for family in families for name in (family, f"{family}-r") if name in names]


def _styles(models: Any) -> dict[str, Style]:
    families = list(dict.fromkeys(name.removesuffix("-r") for name in models))
    markers = "oDs^vP"
    found = {}
    for index, family in enumerate(families):
        dark, light = HUES[index % len(HUES)]
        marker = markers[index % len(markers)]
        found[family] = Style(dark, "-", marker, "")
        found[f"{family}-r"] = Style(light, "--", marker, "////")
    return found


def select(frame: pd.DataFrame, metric: str, convention: str | None) -> pd.DataFrame:
    """Rows of one metric and convention."""
    chosen = frame["metric"] == metric
    if convention is not None:
        chosen &= frame["convention"] == convention
    return frame[chosen]


def measure_label(metric: str, convention: str | None) -> str:
    """Axis label of a measure."""
    for key in ((metric, convention), (metric, None)):
        if key in MEASURES:
            return MEASURES[key]
    return f"{metric} ({convention})" if convention else metric


NOTHING = "No map pair with a defined score: nothing to draw."

STAR = "; star: the reference, 1 by definition"


def sample_note(rows: pd.DataFrame, look: Look) -> str:
    """Number of images and level of the intervals, for a figure's foot."""
    return f"{n_images(rows)}; bars: {look.percent} intervals"


def n_images(rows: pd.DataFrame) -> str:
    """Number of images as text."""
    counts = sorted({int(count) for count in rows["n_images"]})
    if not counts:
        return "n = 0 images"
    return f"n = {counts[0]}" + (f" to {counts[-1]}" if len(counts) > 1 else "") + " images"


def value_label(rows: pd.DataFrame, sweep: str) -> str:
    """Axis label of a sweep's hyperparameter, with its unit."""
    name = rows.loc[rows["sweep"] == sweep, "hyperparameter"].iloc[0]
    return f"{name} ({_UNITS[name]})" if name in _UNITS else name


def reference_value(settings: pd.DataFrame, sweep: str) -> str | None:
    """Value of the reference, which only the dynamic range has a row for."""
    chosen = settings[(settings["sweep"] == sweep) & settings["is_reference"].astype(bool)]
    return None if chosen.empty else str(chosen["value"].iloc[0])


def as_number(value: str) -> float:
    """Value as a finite number, else NaN."""
    try:
        number = float(value)
    except ValueError:
        return float("nan")
    return number if np.isfinite(number) else float("nan")


@dataclass(frozen=True)
class _Values:
    """Where each value of a sweep is drawn; words, and numbers too close, at equal steps."""

    places: dict[str, float]
    log: bool = False
    joined: bool = True


def axis_values(rows: pd.DataFrame, reference: str | None) -> _Values:
    """Places of a sweep's values on an axis."""
    names = list(dict.fromkeys([*rows["value"], *([] if reference is None else [reference])]))
    numbers = [as_number(name) for name in names]
    numeric = bool(np.isfinite(numbers).all())
    if numeric:
        names = [name for _, name in sorted(zip(numbers, names, strict=True))]
        numbers = sorted(numbers)
        log = numbers[0] > 0 and numbers[-1] / numbers[0] >= 8
        scale = np.log10(numbers) if log else np.asarray(numbers)
        if len(names) > 1 and np.diff(scale).min() > 0.03 * (scale[-1] - scale[0]):
            joined = rows["hyperparameter"].iloc[0] != "seed"
            return _Values(dict(zip(names, numbers, strict=True)), log, joined)
    return _Values({name: float(place) for place, name in enumerate(names)}, joined=numeric)


def curve(
    axis: Axes,
    rows: pd.DataFrame,
    reference: str | None,
    styles: Mapping[str, Style],
    *,
    few: bool = False,
) -> None:
    """Draw a sweep's means with intervals, a line per model."""
    values = axis_values(rows, reference)
    names = model_order(rows["model"])
    for index, name in enumerate(names):
        offset = (index - (len(names) - 1) / 2) * 0.014
        own = rows[rows["model"] == name]
        errorbars(axis, own, values, styles[name], offset=offset, reference=reference)
    value_axis(axis, values, reference, few=few)


def errorbars(
    axis: Axes,
    rows: pd.DataFrame,
    values: _Values,
    shade: Style,
    *,
    offset: float = 0.0,
    reference: str | None = None,
) -> None:
    """Points with intervals, joined by a line that runs through (reference, 1) where given."""
    if rows.empty:
        return
    rows = rows.assign(place=[values.places[value] for value in rows["value"]])
    rows = rows.sort_values("place", kind="stable")
    places = rows["place"].to_numpy(float)
    mean = rows["mean"].to_numpy(float)
    low, high = rows["ci_low"].to_numpy(float), rows["ci_high"].to_numpy(float)
    peak = None if reference is None else values.places[reference]
    # Models are set apart sideways by a share of the axis, so that their bars don't cover.
    span = np.asarray(list(values.places.values()))
    if values.log:
        places = places * (span.max() / span.min()) ** offset
    else:
        places = places + offset * max(span.max() - span.min(), 1e-9)
    bars = np.nan_to_num(np.clip([mean - low, high - mean], 0, None))
    axis.errorbar(
        places,
        mean,
        yerr=bars,
        color=shade.color,
        linestyle="none",
        marker=shade.marker,
        markersize=5,
        elinewidth=1.2,
        capsize=2.5,
    )
    if not values.joined:
        return
    if peak is None or peak in rows["place"].to_numpy():
        axis.plot(places, mean, color=shade.color, linestyle=shade.linestyle, linewidth=1.6)
        return
    # Towards the reference, where a map is compared with itself, the line only leads the eye.
    before = rows["place"].to_numpy() < peak
    for side in (before, ~before):
        axis.plot(
            places[side], mean[side], color=shade.color, linestyle=shade.linestyle, linewidth=1.6
        )
    for side, nearest in ((before, -1), (~before, 0)):
        if side.any():
            axis.plot(
                [places[side][nearest], peak],
                [mean[side][nearest], 1],
                color=shade.color,
                linestyle=shade.linestyle,
                linewidth=0.9,
                alpha=0.55,
            )


def value_axis(axis: Axes, values: _Values, reference: str | None, *, few: bool = False) -> None:
    """Set up the axis of a sweep's values and mark the reference."""
    if values.log:
        axis.set_xscale("log")
    if reference is not None:
        axis.axvline(values.places[reference], color=QUIET, linestyle=":", linewidth=1.2, zorder=0)
        axis.plot(
            values.places[reference],
            1,
            marker="*",
            color=QUIET,
            markersize=8,
            clip_on=False,
            linestyle="none",
        )
    shown = _apart(values, room=4 if few else 8, always=reference)
    axis.set_xticks([values.places[name] for name in shown], shown)
    axis.minorticks_off()
    places = np.asarray(list(values.places.values()))
    if values.log:
        reach = (places.max() / places.min()) ** 0.09
        axis.set_xlim(places.min() / reach, places.max() * reach)
    else:
        reach = 0.09 * (places.max() - places.min()) or 0.5
        axis.set_xlim(places.min() - reach, places.max() + reach)
    if any(len(name) > 7 for name in shown):
        axis.tick_params(axis="x", rotation=30)
    axis.grid(False, axis="x")


def _apart(values: _Values, *, room: int, always: str | None) -> list[str]:
    """Values whose labels have room beside each other, the reference among them."""
    names = list(values.places)
    places = np.asarray(list(values.places.values()))
    places = np.log(places) if values.log else places
    span = (places.max() - places.min()) or 1.0
    wanted = [names.index(always)] if always in names else []
    shown: list[int] = []
    for place in [*wanted, 0, len(names) - 1, *range(len(names))]:
        if all(abs(places[place] - places[other]) > 0.8 * span / room for other in shown):
            shown.append(place)
    return [names[place] for place in sorted(shown)]


def limit_similarity(axis: Axes, rows: pd.DataFrame) -> None:
    """Upper end just above 1, where identical maps are; lower end below every interval."""
    values = rows[["mean", "ci_low"]].to_numpy(float)
    lowest = float(np.nanmin(values)) - 0.02
    step = 0.1 if lowest > 0.5 else 0.2
    axis.set_ylim(min(0.8, np.floor(lowest / step) * step), 1.03)


def legend(
    figure: Figure,
    look: Look,
    models: Iterable[str],
    *,
    lines: bool,
    title: str = "",
    extra: Sequence[Any] = (),
) -> None:
    """Say above a figure what it shows, which models, and what else is to be told apart."""
    styles = look.styles(models)
    handles: list[Any] = patches(styles)
    if lines:
        handles = [
            Line2D([], [], color=s.color, linestyle=s.linestyle, marker=s.marker, ms=5, label=name)
            for name, s in styles.items()
        ]
    headed(figure, title, [*handles, *extra])


def headed(figure: Figure, title: str, handles: Sequence[Any]) -> None:
    """Title and legend above a figure, in as many columns as it has room for."""
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


def plural(n: int, noun: str) -> str:
    """Number with its noun, in the plural where it is not 1."""
    return f"{n} {noun}{'' if n == 1 else 's'}"


def footnote(figure: Figure, text: str) -> None:
    """Write a note below a figure."""
    figure.supxlabel(text, x=0.995, ha="right", fontsize=7.5, color=QUIET)


def placeholder(text: str) -> Figure:
    """Stand in for a figure that can't be drawn."""
    with theme():
        figure = Figure(figsize=(8, 0.8 + 0.2 * text.count("\n")))
        figure.text(0.5, 0.5, text, ha="center", va="center", color=QUIET)
    return figure


def canvas(figure: Figure, width: float, height: float) -> Axes:
    """Axes measured in inches from the upper left corner."""
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, width), ylim=(height, 0))
    axis.set_axis_off()
    return axis
