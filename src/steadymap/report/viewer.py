"""The report's map viewer: every map of every sweep in one page, with its scores.

Maps are 8-bit PNG sheets in data URIs, a sheet per sweep and model, its lines images and its
columns settings; a script colors what is looked at (`viewer.js`). `document` puts all of it into
the page.
"""

import base64
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import yaml
from numpy.typing import NDArray
from PIL import Image

from steadymap.analysis import readings
from steadymap.analysis.readings import sweep_anchor
from steadymap.report import document
from steadymap.report.document import Live
from steadymap.report.figures import theme
from steadymap.report.study import Study, as_text, by_key, text_of, true
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table

MAX_BYTES = 6_000_000

_MAX_SIDE, _MAX_PHOTO_SIDE = 112, 128

_RAMP = [1, 32, 64, 96, 128, 160, 192, 224, 255]

# Share of a byte that a pixel of a map takes as base64 of PNG, measured on noisy maps: the first
# guess of how many images there is room for.
_BYTES_PER_PIXEL = 0.9

# Scores beside the maps; without a convention, of any.
_METRICS: list[dict[str, Any]] = yaml.safe_load(document.text_file("figures.yaml"))["viewer"]

# Of a map: `degenerate`; of a map and its reference: `inverted`. Rows of scores that say so.
_FLAGS = {"degenerate": ("dynamic_range", None), "inverted": ("ssim", "headline")}


def fragment(model: str, sweep: str, image_id: str) -> str:
    """Part of the report's address, behind `#`, that opens the viewer at these maps.

    Parameters
    ----------
    model, sweep, image_id
        What the viewer shows.
    """
    return "viewer=" + "/".join(quote(part, safe="") for part in (model, sweep, image_id))


@dataclass(frozen=True)
class _Sweep:
    """A sweep, or a method without a hyperparameter, whose maps are shown.

    Attributes
    ----------
    name, sweep : str
        As shown (a method's, where there is no hyperparameter), and as the tables have it.
    method, hyperparameter : str
    values : sequence of str
        In order; one empty value where there is no hyperparameter.
    reference : str or None
    tasks : mapping
        Row of the table of tasks by model and value.
    maps : Maps
    models : sequence of str
        Those with maps.
    """

    name: str
    sweep: str
    method: str
    hyperparameter: str
    values: Sequence[str]
    reference: str | None
    tasks: Mapping[tuple[str, str], Mapping[str, Any]]
    maps: Maps
    models: Sequence[str]


def view(study: Study, *, max_bytes: int = MAX_BYTES) -> Live | None:
    """Viewer of the study's maps; None where it has none.

    Parameters
    ----------
    study : Study
    max_bytes : int
        What all sheets may take in the page. Where the study has more, images are left out: those
        kept are spread evenly over the ranking by mean SSIM, both ends included.

    Returns
    -------
    Live or None
    """
    sweeps = _sweeps(study)
    if not sweeps:
        return None
    ranking = _ranking(study)
    kept = ranking[_spread(len(ranking), _room(sweeps, len(ranking), max_bytes))]
    while True:
        sheets = _sheets(study, sweeps, list(kept))
        size = sum(len(source) for source in sheets.values())
        if size <= max_bytes or len(kept) == 1:
            break
        n = max(1, min(len(kept) - 1, int(len(kept) * max_bytes / size)))
        kept = ranking[_spread(len(ranking), n)]
    data = json.dumps(_data(study, sweeps, list(kept)), ensure_ascii=False, separators=(",", ":"))
    markup = document.render(
        "viewer.html.jinja",
        # A script element ends at "</", wherever it stands.
        data=data.replace("</", "<\\/"),
        sheets=sheets,
        words=_caption(study, ranking, kept),
        ramp=[f"rgb{tuple(color)}" for color in _colors()[_RAMP].tolist()],
    ).rstrip("\n")
    return Live(
        markup=markup,
        script=document.text_file("viewer.js"),
        style=document.text_file("viewer.css"),
        text="`report.html` has a viewer: the maps of all settings side by side, for every model, "
        "sweep and image.",
    )


