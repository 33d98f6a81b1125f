"""What the options of features set."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DATA = ("breast_cancer", "wine")


@dataclass(frozen=True)
class Settings:
    """The options of features and their defaults.

    Steps, learning rate and weight decay were chosen on validation parts of seeds 20 to 24.
    """

    out: Path = Path("runs/features")
    data: str = "breast_cancer"
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    steps: int = 1000
    lr: float = 2e-3
    weight_decay: float = 0.3
    lam: float | None = None  # None: the rule chooses among LAMS


LAMS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
