"""The SAM paper's figures by name, drawn from a study; where one can't be, the reason.

Which images are shown follows the paper's rules (docs/protocol.md), and captions say which.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from steadymap.analysis import readings
from steadymap.draws import derived_seed
from steadymap.report.figures import maps as figures_maps
from steadymap.report.figures import paper, training
from steadymap.report.figures.maps import Tile, TileRow
from steadymap.report.figures.sweeps import Figure
from steadymap.report.study import Study, as_text, corners, records, thin
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table

# Rows of Table S1.
TABLE_ROWS = ("SG", "SP-S", "SP-L", "LIME", "MP")

# Most maps beside an image, so that they stay large enough to be read.
_WIDEST = 6

_SHOWN_BY_NAME = ("SG-N", "SG-sigma", "SP-L", "SP-S", "LIME-seed", "LIME-N", "LIME-S")

_WORST = (*_SHOWN_BY_NAME, "MP-N", "MP-blur", "MP-seed")

_SHORT = {
    "gradient": "Grad",
    "input_x_gradient": "GI",
    "smoothgrad": "SG",
    "integrated_gradients": "IG",
    "guided_backprop": "GB",
    "sliding_patch": "SP",
    "lime": "LIME",
    "meaningful_perturbation": "MP",
}

_OWN_SCALE = "each map divided by its largest absolute value"

_ROW_SCALE = "one color scale per line of maps"


@dataclass(frozen=True)
class PaperFigure:
    """One of the paper's figures, as this study has it.

    Attributes
    ----------
    name : str
        `fig1` to `fig7`, `s1` to `s17`.
    shows : str
        What the paper's figure shows.
    figure : Figure or None
    caption : str
        With the rule that chose the images.
    reason : str
        Why there is no figure.
    """

    name: str
    shows: str
    figure: Figure | None = None
    caption: str = ""
    reason: str = ""

    @property
    def title(self) -> str:
        """As the paper calls it: `Fig. 3`, `Fig. S12`."""
        return f"Fig. {self.name.removeprefix('fig').upper()}"


class _AbsentError(LookupError):
    """What a figure needs and the study lacks."""


def draw(study: Study) -> Iterator[PaperFigure]:
    """All figures of the paper in its order, drawn or with the reason why not."""
    for name, (shows, made) in _FIGURES.items():
        try:
            figure, caption = made(study)
        except _AbsentError as absent:
            yield PaperFigure(name, shows, reason=str(absent))
        else:
            yield PaperFigure(name, shows, figure, caption)


# What figures are made of; each raises _AbsentError where the study lacks it.


def _sweep(study: Study, name: str) -> str:
    if name not in study.sweeps:
        raise _AbsentError(f"the study has no sweep {name}")
    return name


def _archive(study: Study, method: str, *place: str) -> Maps:
    maps = study.maps(method, *place)
    if maps is None:
        where = f" in comparisons/{'/'.join(place)}" if place else ""
        raise _AbsentError(f"no maps of {method} at hand{where}")
    return maps


def _pairs(study: Study) -> list[tuple[str, str]]:
    if not study.pairs:
        raise _AbsentError("the study has no regular model with its robust twin")
    return study.pairs


def _regular(study: Study) -> list[str]:
    found = [name for name in study.models if not name.endswith("-r")]
    if not found:
        raise _AbsentError("the study has no regular model")
    return found


def _heatmap(maps: Maps, model: str, hyperparameters: Any, image_id: str) -> NDArray[Any]:
    if image_id not in maps.image_ids:
        raise _AbsentError(f"no maps of image {image_id} by {maps.method}")
    try:
        stack = maps.read(model, hyperparameters)
    except KeyError:
        raise _AbsentError(f"no maps of {maps.method} on {model} with these settings") from None
    return np.asarray(stack[maps.image_ids.index(image_id)])


def _plain(study: Study, method: str) -> dict[str, Any]:
    """Hyperparameters of a method's first setting."""
    tasks = study.table("tasks")
    rows = tasks[tasks["method"] == method]
    if rows.empty:
        raise _AbsentError(f"the study has no {method}")
    return dict(json.loads(rows["hyperparameters"].iloc[0]))


def _settings(study: Study, sweep: str, model: str) -> dict[str, dict[str, Any]]:
    """Hyperparameters by value, in order, of one model."""
    rows = study.shared_tasks(sweep)
    rows = rows[rows["model"] == model].drop_duplicates("value")
    made = dict(zip(rows["value"], rows["hyperparameters"], strict=True))
    return {v: json.loads(made[v]) for v in study.values(sweep)[0] if v in made}


