"""Models, images and provenance in the report."""

from collections.abc import Iterable, Iterator

import numpy as np
import yaml

from steadymap.data.dataset import read_dataset
from steadymap.report.document import Block, Cell, Code, Table, Text
from steadymap.report.figures import maps as figures_maps
from steadymap.report.figures import training
from steadymap.report.gallery import NOT_HERE, Gallery
from steadymap.report.study import Study, as_text, corners, missing, records, text_of
from steadymap.report.words import count_of, share_of
from steadymap.store.environment import versions
from steadymap.store.tables import read_table

_CLASSES_SHOWN, _IMAGES_PER_CLASS = 10, 8


def models_section(study: Study, gallery: Gallery) -> Iterator[Block]:
    """Models and their accuracies."""
    rows = study.table("models")
    if rows.empty:
        yield Text("No model is listed.")
        return
    cells = []
    for row in records(rows):
        cells.append(
            [
                Cell(row["model"]),
                Cell("yes" if str(row["robust"]) == "True" else "no"),
                Cell(text_of(row, "init_from") or "–"),
                Cell(share_of(row["clean_accuracy"], row["n_val"])),
                Cell(share_of(row["robust_accuracy"], row["n_attacked"])),
                Cell("–" if missing(row["epochs"]) else f"{float(row['epochs']):g}"),
                Cell("–" if missing(row["n_parameters"]) else f"{row['n_parameters'] / 1e6:.1f} M"),
            ]
        )
    attacks = [text for text in dict.fromkeys(as_text(rows["attack"])) if text]
    attack = f"Attack: {'; '.join(attacks)}." if attacks else "No attack was run."
    if not any(str(robust) == "True" for robust in rows["robust"]):
        attack += " There is no robust model in this study."
    yield Table(
        ["model", "robust", "starts from", "accuracy", "under attack", "epochs", "parameters"],
        cells,
        n_names=3,
        note=f"Accuracy on validation images, n in brackets. {attack}",
    )
    curves = {}
    for model in study.models:
        path = study.results / "models" / model / "curves.csv"
        if path.is_file() and not (frame := read_table(path)).empty:
            curves[model] = frame
    if not curves:
        earlier: Iterable[Block] = gallery.earlier("training-curves")
        yield from earlier or [Text(f"The training curves are {NOT_HERE}.")]
        return
    yield gallery.add(
        "training-curves",
        training.training_curves(curves, look=study.look),
        alt="Loss and accuracies against the epoch",
        caption="Training curves. The attack during training may be weaker than the one in the "
        "table.",
    )


def evaluation_set_section(study: Study) -> Iterator[Block]:
    """Images that are explained."""
    rows = study.table("evaluation_set")
    classes = rows["class_name"].astype(str).value_counts().sort_index()
    rule = study.param("evaluation_set", "rule")
    drawn = f" Rule: `{rule}`." if rule else ""
    yield Text(
        f"{count_of(len(rows), 'image')} of {count_of(len(classes), 'class', 'classes')}.{drawn}"
    )
    path = study.reports / "tables" / "evaluation_models.csv"
    if path.is_file() and not (table := read_table(path)).empty:
        cells = [
            [Cell(str(row["model"]))]
            + [Cell(str(int(row[name]))) for name in ("n_candidates", "n_correct", "n_dropped")]
            for row in records(table)
        ]
        columns = ["model", "candidates", "classified correctly", "dropped by the rule"]
        yield Table(columns, cells, note="What each model did to the candidates.")
    else:
        yield Text("How many candidates each model dropped was not recorded.")
    photos = study.photos
    if 0 < len(photos) < len(rows):
        # As `sensitivity.interval` has it (docs/protocol.md).
        few = len(photos) < 10
        how = "t-interval over means of fewer than 10" if few else "bootstrap over clusters"
        counts = ", ".join(f"{photo} {count}" for photo, count in photos.items())
        yield Text(
            f"Images that share a background photograph count as one cluster ({how}). "
            f"{count_of(len(photos), 'photograph')}, with numbers of images: {counts}."
        )
    else:
        yield Text("No two images are known to share a photograph: each counts by itself.")
    if len(classes) <= 20:
        listed = ", ".join(f"{name} {count}" for name, count in classes.items())
        yield Text(f"Images per class: {listed}.")


