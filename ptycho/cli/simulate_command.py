"""The command that simulates a scan: its flags, its messages, its exit status, and its preview picture."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ptycho.cli.console import Parser, run_command, typed_flags, with_dashes

if TYPE_CHECKING:
    from ptycho.simulation.simulate import SimulationOptions


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
    """Build the parser of the command; every flag may be spelled with dashes or underscores.

    Defaults that are not stated here are those of :class:`ptycho.simulation.simulate.SimulationOptions`.

    Returns
    -------
    argparse.ArgumentParser
        Parser without side effects.
    """
    parser = Parser(
        prog="ptycho_simulate",
        description="Simulate a ptychography scan and write it as an NPZ data file with its ground truth.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="data file, .npz")
    parser.add_argument("--preview", type=Path, metavar="PNG", help="picture of object, probe, pattern, scan")
    parser.add_argument("--no-compress", action="store_true", help="store the arrays uncompressed")
    parser.add_argument("--seed", type=int, help="seed of object, jitter and noise (default 0)")
    parser.add_argument("--quiet", action="store_true", help="print nothing on success")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    _add_object_flags(parser.add_argument_group("object"))
    _add_scan_flags(parser.add_argument_group("scan"))
    _add_beam_flags(parser.add_argument_group("beam and detector"))
    return parser


def _add_object_flags(group: argparse._ArgumentGroup) -> None:
    """Add what decides the object."""
    group.add_argument(
        "--scene",
        metavar="NAME",
        help="collage (default), dead_leaves, gaussian_random_field, lines or siemens_star",
    )
    group.add_argument("--picture", metavar="IMAGE", help="make the object from a picture instead")
    group.add_argument("--phase-picture", metavar="IMAGE", help="picture of the phase (default: the same)")
    group.add_argument(
        "--phase-range",
        dest="phase_range_rad",
        type=float,
        metavar="RAD",
        help="largest phase difference in radians (default 1.5)",
    )


def _add_scan_flags(group: argparse._ArgumentGroup) -> None:
    """Add what decides the positions."""
    group.add_argument("--scan", help="raster or spiral (default raster)")
    group.add_argument(
        "--step",
        dest="step_px",
        type=float,
        metavar="PX",
        help="distance between neighbours in object pixels (default 5)",
    )
    count = group.add_mutually_exclusive_group()
    count.add_argument("--grid", type=_grid, metavar="NYxNX", help="rows and columns (default 20x20)")
    count.add_argument("--positions", dest="n_positions", type=int, metavar="N", help="points of the spiral")
    group.add_argument(
        "--jitter",
        dest="jitter_px",
        type=float,
        metavar="PX",
        help="largest random displacement along each axis (default 1)",
    )
    group.add_argument("--integer-positions", action="store_true", help="put every patch on whole pixels")


def _add_beam_flags(group: argparse._ArgumentGroup) -> None:
    """Add what decides the probe, the detector and the noise."""
    group.add_argument(
        "--size",
        "--pattern-size",
        dest="n_px",
        type=int,
        metavar="N",
        help="pattern size in pixels (default 64)",
    )
    group.add_argument("--probe", help="zone-plate or disc (default zone-plate)")
    group.add_argument(
        "--probe-diameter",
        dest="probe_diameter_px",
        type=float,
        metavar="PX",
        help="diameter of the lit area in object pixels (default 0.45 of the pattern size)",
    )
    group.add_argument(
        "--defocus",
        dest="defocus_waves",
        type=float,
        metavar="WAVES",
        help="path difference between rim and axis of the probe (default 1)",
    )
    group.add_argument(
        "--probe-error",
        dest="probe_error_waves",
        type=float,
        metavar="WAVES",
        help="store a starting probe with this defocus error, and the true one besides",
    )
    group.add_argument(
        "--modes", dest="n_modes", type=int, metavar="P", help="incoherent probe modes (default 1)"
    )
    group.add_argument(
        "--mode-decay",
        type=float,
        metavar="F",
        help="power of a mode relative to the one before (default 0.3)",
    )
    group.add_argument(
        "--photons",
        type=float,
        metavar="N",
        help="photons per frame that an empty object would scatter (default 1e6)",
    )
    group.add_argument(
        "--background",
        dest="background_counts",
        type=float,
        metavar="COUNTS",
        help="mean background counts per pixel (default 0)",
    )


def _options(values: dict[str, Any]) -> SimulationOptions:
    """Turn parsed flags into options; what was not given keeps its default."""
    from ptycho.simulation.simulate import SimulationOptions

    if "grid" in values:
        values["n_y"], values["n_x"] = values["grid"]
    if "probe" in values:
        values["probe"] = values["probe"].replace("_", "-")
    names = {item.name for item in dataclasses.fields(SimulationOptions)}
    return SimulationOptions(**{key: value for key, value in values.items() if key in names})


def _run(values: dict[str, Any]) -> None:
    """Simulate, write, draw, and print what was made."""
    from ptycho.errors import ConfigError
    from ptycho.simulation.simulate import check_simulation, write_scan

    preview = values.get("preview")
    if preview is not None and preview.suffix.lower() != ".png":
        raise ConfigError(
            f"preview: not a PNG file (got {str(preview)!r}, expected a name ending in .png). Rename it."
        )
    options = _options(values)
    if preview is not None:
        check_simulation(options, "--preview", preview)
    arrays = write_scan(values["output"], options, compressed=not values.get("no_compress"))
    written = [values["output"]]
    if preview is not None:
        write_preview(preview, arrays)
        written.append(preview)
    if "quiet" in values:
        return
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
    """Draw a simulated scan: object amplitude and phase, probe, mean pattern, positions.

    Parameters
    ----------
    path : path
        Picture to write.
    arrays : dict of str to array
        What :func:`ptycho.simulation.simulate.simulate` returned.
    """
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from ptycho.data.npz import atomic_path

    obj, probe = arrays["objectGuess"], arrays["probeGuess"]
    probe = probe.reshape(-1, *probe.shape[-2:])
    mean = arrays["diff3d"].mean(axis=0)
    panels = [
        ("object amplitude", np.abs(obj), "gray"),
        ("object phase [rad]", np.angle(obj), "viridis"),
        ("probe amplitude [sqrt(photons)], mode 0", np.abs(probe[0]), "magma"),
        (
            "probe phase [rad], mode 0",
            np.where(np.abs(probe[0]) > 0.02 * np.abs(probe[0]).max(), np.angle(probe[0]), np.nan),
            "twilight_shifted",
        ),
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
    """Run the command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments; those of the process where none are given.

    Returns
    -------
    int
        0 when the file was written, 2 when the input was bad.
    """
    words = with_dashes(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    values = vars(parser.parse_args(words))
    return run_command(lambda: _run(values), debug="debug" in values, typed=typed_flags(parser, words))