def _first_image(study: Study, after: int = 0) -> str:
    ids = list(study.facts)
    if len(ids) <= after:
        raise _AbsentError(f"the evaluation set has {len(ids)} images")
    return str(ids[after])


def _random_images(study: Study, name: str, n: int) -> list[str]:
    ids = sorted(study.facts)
    rng = np.random.default_rng(derived_seed("paper", study.name, name))
    return [ids[place] for place in sorted(rng.permutation(len(ids))[:n])]


def _photo(study: Study, image_id: str) -> Tile | None:
    pixels = study.pixels.get(image_id)
    return None if pixels is None else Tile(np.asarray(pixels), box=study.box(image_id))


def _by_image(study: Study, sweep: str, metric: str) -> pd.DataFrame:
    """Mean per image (line) and model (column) of a sweep."""
    rows = study.headline_rows("images", metric, sweep)
    if rows["mean"].isna().all():
        raise _AbsentError(f"{sweep} has no {metric} scores")
    return rows.pivot_table(index="image_id", columns="model", values="mean").sort_index()


def _widest(study: Study, sweep: str) -> tuple[tuple[str, str], str, str]:
    """Pair and image of the largest robust-minus-regular SSIM, and the rule in words."""
    means = _by_image(study, sweep, "ssim")
    found: list[tuple[float, tuple[str, str], str, int]] = []
    for pair in _pairs(study):
        if set(pair) <= set(means):
            gap = (means[pair[1]] - means[pair[0]]).dropna()
            if len(gap):
                found.append((float(gap.max()), pair, str(gap.idxmax()), len(gap)))
    if not found:
        raise _AbsentError(f"{sweep} has no pair of twins with scores of the same image")
    gap, pair, image_id, n = max(found, key=lambda one: one[0])
    rule = (
        f"`{image_id}`, the largest SSIM of {pair[1]} minus {pair[0]} ({gap:+.2f}) of {n} images: "
        "an extreme"
    )
    return pair, image_id, rule


def _line(
    study: Study,
    sweep: str,
    model: str,
    image_id: str,
    *,
    image: bool = True,
    common_scale: bool = False,
    metric: str = "ssim",
    most: int = _WIDEST,
) -> TileRow:
    """Image and its map at each value, the score to the reference below."""
    method, hyperparameter = study.about(sweep)
    maps = _archive(study, method)
    made = _settings(study, sweep, model)
    reference = study.values(sweep)[1]
    stack = {v: _heatmap(maps, model, made[v], image_id) for v in thin(list(made), reference, most)}
    finite = [np.abs(m[np.isfinite(m)]).max(initial=0.0) for m in stack.values()]
    scale = float(max(finite, default=0.0)) or 1.0
    tiles: list[Tile | None] = [_photo(study, image_id) if image else None]
    for value, heatmap in stack.items():
        scored = study.score(sweep, image_id, model, value, metric)
        own = value == reference
        below = "reference" if own else _score(scored.score)
        tiles.append(
            Tile(
                heatmap,
                above=f"{hyperparameter} {value}" if len(tiles) == 1 else value,
                below=below + scored.marks,
                scale=scale if common_scale else None,
                framed=own,
            )
        )
    return TileRow(model, tiles)


def _score(score: float | None) -> str:
    if score is None:
        return ""
    # No -0.00.
    return f"{round(score, 2) + 0.0:.2f}" if np.isfinite(score) else "no score"


def _bars(study: Study, sweep: str) -> pd.DataFrame:
    """Rows of the sensitivity table that bars show."""
    rows = readings.headline_draws(study.table("sensitivity"))
    rows = rows[(rows["sweep"] == sweep) & rows["metric"].isin(["spearman", "hog_pearson", "ssim"])]
    if rows["mean"].isna().all():
        raise _AbsentError(f"{sweep} has no scores")
    return rows


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _below(study: Study, what: str = "the framed reference") -> str:
    return (
        f"below: SSIM ({study.convention}; higher: closer) to {what}; † degenerate, ‡ inverted map"
    )


# The figures, in the paper's order.

_TEASER = (
    ("smoothgrad", ("SG-N", "SG-sigma")),
    ("sliding_patch", ("SP-L", "SP-S")),
    ("lime", ("LIME-seed", "LIME-S", "LIME-N")),
    ("meaningful_perturbation", ("MP-blur", "MP-N", "MP-seed")),
)