def _caption(study: Study, ranking: NDArray[Any], kept: NDArray[Any]) -> str:
    """What the viewer lacks."""
    sentences = []
    if len(kept) < len(ranking):
        left_out = [name for name in ranking if name not in set(kept)]
        names = ", ".join(left_out[:12]) + (" and more" if len(left_out) > 12 else "")
        sentences.append(
            f"{len(kept)} of {len(ranking)} images, spread evenly from the least to the most "
            f"stable, as there is no room for more; left out: {names}."
        )
    if not study.shows_photos:
        sentences.append("The photographs are not shown: they are not ours to publish.")
    elif not study.pixels:
        sentences.append("The images are not at hand.")
    return " ".join(sentences)


def _sweeps(study: Study) -> list[_Sweep]:
    """Sweeps that have maps, the most moving first, then methods without a hyperparameter."""
    entries: list[tuple[Any, ...]] = [
        (name, name, *study.about(name), *study.values(name), study.shared_tasks(name))
        for name in dict.fromkeys([*study.headline["sweep"], *study.sweeps])
    ]
    plain = study.table("tasks").query("hyperparameter == ''").assign(value="")
    entries += [
        (method, sweep, method, "", [""], None, rows)
        for (sweep, method), rows in plain.groupby(["sweep", "method"], sort=False)
    ]
    sweeps = []
    for name, sweep, method, hyperparameter, values, reference, rows in entries:
        maps, tasks = study.maps(method), by_key(rows, "model", "value")
        computed = {model for model, value in tasks if value in values}
        models = [name for name in study.models if maps and name in computed & set(maps.models)]
        if maps and models:
            about = name, sweep, method, hyperparameter
            sweeps.append(_Sweep(*about, values, reference, tasks, maps, models))
    return sweeps


def _ranking(study: Study) -> NDArray[Any]:
    """Image ids, the least stable (mean SSIM over everything) first."""
    rows = study.headline_rows("images")
    ids = pd.Index(list(study.facts)).sort_values()
    means = rows.groupby("image_id")["mean"].mean().reindex(ids)
    return means.sort_values(kind="stable", na_position="last").index.to_numpy(object)


def _spread(n: int, kept: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, n - 1, max(1, min(n, kept)))})


def _room(sweeps: Sequence[_Sweep], n: int, max_bytes: int) -> int:
    """Images that may fit, so that not all of a large study is encoded to find out."""
    n_maps = sum(len(sweep.values) * len(sweep.models) for sweep in sweeps)
    side = min(_MAX_SIDE, _shape(sweeps[0].maps)[-1])
    return min(n, max(1, math.ceil(3 * max_bytes / (n_maps * side * side * _BYTES_PER_PIXEL))))


def _shape(maps: Maps) -> tuple[int, int]:
    """Height and width of the maps of an archive."""
    height, width = np.load(maps.folder / f"{maps.models[0]}.npy", mmap_mode="r").shape[-2:]
    return int(height), int(width)


def _stack(sweep: _Sweep, model: str, ids: Sequence[str]) -> NDArray[Any]:
    """Maps of a sweep and model, float64 (settings, images, side, side); NaN where none is."""
    stack = np.full((len(sweep.values), len(ids), *_shape(sweep.maps)), np.nan)
    positions = pd.Index(sweep.maps.image_ids).get_indexer(list(ids))
    for index, value in enumerate(sweep.values):
        if (model, value) in sweep.tasks:
            hyperparameters = json.loads(sweep.tasks[model, value]["hyperparameters"])
            maps = np.asarray(sweep.maps.read(model, hyperparameters))
            stack[index, positions >= 0] = maps[positions[positions >= 0]]
    return _smaller(stack)


