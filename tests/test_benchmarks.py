"""The benchmarks run, and compute from what they record what they say."""

import io
import json
import os
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from itertools import islice
from pathlib import Path
from statistics import median

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks is part of the checkout, not of the package

from benchmarks import bench_memory, readme, report  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.bench_dropout import KINDS  # noqa: E402
from benchmarks.bench_dtypes import HALF  # noqa: E402
from benchmarks.clocks import call_clock, wall_clock  # noqa: E402
from benchmarks.harness import (  # noqa: E402
    Bound,
    Config,
    Roof,
    Row,
    Task,
    one_round,
    threads,
    unsteady,
)
from benchmarks.runner import FAMILIES, batches, run_apart  # noqa: E402
from torchcalc.ops.activations import NAMES  # noqa: E402

pytestmark = pytest.mark.no_kernels

CPU = torch.device("cpu")

ROW = Row(
    "step",
    "4",
    "float32",
    # Machine noise: the ratio of the medians is 3, that of each round is 2 but for one.
    {"copy": [1.0, 1.0, 9.0], "torchcalc": [2.0, 3.0, 18.0]},
    baseline="copy",
    bound=Bound(must=2.0, aim=1.0),
    roof=Roof("copy", work=5e6, unit="GB/s"),
)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What a quick run prints, the folder it writes to, and the JSON file in it."""
    out = tmp_path_factory.mktemp("results")
    arguments = ["--quick", "--no-compile", "--device", "cpu", "--out", str(out)]
    stdout, stderr = io.StringIO(), io.StringIO()
    # One thread: others use the cores.
    with threads(1), redirect_stdout(stdout), redirect_stderr(stderr):
        main(arguments)
    assert stderr.getvalue() == ""  # no progress bar where there is no terminal
    (path,) = out.glob("*.json")
    return stdout.getvalue(), path, json.loads(path.read_text())


def test_result_file(quick):
    results = quick[2]
    keys = "date torch torchcalc commit python device cpu cores threads gpu driver rows"
    assert list(results) == keys.split()
    assert results["torch"] == torch.__version__
    assert {row["family"] for row in results["rows"]} == set(FAMILIES)
    keys = "family name sizes dtype unit baseline must aim subjects passed not_measured"
    for row in results["rows"]:
        assert list(row) == [*keys.split(), "roof", "contenders"]
        assert row["contenders"].keys() >= set(row["subjects"])
        assert row["not_measured"] is None


def test_pictures(quick):
    pytest.importorskip("matplotlib")
    for suffix in ("", "-activations", "-layers", "-calls", "-dtypes"):
        picture = quick[1].with_name(f"{quick[1].stem}{suffix}.png")
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_figures_follow_from_the_rounds(quick):
    for row in quick[2]["rows"]:
        contenders = row["contenders"]
        for contender in contenders.values():
            rounds = contender["rounds"]
            assert len(rounds) == (3 if row["unit"] in ("ms", "us") else 1)
            assert contender["median"] == median(rounds)
            if row["baseline"]:
                others = contenders[row["baseline"]]["rounds"]
                pairs = zip(rounds, others, strict=True)
                assert contender["ratio"] == median(own / other for own, other in pairs)


def test_tables(quick):
    for family in FAMILIES:
        assert f"\n{family}" in "\n" + quick[0]
    lines = quick[0].splitlines()
    worst = [line for line in lines if line.startswith("memory, worst of ")]
    assert lines.index("25 of 25 bounds are met.") == lines.index(worst[0]) + 1


def test_saved_bytes_in_another_process_which_then_ends():
    tasks = [*bench_memory.tasks(Config(CPU, repeats=1)), Task("step", partial(os._exit, 3))]
    rows = run_apart(tasks, lambda name=None: None)
    saved = {row.name: row.rounds for row in islice(rows, len(tasks) - 1)}
    assert saved["gelu + dropout"] == {"eager": [12.0], "torchcalc": [8.0]}
    assert saved["relu + dropout"] == {"eager": [12.0], "torchcalc": [4.0]}
    assert saved["relu6 + dropout"] == {"eager": [12.0], "torchcalc": [4.125]}
    # Eager keeps the output's mask, too: 4 of them for 32 hidden elements.
    assert saved["mlp, gelu + dropouts"] == {
        "eager": [12.5],
        "two linear_act": [8.0],
        "torchcalc": [4.0],
    }
    for name in NAMES:
        assert saved[f"{name} + dropout"]["torchcalc"] < saved[f"{name} + dropout"]["eager"]
    (failed,) = rows
    assert failed.failed
    assert failed.not_measured == "its process ended with exit code 3"


def test_help_names_every_family(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    text = capsys.readouterr().out
    assert all(f"  {family} " in text for family in FAMILIES)


def test_without_rich_and_matplotlib(monkeypatch, capsys, tmp_path):
    for module in ("rich", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    main(["memory", "--quick", "--out", str(tmp_path)])
    assert "No plot: matplotlib is not installed." in capsys.readouterr().out
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_partial_or_quick_run_is_not_recorded(capsys):
    main(["memory", "--quick"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("Not written")


@pytest.mark.parametrize(
    "args",
    [["nonsense"], ["--repeats", "0"], ["--repeats", "x"], ["--wait", "-1"], ["--wait", "nan"]],
)
def test_bad_arguments(args, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(args)
    assert args[-1] in capsys.readouterr().err.splitlines()[-1]


def test_every_dtype_of_every_op(quick):
    rows = [row for row in quick[2]["rows"] if row["family"] == "dtypes"]
    for row in rows:
        assert list(row["contenders"]) == ["float32", "float64", "bfloat16", "float16"]
        assert row["baseline"] == "float32"
    names = " ".join(row["name"] for row in rows)
    for op in ("dropout", "soft_threshold", "prox_l2", "prox_elastic_net", "SGD", "AdamW"):
        assert op in names
    for activation in NAMES:
        assert f"linear_act {activation}, backward" in names


def test_every_activation_shape_and_dropout(quick):
    rows = quick[2]["rows"]

    def names(family):
        return [row["name"] for row in rows if row["family"] == family]

    assert names("activations") == [*NAMES, *NAMES]
    for family, count in (("shapes", 8), ("gated", 9), ("mlp", 8)):
        sizes = [row["sizes"] for row in rows if row["family"] == family]
        assert len(set(sizes)) == 6, family
        assert len(sizes) > count, family
    for kind in KINDS:
        assert f"{kind}, forward + backward" in names("dropout")
        assert f"{kind}, forward + backward" in names("calls")
    assert len(names("vmap")) == 5


def test_interleaving():
    order = []
    ticks = iter(range(100))

    def clock(contender):
        contender()
        return float(next(ticks))

    contenders = {name: lambda name=name: order.append(name) for name in "abc"}
    rounds = [one_round(contenders, clock, k) for k in range(3)]
    assert "".join(order) == "abc" + "cba" + "abc"
    assert rounds == [{"a": 0, "b": 1, "c": 2}, {"c": 3, "b": 4, "a": 5}, {"a": 6, "b": 7, "c": 8}]


def test_outputs_are_freed_after_the_clock_stops(monkeypatch):
    now = [0.0]

    class Output:
        def __del__(self):
            now[0] += 100.0

    def contender():
        now[0] += 0.25
        return Output()

    monkeypatch.setattr("benchmarks.clocks.time.perf_counter", lambda: now[0])
    assert wall_clock(contender) == 250.0
    assert now[0] == 100.25


def test_calls_are_measured_in_a_loop(monkeypatch):
    now, calls = [0.0], []

    def contender():
        now[0] += 20e-6
        calls.append(now[0])

    monkeypatch.setattr("benchmarks.clocks.time.perf_counter", lambda: now[0])
    clock = call_clock(None, 5e-3)
    clock(contender)  # finds out how many calls a loop has
    calls.clear()
    assert clock(contender) == pytest.approx(20.0)  # microseconds
    assert len(calls) == 250


def test_threads():
    before = torch.get_num_threads()
    with threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_ratio_is_the_median_over_rounds():
    assert ROW.value("torchcalc") == 3.0
    assert ROW.figure("torchcalc") == 2.0
    assert ROW.figure("copy") == 1.0
    assert ROW.passed
    assert ROW.roof_rate == 5.0
    entry = ROW.to_json()["contenders"]["torchcalc"]
    assert entry == {"median": 3.0, "ratio": 2.0, "share": 0.5, "rounds": [2.0, 3.0, 18.0]}


def test_plain_tables(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    missed = Row("slow", "", "", {"torchcalc": [0.5]}, unit="s", bound=Bound(0.1))
    report.print_tables({"optim": [ROW], "import": [missed]})
    assert capsys.readouterr().out.splitlines() == [
        "",
        "optim",
        "                 baseline   torchcalc  must  aim  bound  share of roof",
        "step 4 float32  copy 1 ms  2.00x 3 ms     2    1    met  50% of 5 GB/s",
        "",
        "import",
        "      torchcalc  must   bound",
        "slow      0.5 s   0.1  MISSED",
        "import, worst of 1: slow: 0.5 of 0.1 MISSED",
        "optim, worst of 1: step 4 float32: 2 of 2",
        "1 of 2 bounds are met, 1 missed.",
    ]


def test_an_unsteady_baseline_is_not_measured(monkeypatch):
    assert unsteady("copy", [1.0, 1.9, 7.0]) is None
    times = {"copy": 1.0, "torchcalc": 1.0}

    def clock(run):
        times["copy"] *= 2
        return times[run()]

    monkeypatch.setattr("benchmarks.harness.wall_clock", clock)
    contenders = {name: (lambda name=name: name) for name in times}
    row = Config(CPU, repeats=5).compare("step", "", "", contenders, baseline="copy")
    assert row.not_measured.startswith("copy is unsteady: median ")
    times["copy"] = 1.0
    row = Config(CPU, repeats=5, quick=True).compare("step", "", "", contenders, baseline="copy")
    assert row.not_measured is None


NOT_MEASURED = Row(
    "pass", "8", "", {"copy": [], "torchcalc": []}, "ms", "copy", Bound(2.0, 1.0),
    Roof("copy", 1.0, "GB/s"), not_measured="other processes used 1.5 of 2 cores",
)  # fmt: skip


MACHINE = {"gpu": "GPU", "torch": "2", "date": "2026-01-01"}


def test_what_was_not_measured_has_no_number(monkeypatch, capsys):
    results = {"dropout": [NOT_MEASURED, ROW]}
    for rich in (True, False):
        if not rich:
            monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
        report.print_tables(results)
        lines = capsys.readouterr().out.splitlines()
        assert any("not" in line and "pass" in line for line in lines)
        assert lines[-4:] == [
            "Not measured because other processes used 1.5 of 2 cores: pass 8.",
            "dropout, worst of 1: step 4 float32: 2 of 2",
            "1 of 2 bounds are met, 1 not measured.",
            "1 of 2 rows were not measured.",
        ]
    recorded = json.loads(report.to_json(MACHINE, results))
    assert recorded["rows"][0]["not_measured"] == NOT_MEASURED.not_measured
    assert recorded["rows"][0]["passed"] is None
    assert recorded["rows"][0]["contenders"] == {"copy": {}, "torchcalc": {}}
    assert "| dropout pass, 8 | copy |  |  | **not measured** | 2 |" in readme.table(recorded)


def test_pictures_of_what_was_not_measured(tmp_path):
    pytest.importorskip("matplotlib")
    from benchmarks.plot import plot

    results = {"dropout": [NOT_MEASURED, ROW]}
    assert plot(tmp_path / "a.png", MACHINE, results) == [tmp_path / "a.png"]
    assert plot(tmp_path / "b.png", MACHINE, {"calls": [NOT_MEASURED]}) == [
        tmp_path / "b-calls.png"
    ]


def test_a_bound_holds_for_all_subjects():
    rounds = {"float32": [2.0], "bfloat16": [1.0], "float16": [6.0]}
    row = Row("dropout", "", "", rounds, "ms", "float32", Bound(2.5), subjects=HALF)
    assert row.passed is False
    assert row.within(3.0)
    assert row.share_of_bound == 3.0 / 2.5


def test_the_worst_row_is_the_one_nearest_its_bound():
    def row(name, figure, must, **more):
        rounds = {"copy": [1.0], "torchcalc": [figure]}
        bound = None if must is None else Bound(must)
        return Row(name, "", "", rounds, "ms", "copy", bound, **more)

    results = {
        "gated": [row("a", 0.8, 0.85), row("b", 1.2, 1.5), row("c", 9.0, None)],
        "mlp": [row("d", 1.0, 1.0), row("e", 1.3, 1.0), NOT_MEASURED],
        "vmap": [row("f", 5.0, None)],
    }
    assert report.worst_rows(results) == [
        "mlp, worst of 2: e: 1.3 of 1 MISSED",
        "gated, worst of 2: a: 0.8 of 0.85",
    ]
    recorded = json.loads(report.to_json(MACHINE, results))
    few = readme.table(recorded).splitlines()[2:]
    assert [line.split(" |")[0] for line in few] == ["| a", "| b", "| d", "| e", "| pass, 8"]
    results["mlp"] = [row("d", 1.0, 1.0)] * readme.MOST + [row("e", 1.3, 1.0)]
    recorded = json.loads(report.to_json(MACHINE, results))
    assert (
        readme.table(recorded).splitlines()[-1]
        == "| mlp, worst of 5: e | copy |  |  | **1.3** | 1 |"
    )
    results["mlp"].append(NOT_MEASURED)
    recorded = json.loads(report.to_json(MACHINE, results))
    assert "| mlp, worst of 6: pass, 8 | copy |  |  | **not measured** | 2 |" in readme.table(
        recorded
    )


def test_readme_calls_table():
    row = ROW.to_json() | {"family": "calls"}
    assert readme.calls_table({"rows": []}) == ""
    assert readme.calls_table({"rows": [row]}).splitlines()[2:] == [
        "| step | copy | **2** | 2 | 1 |"
    ]


def test_readme_optimizers_table():
    rows = [
        ROW.to_json() | {"family": "optim", "name": name, "sizes": size, "baseline": baseline}
        for name, size, baseline in (("A", "8", "own"), ("A", "8", "fused"), ("A", "9", "fused"))
    ]
    assert readme.optimizers_table({"rows": []}) == ""
    assert readme.optimizers_table({"rows": rows}).splitlines() == [
        "| step | compared with | 8, float32 | 9, float32 |",
        "|---|---|---|---|",
        "| A | own | **2** of 2 |  |",
        "| A | fused | **2** of 2 | **2** of 2 |",
    ]


def test_tasks_that_share_a_process():
    tasks = [Task(name, int, alone=name in "abd") for name in "abCCdE"]
    assert ["".join(t.name for t in batch) for batch in batches(tasks)] == [
        "a",
        "b",
        "CC",
        "d",
        "E",
    ]


def test_readme_shows_the_recorded_results():
    (recorded,) = (ROOT / "benchmarks/results").glob("*.json")
    results = json.loads(recorded.read_text())
    text = (ROOT / "README.md").read_text()
    assert readme.table(results) in text
    assert readme.calls_table(results) in text
    assert readme.optimizers_table(results) in text
    assert readme.models_table(results) in text
