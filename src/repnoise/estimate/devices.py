"""Devices that an estimate is for: what they hold, and what they do in practice."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

from repnoise.errors import RepnoiseError

USABLE = 0.92
"""Share of a device's memory that tensors may take: the rest goes to the driver's context and to gaps."""


@dataclass(frozen=True)
class Device:
    """A device as an estimate sees it.

    Attributes:
        memory: bytes.
        fp32: operations a second of large products of fp32 matrices.
        bf16: the same in bfloat16 with fp32 sums.
        bandwidth: bytes a second to and from its memory.
    """

    memory: float
    fp32: float
    bf16: float
    bandwidth: float

    def rate(self, precision: str) -> float:
        return self.bf16 if precision == "bf16" else self.fp32


def _gpu(gigabytes: float, fp32: float, bf16: float, bandwidth: float) -> Device:
    """A GPU of its data sheet's rates (teraflops without sparsity, terabytes a second), less what is not reached:
    large trainings report about 40 % of the bf16 rate; plain fp32 and memory come to about 75 %."""
    return Device(gigabytes * 1e9, 0.75e12 * fp32, 0.4e12 * bf16, 0.75e12 * bandwidth)


DEVICES: dict[str, Device] = {
    "cpu-2-cores": Device(16e9, 230e9, 230e9, 15e9),
    "a100-80": _gpu(80, 19.5, 312, 2.04),
    "h100-80": _gpu(80, 67, 989, 3.35),
    "h200-141": _gpu(141, 67, 989, 4.8),
    "4090-24": _gpu(24, 82.6, 165, 1.01),
}
"""By name. The CPU's is what two cores with 512-bit vectors reach; fp32 on a GPU is without TF32, PyTorch's default."""

HERE = "here"


def find_device(name: str) -> Device:
    """The device of this name; "here" is this machine's own, measured now. Raises RepnoiseError if there is none."""
    if name.lower() == HERE:
        return measured_here()
    if name.lower() not in DEVICES:
        raise RepnoiseError(f"There is no device {name!r}: choose from {', '.join((*DEVICES, HERE))}.")
    return DEVICES[name.lower()]


def measured_here() -> Device:
    """The GPU in sight, else the CPU: its memory, and the fastest of a few products and copies of about a second."""
    import torch

    cuda = torch.cuda.is_available()
    if cuda:
        memory = torch.cuda.get_device_properties(0).total_memory
    else:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    n = 8192 if cuda else 1024
    matrix = torch.randn(n, n, device="cuda" if cuda else "cpu")
    half = matrix.bfloat16()
    block = torch.empty(2**28 if cuda else 2**25, device=matrix.device)
    fp32, bf16, copy = (_fastest(work) for work in (lambda: matrix @ matrix, lambda: half @ half, block.clone))
    return Device(memory, 2 * n**3 / fp32, 2 * n**3 / bf16, 2 * block.nbytes / copy)


def _fastest(work: Callable[[], object]) -> float:
    """Seconds of the fastest of several runs, the first left out."""
    import torch

    times = []
    for _ in range(6):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])
