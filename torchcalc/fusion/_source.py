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
    code, definition = _definitions.get(function, (None, None))
    if definition is None or code is not function.__code__:
        definition = _read(function)
        _definitions[function] = function.__code__, definition
    return definition


_definitions: weakref.WeakKeyDictionary[types.FunctionType, tuple[types.CodeType, ast.FunctionDef]]
_definitions = weakref.WeakKeyDictionary()


def _read(function: types.FunctionType) -> ast.FunctionDef:
    code = function.__code__
    linecache.checkcache(code.co_filename)
    found = _file_of(function).functions.get((code.co_name, code.co_firstlineno))
    if found is None:
        raise Unreadable("has no source")
    definition = copy.copy(found)
    definition.decorator_list = []
    if not _is_same(_compiled(function, definition, {}), code):
        raise Unreadable("is not what stands in its source")
    if _FRAME_READERS & set(code.co_names):
        raise Unreadable("looks at its own variables")
    if any(_asks_for_class(node) for node in ast.walk(definition)):
        raise Unreadable("asks for the class of its module")
    return definition


# What would find other variables in a function that is written anew.
_FRAME_READERS = {"locals", "vars", "eval", "exec", "_getframe", "currentframe", "stack"}


def _asks_for_class(node: ast.AST) -> bool:
    """type(self) or self.__class__, which is another one once its forward is."""
    if isinstance(node, ast.Attribute):
        return node.attr == "__class__"
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        return False
    return node.func.id == "type" and any(
        isinstance(arg, ast.Name) and arg.id == "self" for arg in node.args
    )


def _is_same(a: types.CodeType, b: types.CodeType) -> bool:
    names = ("co_code", "co_names", "co_varnames", "co_freevars")
    if any(getattr(a, name) != getattr(b, name) for name in names):
        return False
    if len(a.co_consts) != len(b.co_consts):
        return False
    for one, other in zip(a.co_consts, b.co_consts, strict=True):
        if isinstance(one, types.CodeType) and isinstance(other, types.CodeType):
            if not _is_same(one, other):
                return False
        elif type(one) is not type(other) or repr(one) != repr(other):
            return False
    return True


@dataclass(frozen=True)
class _File:
    functions: dict[tuple[str, int], ast.FunctionDef]  # by name and first line
    imported: frozenset[str]  # names, by statements outside of functions and classes


def _file_of(function: types.FunctionType) -> _File:
    return _file("".join(linecache.getlines(function.__code__.co_filename)))


@functools.lru_cache(maxsize=64)
def _file(text: str) -> _File:
    try:
        tree = ast.parse(text)
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
    names = _file_of(function).imported & set(function.__code__.co_names)
    imports = [ast.Import([ast.alias("_", name)]) for name in sorted(names)]
    module = ast.fix_missing_locations(ast.Module([*imports, outer], []))
    flags = function.__code__.co_flags & _FUTURE_FLAGS
    compiled = compile(module, function.__code__.co_filename, "exec", flags, dont_inherit=True)
    return _code_named(_code_named(compiled, "outer"), definition.name)


def _code_named(code: types.CodeType, name: str) -> types.CodeType:
    (found,) = (c for c in code.co_consts if isinstance(c, types.CodeType) and c.co_name == name)
    return found