def _fig1(study: Study) -> tuple[Figure, str]:
    image_id, model = _first_image(study), _regular(study)[0]
    rows: list[TileRow] = []
    lacking = []
    for method, sweeps in _TEASER:
        try:
            made = _teaser_maps(study, method, sweeps, model, image_id)
        except _AbsentError:
            lacking.append(method)
            continue
        tiles: list[Tile | None] = [_photo(study, image_id) if not rows else None]
        rows.append(
            TileRow(_SHORT.get(method, method), [*tiles, *(Tile(m, above=w) for w, m in made)])
        )
    if not rows:
        raise _AbsentError("no maps of the methods it shows at hand")
    notes = [f"{image_id}, {model}; {_OWN_SCALE}"]
    caption = (
        f"Maps of one prediction by {model} under settings that differ in one hyperparameter per "
        f"line; `{image_id}`, the first image of the evaluation set, not an extreme. "
        f"{_sentence(_OWN_SCALE)}."
    )
    if lacking:
        caption += f" Without maps here: {', '.join(lacking)}."
    return figures_maps.tile_rows(rows, notes=notes), caption


def _teaser_maps(
    study: Study, method: str, sweeps: Sequence[str], model: str, image_id: str
) -> list[tuple[str, NDArray[Any]]]:
    """Map and words of three settings: the study's teaser, else ends and middle of a sweep."""
    teaser = study.maps(method, "teaser")
    if teaser is not None and model in teaser.models and image_id in teaser.image_ids:
        made = teaser.settings[:_WIDEST]
        varied = [name for name in made[0] if len({json.dumps(one.get(name)) for one in made}) > 1]
        names = [", ".join(f"{name} {one[name]}" for name in varied) for one in made]
        return [
            (words, _heatmap(teaser, model, one, image_id))
            for words, one in zip(names, made, strict=True)
        ]
    sweep = next((name for name in sweeps if name in study.sweeps), None)
    if sweep is None:
        raise _AbsentError(f"the study has no sweep of {method}")
    maps, settings = _archive(study, method), _settings(study, sweep, model)
    hyperparameter = study.about(sweep)[1]
    return [
        (f"{hyperparameter} {value}", _heatmap(maps, model, settings[value], image_id))
        for value in thin(list(settings), None, 3)
    ]


def _towards(study: Study, towards: str) -> str:
    """Sweep whose maps the study compares with robust models' plain ones."""
    for entry in study.param("comparisons", "denoising") or []:
        if entry["towards"] == towards:
            return _sweep(study, entry["sweep"])
    default = {"gradient": "SG-N", "input_x_gradient": "IG-N"}[towards]
    if study.table("comparisons")["comparison"].eq(f"denoising-{towards}").any():
        return _sweep(study, default)
    raise _AbsentError(f"the study has no comparison denoising-{towards}")


def _denoised_rows(
    study: Study, towards: str, image_id: str, pairs: Sequence[tuple[str, str]]
) -> list[TileRow]:
    """Image, plain and de-noised maps of the regular model, the robust twin's plain map."""
    sweep = _towards(study, towards)
    method, _ = study.about(sweep)
    plain, swept = _archive(study, towards), _archive(study, method)
    start = _plain(study, towards)
    rows = []
    for regular, robust in pairs:

        def below(used: str, value: str, names: tuple[str, str] = (regular, robust)) -> str:
            key = (f"denoising-{towards}", *names, used, value, image_id)
            return _score(study.comparison_scores.get(key))

        tiles = [
            _photo(study, image_id),
            Tile(
                _heatmap(plain, regular, start, image_id),
                _SHORT.get(towards, towards),
                below(towards, "0"),
            ),
        ]
        made = _settings(study, sweep, regular)
        for value in thin(list(made), None, 5):
            heatmap = _heatmap(swept, regular, made[value], image_id)
            tiles.append(
                Tile(heatmap, f"{_SHORT.get(method, method)} {value}", below(method, value))
            )
        guided = study.maps("guided_backprop")
        if guided is not None:
            heatmap = _heatmap(guided, regular, _plain(study, "guided_backprop"), image_id)
            tiles.append(Tile(heatmap, "GB", below("guided_backprop", "")))
        target = _heatmap(plain, robust, start, image_id)
        tiles.append(Tile(target, f"robust {_SHORT.get(towards, towards)}", "", framed=True))
        rows.append(TileRow(regular, tiles))
    return rows


