"""Which activation a function or a module computes: told by its source and its values.

Nothing of a model is run for that. Its source is read as an expression of operations that are known
to do nothing but compute, elementwise, and that expression is evaluated in float64.
"""

from __future__ import annotations

import ast
import functools
import itertools
import math
import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from torchcalc.fusion._looks import ABSENT, Looks, why_not_passed_over
from torchcalc.fusion._scope import Scope, Values, is_plain_call
from torchcalc.fusion._source import Unreadable, read, unwrapped
from torchcalc.fusion._swap import class_of
from torchcalc.fusion._terms import Computed, Told
from torchcalc.ops import activations
from torchcalc.reference import activations as reference

_DEPTH = 4  # of functions that call functions


def _named(library: Any, names: str) -> dict[Any, str]:
    return {getattr(library, name): f"{library.__name__}.{name}" for name in names.split()}


# Elementwise, without effects, and the same whatever else happens.
_OPERATIONS: dict[Any, str] = {
    **_named(torch, "tanh sigmoid erf exp expm1 log1p pow square sqrt relu add sub mul div"),
    **_named(math, "sqrt exp log erf tanh"),
    **_named(
        F,
        "relu relu6 leaky_relu elu selu celu gelu silu mish softplus sigmoid tanh hardswish "
        "hardsigmoid hardtanh softsign logsigmoid",
    ),
}
_METHODS = frozenset(
    ("relu", "sigmoid", "tanh", "square", "pow", "exp", "erf", "sqrt", "add", "sub", "mul", "div")
)
_BINARY: dict[type, Callable[[Any, Any], Any]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}


class _Impure(Exception):
    """It is not an expression of such operations."""


