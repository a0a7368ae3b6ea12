"""Random draws keyed by what they belong to, never taken from a running stream."""

import hashlib

import numpy as np


def generator(seed: int, image_id: str, method: str, draw: int) -> np.random.Generator:
    """Counter-based generator of one draw.

    The key holds no model, order, block or worker: all models see the same draws, and a larger
    sample begins with the smaller one's draws.

    Parameters
    ----------
    seed : int
        The setting's seed.
    image_id : str
        Name of the image in its data set.
    method : str
        Name of the attribution method.
    draw : int
        Index of the draw.
    """
    key = hashlib.sha256(f"{seed}\n{image_id}\n{method}\n{draw}".encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(key[:16], dtype=np.uint64)))


def derived_seed(*parts: object) -> int:
    """Return a seed in [0, 2**63) for the thing that `parts` name."""
    digest = hashlib.sha256("\n".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
