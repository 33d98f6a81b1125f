"""For tests of fuse: small tensors, too, go through fused ops."""

from __future__ import annotations

import pytest

from torchcalc.fusion import _swap


@pytest.fixture(autouse=True)
def _few_are_enough(monkeypatch):
    for training in (True, False):
        monkeypatch.setitem(_swap.FEW, training, 0)
