"""The SAM paper's figures by name, drawn from a study; where one can't be, the reason.

`paper_figures.yaml` lists them. Which images are shown follows the paper's rules
(docs/protocol.md), among those that no earlier figure shows; captions say which.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from numpy.typing import NDArray

from steadymap.analysis import readings
from steadymap.draws import derived_seed
from steadymap.report.document import text_file
from steadymap.report.figures import maps as figures_maps
from steadymap.report.figures import paper, training
from steadymap.report.figures.maps import Tile, TileRow, score_text, scored_row
from steadymap.report.study import Study, as_text, corners, records, thin, true
from steadymap.report.words import as_sentence
from steadymap.store.maps import Maps
from steadymap.store.tables import read_table

_PAPER = yaml.safe_load(text_file("paper_figures.yaml"))

# Rows of Table S1.
TABLE_ROWS = ("SG", "SP-S", "SP-L", "LIME", "MP")

# Most maps beside an image, so that they stay large enough to be read; beside bars there are fewer.
_WIDEST, _WIDEST_BESIDE_BARS = 6, 5

Content = TypeVar("Content", bound=Sized)

# Images that earlier figures show: each figure takes others as long as there are some.
_SHOWN: ContextVar[frozenset[str]] = ContextVar("images of earlier figures", default=frozenset())


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


# Lines of tiles, or a figure; and what caption and notes have in braces. Of lines of tiles, `bars`
# stand beside them; `lacking` is said behind the caption.
_Drawing = tuple[Sequence[TileRow] | Figure, dict[str, Any]]


def draw(study: Study) -> Iterator[PaperFigure]:
    """All figures of the paper in its order, drawn or with the reason why not.

    No two show the same image while there are others, but those that draw the extremes of sweeps
    beside each other.
    """
    shown: frozenset[str] = frozenset()
    for name in _PAPER["figures"]:
        token = _SHOWN.set(shown)
        try:
            drawn = draw_one(study, name)
        finally:
            _SHOWN.reset(token)
        shown |= {
            quoted for quoted in re.findall("`([^`]+)`", drawn.caption) if quoted in study.facts
        }
        yield drawn


def draw_one(study: Study, name: str) -> PaperFigure:
    """One figure of the paper, `fig1` to `fig7` or `s1` to `s17`, or the reason why not."""
    options = dict(_PAPER["figures"][name])
    shows, kind, caption = (options.pop(key) for key in ("shows", "kind", "caption"))
    notes, key = options.pop("notes", []), options.pop("key", "against, for")
    try:
        drawn, fields = _KINDS[kind](study, **options)
    except _AbsentError as absent:
        return PaperFigure(name, shows, reason=str(absent))
    words = {key: text.format(convention=study.convention) for key, text in _PAPER["words"].items()}
    said = {"convention": study.convention, **fields}
    if not isinstance(drawn, Figure):
        drawn = figures_maps.tile_rows(
            drawn,
            title=options.get("sweep", "") if "bars" in fields else "",
            notes=[note.format(**words, **said) for note in notes],
            key=key,
            bars=fields.get("bars"),
            look=study.papers_look,
        )
    sentences = {name: as_sentence(text) for name, text in words.items()}
    caption = caption.format(**sentences, **said) + fields.get("lacking", "")
    return PaperFigure(name, shows, drawn, caption)


# What figures are made of; each raises _AbsentError where the study lacks it.


def _sweep(study: Study, name: str) -> str:
    if name not in study.sweeps:
        raise _AbsentError(f"the study has no sweep {name}")
    return name


def _need(content: Content, reason: str) -> Content:
    """Content, unless there is none: then the reason why there is no figure."""
    if len(content) == 0:
        raise _AbsentError(reason)
    return content


def _archive(study: Study, method: str, *folder: str) -> Maps:
    maps = study.maps(method, *folder)
    if maps is None:
        where = f" in comparisons/{'/'.join(folder)}" if folder else ""
        raise _AbsentError(f"no maps of {method} at hand{where}")
    return maps


def _pairs(study: Study) -> list[tuple[str, str]]:
    return _need(study.pairs, "the study has no regular model with its robust twin")


def _regular(study: Study) -> list[str]:
    names = [name for name in study.models if not name.endswith("-r")]
    return _need(names, "the study has no regular model")


def _kept(maps: Maps, model: str, setting: Any, image_id: str, name: str = "map") -> NDArray[Any]:
    """Map of an image, or what else the archive has of it by this name."""
    try:
        known = maps.arrays(model, setting)[name] if name != "map" else maps.read(model, setting)
        return np.asarray(known[maps.image_ids.index(image_id)])
    except (KeyError, ValueError):
        reason = f"no {name} of image {image_id} by {maps.method} on {model} with these settings"
        raise _AbsentError(reason) from None


def _plain(study: Study, method: str) -> dict[str, Any]:
    """Hyperparameters of a method's first setting."""
    tasks = study.table("tasks")
    rows = _need(tasks[tasks["method"] == method], f"the study has no {method}")
    return dict(json.loads(rows["hyperparameters"].iloc[0]))