def _denoised(towards: str, *, after: int) -> Callable[[Study], tuple[Figure, str]]:
    def made(study: Study) -> tuple[Figure, str]:
        pairs = _pairs(study)
        n = 1 if not after else 2
        ids = [_first_image(study, after)]
        ids += [*study.facts][after + 1 : after + n]
        rows = [row for one in ids for row in _denoised_rows(study, towards, one, pairs)]
        noun = "image" if n == 1 else "images"
        start = "first" if not after else "next"
        caption = (
            f"De-noised maps of a regular model beside the plain map of its robust twin (framed, "
            f"right). {_sentence(_below(study, 'the framed map'))}. "
            f"{', '.join(f'`{i}`' for i in ids)}: the {start} {noun} of the evaluation set, not an "
            f"extreme. {_sentence(_OWN_SCALE)}. GB: guided backprop."
        )
        notes = [_below(study, "the framed map of the robust twin"), _OWN_SCALE]
        return figures_maps.tile_rows(rows, notes=notes), caption

    return made


def _noise_folder(study: Study) -> tuple[str, str]:
    """Folder and variance of the noise that the paper's code had, else of the largest."""
    found = {}
    for path in (study.results / "comparisons").glob("noise-*"):
        found[float(path.name.removeprefix("noise-"))] = path.name
    if not found:
        raise _AbsentError("no maps of noisy images at hand (comparisons.noise)")
    name = found.get(0.1, found[max(found)])
    return name, name.removeprefix("noise-")


def _fig3(study: Study) -> tuple[Figure, str]:
    folder, variance = _noise_folder(study)
    clean, noisy = _archive(study, "gradient"), _archive(study, "gradient", folder, "maps")
    image_id, setting = _first_image(study), _plain(study, "gradient")
    images = _made_images(study, study.results / "comparisons" / folder)
    models = [name for name in study.models if name in clean.models and name in noisy.models]
    lines = [
        TileRow(
            "clean",
            [
                _photo(study, image_id),
                *(Tile(_heatmap(clean, m, setting, image_id), above=m) for m in models),
            ],
        )
    ]
    pixels = images.get(image_id)
    tiles: list[Tile | None] = [None if pixels is None else Tile(pixels[0])]
    for model in models:
        score = study.comparison_scores.get(
            ("gradient-noise", model, "", "gradient", variance, image_id)
        )
        tiles.append(Tile(_heatmap(noisy, model, setting, image_id), below=_score(score)))
    lines.append(TileRow("noisy", tiles))
    caption = (
        f"Gradients of the image and of the image under Gaussian noise of variance {variance} "
        f"(std {float(variance) ** 0.5:.3g}; [0, 1] units). Below: SSIM ({study.convention}; "
        f"higher: closer) of the two maps of a column. `{image_id}`, the first image of the "
        f"evaluation set, not an extreme. {_sentence(_OWN_SCALE)}."
    )
    notes = [f"below: SSIM ({study.convention}) of the two maps above", _OWN_SCALE]
    return figures_maps.tile_rows(lines, notes=notes), caption


def _made_images(study: Study, folder: Path) -> dict[str, tuple[NDArray[Any], Any]]:
    """Image and box by id, of images that a comparison made."""
    if not study.shows_photos or not (folder / "images.npy").is_file():
        return {}
    rows = records(read_table(folder / "evaluation_set.csv"))
    images = np.load(folder / "images.npy", mmap_mode="r")
    return {
        str(row["image_id"]): (np.asarray(image), corners(row))
        for row, image in zip(rows, images, strict=True)
    }


def _fig4(study: Study) -> tuple[Figure, str]:
    rows, rules, lacking = [], [], []
    for letter, sweep in (("a", "MP-blur"), ("b", "MP-N")):
        try:
            pair, image_id, rule = _widest(study, _sweep(study, sweep))
            for place, model in enumerate(pair):
                rows.append(_line(study, sweep, model, image_id, image=place == 0))
        except _AbsentError as absent:
            lacking.append(f"({letter}) {absent}")
            continue
        rules.append(f"({letter}) {sweep}: {rule}")
    if not rows:
        raise _AbsentError("; ".join(reason[4:] for reason in lacking))
    caption = f"{'; '.join(rules)}. {_sentence(_below(study))}. {_sentence(_OWN_SCALE)}."
    if lacking:
        caption += f" Not drawn: {'; '.join(lacking)}."
    return figures_maps.tile_rows(rows, notes=[_below(study), _OWN_SCALE]), caption


