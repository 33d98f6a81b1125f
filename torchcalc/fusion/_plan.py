"""What of a model can be fused, and the functions that do it."""

from __future__ import annotations

import ast
import copy
import functools
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from torchcalc.fusion import _modules, _run
from torchcalc.fusion._flow import Flow, stand_in_order, stands_first
from torchcalc.fusion._lift import Lift, bound_arguments
from torchcalc.fusion._liveness import bodies, changes_in_place, names_read
from torchcalc.fusion._looks import Looks
from torchcalc.fusion._pieces import Lower, Piece
from torchcalc.fusion._scope import NotInlinable, Scope, Values, is_plain_call, scopes
from torchcalc.fusion._source import Unreadable, read, rebuild, rewrapped, unwrapped
from torchcalc.fusion._swap import Fused, class_of, fused_class
from torchcalc.fusion._terms import Place, is_inert, is_repeatable

_SPECIAL = inspect.CO_GENERATOR | inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR
_IS_BOUND = {"__class__", "super"}  # what means another thing in another function
_DEPTH = 6  # of calls within calls that are looked into


@dataclass
class Rewritten:
    """A function of which something is fused, and what was looked at for it."""

    function: Any
    pieces: list[Piece]
    gain: int
    looks: Looks = field(default_factory=Looks)

    def include(self, other: Rewritten) -> None:
        """What another function has fused that this one calls."""
        self.pieces += other.pieces
        self.gain += other.gain
        self.looks.include(other.looks)

    def fused(self, module: nn.Module) -> Fused:
        """As the module's forward. Call it when the classes of all modules are swapped."""
        return Fused(self.function, self.looks.of(module))


def fused_of(module: nn.Module) -> Fused | None:
    """What the module can compute instead of its class's forward, by itself."""
    found = Plan().of_module(module, "")
    return None if found is None else found.fused(module)


