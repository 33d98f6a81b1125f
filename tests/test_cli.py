"""python -m torchcalc: help, --version, info and check."""

from __future__ import annotations

import importlib.util
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import torchcalc
from torchcalc import _C
from torchcalc.cli import check
from torchcalc.cli.main import main
from torchcalc.testing import OPS, Op, Sample

pytestmark = pytest.mark.no_kernels

ROOT = Path(__file__).resolve().parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help(arguments):
    done = run("-m", "torchcalc", *arguments)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: python -m torchcalc")
    for command in ("demo", "features", "info", "fuse", "check"):
        assert f"    {command} " in done.stdout


def test_version(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--version"])
    assert done.value.code == 0
    assert capsys.readouterr().out == f"torchcalc {torchcalc.__version__}\n"


def test_unknown_command(capsys):
    with pytest.raises(SystemExit) as done:
        main(["frobnicate"])
    assert done.value.code == 2
    assert "invalid choice: 'frobnicate'" in capsys.readouterr().err


def test_import_is_lean():
    unwanted = [
        "torchcalc.cli",
        "torchcalc.testing",
        "torchcalc.fusion",
        "sklearn",
        "matplotlib",
        "rich",
    ]
    code = f"import sys, torchcalc; print([m for m in {unwanted} if m in sys.modules])"
    assert run("-c", code).stdout == "[]\n"


def test_info_needs_no_extras():
    code = (
        "import sys\n"
        "for name in ('rich', 'sklearn', 'matplotlib'): sys.modules[name] = None\n"
        "from torchcalc.cli.main import main; sys.exit(main(['info']))"
    )
    done = run("-c", code)
    assert done.returncode == 0, done.stderr
    facts = {line[:20].strip(): line[20:] for line in done.stdout.splitlines()}
    assert facts["torchcalc"] == torchcalc.__version__
    assert facts["torch"].startswith(torch.__version__)
    assert facts["python"].startswith(platform.python_version())
    assert facts["compiler"] == _C.build_info()["compiler"]
    assert facts["SIMD"] == _C.cpu_capability()
    assert facts["CUDA architectures"] == (_C.build_info()["cuda_archs"] or "none")
    assert "cpu" in facts["devices"]
    assert ("cuda:0" in facts["devices"]) == torch.cuda.is_available()
    library = Path(torchcalc.__file__).parent / "_cuda.so"
    assert facts["CUDA kernels"].startswith("not built") != library.exists()


def test_check_one_op(capsys):
    assert main(["check", "--op", "soft_threshold", "--device", "cpu"]) == 0
    head, row, *rest = capsys.readouterr().out.splitlines()
    assert head.split(maxsplit=4) == ["op", "device", "gradcheck", "gradgradcheck", "forward AD"]
    assert row.split() == ["soft_threshold", "cpu", "pass", "pass", "pass"]
    assert rest[-1].startswith("all derivatives are right (1 op,")


def test_check_says_what_does_not_apply(capsys):
    assert main(["check", "--op", "dropout_mask"]) == 0
    out = capsys.readouterr().out
    assert out.count("not applicable") >= 4  # three cells and the reason
    (mask,) = (op for op in OPS if op.name == "dropout_mask")
    assert f"not applicable to dropout_mask: {mask.skip['gradcheck']}" in out


def test_check_selects():
    assert check.select(None) == OPS
    names = [op.name for op in check.select(["linear_act", "dropout"])]
    assert names == [op.name for op in OPS if op.name.startswith("linear_act")] + ["dropout"]
    assert [op.name for op in check.select(["linear_act[silu]"])] == ["linear_act[silu]"]


def test_check_unknown_op(capsys):
    with pytest.raises(SystemExit) as done:
        main(["check", "--op", "gelu"])
    assert done.value.code == 2
    assert "argument --op: must be one of linear_act[identity], " in capsys.readouterr().err


class WrongGradient(torch.autograd.Function):
    """y = x^2 with dy/dx = x."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return grad * x


def test_check_finds_a_wrong_derivative(monkeypatch, capsys):
    def samples(device, dtype):
        x = torch.arange(1.0, 4.0, dtype=dtype, device=device)
        yield Sample("small", (x,), WrongGradient.apply, torch.square)

    monkeypatch.setattr(check, "OPS", [Op("wrong", samples, samples)])
    assert main(["check", "--device", "cpu"]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[1].split()[:3] == ["wrong", "cpu", "fail"]
    assert "FAIL wrong on cpu, gradcheck, sample 'small': GradcheckError: " in out
    assert "failures (1 op, " in out


@pytest.mark.slow
@pytest.mark.parametrize("model", ["sequential", "bert"])
def test_fuse_shows_report_and_times(model, capsys):
    if importlib.util.find_spec("transformers") is None and model == "bert":
        pytest.skip("transformers is not installed")
    assert main(["fuse", "--model", model, "--rounds", "2"]) == 0
    printed = capsys.readouterr().out
    assert "Fused, " in printed
    assert "Left as they are, " in printed
    assert "  after / before: " in printed


def test_fuse_says_what_is_missing(capsys, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert main(["fuse", "--model", "gpt2"]) == 1
    assert capsys.readouterr().err == ("gpt2 needs transformers: pip install transformers\n")


def test_fuse_refuses_unknown_models(capsys):
    with pytest.raises(SystemExit):
        main(["fuse", "--model", "frobnicate"])
    assert "invalid choice: 'frobnicate' (choose from 'sequential'" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["fuse", "--rounds", "0"])
    assert "must be an integer >= 1" in capsys.readouterr().err
