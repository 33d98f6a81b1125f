"""`make gpu` without a GPU: what it says is missing, and that no part keeps others from running."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # tools and benchmarks are part of the checkout, not of the package

from benchmarks import report  # noqa: E402
from benchmarks.__main__ import argument_parser  # noqa: E402
from benchmarks.harness import SUBJECT, Roof, Row  # noqa: E402
from tools.gpu import __main__ as gpu  # noqa: E402
from tools.gpu import execute, needs, parts, tests  # noqa: E402
from tools.gpu.execute import FAILED, NOT_RUN, OK, Result  # noqa: E402

pytestmark = pytest.mark.no_kernels

NO_GPU = {"torch": "2.13.0", "cuda": None, "gpus": [], "archs": [], "why": "no driver"}
H100 = {"torch": "2.13.0", "cuda": "13.0", "driver": "580", "why": ""}
H100 |= {"gpus": ["H100"], "archs": ["9.0"]}


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """main() in an empty checkout with these parts; its exit status, its output and its folder."""
    (tmp_path / "torchcalc").mkdir()
    monkeypatch.setattr(gpu, "ROOT", tmp_path)
    monkeypatch.setattr(needs, "missing_nvcc", list)
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)

    def run(facts, wanted=(), out=tmp_path / "out", options=()):
        monkeypatch.setattr(gpu, "probe", lambda: dict(facts))
        monkeypatch.setattr(gpu, "all_parts", lambda out, facts: list(wanted))
        return gpu.main(["--out", str(out), *options]), capsys.readouterr().out, out

    return run


@pytest.mark.parametrize("missing", [*needs.REQUIRED, "ninja", "C++20 compiler"])
def test_what_is_missing_is_said_and_nothing_runs(run, monkeypatch, missing):
    real = needs.is_installed
    monkeypatch.setattr(needs, "is_installed", lambda name: name != missing and real(name))
    if missing == "ninja":
        monkeypatch.setitem(sys.modules, "ninja", None)
    if missing in ("ninja", "C++20 compiler"):
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", "")
    status, text, out = run(NO_GPU)
    assert status == 2
    needed, _, lost = text.partition("Not here, and not needed:")
    assert needed.startswith("Missing:\n")
    assert f"\n  {missing} " in needed
    assert f"\n  {missing} " not in lost
    assert not out.exists()


def test_everything_missing_is_listed(run, monkeypatch):
    monkeypatch.setattr(needs, "is_installed", lambda name: False)
    _, text, _ = run(NO_GPU)
    assert all(f"\n  {name} " in text for name in (*needs.REQUIRED, *needs.OPTIONAL))


def test_too_old_is_missing(monkeypatch):
    monkeypatch.setattr(needs, "version", lambda name: (7, 4) if name == "pytest" else (99, 0))
    (old,) = needs.required(gpu=False)
    assert old.name == "pytest >= 8.0"
    assert "(here: " in old.why


def test_a_torch_that_is_too_old(monkeypatch):
    def find_torch():
        raise needs.BuildError("torch 2.9 is too old")

    monkeypatch.setattr(needs.build_support, "find_torch", find_torch)
    assert "torch 2.9 is too old" in dict(needs.required(gpu=True))["nvcc"]


@pytest.mark.parametrize("on_gpu", [True, False])
def test_nvcc_is_needed_on_a_gpu_machine(monkeypatch, on_gpu):
    monkeypatch.setenv("CUDA_HOME", "/nonexistent")
    monkeypatch.setattr(needs.build_support, "find_torch", lambda: needs.Torch(Path(), "13.0"))
    monkeypatch.setattr(needs, "compute_sanitizer", lambda: None)
    where = needs.required if on_gpu else needs.optional
    assert "no /nonexistent/bin/nvcc" in dict(where(on_gpu))["nvcc"]
    assert "compute-sanitizer" in {name for name, _ in needs.optional(True)}


def part(name, result=None, **options):
    def call(limit):
        options.setdefault("limits", []).append(limit)
        if isinstance(result, Exception):
            raise result
        return result or Result(OK, "fine")

    return gpu.Part(name, options.get("share", 1.0), call, *map(options.get, ("missing", "needs")))


def test_parts_go_on_past_a_failed_one(run):
    wanted = [
        part("build"),
        part("tests", Result(FAILED, "1 failed")),
        part("broken", ValueError("no such file")),
        part("late", needs="broken"),
        part("GPU", missing="no GPU"),
        part("benchmarks", Result(OK, "measured", ["  a row"]), needs="build"),
    ]
    status, text, out = run(H100, wanted)
    assert status == 1
    summary = json.loads((out / "summary.json").read_text())
    assert [entry["status"] for entry in summary["parts"]] == [
        OK, FAILED, FAILED, NOT_RUN, NOT_RUN, OK,
    ]  # fmt: skip
    last = (out / "summary.txt").read_text()
    assert text.endswith(last)
    for line in ("ValueError: no such file", "broken did not go well", "no GPU", "\n  a row\n"):
        assert line in last
    assert "torch 2.13.0, CUDA 13.0, driver 580\nH100\n" in last


def test_exit_status(run, tmp_path):
    assert run(H100, [part("build")], tmp_path / "1")[0] == 0
    assert run(NO_GPU, [part("build"), part("GPU", missing="no GPU")], tmp_path / "2")[0] == 3
    assert run(NO_GPU, [part("build", Result(FAILED, ""))], tmp_path / "3")[0] == 1


def test_a_run_before_leaves_nothing(run, tmp_path, capsys):
    library = tmp_path / "torchcalc" / "_cuda.so"
    library.touch()
    _, _, out = run(NO_GPU, [part("build")])
    assert not library.exists()
    with pytest.raises(SystemExit, match="2"):
        run(NO_GPU, [part("build")], out)
    assert f"{out} is not empty" in capsys.readouterr().err


def test_later_parts_keep_their_share_of_the_time():
    first, second = [], []
    wanted = [
        part("a", share=10, limits=first),
        part("b", share=20, limits=second),
        part("c", share=1000, missing="no GPU"),
        part("d", share=30),
    ]
    gpu.run_parts(wanted, time.monotonic() + 100)
    assert first == [pytest.approx(50, abs=1)]
    assert second == [pytest.approx(70, abs=1)]  # a took no time


def test_shares_are_what_there_is():
    names = {p.name: p.share for p in gpu.all_parts(Path(), H100)}
    assert sum(names.values()) == gpu.LIMIT


def test_shares_of_half_the_limit(run):
    limits = []
    half = str(gpu.LIMIT / 2)
    run(H100, [part("a", limits=limits), part("b", share=100)], options=("--limit", half))
    assert limits == [pytest.approx(gpu.LIMIT / 2 - 50, abs=2)]


def test_archs():
    assert gpu.archs({"gpus": ["H100"] * 8, "archs": ["9.0"] * 8}) == "9.0a"
    assert gpu.archs({"gpus": ["T4"], "archs": ["7.5"]}) == gpu.DEFAULT_ARCHS
    assert gpu.archs({"gpus": ["H100", "T4"], "archs": ["9.0", "7.5"]}) == gpu.DEFAULT_ARCHS
    assert gpu.archs(NO_GPU) == "8.0"


def test_a_torch_that_does_not_answer(run, monkeypatch):
    monkeypatch.setattr(gpu, "PROBE", "raise ImportError('no libcudart')")
    facts = gpu.probe()
    assert facts["why"] == "ImportError: no libcudart"
    status, text, _ = run(facts, [part("build")])
    assert status == 3
    assert "No GPU: ImportError: no libcudart." in text


def test_probe_of_this_machine():
    torch = pytest.importorskip("torch")
    facts = gpu.probe()
    assert facts["torch"] == torch.__version__
    assert bool(facts["gpus"]) == torch.cuda.is_available()
    assert bool(facts["why"]) != bool(facts["gpus"])


def test_time_limit(monkeypatch, tmp_path):
    monkeypatch.setattr(execute, "KILL", 0.2)
    pid, log = tmp_path / "pid", tmp_path / "log"
    script = f"trap '' INT; sleep 100 & echo $! > {pid}; echo started; wait; sleep 100"
    start = time.monotonic()
    assert execute.execute(["bash", "-c", script], log, 1.0) is None
    assert time.monotonic() - start < 20
    assert log.read_text() == "started\n"
    for _ in range(100):  # it is gone once init has reaped it
        if not is_running(int(pid.read_text())):
            break
        time.sleep(0.1)
    assert not is_running(int(pid.read_text()))
    result = execute.outcome(None, log, 1.0, "")
    assert (result.status, result.text) == (FAILED, "longer than 1 s; log says: started")


def test_a_compiler_error_is_what_is_shown(tmp_path):
    log = tmp_path / "build.log"
    log.write_text("a.cpp:1: error: no such name\nb.cpp: error: too\nninja: build stopped\n")
    result = execute.outcome(1, log, 1.0, "")
    assert result.text == "exit status 1; build.log says: a.cpp:1: error: no such name"


def is_running(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().split()[2] != "Z"


TOYS = """
import os, sys, time, types
import pytest

