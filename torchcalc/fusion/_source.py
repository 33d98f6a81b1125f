"""A function's source as a tree, and a function of a changed tree that is the same in all else."""

from __future__ import annotations
import __future__

import ast
import copy
import functools
import linecache
import types
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_FUTURE_FLAGS = sum(
    getattr(__future__, name).compiler_flag for name in __future__.all_feature_names
)


class Unreadable(Exception):
    """Why a function cannot be read."""


def unwrapped(function: Any) -> types.FunctionType:
    """What decorators that follow ``functools.wraps`` have wrapped."""
    while hasattr(function, "__wrapped__"):
        if _cell_of_wrapped(function) is None:
            raise Unreadable("is decorated by what hides it")
        function = function.__wrapped__
    if not isinstance(function, types.FunctionType):
        raise Unreadable("is not written in Python")
    return function


def rewrapped(function: Any, inner: types.FunctionType) -> Any:
    """``function`` with ``inner`` in place of what its decorators have wrapped."""
    if not hasattr(function, "__wrapped__"):
        return inner
    index = _cell_of_wrapped(function)
    assert index is not None
    cells = list(function.__closure__)
    cells[index] = types.CellType(rewrapped(function.__wrapped__, inner))
    made = _with_code(function, function.__code__, tuple(cells))
    made.__wrapped__ = cells[index].cell_contents
    return made


def _cell_of_wrapped(function: Any) -> int | None:
    cells = getattr(function, "__closure__", None) or ()
    for index, cell in enumerate(cells):
        if _contents(cell) is function.__wrapped__:
            return index
    return None


def _contents(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _with_code(
    function: types.FunctionType,
    code: types.CodeType,
    closure: tuple[types.CellType, ...],
) -> Any:
    made = types.FunctionType(
        code, function.__globals__, function.__name__, function.__defaults__, closure
    )
    made.__kwdefaults__ = function.__kwdefaults__
    functools.update_wrapper(made, function)
    del made.__dict__["__wrapped__"]
    return made


def read(function: types.FunctionType) -> ast.FunctionDef:
    """The function's definition, without decorators. Whoever changes it works on a copy.

    Raises:
        Unreadable: there is no source, or it is not what the function was compiled from.
    """
    if function not in _definitions:
        _definitions[function] = _read(function)
    return _definitions[function]


_definitions: weakref.WeakKeyDictionary[types.FunctionType, ast.FunctionDef]
_definitions = weakref.WeakKeyDictionary()


def _read(function: types.FunctionType) -> ast.FunctionDef:
    code = function.__code__
    found = _file(code.co_filename).functions.get((code.co_name, code.co_firstlineno))
    if found is None:
        raise Unreadable("has no source")
    definition = copy.copy(found)
    definition.decorator_list = []
    again = _compiled(function, definition, {})
    same = ("co_code", "co_names", "co_varnames", "co_freevars")
    if any(getattr(again, name) != getattr(code, name) for name in same):
        raise Unreadable("is not what stands in its source")
    return definition


@dataclass(frozen=True)
class _File:
    functions: dict[tuple[str, int], ast.FunctionDef]  # by name and first line
    imported: frozenset[str]  # names, by statements outside of functions and classes


@functools.lru_cache(maxsize=256)
def _file(name: str) -> _File:
    try:
        tree = ast.parse("".join(linecache.getlines(name)))
    except (SyntaxError, ValueError):
        raise Unreadable("has no source") from None
    functions = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            functions[node.name, first] = node
    imported, outside = set(), list[ast.AST](tree.body)
    while outside:
        node = outside.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            imported |= {alias.asname or alias.name.partition(".")[0] for alias in node.names}
        elif not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            outside += ast.iter_child_nodes(node)
    return _File(functions, frozenset(imported))


def rebuild(
    function: types.FunctionType, definition: ast.FunctionDef, values: Mapping[str, Any]
) -> Any:
    """``function`` with another body, in which the names of ``values`` stand for these.

    It has the globals and the closure of ``function``, not copies of them.
    """
    code = _compiled(function, definition, values)
    own = dict(zip(function.__code__.co_freevars, function.__closure__ or (), strict=True))
    cells = (own.get(name) or types.CellType(values[name]) for name in code.co_freevars)
    return _with_code(function, code, tuple(cells))


def _compiled(
    function: types.FunctionType, definition: ast.FunctionDef, values: Mapping[str, Any]
) -> types.CodeType:
    # Free names are made by an outer function's arguments of these names. Calls of methods of what
    # a module imports are compiled in another way than others.
    outer = ast.parse("def outer(): pass").body[0]
    assert isinstance(outer, ast.FunctionDef)
    outer.args.args = [ast.arg(name) for name in [*function.__code__.co_freevars, *values]]
    outer.body = [definition]
    names = _file(function.__code__.co_filename).imported & set(function.__code__.co_names)
    imports = [ast.Import([ast.alias("_", name)]) for name in sorted(names)]
    module = ast.fix_missing_locations(ast.Module([*imports, outer], []))
    flags = function.__code__.co_flags & _FUTURE_FLAGS
    compiled = compile(module, function.__code__.co_filename, "exec", flags, dont_inherit=True)
    return _code_named(_code_named(compiled, "outer"), definition.name)


def _code_named(code: types.CodeType, name: str) -> types.CodeType:
    (found,) = (c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name)
    return found
