"""Optimizers whose kernels end with the proximal step of a penalty: weights become exactly zero."""

from torchcalc.optim.adamw import AdamW
from torchcalc.optim.groups import groups
from torchcalc.optim.sgd import SGD

__all__ = ["SGD", "AdamW", "groups"]
