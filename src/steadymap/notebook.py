"""A sweep in five lines: no DVC, no MLflow, no files."""

import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from torch import Tensor, nn

from steadymap.attribution import Images, Targets, checked_images, explained, method_named
from steadymap.engine.settings import Point, Setting, points, sharing_a_pass, unique_settings
from steadymap.engine.tasks import cost_of
from steadymap.metrics.similarity import (
    custom_similarity,
    degenerate,
    inverted,
    normalize,
    similarities,
    spearman,
    ssim,
)
from steadymap.params.methods import SIMILARITIES
from steadymap.params.plugins import check_name, named
from steadymap.params.schema import Sweep

if TYPE_CHECKING:
    from steadymap.report.figures.sweeps import Figure


# What `sweep` and `show` hand on to `steadymap.attribute`; all other names are hyperparameters.
_CALL: dict[str, Any] = {"image_ids": None, "seed": 0, "batch_size": None, "progress": True}


class Swept:
    """Maps of one sweep, and their scores.

    Parameters
    ----------
    method, model, images, targets, vary, reference
        As `sweep` takes them.
    options : mapping of str to object
        What else `sweep` takes: keywords of `steadymap.attribute` and hyperparameters.

    Attributes
    ----------
    points : list of Point
        The settings in order, the references among them.
    method : str
        Name of the method.
    maps : dict of Setting to Tensor
        Float32 maps (batch, height, width) of each setting.
    images : Tensor
        In [0, 1].
    image_ids : list of str
        Names of the images.
    """

    def __init__(
        self,
        method: str | Callable[..., Any],
        model: nn.Module,
        images: Images,
        targets: Targets,
        *,
        vary: Mapping[str, Sequence[Any]],
        reference: Any,
        options: Mapping[str, Any],
    ):
        call = {name: options.get(name, default) for name, default in _CALL.items()}
        hyperparameters = {name: options[name] for name in options if name not in _CALL}
        image_ids, batch_size = call["image_ids"], call["batch_size"]
        self.method = named(method)
        self.points = _points(self.method, vary, reference, call["seed"], hyperparameters)
        self.images, classes, ids = checked_images(images, targets, image_ids, batch_size)
        # A hash of the content keys the draws; a position is what people can read.
        self.image_ids = ids if image_ids is not None else [str(i) for i in range(len(ids))]
        groups = sharing_a_pass(unique_settings(self.points))
        results = explained(
            *(self.method, model, self.images, classes, ids),
            [[setting.hyperparameters for setting in group] for group in groups],
            batch_size,
            progress=call["progress"],
        )
        self.maps: dict[Setting, Tensor] = {
            setting: maps
            for setting, (maps, _) in zip(itertools.chain(*groups), results, strict=True)
        }

    @property
    def reference(self) -> Point:
        """The setting that the others share their draws with."""
        return next(point for point in self.points if point.is_reference)

    def scores(
        self, hog_cell: int, metrics: Mapping[str, Callable[[Tensor, Tensor], Any]]
    ) -> pd.DataFrame:
        """Scores of every variant against its reference, tidy."""
        frames = []
        for reference in (point for point in self.points if point.is_reference):
            for variant in (point for point in self.points if not point.is_reference):
                a, b = self.maps[reference.setting], self.maps[variant.setting]
                flagged = (degenerate(a) | degenerate(b)).cpu().numpy()
                found = similarities(variant.setting.method, a, b, hog_cell=hog_cell)
                for name, function in metrics.items():
                    found[name, "own"] = custom_similarity(name, function, a, b)
                turned = inverted(found["spearman", "signed"]).cpu().numpy()
                for (metric, convention), values in found.items():
                    rows = {
                        "method": variant.setting.method,
                        "hyperparameter": variant.hyperparameter,
                        "value": variant.setting.hyperparameters[variant.hyperparameter],
                        "image_id": self.image_ids,
                        "metric": metric,
                        "convention": convention,
                        "draws": reference.draws,
                        "score": values.cpu().numpy(),
                        "degenerate": flagged,
                        "inverted": turned,
                    }
                    frames.append(pd.DataFrame(rows))
        return pd.concat(frames, ignore_index=True)


def _points(
    method: str,
    vary: Mapping[str, Sequence[Any]],
    reference: Any,
    seed: int,
    hyperparameters: Mapping[str, Any],
) -> list[Point]:
    declared = method_named(method)
    if len(vary) != 1:
        raise ValueError(
            f"vary names {len(vary)} hyperparameters ({', '.join(vary) or 'none'}); "
            'name one, vary={"sigma": [0.1, 0.2]}'
        )
    ((name, values),) = vary.items()
    values = list(values)
    if name in hyperparameters:
        raise ValueError(f"{name} is varied and given as {hyperparameters[name]!r}; leave one out")
    fixed = dict(hyperparameters)
    if declared.stochastic and name != "seed":
        fixed["seed"] = seed
    # Checked, and numpy's numbers made Python's, which keys are hashed of.
    fixed = {key: value for key, value in declared.effective(fixed).items() if key in fixed}
    values = [declared.effective({name: value})[name] for value in values]
    if reference is None:
        reference = values[0] if values else None
    if reference not in values or len(values) < 2 or len(set(values)) != len(values):
        raise ValueError(
            f"vary: {name} has the values {values} and the reference {reference!r}; "
            "give at least two different values, the reference among them"
        )
    sweep = Sweep(vary=name, values=values, reference=reference, fixed=fixed)
    return points(method, {"sweep": sweep})


