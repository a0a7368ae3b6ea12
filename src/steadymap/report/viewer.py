"""The report's map viewer: every map of every sweep in one page, with its scores.

Maps are 8-bit PNG sheets in data URIs, a sheet per sweep and model, its lines images and its
columns settings; a script colors what is looked at (`viewer.js`). `document` puts all of it into
the page.
"""

import base64
import io
import json
import math
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any
from urllib.parse import quote

import jinja2
import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image

from steadymap.analysis import readings
from steadymap.analysis.readings import sweep_anchor
from steadymap.report.document import Live
from steadymap.report.figures import theme
from steadymap.report.study import Study, by_key, records, text_of, true
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table

MAX_BYTES = 6_000_000

_MAX_SIDE, _MAX_PHOTO_SIDE = 112, 128

_RAMP = [1, 32, 64, 96, 128, 160, 192, 224, 255]

# Share of a byte that a pixel of a map takes as base64 of PNG, measured on noisy maps: the first
# guess of how many images there is room for.
_BYTES_PER_PIXEL = 0.9

# Name, convention (None: any), label, words, digits.
_METRICS = (
    ("ssim", "headline", "SSIM", "to the reference map; higher: moved less", 3),
    ("spearman", None, "Spearman", "rank correlation with the reference map", 3),
    ("hog_pearson", None, "HOG", "Pearson correlation of HOG features with the reference map's", 3),
    ("insertion", "auc_over_max", "insertion", "higher is better", 3),
    ("deletion", "auc_over_max", "deletion", "lower is better", 3),
    ("iou", "alpha", "IoU", "of the map's box and the object's; higher is better", 2),
)

# Of a map: `degenerate`; of a map and its reference: `inverted`. Rows of scores that say so.
_FLAGS = {"degenerate": ("dynamic_range", None), "inverted": ("ssim", "headline")}


def fragment(model: str, sweep: str, image_id: str) -> str:
    """Part of the report's address, behind `#`, that opens the viewer at these maps."""
    return "viewer=" + "/".join(quote(part, safe="") for part in (model, sweep, image_id))


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
    kept = ranking[_spread(len(ranking), _room(study, sweeps, len(ranking), max_bytes))]
    while True:
        sheets = _sheets(study, sweeps, list(kept))
        size = sum(len(source) for source in sheets.values())
        if size <= max_bytes or len(kept) == 1:
            break
        n = max(1, min(len(kept) - 1, int(len(kept) * max_bytes / size)))
        kept = ranking[_spread(len(ranking), n)]
    data = _data(study, sweeps, list(kept))
    words = _words(study, ranking, kept)
    template = resources.files("steadymap.report").joinpath("viewer.html.jinja").read_text("utf-8")
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    markup = environment.from_string(template).render(
        # A script element ends at "</", wherever it stands.
        data=json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/"),
        sheets=sheets,
        words=words,
        ramp=[f"rgb{tuple(color)}" for color in _colors()[_RAMP].tolist()],
    )
    return Live(
        markup=markup,
        script=resources.files("steadymap.report").joinpath("viewer.js").read_text("utf-8"),
        style=resources.files("steadymap.report").joinpath("viewer.css").read_text("utf-8"),
        text="`report.html` has a viewer: the maps of all settings side by side, for every model, "
        "sweep and image.",
    )


def _words(study: Study, ranking: NDArray[Any], kept: NDArray[Any]) -> str:
    words = []
    if len(kept) < len(ranking):
        left_out = [name for name in ranking if name not in set(kept)]
        named = ", ".join(left_out[:12]) + (" and more" if len(left_out) > 12 else "")
        words.append(
            f"{len(kept)} of {len(ranking)} images, spread evenly from the least to the most "
            f"stable, as there is no room for more; left out: {named}."
        )
    if not study.shows_photos:
        words.append("The photographs are not shown: they are not ours to publish.")
    elif not study.pixels:
        words.append("The images are not at hand.")
    return " ".join(words)


def _sweeps(study: Study) -> list[dict[str, Any]]:
    """Sweeps that have maps, the most moving first, then methods without a hyperparameter."""
    order = [*dict.fromkeys(study.headline["sweep"]), *study.sweeps]
    found = []
    for name in dict.fromkeys(order):
        method, hyperparameter = study.about(name)
        values, reference = study.values(name)
        tasks = by_key(study.shared_tasks(name), "model", "value")
        found.append(
            {
                "name": name,
                "sweep": name,
                "method": method,
                "hyperparameter": hyperparameter,
                "values": values,
            }
            | {"reference": reference, "tasks": tasks}
        )
    plain = study.table("tasks").query("hyperparameter == ''")
    for (sweep, method), own in plain.groupby(["sweep", "method"], sort=False):
        tasks = {(row["model"], ""): row for row in records(own)}
        found.append(
            {"name": method, "sweep": sweep, "method": method, "hyperparameter": "", "values": [""]}
            | {"reference": None, "tasks": tasks}
        )
    for one in found:
        maps = study.maps(one["method"])
        one["maps"] = maps
        one["models"] = (
            [
                model
                for model in study.models
                if model in maps.models
                and any((model, value) in one["tasks"] for value in one["values"])
            ]
            if maps
            else []
        )
    return [one for one in found if one["models"]]


