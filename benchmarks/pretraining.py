"""Learning rates of the pre-training, compared on scans that take no part in it, and levels that die.

usage: python benchmarks/pretraining.py [--scans 1500] [--iterations 8000] [--rates 2e-3 1e-3 4e-4]
           [--held 120] [--device auto] [--output pretrained.h5.zip]

For each learned step the network of every rate is trained, and the best goes on. An error of 1 is that of no
correction. `alive` is the least share, of all layers, of answers that their activation lets through: at too
high a rate whole levels end below it, and learn nothing any more.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ptycho.networks.bundle import read_bundle, write_bundle
from ptycho.process.progress import Progress
from ptycho.run.engines import PRETRAINED_FILE
from ptycho.simulation.curriculum import PretrainOptions
from ptycho_torch import pretraining
from ptycho_torch.generators import UnrolledGenerator
from ptycho_torch.reconstruct import resolve_accelerator

HELD_SEED = 90210
"""Seed of the scans that judge."""
ALIVE = -6.0
"""What the activation makes hardly anything of, and of its gradient."""


@torch.no_grad()
def judged(generator: UnrolledGenerator, index: int, examples: list[Tensor]) -> tuple[float, float]:
    """Return the error that a U-Net leaves of crops of examples, and the share that is alive."""
    rng = np.random.default_rng(5)
    lit = [whole[pretraining.CHANNELS + 4].cpu().numpy() > 0 for whole in examples]
    crops = [pretraining._crop(whole, where, rng) for whole, where in zip(examples, lit, strict=True)]
    alive: list[float] = []
    hooks = [
        layer.register_forward_hook(
            lambda _, __, answer: alive.append(float((answer > ALIVE).float().mean()))
        )
        for layer in generator.convolutions.values()
    ]
    batches = torch.stack(crops).split(16)
    errors = [float(pretraining.relative_error(lambda x: generator.correction(x, index), b)) for b in batches]
    for hook in hooks:
        hook.remove()
    return float(np.mean(errors)), min(alive)


def main() -> None:
    """Simulate, train, print."""
    default = PretrainOptions()
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--scans", type=int, default=default.scans)
    parser.add_argument("--iterations", type=int, default=default.iterations)
    parser.add_argument("--rates", type=float, nargs="+", default=[2e-3, 1e-3, 4e-4])
    parser.add_argument("--held", type=int, default=120, help="scans that judge (default 120)")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--output", type=Path, metavar="FILE")
    given = parser.parse_args()
    device = resolve_accelerator(given.device)
    options = replace(default, scans=given.scans, iterations=given.iterations)
    model, best = pretraining.untrained(options, device)
    former = pretraining.untrained(options, device)[1]
    former.import_weights(read_bundle(PRETRAINED_FILE).weights, "the network of the package")
    for index in range(best.learned):
        start = time.perf_counter()
        examples = pretraining.examples(best, index, options, Progress(), device)
        other = replace(options, seed=HELD_SEED, scans=given.held)
        held = pretraining.examples(best, index, other, Progress(), device)
        print(f"step {index + 1}: {len(examples)} scans in {time.perf_counter() - start:.0f} s", flush=True)
        print(f"  {'package':>9}: error %.4f, alive %.2f" % judged(former, index, held), flush=True)
        found, begin = {}, best.export_weights()
        for rate in given.rates:
            start, network = time.perf_counter(), pretraining.untrained(options, device)[1]
            network.import_weights(begin, "the steps before")
            pretraining.fit_step(network, index, examples, replace(options, learning_rate=rate), Progress())
            error, alive = judged(network, index, held)
            found[error] = network
            took = time.perf_counter() - start
            print(f"  {rate:>9g}: error {error:.4f}, alive {alive:.2f}, {took:.0f} s", flush=True)
        best = found[min(found)]
    if given.output:
        write_bundle(given.output, pretraining.bundle_of(model, best))


if __name__ == "__main__":
    main()