def _settings(study: Study, sweep: str, model: str) -> dict[str, dict[str, Any]]:
    """Hyperparameters by value, in order, of one model."""
    rows = study.shared_tasks(sweep)
    rows = rows[rows["model"] == model].drop_duplicates("value").set_index("value")
    values = [value for value in study.values(sweep)[0] if value in rows.index]
    return {value: json.loads(rows.loc[value, "hyperparameters"]) for value in values}


def _unshown(ids: Iterable[str], n: int = 1) -> list[str]:
    """Images that no earlier figure shows; all where these are fewer than `n`."""
    every = list(ids)
    fresh = [image_id for image_id in every if image_id not in _SHOWN.get()]
    return fresh if len(fresh) >= n else every


def _images(study: Study, first: int = 0, n: int = 1, *archives: Maps) -> list[str]:
    """First images, or those behind them, that are in all archives."""
    ids = [name for name in study.facts if all(name in maps.image_ids for maps in archives)]
    kept = _need(ids[first:], f"the evaluation set has {len(ids)} images")
    return _unshown(kept, n)[:n]


def _random_images(study: Study, name: str, n: int, among: Iterable[str] = ()) -> list[str]:
    """Images drawn by a seed, among all or some."""
    ids = sorted(_unshown(among or study.facts, n))
    rng = np.random.default_rng(derived_seed("paper", study.name, name))
    return [ids[position] for position in sorted(rng.permutation(len(ids))[:n])]


def _by_image(study: Study, sweep: str, metric: str) -> pd.DataFrame:
    """Mean per image without a degenerate pair (line) and model (column) of a sweep."""
    rows = readings.nested_draws(study.table("images"))
    rows = rows[(rows["sweep"] == sweep) & (rows["metric"] == metric)]
    rows = rows[~rows["image_id"].isin(rows.loc[rows["n_degenerate"] > 0, "image_id"])]
    if metric == "ssim":
        rows = rows[rows["convention"] == study.convention]
    _need(rows["mean"].dropna(), f"{sweep} has no {metric} scores")
    return rows.pivot_table(index="image_id", columns="model", values="mean").sort_index()


def _widest(study: Study, sweep: str) -> tuple[tuple[str, str], str, str]:
    """Pair and image of the largest robust-minus-regular SSIM, and the rule in words."""
    means, pairs = _by_image(study, sweep, "ssim"), _pairs(study)
    gaps = {pair: means[pair[1]] - means[pair[0]] for pair in pairs if set(pair) <= set(means)}
    gaps = {pair: gap for pair, gap in gaps.items() if gap.notna().any()}
    _need(gaps, f"{sweep} has no pair of twins with scores of the same image")
    gaps = {pair: gap[_unshown(gap.dropna().index)] for pair, gap in gaps.items()}
    pair = max(gaps, key=lambda pair: gaps[pair].max())
    gap = gaps[pair]
    image_id = str(gap.idxmax())
    others = "" if _SHOWN.get().isdisjoint(means.index) else " that no earlier figure shows"
    rule = (
        f"`{image_id}`, the largest SSIM of {pair[1]} minus {pair[0]} ({gap.max():+.2f}) of "
        f"{gap.count()} images{others}: an extreme"
    )
    return pair, image_id, rule