def _ranking(study: Study) -> NDArray[Any]:
    """Image ids, the least stable (mean SSIM over everything) first."""
    rows = readings.headline_draws(study.table("images"))
    rows = rows[(rows["metric"] == "ssim") & (rows["convention"] == study.convention)]
    means = rows.dropna(subset=["mean"]).groupby("image_id")["mean"].mean()
    ids = list(study.facts)
    return np.array(sorted(ids, key=lambda name: (means.get(name, math.inf), name)), object)


def _spread(n: int, kept: int) -> list[int]:
    return sorted({round(place) for place in np.linspace(0, n - 1, max(1, min(n, kept)))})


def _room(study: Study, sweeps: Sequence[Mapping[str, Any]], n: int, max_bytes: int) -> int:
    """Images that may fit, so that not all of a large study is encoded to find out."""
    n_maps = sum(len(one["values"]) * len(one["models"]) for one in sweeps)
    maps: Maps = sweeps[0]["maps"]
    side = min(_MAX_SIDE, np.load(maps.folder / f"{maps.models[0]}.npy", mmap_mode="r").shape[-1])
    return min(n, max(1, math.ceil(3 * max_bytes / (n_maps * side * side * _BYTES_PER_PIXEL))))


def _stack(one: Mapping[str, Any], model: str, ids: Sequence[str]) -> NDArray[Any]:
    """Maps of a sweep and model, float64 (settings, images, side, side); NaN where none is."""
    maps: Maps = one["maps"]
    places = [maps.image_ids.index(name) if name in maps.image_ids else -1 for name in ids]
    stacks: list[NDArray[Any] | None] = []
    for value in one["values"]:
        row = one["tasks"].get((model, value))
        if row is None:
            stacks.append(None)
            continue
        read = maps.read(model, json.loads(row["hyperparameters"]))
        blank = np.full_like(read[0], np.nan)
        stacks.append(np.stack([read[at] if at >= 0 else blank for at in places]))
    like = next(stack for stack in stacks if stack is not None)
    whole = np.stack([np.full_like(like, np.nan) if s is None else s for s in stacks])
    return _smaller(whole.astype(np.float64))


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


def _sheet_id(one: Mapping[str, Any], model: str) -> str:
    return f"viewer-{one['name']}-{model}"


def _sheets(
    study: Study, sweeps: Sequence[Mapping[str, Any]], ids: Sequence[str]
) -> dict[str, str]:
    """Data URIs by element id: lines are images, columns settings."""
    found = {}
    for one in sweeps:
        for model in one["models"]:
            levels, _ = _levels(_stack(one, model, ids))
            n_settings, n_images, height, width = levels.shape
            sheet = levels.transpose(1, 2, 0, 3).reshape(n_images * height, n_settings * width)
            found[_sheet_id(one, model)] = _source(Image.fromarray(sheet))
    if study.shows_photos and study.pixels:
        blank = np.full_like(next(iter(study.pixels.values())), 255)
        photos = [np.asarray(study.pixels.get(name, blank)) for name in ids]
        side = _photo_side(study)
        small = [
            np.asarray(Image.fromarray(photo).resize((side, side), Image.Resampling.LANCZOS))
            if photo.shape[0] != side
            else photo
            for photo in photos
        ]
        found["viewer-photos"] = _source(Image.fromarray(np.concatenate(small)))
    return found


def _photo_side(study: Study) -> int:
    return min(_MAX_PHOTO_SIDE, next(iter(study.pixels.values())).shape[0])


