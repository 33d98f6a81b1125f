"""Kernels of _cuda.so as instructions, and the shortest ways through them."""

from __future__ import annotations

import importlib.metadata
import operator
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple


class ToolMissing(Exception):
    """cuobjdump or nvdisasm is not on this machine."""


class NoSuchWay(Exception):
    """A kernel's code does not do what its case says."""


class Counts(NamedTuple):
    """What a way passes."""

    loads: int = 0  # of 128 bits
    stores: int = 0  # of 128 bits, or 64 of a mask
    rounds: int = 0  # of Philox
    exps: int = 0
    reciprocals: int = 0

    def exceed(self, most: Counts) -> bool:
        return any(map(operator.gt, self, most))

    def plus(self, other: Counts) -> Counts:
        return Counts(*map(operator.add, self, other))


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
        # Bytes are bits of eight elements.
        narrow = any(8 < self.accesses(kind) < 64 for kind in ("LD", "ST"))
        leaves = self.name.startswith(("CALL", "RET", "BRX")) and not self.predicate
        return not narrow and not leaves

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


class Kernel:
    def __init__(self, registers: int, code: list[Instruction]) -> None:
        self.registers = registers
        self.code = code
        self.index = {instruction.address: i for i, instruction in enumerate(code)}
        self.counts = [c if (c := i.counts()) != NOTHING else NOTHING for i in code]
        self.may_pass = [i.may_pass() for i in code]
        self.exits = {k for k, i in enumerate(code) if i.name == "EXIT"}
        self.following = [self._following(k) for k in range(len(code))]

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
        came_from: dict[Counts, dict[int, tuple[int, Counts] | None]] = {NOTHING: {begin: None}}
        queue = [(begin, NOTHING)]  # in order of length, since each step is one instruction
        for i, before in queue:
            if not self.may_pass[i]:
                continue
            counts = before
            if self.counts[i] is not NOTHING:
                counts = before.plus(self.counts[i])
                if counts.exceed(wanted):
                    continue
            if counts == wanted and (i in self.exits if end is None else i == end):
                return self._way_to(came_from, i, before)
            seen = came_from.setdefault(counts, {})
            for following in self.following[i]:
                if following not in seen:
                    seen[following] = (i, before)
                    queue.append((following, counts))
        return None

    def _way_to(
        self, came_from: dict[Counts, dict[int, tuple[int, Counts] | None]], i: int, counts: Counts
    ) -> list[Instruction]:
        way = [self.code[i]]
        while step := came_from[counts][i]:
            i, counts = step
            way.append(self.code[i])
        return way[::-1]

    def _following(self, i: int) -> list[int]:
        instruction = self.code[i]
        target = instruction.target()
        jumps = [] if target is None else [self.index[target]]
        is_jump = instruction.name.startswith(("BRA", "EXIT"))
        ends = (is_jump and instruction.always_jumps()) or i + 1 == len(self.code)
        return jumps if ends else [*jumps, i + 1]


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
        raise ToolMissing(f"there is no {name}: pip install nvidia-cuda-{name}, or set CUDA_HOME")
    return found


def run(command: list[str], text: str = "") -> str:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True).stdout


def functions(text: str) -> dict[str, str]:
    """What cuobjdump says of each function."""
    words = re.split(r"^\s*Function ?:? (\S+?):?$", text, flags=re.MULTILINE)
    return dict(zip(words[1::2], words[2::2], strict=True))


LINE = re.compile(
    r"^ +/\*([0-9a-f]{4,})\*/ +(@!?U?P\w+ )? *(\S+?)(?: ([^;\n]*?))? *;", re.MULTILINE
)


def disassemble(library: Path, arch: str | None = None) -> tuple[str, dict[str, Kernel]]:
    """The GPU that code is for (Hopper if it may choose), and kernels without namespaces."""
    if not library.is_file():
        raise ToolMissing(f"there is no {library}; TORCHCALC_CUDA=1 make build makes it")
    # cuobjdump runs nvdisasm, and without it says nothing.
    os.environ["PATH"] += os.pathsep + str(Path(find_tool("nvdisasm")).parent)
    cuobjdump = find_tool("cuobjdump")
    archs = re.findall(r"\.(sm_\w+)\.", run([cuobjdump, "-lelf", str(library)]))
    # nvcc adds an empty piece for its own default.
    arch = arch or max(archs, key=lambda a: (a.startswith("sm_90"), archs.count(a)), default="")
    if arch not in archs:
        raise NoSuchWay(f"{library} holds code for {', '.join(dict.fromkeys(archs))}, not {arch}")
    code = functions(run([cuobjdump, "-sass", "-arch", arch, str(library)]))
    usage = functions(run([cuobjdump, "-res-usage", "-arch", arch, str(library)]))
    names = run(["c++filt"], "\n".join(code)).splitlines()
    kernels = {}
    for symbol, name in zip(code, names, strict=True):
        lines = [
            Instruction(int(a, 16), p.strip(), n, o) for a, p, n, o in LINE.findall(code[symbol])
        ]
        registers = re.findall(r"REG:(\d+)", usage[symbol])[0]
        kernels[re.sub(r"^void |\w+::|\(.*", "", name)] = Kernel(int(registers), lines)
    return arch, kernels
