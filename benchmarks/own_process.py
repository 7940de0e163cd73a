"""What the benchmarks share: a measurement in a process of its own, and the memory that a process holds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ONE_ARENA = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
"""Makes the C library give memory back that is freed, so that a process holds what its tensors take."""


def alone(script: str, arguments: Sequence[str]) -> dict[str, Any]:
    """The JSON object that the script prints; where it ran out of memory or was killed, that as "failed"."""
    command = [sys.executable, script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | ONE_ARENA)
    if done.returncode == 0:
        return json.loads(done.stdout)
    lines = done.stderr.strip().splitlines()
    return {"failed": lines[-1] if lines else f"ended by signal {-done.returncode}"}


def resident(field: str) -> int:
    """Bytes of memory that the process has now ("VmRSS") or had at most ("VmHWM"); 0 where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))
