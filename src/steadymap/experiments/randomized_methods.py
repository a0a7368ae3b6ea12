"""Methods whose maps are made under randomized model parameters, and the scores on disk."""

from dataclasses import dataclass

import pandas as pd

from steadymap.engine.settings import Setting, setting, with_next_seed
from steadymap.params.methods import RANDOM_BASELINES
from steadymap.params.plugins import declaration, find
from steadymap.params.schema import Params
from steadymap.store.tables import read_table


@dataclass(frozen=True)
class RandomizedMethodSettings:
    """Setting of a method under randomization.

    Attributes
    ----------
    setting : Setting
        Method and hyperparameters.
    fresh : Setting or None
        The same with fresh random draws; None where the setting draws nothing.
    n_images, n_draws : int
        Numbers of images and of weight draws.
    """

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

    A setting that draws nothing has no fresh draws.
    """
    section = params.randomization
    methods = {}
    for method, given in section.methods.items():
        trained = setting(method, given.hyperparameters)
        values = trained.hyperparameters
        # A setting may draw nothing though its method can, as a zero baseline does.
        stochastic = declaration(method).stochastic and (
            bool(find(method)) or values.get("baseline", "uniform") in RANDOM_BASELINES
        )
        fresh = with_next_seed(trained) if stochastic else None
        n_images, n_draws = given.n_images or section.n_images, given.n_draws or section.n_draws
        methods[method] = RandomizedMethodSettings(trained, fresh, n_images, n_draws)
    return methods


def read(params: Params) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Scores, function changes and failures that `run` wrote."""
    folder = params.results / "randomization"
    names = ("scores.parquet", "changes.parquet", "failures.csv")
    scores, changes, failures = (read_table(folder / name) for name in names)
    return scores, changes, failures
