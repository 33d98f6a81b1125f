"""From expressions to terms."""

from __future__ import annotations

import ast
import copy
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torchcalc.fusion import _activation, _modules
from torchcalc.fusion._looks import ABSENT, Looks
from torchcalc.fusion._scope import NotInlinable, Scope, is_plain_call
from torchcalc.fusion._source import Unreadable, unwrapped
from torchcalc.fusion._swap import class_of
from torchcalc.fusion._terms import (
    Activation,
    Computed,
    Dropout,
    Identity,
    Inlined,
    Linear,
    Place,
    Product,
    Sum,
    Term,
    Told,
    is_fresh,
    is_inert,
    is_of_linear,
)
from torchcalc.reference import activations as reference

_UNEVALUATED = (ast.Lambda, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_DROPOUTS = (torch.nn.functional.dropout, torch.dropout)


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
            return self._name(node, self.replace)
        if isinstance(node, _UNEVALUATED):
            return self._unevaluated(node)
        if isinstance(node, ast.Call):
            return self._call(node)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, self.replace)
        lifted: ast.expr = self._children(node)
        if isinstance(lifted, ast.BinOp) and isinstance(lifted.op, ast.Add):
            return Sum(lifted, lifted.left, lifted.right)
        if isinstance(lifted, ast.BinOp) and isinstance(lifted.op, ast.Mult):
            return Product(lifted, lifted.left, lifted.right)
        return lifted

    def _children(self, node: ast.expr) -> Any:
        made = copy.copy(node)
        for name, value in ast.iter_fields(node):
            if isinstance(value, list):
                setattr(made, name, [self._element(v, node) for v in value])
            elif isinstance(value, ast.expr):
                setattr(made, name, self._element(value, node))
        return made

    def _element(self, value: Any, of: ast.expr) -> Any:
        # A function that is not called or handed on is looked at: is it that one, what has it?
        if isinstance(value, ast.Name) and not isinstance(of, ast.Call):
            return self._name(value, lambda _: None)
        if isinstance(value, ast.Attribute) and not isinstance(of, ast.Call):
            return self._attribute(value, lambda _: None)
        if isinstance(value, ast.expr):
            return self(value)
        if isinstance(value, ast.keyword):
            made = copy.copy(value)
            made.value = self(value.value)
            return made
        return value

    def _name(self, node: ast.Name, replace: Callable[[Any], Any]) -> ast.expr:
        scope = self.scope
        if not isinstance(node.ctx, ast.Load):
            return node
        if node.id in scope.bound:
            return scope.bound[node.id]
        if scope.outer is not None and node.id in scope.locals:
            raise NotInlinable  # a local variable that is read more than once
        found = scope.find_global(node.id)
        value, looks = found or (None, [])
        replaced = replace(value) if isinstance(value, types.FunctionType) else None
        if replaced is not None:
            scope.root.looks.names += looks
            return scope.values.name(replaced)
        if scope.outer is None or _is_same_global(scope, node.id):
            return node
        if not isinstance(value, types.ModuleType | types.BuiltinFunctionType | type):
            raise NotInlinable  # the value may be another one when it is read
        scope.root.looks.names += looks
        return scope.values.name(value)

    def _unevaluated(self, node: ast.expr) -> ast.expr:
        if self.scope.outer is not None:
            raise NotInlinable
        return node

    def _attribute(self, node: ast.Attribute, replace: Callable[[Any], Any]) -> ast.expr:
        lifted = self._children(node)
        place = self.scope.find_place(node)
        if place is not None and place.is_method:
            replaced = replace(place.value)
            if replaced is None:
                return lifted  # type: ignore[no-any-return]
            self._look_at_method(place, self.scope.root.looks)
            method = ast.Attribute(self.scope.values.name(replaced), "__get__", ast.Load())
            return ast.Call(method, [lifted.value], [])
        lifted.may_act = place is None and self.scope.find_place(node.value) is not None
        return lifted  # type: ignore[no-any-return]

    @staticmethod
    def _look_at_method(place: Place, looks: Looks) -> None:
        kind = class_of(place.owner)
        looks.names.append((kind, place.name, getattr(kind, place.name)))
        looks.attributes.append((place.owner, place.name, ABSENT))
        looks.pass_through(place.owners)

    def _call(self, node: ast.Call) -> ast.expr:
        place = self.scope.find_place(node.func)
        if place is not None and isinstance(place.value, nn.Module):
            return self._call_of_module(node, place)
        plain = self._children(node)
        if place is not None and place.is_method:
            body = self.inline(self.scope, place, plain, place.value.__func__)
            if body is None:
                return plain  # type: ignore[no-any-return]
            looks = Looks()
            self._look_at_method(place, looks)
            return Inlined(plain, place, body, looks)
        return self._call_of_function(node, plain, place)

    def _call_of_module(self, node: ast.Call, place: Place) -> ast.expr:
        module: nn.Module = place.value
        plain = self._children(node)
        plain.func = place.expr
        if isinstance(module, torch.jit.ScriptModule):
            return plain  # type: ignore[no-any-return]
        arg = _only_argument(plain)
        kind = class_of(module)
        reason = _modules.why_not(module)
        if reason is not None:
            if _modules.is_told(module):
                self.left(place.path, reason)
            return plain  # type: ignore[no-any-return]
        term = None if arg is None else self._term(plain, place, kind, arg)
        if term is None and getattr(module, "inplace", False) and isinstance(arg, Term):
            arg.is_changed = True
        if term is not None or _modules.is_told(module):
            return term or plain
        try:
            function = unwrapped(kind.forward)
        except Unreadable:
            return plain  # type: ignore[no-any-return]
        if function is not _forward(kind) or not is_plain_call(kind):
            return plain  # type: ignore[no-any-return]
        body = self.inline(self.scope, place, plain, function)
        if body is None:
            return plain  # type: ignore[no-any-return]
        return Inlined(plain, place, body, Looks())

    def _term(
        self, plain: ast.Call, place: Place, kind: type[nn.Module], arg: ast.expr
    ) -> Term | None:
        module: Any = place.value
        if _modules.is_linear(module):
            return Linear(plain, place, arg)
        if kind is nn.Identity:
            return Identity(plain, place, arg)
        if kind is nn.Dropout:
            if module.inplace and not is_fresh(arg):
                return None  # others see what it does to its argument
            looks = Looks(attributes=[(module, "inplace", module.inplace)])
            return Dropout(plain, place, place.expr, arg, looks)
        if not is_of_linear(arg):
            return None
        name = _activation.of_torch(module)
        if name is not None:  # whose parameters are asked anew in each call
            computed = Computed(reference.ACTIVATIONS[name], name)
            return Activation(plain, place, Told(name, computed, Looks()), place.expr, arg)
        told = _activation.told(module)
        if told is None:
            return None
        return Activation(plain, place, told, ast.Constant(told.name), arg)

    def _call_of_function(self, node: ast.Call, plain: ast.Call, place: Place | None) -> ast.expr:
        found = self.scope.find_function(node.func)
        if found is not None and any(found[0] is function for function in _DROPOUTS):
            return _dropout_of(plain, found[0] is torch.dropout, Looks(names=found[1]))
        if place is not None:
            looks = Looks(attributes=[(place.owner, place.name, place.value)])
            looks.pass_through(place.owners)
            found = place.value, []
        elif found is not None:
            looks = Looks(names=found[1])
        else:
            return self._call_of_method(plain)
        first = plain.args[0] if plain.args else None
        constants = _constants(plain)
        if first is None or constants is None or not is_of_linear(first):
            return plain
        told = _activation.told(found[0], *constants)
        if told is None:
            return plain
        told.looks.include(looks)
        return Activation(plain, None, told, ast.Constant(told.name), first)

    @staticmethod
    def _call_of_method(plain: ast.Call) -> ast.expr:
        """As self.fc(x).relu()."""
        if not isinstance(plain.func, ast.Attribute) or plain.args or plain.keywords:
            return plain
        if not is_of_linear(plain.func.value):
            return plain
        told = _activation.of_method(plain.func.attr)
        if told is None:
            return plain
        return Activation(plain, None, told, ast.Constant(told.name), plain.func.value)


