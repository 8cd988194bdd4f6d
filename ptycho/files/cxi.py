"""CXI files of version 1.5 and 1.6, and NeXus files after NXcxi_ptycho, which have the same names.

The frame of CXI: z along the beam, y up, x to the left as seen along the beam. ``translation`` is where the
sample is, so the beam meets it at minus that. The rows of a frame run along -y and its columns along -x,
unless ``basis_vectors`` of the detector say otherwise. With the usual detector a larger x of the file is
therefore a larger column, and a larger y a larger row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ptycho.data.optics import HC_EV_M, FileOptions, Optics
from ptycho.data.raw import OWN_PLACES, RawData
from ptycho.files.arrays import energy_eV, metres_per_unit, read_array, size_m, unread_datasets
from ptycho.files.assemble import make_raw_data, on_object_pixels, require_optics
from ptycho.files.cxi_layout import ADD_IT, EntryFrames, EntryPaths, entry_of, is_nexus
from ptycho.files.formats import Request, Source
from ptycho.files.hdf5 import Dataset, File, find_dataset, require_dataset
from ptycho.files.product import read_product, sibling_product
from ptycho.files.ptychodus import PtychodusPair


class CXI:
    """CXI and NXcxi_ptycho; without positions of its own, such a file is half of a pair of Ptychodus."""

    name = "CXI, NXcxi_ptycho"

    def recognises(self, source: Source) -> bool:
        """Tell whether an HDF5 file has an entry."""
        return not isinstance(source, dict) and entry_of(source) is not None

    def read(self, source: File, request: Request) -> Callable[[], RawData]:
        """Read a scan in metres; the probe of ``product_file`` goes before that of the file."""
        request.refuse_pattern_axis()
        paths, options = EntryPaths(entry_of(source)), request.options
        if find_dataset(source, paths.translation) is None and (
            options.product_file is not None or sibling_product(request.path) is not None
        ):
            return PtychodusPair().read(source, request)
        return _read(source, paths, options, request.probe_key)

    def pattern_size(self, source: File, request: Request) -> int:
        """Return the side of the square around the beam [px]."""
        return EntryFrames(source, EntryPaths(entry_of(source)), request.options).window.side


def _read(
    file: File, paths: EntryPaths, options: FileOptions, probe_key: str | None
) -> Callable[[], RawData]:
    where, frames = file.filename, EntryFrames(file, paths, options)
    n_px, detector = frames.window.side, frames.detector
    energy = options.photon_energy_eV
    energy = _energy_eV(file, paths) if energy is None else energy
    optics = Optics(energy, detector.distance_m, detector.pixel_yx_m).overridden(options)
    optics = require_optics(optics, n_px, _places(paths), where)
    positions_m = options.orientation.turn(_beam_on_sample(file, paths, frames, options))
    probe = _probe(file, paths, probe_key, options)
    patterns, bad = frames.read()
    unused = unread_datasets(file, [frames.dataset, *_other(file, paths, probe_key, options)], n_px)
    positions, optics = on_object_pixels(positions_m, optics, n_px, where)
    usual = EntryPaths("entry_1")
    return partial(
        make_raw_data, patterns, positions, probe, optics, source=where, file_format="cxi", bad_pixels=bad,
        options=options, cut=frames.cut(), unused=unused,
        places={**OWN_PLACES, "mask": usual.mask[0], "patterns": usual.patterns[0]},
    )  # fmt: skip


def _places(paths: EntryPaths) -> dict[str, str]:
    """Where a file would hold what metres need, for messages."""
    places = {
        "photon_energy_eV": [*paths.source_energy, *paths.beam_energy[:1]],
        "detector_distance_m": paths.distance,
        "detector_pixel_yx_m": paths.pixel["x"],
    }
    return {name: " or ".join(f"'{path}'" for path in looked) for name, looked in places.items()}


def _energy_eV(file: File, paths: EntryPaths) -> float | None:
    """Photon energy; ``source_1/energy`` of NeXus is that of the machine, so it comes last there."""
    nexus = is_nexus(file, paths.definition)
    found = find_dataset(file, [*paths.beam_energy, *([] if nexus else paths.source_energy)])
    if found is not None:
        return energy_eV(found)
    wavelength = find_dataset(file, paths.wavelength)
    if wavelength is not None:
        return HC_EV_M / size_m(wavelength)
    source = find_dataset(file, paths.source_energy)
    return None if source is None else energy_eV(source)


def _beam_on_sample(
    file: File, paths: EntryPaths, frames: EntryFrames, options: FileOptions
) -> NDArray[np.float64]:
    """Where the beam meets the sample, along the rows and the columns of the frames, shape (M, 2) [m]."""
    translation = require_dataset(file, paths.translation, "the list of positions", ADD_IT)
    count, shape = frames.count, translation.shape
    if options.match_lengths == "head" and len(shape) == 2 and shape[1] in (2, 3):
        count = shape[0]
    usual = len(shape) == 2 and shape[0] == count and shape[1] in (2, 3)
    turned = len(shape) == 2 and shape[1] == count and shape[0] in (2, 3)
    values = read_array(translation, "iuf", f"({count}, 3) numbers, one row per frame", usual or turned)
    values = values.astype(np.float64) if usual else values.T.astype(np.float64)
    lab = np.zeros((count, 3))
    lab[:, : values.shape[1]] = values * metres_per_unit(translation)
    return -(lab @ frames.detector.basis.T)


def _probe(file: File, paths: EntryPaths, probe_key: str | None, options: FileOptions) -> NDArray[Any] | None:
    """Probe of the named path, of the product, or of the usual places; None where there is none."""
    if probe_key is not None:
        dataset = require_dataset(file, [probe_key], "the probe", "Correct --probe-key.")
    elif options.product_file is not None:
        return read_product(options.product_file).probe
    else:
        dataset = find_dataset(file, paths.probe)
    if dataset is None:
        return None
    probe = read_array(dataset, "fc", "(N, N) or (P, N, N) complex numbers", dataset.ndim in (2, 3, 4))
    return probe[0] if probe.ndim == 4 else probe


def _other(
    file: File, paths: EntryPaths, probe_key: str | None, options: FileOptions
) -> list[Dataset | None]:
    """Return what is read beside the frames; where the user names a probe, no other one is missed."""
    chosen = probe_key is not None or options.product_file is not None
    probes = [[path] for path in (*paths.probe, probe_key or "")] if chosen else [paths.probe]
    return [find_dataset(file, found) for found in (paths.mask, *probes)]
