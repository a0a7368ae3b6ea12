"""Convergence of a method's maps over its count of samples."""

from dataclasses import dataclass

from steadymap.engine.settings import Setting, setting
from steadymap.params.schema import Params

# Rows of scores, one per map that is held against its image's converged one.
COLUMNS = (
    *("sweep", "method", "model", "hyperparameter", "value", "image_id", "metric", "convention"),
    *("score", "degenerate", "inverted"),
)

CONVENTION = "common"


@dataclass(frozen=True)
class Convergence:
    """A sweep towards its converged map.

    Attributes
    ----------
    sweep, hyperparameter : str
        Names of the sweep and of what it counts.
    settings : tuple of Setting
        Its settings, the smallest value first.
    converged : Setting
        The last of them with the next seed.
    """

    sweep: str
    hyperparameter: str
    settings: tuple[Setting, ...]
    converged: Setting

    @property
    def method(self) -> str:
        """Name of the method."""
        return self.converged.method

    @property
    def values(self) -> list[int]:
        """Values of what is counted, ascending."""
        return [made.hyperparameters[self.hyperparameter] for made in self.settings]


def convergences(params: Params) -> list[Convergence]:
    """Sweeps of a study that have a budget, in order; none where params ask for no budget.

    Those over a count of samples or a number of steps of a method that draws. Integrated gradients
    draw where the baseline is random, and params allow more than one trial nowhere else. A random
    start of meaningful perturbation is left out: another seed would start elsewhere, and not only
    jitter otherwise.
    """
    if params.comparisons.budget is None:
        return []
    found, known = [], params.declared
    for method in params.methods:
        declared = known[method]
        for name, sweep in params.sweeps[method].items():
            if sweep.vary is None or not declared.stochastic:
                continue
            varied = declared.hyperparameters[sweep.vary]
            if not (varied.count or varied.progress):
                continue
            # Checked to be whole numbers when params were read.
            values = sorted(int(value) for value in sweep.values)
            settings = [setting(method, {**sweep.fixed, sweep.vary: value}) for value in values]
            largest = settings[-1].hyperparameters
            if largest.get("init") == "random":
                continue
            converged = setting(method, {**largest, "seed": largest["seed"] + 1})
            found.append(Convergence(name, sweep.vary, tuple(settings), converged))
    return found
