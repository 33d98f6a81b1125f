"""Statements in which a value that is used once stands where it is used.

``h = self.dense(x)``, ``h = self.dropout(h)`` and ``return h + x`` become one return, if nobody
else reads h, and if all is evaluated in the order in which it was, but for what commutes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torchcalc.fusion._lift import Lift
from torchcalc.fusion._liveness import (
    assigned,
    count_reads,
    liveness,
    names_changed,
    names_read,
    names_written,
)
from torchcalc.fusion._terms import Linear, Term, depth, is_inert, is_repeatable, operands

_SIMPLE = (ast.Assign, ast.AnnAssign, ast.Return, ast.Expr)
_CONDITIONAL = (ast.IfExp, ast.BoolOp, ast.Compare, ast.Lambda, ast.NamedExpr)
_DEEPEST = 40  # terms in each other: no pattern is that long, and Python's stack has an end


@dataclass
class _Waiting:
    """``name = value``, not yet read."""

    statement: ast.stmt
    name: str
    value: ast.expr
    # Those behind it that write what it reads: once they are gone, it may be read behind them.
    needs: list[_Waiting] = field(default_factory=list)


class Flow:
    """Lifts the statements of a function's blocks. ``everything``: not only terms are moved."""

    def __init__(self, lift: Lift, definition: ast.FunctionDef, everything: bool = False) -> None:
        self.lift, self.everything = lift, everything
        self.liveness = liveness(definition)
        self.changed = names_changed(definition)

    def block(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        """The statements with terms in them, those gone whose values are where they are used."""
        done: list[ast.stmt] = []
        waiting: list[_Waiting] = []
        for statement in statements:
            taken = [w for w in waiting if w.name in names_read(statement)]
            lifted = self._lift_with(statement, taken)
            if lifted is None:
                lifted, taken = self._lift_alone(statement), []
            done = [s for s in done if all(s is not w.statement for w in taken)]
            done.append(lifted)
            for written in names_written(statement):
                self.lift.scope.bound.pop(written, None)
            name, value = _single_target(lifted), getattr(lifted, "value", None)
            if name in self.changed and isinstance(value, Term):
                value.is_changed = True
            new = None
            if name is not None and (self.everything or isinstance(value, Term)):
                new = _Waiting(lifted, name, value)  # type: ignore[arg-type]
            left = (w for w in waiting if all(w is not t for t in taken))
            waiting = [w for w in left if _may_pass(statement, lifted, w, new)]
            waiting += [new] if new is not None else []
        return done

    def _lift_with(self, statement: ast.stmt, taken: list[_Waiting]) -> ast.stmt | None:
        """The statement with these values in it; None where one of them cannot be there."""
        if not taken:
            return self._lift_alone(statement)
        value = getattr(statement, "value", None)
        if not isinstance(statement, _SIMPLE) or value is None:
            return None
        for w in taken:
            if any(all(need is not t for t in taken) for need in w.needs):
                return None
            if w.name not in names_read(value):
                return None
            if count_reads(statement)[w.name] > 1 or self._is_read_again(w.name, statement):
                if isinstance(w.value, Linear):
                    self.lift.left(w.value.place.path, "its output is used more than once")
                return None
        bound = self.lift.scope.bound
        before = dict(bound)
        bound.update({w.name: w.value for w in taken})
        try:
            lifted = self._lift_alone(statement)
        finally:
            bound.clear()
            bound.update(before)
        # Long chains are cut in front of a layer, or anywhere once that has not come.
        deepest = _DEEPEST * (1 if isinstance(lifted.value, Linear) else 2)  # type: ignore[attr-defined]
        if depth(lifted.value) > deepest:  # type: ignore[attr-defined]
            return None
        in_order = all(stands_first(lifted.value, w.value) for w in taken)  # type: ignore[attr-defined]
        return lifted if in_order else None

    def _is_read_again(self, name: str, statement: ast.stmt) -> bool:
        if name in self.liveness.if_raised[statement]:
            return True
        return name in self.liveness.after[statement] and name not in assigned(statement)

    def _lift_alone(self, statement: ast.stmt) -> ast.stmt:
        made: ast.stmt = _copy(statement)
        for name, value in ast.iter_fields(statement):
            if isinstance(value, ast.expr) and name not in ("target", "annotation"):
                setattr(made, name, self.lift(value))
            elif name == "items":  # of with
                items = [_copy(item) for item in value]
                for item in items:
                    item.context_expr = self.lift(item.context_expr)
                setattr(made, name, items)
        return made


def _copy(node: Any) -> Any:  # of its first level
    return ast.copy_location(type(node)(**dict(ast.iter_fields(node))), node)


def stands_first(node: ast.expr, value: ast.expr) -> bool:
    """Whether ``value`` stands in the node once, always evaluated, and behind inert parts only; if
    it may have effects, behind names and the functions of calls, which are no values yet."""
    found, clean = 0, True
    may_pass = is_inert if is_inert(value) else is_repeatable

    def holds(at: ast.expr, conditional: bool) -> bool:
        nonlocal found, clean
        if at is value:
            found += 1
            clean = clean and not conditional
            return True
        inside = False
        plain = at.plain if isinstance(at, Term) else at
        function = plain.func if isinstance(plain, ast.Call) else None
        for index, child in enumerate(operands(at)):
            if child is function and _is_path(child):
                continue
            branch = conditional or (isinstance(at, _CONDITIONAL) and index > 0)
            within = holds(child, branch)
            clean = clean and (within or found > 0 or may_pass(child))
            inside = inside or within
        return inside

    holds(node, False)
    return found == 1 and clean and not any(isinstance(n, ast.NamedExpr) for n in parts(value))


def _is_path(node: ast.expr) -> bool:
    """As self.layer[0].norm."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return isinstance(node, ast.Name)


def stand_in_order(node: ast.expr, values: list[ast.expr]) -> bool:
    """Whether they stand in the node in this order."""
    places: list[int] = []

    def walk(at: ast.expr) -> None:
        for index, value in enumerate(values):
            if at is value:
                places.append(index)
                return
        for child in operands(at):
            walk(child)

    walk(node)
    return places == sorted(places)


def _may_pass(
    original: ast.stmt, lifted: ast.stmt, waiting: _Waiting, new: _Waiting | None
) -> bool:
    """Whether the value may be computed behind the statement, which is ``new`` if that may, too."""
    if _single_target(lifted) is None or waiting.name in names_read(original):
        return False
    written = names_written(original)
    if waiting.name in written:
        return False
    if not (is_inert(waiting.value) and is_inert(lifted.value)):  # type: ignore[attr-defined]
        return False
    if written & {part.id for part in parts(waiting.value) if isinstance(part, ast.Name)}:
        if new is None:
            return False
        waiting.needs.append(new)
    return True


def parts(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes in it, those in terms, too."""
    for part in ast.walk(node.plain if isinstance(node, Term) else node):
        if isinstance(part, Term):
            yield from parts(part)
        else:
            yield part


def _single_target(statement: ast.stmt) -> str | None:
    target = None
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target = statement.target
    return target.id if isinstance(target, ast.Name) else None
