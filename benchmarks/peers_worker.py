"""One reconstruction by another program, run by its own Python: a job in, objects and their times out.

usage: python benchmarks/peers_worker.py JOB.npz RESULT.npz

The job holds ``counts`` (J, N, N), ``probe`` (P, N, N), ``corners_yx_px`` (J, 2), ``object`` (H, W) to start
from, on request ``bad_pixels`` (N, N), and ``settings``, a JSON text: program, algorithm, probe (whether it
is refined, and on request into how many ``modes`` and ``variable_modes``), seconds, threads, and its own
options. The clock runs while the program iterates; imports, set-up and the copies of the object are not
counted. Nothing of the toolkit is imported here.
"""

from __future__ import annotations

import json
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SNAPSHOTS = (1, 2, 3, 5, 8, 12, 16, 20, 28, 40, 56, 80, 112, 160, 224, 320, 448, 640)
"""Epochs after which the object is kept."""

Arrays = dict[str, NDArray[Any]]


def record(epoch: Callable[[], None], found: Callable[[], NDArray[Any]], seconds: float) -> Arrays:
    """Run epochs until the time is up; return the objects kept, with epochs and seconds."""
    spent, count = 0.0, 0
    kept: list[tuple[int, float, NDArray[Any]]] = []
    while spent < seconds and count < SNAPSHOTS[-1]:
        start = time.perf_counter()
        epoch()
        spent += time.perf_counter() - start
        count += 1
        if count in SNAPSHOTS or spent >= seconds:
            kept.append((count, spent, found().astype(np.complex64)))
    epochs, times, objects = zip(*kept, strict=True)
    return {"epochs": np.array(epochs), "seconds": np.array(times), "objects": np.stack(objects)}


def _stand_in_for_torchvision() -> None:
    """Offer the one class of torchvision that ptychi imports and does not need here."""
    package, transforms = types.ModuleType("torchvision"), types.ModuleType("torchvision.transforms")
    transforms.GaussianBlur = object  # type: ignore[attr-defined]
    package.transforms = transforms  # type: ignore[attr-defined]
    sys.modules.update({"torchvision": package, "torchvision.transforms": transforms})


def _ptychi_options(settings: dict[str, Any], shape: tuple[int, int], n_px: int) -> Any:
    """Return the options of one algorithm; its own settings are set by dotted names."""
    import ptychi.api as api

    kinds = {"lsqml": "LSQMLOptions", "rpie": "RPIEOptions", "autodiff": "AutodiffPtychographyOptions"}
    options = getattr(api, kinds[settings["algorithm"]])()
    options.reconstructor_options.default_device = api.Devices.CPU
    options.reconstructor_options.displayed_loss_function = None
    options.reconstructor_options.random_seed = 0
    options.object_options.determine_position_origin_coords_by = api.ObjectPosOriginCoordsMethods.SPECIFIED
    options.object_options.position_origin_coords = [(n_px - 1) / 2, (n_px - 1) / 2]
    options.object_options.remove_object_probe_ambiguity.enabled = bool(settings["probe"])
    options.probe_options.optimizable = bool(settings["probe"])
    options.probe_position_options.optimizable = False
    if settings["algorithm"] == "lsqml":
        options.reconstructor_options.rescale_probe_intensity_in_first_epoch = False
    for name, value in settings["options"].items():
        *path, last = name.split(".")
        target = options
        for part in path:
            target = getattr(target, part)
        setattr(target, last, value)
    return options


def run_ptychi(job: Arrays, settings: dict[str, Any]) -> Arrays:
    """Reconstruct with pty-chi."""
    import logging

    import torch

    torch.set_num_threads(settings["threads"])
    _stand_in_for_torchvision()
    from ptychi.api.task import PtychographyTask

    logging.disable(logging.WARNING)
    shape, n_px = job["object"].shape, job["probe"].shape[-1]
    # Its Fourier transform is not unitary: it raises amplitudes by N.
    probe, more = _ptychi_probe(job["probe"] / n_px, settings, len(job["counts"]))
    if "bad_pixels" in job:
        more["valid_pixel_mask"] = torch.from_numpy(~job["bad_pixels"])
    task = PtychographyTask(
        _ptychi_options(settings, shape, n_px),
        diffraction_data=torch.from_numpy(job["counts"].astype(np.float32)),
        object_data=torch.from_numpy(job["object"].astype(np.complex64))[None],
        probe_data=probe,
        probe_position_y_px=torch.from_numpy(job["corners_yx_px"][:, 0].astype(np.float32)),
        probe_position_x_px=torch.from_numpy(job["corners_yx_px"][:, 1].astype(np.float32)),
        **more,
    )
    misfit = _ptychi_misfit(task, len(job["counts"]), job["counts"])

    def found() -> NDArray[Any]:
        return task.get_data("object").detach().cpu().numpy()[0]

    result = record(lambda: task.run(1), found, settings["seconds"]) if settings["seconds"] > 0 else {}
    return {**result, "start_misfit": np.array(misfit)}