pytestmark = pytest.mark.cuda

def test_first(): pass
def test_wrong(): assert 1 + 1 == 3
def test_crash(): os._exit(11)
def test_after_crash(): pass
def test_hang(): time.sleep(100)
def test_after_hang(): pytest.skip("could not import 'x': No module named 'x'")

def test_that_loses_the_gpu():
    def synchronize(): raise RuntimeError("an illegal memory access was encountered")
    cuda = types.SimpleNamespace(is_initialized=lambda: True, synchronize=synchronize)
    sys.modules["torch"] = types.SimpleNamespace(cuda=cuda)
    raise RuntimeError("an illegal memory access was encountered")

@pytest.fixture
def broken():
    yield
    raise ValueError("too late")

def test_with_the_gpu(broken): assert "torch" not in sys.modules
"""


@pytest.fixture
def toys(tmp_path):
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n  cuda: needs a GPU\n")
    (tmp_path / "test_toys.py").write_text(TOYS)
    return tmp_path


def test_all_tests_run_whatever_one_does(monkeypatch, toys):
    monkeypatch.setitem(tests.HANG, "cuda", 2.0)
    result = tests.run(toys, "cuda", 120.0, (str(toys),))
    assert result.status == FAILED
    assert result.data["counts"] == {"passed": 2, "failed": 5, "skipped": 1}
    names = [name.rpartition("::")[2] for name in result.data["failed"]]
    lost = "test_that_loses_the_gpu"
    assert names == ["test_wrong", "test_crash", "test_hang", lost, "test_with_the_gpu"]
    assert result.lines[0].endswith("::test_wrong: assert (1 + 1) == 3")
    assert "ended its process, exit status 11" in result.lines[1]
    assert "test_hang" in (toys / "tests-cuda-0-of-1.hang.txt").read_text()
    assert result.lines[-1] == "  1 skipped: could not import 'x': No module named 'x'"
    assert "too late" in (toys / "tests-cuda.failures.txt").read_text()


def test_files_are_shared_out(toys, monkeypatch):
    """Each runs once, a fixture of a module with it; more lots than files do no harm."""
    monkeypatch.setattr(tests.os, "cpu_count", lambda: 3)
    for name, count in (("toys", 3), ("more", 2)):
        functions = [f"def test_{k}(): pass\n" for k in range(count)]
        (toys / f"test_{name}.py").write_text("".join(functions))
    result = tests.run(toys, "not cuda", 60.0, (str(toys),))
    assert (result.status, result.text) == (OK, "5 passed, 0 failed, 0 skipped")
    lots = [path.read_text().count('"passed"') for path in sorted(toys.glob("*.jsonl"))]
    assert lots == [3, 2, 0]


def test_tests_that_are_cut_off(toys):
    selected = (str(toys), "-k", "first or hang")
    result = tests.run(toys, "cuda", 4.0, selected)
    assert result.status == FAILED
    assert result.text.startswith("1 passed, 0 failed, 0 skipped; cut off after 4 s, in ")
    assert result.text.endswith("::test_hang")


def test_nothing_but_skipped_tests_prove_nothing(toys):
    result = tests.run(toys, "cuda", 60.0, (str(toys), "-k", "after_hang"))
    assert (result.status, result.data["counts"]) == (FAILED, {"skipped": 1})


def test_tests_that_cannot_be_collected(toys):
    (toys / "test_toys.py").write_text("import nothing_of_that_name")
    result = tests.run(toys, "cuda", 60.0, (str(toys),))
    assert result.status == FAILED
    assert result.data["counts"] == {"failed": 1}


def test_main_rows():
    rounds = {"copy": [1.0], "eager": [6.0], "torch.compile": [3.0], SUBJECT: [2.0]}
    row = Row(
        "forward", "16Mi", "bfloat16", rounds, baseline="copy", roof=Roof("copy", 2e9, "GB/s")
    )
    never = Row("late", "", "", {SUBJECT: []}, not_measured="there was no time left")
    recorded = [{"family": "dropout", **r.to_json()} for r in (row, never)]
    _, line = parts.main_rows(recorded)
    assert " ".join(line.split()) == "dropout forward bfloat16 16Mi 50% of 2000 GB/s 3.00 1.50"


def test_what_the_sanitizer_runs_is_there():
    path, _, name = parts.SANITIZED[0].partition("::")
    assert f"def {name}(" in (ROOT / path).read_text()
    assert set(parts.FAMILIES) <= set(pytest.importorskip("benchmarks.runner").FAMILIES)


def test_sanitizer(tmp_path):
    sanitizer = tmp_path / "compute-sanitizer"
    sanitizer.write_text(
        '#!/bin/sh\necho "$@"\necho "========= ERROR SUMMARY: 3 errors"\nexit 99\n'
    )
    sanitizer.chmod(0o755)
    result = parts.sanitize(tmp_path, str(sanitizer), "racecheck", 30.0)
    assert result.status == FAILED
    assert result.text.startswith("ERROR SUMMARY: 3 errors exit status 99")
    assert (
        "--tool racecheck --error-exitcode 99 --kernel-name kns=torchcalc"
        in (tmp_path / "racecheck.log").read_text()
    )


def test_benchmarks_part(tmp_path, monkeypatch):
    """Its command is one that the benchmarks take, and their results one that it reads."""
    rounds = {"x.clone()": [1.0], "eager": [4.0], "torchcalc": [2.0]}
    row = Row(
        "forward",
        "128Mi",
        "bfloat16",
        rounds,
        baseline="x.clone()",
        roof=Roof("x.clone()", 1e9, "GB/s"),
    )

    def fake(command, log, limit, **env):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        args = argument_parser().parse_args(command[3:])
        assert args.device == "cuda"
        args.out.mkdir()
        (args.out / "gpu.json").write_text(report.to_json({"gpu": "Some GPU"}, {"dropout": [row]}))
        log.write_text("done")
        return 0

    monkeypatch.setattr(parts, "execute", fake)
    result = parts.benchmarks(tmp_path, 60.0)
    assert result.status == OK
    assert result.text == "1 of 1 rows measured."
    assert "dropout forward bfloat16 128Mi" in result.lines[1]
    assert "50% of 1000 GB/s" in result.lines[1]
    assert result.lines[1].split()[-1] == "2.00"


@pytest.mark.parametrize("cuda", ["0", "1"])
def test_build_part(tmp_path, monkeypatch, cuda):
    def fake(command, log, limit, **env):
        assert env == {"TORCHCALC_CUDA": cuda}
        done = subprocess.run(
            [*command, "--help"], cwd=execute.ROOT, capture_output=True, text=True
        )
        assert "--inplace" in done.stdout
        log.write_text("done")
        return done.returncode

    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0a")
    monkeypatch.setattr(parts, "execute", fake)
    result = parts.build(tmp_path, "_C", cuda, 60.0)
    assert result.status == OK
    assert result.text.startswith("torchcalc/_C" + " for 9.0a" * (cuda == "1"))
