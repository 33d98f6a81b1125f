"""How a module gets another forward, and goes back.

Its class becomes a subclass of the same name, whose forward asks at each call whether all that was
looked at is what it was, and runs the original forward if not. A class and not an attribute
``forward`` of the instance: an attribute is bound to one module, and what copies a module's
``__dict__`` (copy.copy, DataParallel's replicas) would have called that one.
"""

from __future__ import annotations

import abc
import copyreg
import functools
from _abc import _abc_init as abc_init  # type: ignore[import-not-found]
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from torchcalc._check import FLOATING
from torchcalc.fusion._looks import Looks

_RECORD = "_torchcalc_fused"  # the attribute of a module that holds its Fused
_new = vars(copyreg)["__newobj__"]  # how objects are made out of a pickle

_fused_classes: dict[type, type] = {}
_original_classes: dict[type, type] = {}


@dataclass(frozen=True)
class Fused:
    """What a module computes instead of its class's forward, as long as its looks are the same."""

    function: Callable[..., Any]
    looks: Looks

    def __reduce__(self) -> Any:  # a function made here cannot be pickled: it is made again
        return Unbuilt, ()

    def __deepcopy__(self, memo: dict[int, Any]) -> Fused:
        return Fused(self.function, self.looks.__deepcopy__(memo))


class Unbuilt:
    """What stands in a pickle: once all of a module is there, it is fused again."""


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
        # Past a __setattr__ of its own.
        object.__setattr__(module, "__class__", fused_class(type(module)))
    module.__dict__[_RECORD] = fused


def restore(module: nn.Module) -> None:
    """Gives the module its class's forward back."""
    module.__dict__.pop(_RECORD, None)
    if type(module) in _original_classes:  # else somebody has made a class of ours his own
        object.__setattr__(module, "__class__", _original_classes[type(module)])


# Fewer elements take PyTorch's operations less time than the longer calls of fused ones: while
# training, and else, when nothing is dropped.
FEW = {True: 1 << 13, False: 1 << 16}


@contextmanager
def whatever_size() -> Iterator[None]:
    """With few elements in fused ops, too."""
    before = dict(FEW)
    FEW.update(dict.fromkeys(FEW, 0))
    try:
        yield
    finally:
        FEW.update(before)


def _pays(training: bool, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """Whether the first tensor that a forward is given is one for fused ops; true without any."""
    for value in (*args, *kwargs.values()):
        if isinstance(value, Tensor):
            if not value.is_floating_point():
                return not value.is_complex()  # indices of words, for example
            # Where it is compiled, a call costs nothing.
            if value.numel() < FEW[training] and not torch.compiler.is_compiling():
                return False
            return value.dtype in FLOATING and value.layout == torch.strided
        if hasattr(value, "__torch_function__"):
            return False  # torch.fx looks on, which knows dropouts as modules
    return True


def fused_class(original: type[nn.Module]) -> type[nn.Module]:
    """Raises TypeError where a class has what a subclass cannot have, such as __slots__."""
    found = _fused_classes.get(original)
    if found is not None:
        return found

    @functools.wraps(original.forward)
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        fused = self.__dict__.get(_RECORD)
        if (
            type(fused) is Fused
            and _pays(self.training, args, kwargs)
            and fused.looks.are_the_same(self)
        ):
            return fused.function(self, *args, **kwargs)
        return original.forward(self, *args, **kwargs)

    def setstate(self: nn.Module, state: Any) -> None:
        original.__setstate__(self, state)  # type: ignore[no-untyped-call]
        if type(self.__dict__.get(_RECORD)) is Unbuilt:
            _rebuilt(self)

    def reduce(self: nn.Module, protocol: Any) -> Any:
        reduced = original.__reduce_ex__(self, protocol)
        if reduced[0] is _new and reduced[1] == (type(self),) == (made,):
            return (_instance, (original,), *reduced[2:])
        return reduced

    # Made by type itself and its base told afterwards: a metaclass or __init_subclass__ might ask
    # for more, or keep a list.
    made: type[nn.Module] = type.__new__(
        type(original),
        original.__name__,
        (nn.Module,),
        {
            "__module__": original.__module__,
            "__qualname__": original.__qualname__,
            "__doc__": original.__doc__,
            "forward": forward,
            "__reduce_ex__": reduce,
            "__setstate__": setstate,
        },
    )
    made.__bases__ = (original,)
    if isinstance(made, abc.ABCMeta):  # else it would share what original knows of its subclasses
        abc_init(made)
    _fused_classes[original] = made
    _original_classes[made] = original
    return made


def _instance(original: type[nn.Module]) -> nn.Module:
    made: nn.Module = object.__new__(fused_class(original))
    return made


def _rebuilt(module: nn.Module) -> None:
    from torchcalc.fusion._plan import fused_of

    module.__dict__[_RECORD] = fused_of(module)
