"""The real client without its windows: settings, product and patterns in, its own child processes at work.

Only public names of ptychodus 1.7.0 are used, in the order in which its own model uses them. Lengths in
metres are the client's world; pixels are object pixels. Importing this module needs the client, no framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import DTypeLike, NDArray
from ptychodus.api.geometry import PixelGeometry
from ptychodus.api.object import Object, ObjectCenter
from ptychodus.api.probe import Probe, ProbeSequence
from ptychodus.api.probe_positions import ProbePosition, ProbePositionSequence
from ptychodus.api.product import Product, ProductMetadata
from ptychodus.api.reconstruct import ReconstructInput, TrainableReconstructor, TrainOutput
from ptychodus.api.settings import SettingsRegistry
from ptychodus.model.ptychopinn import PtychoPINNReconstructorLibrary
from ptychodus.model.ptychopinn_torch import PtychoPINNTorchReconstructorLibrary

from ptycho.simulation.simulate import SimulationOptions, simulate

PIXEL = PixelGeometry(width_m=10e-9, height_m=12e-9)
"""Pixel of the object; not square, so that exchanged axes show."""
WORLD_CENTRE = ObjectCenter(x_m=3.1e-6, y_m=-1.7e-6)
"""Where the middle of the true object lies; not 0, so that a forgotten centre shows."""
LIBRARIES = {"tensorflow": PtychoPINNReconstructorLibrary, "torch": PtychoPINNTorchReconstructorLibrary}
"""Plug-in -> the class that the client's own model makes at start."""


@dataclass(frozen=True)
class Experiment:
    """A simulated measurement.

    Attributes
    ----------
    truth : Object
        True object and its place in the world.
    probe : Probe
        Modes (P, N, N) [sqrt(photons)].
    positions_yx_m : float64 array, shape (M, 2)
        Where the patches lie in the world.
    patterns : array, shape (M, N, N)
        Counts.
    """

    truth: Object
    probe: Probe
    positions_yx_m: NDArray[np.float64]
    patterns: NDArray[Any]

    def input(
        self,
        *,
        rows: NDArray[np.int64] | None = None,
        obj: Object | None = None,
        bad_pixels: NDArray[np.bool_] | None = None,
    ) -> ReconstructInput:
        """Return what the client hands to a plug-in.

        Parameters
        ----------
        rows : int array, optional
            Patterns that take part; all of them by default.
        obj : Object, optional
            Current object of the product; the true one by default. See :meth:`object_for`.
        bad_pixels : bool array, shape (N, N), optional
            True where the detector measured nothing.

        Returns
        -------
        ReconstructInput
            Patterns, mask and product.
        """
        rows = np.arange(len(self.patterns)) if rows is None else rows
        points = [
            ProbePosition(index, x_m=float(x), y_m=float(y))
            for index, (y, x) in enumerate(self.positions_yx_m[rows])
        ]
        product = Product(
            metadata=_METADATA,
            probe_positions=ProbePositionSequence(points),
            probes=ProbeSequence.from_probe(self.probe),
            object_=self.truth if obj is None else obj,
            losses=[],
        )
        mask = np.zeros(self.patterns.shape[1:], dtype=bool) if bad_pixels is None else bad_pixels
        return ReconstructInput(self.patterns[rows], mask, product)

    def object_for(self, rows: NDArray[np.int64], extra_yx_px: tuple[int, int] = (0, 0)) -> Object:
        """Return a flat object sized as the client sizes it: the scan's bounding box and the probe around it.

        Parameters
        ----------
        rows : int array
            Patterns that take part.
        extra_yx_px : tuple of int
            Pixels added to height and width, which makes even sizes odd.

        Returns
        -------
        Object
            Its centre is the middle of the bounding box, which is not the mean of the positions.
        """
        low, high = self.positions_yx_m[rows].min(axis=0), self.positions_yx_m[rows].max(axis=0)
        pixel_m = np.array([PIXEL.height_m, PIXEL.width_m])
        size = np.ceil((high - low) / pixel_m).astype(int) + self.patterns.shape[1:] + np.array(extra_yx_px)
        middle = (low + high) / 2
        centre = ObjectCenter(x_m=float(middle[1]), y_m=float(middle[0]))
        return Object(np.ones(tuple(size), dtype=complex), PIXEL, centre)


_METADATA = ProductMetadata(
    name="simulated",
    comments="",
    detector_distance_m=2.0,
    photon_energy_eV=8_000.0,
    probe_photon_count=1e6,
    exposure_time_s=0.1,
    mass_attenuation_m2_per_kg=0.0,
    tomography_angle_deg=0.0,
)


