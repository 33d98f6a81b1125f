"""Penalties g(w) with their proximal operators."""

from torchcalc.prox.penalties import L1, L2, ElasticNet, Penalty

__all__ = ["L1", "L2", "ElasticNet", "Penalty"]
