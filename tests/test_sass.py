"""The machine code of _cuda.so against the bounds in tools/sass.py and the table in docs/gpu.md."""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys

import pytest
from test_build import ROOT

sys.path.insert(0, str(ROOT / "tools"))

import disassembly
import sass
from decided import decide
from disassembly import Counts, Instruction, Kernel

pytestmark = pytest.mark.no_kernels
LIBRARY = ROOT / "torchcalc" / "_cuda.so"


@pytest.fixture(scope="module")
def code():
    if not LIBRARY.exists():
        pytest.skip("there is no torchcalc/_cuda.so")
    try:
        return disassembly.disassemble(LIBRARY)
    except disassembly.ToolMissing as error:
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def rows(code):
    return sass.measure_all(*code)


def test_nothing_exceeds_its_bounds(code, rows):
    found = {f"{row.case.name}, {row.dtype}": [*sass.faults(row, code[0])] for row in rows}
    assert {name: faults for name, faults in found.items() if faults} == {}


def test_no_kernel_spills(code):
    assert [name for name, kernel in code[1].items() if kernel.spills()] == []


def test_a_mask_is_stored_in_words(code):
    way = code[1]["dropout_mask_kernel<bool>"].shortest(Counts(stores=1, rounds=10), False)
    assert [i.accesses("ST") for i in way if i.accesses("ST")] == [64]


def test_only_16_bits_take_exp_from_the_special_function_unit(code):
    """The one line of assembly that no other test runs: 2^(log2(e) x), and log2(e) is right."""
    case = next(case for case in sass.cases() if case.name == "silu")
    for word in ("BFloat16", "Half"):
        kernel = decide(code[1][f"epilogue_kernel<{word}>"], case.arguments(code[0]))
        way = kernel.shortest(case.counts(2), False)
        assert sum(i.name == "MUFU.EX2" for i in way) == 8
        factors = [float(i.operands.split()[-1]) for i in way if " -1.44" in i.operands]
        assert factors == pytest.approx([-1 / math.log(2)] * 8, rel=2**-24)
    assert not any(i.name == "MUFU.EX2" for i in code[1]["epilogue_kernel<float>"].code)


def test_the_page_has_these_numbers(code, rows):
    nvcc = shutil.which("nvcc")
    version = nvcc and subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    if not version or "release 13.0" not in version or not code[0].startswith("sm_90"):
        pytest.skip("the page is of nvcc 13.0 and sm_90")
    page = (ROOT / "docs" / "gpu.md").read_text()
    assert sass.replace_table(page, rows) == page


def test_the_page_has_these_gpus():
    page = (ROOT / "docs" / "gpu.md").read_text()
    for gpu in sass.GPUS:
        numbers = f"{gpu.sms} | {gpu.clock / 1e9:.3f} | {gpu.bandwidth / 1e12:.3f}"
        assert re.search(rf"^\| {gpu.name}.* \| {re.escape(numbers)} \|$", page, re.MULTILINE)


# --- the reading itself


def kernel(text):
    """Of one instruction a line, four bytes apart."""
    lines = [line.split(maxsplit=1) for line in text.strip().splitlines()]
    code = []
    for i, (first, *rest) in enumerate(lines):
        predicate = first if first.startswith("@") else ""
        name, _, operands = (rest[0] if predicate else " ".join([first, *rest])).partition(" ")
        code.append(Instruction(4 * i, predicate, name, operands))
    return Kernel(32, code)


STRAIGHT = """
@P0 BRA 0x14
LDG.E.128 R4, desc[UR4][R2.64]
LDG.E.128 R8, desc[UR4][R2.64+0x10]
FADD R4, R4, R8
BRA 0x18
LDG.E.U16 R4, desc[UR4][R2.64]
STG.E.128 desc[UR4][R2.64], R4
EXIT
"""


