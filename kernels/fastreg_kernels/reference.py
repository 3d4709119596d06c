"""The four kernels in plain NumPy float64: what the compiled ones are compared with."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def forward(x: ArrayLike) -> NDArray[np.float64]:
    """`[sum(|x|), sum(x²)]` in float64."""
    wide = np.asarray(x, dtype=np.float64)
    return np.array([np.abs(wide).sum(), np.square(wide).sum()])


def backward(x: ArrayLike, l1: float, l2: float, upstream: float = 1.0) -> NDArray[np.float64]:
    """`upstream * (l1 * sign(x) + 2 * l2 * x)` in float64; a factor of zero skips its term."""
    wide = np.asarray(x, dtype=np.float64)
    gradient = np.zeros_like(wide)
    if l1 != 0:
        gradient = gradient + upstream * l1 * np.sign(wide)
    if l2 != 0:
        gradient = gradient + upstream * 2 * l2 * wide
    return gradient


def forward_backward(
    x: ArrayLike, l1: float, l2: float, upstream: float = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`forward` and `backward` together."""
    return forward(x), backward(x, l1, l2, upstream)


def shrink(x: ArrayLike, scale: Any, threshold: Any) -> NDArray[np.float64]:
    """`sign(x) * max(0, scale * |x| - threshold)` in float64, with +0 for what vanishes; scalars, or one per row."""
    wide = np.asarray(x, dtype=np.float64)
    a, b = (np.asarray(v, dtype=np.float64) for v in (scale, threshold))
    a, b = (v if v.ndim == 0 else v.reshape(-1, *(1,) * (wide.ndim - 1)) for v in (a, b))
    # A scale of zero skips its term, even for infinities, but no NaN may vanish with it.
    magnitude = np.where((a == 0) & ~np.isnan(wide), 0.0, a * np.abs(wide))
    return np.where(magnitude <= b, 0.0, np.sign(wide) * (magnitude - b))
