"""Statements in which a value that is used once stands where it is used.

``h = self.dense(x)``, ``h = self.dropout(h)`` and ``return h + x`` become one return, if nobody
else reads h, and if all is evaluated in the order in which it was, but for what commutes.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from torchcalc.fusion._liveness import names_read, names_written
from torchcalc.fusion._terms import Inlined, Lift, Linear, Term

_SIMPLE = (ast.Assign, ast.AnnAssign, ast.Return, ast.Expr)
_CONDITIONAL = (ast.IfExp, ast.BoolOp, ast.Compare, ast.Lambda, ast.NamedExpr)


@dataclass
class _Waiting:
    """``name = value``, not yet read."""

    statement: ast.stmt
    name: str
    value: ast.expr


class Flow:
    """Lifts the statements of a block. ``everything``: not only terms are moved."""

    def __init__(
        self, lift: Lift, live_after: dict[ast.stmt, set[str]], everything: bool = False
    ) -> None:
        self.lift, self.live_after, self.everything = lift, live_after, everything

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
            waiting = [
                w
                for w in waiting
                if all(w is not t for t in taken) and _may_pass(statement, lifted, w)
            ]
            done.append(lifted)
            name = _single_target(lifted)
            for written in names_written(statement):
                self.lift.scope.bound.pop(written, None)
            if name is not None and (self.everything or isinstance(lifted.value, Term)):  # type: ignore[attr-defined]
                waiting = [w for w in waiting if w.name != name]
                waiting.append(_Waiting(lifted, name, lifted.value))  # type: ignore[attr-defined]
        return done

    def _lift_with(self, statement: ast.stmt, taken: list[_Waiting]) -> ast.stmt | None:
        """The statement with these values in it; None where one of them cannot be there."""
        if not taken:
            return self._lift_alone(statement)
        value = getattr(statement, "value", None)
        if not isinstance(statement, _SIMPLE) or value is None:
            return None
        for w in taken:
            again = w.name in self.live_after.get(statement, set())
            again = again and w.name not in names_written(statement)
            if again or _count(value, w.name) > 1:
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
        in_order = all(stands_first(lifted.value, w.value) for w in taken)  # type: ignore[attr-defined]
        return lifted if in_order else None

    def _lift_alone(self, statement: ast.stmt) -> ast.stmt:
        made = type(statement)(**dict(ast.iter_fields(statement)))
        ast.copy_location(made, statement)
        self.live_after[made] = self.live_after.get(statement, set())
        for name, value in ast.iter_fields(statement):
            if isinstance(value, ast.expr) and name not in ("target", "annotation"):
                setattr(made, name, self.lift(value))
            elif name == "items":  # of with
                for item in value:
                    item.context_expr = self.lift(item.context_expr)
        return made


def is_inert(node: ast.expr) -> bool:
    """Whether it may be evaluated earlier or later than it was: it has no effects and reads names,
    and tensors that nothing inert changes.
    """
    if isinstance(node, Inlined):
        return is_inert(node.body)
    if isinstance(node, Term):
        return all(is_inert(operand) for operand in _operands(node))
    if isinstance(node, ast.Name | ast.Constant):
        return True
    if isinstance(node, ast.Subscript):
        return is_inert(node.value) and isinstance(node.slice, ast.Constant)
    kinds = (ast.Attribute, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Tuple)
    return isinstance(node, kinds) and all(is_inert(child) for child in children(node))


def _operands(term: Term) -> Iterator[ast.expr]:
    """What its call is given, in order."""
    plain = term.plain
    if isinstance(plain, ast.Call):
        yield from plain.args
        yield from (keyword.value for keyword in plain.keywords)
    else:
        yield from children(plain)


def children(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions right below it, in the order of evaluation."""
    if isinstance(node, Term):
        node = node.plain
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.keyword):
            yield child.value
        elif isinstance(child, ast.expr):
            yield child


def stands_first(node: ast.expr, value: ast.expr) -> bool:
    """Whether ``value`` stands in the node once, always evaluated, and behind inert parts only."""
    found, clean = 0, True

    def holds(at: ast.expr, conditional: bool) -> bool:
        nonlocal found, clean
        if at is value:
            found += 1
            clean = clean and not conditional
            return True
        inside = False
        for index, child in enumerate(children(at)):
            branch = conditional or (isinstance(at, _CONDITIONAL) and index > 0)
            within = holds(child, branch)
            clean = clean and (within or found > 0 or is_inert(child))
            inside = inside or within
        return inside

    holds(node, False)
    return found == 1 and clean


def _may_pass(original: ast.stmt, lifted: ast.stmt, waiting: _Waiting) -> bool:
    """Whether the value may be computed after the statement."""
    if _single_target(lifted) is None:
        return False
    free = {name for part in _parts(waiting.value) for name in names_read(part)}
    if names_written(original) & (free | {waiting.name}) or waiting.name in names_read(original):
        return False
    return is_inert(waiting.value) and is_inert(lifted.value)  # type: ignore[attr-defined]


def _parts(node: ast.expr) -> Iterator[ast.expr]:
    yield node.plain if isinstance(node, Term) else node
    for child in children(node):
        yield from _parts(child)


def _single_target(statement: ast.stmt) -> str | None:
    target = None
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1:
        target = statement.targets[0]
    elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
        target = statement.target
    return target.id if isinstance(target, ast.Name) else None


def _count(node: ast.expr, name: str) -> int:
    return sum(isinstance(n, ast.Name) and n.id == name for n in ast.walk(node))
