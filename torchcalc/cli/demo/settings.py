"""What the demo's options set."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import torch


@dataclass(frozen=True)
class Settings:
    """The options of the demo and their defaults."""

    out: Path = Path("runs/demo")
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 3000
    batch_size: int = 128
    lr: float = 2e-3
    lam: float = 5e-4
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
