"""Bytes kept for backward per hidden element of a two-layer network.

The network is x -> linear -> activation -> dropout -> h -> linear -> y, all parameters requiring
grad; the hidden elements are those of h. Counted is every storage that autograd saves in forward,
once however many nodes save it, without the parameters and x. The figure is the growth of that sum
when the number of rows doubles, over the growth of the number of hidden elements: what does not
scale with them, such as a seed, drops out, and the figure is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness import Bound, Config, Row, Task
from torchcalc.functional import linear_act

P = 0.1
ROWS, IN, HIDDEN, OUT = 16, 8, 32, 4
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]


def tasks(config: Config) -> list[Task]:
    return [
        Task("gelu + dropout", partial(row, config, "gelu", F.gelu, must=8), alone=False),
        Task("relu + dropout", partial(row, config, "relu", F.relu, must=4), alone=False),
    ]


def row(config: Config, name: str, activation: Callable[[Tensor], Tensor], must: float) -> Row:
    layers: dict[str, Layer] = {
        "eager": lambda x, weight, bias: F.dropout(activation(F.linear(x, weight, bias)), P),
        "torchcalc": partial(linear_act, activation=name, dropout_p=P),
    }
    return Row(
        f"{name} + dropout",
        f"{IN} -> {HIDDEN} -> {OUT}",
        "float32",
        {contender: [bytes_per_element(config, layer)] for contender, layer in layers.items()},
        unit="bytes / element",
        bound=Bound(must),
    )


def bytes_per_element(config: Config, layer: Layer) -> float:
    growth = network_bytes(config, layer, 2 * ROWS) - network_bytes(config, layer, ROWS)
    return growth / (ROWS * HIDDEN)


def network_bytes(config: Config, layer: Layer, rows: int) -> int:
    shapes = ((HIDDEN, IN), (HIDDEN,), (OUT, HIDDEN), (OUT,))
    w1, b1, w2, b2 = parameters = [config.tensor(*shape).requires_grad_() for shape in shapes]
    x = config.tensor(rows, IN)
    return saved_bytes(lambda: F.linear(layer(x, w1, b1), w2, b2), [x, *parameters])


def saved_bytes(forward: Callable[[], Tensor], left_out: Iterable[Tensor]) -> int:
    """Bytes of the distinct storages saved for backward, without those of ``left_out``."""
    storages: dict[int, torch.UntypedStorage] = {}

    def pack(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        storages[storage.data_ptr()] = storage  # held, so that no other takes its address
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        forward()
    outside = {t.untyped_storage().data_ptr() for t in left_out}
    return sum(s.nbytes() for address, s in storages.items() if address not in outside)
