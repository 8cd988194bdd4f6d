"""The command that simulates a scan: its flags, its messages, its exit status, and its preview picture."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ptycho.cli.console import Parser, run_main
from ptycho.cli.flags import Flags
from ptycho.config.choices import Propagation


def _grid(text: str) -> tuple[int, int]:
    """Read ``NYxNX``, or one number for a square grid."""
    parts = text.lower().split("x")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise argparse.ArgumentTypeError(f"got {text!r}, expected ROWSxCOLUMNS such as 20x25")
    return numbers[0], numbers[-1]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command; what is not given is decided by ``SimulationOptions``."""
    parser = Parser(
        "ptycho_simulate",
        "Simulate a ptychography scan and write it as an NPZ data file with its ground truth.",
    )
    add = Flags(parser)
    add("output", Path, "FILE", "data file, .npz", required=True)
    add("preview", Path, "PNG", "picture of object, probe, pattern, scan")
    add.mark("no-compress", "store the arrays uncompressed")
    add.mark("report-limit", "print the smallest error that photon noise leaves, the photon limit")
    add("seed", int, None, "seed of object, jitter and noise (default 0)")
    add.mark("quiet", "print nothing on success but the photon limit")
    add.mark("debug", "show the traceback of an error")
    _add_object_flags(Flags(parser, "object"))
    _add_scan_flags(Flags(parser, "scan"))
    _add_beam_flags(Flags(parser, "beam and detector"))
    return parser


def _add_object_flags(add: Flags) -> None:
    text = (
        "collage (default), dead_leaves, gaussian_random_field, lens, lines, patchwork, power_law, "
        "siemens_star or texture"
    )
    add("scene", str, "NAME", text)
    add("picture", str, "IMAGE", "make the object from a picture instead")
    add("phase-picture", str, "IMAGE", "picture of the phase (default: the same)")
    text = "largest phase difference in radians, up to 100 (default 1.5)"
    add("phase-range", float, "RAD", text, dest="phase_range_rad")
    add("edge-blur", float, "PX", "Gaussian sigma of everything in it (default 0.7)", dest="edge_blur_px")


def _add_scan_flags(add: Flags) -> None:
    add("scan", str, None, "raster or spiral (default raster)")
    add("step", float, "PX", "distance between neighbours in object pixels (default 5)", dest="step_px")
    either = Flags(add.group.add_mutually_exclusive_group())
    either("grid", _grid, "NYxNX", "rows and columns (default 20x20)")
    either("positions", int, "N", "points of the spiral", dest="n_positions")
    add("jitter", float, "PX", "largest random displacement along each axis (default 1)", dest="jitter_px")
    text = "way along x that the sample moves during an exposure, in object pixels (default 0)"
    add("fly-scan", float, "PX", text, dest="fly_scan_px")
    add.mark("integer-positions", "put every patch on whole pixels")


def _add_beam_flags(add: Flags) -> None:
    add("size pattern-size", int, "N", "pattern size in pixels (default 64)", dest="n_px")
    add("probe", str, None, "zone-plate or disc (default zone-plate)")
    text = "diameter of the lit area in object pixels (default 0.45 of the pattern size)"
    add("probe-diameter", float, "PX", text, dest="probe_diameter_px")
    text = "path difference between rim and axis of the probe (default 1)"
    add("defocus", float, "WAVES", text, dest="defocus_waves")
    add.choice("propagation", Propagation, "far or near: where the detector is (default far)")
    text = "near field: Fresnel number of an object pixel, at least 1 / N"
    add("fresnel-number", float, "F", text)
    text = "store a starting probe with this defocus error, and the true one besides"
    add("probe-error", float, "WAVES", text, dest="probe_error_waves")
    text = "defocus that the probe takes on from the first pattern to the last (default 0)"
    add("probe-drift", float, "WAVES", text, dest="probe_drift_waves")
    add("modes", int, "P", "incoherent probe modes (default 1)", dest="n_modes")
    add("mode-decay", float, "F", "power of a mode relative to the one before (default 0.3)")
    add("photons", float, "N", "photons per frame that an empty object would scatter (default 1e6)")
    text = "mean background counts per pixel (default 0)"
    add("background", float, "COUNTS", text, dest="background_counts")
    text = "parts of a detector pixel along each axis, whose counts it adds, as real pixels do (default 1)"
    add("detector-upsampling", int, "K", text)
    text = "side of the window of the probe, in patterns, at most K (default 1)"
    add("probe-window", int, "M", text)