def _any_pair(study: Study) -> Sequence[str]:
    """First pair of twins, else the first regular model."""
    return study.pairs[0] if study.pairs else _regular(study)[:1]


def _line(
    study: Study,
    sweep: str,
    model: str,
    image_id: str,
    *,
    common_scale: bool = False,
    metric: str = "ssim",
    most: int = _WIDEST,
) -> TileRow:
    """Image and its map at each value, the score to the reference below."""
    method, hyperparameter = study.about(sweep)
    maps, settings = _archive(study, method), _settings(study, sweep, model)
    reference = study.values(sweep)[1]
    values = thin(list(settings), reference, most)
    heatmaps = {value: _kept(maps, model, settings[value], image_id) for value in values}
    scores = {v: study.score(sweep, image_id, model, v, metric)._replace(rank=None) for v in values}
    image = study.photo(image_id)
    line = scored_row(model, image, heatmaps, scores, reference, bold_lowest=False)
    scale = _scale(heatmaps.values()) if common_scale else None
    tiles = [replace(tile, scale=scale) for tile in line.tiles[1:] if tile]
    first = [replace(tile, above=f"{hyperparameter} {tile.above}") for tile in tiles[:1]]
    return TileRow(model, [image, *first, *tiles[1:]])


def _lines(
    study: Study, sweep: str, models: Iterable[str], image_id: str, **options: Any
) -> list[TileRow]:
    """Lines of one image, a line per model; the image stands in the first alone."""
    rows = [_line(study, sweep, model, image_id, **options) for model in models]
    return rows[:1] + [TileRow(row.label, [None, *row.tiles[1:]]) for row in rows[1:]]


def _scale(heatmaps: Iterable[NDArray[Any]]) -> float:
    """Largest absolute value of several maps; 1 where all are 0."""
    finite = (np.abs(heatmap[np.isfinite(heatmap)]).max(initial=0.0) for heatmap in heatmaps)
    return float(max(finite, default=0.0)) or 1.0


def _bars(study: Study, sweep: str) -> pd.DataFrame:
    """Rows of the sensitivity table that bars show."""
    rows = readings.nested_draws(study.table("sensitivity"))
    rows = rows[(rows["sweep"] == sweep) & rows["metric"].isin(["spearman", "hog_pearson", "ssim"])]
    _need(rows["mean"].dropna(), f"{sweep} has no scores")
    return rows


def _per_sweep(
    study: Study, sweeps: Iterable[str], part: Callable[[str], Any]
) -> tuple[dict[str, Any], str]:
    """Parts of a figure by letter, and the reasons of those that can't be drawn."""
    parts, reasons = {}, []
    for letter, sweep in zip("abcdefgh", sweeps, strict=False):
        try:
            parts[f"({letter})"] = part(_sweep(study, sweep))
        except _AbsentError as absent:
            reasons.append((f"({letter}) ", str(absent)))
    _need(parts, "; ".join(reason for _, reason in reasons))
    lacking = "; ".join(letter + reason for letter, reason in reasons)
    return parts, f" Not drawn: {lacking}." if lacking else ""


def _comparison(study: Study, name: str) -> pd.DataFrame:
    """Rows of a comparison of the study."""
    table = study.table("comparisons")
    rows = table[table["comparison"] == name]
    _need(rows["mean"].dropna(), f"the study has no comparison {name}")
    return rows.assign(value=as_text(rows["value"]))


def _quoted(ids: Iterable[str]) -> str:
    return ", ".join(f"`{image_id}`" for image_id in ids)


# The kinds of figures, as `paper_figures.yaml` names them.


def _teaser(study: Study, sweeps: Mapping[str, Sequence[str]]) -> _Drawing:
    (image_id,), model = _images(study), _regular(study)[0]
    rows: list[TileRow] = []
    lacking = []
    for method, swept in sweeps.items():
        try:
            tiles = _teaser_maps(study, method, swept, model, image_id)
        except _AbsentError:
            lacking.append(method)
            continue
        rows.append(
            TileRow(_PAPER["names"][method], [None if rows else study.photo(image_id), *tiles])
        )
    _need(rows, "no maps of the methods it shows at hand")
    without = f" Without maps here: {', '.join(lacking)}." if lacking else ""
    return rows, {"model": model, "image": image_id, "lacking": without}


