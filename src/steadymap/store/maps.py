"""Attribution maps on disk."""

import itertools
import math
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from steadymap.store.atomic import atomic_folder, read_json, write_json
from steadymap.store.tables import write_table


def write_maps(
    folder: Path,
    *,
    method: str,
    image_ids: Sequence[str],
    settings: Sequence[Mapping[str, Any]],
    maps: Mapping[str, Iterator[np.ndarray]],
    diagnostics: Sequence[pd.DataFrame],
    arrays: MutableMapping[tuple[str, int], dict[str, np.ndarray]] | None = None,
) -> None:
    """Write one method's maps: `index.json`, `{model}.npy`, `diagnostics.parquet`, arrays.

    Parameters
    ----------
    folder : Path
        Replaced as a whole.
    method : str
        Name of the attribution method.
    image_ids : sequence of str
        Order of axis 1.
    settings : sequence of mapping
        Order of axis 0: `hyperparameters`, `task_ids` per model and, of a study's own settings,
        `passes`: forward and backward passes that a map takes.
    maps : mapping of str to iterator of ndarray
        Per model, float32 (some images, height, width): setting after setting, a setting's images
        in one piece or in several.
    diagnostics : sequence of DataFrame
        Columns model, setting (index), image_id, name, value; may fill while `maps` is consumed.
    arrays : mapping, optional
        Per model and setting (index), diagnostics that are more than a number per image, images
        first: `{model}-{setting}.npz`; may fill likewise, and is emptied as it is written.
    """
    pending = {} if arrays is None else arrays
    with atomic_folder(folder) as temporary:

        def save() -> None:
            while pending:
                (model, index), entry = pending.popitem()
                np.savez(temporary / f"{model}-{index}.npz", allow_pickle=False, **entry)

        def saving(stack: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
            for piece in stack:
                save()
                yield piece
            save()

        for model, stack in maps.items():
            shape = len(settings), len(image_ids)
            _write_stack(temporary / f"{model}.npy", saving(stack), shape)
        save()
        notes = pd.DataFrame(columns=["model", "setting", "image_id", "name", "value"])
        if diagnostics:
            notes = pd.concat(diagnostics, ignore_index=True)
        write_table(notes, temporary / "diagnostics.parquet")
        write_json(
            {
                "method": method,
                "models": list(maps),
                "image_ids": list(image_ids),
                "settings": [dict(setting) for setting in settings],
            },
            temporary / "index.json",
        )


def _write_stack(path: Path, stack: Iterator[np.ndarray], shape: tuple[int, int]) -> None:
    """Write pieces as one float32 .npy of `shape` (settings, images) of maps, each as it comes.

    Not through a memory map: writing to one on a full disk ends the process.
    """
    first = next(stack, None)
    if first is None:
        return
    sides = first.shape[1:]
    header = {"descr": "<f4", "fortran_order": False, "shape": (*shape, *sides)}
    written = 0
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for piece in itertools.chain([first], stack):
            if piece.shape[1:] != sides:
                raise ValueError(f"{path}: maps of {piece.shape[1:]} beside maps of {sides}")
            file.write(np.ascontiguousarray(piece, dtype="<f4").data)
            written += len(piece)
    if written != math.prod(shape):
        raise ValueError(f"{path}: {written} maps for {shape[0]} settings of {shape[1]} images")


class Maps:
    """One method's maps on disk, read without loading them all.

    Attributes
    ----------
    image_ids : list of str
        Order of the images.
    settings : list of dict
        Hyperparameters of each setting.
    task_ids : list of dict
        Per setting, the task id by model.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        index = read_json(self.folder / "index.json")
        self.method: str = index["method"]
        self.models: list[str] = index["models"]
        self.image_ids: list[str] = index["image_ids"]
        self.settings: list[dict[str, Any]] = [row["hyperparameters"] for row in index["settings"]]
        self.task_ids: list[dict[str, str]] = [row["task_ids"] for row in index["settings"]]
        self._passes = [row.get("passes") for row in index["settings"]]

    def _position(self, model: str, hyperparameters: Mapping[str, Any]) -> int:
        if model not in self.models:
            raise KeyError(f"{self.folder}: no maps of model {model!r}; there are {self.models}")
        return self._setting(hyperparameters)

    def _setting(self, hyperparameters: Mapping[str, Any]) -> int:
        try:
            return self.settings.index(dict(hyperparameters))
        except ValueError:
            raise KeyError(
                f"{self.folder}: no maps with {dict(hyperparameters)}; run `dvc repro`"
            ) from None

    def passes(self, hyperparameters: Mapping[str, Any]) -> tuple[int, int]:
        """Forward and backward passes that one map of a setting takes."""
        passes = self._passes[self._setting(hyperparameters)]
        if passes is None:
            raise KeyError(
                f"{self.folder}/index.json: no passes of {dict(hyperparameters)}: an archive of an "
                "earlier version; run `dvc repro`"
            )
        forward, backward = passes
        return forward, backward

    def arrays(self, model: str, hyperparameters: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """Diagnostics of one setting that are more than a number per image, images first."""
        position = self._position(model, hyperparameters)
        path = self.folder / f"{model}-{position}.npz"
        if not path.is_file():
            return {}
        with np.load(path, allow_pickle=False) as entry:
            return {name: entry[name] for name in entry.files}

    def read(self, model: str, hyperparameters: Mapping[str, Any]) -> np.ndarray:
        """Maps of one setting, float32 (images, height, width)."""
        position = self._position(model, hyperparameters)
        return np.load(self.folder / f"{model}.npy", mmap_mode="r")[position]
