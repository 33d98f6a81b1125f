"""torch.distributed.tensor.parallel's styles, which take nn.Linear and nn.Embedding alone, for
torchcalc's layers, too."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import (
    DTensor,
    Placement,
    Replicate,
    Shard,
    distribute_module,
    distribute_tensor,
)
from torch.distributed.tensor import parallel as torch_styles
from torch.distributed.tensor.placement_types import _StridedShard

from torchcalc import nn

_COLUMNS: dict[str, Placement] = {"weight": Shard(0), "bias": Shard(0)}
_ROWS: dict[str, Placement] = {"weight": Shard(1), "bias": Replicate()}


def _parallel(
    style: Any, module: torch.nn.Module, mesh: DeviceMesh, placements: dict[str, Placement]
) -> torch.nn.Module:
    """The module with its parameters placed so; x and the output as the style says."""

    def place(_: str, layer: torch.nn.Module, mesh: DeviceMesh) -> None:
        for name, placement in placements.items():
            parameter = getattr(layer, name)
            if parameter is None:
                continue
            placed = distribute_tensor(
                parameter, mesh, [placement], src_data_rank=style.src_data_rank
            )
            layer.register_parameter(
                name, torch.nn.Parameter(placed, requires_grad=parameter.requires_grad)
            )

    def inputs(_: torch.nn.Module, given: tuple[Any, ...], mesh: DeviceMesh) -> tuple[Any, ...]:
        x, *others = given
        if not isinstance(x, DTensor) and getattr(style.input_layouts[0], "dim", 0) in (
            -1,
            x.ndim - 1,
        ):
            # Of all shards' features: their sum, where ranks have different numbers of them.
            shape = torch.Size([*x.shape[:-1], module.in_features])  # type: ignore[list-item]
            stride = torch.empty(shape, device="meta").stride()
            x = DTensor.from_local(
                x, mesh, style.input_layouts, run_check=False, shape=shape, stride=stride
            )
        x = style._prepare_input_fn(
            style.input_layouts, style.desired_input_layouts, module, (x,), mesh
        )
        return x, *(_placed(t, mesh, style.output_layouts) for t in others)

    def outputs(_: torch.nn.Module, y: Any, mesh: DeviceMesh) -> Tensor:
        result: Tensor = style._prepare_output_fn(
            style.output_layouts, style.use_local_output, module, y, mesh
        )
        return result

    module.register_forward_pre_hook(
        partial(_named_residual, mesh, style.output_layouts), with_kwargs=True
    )
    return distribute_module(module, mesh, place, inputs, outputs)  # type: ignore[arg-type]


def _placed(t: Any, mesh: DeviceMesh, layouts: tuple[Placement, ...]) -> Any:
    """A residual is laid out as the output is."""
    if isinstance(t, Tensor) and not isinstance(t, DTensor):
        return DTensor.from_local(t, mesh, layouts, run_check=False)
    return t


def _named_residual(
    mesh: DeviceMesh,
    layouts: tuple[Placement, ...],
    _: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {name: _placed(t, mesh, layouts) for name, t in kwargs.items()}


def _halves(module: torch.nn.Module, mesh: DeviceMesh, features: int) -> Placement:
    """Of a weight whose rows are gates, then values: to each rank its part of both."""
    if features % mesh.size():
        raise ValueError(
            f"ColwiseParallel: the features of a gated layer must be a multiple of the "
            f"{mesh.size()} ranks, got {features} in {module}"
        )
    placement: Placement = _StridedShard(0, split_factor=2)
    return placement


class ColwiseParallel(torch_styles.ColwiseParallel):
    """``torch.distributed.tensor.parallel.ColwiseParallel`` for torchcalc's layers, too.

    Each rank computes its part of the features: f and dropout on it, with its part of the whole
    tensor's mask. Of ``nn.LinearAct`` and ``nn.GatedLinear`` the output is sharded by features
    then. An ``nn.MLP`` is sharded by columns and then by rows: each rank has its part of the hidden
    features, and one sum over ranks comes before the second dropout and the residual; its output
    is replicated unless ``output_layouts`` says otherwise.

    A residual is expected as the output is laid out. What is not torchcalc's goes to torch's style.

    Keyword args:
        input_layouts, output_layouts, use_local_output: as torch's.

    Raises:
        ValueError: the features of a gated layer are no multiple of the number of ranks.
        NotImplementedError: a module that neither takes.

    Source: Shoeybi et al., "Megatron-LM", 2019.
    """

    def __init__(
        self,
        *,
        input_layouts: Placement | None = None,
        output_layouts: Placement | None = None,
        use_local_output: bool = True,
    ) -> None:
        super().__init__(
            input_layouts=input_layouts,
            output_layouts=output_layouts,
            use_local_output=use_local_output,
        )
        self._given_output = output_layouts

    def _apply(self, module: torch.nn.Module, device_mesh: DeviceMesh) -> torch.nn.Module:
        if isinstance(module, nn.LinearAct):
            return _parallel(self, module, device_mesh, _COLUMNS)
        if isinstance(module, nn.GatedLinear):
            columns = _halves(module, device_mesh, module.out_features)
            return _parallel(self, module, device_mesh, dict.fromkeys(_COLUMNS, columns))
        if isinstance(module, nn.MLP):
            hidden: Placement = Shard(0)
            if module.gated:
                hidden = _halves(module, device_mesh, module.hidden_features)
            style = copy.copy(self)  # which may be several modules', whose outputs are by features
            style.output_layouts = (self._given_output or Replicate(),)
            placements: dict[str, Placement] = {"weight1": hidden, "bias1": hidden}
            placements |= {"weight2": Shard(1), "bias2": Replicate()}
            return _parallel(style, module, device_mesh, placements)
        return super()._apply(module, device_mesh)


class RowwiseParallel(torch_styles.RowwiseParallel):
    """``torch.distributed.tensor.parallel.RowwiseParallel`` for ``nn.LinearAct``, too.

    Each rank has its part of x's features; the sum over ranks comes before f, dropout and the
    residual. A residual is expected as the output is laid out.

    Keyword args:
        input_layouts, output_layouts, use_local_output: as torch's.

    Raises:
        NotImplementedError: a module that it does not take.

    Source: Shoeybi et al., "Megatron-LM", 2019.
    """

    def _apply(self, module: torch.nn.Module, device_mesh: DeviceMesh) -> torch.nn.Module:
        if isinstance(module, nn.LinearAct):
            style = copy.copy(self)
            style.desired_input_layouts = (Shard(-1),)
            return _parallel(style, module, device_mesh, _ROWS)
        if isinstance(module, nn.GatedLinear | nn.MLP):
            raise NotImplementedError(
                f"RowwiseParallel: {type(module).__name__} is sharded by ColwiseParallel"
            )
        return super()._apply(module, device_mesh)
