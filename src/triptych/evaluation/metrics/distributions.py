"""FID and KID of two sets of features, and the jackknife interval of both.

Shapes: N, M pictures, D features.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import stats

Statistic = Callable[[np.ndarray, np.ndarray], float]


class Interval(NamedTuple):
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


def frechet(made_ND: np.ndarray, true_MD: np.ndarray) -> float:
    """The Fréchet distance of two Gaussians fitted to features: FID, if they are Inception's.

    Heusel et al. 2017, eq. 6: |μ1 - μ2|² + tr(Σ1 + Σ2 - 2 (Σ1 Σ2)^½), with Σ of N - 1 degrees of freedom.
    With Σ = A Aᵀ the last trace is the sum of the singular values of A1ᵀ A2, an N × M matrix; it is formed
    if that is the smaller one, else Σ1^½ Σ2 Σ1^½ is. Both have no negative root that would have to be cut.
    """
    made, true = np.asarray(made_ND, dtype=np.float64), np.asarray(true_MD, dtype=np.float64)
    assert min(len(made), len(true)) > 1 and made.shape[1] == true.shape[1]
    means = made.mean(axis=0), true.mean(axis=0)
    a_ND = (made - means[0]) / np.sqrt(len(made) - 1)
    b_MD = (true - means[1]) / np.sqrt(len(true) - 1)
    if max(len(made), len(true)) <= made.shape[1]:
        root = np.linalg.svd(a_ND @ b_MD.T, compute_uv=False).sum()
    else:
        values, vectors = np.linalg.eigh(a_ND.T @ a_ND)
        half = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
        product = half @ (b_MD.T @ b_MD) @ half
        root = np.sqrt(np.maximum(np.linalg.eigvalsh((product + product.T) / 2), 0)).sum()
    spread = (a_ND**2).sum() + (b_MD**2).sum()
    return float(((means[0] - means[1]) ** 2).sum() + spread - 2 * root)


def kernel_distance(made_ND: np.ndarray, true_MD: np.ndarray) -> float:
    """The unbiased squared MMD of two sets of features with the kernel (x·y / D + 1)³; it may be negative.

    Bińkowski et al. 2018, section 3 and Gretton et al. 2012, eq. 3; the sets may differ in size.
    """
    made, true = np.asarray(made_ND, dtype=np.float64), np.asarray(true_MD, dtype=np.float64)
    n, m, d = len(made), len(true), made.shape[1]
    assert min(n, m) > 1
    own = (made @ made.T / d + 1) ** 3
    theirs = (true @ true.T / d + 1) ** 3
    between = (made @ true.T / d + 1) ** 3
    within = (own.sum() - np.trace(own)) / (n * (n - 1)) + (theirs.sum() - np.trace(theirs)) / (m * (m - 1))
    return float(within - 2 * between.mean())


def kid(
    made_ND: np.ndarray, true_MD: np.ndarray, subsets: int = 100, size: int = 1000, seed: int = 0
) -> float:
    """The mean of `kernel_distance` over `subsets` random subsets of `size` pictures of each set, as in the
    paper's code; over the whole sets if they have no more than `size`.
    """
    if max(len(made_ND), len(true_MD)) <= size:
        return kernel_distance(made_ND, true_MD)
    rng = np.random.default_rng(seed)
    drawn = [
        [rng.choice(len(one), min(size, len(one)), replace=False) for one in (made_ND, true_MD)]
        for _ in range(subsets)
    ]
    return float(np.mean([kernel_distance(made_ND[own], true_MD[theirs]) for own, theirs in drawn]))


def jackknife(
    statistic: Statistic, made_ND: np.ndarray, true_MD: np.ndarray, groups: int = 20, seed: int = 0
) -> Interval:
    """A statistic with its 95 % interval by the delete-a-group jackknife: it is computed again without each
    of `groups` random groups of pictures, the pair of a picture being left out with it.

    Kott 2001, eq. 1, with Student's t of `groups` - 1 degrees of freedom. A bootstrap would count pictures
    twice, which moves FID itself.
    """
    value = statistic(made_ND, true_MD)
    groups = min(groups, len(made_ND), len(true_MD))
    if groups < 2 or min(len(made_ND), len(true_MD)) < 4:
        return Interval(value, float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    order = rng.permutation(max(len(made_ND), len(true_MD))) % groups
    left = [
        statistic(made_ND[order[: len(made_ND)] != group], true_MD[order[: len(true_MD)] != group])
        for group in range(groups)
    ]
    error = np.sqrt((groups - 1) / groups * np.sum((np.array(left) - np.mean(left)) ** 2))
    half = float(stats.t.ppf(0.975, groups - 1) * error)
    return Interval(value, value - half, value + half)


def bootstrap(values: np.ndarray, resamples: int = 1000, seed: int = 0) -> Interval:
    """The mean of values (N,) with its 95 % interval: percentiles of the means of resamples (Efron 1979)."""
    values = np.asarray(values, dtype=np.float64)
    if len(values) < 2:
        return Interval(float(values.mean()), float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (resamples, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return Interval(float(values.mean()), float(low), float(high))
