"""The steps of tools/torch_versions.py, with the torch at hand: it needs no network for them."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import torchcalc

pytestmark = pytest.mark.no_kernels

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "tools/torch_versions.py"
ROW = ("2.10.0", "2.13.0")


@pytest.fixture(scope="module")
def tool():
    return runpy.run_path(str(SCRIPT))


def test_help():
    done = subprocess.run([sys.executable, SCRIPT, "--help"], capture_output=True, text=True)
    assert done.returncode == 0
    assert "--compile-only" in done.stdout


def load(tool, report, library, place):
    tool["load"](report, ROW, sys.executable, {"_C": library}, place, False, False)
    return report.rows[ROW]


@pytest.mark.slow
def test_a_binary_that_runs(tool, tmp_path):
    report = tool["Report"]()
    library = Path(torchcalc.ops._library._C.__file__)
    cells = load(tool, report, library, tmp_path)
    assert cells == {"_C loads": "yes", "check": "yes", "compile": "yes"}
    assert not report.failed()


def test_a_binary_that_does_not_load(tool, tmp_path, capsys):
    library = tmp_path / "broken.so"
    library.write_bytes(b"")
    report = tool["Report"]()
    assert load(tool, report, library, tmp_path / "package") == {"_C loads": "NO"}
    assert report.failed()
    assert "torchcalc's kernels do not load" in capsys.readouterr().out


def test_the_table_shows_every_row(tool):
    report = tool["Report"]()
    assert report.failed()  # nothing tried is nothing shown
    report.note(ROW, "check", "yes")
    report.note(("2.11.0", "2.11.0"), "_cuda loads", tool["OTHER_CUDA"])
    assert not report.failed()
    head, _, first, second = report.table().splitlines()
    assert first[head.index("check") :].startswith("yes ")
    assert second[head.index("_cuda loads") :].startswith("other CUDA ")


def test_a_wheel_in_the_cache_is_not_fetched_again(tool, tmp_path, monkeypatch):
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    wheel = tmp_path / f"torch-2.10.0-3-{tag}-{tag}-manylinux_2_28_x86_64.whl"
    wheel.touch()
    (tmp_path / f"torch-2.10.01-{tag}-{tag}-any.whl").touch()
    monkeypatch.setitem(tool["wheel_of"].__globals__, "run", None)
    assert tool["wheel_of"]("2.10.0", tmp_path) == wheel


@pytest.mark.parametrize(("cuda", "major"), [("12.8", "12"), (None, None)])
def test_the_cuda_of_a_torch(tool, tmp_path, cuda, major):
    (tmp_path / "version.py").write_text(f"cuda = {cuda!r}")
    assert tool["cuda_major"](tmp_path) == major
