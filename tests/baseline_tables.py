"""Made-up tables of a study, to be compared with a baseline."""

import itertools

import numpy as np
import pandas as pd

from steadymap.gate import baseline as gate_baseline
from steadymap.store.atomic import write_json
from steadymap.store.tables import write_table

N = 16


WEIGHTS = {"net": "a" * 64, "net-r": "b" * 64}


IDS = [f"val-{index:02d}" for index in range(N)]


def write_reports(
    folder, *, shift=None, noise=0.0, seed=0, weights=WEIGHTS, drop=(), ids=IDS, ranks=False
):
    """A study's tables: two sweeps, two metrics, two models, and randomized parameters.

    `shift` maps (sweep, model, metric) to what is added to every image; `noise` is the standard
    deviation of what is added to each; `ranks` adds rank correlations.
    """
    measures = [("ssim", "common"), ("localization_error", "alpha0.25")]
    measures += [("spearman", "signed")] if ranks else []
    base, random = np.random.default_rng(0), np.random.default_rng(seed)
    rows, moved = [], []
    for sweep, method, hyperparameter in (
        ("SG-N", "smoothgrad", "n_samples"),
        ("default", "gradient", ""),
    ):
        for model in weights:
            for metric, convention in measures:
                if (sweep, model) in drop:
                    continue
                values = base.uniform(0.2, 0.8, len(ids)) + noise * random.normal(size=len(ids))
                values += (shift or {}).get((sweep, model, metric), 0.0)
                for name, value in zip(ids, values, strict=True):
                    row = {"sweep": sweep, "method": method, "hyperparameter": hyperparameter}
                    row |= {"model": model, "image_id": name, "class_name": "disc", "photo": ""}
                    row |= {"metric": metric, "convention": convention, "draws": "none"}
                    rows.append(
                        row | {"mean": value, "std": 0.1, "n_degenerate": 0, "n_inverted": 0}
                    )
    for model, (metric, convention) in itertools.product(weights, measures[::2]):
        row = {"model": model, "method": "gradient", "metric": metric, "convention": convention}
        row |= {"order": "independent", "randomizer": "init", "preset": "paper"}
        values = base.uniform(0.2, 0.8, 4) + (shift or {}).get(("IPR", model, metric), 0.0)
        moved += [
            row | {"image_id": name, "S_same": value, "excess": np.nan}
            for name, value in zip(ids[:4], values, strict=True)
        ]
    tables = folder / "tables"
    write_table(pd.DataFrame(rows), tables / "images.csv")
    write_table(pd.DataFrame(moved), tables / "ipr_images.csv")
    sets = [{"image_id": name, "sha256": name * 2, "photo": ""} for name in ids]
    write_table(pd.DataFrame(sets), tables / "evaluation_set.csv")
    models = [{"model": name, "weights_sha256": sha} for name, sha in weights.items()]
    write_table(pd.DataFrame(models), tables / "models.csv")
    # What `stages/measure.py` leaves: which code made it.
    write_json({}, folder / "sources.json")
    return gate_baseline.read(folder)
