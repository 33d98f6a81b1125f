"""Bytes kept for backward per hidden element of a two-layer network.

The network is x -> linear -> activation -> dropout -> h -> linear -> y, all parameters requiring
grad; the hidden elements are those of h. Counted is every storage that autograd saves in forward,
once however many nodes save it, without the parameters and x. The figure is the growth of that sum
when the number of rows doubles, over the growth of the number of hidden elements: what does not
scale with them, such as a seed, drops out, and the figure is exact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import bench_mlp, layers
from benchmarks.harness import Bound, Config, Row, Task
from torchcalc.functional import linear_act, mlp
from torchcalc.ops.activations import NAMES

P = 0.1
ROWS, IN, HIDDEN, OUT = 16, 8, 32, 4
Layer = Callable[[Tensor, Tensor, Tensor], Tensor]
Network = Callable[..., Tensor]

# The output, which the next layer keeps anyway, tells the derivative; or one bit beside it does.
OUTPUT_TELLS = {
    "identity", "relu", "leaky_relu", "elu", "celu", "selu", "softplus", "sigmoid", "tanh",
    "softsign",
}  # fmt: skip
BIT_TELLS = {"relu6", "hardtanh", "hardsigmoid"}  # without dropout the output does
OUTPUT, OUTPUT_AND_BIT, OUTPUT_AND_INPUT, INPUT = 4, 4 + 1 / 8, 8, 4


def tasks(config: Config) -> list[Task]:
    rows = {f"{name} + dropout": partial(activation, config, name, P) for name in NAMES}
    rows |= {name: partial(activation, config, name, 0.0) for name in sorted(BIT_TELLS)}
    rows["relu + dropout + residual"] = partial(relu_residual, config)
    rows["mlp, gelu + dropouts"] = partial(block, config)
    return [Task(name, partial(make, name), alone=False) for name, make in rows.items()]


def activation(config: Config, activation: str, p: float, name: str) -> Row:
    ours = partial(linear_act, activation=activation, dropout_p=p)
    must: float = OUTPUT_AND_INPUT
    if activation in OUTPUT_TELLS or (activation in BIT_TELLS and not p):
        must = OUTPUT
    elif activation in BIT_TELLS:
        must = OUTPUT_AND_BIT
    return row(config, name, layers.eager_linear_act(activation, p), ours, must)


def relu_residual(config: Config, name: str) -> Row:
    eager = layers.eager_linear_act("relu", P)

    def added(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return x[:, :1] + eager(x, weight, bias)

    def ours(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        residual = x[:, :1].expand(-1, HIDDEN)
        return linear_act(x, weight, bias, "relu", dropout_p=P, residual=residual)

    return row(config, name, added, ours, OUTPUT_AND_BIT)


def row(config: Config, name: str, eager: Layer, ours: Layer, must: float) -> Row:
    def network(layer: Layer) -> Network:
        return lambda x, w1, b1, w2, b2: F.linear(layer(x, w1, b1), w2, b2)

    return of_networks(config, name, {"eager": network(eager), "torchcalc": network(ours)}, must)


def block(config: Config, name: str) -> Row:
    """Of the MLP block, which has dropout behind its second layer, too."""
    networks = {
        "eager": partial(bench_mlp.eager, P),
        bench_mlp.TWO: partial(bench_mlp.two_linear_acts, P),
        "torchcalc": partial(mlp, hidden_dropout_p=P, dropout_p=P),
    }
    return of_networks(config, name, networks, INPUT)


def of_networks(config: Config, name: str, networks: Mapping[str, Network], must: float) -> Row:
    return Row(
        name,
        f"{IN} -> {HIDDEN} -> {OUT}",
        "float32",
        {contender: [bytes_per_element(config, net)] for contender, net in networks.items()},
        unit="bytes / element",
        bound=Bound(must),
    )


def bytes_per_element(config: Config, network: Network) -> float:
    growth = network_bytes(config, network, 2 * ROWS) - network_bytes(config, network, ROWS)
    return growth / (ROWS * HIDDEN)


def network_bytes(config: Config, network: Network, rows: int) -> int:
    shapes = ((HIDDEN, IN), (HIDDEN,), (OUT, HIDDEN), (OUT,))
    parameters = [config.tensor(*shape).requires_grad_() for shape in shapes]
    x = config.tensor(rows, IN)
    return saved_bytes(lambda: network(x, *parameters), [x, *parameters])


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