def _teaser_maps(
    study: Study, method: str, sweeps: Sequence[str], model: str, image_id: str
) -> list[Tile]:
    """Maps of three settings: the study's teaser, else ends and middle of a sweep."""
    maps = study.maps(method, "teaser")
    if maps is not None and model in maps.models and image_id in maps.image_ids:
        settings = maps.settings[:_WIDEST]
        varied = [n for n in settings[0] if len({json.dumps(s.get(n)) for s in settings}) > 1]
        shown = {", ".join(f"{name} {s[name]}" for name in varied): s for s in settings}
    else:
        sweep = next((name for name in sweeps if name in study.sweeps), None)
        if sweep is None:
            raise _AbsentError(f"the study has no sweep of {method}")
        maps, by_value = _archive(study, method), _settings(study, sweep, model)
        values = thin(list(by_value), None, 3)
        shown = {f"{study.about(sweep)[1]} {value}": by_value[value] for value in values}
    return [Tile(_kept(maps, model, s, image_id), above=name) for name, s in shown.items()]


def _towards_sweep(study: Study, towards: str) -> str:
    """Sweep whose maps the study compares with robust models' plain ones."""
    for entry in study.param("comparisons", "denoising") or []:
        if entry["towards"] == towards:
            return _sweep(study, entry["sweep"])
    _comparison(study, f"denoising-{towards}")
    return _sweep(study, {"gradient": "SG-N", "input_x_gradient": "IG-N"}[towards])


def _denoised_row(study: Study, towards: str, image_id: str, pair: tuple[str, str]) -> TileRow:
    """Image, plain and de-noised maps of the regular model, the robust twin's plain map."""
    sweep = _towards_sweep(study, towards)
    method, _ = study.about(sweep)
    (regular, robust), short = pair, _PAPER["names"]

    def tile(maps: Maps, setting: Any, above: str, value: str) -> Tile:
        key = (f"denoising-{towards}", *pair, maps.method, value, image_id)
        score = score_text(study.comparison_scores.get(key))
        return Tile(_kept(maps, regular, setting, image_id), above, score)

    plain, swept = _archive(study, towards), _archive(study, method)
    settings, start = _settings(study, sweep, regular), _plain(study, towards)
    tiles = [study.photo(image_id), tile(plain, start, short[towards], "0")]
    for value in thin(list(settings), None, 5):
        above = f"{short.get(method, method)} {value}"
        tiles.append(tile(swept, settings[value], above, value))
    if guided := study.maps("guided_backprop"):
        tiles.append(tile(guided, _plain(study, "guided_backprop"), "GB", ""))
    target = _kept(plain, robust, start, image_id)
    return TileRow(regular, [*tiles, Tile(target, f"robust {short[towards]}", framed=True)])


def _denoised(study: Study, towards: str, first: int = 0, n: int = 1) -> _Drawing:
    pairs, method = _pairs(study), study.about(_towards_sweep(study, towards))[0]
    archives = [_archive(study, towards), _archive(study, method)]
    ids = _images(study, first, n, *archives)
    rows = [_denoised_row(study, towards, one, pair) for one in ids for pair in pairs]
    which = f"{'next' if first else 'first'} {'image' if n == 1 else 'images'}"
    return rows, {"images": _quoted(ids), "which": which}


def _noisy(study: Study) -> _Drawing:
    variances = [
        path.name.removeprefix("noise-") for path in (study.results / "comparisons").glob("noise-*")
    ]
    _need(variances, "no maps of noisy images at hand (comparisons.noise)")
    # The variance that the paper's code had, else the largest.
    variance = max(variances, key=lambda name: (float(name) == 0.1, float(name)))
    folder = f"noise-{variance}"
    clean, noisy = _archive(study, "gradient"), _archive(study, "gradient", folder, "maps")
    (image_id,), setting = _images(study, 0, 1, clean, noisy), _plain(study, "gradient")
    models = [name for name in study.models if name in clean.models and name in noisy.models]
    above: list[Tile | None] = [study.photo(image_id)]
    below: list[Tile | None] = [_comparison_images(study, folder).get(image_id)]
    for model in models:
        above.append(Tile(_kept(clean, model, setting, image_id), above=model))
        key = ("gradient-noise", model, "", "gradient", variance, image_id)
        score = score_text(study.comparison_scores.get(key))
        below.append(Tile(_kept(noisy, model, setting, image_id), below=score))
    fields = {"variance": variance, "std": float(variance) ** 0.5, "image": image_id}
    return [TileRow("clean", above), TileRow("noisy", below)], fields