def _ptychi_probe(probe: NDArray[Any], settings: dict[str, Any], count: int) -> tuple[Any, dict[str, Any]]:
    """Return the probe with the modes that were asked for, made as its own examples do, and their weights."""
    import torch
    from ptychi import utils

    torch.manual_seed(0)
    modes = settings.get("modes", len(probe))
    # Incoherent modes: the first one at shifts of a pixel, with a tenth of its power each.
    moved = [0.3 * np.roll(probe[0], 1 + k // 2, axis=1 - k % 2) for k in range(modes - len(probe))]
    power = (np.abs(probe) ** 2).sum()
    found = np.concatenate([probe, np.stack(moved)]) if moved else probe
    found = found * np.sqrt(power / (np.abs(found) ** 2).sum())
    data = torch.from_numpy(found.astype(np.complex64))[None]
    if not settings.get("variable_modes"):
        return data, {}
    data = utils.add_additional_opr_probe_modes_to_probe(data, settings["variable_modes"])
    weights = utils.generate_initial_opr_mode_weights(count, len(data), eigenmode_weight=0.1)
    return data, {"opr_mode_weights_data": weights}


def _ptychi_misfit(task: Any, count: int, counts: NDArray[Any]) -> float:
    """Return the amplitude misfit of its forward model at the start, relative to the energy."""
    import torch

    error = 0.0
    with torch.no_grad():
        for part in torch.arange(count).split(64):
            intensity = task.reconstructor.forward_model(part).cpu().numpy()
            amplitude = np.fft.fftshift(np.sqrt(intensity), axes=(-2, -1))
            error += float(((amplitude - np.sqrt(counts[part.numpy()])) ** 2).sum())
    return error / float(counts.sum())


class _TimeIsUpError(Exception):
    """Ends a program that offers no other way."""


def run_ptylab(job: Arrays, settings: dict[str, Any]) -> Arrays:
    """Reconstruct with PtyLab; it rounds positions to whole pixels."""
    import io
    from contextlib import redirect_stdout, suppress

    from PtyLab import Engines
    from PtyLab.ExperimentalData.ExperimentalData import ExperimentalData
    from PtyLab.Monitor.Monitor import DummyMonitor
    from PtyLab.Params.Params import Params
    from PtyLab.Reconstruction.Reconstruction import Reconstruction

    n_px, side = job["probe"].shape[-1], max(job["object"].shape)
    data = ExperimentalData()
    data.loadData("test:nodata")
    data.ptychogram = job["counts"].astype(np.float32)
    # A pixel of the object is wavelength x distance / (N x detector pixel) = 1 m.
    data.wavelength, data.zo, data.dxd = 1.0, float(n_px), 1.0
    data.encoder = job["corners_yx_px"] - (side // 2 - n_px // 2)
    data._setData()
    params = Params()
    params.gpuSwitch = False
    found = Reconstruction(data, params)
    found.No = side
    found.initializeObjectProbe()
    start = np.ones((side, side), np.complex64)
    height, width = job["object"].shape
    start[:height, :width] = job["object"]
    found.object[...], found.probe[...] = start, job["probe"].astype(np.complex64)
    engine = getattr(Engines, settings["algorithm"])(found, data, params, DummyMonitor())
    for name, value in settings["options"].items():
        setattr(engine, name, value)
    engine.numIterations = SNAPSHOTS[-1]
    if not settings["probe"]:
        engine.betaProbe = 0.0
    spent, since = [0.0], [time.perf_counter()]
    kept: list[tuple[int, float, NDArray[Any]]] = []

    def note(loop: int, now: Any) -> None:
        spent[0] += time.perf_counter() - since[0]
        done = spent[0] >= settings["seconds"]
        if loop + 1 in SNAPSHOTS or done:
            kept.append((loop + 1, spent[0], now.object.reshape(side, side)[:height, :width].copy()))
        if done:
            raise _TimeIsUpError
        since[0] = time.perf_counter()

    with suppress(_TimeIsUpError), redirect_stdout(io.StringIO()):
        engine.reconstruct(vis_after_each_iteration=note)
    epochs, times, objects = zip(*kept, strict=True)
    return {"epochs": np.array(epochs), "seconds": np.array(times), "objects": np.stack(objects)}


PROGRAMS: dict[str, Callable[[Arrays, dict[str, Any]], Arrays]] = {
    "ptychi": run_ptychi,
    "ptylab": run_ptylab,
}


def main() -> None:
    """Read the job, run it, write the result."""
    source, target = (Path(word) for word in sys.argv[1:3])
    with np.load(source) as archive:
        job = {name: archive[name] for name in archive.files}
    settings = json.loads(str(job.pop("settings")))
    np.savez(target, **PROGRAMS[settings["program"]](job, settings))


if __name__ == "__main__":
    main()
