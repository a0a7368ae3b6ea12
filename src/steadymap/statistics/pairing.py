"""Pairs of different images, whose maps give the chance level of a similarity."""

import numpy as np
import pandas as pd
from scipy.optimize import linear_sum_assignment

from steadymap.statistics.resampling import cluster_names


def mismatched(rows: pd.DataFrame) -> np.ndarray:
    """Position of another image for each image, each taken once (docs/protocol.md).

    As few pairs as possible share a photograph or a class; among such choices, the partner is the
    next image of the set as nearly as possible.

    Parameters
    ----------
    rows : DataFrame
        The evaluation set, with columns image_id, photo and class_name.

    Raises
    ------
    ValueError
        Where there is but one image.
    """
    n = len(rows)
    if n < 2:
        raise ValueError(f"{n} image has no other to be paired with; take at least 2")
    photos = np.array(cluster_names(rows))
    classes = rows["class_name"].to_numpy()
    shared = (photos[:, None] == photos).astype(float) + (classes[:, None] == classes)
    ahead = (np.arange(n)[None, :] - np.arange(n)[:, None]) % n
    cost = shared * n**2 + ahead
    # Dearer than any choice without it.
    np.fill_diagonal(cost, 3.0 * n**3)
    return linear_sum_assignment(cost)[1]
