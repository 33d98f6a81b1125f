"""Which local variables may still be read after a statement."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass, field

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
_NAMED = (
    ast.FunctionDef,
    ast.AsyncFunctionDef,
    ast.ClassDef,
    ast.ExceptHandler,
    ast.MatchAs,
    ast.MatchStar,
)
_LATER = (*_FUNCTIONS, ast.GeneratorExp)  # what is in them is evaluated later, if at all


def count_reads(node: ast.AST) -> dict[str, int]:
    """How often each name is read in it, at whatever depth; ``x += 1`` and ``del x`` read x."""
    counts: dict[str, int] = {}
    for n in ast.walk(node):
        reads = isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load | ast.Del)
        name = n.id if reads else None  # type: ignore[attr-defined]
        if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name):
            name = n.target.id
        if name is not None:
            counts[name] = counts.get(name, 0) + 1
    return counts


def names_read(node: ast.AST) -> set[str]:
    return set(count_reads(node))


def names_written(node: ast.AST) -> set[str]:
    """All that are bound or deleted in it, at whatever depth and in whatever way."""
    written: set[str] = set()
    for n in ast.walk(node):
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store | ast.Del):
            written.add(n.id)
        elif isinstance(n, ast.alias):
            written.add(n.asname or n.name.partition(".")[0])
        elif isinstance(n, _NAMED) and n is not node and n.name:
            written.add(n.name)
        elif isinstance(n, ast.MatchMapping) and n.rest:
            written.add(n.rest)
        elif isinstance(n, ast.Global | ast.Nonlocal):
            written |= set(n.names)
    return written


def names_changed(node: ast.AST) -> set[str]:
    """Those whose objects may be changed in place in it: x += y, x[i] = y, x.relu_()."""
    targets = (_changed(n) for n in ast.walk(node))
    return {target.id for target in targets if isinstance(target, ast.Name)}


def changes_in_place(node: ast.AST) -> bool:
    """Whether anything in it may be changed in place, be it x += y, x.relu_() or relu_(x)."""
    for n in ast.walk(node):
        name = getattr(n, "attr", None) or getattr(n, "id", None) or ""
        inplace = isinstance(n, ast.keyword) and n.arg in ("inplace", "out")
        if _changed(n) is not None or _is_in_place(name) or inplace:
            return True
    return False


def _changed(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.AugAssign):
        return node.target
    if isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
        return node.value
    if isinstance(node, ast.Attribute) and _is_in_place(node.attr):
        return node.value
    return None


def _is_in_place(method: str) -> bool:
    return len(method) > 1 and method.endswith("_") and not method.endswith("__")


@dataclass
class Liveness:
    """Of each statement the names that may be read before they are assigned again: after it, and
    after an exception in it."""

    after: dict[ast.stmt, set[str]] = field(default_factory=dict)
    if_raised: dict[ast.stmt, set[str]] = field(default_factory=dict)


def liveness(function: ast.FunctionDef) -> Liveness:
    """Names of what is evaluated later, and of what is declared global or nonlocal, are live
    everywhere."""
    always: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, _LATER) and node is not function:
            always |= names_read(node)
        if isinstance(node, ast.Global | ast.Nonlocal):
            always |= set(node.names)
    found = Liveness()
    _Backward(found, always).block(function.body, always)
    return found


class _Backward:
    def __init__(self, found: Liveness, always: set[str]) -> None:
        self.found = found
        self.always = always
        self.if_raised: set[str] = set()  # live wherever an exception may lead from here
        self.at_jumps: set[str] = set()  # live wherever break and continue may lead

    def block(self, statements: Iterable[ast.stmt], after: set[str]) -> set[str]:
        """What is live before the statements, of what is live after them."""
        for statement in reversed(list(statements)):
            after = after | self.always | self.if_raised
            self.found.after[statement] = after
            self.found.if_raised[statement] = self.if_raised
            after = self.before(statement, after)
        return after | self.always | self.if_raised

    def before(self, statement: ast.stmt, after: set[str]) -> set[str]:
        read = names_read(statement)
        if isinstance(statement, ast.Return | ast.Raise):
            return read
        if isinstance(statement, ast.Break | ast.Continue):
            return self.at_jumps
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr | ast.Assert | ast.Pass):
            return (after - assigned(statement)) | read
        if isinstance(statement, ast.If):
            branches = self.block(statement.body, after) | self.block(statement.orelse, after)
            return branches | names_read(statement.test)
        if isinstance(statement, ast.With):
            # It may swallow what is raised in it.
            return self._inside(statement, after, if_raised=after)
        if isinstance(statement, ast.Try):
            caught = [*statement.handlers, *statement.orelse, *statement.finalbody]
            raised = after.union(*map(names_read, caught))
            return self._inside(statement, raised, if_raised=raised)
        # Of loops and all else: what is read anywhere in them may be read next.
        return self._inside(statement, after | read, at_jumps=after | read)

    def _inside(self, statement: ast.stmt, after: set[str], **sets: set[str]) -> set[str]:
        outer = dict(vars(self))
        for name, names in sets.items():
            setattr(self, name, getattr(self, name) | names)
        for body in bodies(statement):
            self.block(body, after)
        vars(self).update(outer)
        return after | names_read(statement)


def assigned(statement: ast.stmt) -> set[str]:
    """The names that it assigns, whatever happens."""
    targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
    names: set[str] = set()
    for target in targets:
        if isinstance(target, ast.Name) and getattr(statement, "value", None) is not None:
            names.add(target.id)
        elif isinstance(target, ast.Tuple | ast.List):
            names |= {item.id for item in target.elts if isinstance(item, ast.Name)}
    return names


def bodies(statement: ast.stmt) -> Iterable[list[ast.stmt]]:
    """The lists of statements right below it that belong to the same function."""
    if isinstance(statement, _FUNCTIONS):
        return
    for owner in (statement, *getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        for name in ("body", "orelse", "finalbody"):
            body = getattr(owner, name, None)
            if isinstance(body, list) and body:
                yield body
