"""What was looked at to fuse something, and whether it is still the same."""

from __future__ import annotations

import copy
import types
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor, nn

from torchcalc._check import is_sharded

ABSENT = "(absent)"  # the value of a name that is not there


@dataclass
class Looks:
    """An owner None is the module whose forward is fused."""

    # (owner, name, module, its class): modules that are not called any more.
    modules: list[tuple[nn.Module | None, str, nn.Module, type]] = field(default_factory=list)
    # (owner, name, value) of attributes, those of its instance only.
    attributes: list[tuple[nn.Module | None, str, Any]] = field(default_factory=list)
    # (class, globals, library, function or cell; name; value).
    names: list[tuple[Any, str, Any]] = field(default_factory=list)
    # (nn.Sequential, how many modules it has).
    lengths: list[tuple[nn.Module | None, int]] = field(default_factory=list)

    def include(self, *others: Looks) -> None:
        for other in others:
            for each in fields(self):
                getattr(self, each.name).extend(getattr(other, each.name))

    def pass_through(self, owners: Iterable[tuple[nn.Module, str, nn.Module]]) -> None:
        """Notes the modules on the way to something, each (owner, name, module)."""
        for owner, name, child in owners:
            self.modules.append((owner, name, child, type(child)))
            if isinstance(owner, nn.Sequential | nn.ModuleList):
                self.lengths.append((owner, len(owner._modules)))

    def of(self, module: nn.Module) -> Looks:
        """The same, each once, of a module. Call it when all classes are what they will be."""

        def owner_of(owner: nn.Module | None) -> nn.Module | None:
            return None if owner is module else owner

        return Looks(
            _once((owner_of(o), name, m, type(m)) for o, name, m, _ in self.modules),
            _once((owner_of(o), name, value) for o, name, value in self.attributes),
            _once(self.names),
            _once((owner_of(o), count) for o, count in self.lengths),
        )

    def are_the_same(self, module: nn.Module) -> bool:
        """Whether all is what it was when it was looked at."""
        if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
            return False  # they see every module that is called
        for owner, name, child, kind in self.modules:
            owner = module if owner is None else owner
            if owner._modules.get(name) is not child or type(child) is not kind:
                return False
            if kind.__call__ is not nn.Module.__call__:  # which tracing replaces, too
                return False
            if why_not_passed_over(child) is not None:
                return False
        for owner, name, value in self.attributes:
            owner = module if owner is None else owner
            if owner.__dict__.get(name, ABSENT) is not value:
                return False
        for namespace, name, value in self.names:
            if isinstance(namespace, dict):
                if namespace.get(name) is not value:
                    return False
            elif isinstance(namespace, type | types.ModuleType):
                if getattr(namespace, name) is not value:
                    return False
            # Of functions and cells Dynamo has its own guards.
            elif not torch.compiler.is_compiling() and getattr(namespace, name) is not value:
                return False
        for owner, count in self.lengths:
            if len((module if owner is None else owner)._modules) != count:
                return False
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> Looks:
        # Classes, globals and functions are those of the copy, too.
        return Looks(
            [
                (copy.deepcopy(owner, memo), name, copy.deepcopy(child, memo), kind)
                for owner, name, child, kind in self.modules
            ],
            copy.deepcopy(self.attributes, memo),
            list(self.names),
            copy.deepcopy(self.lengths, memo),
        )


def _once(looks: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Each of them once, by identity."""
    return list({tuple(map(id, look)): look for look in looks}.values())


def why_not_passed_over(module: nn.Module) -> str | None:
    """Why a module's call cannot be replaced by a use of its parameters; None if it can."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "has hooks"
    if module._backward_hooks or module._backward_pre_hooks:
        return "has hooks"
    if "forward" in module.__dict__:
        return "its forward has been replaced"
    weight = module._parameters.get("weight")
    if weight is None or type(weight) is nn.Parameter or type(weight) is Tensor:
        return None
    if is_sharded(weight):
        return "its weight is sharded"
    # Tracing has tensors of its own, which are as any others.
    kind: Any = type(weight)
    if hasattr(kind, "__tensor_flatten__") or _function_of(kind) not in _USUAL:
        return f"its weight is a {kind.__name__}"
    return None


def _function_of(kind: Any) -> Any:
    function = kind.__torch_function__
    return getattr(function, "__func__", function)


_USUAL = (_function_of(Tensor), _function_of(nn.Parameter))
