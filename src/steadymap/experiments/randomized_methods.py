"""Methods whose maps are made under randomized model parameters, and the scores on disk."""

from dataclasses import dataclass

import pandas as pd

from steadymap.engine.settings import Setting, setting
from steadymap.params.methods import RANDOM_BASELINES
from steadymap.params.plugins import declaration, find
from steadymap.params.schema import Params
from steadymap.store.tables import read_table


@dataclass(frozen=True)
class RandomizedMethodSettings:
    """Setting of a method, its fresh-draw variant, and numbers of images and weight draws."""

    setting: Setting
    fresh: Setting | None
    n_images: int
    n_draws: int

    @property
    def settings(self) -> list[Setting]:
        """The setting and, for stochastic methods, its fresh-draw variant."""
        return [self.setting, *([self.fresh] if self.fresh else [])]


def randomized_methods(params: Params) -> dict[str, RandomizedMethodSettings]:
    """Methods of params' section `randomization`, each with its setting.

    A setting that draws nothing, whatever its method can do, has no fresh draws.
    """
    section = params.randomization
    found = {}
    for method, wanted in section.methods.items():
        made = setting(method, wanted.hyperparameters)
        values = made.hyperparameters
        drawn = declaration(method).stochastic
        if not find(method):
            drawn = drawn and values.get("baseline", "uniform") in RANDOM_BASELINES
        fresh = setting(method, {**values, "seed": values["seed"] + 1}) if drawn else None
        found[method] = RandomizedMethodSettings(
            made, fresh, wanted.n_images or section.n_images, wanted.n_draws or section.n_draws
        )
    return found


def read(params: Params) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Scores, function changes and failures that `run` wrote."""
    folder = params.results / "randomization"
    names = ("scores.parquet", "changes.parquet", "failures.csv")
    scores, changes, failures = (read_table(folder / name) for name in names)
    return scores, changes, failures
