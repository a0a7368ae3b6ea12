"""Custom attribution methods: functions that are called per setting, their maps checked."""

import random
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from steadymap.attribution.model_runner import Batch, Explained, Explainer, ModelRunner, Setting
from steadymap.params.plugins import OwnError, OwnMethod

# Another thread, such as one of Dask's, may draw from Python's generator during a call.
_ATTEMPTS = 3


def explainer_of(method: OwnMethod) -> Explainer:
    """Explainer of a custom method.

    Its maps are refused where they are no floats of the images' shape, where the function drew from
    a global random generator, or took more passes than declared.
    """
    name = method.declaration.name
    where = f"{name} ({method.code.path})" if method.code.path else name

    def cost(setting: Setting, side: int) -> tuple[int, int]:
        declared: Any = method.cost(setting, side)
        try:
            forward, backward = declared
        except (TypeError, ValueError):
            raise OwnError(
                f"{where}: cost gives {declared!r}; let it give forward and backward passes per "
                "image"
            ) from None
        return forward, backward

    def explain(runner: ModelRunner, batch: Batch, setting: Setting) -> Explained:
        images, targets, image_ids = batch
        ids = {"image_ids": list(image_ids)} if method.takes_ids else {}
        for _ in range(_ATTEMPTS):
            before, state = (runner.forward, runner.backward), _random_state()
            try:
                # Copies, since the function may change its arguments.
                maps = method.code.function(
                    runner, images.clone(), targets.clone(), **ids, **setting
                )
            except (MemoryError, OSError):
                raise
            except Exception as error:
                last = traceback.extract_tb(error.__traceback__)[-1]
                raise OwnError(
                    f"{where} failed at {Path(last.filename).name}:{last.lineno}: "
                    f"{type(error).__name__}: {error}"
                ) from error
            if _same(state, _random_state()):
                break
        else:
            raise OwnError(
                f"{where} draws from a global random generator, whose numbers depend on what ran "
                "before; declare seed=Hyperparameter(int, 0, low=0), take image_ids and draw from "
                f"steadymap.draws.generator(seed, image_id, {name!r}, draw)"
            )
        taken = runner.forward - before[0], runner.backward - before[1]
        _check_cost(where, taken, cost(setting, images.shape[-1]), len(images))
        return _checked(where, maps, images), {}

    return Explainer(explain, cost=cost, libraries=method.libraries)


def _random_state() -> tuple[Any, ...]:
    _, *numpy_state = np.random.get_state(legacy=True)
    return random.getstate(), numpy_state, torch.get_rng_state()


def _same(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return (
        before[0] == after[0]
        and all(np.array_equal(a, b) for a, b in zip(before[1], after[1], strict=True))
        and torch.equal(before[2], after[2])
    )


def _check_cost(
    where: str, taken: tuple[int, int], declared: tuple[int, int], n_images: int
) -> None:
    forward, backward = declared
    if taken[0] > forward * n_images or taken[1] > backward * n_images:
        needed = tuple(-(-count // n_images) for count in taken)
        raise OwnError(
            f"{where} took {needed[0]} forward and {needed[1]} backward passes per image, "
            f"{forward} and {backward} are declared; declare cost={needed}, or a function of "
            "hyperparameters and side"
        )


def _checked(where: str, maps: Any, images: Tensor) -> Tensor:
    """Maps in float32, detached."""
    if not isinstance(maps, Tensor):
        raise OwnError(f"{where} returns {type(maps).__name__}; return a torch.Tensor of maps")
    shape = (len(images), *images.shape[2:])
    if maps.shape != shape:
        raise OwnError(
            f"{where} returns shape {tuple(maps.shape)}; return one map per image, {shape}, such "
            "as the mean over channels, .mean(1)"
        )
    if not maps.is_floating_point():
        raise OwnError(f"{where} returns {maps.dtype}; return float32")
    return maps.detach().to(torch.float32)
