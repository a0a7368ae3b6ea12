"""How much attribution maps move when hyperparameters or model parameters change."""

import importlib
from typing import Any

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
    "Hyperparameter": "steadymap.vocabulary",
    "attribute": "steadymap.attribution",
    "attribution_method": "steadymap.own",
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
    if name in HOMES:
        return getattr(importlib.import_module(HOMES[name]), name)
    raise AttributeError(f"module 'steadymap' has no attribute {name!r}")
