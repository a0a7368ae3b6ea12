"""Models, images and provenance in the report."""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
import yaml

from steadymap.data.dataset import read_dataset
from steadymap.report import words
from steadymap.report.document import Block, Code, Text
from steadymap.report.figures import maps as figures_maps
from steadymap.report.figures import training
from steadymap.report.gallery import NOT_HERE, Gallery
from steadymap.report.study import Study, corners, missing, records, text_of
from steadymap.statistics.intervals import share_interval
from steadymap.store.environment import versions
from steadymap.store.tables import read_table

_CLASSES_SHOWN, _IMAGES_PER_CLASS = 10, 8


def models_section(study: Study, gallery: Gallery) -> Iterator[Block]:
    """Models and their accuracies."""
    rows = study.table("models")
    if rows.empty:
        yield Text("No model is listed.")
        return
    attacks = [text for text in dict.fromkeys(rows["attack"]) if text]
    attack = f"Attack: {'; '.join(attacks)}." if attacks else "No attack was run."
    cells = {
        "robust": lambda row: "yes" if row["robust"] else "no",
        "starts_from": lambda row: row["init_from"] or "–",
        "accuracy": lambda row: _share(row["clean_accuracy"], row["n_val"]),
        "under_attack": lambda row: _share(row["robust_accuracy"], row["n_attacked"]),
        "parameters": lambda row: (
            "–" if missing(row["n_parameters"]) else f"{row['n_parameters'] / 1e6:.1f} M"
        ),
    }
    regular = "" if rows["robust"].any() else " There is no robust model in this study."
    yield words.table("models", rows, study, cells=cells, attack=attack, regular=regular)
    curves = {}
    for model in study.models:
        path = study.results / "models" / model / "curves.csv"
        if path.is_file() and not (frame := read_table(path)).empty:
            curves[model] = frame
    if not curves:
        earlier: Iterable[Block] = gallery.earlier("training-curves")
        yield from earlier or [Text(f"The training curves are {NOT_HERE}.")]
        return
    yield gallery.draw("training-curves", training.training_curves(curves, look=study.look))


def _share(value: float, n: float) -> str:
    if missing(value) or missing(n):
        return words.percentage(value, 1)
    low, high = share_interval(value, int(n))
    return f"{words.percentage(value, 1)} [{100 * low:.1f}, {100 * high:.1f}] ({int(n)})"


def evaluation_set_section(study: Study) -> Iterator[Block]:
    """Images that are explained."""
    rows = study.table("evaluation_set")
    classes = rows["class_name"].value_counts().sort_index()
    counted = words.count_of(len(classes), "class", "classes")
    rule = study.param("evaluation_set", "rule")
    drawn = f" Rule: `{rule}`." if rule else ""
    yield Text(f"{words.count_of(len(rows), 'image')} of {counted}.{drawn}")
    explained = study.table("tasks").groupby("method", sort=False)["n_images"].max()
    if len(fewer := explained[explained < len(rows)]):
        yield Text(f"Methods that explain the first of them alone: {_counts(fewer)}.")
    candidates = study.table("evaluation_models")
    if candidates.empty:
        yield Text("How many candidates each model dropped was not recorded.")
    else:
        yield words.table("candidates", candidates, study)
    photos = study.photos
    if 0 < len(photos) < len(rows):
        counted = words.count_of(len(photos), "photograph")
        counts = _counts(photos)
        yield Text(words.sentence("photographs", photographs=counted, counts=counts))
    else:
        yield Text(words.sentence("no-photographs"))
    if len(classes) <= 20:
        yield Text(f"Images per class: {_counts(classes)}.")


def _counts(counts: pd.Series) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def data_section(study: Study, gallery: Gallery) -> Iterator[Block]:
    """The data set, with a few images of each class."""
    if not (study.results / "data" / "manifest.csv").is_file():
        yield Text(f"The data set is {NOT_HERE}.")
        yield from gallery.earlier("data")
        return
    dataset = read_dataset(study.results / "data")
    size = study.description.get("image_size")
    pixels = f", {size} × {size} pixels" if size else ""
    counts = ", ".join(f"{len(dataset.rows(split))} {split}" for split in dataset.images)
    yield Text(
        f"Kind `{study.description.get('kind', 'unknown')}`: {len(dataset.classes)} classes"
        f"{pixels}; images: {counts}."
    )
    split = "train" if "train" in dataset.images else next(iter(dataset.images), None)
    if split is None:
        return
    if not study.shows_photos:
        yield Text("Its images are not shown: they are not ours to publish.")
        return
    rows = dataset.rows(split)
    images, labels, boxes = [], [], []
    # A part of ImageNet has images of few of its classes.
    names = rows["class_name"].astype(str)
    shown = [name for name in dataset.classes if name in set(names)][:_CLASSES_SHOWN]
    for name in shown:
        group = rows[names == name].head(_IMAGES_PER_CLASS)
        # Blank places keep a class on a line of its own.
        blank = _IMAGES_PER_CLASS - len(group)
        images += [dataset.images[split][position] for position in group.index]
        images += [np.full_like(dataset.images[split][0], 255)] * blank
        labels += [name, *[""] * (_IMAGES_PER_CLASS - 1)]
        boxes += [*map(corners, records(group)), *[None] * blank]
    known = ", the object's box outlined" if any(boxes) else "; no boxes are known"
    n = len(dataset.classes)
    yield gallery.draw(
        "data",
        figures_maps.contact_sheet(images, labels, columns=_IMAGES_PER_CLASS, boxes=boxes),
        shown=len(shown),
        n=n,
        split=split,
        boxes=known,
    )


def provenance(study: Study) -> Iterator[Block]:
    """What the study was made from."""
    libraries = ", ".join(f"{name} {version}" for name, version in versions().items())
    yield Text(words.sentence("provenance", study=study, libraries=libraries))
    if digest := study.description.get("digest"):
        yield Text(f"Data: digest `{digest}`.")
    models = study.table("models")
    if len(models):
        weights = {"weights": lambda row: text_of(row, "weights_sha256") or "–"}
        yield words.table("weights", models, study, cells=weights)
    unique = study.table("tasks").drop_duplicates("task_id")
    passes = {kind: int(unique[f"{kind}_passes"].sum()) for kind in ("forward", "backward")}
    yield Text(words.sentence("passes", n=len(unique), **passes))
    if study.params:
        text = yaml.safe_dump(study.params, sort_keys=False, default_flow_style=None, width=96)
        yield Code(text.rstrip(), title="params.yaml")
    else:
        yield Text("The params were not handed to the report.")