class Plan:
    """Of a model: what its modules become.

    ``left`` says what of them is not fused, and why; ``decided`` what could be an mlp and is none.
    """

    def __init__(self) -> None:
        self.left: dict[str, str] = {}
        self.decided: dict[str, str] = {}
        self._known: dict[Any, tuple[Any, Rewritten | None]] = {}  # with what must stay alive
        self._busy: list[Any] = []

    def of_module(self, module: nn.Module, path: str) -> Rewritten | None:
        """Its forward, if anything in it can be fused."""
        return self._once(id(module), module, lambda: self._of_module(module, path))

    def _once(self, key: Any, alive: Any, make: Callable[[], Rewritten | None]) -> Rewritten | None:
        if key in self._busy:  # it calls itself
            return None
        if key not in self._known:
            self._busy.append(key)
            try:
                self._known[key] = alive, make()
            finally:
                self._busy.pop()
        return self._known[key][1]

    def _of_module(self, module: nn.Module, path: str) -> Rewritten | None:
        kind = class_of(module)
        if isinstance(module, torch.jit.ScriptModule):
            return None
        if nn.utils.parametrize.is_parametrized(module):
            self.left[path] = "is parametrized"  # by a class of its own, which torch takes back
            return None
        if "forward" in vars(module):
            if _modules.is_told(module) or any(map(_modules.is_told, module.children())):
                self.left[path] = "its forward has been replaced"
            return None
        if kind in _modules.DROPOUTS:
            if not is_plain_call(kind):
                return None
            name = _modules.DROPOUTS[kind]
            looks = Looks(names=[(kind, "forward", kind.forward)])
            return Rewritten(_run.DROPOUT_FORWARDS[name], [Piece(name, name)], 1, looks)
        try:
            found = self._rewrite(unwrapped(kind.forward), module, path)
        except Unreadable as reason:
            if not _modules.is_told(module) and any(map(_modules.is_told, module.children())):
                self.left[path] = f"the forward of {kind.__name__} {reason}"
            return None
        except Exception as error:  # what nobody has thought of costs a block, not the model
            self.left[path] = f"could not be read: {type(error).__name__}: {error}"
            return None
        if found is not None:
            try:
                fused_class(kind)
            except TypeError as error:
                self.left[path] = f"its class cannot be extended: {error}"
                return None
            found.function = _rewrapped(kind.forward, found.function)
            found.looks.names.append((kind, "forward", kind.forward))
        return found

    def _rewrite(
        self, function: types.FunctionType, module: nn.Module | None, path: str
    ) -> Rewritten | None:
        definition = copy.deepcopy(_definition(function, module))
        values = Values()
        scope = Scope(function, definition, module, path, values)
        replaced: dict[Any, Rewritten] = {}

        def replace(callee: Any) -> Any:
            found = self._of_callee(callee, path)
            if found is None or found.function is None:
                return None
            replaced[found.function] = found
            return found.function

        lift = Lift(scope, self._inline, replace, self._leave)
        scope.is_careful = changes_in_place(definition)
        flow = Flow(lift, definition)
        made = Rewritten(None, [], 0)
        _each_block(definition.body, lambda block: flow.block(block))
        lower = Lower(values, self._gain_of, self.decided, scope.is_careful)
        _each_block(definition.body, lambda block: [self._lowered(s, lower, made) for s in block])
        used = names_read(definition)
        values = Values({name: value for name, value in values.items() if name in used})
        others = []
        for value in values.values():
            if isinstance(value, types.FunctionType) and value in replaced:
                others.append(replaced[value])
        for piece in made.pieces:
            _look_at(made.looks, piece)
        for other in others:
            made.include(other)
        if not made.pieces:
            return None
        made.looks.include(scope.looks, Looks(names=_code_of(function)))
        if isinstance(module, nn.Sequential):
            made.looks.lengths.append((module, len(module._modules)))
        made.function = _shared(function, definition, values)
        return made

    @staticmethod
    def _lowered(statement: ast.stmt, lower: Lower, made: Rewritten) -> ast.stmt:
        owners: list[Any] = [statement, *getattr(statement, "items", ())]
        for owner in owners:
            for name, value in ast.iter_fields(owner):
                if isinstance(value, ast.expr) and name not in ("target", "annotation"):
                    lowered = lower(value)
                    setattr(owner, name, lowered.expr)
                    made.pieces += lowered.pieces
                    made.gain += lowered.gain
        return statement

    def _of_callee(self, callee: Any, path: str) -> Rewritten | None:
        """Of a function or a method that is used by name."""
        function = getattr(callee, "__func__", callee)
        owner = getattr(callee, "__self__", None)
        source = getattr(function, "__module__", None) or ""
        if len(self._busy) > _DEPTH or not isinstance(function, types.FunctionType):
            return None
        if owner is None and (source == "torch" or source.startswith("torch.")):
            return None

        def make() -> Rewritten | None:
            try:
                found = self._rewrite(unwrapped(function), owner, path)
            except Unreadable:
                return None
            if found is not None:
                found.function = _rewrapped(function, found.function)
                for piece in found.pieces:
                    piece.name += f" (in {function.__name__})"
            return found

        return self._once((function, id(owner)), (function, owner), make)

    def _leave(self, path: str, reason: str) -> None:
        self.left.setdefault(path, reason)

    def _gain_of(self, place: Place) -> int:
        """Of a call that is left as it is."""
        if isinstance(place.value, nn.Module):
            found = self.of_module(place.value, place.path)
        else:
            found = self._of_callee(place.value, place.path)
        return 0 if found is None else found.gain

    def _inline(
        self, outer: Scope, place: Place, call: ast.Call, function: types.FunctionType
    ) -> ast.expr | None:
        """What the call returns, as an expression where the call stands."""
        module = place.value if isinstance(place.value, nn.Module) else place.owner
        if outer.depth >= _DEPTH or any(s.function is function for s in scopes(outer)):
            return None
        try:
            definition = _definition(function, module)
            if any(isinstance(node, ast.NamedExpr) for node in ast.walk(definition)):
                return None
            if function.__code__.co_flags & _SPECIAL or _IS_BOUND & set(_names_of(function)):
                return None
            given = _given(call, definition, function)
            own = place.expr if module is place.value else place.expr.value  # type: ignore[attr-defined]
            inner = Scope(
                function, definition, module, place.path, outer.values,
                {**given, definition.args.args[0].arg: own}, place.owners, outer, outer.depth + 1,
            )  # fmt: skip
            if module is not place.value:
                inner.path = place.path.rpartition(".")[0]
            lift = Lift(inner, self._inline, lambda _: None, lambda *_: None)
            body = definition.body
            if _is_docstring(body[0]):
                body = body[1:]
            done = Flow(lift, definition, everything=True).block(body)
        except (NotInlinable, Unreadable):
            return None
        if len(done) != 1 or not isinstance(done[0], ast.Return) or done[0].value is None:
            return None
        result = done[0].value
        moved = [value for value in given.values() if not is_repeatable(value)]
        if not all(stands_first(result, value) for value in moved):
            return None
        if not (all(map(is_inert, moved)) or stand_in_order(result, moved)):
            return None
        outer.root.looks.names += _code_of(function)
        outer.root.is_careful |= changes_in_place(definition)
        return result


