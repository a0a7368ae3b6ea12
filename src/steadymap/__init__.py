"""How much attribution maps move when hyperparameters or model parameters change.

The protocols are those of two papers, which docstrings cite by abbreviation and section. SAM:
N. Bansal, C. Agarwal and A. Nguyen, *SAM: The Sensitivity of Attribution Methods to
Hyperparameters*, CVPR 2020, arXiv:2003.08754. Extended IPR (independent parameter randomization):
H. Sriram and C. Conati, *Evaluating the overall sensitivity of saliency-based explanation methods*,
IJCAI 2023 workshop on explainable AI, arXiv:2306.13682, after J. Adebayo et al., *Sanity checks for
saliency maps*, NeurIPS 2018, arXiv:1810.03292.
"""

import importlib
from importlib import metadata
from typing import TYPE_CHECKING, Any

# What type checkers and editors read of what HOMES imports.
if TYPE_CHECKING:
    from steadymap.attribution import attribute
    from steadymap.metrics.accuracy import deletion, insertion
    from steadymap.metrics.localization import localization_error
    from steadymap.metrics.similarity import normalize, ssim
    from steadymap.models.registry import explainable
    from steadymap.notebook import show, sweep
    from steadymap.params.methods import Hyperparameter
    from steadymap.params.plugins import attribution_method

    __version__: str

__all__ = [
    "Hyperparameter",
    "attribute",
    "attribution_method",
    "deletion",
    "explainable",
    "insertion",
    "localization_error",
    "normalize",
    "show",
    "ssim",
    "sweep",
]

# Imported on first use: a stage that needs no torch does not wait for it.
HOMES = {
    "Hyperparameter": "steadymap.params.methods",
    "attribute": "steadymap.attribution",
    "attribution_method": "steadymap.params.plugins",
    "deletion": "steadymap.metrics.accuracy",
    "explainable": "steadymap.models.registry",
    "insertion": "steadymap.metrics.accuracy",
    "localization_error": "steadymap.metrics.localization",
    "normalize": "steadymap.metrics.similarity",
    "show": "steadymap.notebook",
    "ssim": "steadymap.metrics.similarity",
    "sweep": "steadymap.notebook",
}

if not TYPE_CHECKING:  # Else every misspelled name would have the type Any.

    def __getattr__(name: str) -> Any:
        if name in HOMES:
            return getattr(importlib.import_module(HOMES[name]), name)
        if name == "__version__":
            return metadata.version("steadymap")
        raise AttributeError(f"module 'steadymap' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
