"""What a run ran on, as the result file records it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch
from torch.utils import collect_env

import torchcalc
from benchmarks.clocks import Gpu

ROOT = Path(__file__).resolve().parent.parent


def describe(gpu: Gpu | None) -> dict[str, Any]:
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "torch": torch.__version__,
        "torchcalc": torchcalc.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "device": "cpu" if gpu is None else "cuda",
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu and gpu.name(),
        "driver": gpu and collect_env.get_nvidia_driver_version(collect_env.run),
    }


def slug(machine: dict[str, Any]) -> str:
    """The machine's name as a file name: the GPU, or the CPU and its number of cores."""
    name = machine["gpu"] or f"{machine['cpu']} {machine['cores']} cores"
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.exists() else None
    return found[1] if found else platform.processor() or platform.machine()


def commit() -> str | None:
    """The checkout's commit, with a + where sources have changed since; None outside of one."""
    try:
        head, changes = (
            subprocess.run(
                ["git", *command], cwd=ROOT, check=True, capture_output=True, text=True
            ).stdout.strip()
            for command in (
                ("rev-parse", "--short", "HEAD"),
                ("status", "--porcelain", "--", "torchcalc", "csrc", "setup.py"),
            )
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return head + "+" * bool(changes)