_rebuilt: dict[Any, tuple[Any, Values]] = {}


def _shared(function: types.FunctionType, definition: ast.FunctionDef, values: Values) -> Any:
    """The function, one for all modules of which it says the same: each would be compiled anew."""
    objects = tuple((name, id(value)) for name, value in values.items())
    key = function, function.__code__, ast.dump(definition), objects
    if key not in _rebuilt:
        _rebuilt[key] = rebuild(function, definition, values), values
    return _rebuilt[key][0]


@functools.lru_cache(maxsize=1024)
def _rewrapped(function: Any, inner: Any) -> Any:
    return rewrapped(function, inner)


def _code_of(function: types.FunctionType) -> list[tuple[Any, str, Any]]:
    """What a function may be given anew in its place."""
    return [(function, name, getattr(function, name)) for name in ("__code__", "__defaults__")]


def _names_of(function: types.FunctionType) -> tuple[str, ...]:
    return function.__code__.co_names + function.__code__.co_freevars


def _is_docstring(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _definition(function: types.FunctionType, module: nn.Module | None) -> ast.FunctionDef:
    """The function's; nn.Sequential's, a loop, with a statement for each of its modules."""
    definition = read(function)
    if function is not nn.Sequential.forward or module is None:
        return definition
    own, x = (argument.arg for argument in definition.args.args)
    lines = [f"{x} = {own}[{index}]({x})" for index in range(len(module._modules))]
    made = copy.copy(definition)
    made.body = [*ast.parse("\n".join(lines)).body, ast.Return(ast.Name(x, ast.Load()))]
    for statement in made.body:
        for node in ast.walk(statement):
            ast.copy_location(node, definition)
    return made


def _given(
    call: ast.Call, definition: ast.FunctionDef, function: types.FunctionType
) -> dict[str, ast.expr]:
    """What the parameters behind self are given."""
    arguments = definition.args
    if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs:
        raise NotInlinable
    names = tuple(a.arg for a in arguments.args)
    given = bound_arguments(call, names[1:])
    if given is None:
        raise NotInlinable
    defaults = function.__defaults__ or ()
    for name, value in zip(names[len(names) - len(defaults) :], defaults, strict=True):
        if name not in given:
            if type(value) not in (bool, int, float, str, type(None)):
                raise NotInlinable
            given[name] = ast.Constant(value)
    if set(given) != set(names[1:]):
        raise NotInlinable
    return given


def _each_block(block: list[ast.stmt], change: Callable[[list[ast.stmt]], list[ast.stmt]]) -> None:
    block[:] = change(block)
    for statement in block:
        for body in bodies(statement):
            _each_block(body, change)


def _look_at(looks: Looks, piece: Piece) -> None:
    """What must stay as it is for the piece to be right."""
    looks.include(*piece.looks, *(call.looks for call in piece.through))
    for place in [*piece.places, *(call.place for call in piece.through)]:
        looks.pass_through(place.owners)
        if isinstance(place.value, nn.Module):
            kind = class_of(place.value)
            looks.names.append((kind, "forward", kind.forward))
            if _modules.is_linear(place.value):
                looks.names.append((F, "linear", F.linear))
            if isinstance(place.value, nn.Sequential):
                looks.lengths.append((place.value, len(place.value._modules)))