def simulate_experiment(*, dtype: DTypeLike = np.uint16, **options: Any) -> Experiment:
    """Simulate a measurement and hold it as the client does.

    Parameters
    ----------
    dtype : dtype
        Type of the counts.
    **options
        Of :class:`ptycho.simulation.simulate.SimulationOptions`.

    Returns
    -------
    Experiment
        The middle of its object is the middle of the scan's bounding box.
    """
    arrays = simulate(SimulationOptions(**options))
    truth = Object(arrays["objectGuess"], PIXEL, WORLD_CENTRE)
    positions = np.stack([arrays["ycoords"], arrays["xcoords"]], axis=1)
    middle_px = (np.array(arrays["objectGuess"].shape) - 1) / 2
    pixel_m = np.array([PIXEL.height_m, PIXEL.width_m])
    positions_m = (positions - middle_px) * pixel_m + np.array([WORLD_CENTRE.y_m, WORLD_CENTRE.x_m])
    return Experiment(truth, Probe(arrays["probeGuess"], PIXEL), positions_m, arrays["diff3d"].astype(dtype))


def with_square(
    experiment: Experiment, *, offset_yx_px: tuple[int, int], side_px: int = 6, seed: int = 0
) -> Experiment:
    """Measure an empty object with one square, by the scan of an experiment that stands on whole pixels.

    Parameters
    ----------
    experiment : Experiment
        Its probe, positions and pixel are kept; ``integer_positions`` was chosen.
    offset_yx_px : tuple of int
        First row and column of the square, from the middle of the object.
    side_px : int
        Side of the square, which transmits ``0.5 exp(0.8 i)``.
    seed : int
        Of the photon noise.

    Returns
    -------
    Experiment
        Patterns computed by slices and plain transforms, nothing of the toolkit.
    """
    shape, n_px = experiment.truth.get_layer(0).shape, experiment.patterns.shape[-1]
    obj = np.ones(shape, complex)
    first = [size // 2 + offset for size, offset in zip(shape, offset_yx_px, strict=True)]
    obj[first[0] : first[0] + side_px, first[1] : first[1] + side_px] = 0.5 * np.exp(0.8j)
    pixel_m, centre = np.array([PIXEL.height_m, PIXEL.width_m]), experiment.truth.get_center()
    middle_px = (np.array(shape) - 1) / 2
    places = (experiment.positions_yx_m - [centre.y_m, centre.x_m]) / pixel_m + middle_px
    corners = places - (n_px - 1) / 2
    assert abs(corners - np.round(corners)).max() < 1e-6, "the positions are not whole pixels"
    probe, rng = experiment.probe.get_array(), np.random.default_rng(seed)
    patches = np.stack([obj[y : y + n_px, x : x + n_px] for y, x in np.round(corners).astype(int)])
    waves = np.fft.fftshift(np.fft.fft2(patches[:, None] * probe, norm="ortho"), axes=(-2, -1))
    counts = rng.poisson((np.abs(waves) ** 2).sum(axis=1)).astype(experiment.patterns.dtype)
    return Experiment(Object(obj, PIXEL, centre), experiment.probe, experiment.positions_yx_m, counts)


def fractions_px(experiment: Experiment) -> set[float]:
    """Return the fractions of a pixel between the first position and the others."""
    moves_m = experiment.positions_yx_m - experiment.positions_yx_m[0]
    moves_px = moves_m / np.array([PIXEL.height_m, PIXEL.width_m])
    return {float(part) for part in np.round(moves_px % 1, 6).ravel() % 1}


def open_plugin(plugin: Literal["tensorflow", "torch"], settings: Mapping[str, Any] | None = None) -> Any:
    """Start a plug-in as the client's model does.

    Parameters
    ----------
    plugin : {'tensorflow', 'torch'}
        Which of the two.
    settings : mapping, optional
        Values by ``group.name``, as in ``{"training_settings.epochs": 3}``; the client's defaults elsewhere.

    Returns
    -------
    ReconstructorLibrary
        Iterates over its reconstructors.
    """
    library = LIBRARIES[plugin](SettingsRegistry(), is_developer_mode_enabled=False)
    for name, value in (settings or {}).items():
        group, _, parameter = name.partition(".")
        getattr(getattr(library, group), parameter).set_value(value)
    return library


def reconstructor(
    plugin: Literal["tensorflow", "torch"], name: str, settings: Mapping[str, Any] | None = None
) -> TrainableReconstructor:
    """Return one of the reconstructors that the client lists.

    Parameters
    ----------
    plugin : {'tensorflow', 'torch'}
        Which plug-in.
    name : {'PINN', 'Unsupervised', 'Supervised'}
        Name in the client's list.
    settings : mapping, optional
        See :func:`open_plugin`.

    Returns
    -------
    TrainableReconstructor
        Every call of it starts a child process.
    """
    return next(item for item in open_plugin(plugin, settings) if item.name == name)


def export(
    chosen: TrainableReconstructor, data: ReconstructInput, folder: Path, name: str = "train_data"
) -> None:
    """Write training data as the client does.

    Parameters
    ----------
    chosen : TrainableReconstructor
        Reconstructor to be trained.
    data : ReconstructInput
        Patterns and product.
    folder : Path
        Made where it is absent.
    name : {'train_data', 'test_data'}
        File name without ``.npz``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    chosen.export_training_data(folder / f"{name}.npz", data)


def train(chosen: TrainableReconstructor, inputs: Path, outputs: Path) -> TrainOutput:
    """Train in the client's child process, to the end.

    Parameters
    ----------
    chosen : TrainableReconstructor
        Reconstructor; it remembers the model.
    inputs, outputs : Path
        Folder of ``train_data.npz`` and ``test_data.npz``; folder of the model.

    Returns
    -------
    TrainOutput
        Loss curves, as far as the plug-in delivers them.

    Raises
    ------
    ptychodus.model.processing._subprocess_protocol.ChildError
        If the child raised.
    """
    return list(chosen.train(inputs, outputs))[-1]


def reconstruct(chosen: TrainableReconstructor, data: ReconstructInput) -> Object:
    """Reconstruct in the client's child process.

    Parameters
    ----------
    chosen : TrainableReconstructor
        Reconstructor with a model.
    data : ReconstructInput
        Patterns and product.

    Returns
    -------
    Object
        As the client keeps it.

    Raises
    ------
    ptychodus.model.processing._subprocess_protocol.ChildError
        If the child raised.
    """
    return list(chosen.reconstruct(data))[-1].product.object_


def at_true_pixels(
    found: Object, truth: Object, positions_yx_m: NDArray[np.float64], *, reach_px: float
) -> tuple[NDArray[np.complex128], NDArray[np.complex128]]:
    """Return an object and the true one at the true pixels around a scan; parameters as in
    :func:`displacement_px`, shapes (H, W)."""
    from scipy.ndimage import map_coordinates

    geometry, place = truth.get_geometry(), found.get_geometry()
    y_m = (
        geometry.center_y_m
        + (np.arange(geometry.height_px) - (geometry.height_px - 1) / 2) * geometry.pixel_height_m
    )
    x_m = (
        geometry.center_x_m
        + (np.arange(geometry.width_px) - (geometry.width_px - 1) / 2) * geometry.pixel_width_m
    )
    reach_m = reach_px * np.array([geometry.pixel_height_m, geometry.pixel_width_m])
    low, high = positions_yx_m.min(axis=0) - reach_m, positions_yx_m.max(axis=0) + reach_m
    rows, columns = (
        np.flatnonzero((axis >= low[index]) & (axis <= high[index])) for index, axis in enumerate((y_m, x_m))
    )
    y_px = (y_m[rows] - place.center_y_m) / place.pixel_height_m + (place.height_px - 1) / 2
    x_px = (x_m[columns] - place.center_x_m) / place.pixel_width_m + (place.width_px - 1) / 2
    points = np.meshgrid(y_px, x_px, indexing="ij")
    layer = found.get_layer(0)
    sampled = map_coordinates(layer.real, points, order=3) + 1j * map_coordinates(layer.imag, points, order=3)
    expected = truth.get_layer(0)[np.ix_(rows, columns)]
    return sampled, expected


def displacement_px(
    found: Object, truth: Object, positions_yx_m: NDArray[np.float64], *, reach_px: float
) -> NDArray[np.float64]:
    """Return how far the features of an object lie from where they are in the world.

    The found object is sampled at the world coordinates of the true pixels, where the scan went: a part of
    the object that no pattern saw holds no features of the sample.

    Parameters
    ----------
    found, truth : Object
        Objects with their place.
    positions_yx_m : float64 array, shape (M, 2)
        Where the patches of the reconstruction lie in the world.
    reach_px : float
        How far beyond their bounding box the features count; the light fades there.

    Returns
    -------
    float64 array, shape (2,)
        (y, x), found minus true place [px], to a twentieth of a pixel.
    """
    from skimage.registration import phase_cross_correlation

    sampled, expected = at_true_pixels(found, truth, positions_yx_m, reach_px=reach_px)
    # The mean is no feature, and it is what a poor reconstruction gets right first.
    window = np.outer(*(np.hanning(count + 2)[1:-1] for count in sampled.shape))
    shift = phase_cross_correlation(
        (sampled - sampled.mean()) * window,
        (expected - expected.mean()) * window,
        upsample_factor=20,
        normalization=None,
    )[0]
    return np.asarray(shift, dtype=np.float64)
