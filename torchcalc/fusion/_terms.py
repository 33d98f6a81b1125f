"""Expressions in which the layers, activations and dropouts of a module are told.

A term is an expression of which is known what it computes. Terms stand in trees of the standard
library's ``ast`` wherever an expression may, so a tree without any is plain Python.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from torchcalc.fusion._looks import Looks


def operands(node: ast.AST) -> Iterator[ast.expr]:
    """The expressions right below a node, in the order of evaluation."""
    if isinstance(node, Term):
        node = node.plain
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.keyword):
            yield child.value
        elif isinstance(child, ast.expr):
            yield child


def depth(node: ast.expr) -> int:
    """How many terms stand in each other at most."""
    if isinstance(node, Term):
        return node.depth
    return max(map(depth, operands(node)), default=0)


@dataclass(frozen=True)
class Computed:
    """What a function makes of a tensor; equal texts mean equal functions."""

    evaluate: Callable[..., Any]
    text: str


@dataclass(frozen=True)
class Told:
    """An activation's name, how to compute it, and what that was told by."""

    name: str
    computed: Computed
    looks: Looks


class Term(ast.expr):
    """``plain`` is the expression as it stood."""

    _fields = ()

    def __init__(self, plain: ast.expr) -> None:
        super().__init__()
        self.plain = plain
        self.lowered: Any = None  # by _pieces: what it becomes
        self.depth = 1 + max(map(depth, operands(plain)), default=0)
        self.is_changed = False  # in place, by others: what keeps its result must not make it
        ast.copy_location(self, plain)


@dataclass(frozen=True)
class Place:
    """A module or another attribute, and where it was found: ``expr`` says it in Python."""

    value: Any
    expr: ast.expr
    path: str  # from the model's root
    owners: tuple[tuple[nn.Module, str, nn.Module], ...]  # (owner, name, module) on the way
    owner: nn.Module
    name: str
    is_method: bool = False


class Linear(Term):
    def __init__(self, plain: ast.expr, place: Place, arg: ast.expr) -> None:
        super().__init__(plain)
        self.place, self.arg = place, arg


class Activation(Term):
    """``given`` is what linear_act takes: a name, or a module of torch.nn that is asked anew."""

    def __init__(
        self, plain: ast.expr, place: Place | None, told: Told, given: ast.expr, arg: ast.expr
    ) -> None:
        super().__init__(plain)
        self.place, self.told, self.given, self.arg = place, told, given, arg
        self.name = told.name


class Dropout(Term):
    """Of a module, or a function with p and training."""

    def __init__(
        self, plain: ast.expr, place: Place | None, given: ast.expr, arg: ast.expr, looks: Looks
    ) -> None:
        super().__init__(plain)
        self.place, self.given, self.arg, self.looks = place, given, arg, looks


class Sum(Term):
    def __init__(self, plain: ast.expr, left: ast.expr, right: ast.expr) -> None:
        super().__init__(plain)
        self.left, self.right = left, right


class Product(Term):
    def __init__(self, plain: ast.expr, left: ast.expr, right: ast.expr) -> None:
        super().__init__(plain)
        self.left, self.right = left, right


class Inlined(Term):
    """A call of a module or method that returns ``body``."""

    def __init__(self, plain: ast.expr, place: Place, body: ast.expr, looks: Looks) -> None:
        super().__init__(plain)
        self.place, self.body, self.looks = place, body, looks
        self.depth = max(self.depth, 1 + depth(body))


class Identity(Term):
    """A call of nn.Identity."""

    def __init__(self, plain: ast.expr, place: Place, arg: ast.expr) -> None:
        super().__init__(plain)
        self.place, self.arg = place, arg


def results(node: ast.expr) -> list[ast.expr]:
    """The node and what it comes to, where it is a call that returns that."""
    found = [node]
    while isinstance(found[-1], Inlined | Identity):
        last = found[-1]
        found.append(last.body if isinstance(last, Inlined) else last.arg)
    return found


def is_of_linear(node: ast.expr) -> bool:
    """Whether it is a linear layer's output, so that an activation of it may be fused."""
    return isinstance(results(node)[-1], Linear)


def is_fresh(node: ast.expr) -> bool:
    """Whether it is a tensor that nobody else has: then nobody sees it changed in place."""
    last = results(node)[-1]
    if isinstance(last, Dropout):  # without effect it returns its argument
        return is_fresh(last.arg)
    return isinstance(last, Linear | Activation)


def is_inert(node: ast.expr) -> bool:
    """Whether it may be evaluated earlier or later than it was: it has no effects and reads names,
    and tensors that nothing inert changes.
    """
    if isinstance(node, Inlined):
        return is_inert(node.body)
    if isinstance(node, Term):
        return all(is_inert(operand) for operand in _arguments(node))
    if isinstance(node, ast.Name | ast.Constant):
        return True
    if isinstance(node, ast.Subscript):
        return is_inert(node.value) and isinstance(node.slice, ast.Constant)
    if getattr(node, "may_act", False):  # a property, for all we know
        return False
    kinds = (ast.Attribute, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Tuple)
    return isinstance(node, kinds) and all(is_inert(child) for child in operands(node))


def is_repeatable(node: ast.expr) -> bool:
    """Whether to evaluate it twice is to evaluate it once."""
    return isinstance(node, ast.Name | ast.Constant)


def _arguments(term: Term) -> Iterator[ast.expr]:
    """What its call is given, in order."""
    plain = term.plain
    if isinstance(plain, ast.Call):
        yield from plain.args
        yield from (keyword.value for keyword in plain.keywords)
    else:
        yield from operands(plain)
