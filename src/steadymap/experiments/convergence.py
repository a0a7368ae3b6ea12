"""Convergence of a method's maps over its count of samples."""

from dataclasses import dataclass

from steadymap.engine.settings import Setting, setting, with_next_seed
from steadymap.params.schema import Params

# Score rows, one per map that is compared with its image's converged one.
COLUMNS = (
    *("sweep", "method", "model", "hyperparameter", "value", "image_id", "metric", "convention"),
    *("score", "degenerate", "inverted"),
)

CONVENTION = "common"


@dataclass(frozen=True)
class Convergence:
    """A sweep whose maps are compared with its converged one.

    Attributes
    ----------
    sweep, hyperparameter : str
        Names of the sweep and of the count that it varies.
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
        """Values of the count, ascending."""
        return [each.hyperparameters[self.hyperparameter] for each in self.settings]


def convergences(params: Params) -> list[Convergence]:
    """Sweeps of a study that have a stability budget, in order; none where params ask for none.

    These are sweeps over a count of samples or a number of steps, of a method that draws.
    Integrated gradients draw where the baseline is random, and params allow more than one trial
    nowhere else. A random start of meaningful perturbation is left out: another seed would start
    elsewhere, and not only jitter otherwise.
    """
    if params.comparisons.budget is None:
        return []
    sweeps, declarations = [], params.declared
    for method in params.methods:
        declared = declarations[method]
        for name, sweep in params.sweeps[method].items():
            if sweep.vary is None or not declared.stochastic:
                continue
            varied = declared.hyperparameters[sweep.vary]
            if not (varied.count or varied.progress):
                continue
            # Checked to be whole numbers when params were read.
            values = sorted(int(value) for value in sweep.values)
            settings = [setting(method, {**sweep.fixed, sweep.vary: value}) for value in values]
            if settings[-1].hyperparameters.get("init") == "random":
                continue
            converged = with_next_seed(settings[-1])
            sweeps.append(Convergence(name, sweep.vary, tuple(settings), converged))
    return sweeps