def _fig5(study: Study) -> tuple[Figure, str]:
    table = study.table("table_s1")
    if table.empty:
        raise _AbsentError("no Table S1: none of its sweeps was scored")
    without = "" if (table["metric"] == "localization_error").any() else " No image has a box."
    caption = (
        "(a) Mean SSIM (convention sam, the paper's) of each setting's map to the reference. "
        "Others: spread of an accuracy score, as std over the settings of one image, combined over "
        "images as root mean square; rings: mean level. Insertion and deletion are areas under "
        f"the curve over its maximum.{without}"
    )
    figure = paper.level_and_spread(table, look=study.look)
    return figure, caption


def _fig6(study: Study) -> tuple[Figure, str]:
    folders = {
        int(path.name.removeprefix("object-").removesuffix("px")): path
        for path in (study.results / "comparisons").glob("object-*px")
        if (path / "maps" / "sliding_patch" / "index.json").is_file()
    }
    if not folders:
        raise _AbsentError("no object on a blank background (comparisons.object_size, boxes)")
    table = study.table("object_size")
    keys = ["model", "image_id", "object_size", "patch_size"]
    facts = {tuple(row[key] for key in keys): row for row in records(table)}
    regular = _regular(study)[0]
    models = [name for name in (regular, f"{regular}-r") if name in study.models]
    stacks: dict[tuple[str, int], dict[int, NDArray[Any]]] = {}
    images = {size: _made_images(study, path) for size, path in folders.items()}
    shown = ""
    for size, path in sorted(folders.items()):
        maps = Maps(path / "maps" / "sliding_patch")
        made = sorted(maps.settings, key=lambda one: one["patch_size"])
        chosen = thin([str(one["patch_size"]) for one in made], None, _WIDEST)
        made = [one for one in made if str(one["patch_size"]) in chosen]
        shown = shown or maps.image_ids[0].split("@")[0]
        for model in (name for name in models if name in maps.models):
            stacks[model, size] = {
                one["patch_size"]: _heatmap(maps, model, one, f"{shown}@{size}px") for one in made
            }
    rows = []
    for model in models:
        own = {size: stack for (name, size), stack in stacks.items() if name == model}
        # One scale for all sizes, or a blank map would be blown up.
        scale = max((float(np.abs(m).max()) for s in own.values() for m in s.values()), default=0)
        for size, stack in own.items():
            pixels = images[size].get(f"{shown}@{size}px")
            above = f"object {size} px"
            tiles = [None if pixels is None else Tile(pixels[0], above, box=pixels[1])]
            for patch, heatmap in stack.items():
                row = facts.get((model, shown, size, patch))
                below = ""
                if row is not None and row["object_area"]:
                    ratio = row["area_above_half"] / row["object_area"]
                    below = f"{ratio:.1f}×, {row['peak']:.2g}"
                above = f"patch {patch} px"
                tiles.append(Tile(heatmap, above, below, scale=scale or 1.0))
            rows.append(TileRow(model, tiles))
    caption = (
        f"The object of `{shown}`, the first image with a known object, on black at "
        f"{len(folders)} sizes, under patches of growing size. Below: area above half of the "
        "map's maximum over the object's area, and the maximum (drop of the target's probability). "
        "One color scale per model, so that blank maps stay blank."
    )
    notes = ["below: area above half maximum / object's area, maximum of the map"]
    return figures_maps.tile_rows(rows, notes=[*notes, "one color scale per model"]), caption


def _fig7(study: Study) -> tuple[Figure, str]:
    table = study.table("global_std")
    kept = table["convention"].isin(["auc_over_max", study.alpha])
    names = set(table["model"])
    model = "mean" if "mean" in names else next(iter(study.models), "")
    rows = table[kept & (table["model"] == model)]
    if rows.empty:
        raise _AbsentError("no spread of accuracy over a sweep's settings")
    who = "averaged over models" if model == "mean" else model
    ratio = (
        "A seed's spread shrinks with the root of the number of images, another hyperparameter's "
        "does not, so that ratios to a seed grow with it: dark bars, and the ratios that are "
        "judged, are what they would be on the paper's 1,735 images."
    )
    caption = (
        f"Std over a sweep's settings of the mean accuracy over images, {who}; logarithmic axis. "
        f"{ratio} A spread of 0 has no bar."
    )
    return paper.global_spread(rows, look=study.look), caption


def _towards_figure(towards: str) -> Callable[[Study], tuple[Figure, str]]:
    def made(study: Study) -> tuple[Figure, str]:
        table = study.table("comparisons")
        rows = table[table["comparison"] == f"denoising-{towards}"]
        if rows.empty or rows["mean"].isna().all():
            raise _AbsentError(f"the study has no comparison denoising-{towards}")
        rows = rows.assign(value=as_text(rows["value"]))
        caption = (
            "Similarity of a regular model's maps to a robust model's plain ones; higher: closer. "
            "Any smoothing raises it: only a rise beyond that of mismatched images (dotted) says "
            "something about the models; the other robust model, where there is one, shares no "
            "ancestry with the regular one."
        )
        return paper.towards_curves(rows, look=study.look), caption

    return made


