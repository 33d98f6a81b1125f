"""What the machine code of the CUDA kernels costs, read from a disassembly of _cuda.so.

For each kernel: registers, spills, the width of its accesses, the instructions that it issues for
an element, and how many of its loads are on their way before it waits for one. From that, a bound
on the share of a GPU's memory bandwidth that it can reach. No GPU is needed, and none is asked.

A kernel's way is the shortest one through its code, from its entry to its exit or once around its
loop, that makes the accesses and evaluates the functions that its case says. Where a switch chooses
the activation, it is followed: branches that the activation's number decides go its way alone.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from decided import decide
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


# Where kernels find their arguments (NVIDIA's cuobjdump -elf says it: EIATTR_PARAM_CBANK), by the
# first digits of the GPU's number; and where in them activations and bits are (csrc/ops/args.h).
PARAMETERS = {"sm_8": 0x160, "sm_9": 0x210, "sm_10": 0x380, "sm_12": 0x380}
OFFSETS = {
    "epilogue": {"activation": 40},
    "act_grad": {"activation": 48, "saved": 8, "bits": 16},
    "act_bias_grad": {"activation": 48, "saved": 8, "bits": 16},
}


def activations() -> list[str]:
    """Their names, in the order of their numbers."""
    text = (ROOT / "csrc" / "math" / "activations.h").read_text()
    body = text.split("enum class ActivationKind : int64_t {")[1].split("}")[0]
    return [re.sub(r"\B([A-Z])", r"_\1", k).lower() for k in re.findall(r"\bk([A-Z]\w*)", body)]


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

    def arguments(self, arch: str) -> dict[str, int]:
        """What is known of the kernel's arguments, by their place."""
        offsets = OFFSETS.get(self.kernel.partition("_kernel")[0])
        if offsets is None:
            return {}
        first = next(p for number, p in PARAMETERS.items() if arch.startswith(number))
        bits = "bits" in self.name
        numbers = {
            "activation": activations().index(re.match(r"\w+", self.name)[0]),  # type: ignore[index]
            "saved": int(not bits),
            "bits": int(bits),
        }
        return {f"c[0x0][{first + at:#x}]": numbers[name] for name, at in offsets.items()}

    def loops(self) -> bool:
        return self.kernel.startswith(("act_bias_grad", "optim"))


