"""What PyTorch keeps for the whole process, as it was before a run: random states, determinism, threads."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

from ptycho.process.isolation import untouched_process


def _keep_modes(stack: ExitStack) -> None:
    strict = torch.are_deterministic_algorithms_enabled()
    only_warn = torch.is_deterministic_algorithms_warn_only_enabled()
    stack.callback(torch.use_deterministic_algorithms, strict, warn_only=only_warn)
    filled = torch.utils.deterministic.fill_uninitialized_memory
    stack.callback(setattr, torch.utils.deterministic, "fill_uninitialized_memory", filled)
    for name in ("deterministic", "benchmark", "enabled"):
        stack.callback(setattr, torch.backends.cudnn, name, getattr(torch.backends.cudnn, name))
    stack.callback(torch.set_default_dtype, torch.get_default_dtype())
    stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
    # Setting what is there already would still make PyTorch forget what it derived from it.
    for name in ("float32_matmul_precision", "num_threads"):
        found, put = getattr(torch, f"get_{name}"), getattr(torch, f"set_{name}")
        stack.callback(lambda kept, found=found, put=put: found() == kept or put(kept), found())


@contextmanager
def untouched_torch() -> Iterator[None]:
    """Put back at the end what :func:`ptycho.process.isolation.untouched_process` does, and random states,
    deterministic mode, cuDNN's switches, precision, default dtype and number of threads of PyTorch."""
    with untouched_process(), ExitStack() as stack:
        _keep_modes(stack)
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        if torch.cuda.is_available() and torch.cuda.is_initialized():
            stack.callback(torch.cuda.set_rng_state_all, torch.cuda.get_rng_state_all())
        yield
