"""What the machine code of the CUDA kernels costs, read from a disassembly of _cuda.so.

For each kernel: registers, spills, the width of its accesses, the instructions that it issues for
an element, and how many of its loads are on their way before it waits for one. From that, a bound
on the share of a GPU's memory bandwidth that it can reach. No GPU is needed, and none is asked.

A kernel's way is the shortest one through its code, from its entry to its exit or once around its
loop, that makes the accesses and evaluates the functions that its case says.
"""

from __future__ import annotations

import argparse
import heapq
import importlib.metadata
import operator
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
OCTET = 8  # elements that a thread holds at a time


class ToolMissing(Exception):
    """cuobjdump or nvdisasm is not on this machine."""


class NoSuchWay(Exception):
    """A kernel's code does not do what its case says."""


class Gpu(NamedTuple):
    """Rates as in NVIDIA's data sheets."""

    name: str
    sms: int
    clock: float  # Hz, boost
    bandwidth: float  # bytes / s

    def share(self, instructions: float, size: float) -> float:
        """The most of the bandwidth that kernels with so many instructions and bytes an element
        can use: an SM issues four instructions a cycle, each for a warp of 32 threads."""
        return min(1.0, self.sms * 4 * 32 * self.clock / instructions / (self.bandwidth / size))


GPUS = [
    Gpu("A100", 108, 1.410e9, 2.039e12),  # SXM, 80 GB
    Gpu("H100", 132, 1.830e9, 3.352e12),  # SXM
    Gpu("B200", 148, 1.965e9, 8.0e12),
]


class Counts(NamedTuple):
    """What a way passes."""

    loads: int = 0  # of 128 bits
    stores: int = 0  # of 128 bits, or 64 of a mask
    rounds: int = 0  # of Philox
    exps: int = 0
    reciprocals: int = 0


NOTHING = Counts()


