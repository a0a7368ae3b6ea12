"""How much attribution maps move when hyperparameters or model parameters change."""

import importlib
from typing import Any

__all__ = [
    "attribute",
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
_HOMES = {
    "attribute": "steadymap.attribution",
    "deletion": "steadymap.accuracy",
    "explainable": "steadymap.models",
    "insertion": "steadymap.accuracy",
    "localization_error": "steadymap.accuracy",
    "normalize": "steadymap.similarity",
    "show": "steadymap.notebook",
    "ssim": "steadymap.similarity",
    "sweep": "steadymap.notebook",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'steadymap' has no attribute {name!r}")
