"""Which local variables may still be read after a statement."""

from __future__ import annotations

import ast
from collections.abc import Iterable

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


def names_read(node: ast.AST) -> set[str]:
    """All that are read in it, at whatever depth; what ``x += 1`` changes, it reads."""
    read = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}
    for n in ast.walk(node):
        if isinstance(n, ast.AugAssign) and isinstance(n.target, ast.Name):
            read.add(n.target.id)
    return read


def names_written(node: ast.AST) -> set[str]:
    """All that are assigned or deleted in it, at whatever depth."""
    kinds = (ast.Store, ast.Del)
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, kinds)}


def live_after(function: ast.FunctionDef) -> dict[ast.stmt, set[str]]:
    """Of each statement the names that may be read before they are assigned again.

    Names of inner functions, and of what is declared global or nonlocal, are live everywhere.
    """
    always: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, _SCOPES) and node is not function:
            always |= names_read(node)
        if isinstance(node, ast.Global | ast.Nonlocal):
            always |= set(node.names)
    found: dict[ast.stmt, set[str]] = {}
    _Backward(found, always).block(function.body, always)
    return found


class _Backward:
    def __init__(self, found: dict[ast.stmt, set[str]], always: set[str]) -> None:
        self.found = found
        self.always = always
        self.around: set[str] = set()  # what is live wherever a jump out of here may lead

    def block(self, statements: Iterable[ast.stmt], after: set[str]) -> set[str]:
        """What is live before the statements, of what is live after them."""
        for statement in reversed(list(statements)):
            self.found[statement] = after | self.found.get(statement, set())
            after = self.before(statement, after) | self.always
        return after

    def before(self, statement: ast.stmt, after: set[str]) -> set[str]:
        if isinstance(statement, ast.Return | ast.Raise):
            return names_read(statement) | self.around
        if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr | ast.Assert):
            return (after - self._assigned(statement)) | names_read(statement)
        if isinstance(statement, ast.If):
            branches = self.block(statement.body, after) | self.block(statement.orelse, after)
            return branches | names_read(statement.test)
        # Of all else nothing is known but the names in it: what is live anywhere, is everywhere.
        outer, self.around = self.around, self.around | names_read(statement) | after
        for body in bodies(statement):
            self.block(body, self.around)
        inside, self.around = self.around, outer
        return inside

    @staticmethod
    def _assigned(statement: ast.stmt) -> set[str]:
        targets = getattr(statement, "targets", None) or [getattr(statement, "target", None)]
        names: set[str] = set()
        for target in targets:
            if isinstance(target, ast.Name) and getattr(statement, "value", None) is not None:
                names.add(target.id)
            elif isinstance(target, ast.Tuple | ast.List):
                names |= {item.id for item in target.elts if isinstance(item, ast.Name)}
        return names


def bodies(statement: ast.stmt) -> Iterable[list[ast.stmt]]:
    """The lists of statements right below it."""
    for owner in (statement, *getattr(statement, "handlers", ()), *getattr(statement, "cases", ())):
        for field in ("body", "orelse", "finalbody"):
            body = getattr(owner, field, None)
            if isinstance(body, list) and body and not isinstance(statement, _SCOPES):
                yield body


def blocks(function: ast.FunctionDef) -> Iterable[list[ast.stmt]]:
    """Every list of statements in it that run one after the other, inner functions' left out."""

    def below(statements: list[ast.stmt]) -> Iterable[list[ast.stmt]]:
        yield statements
        for statement in statements:
            for body in bodies(statement):
                yield from below(body)

    return below(function.body)
