"""What an engine is given and what it gives back; the same for every backend."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.config.config import PyTorchExecutionConfig, TrainingConfig
from ptycho.data.scaling import ScaleRecord
from ptycho.data.scan import Scan
from ptycho.errors import DataError
from ptycho.evaluation.misfit import Fit
from ptycho.geometry.canvas import CanvasPlan, lay_on_canvas
from ptycho.geometry.grouping import Groups, covering_groups, make_groups
from ptycho.geometry.subsets import subset_schedule
from ptycho.networks.architectures import POSITION_REST_STEPS, PROBE_REST_STEPS
from ptycho.process.progress import Progress

SCANNED_SHARE = 0.05
"""Share of the strongest illumination above which a canvas pixel counts as scanned."""
VALIDATION_SHARE = 0.05
"""Part of the groups that is kept from training where no test file is given."""
MIN_VALIDATED = 8
"""Fewer groups than this are all trained on."""
Bounds = tuple[float, float]


@dataclass
class TrainingJob:
    """One training, ready to run.

    Attributes
    ----------
    config : TrainingConfig
        Typed settings; ``params.cfg`` was filled from them.
    execution : PyTorchExecutionConfig
        Hardware, precision, logging.
    scan : Scan
        Patterns to train on.
    groups : Groups
        Groups of patterns to train on.
    validation : Groups or None
        Groups kept from training to judge it; None where another scan or nothing judges.
    test_scan : Scan or None
        Scan that judges the training.
    native : mapping
        The backend's own configuration objects by name, where the caller has them.
    progress : Progress
        Told what goes on.
    resume : Path or None
        Checkpoint to go on from.
    """

    config: TrainingConfig
    execution: PyTorchExecutionConfig
    scan: Scan
    groups: Groups
    validation: Groups | None = None
    test_scan: Scan | None = None
    native: Mapping[str, Any] = field(default_factory=dict)
    progress: Progress = field(default_factory=Progress)
    resume: Path | None = None


@dataclass(frozen=True)
class RefineOptions:
    """How a reconstruction is polished by the forward model alone.

    Attributes
    ----------
    steps : int
        Most steps; fewer where the misfit no longer falls.
    probe : bool
        Refine the probe too, all modes.
    positions : bool
        Refine the scan positions too.
    frames : bool
        Refine one intensity factor per frame too.
    likelihood : {'amplitude', 'poisson'}
        What the steps descend on.
    tv : float
        Strength of total-variation smoothing per step [transmission]; 0 is off.
    start : {'network', 'flat'}
        Object to start from.
    """

    steps: int
    probe: bool = False
    positions: bool = False
    frames: bool = False
    likelihood: str = "amplitude"
    tv: float = 0.0
    start: str = "network"

    def subset_counts(self, most: int) -> list[int]:
        """Return into how many subsets every pass is cut (eq. 19).

        Parameters
        ----------
        most : int
            What the scan allows, from ``ptycho.geometry.subsets.most_subsets``.

        Returns
        -------
        list of int
            One number per pass. An object that is good already gets two subsets at most: more would make it
            noisy. What else is refined needs whole passes from the moment it moves, and frame intensities,
            which trade with the object at once, from the first.
        """
        counts = list(subset_schedule(self.steps, most if self.start == "flat" else min(2, most)))
        rests = {"frames": 0, "probe": PROBE_REST_STEPS, "positions": POSITION_REST_STEPS}
        rest = min([self.steps, *(steps for name, steps in rests.items() if getattr(self, name))])
        return counts[:rest] + [1] * (self.steps - len(counts[:rest]))


@dataclass
class TrainingResult:
    """A trained model and how it got there.

    Attributes
    ----------
    model : object
        The backend's model.
    history : dict of str to list of float
        ``train_loss`` and, where something judged, ``val_loss``, one number per epoch.
    checkpoints : list of Path
        Files written, the best one first.
    seconds : float
        Time of the training alone.
    run_id : str or None
        MLflow run, where one was logged.
    """

    model: Any
    history: dict[str, list[float]]
    checkpoints: list[Path]
    seconds: float
    run_id: str | None = None


@dataclass(frozen=True)
class StoredFacts:
    """What the file of a reconstruction says about the measurement it was made from.

    Attributes
    ----------
    record : ScaleRecord or None
        Scale of the scan; None where the file does not say.
    bad_pixels : bool array, shape (N, N) or (J, N, N), or None
        True where nothing was measured.
    options : dict
        What the user said about the data file, by the names of ``ptycho.data.optics.FileOptions``.
    """

    record: ScaleRecord | None = None
    bad_pixels: NDArray[np.bool_] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Reconstruction:
    """A stitched object and where it lies.

    Attributes
    ----------
    obj : complex64 array, shape (H, W)
        Transmission; 1 where no light fell.
    coverage : float32 array, shape (H, W)
        Light per canvas pixel relative to the strongest, in [0, 1].
    origin_yx_px : float64 array, shape (2,)
        Object coordinate of canvas pixel (0, 0) [px].
    probe : complex64 array, shape (P, N, N)
        Probe modes used [sqrt(photons)].
    members : int64 array, shape (J,)
        Patterns of the scan that took part; where it was read from a file, their numbers in the data file.
    seconds : float
        Time of the reconstruction.
    misfit : tuple of float
        Relative amplitude misfit in every step of the refinement and, as eq. 7a says, after the last; empty
        without one.
    positions_yx_px : float64 array, shape (J, 2), or None
        Refined patch centres [object px], where the refinement moved them.
    fit : Fit or None
        What the object leaves unexplained, beside what photon noise alone would leave.
    frame_gain : float32 array, shape (J,), or None
        Refined factor on the amplitude of every frame; None stands for ones.
    stored : StoredFacts or None
        What only its file knows, where it was read from one.
    """

    obj: NDArray[np.complex64]
    coverage: NDArray[np.float32]
    origin_yx_px: NDArray[np.float64]
    probe: NDArray[np.complex64]
    members: NDArray[np.int64]
    seconds: float
    misfit: tuple[float, ...] = ()
    positions_yx_px: NDArray[np.float64] | None = None
    fit: Fit | None = None
    frame_gain: NDArray[np.float32] | None = None
    stored: StoredFacts | None = None

    @property
    def scanned(self) -> NDArray[np.bool_]:
        """Pixels that saw enough light to be trusted, shape (H, W)."""
        return self.coverage >= SCANNED_SHARE

    def positions_in(self, scan: Scan) -> NDArray[np.float64]:
        """Return where the patterns lie: the refined places, else those of the scan, shape (J, 2) [px]."""
        return (
            scan.positions_yx_px[self.rows_in(scan)] if self.positions_yx_px is None else self.positions_yx_px
        )

    def plan_in(self, scan: Scan) -> CanvasPlan:
        """Return where the patches lie on the canvas, as the run laid them."""
        positions, shape = self.positions_in(scan), self.obj.shape
        origin = np.asarray(self.origin_yx_px, np.float64)
        return lay_on_canvas(positions, scan.n_px, shape_yx=shape, origin_yx_px=origin, reach_px=np.inf)

    def rows_in(self, scan: Scan) -> NDArray[np.int64]:
        """Return which patterns of a scan took part.

        Parameters
        ----------
        scan : Scan
            The scan it was made from, a copy, or a part of it that holds every pattern that took part.

        Returns
        -------
        int64 array, shape (J,)
            Places in the scan.

        Raises
        ------
        DataError
            If one is not in the scan.
        """
        numbers = np.arange(scan.n_patterns) if self.stored is None else scan.pattern_numbers
        order = np.argsort(numbers, kind="stable")
        places = np.searchsorted(numbers, self.members, sorter=order)
        missing = places == len(numbers)
        rows = order[np.where(missing, 0, places)]
        missing |= numbers[rows] != self.members
        if len(self.members) == 0 or missing.any():
            last = max(int(self.members.max(initial=-1)), 0)
            lost = f" and number {self.members[missing][0]}" if missing.any() and last < numbers.max() else ""
            raise DataError(
                f"{scan.name}: the patterns do not fit the reconstruction (got {scan.n_patterns}, expected "
                f"more than {last}, the last that took part{lost}). Name the file it was made from."
            )
        return rows


def _rows(groups: Groups, rows: NDArray[np.int64]) -> Groups:
    return Groups(groups.indices[rows], groups.centres_yx_px[rows], groups.offsets_yx_px[rows])


def training_groups(
    scan: Scan,
    config: TrainingConfig,
    *,
    validate: bool,
    bounds_yx: tuple[Bounds, Bounds] | None = None,
) -> tuple[Groups, Groups | None]:
    """Draw the groups of a training, and part a few off to judge it.

    Parameters
    ----------
    scan : Scan
        Patterns and positions.
    config : TrainingConfig
        ``n_subsample``, ``n_groups``, ``neighbor_count``, seeds, ``model.gridsize``.
    validate : bool
        Keep some groups from training.
    bounds_yx : pair of pairs of float, optional
        Build groups only around points within these parts, from 0 to 1, of the scan's range along y and x.
        Partners may lie outside.

    Returns
    -------
    training, validation : Groups, Groups or None
        No validation where there are fewer than ``MIN_VALIDATED`` groups.

    Raises
    ------
    DataError
        If the scan has fewer patterns than a group needs, or none within the bounds.
    """
    members = subsample(scan, config.n_subsample, config.subsample_seed)
    needed = config.model.gridsize**2
    if len(members) < needed:
        raise DataError(
            f"{scan.name}: too few patterns for gridsize {config.model.gridsize} (got {len(members)}, "
            f"expected at least {needed}). Pass a smaller --gridsize or more patterns."
        )
    wanted = config.n_groups
    if bounds_yx is not None:
        wanted = None
    elif not config.enable_oversampling and wanted is not None:
        wanted = min(wanted, len(members))
    groups = make_groups(
        scan.positions_yx_px[members],
        gridsize=config.model.gridsize,
        n_groups=wanted,
        neighbor_count=max(config.neighbor_count, needed),
        seed=config.seed,
        sequential=config.sequential_sampling,
        enable_oversampling=config.enable_oversampling,
        neighbor_pool_size=config.neighbor_pool_size,
    )
    groups = Groups(members[groups.indices], groups.centres_yx_px, groups.offsets_yx_px)
    if bounds_yx is not None:
        groups = _within(groups, scan, bounds_yx, config)
    count = len(groups.indices)
    if not validate or count < MIN_VALIDATED:
        return groups, None
    order = np.random.default_rng(config.seed).permutation(count)
    kept = max(1, round(VALIDATION_SHARE * count))
    return _rows(groups, np.sort(order[kept:])), _rows(groups, np.sort(order[:kept]))


def judging_groups(scan: Scan, gridsize: int) -> Groups:
    """Build one group around every pattern of a scan that takes part.

    Parameters
    ----------
    scan : Scan
        Scan that judges a training.
    gridsize : int
        Side of the group, >= 1; C = gridsize**2.

    Returns
    -------
    Groups
        As many groups as usable patterns; the indices are those of the scan.

    Raises
    ------
    DataError
        If fewer than C patterns take part.
    """
    usable = scan.usable
    groups = covering_groups(scan.positions_yx_px[usable], gridsize=gridsize)
    return Groups(usable[groups.indices], groups.centres_yx_px, groups.offsets_yx_px)


def _within(groups: Groups, scan: Scan, bounds_yx: tuple[Bounds, Bounds], config: TrainingConfig) -> Groups:
    """Return the groups around points within the bounds, at most ``config.n_groups`` of them."""
    low, high = scan.positions_yx_px.min(axis=0), scan.positions_yx_px.max(axis=0)
    flat = high == low
    part = (scan.positions_yx_px - low) / np.where(flat, 1.0, high - low)
    bounds = np.array(bounds_yx, dtype=np.float64)
    # A line of points has no border across it.
    inside = (((part >= bounds[:, 0]) & (part <= bounds[:, 1])) | flat).all(axis=1)
    rows = np.flatnonzero(inside[groups.indices[:, 0]])
    if not rows.size:
        y_bounds, x_bounds = bounds.tolist()
        raise DataError(
            f"{scan.name}: no scan point lies within the bounds (got y_bounds {y_bounds} and x_bounds "
            f"{x_bounds} for {len(part)} points, expected at least one). Widen the bounds, up to 0 and 1."
        )
    if config.n_groups is not None and config.n_groups < len(rows):
        rows = np.sort(np.random.default_rng(config.seed).permutation(rows)[: config.n_groups])
    return _rows(groups, rows)


def subsample(scan: Scan, n_subsample: int | None, seed: int | None) -> NDArray[np.int64]:
    """Choose some patterns of a scan, none of those left out.

    Parameters
    ----------
    scan : Scan
        The scan.
    n_subsample : int, optional
        How many; None, or more than there are, means all that take part.
    seed : int, optional
        Seed of the choice.

    Returns
    -------
    int64 array
        Indices, ascending.
    """
    usable = scan.usable
    if n_subsample is None or n_subsample >= len(usable):
        return usable
    return np.sort(np.random.default_rng(seed).choice(usable, n_subsample, replace=False))