def told(value: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Told | None:
    """Of a function or module; ``args`` and ``kwargs`` are constants that follow its argument."""
    looks = Looks()
    try:
        computed = _given(_of(value, looks, 0), args, kwargs or {})
    except (_Impure, Unreadable):
        return None
    name = _name(computed)
    return None if name is None else Told(name, computed, looks)


def of_method(name: str) -> Told | None:
    """Of a method of tensors."""
    if name not in _METHODS:
        return None
    computed = Computed(getattr(Tensor, name), f"Tensor.{name}")
    found = _name(computed)
    return None if found is None else Told(found, computed, Looks())


def of_torch(module: nn.Module) -> str | None:
    """The activation that a module of torch.nn is now; None where it is none of ours."""
    try:
        return activations.resolve("fuse", module).name
    except (TypeError, ValueError):
        return None


# --- sources as expressions


def _given(computed: Computed, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Computed:
    if not args and not kwargs:
        return computed
    text = f"{computed.text}, {args}, {sorted(kwargs.items())}"
    return Computed(lambda x: computed.evaluate(x, *args, **kwargs), text)


def _of(value: Any, looks: Looks, depth: int) -> Computed:
    if depth > _DEPTH:
        raise _Impure
    if _is_known(value):
        return Computed(value, _OPERATIONS[value])
    if isinstance(value, functools.partial) and all(map(_is_constant, _arguments(value))):
        return _given(_of(value.func, looks, depth + 1), value.args[1:], value.keywords or {})
    if isinstance(value, nn.Module):
        return _of_module(value, looks, depth)
    if isinstance(value, types.MethodType) and isinstance(value.__self__, nn.Module):
        method: Any = value.__func__
        return _of_source(method, value.__self__, looks, depth)
    if isinstance(value, types.FunctionType):
        return _of_source(value, None, looks, depth)
    raise _Impure


def _is_known(value: Any) -> bool:
    try:
        return value in _OPERATIONS
    except TypeError:  # it has no hash
        return False


def _arguments(value: functools.partial[Any]) -> list[Any]:
    return [*value.args, *value.keywords.values()] if not value.args else [_Impure]


def _is_constant(value: Any) -> bool:
    return value is None or type(value) in (bool, int, float, str)


def _of_module(module: nn.Module, looks: Looks, depth: int) -> Computed:
    name = of_torch(module)
    if name is not None:
        found = activations.resolve("fuse", module)
        known, parameters = reference.ACTIVATIONS[name], reference.parameters(found)
        # It may change its parameters; whoever asks it anew need not look at them.
        looks.attributes += [(module, n, v) for n, v in plain_attributes(module).items()]
        return Computed(lambda x: known(x, *parameters), f"{name}{parameters}")
    kind = class_of(module)
    if next(itertools.chain(module.parameters(), module.buffers()), None) is not None:
        raise _Impure
    if why_not_passed_over(module) is not None or not is_plain_call(kind):
        raise _Impure
    function: Any = unwrapped(kind.forward)
    looks.names.append((kind, "forward", kind.forward))
    if function is not vars(kind).get("forward", kind.forward):
        raise _Impure  # it is decorated
    return _of_source(function, module, looks, depth)


def plain_attributes(module: nn.Module) -> dict[str, Any]:
    """What its class has put into it, beside what every module has."""
    return {n: v for n, v in vars(module).items() if n[0] != "_" and n != "training"}


def _of_source(
    function: types.FunctionType, module: nn.Module | None, looks: Looks, depth: int
) -> Computed:
    definition = read(function)
    scope = Scope(function, definition, module, "", Values())
    names = [a.arg for a in definition.args.args]
    if module is not None:
        names = names[1:]
    defaults = function.__defaults__ or ()
    simple = not (definition.args.vararg or definition.args.kwarg or definition.args.kwonlyargs)
    if not simple or len(names) - len(defaults) > 1 or not all(map(_is_constant, defaults)):
        raise _Impure
    source = _Source(scope, looks, depth)
    known = {
        name: Computed(_constant(v), repr(v)) for name, v in zip(names[1:], defaults, strict=False)
    }
    known[names[0]] = Computed(lambda x: x, "x")
    return source.body(definition.body, known)


def _constant(value: Any) -> Callable[[Any], Any]:
    return lambda _: value


class _Source:
    """Statements ``name = expression`` and a last ``return expression``."""

    def __init__(self, scope: Scope, looks: Looks, depth: int) -> None:
        self.scope, self.looks, self.depth = scope, looks, depth

    def body(self, statements: list[ast.stmt], known: dict[str, Computed]) -> Computed:
        for statement in statements:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                continue  # a docstring
            if isinstance(statement, ast.Return) and statement.value is not None:
                return self.expression(statement.value, known)
            if not (
                isinstance(statement, ast.Assign)
                and len(statement.targets) == 1
                and isinstance(statement.targets[0], ast.Name)
            ):
                break
            known[statement.targets[0].id] = self.expression(statement.value, known)
        raise _Impure

    def expression(self, node: ast.expr, known: dict[str, Computed]) -> Computed:
        if isinstance(node, ast.Name) and node.id in known:
            return known[node.id]
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            left, right = self.expression(node.left, known), self.expression(node.right, known)
            operation = _BINARY[type(node.op)]
            return Computed(
                lambda x: operation(left.evaluate(x), right.evaluate(x)),
                f"({left.text} {type(node.op).__name__} {right.text})",
            )
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            operand = self.expression(node.operand, known)
            return Computed(lambda x: -operand.evaluate(x), f"-{operand.text}")
        if isinstance(node, ast.Call):
            return self.call(node, known)
        value = self.value(node)
        if not _is_constant(value):
            raise _Impure
        return Computed(_constant(value), repr(value))

    def value(self, node: ast.expr) -> Any:
        """Of a constant, an attribute of self or a global."""
        if isinstance(node, ast.Constant):
            return node.value
        place = self.scope.find_place(node)
        if place is not None:
            self.looks.pass_through(place.owners)
            if place.is_method:
                self.looks.attributes.append((place.owner, place.name, ABSENT))
                kind = class_of(place.owner)
                self.looks.names.append((kind, place.name, getattr(kind, place.name)))
            elif not isinstance(place.value, nn.Module):
                self.looks.attributes.append((place.owner, place.name, place.value))
            return place.value
        found = self.scope.find_function(node)
        if found is None:
            raise _Impure
        value, names = found
        self.looks.names += names
        return value

    def call(self, node: ast.Call, known: dict[str, Computed]) -> Computed:
        if any(isinstance(a, ast.Starred) for a in node.args) or any(
            k.arg is None for k in node.keywords
        ):
            raise _Impure
        args = [self.expression(a, known) for a in node.args]
        kwargs = {k.arg: self.expression(k.value, known) for k in node.keywords if k.arg}
        if self._is_method_of_value(node.func):
            assert isinstance(node.func, ast.Attribute)
            name = node.func.attr
            args.insert(0, self.expression(node.func.value, known))
            function = Computed(getattr(Tensor, name), f"Tensor.{name}")
        else:
            function = _of(self.value(node.func), self.looks, self.depth + 1)
        texts = [a.text for a in args] + [f"{key}={a.text}" for key, a in kwargs.items()]
        return Computed(
            lambda x: function.evaluate(
                *(a.evaluate(x) for a in args), **{k: a.evaluate(x) for k, a in kwargs.items()}
            ),
            f"{function.text}({', '.join(texts)})",
        )

    def _is_method_of_value(self, function: ast.expr) -> bool:
        if not isinstance(function, ast.Attribute) or function.attr not in _METHODS:
            return False
        if self.scope.find_place(function) is not None:
            return False
        return self.scope.find_function(function) is None


# --- values


_names: dict[str, str | None] = {}


def _name(computed: Computed) -> str | None:
    if computed.text not in _names:
        _names[computed.text] = _matching(computed.evaluate)
    return _names[computed.text]


def _matching(function: Callable[[Tensor], Any]) -> str | None:
    steps = [i / 50 for i in range(-600, 601)]
    far = [1e-6, 1e-3, *(i / 4 + 0.1 for i in range(48, 200)), 100.0, 1e3, 1e6, 1e9, 1e20]
    with torch.inference_mode(False):
        points = torch.tensor([*steps, *far, *(-x for x in far)], dtype=torch.float64, device="cpu")
    got = _value_and_slope(function, points)
    if got is None:
        return None
    for name, known in reference.ACTIVATIONS.items():
        parameters = reference.DEFAULTS.get(name, ())
        expected = _value_and_slope(functools.partial(_call, known, parameters), points)
        if name != "identity" and expected is not None and _agree(got, expected, points):
            return name
    return None


def _call(known: Callable[..., Tensor], parameters: tuple[float, ...], x: Tensor) -> Tensor:
    return known(x, *parameters)


def _value_and_slope(function: Callable[[Tensor], Any], points: Tensor) -> Any:
    try:
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            x = points.clone().requires_grad_()
            y = function(x * 1)  # which may be changed in place
            if type(y) is not Tensor or y.shape != x.shape or y.dtype != x.dtype:
                return None
            (slope,) = torch.autograd.grad(y.sum(), x)
    except (RuntimeError, TypeError, ValueError):  # of torch's operations, given these arguments
        return None
    return y.detach(), slope


def _agree(got: Any, expected: Any, points: Tensor) -> bool:
    # Rounding alone may differ. At a kink PyTorch's own derivatives differ, too.
    scale = 1e-13 * points.abs().clamp(min=1)
    kinks = points.new_tensor([-3.0, -1.0, 1.0, 3.0, 6.0])
    smooth = (points.unsqueeze(-1) - kinks).abs().amin(-1) > 1e-9
    values = ((got[0] - expected[0]).abs() <= scale).all()
    slopes = ((got[1] - expected[1]).abs() <= 10 * scale)[smooth].all()
    return bool(values and slopes)