def _bars_and_pictures(sweep: str) -> Callable[[Study], tuple[Figure, str]]:
    def made(study: Study) -> tuple[Figure, str]:
        pair, image_id, rule = _widest(study, _sweep(study, sweep))
        rows = [
            _line(study, sweep, model, image_id, image=place == 0, most=5)
            for place, model in enumerate(pair)
        ]
        caption = (
            f"Left: mean similarity to the reference map, higher: steadier. Right: {rule}. "
            f"{_sentence(_below(study))}. {_sentence(_OWN_SCALE)}."
        )
        notes = [_below(study), _OWN_SCALE]
        figure = figures_maps.tile_rows(
            rows, bars=_bars(study, sweep), notes=notes, title=sweep, look=study.look
        )
        return figure, caption

    return made


def _s8(study: Study) -> tuple[Figure, str]:
    panels, lacking = {}, []
    for letter, sweep in (("a", "MP-blur"), ("b", "MP-N")):
        try:
            rows = _bars(study, _sweep(study, sweep))
        except _AbsentError as absent:
            lacking.append(str(absent))
            continue
        panels[f"({letter}) {sweep}: {study.about(sweep)[1]}"] = rows
    if not panels:
        raise _AbsentError("; ".join(lacking))
    caption = "Mean similarity to the reference map; higher: steadier."
    if lacking:
        caption += f" Not drawn: {'; '.join(lacking)}."
    return figures_maps.similarity_bars(panels, look=study.look), caption


def _descent(study: Study) -> tuple[tuple[str, str], str, str, Maps, dict[str, Any]]:
    """Pair, image, rule, archive and longest run of MP."""
    sweep = _sweep(study, "MP-N")
    pair, image_id, rule = _widest(study, sweep)
    maps = _archive(study, "meaningful_perturbation")
    made = _settings(study, sweep, pair[0])
    longest = max(made.values(), key=lambda one: one["n_iterations"])
    if image_id not in maps.image_ids:
        raise _AbsentError(f"no maps of image {image_id} by {maps.method}")
    return pair, image_id, rule, maps, longest


def _arrays(maps: Maps, model: str, longest: dict[str, Any], name: str) -> NDArray[Any]:
    try:
        found = maps.arrays(model, longest)
    except KeyError:
        found = {}
    if name not in found:
        raise _AbsentError("no losses and snapshots of meaningful perturbation were kept")
    return found[name]


def _s9(study: Study) -> tuple[Figure, str]:
    pair, image_id, rule, maps, longest = _descent(study)
    place = maps.image_ids.index(image_id)
    terms = {"total": "total", "l1": "L1", "tv": "TV", "probability": "probability"}
    panels = {
        model: {
            label: _arrays(maps, model, longest, f"loss_{term}")[place]
            for term, label in terms.items()
        }
        for model in pair
    }
    notes = read_table(maps.folder / "diagnostics.parquet")
    notes = notes[(notes["name"] == "converged_step") & (notes["image_id"] == image_id)]
    notes = notes[notes["setting"] == maps.settings.index(longest)]
    converged = {str(row["model"]): float(row["value"]) for row in records(notes)}
    caption = (
        f"Loss of meaningful perturbation at each step, and its terms: {rule}. Dotted upright: the "
        "first step from which the total stays within 5 % of its drop."
    )
    return training.loss_curves(panels, converged=converged), caption


def _s10(study: Study) -> tuple[Figure, str]:
    pair, image_id, rule, maps, longest = _descent(study)
    place = maps.image_ids.index(image_id)
    rows = []
    for index, model in enumerate(pair):
        masks = _arrays(maps, model, longest, "snapshots")[place]
        steps = _arrays(maps, model, longest, "snapshot_steps")[place]
        shown = [int(step) for step in thin([str(int(s)) for s in steps], None, 9)]
        by_step = {int(step): mask for step, mask in zip(steps, masks, strict=True)}
        tiles: list[Tile | None] = [_photo(study, image_id) if index == 0 else None]
        tiles += [Tile(1 - by_step[step], above=f"step {step}", scale=1.0) for step in shown]
        rows.append(TileRow(model, tiles))
    caption = (
        f"Masks of meaningful perturbation on their way: {rule}. Red: blurred away, white: kept."
    )
    return figures_maps.tile_rows(rows, notes=["red: blurred away, white: kept"], key=""), caption


