"""The benchmarks run, and compute from what they record what they say."""

import json
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # benchmarks is part of the checkout, not of the package

from benchmarks import readme, report  # noqa: E402
from benchmarks.__main__ import main  # noqa: E402
from benchmarks.harness import Bound, Config, Roof, Row, interleave, wall_clock  # noqa: E402
from benchmarks.runner import FAMILIES, run  # noqa: E402

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
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # whoever else uses the cores
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # no progress bar where there is no terminal
    (path,) = out.glob("*.json")
    return done.stdout, path, json.loads(path.read_text())


def test_result_file(quick):
    _, path, results = quick
    keys = "date torch torchcalc commit python device cpu cores threads gpu rows"
    assert list(results) == keys.split()
    assert results["torch"] == torch.__version__
    assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert {row["family"] for row in results["rows"]} == set(FAMILIES)
    keys = "family name sizes dtype unit baseline must aim passed roof contenders"
    for row in results["rows"]:
        assert list(row) == keys.split()
        assert "torchcalc" in row["contenders"]


def test_figures_follow_from_the_rounds(quick):
    for row in quick[2]["rows"]:
        contenders = row["contenders"]
        for contender in contenders.values():
            rounds = contender["rounds"]
            assert len(rounds) == (3 if row["unit"] == "ms" else 1)
            assert contender["median"] == median(rounds)
            if row["baseline"]:
                others = contenders[row["baseline"]]["rounds"]
                pairs = zip(rounds, others, strict=True)
                assert contender["ratio"] == median(own / other for own, other in pairs)


def test_tables(quick):
    for family in FAMILIES:
        assert f"\n{family}" in "\n" + quick[0]
    assert "2 of 2 bounds are met." in quick[0]


def test_saved_bytes_each_row_in_its_own_process():
    results = run(Config(torch.device("cpu"), repeats=1, compile=False), ["memory"])
    saved = {row.name: row.rounds for row in results["memory"]}
    assert saved == {
        "gelu + dropout": {"eager": [12.0], "torchcalc": [8.0]},
        "relu + dropout": {"eager": [12.0], "torchcalc": [4.0]},
    }


def test_without_rich_and_matplotlib(monkeypatch, capsys, tmp_path):
    for module in ("rich", "matplotlib"):
        monkeypatch.setitem(sys.modules, module, None)  # importing it fails
    main(["memory", "--quick", "--out", str(tmp_path)])
    assert "No plot: matplotlib is not installed." in capsys.readouterr().out
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_a_partial_or_quick_run_is_not_recorded(capsys):
    main(["memory", "--quick"])
    assert capsys.readouterr().out.splitlines()[-1].startswith("Not written")


@pytest.mark.parametrize("args", [["nonsense"], ["--repeats", "0"], ["--repeats", "x"]])
def test_bad_arguments(args, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(args)
    assert args[-1] in capsys.readouterr().err.splitlines()[-1]


def test_interleaving():
    order = []
    ticks = iter(range(100))

    def clock(contender):
        contender()
        return float(next(ticks))

    contenders = {name: lambda name=name: order.append(name) for name in "abc"}
    times = interleave(contenders, 3, clock)
    assert "".join(order) == "abc" + "cba" + "abc"
    assert times == {"a": [0, 5, 6], "b": [1, 4, 7], "c": [2, 3, 8]}


def test_outputs_are_freed_after_the_clock_stops(monkeypatch):
    now = [0.0]

    class Output:
        def __del__(self):
            now[0] += 100.0

    def contender():
        now[0] += 0.25
        return Output()

    monkeypatch.setattr("benchmarks.harness.time.perf_counter", lambda: now[0])
    assert wall_clock(contender) == 250.0
    assert now[0] == 100.25


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
        "1 of 2 bounds are met.",
    ]


def test_readme_shows_the_recorded_results():
    results = json.loads((ROOT / "benchmarks/results/amd-epyc-2-cores.json").read_text())
    assert readme.table(results) in (ROOT / "README.md").read_text()