def _comparison_images(study: Study, folder: str, *, boxes: bool = False) -> dict[str, Tile]:
    """Images that a comparison explained, by id."""
    path = study.results / "comparisons" / folder
    if not study.shows_photos or not (path / "images.npy").is_file():
        return {}
    rows = records(read_table(path / "evaluation_set.csv"))
    images = np.load(path / "images.npy", mmap_mode="r")
    return {
        str(row["image_id"]): Tile(np.asarray(image), box=corners(row) if boxes else None)
        for row, image in zip(rows, images, strict=True)
    }


def _extremes(study: Study, sweeps: Sequence[str]) -> _Drawing:
    def part(sweep: str) -> tuple[list[TileRow], str]:
        pair, image_id, rule = _widest(study, sweep)
        return _lines(study, sweep, pair, image_id), f"{sweep}: {rule}"

    parts, lacking = _per_sweep(study, sweeps, part)
    rows = [row for lines, _ in parts.values() for row in lines]
    rules = "; ".join(f"{letter} {rule}" for letter, (_, rule) in parts.items())
    return rows, {"rules": rules, "lacking": lacking}


def _level_and_spread(study: Study) -> _Drawing:
    table = _need(study.table("table_s1"), "no Table S1: none of its sweeps was scored")
    without = "" if (table["metric"] == "localization_error").any() else " No image has a box."
    return paper.level_and_spread(table, look=study.look), {"lacking": without}


def _object_sizes(study: Study) -> _Drawing:
    folders = {
        int(path.name.removeprefix("object-").removesuffix("px")): path.name
        for path in (study.results / "comparisons").glob("object-*px")
        if (path / "maps" / "sliding_patch" / "index.json").is_file()
    }
    _need(folders, "no object on a blank background (comparisons.object_size, boxes)")
    keys = ["model", "image_id", "object_size", "patch_size"]
    table, regular = study.table("object_size"), _regular(study)[0]
    measures = table.drop_duplicates(keys).set_index(keys)
    archives = {n: _archive(study, "sliding_patch", folders[n], "maps") for n in sorted(folders)}
    known = readings.seen_objects(table).query("model == @regular")["image_id"]
    ids = [name.split("@")[0] for name in archives[min(folders)].image_ids]
    seen = _need(
        [name for name in ids if name in set(known)],
        f"none of {len(ids)} objects alone has a probability of {readings.SEEN:g} on {regular}",
    )
    shown, rows = _unshown(seen)[0], []
    for model in (name for name in (regular, f"{regular}-r") if name in study.models):
        lines: dict[int, list[Tile]] = {}
        for size, maps in archives.items():
            settings = sorted(maps.settings, key=lambda setting: setting["patch_size"])
            kept = thin([str(setting["patch_size"]) for setting in settings], None, _WIDEST)
            for setting in settings if model in maps.models else []:
                patch = setting["patch_size"]
                if str(patch) in kept:
                    heatmap = _kept(maps, model, setting, f"{shown}@{size}px")
                    below = _area_words(measures, (model, shown, size, patch))
                    tile = Tile(heatmap, f"patch {patch} px", below)
                    lines.setdefault(size, []).append(tile)
        # One scale for all sizes, or a blank map would be blown up.
        tiles = [tile for line in lines.values() for tile in line]
        scale = _scale(np.asarray(tile.pixels) for tile in tiles)
        for size, tiles in lines.items():
            image = _comparison_images(study, folders[size], boxes=True).get(f"{shown}@{size}px")
            image = image and replace(image, above=f"object {size} px")
            rows.append(TileRow(model, [image, *(replace(tile, scale=scale) for tile in tiles)]))
    counts = {"n_seen": len(seen), "n_objects": len(ids)}
    return rows, {"image": shown, "n_sizes": len(folders), "model": regular, **counts}


