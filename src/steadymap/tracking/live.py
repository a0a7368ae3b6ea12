"""Mirror of a training in MLflow while it goes on."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from steadymap.tracking.entries import training_entry
from steadymap.tracking.store import TrackingError
from steadymap.tracking.writer import Mirrored, Origin, open_writer

__all__ = ["Origin", "TrackingError", "mirror_training"]


def mirror_training(
    model: str,
    *,
    card: Mapping[str, Any],
    curves: pd.DataFrame,
    origin: Origin,
    uri: str | None = None,
    finished: bool = True,
) -> Mirrored:
    """Mirror a training, after each epoch or when it has ended.

    Parameters
    ----------
    model : str
        Name of the model and of the run.
    card : mapping
        Model card, during training as far as known; another `recipe_digest` is another run.
    curves : DataFrame
        A row per epoch so far.
    origin : Origin
        Becomes tags of runs that are written.
    uri : str, optional
        Tracking store; by default that of `tracking_uri`.
    finished : bool
        Whether to close the run.

    Returns
    -------
    Mirrored
        Counts of runs. Other runs of the same model are superseded, those of other models are not.

    Raises
    ------
    TrackingError
        The store is locked, unreachable, read-only or broken.
    """
    entry = training_entry(model, card, curves, study=origin.study, finished=finished)
    identity = {"training_id": entry.tags["training_id"]}
    with open_writer(origin, uri) as writer:
        writer.write([entry], [entry.experiment], scope=identity)
        return writer.mirrored
