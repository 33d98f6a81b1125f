"""How a module gets another forward, and goes back.

Its class becomes a subclass of the same name, whose forward asks at each call whether the modules
that it passes over are what they were, and runs the original forward if not. A class and not an
attribute ``forward`` of the instance: an attribute is bound to one module, and what copies a
module's ``__dict__`` (copy.copy, DataParallel's replicas) would have called that one.
"""

from __future__ import annotations

import copy
import copyreg
import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from torchcalc._check import is_sharded

_new = vars(copyreg)["__newobj__"]  # how objects are made out of a pickle
_RECORD = "_torchcalc_fused"  # the attribute of a module that holds its Fused

_fused_classes: dict[type, type] = {}
_original_classes: dict[type, type] = {}


@dataclass(frozen=True)
class Fused:
    """What a module computes instead of its class's forward, as long as it ``is_intact``.

    An owner None is the module itself.
    """

    function: Callable[..., Any]
    # (owner, name, module, its class): what is passed over.
    modules: list[tuple[nn.Module | None, str, nn.Module, type]] = field(default_factory=list)
    # (owner, name, value): functions and numbers that were looked at.
    attributes: list[tuple[nn.Module | None, str, Any]] = field(default_factory=list)
    methods: list[tuple[type, str, Any]] = field(default_factory=list)  # (class, name, function)
    lengths: list[tuple[nn.Module | None, int]] = field(default_factory=list)  # of containers

    def is_intact(self, module: nn.Module) -> bool:
        """Whether everything is what it was when ``function`` was made."""
        if nn.modules.module._has_any_global_hook():  # type: ignore[no-untyped-call]
            return False  # they see every module that is called
        for owner, name, child, kind in self.modules:
            if (owner or module)._modules.get(name) is not child or type(child) is not kind:
                return False
            if why_not_passed_over(child) is not None:
                return False
        for owner, name, value in self.attributes:
            if (owner or module).__dict__.get(name) is not value:
                return False
        for kind, name, function in self.methods:
            if getattr(kind, name) is not function:
                return False
        return all(len((owner or module)._modules) == count for owner, count in self.lengths)

    def __deepcopy__(self, memo: dict[int, Any]) -> Fused:
        return replace(
            self,
            modules=[
                (copy.deepcopy(owner, memo), name, copy.deepcopy(child, memo), kind)
                for owner, name, child, kind in self.modules
            ],
            attributes=copy.deepcopy(self.attributes, memo),
            lengths=copy.deepcopy(self.lengths, memo),
        )

    def __reduce__(self) -> Any:  # a function made here cannot be pickled: it is made again
        return Unbuilt, ()


class Unbuilt:
    """What comes out of a pickle: the module's first call looks for what can be fused again."""


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
    if torch.overrides.has_torch_function_unary(weight):
        return f"its weight is a {type(weight).__name__}"
    return None


def class_of(module: nn.Module) -> type[nn.Module]:
    """The module's class as it is without fusion, where that has to do with its forward."""
    for kind in type(module).__mro__:
        if kind in _original_classes:
            return _original_classes[kind]
        if "forward" in vars(kind):
            break
    return type(module)


def swap(module: nn.Module, fused: Fused) -> None:
    """Makes the module compute that; :func:`restore` undoes it."""
    if class_of(module) is type(module):
        module.__class__ = _fused_class(type(module))
    module.__dict__[_RECORD] = fused


def restore(module: nn.Module) -> None:
    """Gives the module its class's forward back."""
    module.__dict__.pop(_RECORD, None)
    if type(module) in _original_classes:  # else somebody has made a class of ours his own
        module.__class__ = _original_classes[type(module)]


def _fused_class(original: type[nn.Module]) -> type[nn.Module]:
    found = _fused_classes.get(original)
    if found is not None:
        return found

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        fused = self.__dict__.get(_RECORD)
        if type(fused) is Unbuilt:
            fused = _rebuilt(self)
        if fused is not None and fused.is_intact(self):
            return fused.function(self, *args, **kwargs)
        return original.forward(self, *args, **kwargs)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        reduced = original.__reduce_ex__(self, protocol)
        if reduced[0] is _new and reduced[1] == (type(self),) == (made,):
            return (_instance, (original,), *reduced[2:])
        return reduced

    kind: Any = type(original)
    made: type[nn.Module] = kind(
        original.__name__,
        (original,),
        {
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "forward": forward,
            "__reduce_ex__": reduce,
        },
    )
    _fused_classes[original] = made
    _original_classes[made] = original
    return made


def _instance(original: type[nn.Module]) -> nn.Module:
    made: nn.Module = object.__new__(_fused_class(original))
    return made


def _rebuilt(module: nn.Module) -> Fused | None:
    from torchcalc.fusion._plan import fused_of

    fused = fused_of(module)
    module.__dict__[_RECORD] = fused
    return fused
