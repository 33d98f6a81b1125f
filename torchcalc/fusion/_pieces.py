"""Which terms become one call of a fused op, and that call."""

from __future__ import annotations

import ast
import copy
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from torchcalc.fusion import _run
from torchcalc.fusion._kept import Kept, kept
from torchcalc.fusion._looks import Looks
from torchcalc.fusion._scope import Values
from torchcalc.fusion._terms import (
    Activation,
    Dropout,
    Identity,
    Inlined,
    Linear,
    Place,
    Product,
    Sum,
    Term,
    is_inert,
    is_repeatable,
    results,
)
from torchcalc.ops.activations import OUTPUT, SCALED_OUTPUT, resolve, saved_for


@dataclass
class Piece:
    """Terms that are one call. ``name`` says what they are, as "linear + gelu + dropout"."""

    name: str
    op: str
    places: list[Place] = field(default_factory=list)  # modules that are not called any more
    through: list[Inlined] = field(default_factory=list)  # calls whose bodies they stand in
    looks: list[Looks] = field(default_factory=list)  # what else it was told by
    kept: Kept | None = None  # bytes for backward, of a token


@dataclass
class Lowered:
    """An expression without terms, and what was fused in it.

    ``gain`` counts what is fused: two for each operation, less one for each call; in the modules
    that it calls as they are, too.
    """

    expr: ast.expr
    pieces: list[Piece] = field(default_factory=list)
    gain: int = 0


