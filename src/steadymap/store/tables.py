"""Result tables on disk."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from steadymap.store.atomic import atomic_file

# Columns that are text although their values may look like numbers.
_TEXT = (
    *("value", "image_id", "task_id", "sha256", "weights_sha256", "draws", "hyperparameter"),
    *("photo", "id", "class_name", "file", "reason", "claim", "direction", "size", "unit"),
    *("paper_model", "passes", "order", "method", "other"),
)

# Kind of draws of scores that compare a reference's maps of different images: the chance level.
MISMATCH = "mismatch"

# Scores of maps under randomized parameters: `results/{study}/randomization/scores.parquet`.
RANDOMIZATION_SCORE_COLUMNS = (
    *("model", "method", "order", "unit", "unit_index", "draw", "image_id", "kind"),
    *("metric", "convention", "score", "degenerate", "inverted"),
)
RANDOMIZATION_COLUMNS = (*RANDOMIZATION_SCORE_COLUMNS, "randomizer", "preset")

# Floats have 6 significant digits.
_FLOAT = "%.6g"

_CSV: dict[str, Any] = {"index": False, "float_format": _FLOAT, "lineterminator": "\n"}


def rounded(value: float) -> float:
    """The number that a table holds: rounded to 6 significant digits."""
    return float(_FLOAT % value)


def write_table(frame: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV (floats to 6 significant digits) or, by suffix, as Parquet (exact)."""
    path = Path(path)
    with atomic_file(path) as temporary:
        if path.suffix == ".parquet":
            frame.to_parquet(temporary, index=False)
        else:
            frame.to_csv(temporary, **_CSV)


def joined(frames: Iterable[pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    """Rows of all frames, one after the other, with these columns; an empty table of none."""
    # Empty ones would change the columns' types.
    filled = [frame for frame in frames if not frame.empty]
    if not filled:
        return pd.DataFrame(columns=list(columns))
    return pd.concat(filled, ignore_index=True)[list(columns)]


def read_table(path: Path) -> pd.DataFrame:
    """Read a table that `write_table` wrote; text columns stay text and '' stays ''."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"{path}: no such table; run the stage that writes it (`dvc repro`)"
        )
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    # No text is a missing value: a class may well be called NA.
    others = pd.read_csv(path, nrows=0).columns.difference(_TEXT)
    return pd.read_csv(
        path,
        dtype=dict.fromkeys(_TEXT, str),
        keep_default_na=False,
        na_values={name: [""] for name in others},
    )
