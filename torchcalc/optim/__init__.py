"""Optimizers whose kernels end with the proximal step of a penalty: weights become exactly zero."""

from torchcalc.optim.adagrad import Adagrad
from torchcalc.optim.adam import Adam
from torchcalc.optim.adamw import AdamW
from torchcalc.optim.fista import FISTA
from torchcalc.optim.ftrl import FTRL
from torchcalc.optim.groups import groups
from torchcalc.optim.rmsprop import RMSprop
from torchcalc.optim.schedule import PenaltySchedule
from torchcalc.optim.sgd import SGD

__all__ = [
    "FISTA",
    "FTRL",
    "SGD",
    "Adagrad",
    "Adam",
    "AdamW",
    "PenaltySchedule",
    "RMSprop",
    "groups",
]