def _s11(study: Study) -> tuple[Figure, str]:
    sweep = _sweep(study, "SP-L")
    image_id = _random_images(study, "s11", 1)[0]
    pair = study.pairs[0] if study.pairs else (_regular(study)[0],)
    rows = [
        _line(study, sweep, model, image_id, image=place == 0, common_scale=True, most=5)
        for place, model in enumerate(pair)
    ]
    caption = (
        f"Left: mean similarity to the reference map, higher: steadier. Right: `{image_id}`, drawn "
        f"by a seed. {_sentence(_below(study))}. {_sentence(_ROW_SCALE)}: darker maps are of "
        "larger amplitude."
    )
    figure = figures_maps.tile_rows(
        rows,
        bars=_bars(study, sweep),
        notes=[_below(study), _ROW_SCALE],
        title=sweep,
        look=study.look,
    )
    return figure, caption


def _s12(study: Study) -> tuple[Figure, str]:
    sweep = _sweep(study, "SG-N")
    pair, image_id, rule = _widest(study, sweep)
    maps = _archive(study, study.about(sweep)[0])
    rows = []
    for place, model in enumerate(pair):
        row = _line(study, sweep, model, image_id, image=place == 0, most=5)
        made = list(_settings(study, sweep, model).items())
        ends = [_heatmap(maps, model, one, image_id) for _, one in (made[0], made[-1])]
        small, large = (end / (np.abs(end).max() or 1.0) for end in ends)
        distance = float(np.abs(large - small).mean())
        difference = Tile(
            large - small, f"{made[-1][0]} − {made[0][0]}", f"L1 {distance:.3f}", scale=1.0
        )
        rows.append(TileRow(model, [*row.tiles, difference]))
    caption = (
        f"Left: mean similarity to the reference map, higher: steadier. Right: {rule}. "
        f"{_sentence(_below(study))}. Last column: difference of the maps at largest and "
        f"smallest value, with its mean absolute value. {_sentence(_OWN_SCALE)}."
    )
    figure = figures_maps.tile_rows(
        rows,
        bars=_bars(study, sweep),
        notes=[_below(study), f"{_OWN_SCALE}; last: difference of largest and smallest N"],
        title=sweep,
        look=study.look,
    )
    return figure, caption


def _s13(study: Study) -> tuple[Figure, str]:
    table = study.table("comparisons")
    rows = table[table["comparison"] == "gradient-noise"]
    rows = rows.assign(value=as_text(rows["value"]))
    if rows.empty or rows["mean"].isna().all():
        raise _AbsentError("the study has no comparison gradient-noise")
    panels = {
        f"noise variance {value}": rows[rows["value"] == value]
        for value in dict.fromkeys(rows["value"])
    }
    caption = (
        "Similarity of the gradients of the image and of the image under Gaussian noise of that "
        "variance ([0, 1] units); higher: less moved by noise."
    )
    return figures_maps.similarity_bars(panels, look=study.look), caption


def _s15(study: Study) -> tuple[Figure, str]:
    sweep = _sweep(study, "SP-L")
    means = _by_image(study, sweep, "hog_pearson")
    stacked = means[[name for name in _regular(study) if name in means]].stack().sort_values()
    chosen: dict[str, str] = {}
    for image_id, model in stacked.index:
        if len(chosen) < 3:
            chosen.setdefault(str(image_id), str(model))
    if not chosen:
        raise _AbsentError(f"{sweep} has no hog_pearson scores of a regular model")
    rows = [
        _line(study, sweep, model, image_id, common_scale=True, metric="hog_pearson")
        for image_id, model in chosen.items()
    ]
    caption = (
        f"{', '.join(f'`{i}`' for i in chosen)}: the lowest mean HOG-Pearson of regular models, of "
        f"{len(means)} images: extremes. Below: HOG-Pearson (higher: closer) to the framed "
        f"reference. {_sentence(_ROW_SCALE)}."
    )
    notes = ["below: HOG-Pearson to the framed reference", _ROW_SCALE]
    return figures_maps.tile_rows(rows, notes=notes), caption