class Lower:
    """Picks, of all ways to compute an expression, the one that absorbs most; ``gain_of`` is that
    of a module which is called as it is, ``decided`` is told where an mlp would keep no less.
    """

    def __init__(
        self,
        values: Values,
        gain_of: Callable[[Place], int],
        decided: dict[str, str],
        is_careful: bool,
    ) -> None:
        self.values, self.gain_of, self.decided = values, gain_of, decided
        self.is_careful = is_careful

    def __call__(self, node: ast.expr) -> Lowered:
        if not isinstance(node, Term):
            return self._plain(node)
        if node.lowered is None:
            ways = [self._as_it_stood(node)]
            if not node.is_changed:
                ways += self._ways(node)
            node.lowered = max(ways, key=lambda way: way.gain)
        return node.lowered  # type: ignore[no-any-return]

    def _plain(self, node: Any) -> Lowered:
        made, gain = copy.copy(node), 0
        pieces: list[Piece] = []
        for name, value in ast.iter_fields(node):
            values = value if isinstance(value, list) else [value]
            lowered = [self._field(v) for v in values]
            setattr(made, name, [v.expr for v in lowered] if value is values else lowered[0].expr)
            pieces += itertools.chain.from_iterable(v.pieces for v in lowered)
            gain += sum(v.gain for v in lowered)
        return Lowered(made, pieces, gain)

    def _field(self, value: Any) -> Lowered:
        if isinstance(value, ast.expr):
            return self(value)
        return self._plain(value) if isinstance(value, ast.keyword) else Lowered(value)

    def _as_it_stood(self, term: Term) -> Lowered:
        lowered = self._plain(term.plain)
        if isinstance(term, Inlined):
            lowered.gain += self.gain_of(term.place)
        if isinstance(term, Dropout) and term.place is not None:
            lowered.gain += _gain(1)  # the module has a fused forward of its own
        return lowered

    def _ways(self, term: Term) -> Iterator[Lowered]:
        if isinstance(term, Inlined):
            inside = self(term.body)
            pieces = [self._through(piece, [term]) for piece in inside.pieces]
            yield Lowered(inside.expr, pieces, inside.gain)
        if isinstance(term, Identity):
            yield self(term.arg)
        yield from self._branch(term, None)
        if isinstance(term, Sum):
            # What stands behind a layer is evaluated before the op runs.
            if is_inert(term.right) and not isinstance(term.right, ast.Constant):
                yield from self._branch(term.left, term.right, residual_first=False)
            yield from self._branch(term.right, term.left, residual_first=True)

    def _branch(
        self, term: ast.expr, residual: ast.expr | None, residual_first: bool = False
    ) -> Iterator[Lowered]:
        """The ways to compute [residual +] [dropout of] a layer, an MLP or anything."""
        end = _End(residual, residual_first)
        for path in _paths(term):
            *calls, last = path
            if isinstance(last, Dropout):
                inner = end.behind(calls, last)
                yield from self._dropped(last, inner)
                for path in _paths(last.arg):
                    yield from self._core(path[-1], inner.behind(path[:-1]))
            else:
                yield from self._core(last, end.behind(calls))

    def _dropped(self, drop: Dropout, end: _End) -> Iterator[Lowered]:
        if end.residual is not None:
            yield self._call(_run.dropout_add, "dropout + residual", 2, [drop.given], drop.arg, end)
        elif drop.place is None:
            yield self._call(_run.dropout, "dropout", 1, [drop.given], drop.arg, end)

    def _core(self, core: ast.expr, end: _End) -> Iterator[Lowered]:
        if isinstance(core, Activation):
            for *calls, layer in _paths(core.arg):
                careful = self.is_careful and _keeps_output(core, end)
                if isinstance(layer, Linear) and not careful:
                    yield self._linear_act(layer, core, end.behind(calls, core, layer))
        elif isinstance(core, Product) and end.residual is None:
            yield from self._gated(core, end)
        elif isinstance(core, Linear):
            if end.drop is not None:
                yield self._linear_act(core, None, end.behind([], core))
            yield from self._mlp(core, end.behind([], core))

    def _linear_act(self, layer: Linear, act: Activation | None, end: _End) -> Lowered:
        given = act.given if act else ast.Constant("identity")
        names = ["linear", *([act.name] if act else []), *end.names]
        lowered = self._call(
            _run.linear_act,
            " + ".join(names),
            len(names),
            [layer.place.expr, given, _or_none(end.drop)],
            layer.arg,
            end,
        )
        own = lowered.pieces[0]
        own.kept = kept("linear_act", [layer], act, None, end.drop, end.residual is not None)
        return lowered

    def _gated(self, product: Product, end: _End) -> Iterator[Lowered]:
        for gate, value in ((product.left, product.right), (product.right, product.left)):
            for (*calls, act), (*others, linear) in itertools.product(_paths(gate), _paths(value)):
                if not (isinstance(act, Activation) and isinstance(linear, Linear)):
                    continue
                for *inner, layer in _paths(act.arg):
                    if isinstance(layer, Linear) and _same(layer, linear):
                        passed = [*calls, *others, *inner]
                        behind = end.behind(passed, act, layer, linear)
                        names = ["linear", act.name, "gate", *end.names]
                        layers = [layer.place.expr, linear.place.expr]
                        arguments = [*layers, act.given, _or_none(end.drop)]
                        name = " + ".join(names)
                        lowered = self._call(
                            _run.gated, name, len(names) + 1, arguments, layer.arg, behind
                        )
                        both = [layer, linear]
                        lowered.pieces[0].kept = kept("gated", both, act, None, end.drop, False)
                        yield lowered

    def _mlp(self, second: Linear, end: _End) -> Iterator[Lowered]:
        for *calls, hidden in _paths(second.arg):
            drop, behind, inner = None, end.behind(calls), [[hidden]]
            if isinstance(hidden, Dropout):
                drop, behind = hidden, behind.behind([], hidden, keep_drop=True)
                inner = list(_paths(hidden.arg))
            for *between, act in inner:
                if not isinstance(act, Activation):
                    continue
                for *more, first in _paths(act.arg):
                    if not (isinstance(first, Linear) and _fit(first, second)):
                        continue
                    both = [first, second]
                    bytes_kept = kept("mlp", both, act, drop, end.drop, end.residual is not None)
                    if bytes_kept.after >= bytes_kept.in_layers:
                        self.decided[second.place.path] = (
                            f"two fused layers keep as little: {act.name} is told by its output"
                        )
                        continue
                    names = ["linear", act.name, *(["dropout"] if drop else []), "linear"]
                    names += end.names
                    lowered = self._call(
                        _run.mlp,
                        "mlp: " + " + ".join(names),
                        len(names),
                        [
                            first.place.expr,
                            act.given,
                            _or_none(drop),
                            second.place.expr,
                            _or_none(end.drop),
                        ],
                        first.arg,
                        behind.behind([*between, *more], act, first, keep_drop=True),
                    )
                    lowered.pieces[0].kept = bytes_kept
                    yield lowered

    def _call(
        self,
        function: Callable[..., Any],
        name: str,
        operations: int,
        arguments: list[ast.expr],
        x: ast.expr,
        end: _End,
    ) -> Lowered:
        """function(*arguments, before=..., x=..., after=...), in the order in which they stood."""
        named = [("x", x)]
        if end.residual is not None and end.residual_first:
            named.insert(0, ("before", end.residual))
        elif end.residual is not None:
            named.append(("after", end.residual))
        given = [self(argument) for argument in arguments]
        lowered = [(key, self(value)) for key, value in named]
        call = ast.Call(
            self.values.name(function),
            [each.expr for each in given],
            [ast.keyword(key, each.expr) for key, each in lowered],
        )
        inside = [*given, *(each for _, each in lowered)]
        piece = Piece(name, function.__name__, list(end.places), looks=list(end.looks))
        pieces = [self._through(piece, end.calls)]
        pieces += itertools.chain.from_iterable(each.pieces for each in inside)
        return Lowered(call, pieces, _gain(operations) + sum(each.gain for each in inside))

    @staticmethod
    def _through(piece: Piece, calls: list[Any]) -> Piece:
        made = copy.copy(piece)
        made.through = [*piece.through, *(c for c in calls if isinstance(c, Inlined))]
        places = [c.place for c in calls if isinstance(c, Identity)]
        made.places = [*piece.places, *places]
        return made


