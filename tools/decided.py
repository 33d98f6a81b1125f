"""Branches that a kernel's arguments decide: of a switch, the way of one case."""

from __future__ import annotations

import operator
import re

from disassembly import Instruction, Kernel, NoSuchWay

# What is known where an instruction begins: registers ("R4", "UR4") and predicates.
State = dict[str, int]
COMPARE = {
    "EQ": operator.eq,
    "NE": operator.ne,
    "LT": operator.lt,
    "LE": operator.le,
    "GT": operator.gt,
    "GE": operator.ge,
}
# Instructions that fill two registers besides those whose names end in .64.
WIDE = re.compile(r"IMAD\.WIDE|D(ADD|MUL|FMA)|[FI]2F\.F64|I2F\.F64|SHFL\.64|\w+\.64\b")


def value(operand: str, state: State) -> int | None:
    operand = operand.removesuffix(".reuse")
    if re.fullmatch(r"0x[0-9a-f]+|\d+", operand):
        return int(operand, 0)
    return 0 if operand in ("RZ", "URZ") else state.get(operand)


def after(instruction: Instruction, state: State, arguments: dict[str, int]) -> State:
    """What is known behind it."""
    operands = [operand.strip() for operand in instruction.operands.split(",")]
    words = instruction.name.split(".")
    known = {name: n for name, n in state.items() if name not in written(instruction, operands)}
    if instruction.predicate:
        return known
    if words[0] in ("LDC", "ULDC", "LDCU") and operands[-1] in arguments:
        kind, first = re.match(r"(U?R)(\d+)", operands[0]).groups()  # type: ignore[union-attr]
        known[f"{kind}{first}"] = arguments[operands[-1]]
        if "64" in words:
            known[f"{kind}{int(first) + 1}"] = 0
    elif words[0] in ("ISETP", "UISETP") and words[1] in COMPARE and operands[4:5] == ["PT"]:
        # A comparison of upper words, .EX, has that of the lower ones as its last operand.
        a, b = value(operands[2], state), value(operands[3], state)
        if a is not None and b is not None:
            if "EX" not in words:
                known[operands[0]] = int(COMPARE[words[1]](a, b))
            elif a == b and operands[-1] in state:
                known[operands[0]] = state[operands[-1]]
    return known


def written(instruction: Instruction, operands: list[str]) -> set[str]:
    """The registers and predicates that may change."""
    names = set()
    for operand in operands[:2]:
        if re.fullmatch(r"U?P\d", operand):
            names.add(operand)
    if match := re.fullmatch(r"(U?R)(\d+)", operands[0].removesuffix(".64")):
        count = 4 if ".128" in instruction.name else 2 if WIDE.match(instruction.name) else 1
        names |= {f"{match[1]}{int(match[2]) + k}" for k in range(count)}
    return names


def decide(kernel: Kernel, arguments: dict[str, int]) -> Kernel:
    """The kernel without the ways that it takes only where its arguments are others.

    ``arguments`` are 64-bit numbers below 2^32 by their place, as "c[0x0][0x238]".
    """
    states: list[State | None] = [None] * len(kernel.code)
    following = [[] for _ in kernel.code]  # type: list[list[int]]
    states[0] = {}
    work = [0]
    while work:
        i = work.pop()
        before = states[i]
        assert before is not None
        instruction = kernel.code[i]
        following[i] = kernel.following[i]
        predicate = instruction.predicate.removeprefix("@").removeprefix("!")
        if instruction.name.startswith("BRA") and predicate in before:
            jumps = before[predicate] != instruction.predicate.startswith("@!")
            target = instruction.target()
            following[i] = [kernel.index[target]] if jumps and target is not None else [i + 1]
        behind = after(instruction, before, arguments)
        for k in following[i]:
            old = states[k]
            new = behind if old is None else dict(old.items() & behind.items())
            if old is None or new != old:
                states[k] = new
                work.append(k)
    decided = sum(a != b for a, b in zip(following, kernel.following, strict=True) if a)
    if not decided:
        raise NoSuchWay(f"no branch depends on {arguments}")
    result = Kernel(kernel.registers, kernel.code)
    result.following = following
    return result
