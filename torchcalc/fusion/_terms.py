"""Expressions in which the layers, activations and dropouts of a module are told.

A term is an expression of which is known what it computes. Terms stand in trees of the standard
library's ``ast`` wherever an expression may, so a tree without any is plain Python.
"""

from __future__ import annotations

import ast
import builtins
import copy
import functools
import operator
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from torchcalc.fusion import _modules
from torchcalc.fusion._source import Unreadable, unwrapped
from torchcalc.fusion._swap import class_of


class Term(ast.expr):
    """``plain`` is the expression as it stood."""

    _fields = ()

    def __init__(self, plain: ast.expr) -> None:
        super().__init__()
        self.plain = plain
        self.lowered: Any = None  # by _pieces: what it becomes
        ast.copy_location(self, plain)


@dataclass(frozen=True)
class Place:
    """A module or another attribute, and where it was found: ``expr`` says it in Python."""

    value: Any
    expr: ast.expr
    path: str  # from the model's root
    owners: tuple[tuple[nn.Module, str, nn.Module], ...]  # (owner, name, module) on the way
    owner: nn.Module
    name: str


class Linear(Term):
    def __init__(self, plain: ast.expr, place: Place, arg: ast.expr) -> None:
        super().__init__(plain)
        self.place, self.arg = place, arg


class Activation(Term):
    """``given`` is what linear_act takes: a name, or a module of torch.nn that is asked anew."""

    def __init__(
        self, plain: ast.expr, place: Place | None, name: str, given: ast.expr, arg: ast.expr
    ) -> None:
        super().__init__(plain)
        self.place, self.name, self.given, self.arg = place, name, given, arg


class Dropout(Term):
    """Of a module, or a function with p and training."""

    def __init__(
        self, plain: ast.expr, place: Place | None, given: ast.expr, arg: ast.expr
    ) -> None:
        super().__init__(plain)
        self.place, self.given, self.arg = place, given, arg


class Sum(Term):
    def __init__(self, plain: ast.expr, left: ast.expr, right: ast.expr) -> None:
        super().__init__(plain)
        self.left, self.right = left, right


class Product(Term):
    def __init__(self, plain: ast.expr, left: ast.expr, right: ast.expr) -> None:
        super().__init__(plain)
        self.left, self.right = left, right


class Inlined(Term):
    """A call of a module or method that returns ``body``."""

    def __init__(
        self, plain: ast.expr, place: Place, body: ast.expr, methods: list[tuple[type, str, Any]]
    ) -> None:
        super().__init__(plain)
        self.place, self.body, self.methods = place, body, methods


class Identity(Term):
    """A call of nn.Identity."""

    def __init__(self, plain: ast.expr, place: Place, arg: ast.expr) -> None:
        super().__init__(plain)
        self.place, self.arg = place, arg


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

    @functools.cached_property
    def locals(self) -> set[str]:
        arguments = self.definition.args
        names = [a.arg for a in ast.walk(arguments) if isinstance(a, ast.arg)]
        return {*names, *(n.id for n in ast.walk(self.definition) if _is_store(n))}  # type: ignore[attr-defined]

    @functools.cached_property
    def self_name(self) -> str | None:
        arguments = [*self.definition.args.posonlyargs, *self.definition.args.args]
        if self.module is None or not arguments:
            return None
        name = arguments[0].arg
        stored = (n for n in ast.walk(self.definition) if _is_store(n))
        return None if any(n.id == name for n in stored) else name  # type: ignore[attr-defined]

    def find_global(self, name: str) -> Any:
        """The object of a name that is not local, or None."""
        if name in self.locals:
            return None
        if name in self.function.__code__.co_freevars:
            index = self.function.__code__.co_freevars.index(name)
            try:
                return (self.function.__closure__ or ())[index].cell_contents
            except ValueError:
                return None
        return self.function.__globals__.get(name, getattr(builtins, name, None))

    def find_function(self, node: ast.expr) -> Any:
        """What a dotted name means, from a global on; None where it starts elsewhere."""
        if isinstance(node, ast.Name):
            return self.find_global(node.id)
        if isinstance(node, ast.Attribute):
            base = self.find_function(node.value)
            if isinstance(base, types.ModuleType | type):
                return getattr(base, node.attr, None)
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
            return _attribute(base, node.attr)
        if isinstance(node, ast.Subscript) and isinstance(node.slice, ast.Constant | ast.UnaryOp):
            base = self.find_place(node.value)
            return None if base is None else _item(base, node.slice)
        return None


def _is_store(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del)


def _attribute(base: Place, name: str) -> Place | None:
    module: nn.Module = base.value
    expr = ast.Attribute(base.expr, name, ast.Load())
    path = f"{base.path}.{name}" if base.path else name
    child = module._modules.get(name)
    if child is not None:
        owners = (*base.owners, (module, name, child))
        return Place(child, expr, path, owners, module, name)
    if name in vars(module):
        return Place(vars(module)[name], expr, path, base.owners, module, name)
    function = getattr(class_of(module), name, None)
    if isinstance(function, types.FunctionType):
        return Place(types.MethodType(function, module), expr, path, base.owners, module, name)
    return None


