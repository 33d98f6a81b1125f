"""The public ops: differentiable any number of times, in both modes, under vmap and torch.compile.

Every op takes float32, float64, bfloat16 or float16 tensors of any strides, on the CPU, on CUDA
and, through the plain PyTorch reference, on any other device. Bad input raises TypeError or
ValueError and names the argument.
"""

from torchcalc.functional._dropout import (
    alpha_dropout,
    drop_path,
    dropout,
    dropout1d,
    dropout2d,
    dropout3d,
    dropout_add,
    dropout_mask,
    feature_alpha_dropout,
)
from torchcalc.functional._gated import gated_linear
from torchcalc.functional._linear_act import linear_act
from torchcalc.functional._mlp import mlp
from torchcalc.functional._prox import prox, prox_elastic_net, prox_l2, soft_threshold

__all__ = [
    "alpha_dropout",
    "drop_path",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout3d",
    "dropout_add",
    "dropout_mask",
    "feature_alpha_dropout",
    "gated_linear",
    "linear_act",
    "mlp",
    "prox",
    "prox_elastic_net",
    "prox_l2",
    "soft_threshold",
]
