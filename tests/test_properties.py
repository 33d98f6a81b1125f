"""What holds for all values, tried with those that nobody thought of (hypothesis)."""

from __future__ import annotations

import numpy as np
import philox_numpy
import pytest

from torchcalc import _C

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st


@given(st.lists(st.integers(0, 2**32 - 1), min_size=6, max_size=6))
@settings(max_examples=200, deadline=None)
def test_cpp_equals_numpy(words):
    counter, key = np.array(words[:4], dtype=np.uint32), np.array(words[4:], dtype=np.uint32)
    assert (_C.philox4x32(counter, key) == philox_numpy.philox4x32_10(counter, key)).all()