def _smaller(stack: NDArray[Any]) -> NDArray[Any]:
    """Means of squares of pixels, where maps are larger than is shown; short edges repeated."""
    factor = math.ceil(max(stack.shape[-2:]) / _MAX_SIDE)
    if factor == 1:
        return stack
    pad = [(0, -length % factor) for length in stack.shape[-2:]]
    stack = np.pad(stack, [(0, 0)] * (stack.ndim - 2) + pad, mode="edge")
    *most, height, width = stack.shape
    parts = stack.reshape(*most, height // factor, factor, width // factor, factor)
    return np.asarray(parts.mean(axis=(-3, -1)))


def _levels(stack: NDArray[Any]) -> tuple[NDArray[np.uint8], NDArray[Any]]:
    """Maps as levels (128 is 0, 1 and 255 the ends, 0 not finite), and their largest values."""
    finite = np.isfinite(stack)
    largest = np.where(finite, np.abs(stack), 0).max(axis=(-2, -1), initial=0.0)
    scale = np.where(largest > 0, largest, 1.0)[..., None, None]
    levels = 128 + np.round(127 * np.where(finite, stack, 0) / scale)
    return np.where(finite, levels, 0).astype(np.uint8), largest


def _sheet_id(sweep: _Sweep, model: str) -> str:
    return f"viewer-{sweep.name}-{model}"


def _sheets(study: Study, sweeps: Sequence[_Sweep], ids: Sequence[str]) -> dict[str, str]:
    """Data URIs by element id: lines are images, columns settings."""
    sheets = {}
    for sweep in sweeps:
        for model in sweep.models:
            levels, _ = _levels(_stack(sweep, model, ids))
            n_settings, n_images, height, width = levels.shape
            sheet = levels.transpose(1, 2, 0, 3).reshape(n_images * height, n_settings * width)
            sheets[_sheet_id(sweep, model)] = _source(sheet)
    if study.pixels:
        blank = np.full_like(next(iter(study.pixels.values())), 255)
        size = (_photo_side(study),) * 2
        photos = [
            Image.fromarray(np.asarray(study.pixels.get(name, blank))).resize(
                size, Image.Resampling.LANCZOS
            )
            for name in ids
        ]
        sheets["viewer-photos"] = _source(np.concatenate([np.asarray(photo) for photo in photos]))
    return sheets


def _photo_side(study: Study) -> int:
    return min(_MAX_PHOTO_SIDE, next(iter(study.pixels.values())).shape[0])


def _source(pixels: NDArray[Any]) -> str:
    return document.data_uri(theme.png(Image.fromarray(pixels)))


def _data(study: Study, sweeps: Sequence[_Sweep], ids: Sequence[str]) -> dict[str, Any]:
    """What the script reads: names, scores and amplitudes, by sweep, model, setting and image."""
    tables = _score_tables(study)
    shown = bool(study.pixels)
    full_side = next(iter(study.pixels.values())).shape[0] if shown else 0
    sides = {"side": _photo_side(study), "of": full_side} if shown else None
    return {
        "models": [name for name in study.models if any(name in s.models for s in sweeps)],
        "first": [_worst_model(study, sweeps[0]), sweeps[0].name],
        "metrics": [
            {key: metric[key] for key in ("name", "label", "words", "digits")}
            for metric in _METRICS
        ],
        "images": [_image(study, name, boxed=shown) for name in ids],
        "predicted": _predicted(study, ids),
        "sweeps": [
            {
                "name": sweep.name,
                "method": sweep.method,
                "hyperparameter": sweep.hyperparameter,
                "values": sweep.values,
                "reference": next(
                    (i for i, v in enumerate(sweep.values) if v == sweep.reference), None
                ),
                "anchor": sweep_anchor(sweep.name) if sweep.hyperparameter else "",
                "models": {name: _model_data(tables, sweep, name, ids) for name in sweep.models},
            }
            for sweep in sweeps
        ],
        "side": _smaller(np.empty(_shape(sweeps[-1].maps))).shape[-1],
        "photos": sides,
        "palette": base64.b64encode(_colors().tobytes()).decode(),
    }


def _model_data(
    tables: Mapping[tuple[str, ...], pd.DataFrame], sweep: _Sweep, model: str, ids: Sequence[str]
) -> dict[str, Any]:
    """Scores, flags and amplitudes of a sweep's maps of one model, settings by images."""

    def table(name: str) -> pd.DataFrame:
        scores = tables.get((sweep.sweep, sweep.method, model, name), pd.DataFrame(dtype=float))
        return scores.reindex(index=sweep.values, columns=ids)

    # Not numpy's rounding, which goes astray in the last digit.
    names = [metric["name"] for metric in _METRICS]
    scores = {name: table(name).map(lambda score: round(float(score), 4)) for name in names}
    means = scores["ssim"].mean().to_numpy()
    _, amplitude = _levels(_stack(sweep, model, ids))
    return {
        "sheet": _sheet_id(sweep, model),
        "scores": {
            name: [_cells(line) for line in frame.to_numpy()]
            for name, frame in scores.items()
            if frame.notna().to_numpy().any()
        },
        "amplitude": [[float(f"{v:.4g}") for v in line] for line in amplitude],
        **{flag: table(flag).fillna(0).to_numpy(int).tolist() for flag in _FLAGS},
        "means": _cells(means),
        # Images without a score are last.
        "ranking": np.argsort(means, kind="stable").tolist(),
    }


def _cells(numbers: NDArray[Any]) -> list[float | None]:
    return [None if math.isnan(value) else round(float(value), 4) for value in numbers]


def _worst_model(study: Study, sweep: _Sweep) -> str:
    """Model whose maps the sweep moves most."""
    rows = study.headline[study.headline["sweep"] == sweep.name].dropna(subset=["mean"])
    rows = rows[rows["model"].isin(sweep.models)]
    rows = rows.sort_values(["degree", "mean"], ascending=[False, True])
    return str(rows["model"].iloc[0]) if len(rows) else sweep.models[0]


def _image(study: Study, image_id: str, *, boxed: bool) -> dict[str, Any]:
    about = {"id": image_id, "class": text_of(study.facts.get(image_id, {}), "class_name")}
    box = study.box(image_id) if boxed else None
    return about | ({"box": list(box)} if box else {})


def _predicted(study: Study, ids: Sequence[str]) -> dict[str, list[str | None]]:
    """Class that each model predicts for each image; empty where that is not at hand."""
    path = study.results / "evaluation_set" / "targets.csv"
    if not path.is_file():
        return {}
    names = dict(enumerate(study.description.get("classes", [])))
    classes: dict[str, dict[str, str]] = {}
    for row in read_table(path).itertuples():
        name = str(names.get(int(row.prediction), row.prediction))
        classes.setdefault(str(row.model), {})[str(row.image_id)] = name
    return {model: [by_image.get(name) for name in ids] for model, by_image in classes.items()}


def _colors() -> NDArray[np.uint8]:
    """RGB by level, (256, 3); gray for what is not finite."""
    colors = theme.HEAT((np.arange(1, 256) - 128) / 254 + 0.5)[:, :3]
    gray = np.array(theme.HEAT(np.nan))[None, :3]
    return np.round(255 * np.concatenate([gray, colors])).astype(np.uint8)


def _score_tables(study: Study) -> dict[tuple[str, ...], pd.DataFrame]:
    """Tables of values by images, by sweep, method, model and metric or flag; flags as 0 or 1."""
    path = study.results / "scores.parquet"
    if not path.is_file():
        return {}
    frame = readings.nested_draws(read_table(path))
    names = ["sweep", "method", "model", "value", "image_id"]
    frame = frame.assign(**{name: as_text(frame[name]) for name in names})
    conventions = {"headline": study.convention, "alpha": study.alpha}
    measures = [(one["name"], one.get("convention"), "score", one["name"]) for one in _METRICS]
    measures += [(metric, convention, flag, flag) for flag, (metric, convention) in _FLAGS.items()]
    tables = {}
    for metric, convention, column, name in measures:
        rows = theme.select(frame, metric, conventions.get(str(convention), convention))
        numbers = rows[column] if column == "score" else true(rows[column])
        rows = rows.assign(number=numbers.astype(float).replace([np.inf, -np.inf], np.nan))
        for key, group in rows.drop_duplicates(names).groupby(names[:3], sort=False):
            table = group.pivot(index="value", columns="image_id", values="number")
            tables[(*(str(part) for part in key), name)] = table
    return tables
