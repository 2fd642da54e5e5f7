"""Least squares with coefficients that cannot be negative, for a handful of columns."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def least_squares(columns: Array, values: Array, weights: Array) -> Array:
    """The coefficients >= 0 with the smallest weighted squared error: the best of all subsets of the columns.

    ``columns`` [n, k], ``values`` and ``weights`` [n]; a row counts with the square of its weight. A column that is zero,
    or that others make up, gets 0.
    """
    scale = np.linalg.norm(columns * weights[:, None], axis=0)
    scale[scale == 0] = 1.0
    upper, rotated = _reduced(columns / scale * weights[:, None], values * weights)
    best, least = np.zeros(columns.shape[1]), float(np.sum(rotated**2))
    for size in range(1, columns.shape[1] + 1):
        for chosen in itertools.combinations(range(columns.shape[1]), size):
            part = upper[:, list(chosen)]
            found, _, rank, _ = np.linalg.lstsq(part, rotated, rcond=1e-6)
            error = float(np.sum((part @ found - rotated) ** 2))
            if rank == size and (found > 0).all() and error < least * (1 - 1e-9) - 1e-12:
                best, least = np.zeros(columns.shape[1]), error
                best[list(chosen)] = found
    unscaled: Array = best / scale
    return unscaled


def error_of(columns: Array, values: Array, weights: Array, coefficients: Array) -> float:
    """Weighted squared error of these coefficients."""
    return float(np.sum((weights * (columns @ coefficients - values)) ** 2))


def _reduced(columns: Array, values: Array) -> tuple[Array, Array]:
    """The same problem with as few rows as columns, up to a constant error."""
    q, upper = np.linalg.qr(columns)
    return upper, q.T @ values
