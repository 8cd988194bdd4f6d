"""Draw what Ptychodus gets from each plug-in: trained in the client, and trained by a command on its export.

    python benchmarks/ptychodus_pictures.py --output docs/images

The client of the tests exports a simulated scan, trains each of the four methods in its child process, and
reconstructs, with and without what follows the network. A further
model is trained on the exported file by ``python -m ptycho_torch.train`` and loaded into both plug-ins. Needs
ptychodus 1.7.0.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))

PLUGINS = {
    "tensorflow": (("PINN", "Supervised"), "wts.h5.zip"),
    "torch": (("Unsupervised", "Supervised"), "checkpoints/best-checkpoint.ckpt"),
}
"""Plug-in -> its methods, and what it loads of a run of the command."""
SCAN = {"n_px": 64, "n_y": 20, "n_x": 20, "photons": 1e6, "seed": 5}
MARGIN_PX = 32
"""Border that sees little light and is not scored."""


def on_grid_of(found: Any, truth: Any) -> NDArray[Any]:
    """Return an object of the client on the pixels of the truth; both have one middle in the world."""
    from scipy.ndimage import map_coordinates

    layer, shape = found.get_layer(0), truth.get_layer(0).shape
    sizes = zip(shape, layer.shape, strict=True)
    grid = [np.arange(size) - (size - 1) / 2 + (own - 1) / 2 for size, own in sizes]
    points = np.meshgrid(*grid, indexing="ij")
    return sum(
        factor * map_coordinates(part, points, order=3, mode="nearest")
        for factor, part in ((1, layer.real), (1j, layer.imag))
    )


def scored(found: NDArray[Any], truth: NDArray[Any]) -> tuple[NDArray[Any], float]:
    """Return an object in the gauge of the truth, and its complex NRMSE inside the scanned region."""
    from ptycho.evaluation.gauge import fit_gauge

    mask = np.zeros(truth.shape, bool)
    mask[MARGIN_PX:-MARGIN_PX, MARGIN_PX:-MARGIN_PX] = True
    aligned = fit_gauge(found, truth, mask)
    error = np.linalg.norm((aligned - truth)[mask]) / np.linalg.norm(truth[mask])
    return aligned, float(error)


def draw(rows: list[tuple[str, NDArray[Any]]], path: Path) -> None:
    """Draw amplitude and phase of every object, in the colours of the first."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt
    from PIL import Image

    inner = (slice(MARGIN_PX, -MARGIN_PX),) * 2
    figure, axes = plt.subplots(2, len(rows), figsize=(2.2 * len(rows), 5.0), layout="constrained")
    for part, (function, colours) in enumerate(((np.abs, "gray"), (np.angle, "viridis"))):
        low, high = np.percentile(function(rows[0][1][inner]), (1, 99))
        for axis, (title, obj) in zip(axes[part], rows, strict=True):
            axis.imshow(function(obj[inner]), cmap=colours, vmin=low, vmax=high)
            axis.set(xticks=[], yticks=[], title=title if part == 0 else "")
        axes[part][0].set_ylabel("amplitude" if part == 0 else "phase")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)
    Image.open(path).convert("RGB").quantize(256).save(path, optimize=True)


def train_by_command(data: Path, output: Path, epochs: int) -> float:
    """Train on an exported file as the page says; return the seconds."""
    start = time.perf_counter()
    words = ["--train_data_file", data, "--output_dir", output, "--max_epochs", epochs]
    words += ["--gridsize", 1, "--torch-loss-mode", "amplitude", "--disable_mlflow"]
    subprocess.run([sys.executable, "-m", "ptycho_torch.train", *map(str, words)], check=True)
    return time.perf_counter() - start


def client_settings(plugin: str, epochs: int) -> dict[str, float]:
    """Return what differs from the defaults of the client: single patterns, few filters, all scan points."""
    if plugin == "tensorflow":
        return {"training_settings.nepochs": epochs, "model_settings.n_filters_scale": 1}
    return {
        "training_settings.epochs": epochs,
        "model_settings.num_filters_scale": 1,
        "data_settings.num_channels": 1,
        "data_settings.grid_size_x": 1,
        "data_settings.grid_size_y": 1,
        **{f"data_settings.{axis}_lower_bound": 0.0 for axis in "xy"},
        **{f"data_settings.{axis}_upper_bound": 1.0 for axis in "xy"},
    }


def reconstructed(
    title: str, chosen: Any, experiment: Any, *, refine: str = "on"
) -> tuple[str, NDArray[Any]]:
    """Reconstruct in the client with a trained model, print the score, and return a titled object."""
    from compat import client

    os.environ["PTYCHO_REFINE"] = refine
    start = time.perf_counter()
    found = client.reconstruct(chosen, experiment.input())
    seconds = time.perf_counter() - start
    truth = experiment.truth
    aligned, error = scored(on_grid_of(found, truth), truth.get_layer(0))
    print(f"{' '.join(title.split())}: NRMSE {error:.4f}, reconstructed in {seconds:.0f} s", flush=True)
    return f"{title}\nNRMSE {error:.3f}", aligned


def compare(plugin: str, experiment: Any, folder: Path, options: argparse.Namespace) -> None:
    """Train the methods of a plug-in in the client, reconstruct, draw, and print the scores."""
    from compat import client

    rows = [("truth\n\n", experiment.truth.get_layer(0))]
    methods, of_run = PLUGINS[plugin]
    for name in methods:
        chosen = client.reconstructor(plugin, name, client_settings(plugin, options.epochs))
        start = time.perf_counter()
        client.train(chosen, folder / "in", folder / plugin / name)
        print(f"{plugin}, {name}: {options.epochs} epochs, {time.perf_counter() - start:.0f} s", flush=True)
        rows.append(reconstructed(f"{name}\nnetwork alone", chosen, experiment, refine="off"))
        rows.append(reconstructed(f"{name}\nas delivered", chosen, experiment))
    chosen.load_model_from_file(folder / "run" / of_run)
    rows.append(reconstructed("by the command\nunrolled", chosen, experiment))
    path = options.output / f"ptychodus_{plugin}.png"
    draw(rows, path)
    print(path, flush=True)


def main() -> None:
    """Simulate, export, and run both plug-ins."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=layout)
    parser.add_argument("--plugins", nargs="+", choices=sorted(PLUGINS), default=sorted(PLUGINS))
    parser.add_argument("--epochs", type=int, default=12, help="epochs in the client (default 12)")
    parser.add_argument("--command-epochs", type=int, default=15, help="epochs of the command (default 15)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the two pictures")
    options = parser.parse_args()
    from compat import client

    experiment = client.simulate_experiment(**SCAN)
    exporter = client.reconstructor("tensorflow", "PINN")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for part in ("train_data", "test_data"):
            client.export(exporter, experiment.input(), folder / "in", part)
        seconds = train_by_command(folder / "in/train_data.npz", folder / "run", options.command_epochs)
        print(f"trained by the command, {seconds:.0f} s", flush=True)
        for plugin in options.plugins:
            compare(plugin, experiment, folder, options)


if __name__ == "__main__":
    main()
