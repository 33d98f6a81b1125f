"""The table of ops that the tests, and ``python -m torchcalc check``, run over."""

from torchcalc.testing.op_table import OPS, Op, Sample

__all__ = ["OPS", "Op", "Sample"]