def _source(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _data(study: Study, sweeps: Sequence[Mapping[str, Any]], ids: Sequence[str]) -> dict[str, Any]:
    """What the script reads: names, scores and amplitudes, by sweep, model, setting and image."""
    scores = _scores(study)
    side = 0
    told = []
    for one in sweeps:
        models = {}
        for model in one["models"]:
            stack = _stack(one, model, ids)
            side = stack.shape[-1]
            _, amplitude = _levels(stack)
            key = one["sweep"], one["method"], model
            tables = {
                name: _numbers(scores, (*key, name), one["values"], ids) for name, *_ in _METRICS
            }
            ssim = np.array(tables["ssim"], float) if tables["ssim"] else np.empty((0, len(ids)))
            known = np.isfinite(ssim).any(axis=0)
            means = np.full(len(ids), np.nan)
            means[known] = np.nanmean(ssim[:, known], axis=0)
            keyed = [(m if math.isfinite(m) else math.inf, at) for at, m in enumerate(means)]
            models[model] = {
                "sheet": _sheet_id(one, model),
                "scores": {name: table for name, table in tables.items() if table},
                "amplitude": [[float(f"{v:.4g}") for v in line] for line in amplitude],
                **{
                    flag: [
                        [int(scores.get((*key, flag, value, name), 0)) for name in ids]
                        for value in one["values"]
                    ]
                    for flag in _FLAGS
                },
                "means": [_rounded(mean) for mean in means],
                "ranking": [at for _, at in sorted(keyed)],
            }
        told.append(
            {
                **{name: one[name] for name in ("name", "method", "hyperparameter", "values")},
                "reference": one["values"].index(one["reference"])
                if one["reference"] in one["values"]
                else None,
                "anchor": sweep_anchor(one["name"]) if one["hyperparameter"] else "",
                "models": models,
            }
        )
    shown = study.shows_photos and bool(study.pixels)
    return {
        "models": [name for name in study.models if any(name in one["models"] for one in told)],
        "first": [_worst_model(study, told[0]), told[0]["name"]],
        "metrics": [
            {"name": name, "label": label, "words": words, "digits": digits}
            for name, _, label, words, digits in _METRICS
        ],
        "images": [_image(study, name, boxed=shown) for name in ids],
        "predicted": _predicted(study, ids),
        "sweeps": told,
        "side": side,
        "photos": {
            "side": _photo_side(study),
            "of": next(iter(study.pixels.values())).shape[0],
        }
        if shown
        else None,
        "palette": base64.b64encode(_colors().tobytes()).decode(),
    }


def _worst_model(study: Study, one: Mapping[str, Any]) -> str:
    """Model whose maps the sweep moves most."""
    rows = study.headline[study.headline["sweep"] == one["name"]].dropna(subset=["mean"])
    rows = rows[rows["model"].isin(list(one["models"]))]
    rows = rows.sort_values(["degree", "mean"], ascending=[False, True])
    return str(rows["model"].iloc[0]) if len(rows) else next(iter(one["models"]))


def _image(study: Study, image_id: str, *, boxed: bool) -> dict[str, Any]:
    about: dict[str, Any] = {
        "id": image_id,
        "class": text_of(study.facts.get(image_id, {}), "class_name"),
    }
    box = study.box(image_id) if boxed else None
    return about | ({"box": list(box)} if box else {})


def _predicted(study: Study, ids: Sequence[str]) -> dict[str, list[str | None]]:
    """Class that each model predicts for each image; empty where that is not at hand."""
    path = study.results / "evaluation_set" / "targets.csv"
    if not path.is_file():
        return {}
    names = dict(enumerate(study.description.get("classes", [])))
    found: dict[str, dict[str, str]] = {}
    for row in records(read_table(path)):
        name = str(names.get(int(row["prediction"]), row["prediction"]))
        found.setdefault(str(row["model"]), {})[str(row["image_id"])] = name
    return {model: [own.get(name) for name in ids] for model, own in found.items()}


def _colors() -> NDArray[np.uint8]:
    """RGB by level, (256, 3); gray for what is not finite."""
    colors = theme.HEAT((np.arange(1, 256) - 128) / 254 + 0.5)[:, :3]
    gray = np.array(theme.HEAT(np.nan))[None, :3]
    return np.round(255 * np.concatenate([gray, colors])).astype(np.uint8)


def _scores(study: Study) -> dict[tuple[str, ...], float]:
    """Score by sweep, method, model, metric, value and image; flags as 0 or 1."""
    path = study.results / "scores.parquet"
    if not path.is_file():
        return {}
    frame = readings.headline_draws(read_table(path))
    conventions = {"headline": study.convention, "alpha": study.alpha}
    found: dict[tuple[str, ...], float] = {}
    names = ["sweep", "method", "model", "value", "image_id"]
    wanted = [(metric, convention, "score", metric) for metric, convention, *_ in _METRICS]
    wanted += [(metric, convention, flag, flag) for flag, (metric, convention) in _FLAGS.items()]
    for metric, convention, column, label in wanted:
        rows = frame[frame["metric"] == metric]
        if convention is not None:
            rows = rows[rows["convention"] == conventions.get(convention, convention)]
        values = rows[column] if column == "score" else true(rows[column])
        columns = [rows[name].fillna("").astype(str) for name in names]
        for sweep, method, model, value, image_id, score in zip(*columns, values, strict=True):
            found.setdefault((sweep, method, model, label, value, image_id), float(score))
    return found


def _numbers(
    scores: Mapping[tuple[str, ...], float],
    key: tuple[str, ...],
    values: Sequence[str],
    ids: Sequence[str],
) -> list[list[float | None]]:
    """Scores of one metric, settings by images; [] where there is none."""
    table = [[_rounded(scores.get((*key, value, name))) for name in ids] for value in values]
    return table if any(cell is not None for line in table for cell in line) else []


def _rounded(value: Any) -> float | None:
    return None if value is None or pd.isna(value) or math.isinf(value) else round(float(value), 4)
