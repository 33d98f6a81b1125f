"""What of a model can be fused, and the functions that do it."""

from __future__ import annotations

import ast
import copy
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from torchcalc.fusion import _modules, _run
from torchcalc.fusion._flow import Flow, is_inert, stands_first
from torchcalc.fusion._liveness import bodies, live_after, names_read
from torchcalc.fusion._pieces import Lower, Piece
from torchcalc.fusion._source import Unreadable, read, rebuild, rewrapped, unwrapped
from torchcalc.fusion._swap import Fused, class_of
from torchcalc.fusion._terms import (
    Lift,
    NotInlinable,
    Place,
    Scope,
    Values,
    bound_arguments,
)

_DEPTH = 6  # of calls within calls that are looked into


@dataclass
class Rewritten:
    """A function of which something is fused."""

    function: Any
    pieces: list[Piece]
    gain: int
    modules: list[tuple[nn.Module, str, nn.Module]] = field(default_factory=list)
    attributes: list[tuple[nn.Module, str, Any]] = field(default_factory=list)
    methods: list[tuple[type, str, Any]] = field(default_factory=list)
    sequentials: list[nn.Module] = field(default_factory=list)

    def include(self, other: Rewritten) -> None:
        """What another function that this one calls has fused and looked at."""
        self.pieces += other.pieces
        self.modules += other.modules
        self.attributes += other.attributes
        self.methods += other.methods
        self.sequentials += other.sequentials

    def fused(self, module: nn.Module) -> Fused:
        """As the module's forward. Call it when all classes are swapped: it holds the modules'."""

        def owner_of(owner: nn.Module) -> nn.Module | None:
            return None if owner is module else owner

        modules = {(id(o), name): (owner_of(o), name, m, type(m)) for o, name, m in self.modules}
        attributes = {(id(o), name): (owner_of(o), name, v) for o, name, v in self.attributes}
        lengths = {id(m): (owner_of(m), len(m._modules)) for m in self.sequentials}
        return Fused(
            self.function,
            list(modules.values()),
            list(attributes.values()),
            list(dict.fromkeys(self.methods)),
            list(lengths.values()),
        )


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
        if "forward" in vars(module):
            if _modules.is_told(module) or any(map(_modules.is_told, module.children())):
                self.left[path] = "its forward has been replaced"
            return None
        if kind in _modules.DROPOUTS:
            name = _modules.DROPOUTS[kind]
            return Rewritten(_run.DROPOUT_FORWARDS[name], [Piece(name, name)], 1)
        try:
            found = self._rewrite(unwrapped(kind.forward), module, path)
        except Unreadable as reason:
            if not _modules.is_told(module) and any(map(_modules.is_told, module.children())):
                self.left[path] = f"the forward of {kind.__name__} {reason}"
            return None
        if found is not None:
            found.function = rewrapped(kind.forward, found.function)
            found.methods.append((kind, "forward", kind.forward))
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
        lower = Lower(values, self._gain_of, self.decided)
        flow = Flow(lift, live_after(definition))
        made = Rewritten(None, [], 0)
        _each_block(definition.body, lambda block: flow.block(block))
        _each_block(definition.body, lambda block: [self._lowered(s, lower, made) for s in block])
        used = names_read(definition)
        values = Values({name: value for name, value in values.items() if name in used})
        for value in values.values():
            if isinstance(value, types.FunctionType) and value in replaced:
                made.include(replaced[value])
                made.gain += replaced[value].gain
        if not made.pieces:
            return None
        for piece in made.pieces:
            _look_at(made, piece)
        if isinstance(module, nn.Sequential):
            made.sequentials.append(module)
        made.function = rebuild(function, definition, values)
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
                found.function = rewrapped(function, found.function)
                for piece in found.pieces:
                    piece.name += f" (in {function.__name__})"
                if owner is not None:
                    kind = class_of(owner)
                    found.methods.append((kind, function.__name__, function))
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
        if outer.depth >= _DEPTH or any(s.function is function for s in _scopes(outer)):
            return None
        try:
            definition = _definition(function, module)
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
            done = Flow(lift, live_after(definition), everything=True).block(body)
        except (NotInlinable, Unreadable):
            return None
        if len(done) != 1 or not isinstance(done[0], ast.Return) or done[0].value is None:
            return None
        result = done[0].value
        busy = [value for value in given.values() if not is_inert(value)]
        if len(busy) > 1 or not all(stands_first(result, value) for value in busy):
            return None
        return result


def _scopes(scope: Scope | None) -> Any:
    while scope is not None:
        yield scope
        scope = scope.outer


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
    made.body = ast.parse("\n".join([*lines, f"return {x}"]).replace("return", "_ =")).body
    last = made.body[-1]
    made.body[-1] = ast.Return(last.value)  # type: ignore[attr-defined]
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
            if not isinstance(value, bool | int | float | str | None):
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


def _look_at(made: Rewritten, piece: Piece) -> None:
    """What must stay as it is for the piece to be right."""
    for place in [*piece.places, *(call.place for call in piece.through)]:
        made.modules += place.owners
        if isinstance(place.value, nn.Module):
            if not _modules.is_linear(place.value) and not _modules.is_told(place.value):
                pairs = _modules.plain_attributes(place.value).items()
                if any(place is p for p in piece.places):
                    made.attributes += [(place.value, name, value) for name, value in pairs]
            if isinstance(place.value, nn.Sequential):
                made.sequentials.append(place.value)
        elif not isinstance(place.value, types.MethodType):
            made.attributes.append((place.owner, place.name, place.value))
    for call in piece.through:
        made.methods += call.methods
