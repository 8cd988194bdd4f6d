"""Ordered subsets: a pass through the scan in several object updates, each on a part that covers the field.

Neighbouring patterns tell nearly the same about a pixel. Where many of them overlap, an eighth of the scan
gives almost the step of the whole, so one pass makes eight steps. Their noise stays in the object, so the
last passes use the whole scan again.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

BLOCKS = 8
"""Parts a scan is cut into; a subset is one or several of them."""
MIN_OVERLAP = 2.0
"""Patterns of a subset that must see a pixel on average."""
_SHARES = ((0.4, 1), (0.6, 2), (0.8, 4))
"""Until this share of the passes, the most subsets are divided by this."""
MIN_PASSES = 20
"""Passes that subsets never go below."""
SUBSET_MOMENTUM = 0.9
"""Most momentum where subsets are used: many updates make it long, and it would carry their noise along."""
_BITS = 16


def subset_order(positions_yx_px: NDArray[np.float64]) -> NDArray[np.int64]:
    """Order positions along a Z curve, so that every ``BLOCKS``-th of them is spread evenly over the scan.

    Parameters
    ----------
    positions_yx_px : float64 array, shape (J, 2)
        Patch centres [px].

    Returns
    -------
    int64 array, shape (J,)
        A permutation; block b is ``order[b::BLOCKS]``.
    """
    low = positions_yx_px.min(axis=0)
    extent = max(float((positions_yx_px - low).max()), 1e-9)
    cells = ((positions_yx_px - low) / extent * (2**_BITS - 1)).astype(np.int64)
    code = np.zeros(len(cells), dtype=np.int64)
    for bit in range(_BITS):
        for axis in (0, 1):
            code |= ((cells[:, axis] >> bit) & 1) << (2 * bit + axis)
    return np.argsort(code, kind="stable")


def most_subsets(positions_yx_px: NDArray[np.float64], probe: NDArray[np.complexfloating]) -> int:
    """Return into how many subsets a scan can be cut, each of which still sees every pixel several times.

    Parameters
    ----------
    positions_yx_px : float64 array, shape (J, 2)
        Patch centres [px].
    probe : complex array, shape (P, N, N)
        Probe modes [sqrt(photons)].

    Returns
    -------
    int
        1, 2, 4 or ``BLOCKS``.
    """
    light = (np.abs(probe.astype(np.complex128)) ** 2).sum(axis=0)
    # The participation area: exact for a disc of even light, little moved by a faint halo.
    area_px = light.sum() ** 2 / max(float((light**2).sum()), 1e-300)
    field_px = float(np.prod(np.ptp(positions_yx_px, axis=0) + np.sqrt(area_px)))
    overlap = len(positions_yx_px) * area_px / field_px
    count = 1
    while count < BLOCKS and overlap >= 2 * count * MIN_OVERLAP:
        count *= 2
    return count


def needed_passes(n_steps: int, most: int) -> int:
    """Return how many passes in subsets do the work of steps on the whole scan.

    Parameters
    ----------
    n_steps : int
        Steps on the whole scan.
    most : int
        Most subsets of a pass, from :func:`most_subsets`.

    Returns
    -------
    int
        At most ``n_steps``, and not below ``MIN_PASSES`` unless these are fewer.
    """
    return min(n_steps, max(MIN_PASSES, 2 * n_steps // most))


def subset_schedule(n_passes: int, most: int) -> Iterator[int]:
    """Yield the number of subsets of every pass: many at first, the whole scan in the end (eq. 19).

    Parameters
    ----------
    n_passes : int
        Passes through the scan.
    most : int
        From :func:`most_subsets`; 1 leaves every pass whole.

    Yields
    ------
    int
        Subsets of the pass.
    """
    for index in range(n_passes):
        share = (index + 0.5) / n_passes
        divisor = next((by for until, by in _SHARES if share < until), BLOCKS)
        yield max(1, most // divisor)


def nesterov_momentum(index: int) -> float:
    r"""Return the momentum of plain step ``index``.

    .. math:: \beta_k = k / (k + 3)

    Parameters
    ----------
    index : int
        Step, from 0.

    Returns
    -------
    float
        In [0, 1).

    References
    ----------
    Nesterov, Soviet Math. Dokl. 27, 372 (1983); specs/physics.md, eq. 11.
    """
    return index / (index + 3)


def subset_momentum(update: int, most: int) -> float:
    """Return the momentum of an object update (eq. 11, eq. 19).

    Parameters
    ----------
    update : int
        Updates so far.
    most : int
        Most subsets of a pass.

    Returns
    -------
    float
        In [0, 1).
    """
    momentum = nesterov_momentum(update)
    return momentum if most == 1 else min(momentum, SUBSET_MOMENTUM)
