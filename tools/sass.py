"""What the machine code of the CUDA kernels costs, read from a disassembly of _cuda.so.

For each kernel: registers, spills, the width of its accesses, the instructions that it issues for
an element, and how many of its loads are on their way before it waits for one. From that, a bound
on the share of a GPU's memory bandwidth that it can reach. No GPU is needed, and none is asked.

A kernel's way is the shortest one through its code, from its entry to its exit or once around its
loop, that makes the accesses and evaluates the functions that its case says.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from disassembly import Counts, Kernel, NoSuchWay, ToolMissing, disassemble, loads_before_use

ROOT = Path(__file__).resolve().parent.parent
OCTET = 8  # elements that a thread holds at a time
DTYPES = {"bfloat16": ("BFloat16", 2), "float16": ("Half", 2), "float32": ("float", 4)}


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
    Gpu("H100", 132, 1.980e9, 3.35e12),  # SXM
    Gpu("B200", 148, 1.965e9, 8.0e12),
]


class Case(NamedTuple):
    """A kernel on aligned memory: what it does for each element, and what it may cost."""

    name: str
    kernel: str  # as demangled, without namespaces; T stands for the dtype
    reads: int  # arrays
    writes: int
    draws: int  # whether it draws a mask
    exps: int
    reciprocals: int
    most_16: int  # instructions for each element of 16 bits, and of 32, on sm_90
    most_32: int

    def counts(self, size: int) -> Counts:
        packs = OCTET * size // 16
        work = (10 * self.draws, OCTET * self.exps, OCTET * self.reciprocals)
        return Counts(self.reads * packs, self.writes * packs, *work)

    def loops(self) -> bool:
        return self.kernel.startswith(("act_bias_grad", "sgd", "adamw"))


# The columns are Case's. Bounds are 4 % above what nvcc 13.0 makes of the kernels.
CASES = """
dropout                         dropout_kernel<T>                         1 1  1 0 0   20  18
relu                            epilogue_kernel<Relu, T>                  1 1  0 0 0   12  12
relu + dropout                  epilogue_kernel<Relu, T>                  1 1  1 0 0   21  20
relu + dropout + residual       epilogue_kernel<Relu, T>                  2 1  1 0 0   21  21
relu, gradient                  act_grad_kernel<Relu, 1, T, float>        2 1  0 0 0   13  13
relu + dropout, gradients       act_bias_grad_kernel<Relu, T, float>      2 1  1 0 0   23  23
gelu                            epilogue_kernel<Gelu, T>                  1 1  0 1 1   35  67
gelu + dropout                  epilogue_kernel<Gelu, T>                  1 1  1 1 1   44  75
gelu + dropout + residual       epilogue_kernel<Gelu, T>                  2 1  1 1 1   45  76
gelu, gradient                  act_grad_kernel<Gelu, 1, T, float>        2 1  0 1 1   40  69
gelu + dropout, gradients       act_bias_grad_kernel<Gelu, T, float>      2 1  1 1 1   48  79
gelu_tanh                       epilogue_kernel<GeluTanh, T>              1 1  0 1 1   23  73
gelu_tanh + dropout             epilogue_kernel<GeluTanh, T>              1 1  1 1 1   31  81
gelu_tanh + dropout + residual  epilogue_kernel<GeluTanh, T>              2 1  1 1 1   32  82
gelu_tanh, gradient             act_grad_kernel<GeluTanh, 1, T, float>    2 1  0 1 1   42  87
gelu_tanh + dropout, gradients  act_bias_grad_kernel<GeluTanh, T, float>  2 1  1 1 1   51  98
silu                            epilogue_kernel<Silu, T>                  1 1  0 1 1   15  44
silu + dropout                  epilogue_kernel<Silu, T>                  1 1  1 1 1   24  52
silu + dropout + residual       epilogue_kernel<Silu, T>                  2 1  1 1 1   24  53
silu, gradient                  act_grad_kernel<Silu, 1, T, float>        2 1  0 1 1   22  49
silu + dropout, gradients       act_bias_grad_kernel<Silu, T, float>      2 1  1 1 1   32  59
tanh                            epilogue_kernel<Tanh, T>                  1 1  0 1 1   22  65
tanh + dropout                  epilogue_kernel<Tanh, T>                  1 1  1 1 1   30  73
tanh + dropout + residual       epilogue_kernel<Tanh, T>                  2 1  1 1 1   31  74
tanh, gradient                  act_grad_kernel<Tanh, 1, T, float>        2 1  0 0 0   14  13
tanh + dropout, gradients       act_bias_grad_kernel<Tanh, T, float>      2 1  1 0 0   24  23
sigmoid                         epilogue_kernel<Sigmoid, T>               1 1  0 1 1   14  43
sigmoid + dropout               epilogue_kernel<Sigmoid, T>               1 1  1 1 1   23  51
sigmoid + dropout + residual    epilogue_kernel<Sigmoid, T>               2 1  1 1 1   23  52
sigmoid, gradient               act_grad_kernel<Sigmoid, 1, T, float>     2 1  0 0 0   15  14
sigmoid + dropout, gradients    act_bias_grad_kernel<Sigmoid, T, float>   2 1  1 0 0   25  24
soft_threshold                  prox_kernel<T, float>                     1 1  0 0 1   31  28
soft_threshold, gradient        prox_grad_kernel<T, float>                2 1  0 0 1   40  39
SGD, momentum                   sgd_kernel<T>                             3 2  0 0 0   22  18
AdamW                           adamw_kernel<T>                           4 3  0 0 1   50  48
"""


def cases() -> Iterator[Case]:
    for line in CASES.strip().splitlines():
        name, kernel, numbers = re.split(r" {2,}", line, maxsplit=2)
        yield Case(name, kernel, *map(int, numbers.split()))


MOST_REGISTERS = 64  # four blocks of 256 threads on an SM


class Row(NamedTuple):
    """What was measured of a case."""

    case: Case
    dtype: str
    size: int  # bytes that it reads and writes for each element
    registers: int
    spills: int
    instructions: float  # for each element
    loads: int  # of 128 bits
    loads_before_use: int


def measure(kernel: Kernel, case: Case, dtype: str, size: int) -> Row:
    way = kernel.shortest(case.counts(size), case.loops())
    return Row(
        case,
        dtype,
        size * (case.reads + case.writes),
        kernel.registers,
        kernel.spills(),
        len(way) / OCTET,
        case.counts(size).loads,
        loads_before_use(way),
    )


def measure_all(kernels: dict[str, Kernel]) -> list[Row]:
    rows = []
    for case in cases():
        for dtype, (word, size) in DTYPES.items():
            name = re.sub(r"\bT\b", word, case.kernel)
            try:
                rows.append(measure(kernels[name], case, dtype, size))
            except NoSuchWay as error:
                raise NoSuchWay(f"{case.name}, {dtype}: in {name} {error}") from None
    return rows


def faults(row: Row, arch: str) -> Iterator[str]:
    """What the row has that it should not have."""
    if row.spills:
        yield f"{row.spills} spills"
    if row.registers > MOST_REGISTERS:
        yield f"{row.registers} registers, more than {MOST_REGISTERS}"
    if row.loads_before_use < row.loads:
        yield f"waits after {row.loads_before_use} of {row.loads} loads"
    most = row.case.most_32 if row.dtype == "float32" else row.case.most_16
    if arch.startswith("sm_90") and row.instructions > most:
        yield f"{row.instructions:.1f} instructions for an element, more than {most}"


def table(rows: list[Row]) -> str:
    """In Markdown."""
    heads = ["kernel", "dtype", "registers", "instructions", "loads before use"]
    lines = [heads + [gpu.name for gpu in GPUS], ["---"] * 2 + ["--:"] * (3 + len(GPUS))]
    for row in rows:
        shares = [f"{100 * gpu.share(row.instructions, row.size):.0f} %" for gpu in GPUS]
        loads = f"{row.loads_before_use} of {row.loads}"
        lines.append(
            [
                row.case.name,
                row.dtype,
                str(row.registers),
                f"{row.instructions:.1f}",
                loads,
                *shares,
            ]
        )
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


BEGIN, END = "<!-- tools/sass.py --write docs/gpu.md -->\n", "<!-- end of the table -->\n"


def replace_table(text: str, rows: list[Row]) -> str:
    """The page with this table between its marks."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table(rows) + END + rest.split(END)[1]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("library", nargs="?", type=Path, default=ROOT / "torchcalc" / "_cuda.so")
    parser.add_argument("--arch", help="the GPU whose code is read, e.g. sm_80; default: Hopper's")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="put the table into this page")
    args = parser.parse_args()
    try:
        arch, kernels = disassemble(args.library, args.arch)
        rows = measure_all(kernels)
    except (ToolMissing, NoSuchWay) as error:
        raise SystemExit(f"sass: {error}") from None
    print(f"{args.library}, code for {arch}\n\n{table(rows)}")
    if args.write:
        args.write.write_text(replace_table(args.write.read_text(), rows))
    found = [
        f"{row.case.name}, {row.dtype}: {fault}" for row in rows for fault in faults(row, arch)
    ]
    raise SystemExit("\n".join(found) or None)


if __name__ == "__main__":
    main()