def test_shortest_way():
    way = kernel(STRAIGHT).shortest(Counts(loads=2, stores=1), False)
    assert [i.address for i in way] == [0, 4, 8, 12, 16, 24, 28]
    assert disassembly.loads_before_use(way) == 2
    with pytest.raises(disassembly.NoSuchWay):  # narrow accesses are no way
        kernel(STRAIGHT).shortest(Counts(stores=1), False)


def test_a_load_that_waits_is_seen():
    text = """
    LDG.E.128 R4, desc[UR4][R2.64]
    FADD R12, R5, R5
    LDG.E.128 R8, desc[UR4][R2.64+0x10]
    STG.E.128 desc[UR4][R2.64], R8
    EXIT
    """
    way = kernel(text).shortest(Counts(loads=2, stores=1), False)
    assert disassembly.loads_before_use(way) == 1


def test_a_loop_is_counted_once():
    text = """
    MOV R0, RZ
    LDG.E.128 R4, desc[UR4][R2.64]
    STG.E.128 desc[UR4][R2.64], R4
    @P0 BRA 0x4
    EXIT
    """
    assert len(kernel(text).shortest(Counts(loads=1, stores=1), True)) == 3
    assert len(kernel(text).shortest(Counts(loads=1, stores=1), False)) == 5


SWITCH = """
LDC.64 R2, c[0x0][0x238]
ISETP.GT.U32.AND P0, PT, R2.reuse, 0x1, PT
ISETP.GT.AND.EX P0, PT, R3, RZ, PT, P0
@P0 BRA 0x20
ISETP.NE.U32.AND P1, PT, R2, 0x1, PT
ISETP.NE.AND.EX P1, PT, R3, RZ, PT, P1
@!P1 BRA 0x28
EXIT
MUFU.RCP R4, R4
EXIT
MUFU.EX2 R4, R4
EXIT
"""


def test_a_switch_is_followed():
    ends = {0: Counts(), 1: Counts(exps=1), 2: Counts(reciprocals=1), 7: Counts(reciprocals=1)}
    for number, counts in ends.items():
        decided = decide(kernel(SWITCH), {"c[0x0][0x238]": number})
        assert decided.shortest(counts, False)
        for other in set(ends.values()) - {counts}:  # the only way
            with pytest.raises(disassembly.NoSuchWay):
                decided.shortest(other, False)


def test_what_is_overwritten_decides_nothing():
    for before, after in (
        ("@P0 BRA", "FSETP.GT.AND P0, PT, R7, RZ, PT\n@P0 BRA"),
        ("ISETP.GT.U32.AND P0", "LDG.E.128 R0, desc[UR4][R8.64]\nISETP.GT.U32.AND P0"),
        ("0x238", "0x240"),
    ):
        text = SWITCH.replace(before, after, 1).split("ISETP.NE")[0]
        with pytest.raises(disassembly.NoSuchWay, match="no branch"):
            decide(kernel(text + 8 * "EXIT\n"), {"c[0x0][0x238]": 1})


def test_faults():
    case = sass.Case("copy", "copy_kernel<T>", 2, 1, 0, 0, 0, 10, 10)
    good = sass.Row(case, "bfloat16", 4, 64, 0, 10.0, 2, 2)
    assert list(sass.faults(good, "sm_90")) == []
    for changed, fault in (
        ({"registers": 65}, "65 registers"),
        ({"spills": 1}, "1 spills"),
        ({"instructions": 10.5}, "10.5 instructions"),
        ({"loads_before_use": 1}, "waits after 1 of 2 loads"),
    ):
        assert [fault in text for text in sass.faults(good._replace(**changed), "sm_90")] == [True]


def test_share_of_the_bandwidth():
    gpu = sass.Gpu("", sms=1, clock=1e9, bandwidth=128e9)
    assert gpu.share(instructions=4, size=2) == 0.5  # 32e9 of 64e9 elements a second
    assert gpu.share(instructions=1, size=2) == 1


def test_help():
    done = subprocess.run(
        [sys.executable, "tools/sass.py", "--help"], cwd=ROOT, capture_output=True
    )
    assert b"disassembly" in done.stdout