class Instruction(NamedTuple):
    address: int
    predicate: str  # "@P0", or empty
    name: str
    operands: str

    def accesses(self, kind: str) -> int:
        """The bits of this load ("LD") or store ("ST") of global memory, else 0."""
        if not self.name.startswith(f"{kind}G."):
            return 0
        widths = re.findall(r"\.[US]?(8|16|64|128|256)\b", self.name)
        return int(widths[0]) if widths else 32

    def counts(self) -> Counts:
        words = f"{self.name} {self.operands}"
        return Counts(
            self.accesses("LD") >= 128,
            self.accesses("ST") >= 64,
            bool(re.match(r"IMAD\.WIDE\.U32 .*(-0x2daee0ad|0xd2511f53)", words)),
            # The shift that the polynomial of exp rounds with stands for it.
            self.name == "MUFU.EX2" or bool(re.match(r"(FFMA|FADD) .* 12582912", words)),
            self.name == "MUFU.RCP",
        )

    def may_pass(self) -> bool:
        """Single elements are for the ends of arrays, calls for division of extreme numbers."""
        narrow = 0 < self.accesses("LD") < 64 or 0 < self.accesses("ST") < 64
        return not narrow and not self.name.startswith(("CALL", "RET", "BRX"))

    def target(self) -> int | None:
        """Where this jumps to."""
        place = self.operands.split()[-1] if self.name.startswith("BRA") else ""
        return int(place, 16) if place.startswith("0x") else None

    def always_jumps(self) -> bool:
        return not self.predicate and "," not in self.operands

    def writes(self) -> set[int]:
        """The registers that this load fills."""
        first = int(re.match(r"R(\d+)", self.operands)[1])  # type: ignore[index]
        return set(range(first, first + self.accesses("LD") // 32))

    def uses(self) -> set[int]:
        return {int(number) for number in re.findall(r"\bR(\d+)", self.operands)}


class Case(NamedTuple):
    """A kernel on aligned memory, with what it does for each element."""

    name: str
    kernel: str  # as demangled, without namespaces; T stands for the dtype
    reads: int  # arrays
    writes: int
    draws: bool = False
    exps: int = 0
    reciprocals: int = 0
    loop: bool = False

    def counts(self, size: int) -> Counts:
        packs = OCTET * size // 16
        return Counts(
            self.reads * packs,
            self.writes * packs,
            10 * self.draws,
            OCTET * self.exps,
            OCTET * self.reciprocals,
        )


def cases() -> Iterator[Case]:
    yield Case("dropout", "dropout_kernel<T>", 1, 1, True)
    for name, act, work in (
        ("relu", "Relu", (0, 0)),
        ("gelu", "Gelu", (1, 1)),
        ("gelu_tanh", "GeluTanh", (1, 1)),
        ("silu", "Silu", (1, 1)),
        ("tanh", "Tanh", (1, 1)),
        ("sigmoid", "Sigmoid", (1, 1)),
    ):
        kernel = f"epilogue_kernel<{act}, T>"
        yield Case(name, kernel, 1, 1, False, *work)
        yield Case(f"{name} + dropout", kernel, 1, 1, True, *work)
        yield Case(f"{name} + dropout + residual", kernel, 2, 1, True, *work)
        if name in ("tanh", "sigmoid"):
            work = (0, 0)  # told from the output
        kernel = f"act_grad_kernel<{act}, T, float>"
        yield Case(f"{name}, gradient", kernel, 2, 1, False, *work)
        kernel = f"act_bias_grad_kernel<{act}, T, float>"
        yield Case(f"{name} + dropout, gradient with bias", kernel, 2, 1, True, *work, True)
    yield Case("soft_threshold", "prox_kernel<T, float>", 1, 1, reciprocals=1)
    yield Case("soft_threshold, gradient", "prox_grad_kernel<T, float>", 2, 1, reciprocals=1)
    yield Case("SGD, momentum", "sgd_kernel<T>", 3, 2, loop=True)
    yield Case("AdamW", "adamw_kernel<T>", 4, 3, reciprocals=1, loop=True)


class Row(NamedTuple):
    """What was measured of a case."""

    name: str
    dtype: str
    registers: int
    spills: int
    access: int  # bits of the narrowest one
    instructions: float  # for each element
    loads: int
    loads_before_use: int
    size: int  # bytes, for each element


class Kernel:
    def __init__(self, registers: int, code: list[Instruction]) -> None:
        self.registers = registers
        self.code = code
        self.index = {instruction.address: i for i, instruction in enumerate(code)}
        self.counts = [instruction.counts() for instruction in code]
        self.may_pass = [instruction.may_pass() for instruction in code]

    def spills(self) -> int:
        return sum(i.name.startswith(("LDL", "STL")) for i in self.code)

    def ways(self, loop: bool) -> Iterator[tuple[int, int | None]]:
        """Beginnings and ends: jumps back and where they go to; else the entry and any exit."""
        if not loop:
            yield 0, None
            return
        for i, instruction in enumerate(self.code):
            target = instruction.target()
            if target is not None and target < instruction.address:
                yield self.index[target], i

    def shortest(self, wanted: Counts, loop: bool) -> list[Instruction]:
        """The instructions of the shortest way with these counts."""
        found = [way for ends in self.ways(loop) if (way := self._shortest(wanted, *ends))]
        if not found:
            raise NoSuchWay(f"no way through the code has {wanted}")
        return min(found, key=len)

    def _shortest(self, wanted: Counts, begin: int, end: int | None) -> list[Instruction] | None:
        start = (begin, Counts())
        came_from: dict[tuple[int, Counts], tuple[int, Counts] | None] = {start: None}
        queue = [start]  # in order of length, since each step is one instruction
        for place in queue:
            i, counts = place
            if not self.may_pass[i]:
                continue
            if self.counts[i] != NOTHING:
                counts = Counts(*map(sum, zip(counts, self.counts[i], strict=True)))
                if any(map(operator.gt, counts, wanted)):
                    continue
            ends = self.code[i].name == "EXIT" if end is None else i == end
            if ends and counts == wanted:
                way = []
                step: tuple[int, Counts] | None = place
                while step is not None:
                    way.append(self.code[step[0]])
                    step = came_from[step]
                return way[::-1]
            for following in self.following(i):
                if (following, counts) not in came_from:
                    came_from[following, counts] = place
                    queue.append((following, counts))
        return None

    def following(self, i: int) -> list[int]:
        instruction = self.code[i]
        target = instruction.target()
        jumps = [] if target is None else [self.index[target]]
        is_jump = instruction.name.startswith(("BRA", "EXIT"))
        return jumps if is_jump and instruction.always_jumps() else [*jumps, i + 1]


def loads_before_use(way: list[Instruction]) -> int:
    """The wide loads that are issued before the result of one is asked for."""
    pending: set[int] = set()
    count = 0
    for instruction in way:
        if instruction.accesses("LD") >= 128:
            count += 1
            pending |= instruction.writes()
        elif pending & instruction.uses():
            break
    return count


def measure(kernel: Kernel, case: Case, dtype: str, size: int) -> Row:
    way = kernel.shortest(case.counts(size), case.loop)
    widths = [i.accesses("LD") or i.accesses("ST") for i in way]
    return Row(
        case.name,
        dtype,
        kernel.registers,
        kernel.spills(),
        min(width for width in widths if width and width != 64 or 0),
        len(way) / OCTET,
        case.counts(size).loads,
        loads_before_use(way),
        (case.reads + case.writes) * size,
    )


def find_tool(name: str) -> str:
    """The program: on PATH, in CUDA_HOME, or in NVIDIA's package for Python."""
    places = [os.environ.get("PATH", ""), f"{os.environ.get('CUDA_HOME', '')}/bin"]
    try:
        files = importlib.metadata.files(f"nvidia-cuda-{name}") or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    places += [str(Path(str(file.locate())).parent) for file in files if file.name == name]
    found = shutil.which(name, path=os.pathsep.join(places))
    if found is None:
        raise ToolMissing(
            f"{name} is not installed (it comes with CUDA, or pip install nvidia-cuda-{name})"
        )
    return found


def run(command: list[str], text: str = "") -> str:
    path = os.pathsep.join([str(Path(find_tool("nvdisasm")).parent), os.environ.get("PATH", "")])
    done = subprocess.run(
        command,
        input=text,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def sections(text: str, arch: str) -> dict[str, str]:
    """The text of each function in cuobjdump's output, of the code for `arch`."""
    found = {}
    for part in re.split(r"^Fatbin elf code:\n=+$", text, flags=re.MULTILINE):
        if re.search(rf"^arch = {arch}$", part, re.MULTILINE) or arch == "":
            functions = re.split(r"^\s*Function ?:? (\S+?):?$", part, flags=re.MULTILINE)
            found |= zip(functions[1::2], functions[2::2], strict=True)
    return found


def disassemble(library: Path, arch: str) -> dict[str, Kernel]:
    """Kernels by their names without namespaces."""
    cuobjdump = find_tool("cuobjdump")
    code = sections(run([cuobjdump, "-sass", str(library)]), arch)
    resources = sections(run([cuobjdump, "-res-usage", str(library)]), arch)
    names = run(["c++filt"], "\n".join(code)).splitlines()
    kernels = {}
    for symbol, name in zip(code, names, strict=True):
        lines = re.findall(
            r"^\s+/\*([0-9a-f]{4,})\*/\s+(@!?U?P\w+ )?\s*(\S+?)(?: ([^;]*?))?\s*;",
            code[symbol],
            re.MULTILINE,
        )
        registers = int(re.search(r"REG:(\d+)", resources[symbol])[1])
        instructions = [Instruction(int(a, 16), p.strip(), n, o) for a, p, n, o in lines]
        short = re.sub(r"^void |\w+::|\(.*", "", name)
        kernels[short] = Kernel(registers, instructions)
    return kernels


DTYPES = {"bfloat16": ("BFloat16", 2), "float16": ("Half", 2), "float32": ("float", 4)}


def main() -> None:
    kernels = disassemble(Path(sys.argv[1]), sys.argv[2])
    for dtype, (word, size) in DTYPES.items():
        for case in cases():
            kernel = kernels[re.sub(r"\bT\b", word, case.kernel)]
            try:
                row = measure(kernel, case, dtype, size)
                print(
                    *row[:-1],
                    *(f"{100 * g.share(row.instructions, row.size):.0f}" for g in GPUS),
                    sep=" | ",
                )
            except NoSuchWay as e:
                print(case.name, dtype, e)


if __name__ == "__main__":
    main()
