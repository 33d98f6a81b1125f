"""What the names in a function mean: modules on the way from self, methods, functions."""

from __future__ import annotations

import ast
import builtins
import functools
import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from torchcalc.fusion._liveness import names_written
from torchcalc.fusion._looks import Looks
from torchcalc.fusion._swap import class_of
from torchcalc.fusion._terms import Place

# What a function was found by: (globals or module's names, name, object).
Names = list[tuple[Any, str, Any]]


class NotInlinable(Exception):
    pass


class Values(dict[str, Any]):
    """Names for objects that no expression of the function says."""

    def name(self, value: Any) -> ast.Name:
        for name, known in self.items():
            if known is value:
                return ast.Name(name, ast.Load())
        name = f"_torchcalc_{len(self)}"
        self[name] = value
        return ast.Name(name, ast.Load())


@dataclass
class Scope:
    """What the names of a function mean."""

    function: types.FunctionType
    definition: ast.FunctionDef
    module: nn.Module | None  # that self is; None in a function without one
    path: str  # of the module, from the model's root
    values: Values
    bound: dict[str, ast.expr] = field(default_factory=dict)  # expressions that names stand for
    owners: tuple[tuple[nn.Module, str, nn.Module], ...] = ()  # from the root to the module
    outer: Scope | None = None  # where it is inlined
    depth: int = 0
    is_careful: bool = False  # something is changed in place: who knows what
    looks: Looks = field(default_factory=Looks)  # at what the names of functions meant

    @property
    def root(self) -> Scope:
        return self if self.outer is None else self.outer.root

    @functools.cached_property
    def locals(self) -> set[str]:
        code = self.function.__code__
        return {*code.co_varnames, *code.co_cellvars, *names_written(self.definition)}

    @functools.cached_property
    def self_name(self) -> str | None:
        arguments = [*self.definition.args.posonlyargs, *self.definition.args.args]
        if self.module is None or not arguments:
            return None
        name = arguments[0].arg
        return None if name in names_written(self.definition) else name

    @functools.cached_property
    def attributes_written(self) -> set[str]:
        return {
            node.attr
            for node in ast.walk(self.definition)
            if isinstance(node, ast.Attribute) and not isinstance(node.ctx, ast.Load)
        }

    def find_global(self, name: str) -> tuple[Any, Names] | None:
        """The object of a name that is not local, and where it stands."""
        if name in self.locals:
            return None
        code = self.function.__code__
        if name in code.co_freevars:
            cell = (self.function.__closure__ or ())[code.co_freevars.index(name)]
            try:
                return cell.cell_contents, [(cell, "cell_contents", cell.cell_contents)]
            except ValueError:
                return None
        namespace = self.function.__globals__
        if name in namespace:
            return namespace[name], [(namespace, name, namespace[name])]
        return (getattr(builtins, name), []) if hasattr(builtins, name) else None

    def find_function(self, node: ast.expr) -> tuple[Any, Names] | None:
        """What a dotted name means, from a global on; None where it starts elsewhere."""
        if isinstance(node, ast.Name):
            return self.find_global(node.id)
        if isinstance(node, ast.Attribute):
            found = self.find_function(node.value)
            if found is not None and isinstance(found[0], types.ModuleType):
                base, names = found
                if node.attr in vars(base):
                    value = vars(base)[node.attr]
                    return value, [*names, (base, node.attr, value)]
        return None

    def find_place(self, node: ast.expr) -> Place | None:
        """What an expression as self.a.b[0] means, through modules alone."""
        if isinstance(node, ast.Name):
            if self.self_name is None or node.id != self.self_name:
                return None
            assert self.module is not None
            expr = self.bound.get(node.id, node)
            return Place(self.module, expr, self.path, self.owners, self.module, "")
        if isinstance(node, ast.Attribute):
            base = self.find_place(node.value)
            if base is None or not isinstance(base.value, nn.Module):
                return None
            return None if node.attr in self.attributes_written else _attribute(base, node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant | ast.UnaryOp):
            base = self.find_place(node.value)
            return None if base is None else _item(base, node.slice)
        return None


def scopes(scope: Scope | None) -> Iterator[Scope]:
    """It and those around it."""
    while scope is not None:
        yield scope
        scope = scope.outer


_MISSING = object()


def _of_class(kind: type, name: str) -> Any:
    return inspect.getattr_static(kind, name, _MISSING)


def is_plain_call(kind: type[nn.Module]) -> bool:
    """Whether calling such a module is nn.Module's call of its forward."""
    return kind.__call__ is nn.Module.__call__


def _attribute(base: Place, name: str) -> Place | None:
    """What Python finds: a method or property of the class, the instance's, then modules."""
    module: nn.Module = base.value
    kind = class_of(module)
    if _of_class(kind, "__getattribute__") is not object.__getattribute__:
        return None
    expr = ast.Attribute(base.expr, name, ast.Load())
    path = f"{base.path}.{name}" if base.path else name
    of_class = _of_class(kind, name)
    if of_class is _MISSING and name in vars(module):
        value = vars(module)[name]
        if isinstance(value, nn.Module):  # that it has not registered
            return None
        return Place(value, expr, path, base.owners, module, name)
    if of_class is _MISSING and name in module._modules:
        if _of_class(kind, "__getattr__") is not nn.Module.__getattr__:
            return None
        child = module._modules[name]
        if child is None:
            return None
        return Place(child, expr, path, (*base.owners, (module, name, child)), module, name)
    if isinstance(of_class, types.FunctionType) and name not in vars(module):
        method = types.MethodType(of_class, module)
        return Place(method, expr, path, base.owners, module, name, is_method=True)
    return None


_LOOKUPS = ("__getitem__", "__iter__", "__len__", "__call__")
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def _item(base: Place, index: ast.expr) -> Place | None:
    if not isinstance(base.value, _CONTAINERS):
        return None
    container: Any = next(kind for kind in _CONTAINERS if isinstance(base.value, kind))
    kind: Any = class_of(base.value)
    if any(getattr(kind, name) is not getattr(container, name) for name in _LOOKUPS):
        return None
    try:
        key = ast.literal_eval(index)
    except ValueError:
        return None
    children = base.value._modules
    if type(key) is int and container is not nn.ModuleDict:
        if not -len(children) <= key < len(children):
            return None
        key = list(children)[key]
    child = children.get(key) if isinstance(key, str) else None
    if child is None:
        return None
    expr = ast.Subscript(base.expr, index, ast.Load())
    owners = (*base.owners, (base.value, key, child))
    path = f"{base.path}.{key}" if base.path else key
    return Place(child, expr, path, owners, base.value, key)
