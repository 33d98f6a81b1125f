"""The benchmarks' lines for a GPU, run on the CPU; what becomes of rows that fail or are late."""

import json
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks is part of the checkout, not of the package

from benchmarks.__main__ import main  # noqa: E402
from benchmarks.clocks import DryGpu, Gpu, cuda_clock  # noqa: E402
from benchmarks.harness import SUBJECT, Config, Roof, Row, Task, threads  # noqa: E402
from benchmarks.runner import run_apart  # noqa: E402

pytestmark = pytest.mark.no_kernels

# Those that ask whether there is a GPU, or have rows for one.
FAMILIES = ["dropout", "linear_act", "mlp", "epilogue", "optim", "prox", "calls"]


@pytest.fixture(scope="module")
def dry(tmp_path_factory):
    out = tmp_path_factory.mktemp("results")
    with threads(1):  # others use the cores
        main([*FAMILIES, "--dry", "--out", str(out)])
    (path,) = out.glob("*.json")
    return json.loads(path.read_text())


def test_dry_run(dry):
    assert (dry["device"], dry["gpu"]) == ("cuda", "dry run")
    assert {row["family"] for row in dry["rows"]} == set(FAMILIES)
    for row in dry["rows"]:
        assert row["must"] is None  # bounds are those of a CPU
        assert row["not_measured"] is None


def test_shares_on_a_gpu(dry):
    """Each main op beside eager, torch.compile and the copy or GEMM, as a share of its rate."""
    rows = {(row["family"], row["name"], row["dtype"]): row for row in dry["rows"]}
    for family, name, dtype in [
        ("dropout", "forward", "bfloat16"),
        ("dropout", "forward + backward", "bfloat16"),
        ("linear_act", "forward, no_grad", "bfloat16"),
        ("linear_act", "forward + backward", "bfloat16"),
        ("epilogue", "gelu + dropout, forward", "bfloat16"),
        ("epilogue", "gelu + dropout, backward", "bfloat16"),
        ("prox", "soft threshold, forward", "bfloat16"),
        ("prox", "elastic net, learned strengths, backward", "float32"),
    ]:
        row = rows[family, name, dtype]
        assert {"eager", "torch.compile", SUBJECT} <= row["contenders"].keys()
        assert row["contenders"][SUBJECT]["share"] > 0
    for name in ("AdamW + L1", "SGD + L1"):
        row = rows["optim", name, "float32"]
        assert row["contenders"].keys() >= {f"{name.split()[0]}(fused)", "eager", "in-place pass"}
        assert row["contenders"][SUBJECT]["share"] > 0


def test_a_share_counts_the_work():
    rounds = {"copy": [2.0], SUBJECT: [8.0]}
    row = Row("pass", "", "", rounds, baseline="copy", roof=Roof("copy", 10.0, "GB/s", 35.0))
    assert row.share(SUBJECT) == 3.5 * 2.0 / 8.0


def test_the_gpu_has_time_between_its_events_only():
    log = []

    class Event:
        def record(self):
            log.append("record")

        def synchronize(self):
            log.append("synchronize")

        def elapsed_time(self, end):
            return 1.25

    class Logging(DryGpu):
        def event(self):
            return Event()

    clock = cuda_clock(Logging())
    assert clock(lambda: log.append("run")) == 1.25
    assert log == ["record", "run", "record", "synchronize"]


def test_sizes():
    sizes = {
        "quick": Config(torch.device("cpu"), 1, quick=True, gpu=DryGpu()),
        "cpu": Config(torch.device("cpu"), 1),
        "gpu": Config(torch.device("cuda"), 1, gpu=Gpu()),
    }
    assert [config.size(1, 2, 3) for config in sizes.values()] == [1, 2, 3]


def fail():
    raise ValueError("no such kernel\nand more")


def test_a_row_that_fails_leaves_the_others(capfd):
    row = partial(Row, "good", "", "", {SUBJECT: [1.0]})
    tasks = [Task("bad", fail), Task("good", row)]
    bad, good = run_apart(tasks, lambda name=None: None)
    assert (bad.name, bad.failed, bad.not_measured) == ("bad", True, "ValueError: no such kernel")
    assert (good.failed, good.value(SUBJECT)) == (False, 1.0)
    assert "Traceback" in capfd.readouterr().err


def test_a_row_that_ends_its_process_leaves_the_others():
    row = partial(Row, "good", "", "", {SUBJECT: [1.0]})
    tasks = [Task("bad", partial(sys.exit, 3)), Task("good", row)]
    bad, good = run_apart(tasks, lambda name=None: None)
    assert (bad.failed, bad.not_measured) == (True, "its process ended with exit code 3")
    assert good.value(SUBJECT) == 1.0


def test_no_time_left():
    tasks = [Task("slow", partial(time.sleep, 60)), Task("never", fail)]
    start = time.monotonic()
    rows = list(run_apart(tasks, lambda name=None: None, end=start + 1))
    assert time.monotonic() - start < 30
    assert [(row.name, row.failed) for row in rows] == [("slow", False), ("never", False)]
    assert {row.not_measured for row in rows} == {"there was no time left"}


def test_a_failed_row_is_the_exit_status(monkeypatch):
    failed = Row("bad", "", "", {SUBJECT: []}, not_measured="it broke", failed=True)
    monkeypatch.setattr("benchmarks.__main__.run", lambda config, families: {"prox": [failed]})
    with pytest.raises(SystemExit, match=r"Failed: bad\."):
        main(["prox", "--dry"])