def _is_same_global(scope: Scope, name: str) -> bool:
    """Whether it is read from the same globals where the scope is inlined."""
    root = scope.root
    return name not in root.locals and (
        scope.function.__globals__ is root.function.__globals__
        and name not in scope.function.__code__.co_freevars
        and name not in root.function.__code__.co_freevars
    )


def _forward(kind: type[nn.Module]) -> Any:
    return kind.forward


def _only_argument(call: ast.Call) -> ast.expr | None:
    """Of a call f(x) or f(name=x)."""
    if len(call.args) == 1 and not call.keywords and not isinstance(call.args[0], ast.Starred):
        return call.args[0]
    if not call.args and len(call.keywords) == 1 and call.keywords[0].arg in ("input", "x"):
        return call.keywords[0].value
    return None


def _dropout_of(plain: ast.Call, is_aten: bool, looks: Looks) -> ast.expr:
    names = ("input", "p", "train" if is_aten else "training", "inplace")
    given = bound_arguments(plain, names)
    if given is None or "input" not in given:
        return plain
    inplace = given.get("inplace", ast.Constant(False))
    if not isinstance(inplace, ast.Constant) or (inplace.value and not is_fresh(given["input"])):
        return plain  # others see what it does to its argument
    p, training = given.get("p", ast.Constant(0.5)), given.get(names[2], ast.Constant(True))
    if not (is_inert(p) and is_inert(training)):
        return plain
    pair = ast.Tuple([p, training], ast.Load())
    return Dropout(plain, None, pair, given["input"], looks)


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


def _constants(call: ast.Call) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """The arguments behind the first, where they are constants."""
    rest = [*call.args[1:], *(k.value for k in call.keywords)]
    if not all(isinstance(value, ast.Constant) for value in rest):
        return None
    if any(k.arg is None for k in call.keywords):
        return None
    args = tuple(a.value for a in call.args[1:])  # type: ignore[attr-defined]
    return args, {k.arg: k.value.value for k in call.keywords if k.arg}  # type: ignore[attr-defined]