def sweep(
    method: str | Callable[..., Any],
    model: nn.Module,
    images: Images,
    targets: Targets,
    *,
    vary: Mapping[str, Sequence[Any]],
    reference: Any = None,
    hog_cell: int | None = None,
    metrics: Mapping[str, Callable[[Tensor, Tensor], Any]] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Vary one hyperparameter and score how far the maps move.

    Parameters
    ----------
    method, model, images, targets
        As `steadymap.attribute` takes them.
    vary : mapping of str to sequence
        The hyperparameter and its values.
    reference : object, optional
        Value that the others are compared with; the first by default.
    hog_cell : int, optional
        Pixels per HOG cell; a fourteenth of the image by default, as 16 px at 224.
    metrics : mapping of str to callable, optional
        Custom similarity metrics by name, as `steadymap.similarity.custom_similarity` takes
        them; their convention is `own`.
    **options
        `image_ids`, `seed` (0), `batch_size` and `progress` as `steadymap.attribute` takes them,
        and the other hyperparameters, held constant. Without `batch_size`, a pass has the rows that
        the images and the largest setting fill, at most 64. Only with one `batch_size` given to all
        calls are maps equal to the last bit whatever their company; else they agree to 1e-3 of
        their largest value.

    Returns
    -------
    DataFrame
        Columns method, hyperparameter, value, image_id, metric, convention, draws, score,
        degenerate, inverted: what the pipeline's scores hold. The headline is two metrics, as SSIM
        alone may call an inverted map alike: `ssim` in convention `common` and `spearman`, draws
        `nested` or `none`. `inverted` marks pairs of maps whose Spearman correlation is below -.3.

    Raises
    ------
    ValueError
        Where the sweep or one of its values can't be run.
    """
    for name in metrics or {}:
        check_name(name, SIMILARITIES, "metric")
    swept = Swept(method, model, images, targets, vary=vary, reference=reference, options=options)
    return swept.scores(hog_cell or max(1, images.shape[-1] // 14), metrics or {})


def show(
    method: str | Callable[..., Any],
    model: nn.Module,
    images: Images,
    targets: Targets,
    *,
    vary: Mapping[str, Sequence[Any]],
    reference: Any = None,
    **options: Any,
) -> "Figure":
    """Draw the images with the maps of all settings, SSIM and Spearman to the reference below.

    A notebook shows the figure by itself, a script saves it.

    Parameters
    ----------
    method, model, images, targets, vary, reference, **options
        As `sweep` takes them.

    Returns
    -------
    Figure
        A row per image, a column per value.
    """
    # Drawing takes seconds to import, which `sweep` does without.
    from steadymap.report.figures.maps import Scored, Tile, picture_rows, scored_row

    swept = Swept(method, model, images, targets, vary=vary, reference=reference, options=options)
    origin = swept.maps[swept.reference.setting]
    columns = [point for point in swept.points if point.draws == swept.reference.draws]
    heatmaps = {point.value: swept.maps[point.setting] for point in columns}
    found = {
        value: (ssim(normalize(origin), normalize(maps)), spearman(origin, maps), degenerate(maps))
        for value, maps in heatmaps.items()
    }
    pixels = (swept.images.permute(0, 2, 3, 1).cpu().numpy() * 255).round().astype(np.uint8)
    rows = []
    for position, name in enumerate(swept.image_ids):
        maps_of_image = {value: maps[position].cpu().numpy() for value, maps in heatmaps.items()}
        scores = {
            value: Scored(
                float(similarity[position]),
                float(rank[position]),
                bool(flags[position]),
                bool(inverted(rank)[position]),
            )
            for value, (similarity, rank, flags) in found.items()
        }
        image = Tile(pixels[position])
        rows.append(scored_row(name, image, maps_of_image, scores, swept.reference.value))
    forward, backward = cost_of([point.setting for point in columns], images.shape[-1])
    note = f"at most {forward} forward, {backward} backward passes"
    figure = picture_rows(
        rows, hyperparameter=swept.reference.hyperparameter, title=swept.method, note=note
    )

    def png() -> bytes:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110)
        return buffer.getvalue()

    # Notebooks know a bare figure only once pyplot is loaded, which nothing here needs.
    setattr(figure, "_repr_png_", png)  # noqa: B010
    return figure