@dataclass
class _End:
    """What follows a layer, and what was passed on the way to it."""

    residual: ast.expr | None
    residual_first: bool
    drop: Dropout | None = None
    calls: list[Any] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    looks: list[Looks] = field(default_factory=list)

    @property
    def names(self) -> list[str]:
        return [
            *(["dropout"] if self.drop else []),
            *(["residual"] if self.residual is not None else []),
        ]

    def behind(self, calls: list[Any], *terms: Any, keep_drop: bool = False) -> _End:
        made = copy.copy(self)
        made.calls = [*self.calls, *calls]
        made.places = [*self.places, *(t.place for t in terms if t.place is not None)]
        made.looks = [*self.looks, *(looks for term in terms for looks in _looks(term))]
        for term in terms:
            if isinstance(term, Dropout) and not keep_drop:
                made.drop = term
        return made


def _keeps_output(act: Activation, end: _End) -> bool:
    """Whether its result is kept for backward, and not by PyTorch: then none must change it."""
    _, code, a, b = resolve("fuse", act.name)
    kept_as = saved_for(code, a, b, end.residual is not None, end.drop is not None)
    if kept_as not in (OUTPUT, SCALED_OUTPUT) or end.residual is not None:
        return False
    return end.drop is not None or act.name not in ("relu", "tanh", "sigmoid")


def _gain(operations: int) -> int:
    return 2 * operations - 1


def _paths(node: ast.expr) -> Iterator[list[ast.expr]]:
    """The node, and what it comes to, each behind the calls that lead there."""
    chain = results(node)
    for length in range(1, len(chain) + 1):
        yield chain[:length]


def _looks(term: Any) -> list[Looks]:
    if isinstance(term, Activation):
        return [term.told.looks]
    return [term.looks] if isinstance(term, Dropout) else []


def _or_none(drop: Dropout | None) -> ast.expr:
    return ast.Constant(None) if drop is None else drop.given


def _fit(first: Linear, second: Linear) -> bool:
    """Whether one layer takes what the other gives."""
    out, features = (_run.weight_of(layer.place.value).shape for layer in (first, second))
    return out[0] == features[1]


def _same(gate: Linear, value: Linear) -> bool:
    """Whether two layers can be a pair: of one input, both with a bias or without."""
    if not is_repeatable(gate.arg) or ast.dump(gate.arg) != ast.dump(value.arg):
        return False
    first, second = gate.place.value, value.place.value
    same_bias = (first.bias is None) == (second.bias is None)
    return same_bias and _run.weight_of(first).shape == _run.weight_of(second).shape