def _s16(study: Study) -> tuple[Figure, str]:
    sweep = _sweep(study, "MP-blur")
    pair = study.pairs[0] if study.pairs else (_regular(study)[0],)
    ids = _random_images(study, "s16", 2)
    rows = [
        _line(study, sweep, model, image_id, image=place == 0)
        for image_id in ids
        for place, model in enumerate(pair)
    ]
    caption = (
        f"{', '.join(f'`{i}`' for i in ids)}, drawn by a seed. {_sentence(_below(study))}. "
        f"{_sentence(_OWN_SCALE)}."
    )
    return figures_maps.tile_rows(rows, notes=[_below(study), _OWN_SCALE]), caption


def _s17(study: Study) -> tuple[Figure, str]:
    if study.scores is None:
        raise _AbsentError("no scores per image at hand")
    scores = study.scores[(study.scores["metric"] == "ssim") & study.scores["score"].notna()]
    regular = _regular(study)
    scores = scores[scores["model"].isin(regular)]
    groups = []
    for sweep in (name for name in _WORST if name in study.sweeps):
        method, hyperparameter = study.about(sweep)
        maps, reference = study.maps(method), study.values(sweep)[1]
        rows = scores[scores["sweep"] == sweep]
        if maps is None or rows.empty or reference is None:
            continue
        rows = rows.sort_values(["score", "image_id", "model", "value"], kind="stable")
        worst = records(rows.head(1))[0]
        model, image_id, value = (str(worst[name]) for name in ("model", "image_id", "value"))
        made, photo = _settings(study, sweep, model), _photo(study, image_id)
        name = f"{sweep}, {model}" if len(regular) > 1 else sweep
        groups.append(
            [
                None if photo is None else Tile(photo.pixels, name, image_id, box=photo.box),
                Tile(
                    _heatmap(maps, model, made[reference], image_id),
                    f"{hyperparameter} {reference}",
                    framed=True,
                ),
                Tile(_heatmap(maps, model, made[value], image_id), value, _score(worst["score"])),
            ]
        )
    if not groups:
        raise _AbsentError("no maps and scores of a regular model's sweep at hand")
    lines = [groups[place : place + 3] for place in range(0, len(groups), 3)]
    rows = [TileRow("", [tile for group in line for tile in group]) for line in lines]
    caption = (
        "Per sweep, the map with the lowest SSIM of all regular models, images and settings, "
        "beside the reference map (framed): extremes. "
        f"Below: image, and SSIM ({study.convention}; higher: closer). {_sentence(_OWN_SCALE)}."
    )
    notes = [f"below: SSIM ({study.convention}) to the framed reference", _OWN_SCALE]
    return figures_maps.tile_rows(rows, notes=notes), caption


_FIGURES: dict[str, tuple[str, Callable[[Study], tuple[Figure, str]]]] = {
    "fig1": ("Settings of four methods side by side on one image", _fig1),
    "fig2": (
        "SmoothGrad and guided backprop of a regular model near its robust twin's gradient",
        _denoised("gradient", after=0),
    ),
    "fig3": ("Gradients of the clean and the noisy image, regular and robust", _fig3),
    "fig4": ("MP over blur radius and iterations, regular against robust", _fig4),
    "fig5": ("Similarity, and level and spread of three accuracies, per method", _fig5),
    "fig6": ("SP's patch size against the size of the object", _fig6),
    "fig7": ("Which hyperparameter moves mean accuracy most", _fig7),
    "s1": (
        "IG of a regular model near its robust twin's gradient times input",
        _denoised("input_x_gradient", after=0),
    ),
    "s2": ("Similarity of IG to the robust GI over trials", _towards_figure("input_x_gradient")),
    "s3": ("Similarity of SG to the robust gradient over samples", _towards_figure("gradient")),
    "s4": ("SG over the std of its noise", _bars_and_pictures("SG-sigma")),
    "s5": ("LIME over seeds", _bars_and_pictures("LIME-seed")),
    "s6": ("LIME over the number of samples", _bars_and_pictures("LIME-N")),
    "s7": ("MP over seeds", _bars_and_pictures("MP-seed")),
    "s8": ("Similarity of MP over blur radius and iterations", _s8),
    "s9": ("MP's loss at each step", _s9),
    "s10": ("MP's masks on their way", _s10),
    "s11": ("SP over the patch size, with its amplitude", _s11),
    "s12": ("SG over the number of samples, with a difference", _s12),
    "s13": ("Similarity of gradients under input noise", _s13),
    "s14": ("More images as in Fig. 2", _denoised("gradient", after=1)),
    "s15": ("SP's most sensitive images by HOG", _s15),
    "s16": ("MP over the blur radius on random images", _s16),
    "s17": ("The least similar maps of each sweep", _s17),
}