def _item(base: Place, index: ast.expr) -> Place | None:
    if not isinstance(base.value, nn.Sequential | nn.ModuleList | nn.ModuleDict):
        return None
    try:
        key = ast.literal_eval(index)
    except ValueError:
        return None
    children = base.value._modules
    if isinstance(key, int) and not isinstance(base.value, nn.ModuleDict):
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


_UNEVALUATED = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


class Lift:
    """Makes terms of expressions. ``replace`` says what stands for a function or a method that is
    not inlined, ``inline`` what a call returns, and ``left`` is told why something is no term.
    """

    def __init__(
        self,
        scope: Scope,
        inline: Callable[[Scope, Place, ast.Call, types.FunctionType], ast.expr | None],
        replace: Callable[[Any], Any],
        left: Callable[[str, str], None],
    ) -> None:
        self.scope, self.inline, self.replace, self.left = scope, inline, replace, left

    def __call__(self, node: ast.expr) -> ast.expr:
        lifted = self._lift(node)
        return lifted if isinstance(lifted, Term) else ast.copy_location(lifted, node)

    def _lift(self, node: ast.expr) -> ast.expr:
        if isinstance(node, Term):
            return node
        if isinstance(node, ast.Name):
            return self._name(node)
        if isinstance(node, _UNEVALUATED):
            return self._unevaluated(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        lifted = self._children(node)
        if isinstance(lifted, ast.BinOp) and isinstance(lifted.op, ast.Add):
            return Sum(lifted, lifted.left, lifted.right)
        if isinstance(lifted, ast.BinOp) and isinstance(lifted.op, ast.Mult):
            return Product(lifted, lifted.left, lifted.right)
        if isinstance(lifted, ast.Attribute):
            place = self.scope.find_place(node)
            if place is not None and isinstance(place.value, types.MethodType):
                return self._method(place, lifted)
        return lifted

    def _children(self, node: ast.expr) -> Any:
        made = copy.copy(node)
        for name, value in ast.iter_fields(node):
            if isinstance(value, ast.expr):
                setattr(made, name, self(value))
            elif isinstance(value, list):
                setattr(made, name, [self._element(v) for v in value])
        return made

    def _element(self, value: Any) -> Any:
        if isinstance(value, ast.expr):
            return self(value)
        if isinstance(value, ast.keyword):
            made = copy.copy(value)
            made.value = self(value.value)
            return made
        return value

    def _name(self, node: ast.Name) -> ast.expr:
        scope = self.scope
        if not isinstance(node.ctx, ast.Load):
            return node
        if node.id in scope.bound:
            return scope.bound[node.id]
        if scope.outer is not None and node.id in scope.locals:
            raise NotInlinable  # a local variable that is read more than once
        value = scope.find_global(node.id)
        replaced = self.replace(value) if isinstance(value, types.FunctionType) else None
        if replaced is not None:
            return scope.values.name(replaced)
        root = scope
        while root.outer is not None:
            root = root.outer
        if root is not scope and root.find_global(node.id) is not value:
            return scope.values.name(value)
        return node

    def _unevaluated(self, node: ast.expr) -> ast.expr:
        if self.scope.outer is not None:
            raise NotInlinable
        return node

    def _method(self, place: Place, node: ast.expr) -> ast.expr:
        replaced = self.replace(place.value)
        if replaced is None:
            return node
        owner = node.value  # type: ignore[attr-defined]
        method = self.scope.values.name(types.MethodType)
        return ast.Call(method, [self.scope.values.name(replaced), owner], [])

    def _call(self, node: ast.Call) -> ast.expr:
        place = self.scope.find_place(node.func)
        if place is None:
            return self._call_of_function(node)
        if isinstance(place.value, nn.Module):
            return self._call_of_module(node, place)
        plain = self._children(node)
        arg = _only_argument(plain)
        if isinstance(place.value, types.MethodType):
            body = self.inline(self.scope, place, plain, place.value.__func__)
            if body is None:
                return plain  # type: ignore[no-any-return]
            kind = class_of(place.owner)
            return Inlined(plain, place, body, [(kind, place.name, getattr(kind, place.name))])
        if arg is not None and callable(place.value) and is_of_linear(arg):
            name = _modules.probe(place.value)
            if name is not None:
                return Activation(plain, place, name, ast.Constant(name), arg)
        return plain  # type: ignore[no-any-return]

    def _call_of_module(self, node: ast.Call, place: Place) -> ast.expr:
        module: nn.Module = place.value
        plain = self._children(node)
        plain.func = place.expr
        arg = _only_argument(plain)
        kind = class_of(module)
        reason = _modules.why_not(module)
        if reason is not None:
            if _modules.is_told(module):
                self.left(place.path, reason)
            return plain  # type: ignore[no-any-return]
        if arg is not None and _modules.is_linear(module):
            return Linear(plain, place, arg)
        if arg is not None and kind is nn.Dropout:
            return Dropout(plain, place, place.expr, arg)
        if arg is not None and kind is nn.Identity:
            return Identity(plain, place, arg)
        if arg is not None and is_of_linear(arg):
            name = _modules.activation_name(module)
            if name is not None:
                return Activation(plain, place, name, place.expr, arg)
            name = _modules.probe_module(module)
            if name is not None:
                return Activation(plain, place, name, ast.Constant(name), arg)
        if _modules.is_told(module):
            return plain  # type: ignore[no-any-return]
        try:
            function = unwrapped(kind.forward)
        except Unreadable:
            return plain  # type: ignore[no-any-return]
        if function is not _forward(kind) or kind.__call__ is not nn.Module.__call__:
            return plain  # type: ignore[no-any-return]
        body = self.inline(self.scope, place, plain, function)
        if body is None:
            return plain  # type: ignore[no-any-return]
        return Inlined(plain, place, body, [(kind, "forward", kind.forward)])

    def _call_of_function(self, node: ast.Call) -> ast.expr:
        function = self.scope.find_function(node.func)
        plain = self._children(node)
        if function in (torch.nn.functional.dropout, torch.dropout):
            return _dropout_of(plain, function is torch.dropout)
        first = plain.args[0] if plain.args else None
        if function is not None and first is not None and is_of_linear(first):
            constants = _constants(plain)
            if callable(function) and constants is not None:
                name = _modules.probe(functools.partial(_call_with, function, *constants))
                if name is not None:
                    return Activation(plain, None, name, ast.Constant(name), first)
        if isinstance(plain.func, ast.Attribute) and not plain.args and not plain.keywords:
            of = plain.func.value
            if is_of_linear(of) and hasattr(torch.Tensor, plain.func.attr):
                name = _modules.probe(operator.methodcaller(plain.func.attr))
                if name is not None:
                    return Activation(plain, None, name, ast.Constant(name), of)
        return plain  # type: ignore[no-any-return]


def seen(node: ast.expr) -> list[ast.expr]:
    """The node and what it comes to, where it is a call that returns that."""
    found = [node]
    while isinstance(found[-1], Inlined | Identity):
        last = found[-1]
        found.append(last.body if isinstance(last, Inlined) else last.arg)
    return found


def _forward(kind: type[nn.Module]) -> Any:
    return kind.forward


def is_of_linear(node: ast.expr) -> bool:
    """Whether it is a linear layer's output, so that an activation of it may be fused."""
    return isinstance(seen(node)[-1], Linear)


def _only_argument(call: ast.Call) -> ast.expr | None:
    """Of a call f(x) or f(name=x)."""
    if len(call.args) == 1 and not call.keywords and not isinstance(call.args[0], ast.Starred):
        return call.args[0]
    if not call.args and len(call.keywords) == 1 and call.keywords[0].arg in ("input", "x"):
        return call.keywords[0].value
    return None


def _dropout_of(plain: ast.Call, is_aten: bool) -> ast.expr:
    names = ("input", "p", "train" if is_aten else "training", "inplace")
    given = bound_arguments(plain, names)
    if given is None or "input" not in given:
        return plain
    p = given.get("p", ast.Constant(0.5))
    training = given.get(names[2], ast.Constant(True))
    pair = ast.Tuple([p, training], ast.Load())
    made = Dropout(plain, None, pair, given["input"])
    made.inplace = given.get("inplace")  # type: ignore[attr-defined]
    return made


def bound_arguments(call: ast.Call, names: tuple[str, ...]) -> dict[str, ast.expr] | None:
    """What each name is given; None where that is not said or some are unknown."""
    if len(call.args) > len(names) or any(isinstance(a, ast.Starred) for a in call.args):
        return None
    given = dict(zip(names, call.args, strict=False))
    for keyword in call.keywords:
        if keyword.arg not in names or keyword.arg in given:
            return None
        given[keyword.arg] = keyword.value
    return given


def _constants(call: ast.Call) -> tuple[tuple[Any, ...], Mapping[str, Any]] | None:
    """The arguments behind the first, where they are constants."""
    rest = [*call.args[1:], *(k.value for k in call.keywords)]
    if not all(isinstance(value, ast.Constant) for value in rest):
        return None
    if any(k.arg is None for k in call.keywords):
        return None
    args = tuple(a.value for a in call.args[1:])  # type: ignore[attr-defined]
    return args, {k.arg: k.value.value for k in call.keywords if k.arg}  # type: ignore[attr-defined]


def _call_with(function: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Any) -> Any:
    return function(x, *args, **kwargs)
