"""torchcalc.functional as modules."""

from torchcalc.nn._dropout import (
    AlphaDropout,
    Dropout,
    Dropout1d,
    Dropout2d,
    Dropout3d,
    DropoutAdd,
    DropPath,
    FeatureAlphaDropout,
)
from torchcalc.nn._gated import GatedLinear
from torchcalc.nn._linear_act import LinearAct
from torchcalc.nn._mlp import MLP
from torchcalc.nn._prox import SoftThreshold

__all__ = [
    "MLP",
    "AlphaDropout",
    "DropPath",
    "Dropout",
    "Dropout1d",
    "Dropout2d",
    "Dropout3d",
    "DropoutAdd",
    "FeatureAlphaDropout",
    "GatedLinear",
    "LinearAct",
    "SoftThreshold",
]