def data_section(study: Study, gallery: Gallery) -> Iterator[Block]:
    """The data set, with a few images of each class."""
    if not (study.results / "data" / "manifest.csv").is_file():
        yield Text(f"The data set is {NOT_HERE}.")
        yield from gallery.earlier("data")
        return
    dataset = read_dataset(study.results / "data")
    kind = study.description.get("kind", "unknown")
    size = study.description.get("image_size")
    pixels = f", {size} × {size} pixels" if size else ""
    counts = ", ".join(f"{len(dataset.rows(split))} {split}" for split in dataset.images)
    yield Text(f"Kind `{kind}`: {len(dataset.classes)} classes{pixels}; images: {counts}.")
    split = "train" if "train" in dataset.images else next(iter(dataset.images), None)
    if split is None:
        return
    rows = dataset.rows(split)
    if not study.shows_photos:
        yield Text("Its images are not shown: they are not ours to publish.")
        return
    images, labels, boxes = [], [], []
    # A part of ImageNet has images of few of its classes.
    there = set(rows["class_name"].astype(str))
    shown = [name for name in dataset.classes if name in there][:_CLASSES_SHOWN]
    for name in shown:
        own = rows[rows["class_name"].astype(str) == name].head(_IMAGES_PER_CLASS)
        images += [dataset.images[split][place] for place in own.index]
        labels += [name if place == 0 else "" for place in range(len(own))]
        boxes += [corners(row) for row in records(own)]
        # Blank places keep a class on a line of its own.
        for _ in range(_IMAGES_PER_CLASS - len(own)):
            images.append(np.full_like(dataset.images[split][0], 255))
            labels.append("")
            boxes.append(None)
    few = (
        f" the first {len(shown)} classes of {len(dataset.classes)},"
        if (len(shown) < len(dataset.classes))
        else ""
    )
    outlined = ", the object's box outlined" if any(boxes) else "; no boxes are known"
    yield gallery.add(
        "data",
        figures_maps.contact_sheet(images, labels, columns=_IMAGES_PER_CLASS, boxes=boxes),
        alt="Images of each class",
        caption=f"The data set:{few} the first images of each in the {split} split, in the order "
        f"of the manifest{outlined}.",
    )


def provenance(study: Study) -> Iterator[Block]:
    """What the study was made from."""
    yield Text(
        f"Everything here is read from `tables/` and from the study's maps. `make repro` leaves "
        f"`dvc.lock` and `params.yaml` beside this report, in `reports/{study.name}/`: hashes of "
        "every input, and the params that made it."
    )
    yield Text(
        "What may differ between runs that compute the same stands in `provenance.json` beside "
        "them, which is not in git: the commit and whether the code differed from it, date, "
        "processor and threads of the last `make repro`. Libraries: "
        f"{', '.join(f'{name} {number}' for name, number in versions().items())}."
    )
    if digest := study.description.get("digest"):
        yield Text(f"Data: digest `{digest}`.")
    cells = [
        [Cell(str(row["model"])), Cell(text_of(row, "weights_sha256") or "–")]
        for row in records(study.table("models"))
    ]
    if cells:
        yield Table(["model", "sha256 of the weights"], cells, n_names=2)
    unique = study.table("tasks").drop_duplicates("task_id")
    passes = [int(unique[f"{kind}_passes"].sum()) for kind in ("forward", "backward")]
    yield Text(
        f"Maps: {len(unique)} settings times models ({passes[0]:,} forward and {passes[1]:,} "
        "backward passes if each were computed alone); `tables/tasks.csv` has the task id and all "
        "hyperparameters of each."
    )
    if study.params:
        text = yaml.safe_dump(study.params, sort_keys=False, default_flow_style=None, width=96)
        yield Code(text.rstrip(), title="params.yaml")
    else:
        yield Text("The params were not handed to the report.")