def _area_words(measures: pd.DataFrame, key: tuple[Any, ...]) -> str:
    """Area above half of a map's maximum over the object's area, and the maximum."""
    if key not in measures.index or not measures.loc[key, "object_area"]:
        return ""
    row = measures.loc[key]
    return f"{row['area_above_half'] / row['object_area']:.1f}×, {row['peak']:.2g}"


def _global_spread(study: Study) -> _Drawing:
    model, rows = study.accuracy_spread
    _need(rows, "no spread of accuracy over a sweep's settings")
    who = "averaged over models" if model == "mean" else model
    return paper.global_spread(rows, look=study.look), {"who": who}


def _towards(study: Study, towards: str) -> _Drawing:
    return paper.towards_curves(
        _comparison(study, f"denoising-{towards}"), look=study.papers_look
    ), {}


def _bars_and_maps(
    study: Study, sweep: str, random: str = "", *, difference: bool = False
) -> _Drawing:
    """Bars of a sweep's similarity beside its maps of one image, an extreme or a random one."""
    _sweep(study, sweep)
    if random:
        explained = _archive(study, study.about(sweep)[0]).image_ids
        (image_id,), models = _random_images(study, random, 1, explained), _any_pair(study)
        rule = f"`{image_id}`, drawn by a seed"
    else:
        models, image_id, rule = _widest(study, sweep)
    options = {"common_scale": bool(random), "most": _WIDEST_BESIDE_BARS}
    rows = _lines(study, sweep, models, image_id, **options)
    if difference:
        rows = [_with_difference(study, sweep, row, image_id) for row in rows]
    return rows, {"rule": rule, "bars": _bars(study, sweep)}


def _with_difference(study: Study, sweep: str, row: TileRow, image_id: str) -> TileRow:
    """Line with the difference of the scaled maps at the largest and smallest value behind it."""
    maps = _archive(study, study.about(sweep)[0])
    settings = _settings(study, sweep, row.label)
    first, last = next(iter(settings)), next(reversed(settings))
    ends = [_kept(maps, row.label, settings[value], image_id) for value in (first, last)]
    small, large = (end / (np.abs(end).max() or 1.0) for end in ends)
    below = f"L1 {np.abs(large - small).mean():.3f}"
    difference = Tile(large - small, f"{last} − {first}", below, scale=1.0)
    return TileRow(row.label, [*row.tiles, difference])


def _similarity_bars(study: Study, sweeps: Sequence[str]) -> _Drawing:
    def part(sweep: str) -> tuple[str, pd.DataFrame]:
        return f"{sweep}: {study.about(sweep)[1]}", _bars(study, sweep)

    parts, lacking = _per_sweep(study, sweeps, part)
    panels = {f"{letter} {title}": rows for letter, (title, rows) in parts.items()}
    return figures_maps.similarity_bars(panels, look=study.papers_look), {"lacking": lacking}


def _noise_bars(study: Study) -> _Drawing:
    rows = _comparison(study, "gradient-noise")
    panels = {
        f"noise variance {value}": group for value, group in rows.groupby("value", sort=False)
    }
    return figures_maps.similarity_bars(panels, look=study.papers_look), {}


def _descent(study: Study) -> tuple[tuple[str, str], str, str, Maps, dict[str, Any]]:
    """Pair, image, rule, archive and longest run of MP."""
    sweep = _sweep(study, "MP-N")
    pair, image_id, rule = _widest(study, sweep)
    maps = _archive(study, "meaningful_perturbation")
    settings = _settings(study, sweep, pair[0]).values()
    return pair, image_id, rule, maps, max(settings, key=lambda one: one["n_iterations"])


def _losses(study: Study) -> _Drawing:
    pair, image_id, rule, maps, longest = _descent(study)
    terms = {"total": "total", "l1": "L1", "tv": "TV", "probability": "probability"}
    panels = {
        model: {
            label: _kept(maps, model, longest, image_id, f"loss_{term}")
            for term, label in terms.items()
        }
        for model in pair
    }
    rows = read_table(maps.folder / "diagnostics.parquet")
    rows = rows[(rows["name"] == "converged_step") & (rows["image_id"] == image_id)]
    rows = rows[rows["setting"] == maps.settings.index(longest)]
    converged = dict(zip(rows["model"], rows["value"].astype(float), strict=True))
    return training.loss_curves(panels, converged=converged), {"rule": rule}