# The columns are Case's. Bounds are 4 % above what nvcc 13.0 makes of the kernels.
CASES = """
dropout                              dropout_kernel<true, T, float>         1 1  1 0 0   21  21
dropout + residual                   dropout_kernel<true, T, float>         2 1  1 0 0   22  21
relu                                 epilogue_kernel<T>                     1 1  0 0 0   17  16
relu + dropout                       epilogue_kernel<T>                     1 1  1 0 0   25  24
relu + dropout + residual            epilogue_kernel<T>                     2 1  1 0 0   26  25
relu, gradient                       act_grad_kernel<1, T, float>           2 1  0 0 0   20  19
relu, gradient by bits               act_grad_kernel<1, T, float>           1 1  0 0 0   22  20
relu + dropout, gradients by bits    act_bias_grad_kernel<false, T, float>  1 1  1 0 0   29  28
relu + dropout, gradients            act_bias_grad_kernel<false, T, float>  2 1  1 0 0   26  26
gelu                                 epilogue_kernel<T>                     1 1  0 1 1   41  83
gelu + dropout                       epilogue_kernel<T>                     1 1  1 1 1   49  91
gelu + dropout + residual            epilogue_kernel<T>                     2 1  1 1 1   50  92
gelu, gradient                       act_grad_kernel<1, T, float>           2 1  0 1 1   46  89
gelu + dropout, gradients            act_bias_grad_kernel<false, T, float>  2 1  1 1 1   53  95
gelu + dropout, gradients and value  act_bias_grad_kernel<true, T, float>   2 2  1 1 1   56 107
silu                                 epilogue_kernel<T>                     1 1  0 1 1   21  50
silu + dropout                       epilogue_kernel<T>                     1 1  1 1 1   29  58
silu + dropout + residual            epilogue_kernel<T>                     2 1  1 1 1   29  59
silu, gradient                       act_grad_kernel<1, T, float>           2 1  0 1 1   28  56
silu + dropout, gradients            act_bias_grad_kernel<false, T, float>  2 1  1 1 1   35  63
silu + dropout, gradients and value  act_bias_grad_kernel<true, T, float>   2 2  1 1 1   38  65
gelu_tanh + dropout                  epilogue_kernel<T>                     1 1  1 1 1   33  67
gelu_tanh + dropout, gradients       act_bias_grad_kernel<false, T, float>  2 1  1 1 1   52  99
tanh + dropout                       epilogue_kernel<T>                     1 1  1 1 1   36  79
tanh + dropout, gradients            act_bias_grad_kernel<false, T, float>  2 1  1 0 0   31  27
sigmoid + dropout                    epilogue_kernel<T>                     1 1  1 1 1   28  57
sigmoid + dropout, gradients         act_bias_grad_kernel<false, T, float>  2 1  1 0 0   33  30
relu6 + dropout                      epilogue_kernel<T>                     1 1  1 0 0   26  25
relu6 + dropout, gradients           act_bias_grad_kernel<false, T, float>  2 1  1 0 0   28  27
leaky_relu + dropout                 epilogue_kernel<T>                     1 1  1 0 0   25  24
leaky_relu + dropout, gradients      act_bias_grad_kernel<false, T, float>  2 1  1 0 0   28  27
relu_squared + dropout               epilogue_kernel<T>                     1 1  1 0 0   27  26
relu_squared + dropout, gradients    act_bias_grad_kernel<false, T, float>  2 1  1 0 0   30  29
elu + dropout                        epilogue_kernel<T>                     1 1  1 1 0   38  47
elu + dropout, gradients             act_bias_grad_kernel<false, T, float>  2 1  1 0 0   32  29
celu + dropout                       epilogue_kernel<T>                     1 1  1 1 0   41  50
celu + dropout, gradients            act_bias_grad_kernel<false, T, float>  2 1  1 0 0   35  32
selu + dropout                       epilogue_kernel<T>                     1 1  1 1 0   40  48
selu + dropout, gradients            act_bias_grad_kernel<false, T, float>  2 1  1 0 0   32  29
quick_gelu + dropout                 epilogue_kernel<T>                     1 1  1 1 1   30  60
quick_gelu + dropout, gradients      act_bias_grad_kernel<false, T, float>  2 1  1 1 1   36  65
mish + dropout                       epilogue_kernel<T>                     1 1  1 1 1   40  64
mish + dropout, gradients            act_bias_grad_kernel<false, T, float>  2 1  1 1 1   45  70
softplus + dropout                   epilogue_kernel<T>                     1 1  1 1 1   62  86
hardswish + dropout                  epilogue_kernel<T>                     1 1  1 0 0   42  40
hardswish + dropout, gradients       act_bias_grad_kernel<false, T, float>  2 1  1 0 0   30  29
hardsigmoid + dropout                epilogue_kernel<T>                     1 1  1 0 0   36  35
hardsigmoid + dropout, gradients     act_bias_grad_kernel<false, T, float>  2 1  1 0 0   31  29
hardtanh + dropout                   epilogue_kernel<T>                     1 1  1 0 0   28  27
hardtanh + dropout, gradients        act_bias_grad_kernel<false, T, float>  2 1  1 0 0   28  27
softsign + dropout                   epilogue_kernel<T>                     1 1  1 0 1   36  40
softsign + dropout, gradients        act_bias_grad_kernel<false, T, float>  2 1  1 0 0   35  32
soft_threshold                       prox_kernel<T, float>                  1 1  0 0 1   31  28
soft_threshold, gradient             prox_grad_kernel<T, float>             2 1  0 0 1   40  39
SGD, momentum  optim_kernel<T, T, SgdRule<float, true>, true, SgdOptions>    3 2  0 0 0   19  17
AdamW  optim_kernel<T, T, AdamRule<float, false>, true, AdamOptions>  4 3  0 0 1   50  48
"""


def cases() -> Iterator[Case]:
    for line in CASES.strip().splitlines():
        name, kernel, numbers = re.split(r" {2,}", line, maxsplit=2)
        yield Case(name, kernel, *map(int, numbers.split()))


# Four blocks of 256 threads on an SM; of kernels that keep sums as well, three.
MOST_REGISTERS, MOST_WITH_SUMS = 64, 80


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


def measure(kernel: Kernel, case: Case, dtype: str, size: int, arch: str) -> Row:
    if arguments := case.arguments(arch):
        kernel = decide(kernel, arguments)
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


def measure_all(arch: str, kernels: dict[str, Kernel]) -> list[Row]:
    rows = []
    for case in cases():
        for dtype, (word, size) in DTYPES.items():
            name = re.sub(r"\bT\b", word, case.kernel)
            try:
                rows.append(measure(kernels[name], case, dtype, size, arch))
            except NoSuchWay as error:
                raise NoSuchWay(f"{case.name}, {dtype}: in {name} {error}") from None
    return rows


def faults(row: Row, arch: str) -> Iterator[str]:
    """What the row has that it should not have."""
    if row.spills:
        yield f"{row.spills} spills"
    has_sums = row.case.kernel.startswith("act_bias_grad")
    registers = MOST_WITH_SUMS if has_sums else MOST_REGISTERS
    if row.registers > registers:
        yield f"{row.registers} registers, more than {registers}"
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
        rows = measure_all(arch, kernels)
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