def _run(values: dict[str, Any]) -> None:
    """Simulate, write, draw, and print what was made."""
    from ptycho.errors import ConfigError
    from ptycho.simulation.limit import check_limit, simulated_limit
    from ptycho.simulation.simulate import SimulationOptions, check_simulation, write_scan

    preview = values.get("preview")
    if preview is not None and preview.suffix.lower() != ".png":
        raise ConfigError(
            f"preview: not a PNG file (got {str(preview)!r}, expected a name ending in .png). Rename it."
        )
    if "grid" in values:
        values["n_y"], values["n_x"] = values["grid"]
    if "probe" in values:
        values["probe"] = values["probe"].replace("_", "-")
    names = {item.name for item in dataclasses.fields(SimulationOptions)}
    options = SimulationOptions(**{key: value for key, value in values.items() if key in names})
    if preview is not None:
        check_simulation(options, "--preview", preview)
    if "report_limit" in values:
        check_limit(options)
    arrays = write_scan(values["output"], options, compressed=not values.get("no_compress"))
    written = [values["output"]]
    if preview is not None:
        write_preview(preview, arrays)
        written.append(preview)
    if "quiet" not in values:
        _tell(written, arrays)
    if "report_limit" in values:
        print(simulated_limit(options, arrays).line())


def _tell(written: Sequence[Path], arrays: dict[str, Any]) -> None:
    """Print what was made."""
    counts = arrays["diff3d"]
    height, width = arrays["objectGuess"].shape
    for path in written:
        print(path)
    print(
        f"{len(counts)} patterns of {counts.shape[1]}x{counts.shape[2]} px, {height}x{width} px object, "
        f"{counts.sum(axis=(1, 2), dtype=float).mean():.4g} counts per pattern on average, "
        f"{counts.max()} in the brightest pixel"
    )


def write_preview(path: str | Path, arrays: dict[str, Any]) -> None:
    """Draw what ``simulate`` returned as a PNG: object, probe, mean pattern, positions."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ptycho.data.npz import atomic_path

    obj, probe = arrays["objectGuess"], arrays["probeGuess"]
    probe = probe.reshape(-1, *probe.shape[-2:])
    mean, amplitude = arrays["diff3d"].mean(axis=0), np.abs(probe[0])
    phase = np.where(amplitude > 0.02 * amplitude.max(), np.angle(probe[0]), np.nan)
    panels = [
        ("object amplitude", np.abs(obj), "gray"),
        ("object phase [rad]", np.angle(obj), "viridis"),
        ("probe amplitude [sqrt(photons)], mode 0", amplitude, "magma"),
        ("probe phase [rad], mode 0", phase, "twilight_shifted"),
        ("log10(1 + mean counts)", np.log10(1.0 + mean), "magma"),
    ]
    figure = Figure(figsize=(13, 8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 3).ravel()
    for axis, (title, image, colours) in zip(axes, panels, strict=False):
        figure.colorbar(axis.imshow(image, cmap=colours), ax=axis, shrink=0.8)
        axis.set_title(title)
    axes[5].imshow(np.abs(obj), cmap="gray", alpha=0.4)
    axes[5].plot(arrays["xcoords"], arrays["ycoords"], "r.", markersize=2)
    axes[5].set_title(f"{len(arrays['xcoords'])} positions [px]")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=80)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its status, as :func:`ptycho.cli.console.run_main`."""
    return run_main(build_parser(), _run, argv)