def _masks(study: Study) -> _Drawing:
    pair, image_id, rule, maps, longest = _descent(study)
    rows: list[TileRow] = []
    for model in pair:
        masks = _kept(maps, model, longest, image_id, "snapshots")
        steps = [str(int(n)) for n in _kept(maps, model, longest, image_id, "snapshot_steps")]
        by_step = dict(zip(steps, masks, strict=True))
        tiles: list[Tile | None] = [None if rows else study.photo(image_id)]
        for step in thin(steps, None, 9):
            tiles.append(Tile(1 - by_step[step], above=f"step {step}", scale=1.0))
        rows.append(TileRow(model, tiles))
    return rows, {"rule": rule}


def _lowest_hog(study: Study, sweep: str) -> _Drawing:
    means = _by_image(study, _sweep(study, sweep), "hog_pearson")
    means = means.loc[_unshown(means.index, 3)]
    stacked = means[[name for name in _regular(study) if name in means]].stack().sort_values()
    lowest = stacked.reset_index().drop_duplicates("image_id").head(3)
    _need(lowest, f"{sweep} has no hog_pearson scores of a regular model")
    rows = [
        _line(study, sweep, model, image_id, common_scale=True, metric="hog_pearson")
        for image_id, model in zip(lowest["image_id"], lowest["model"], strict=True)
    ]
    return rows, {"images": _quoted(lowest["image_id"]), "n_images": len(means)}


def _random_lines(study: Study, sweep: str, random: str) -> _Drawing:
    _sweep(study, sweep)
    explained = _archive(study, study.about(sweep)[0]).image_ids
    models, ids = _any_pair(study), _random_images(study, random, 2, explained)
    rows = [row for image_id in ids for row in _lines(study, sweep, models, image_id)]
    return rows, {"images": _quoted(ids)}


def _least_similar(study: Study, sweeps: Sequence[str]) -> _Drawing:
    if study.scores is None:
        raise _AbsentError("no scores per image at hand")
    scores = study.scores[(study.scores["metric"] == "ssim") & study.scores["score"].notna()]
    scores = scores[scores["model"].isin(_regular(study)) & ~true(scores["degenerate"])]
    scores = scores.sort_values(["score", "image_id", "model", "value"], kind="stable")
    groups = []
    for sweep in (name for name in sweeps if name in study.sweeps):
        method, hyperparameter = study.about(sweep)
        maps, reference = study.maps(method), study.values(sweep)[1]
        rows = scores[scores["sweep"] == sweep]
        if maps is None or rows.empty or reference is None:
            continue
        model, image_id, value = (
            str(rows[name].iloc[0]) for name in ("model", "image_id", "value")
        )
        settings, image = _settings(study, sweep, model), study.photo(image_id)
        name = f"{sweep}, {model}" if len(_regular(study)) > 1 else sweep
        origin = _kept(maps, model, settings[reference], image_id)
        score = score_text(rows["score"].iloc[0])
        groups += [
            image and replace(image, above=name, below=image_id),
            Tile(origin, f"{hyperparameter} {reference}", framed=True),
            Tile(_kept(maps, model, settings[value], image_id), value, score),
        ]
    _need(groups, "no maps and scores of a regular model's sweep at hand")
    return [TileRow("", groups[start : start + 9]) for start in range(0, len(groups), 9)], {}


_KINDS: dict[str, Callable[..., _Drawing]] = {
    "teaser": _teaser,
    "denoised": _denoised,
    "noisy": _noisy,
    "extremes": _extremes,
    "level_and_spread": _level_and_spread,
    "object_sizes": _object_sizes,
    "global_spread": _global_spread,
    "towards": _towards,
    "bars_and_maps": _bars_and_maps,
    "bars": _similarity_bars,
    "losses": _losses,
    "masks": _masks,
    "noise_bars": _noise_bars,
    "lowest_hog": _lowest_hog,
    "random_images": _random_lines,
    "least_similar": _least_similar,
}
