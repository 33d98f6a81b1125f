"""python -m torchcalc demo: its files, its figures, and the claim that it makes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

for package in ("sklearn", "matplotlib", "rich"):
    pytest.importorskip(package)

from sklearn.datasets import load_digits  # noqa: E402

from torchcalc.cli.demo import digits, models, training  # noqa: E402
from torchcalc.cli.main import main  # noqa: E402
from torchcalc.sparsity import compact  # noqa: E402

pytestmark = pytest.mark.no_kernels

ROOT = Path(__file__).resolve().parent.parent
SIZE = {"hidden_neurons", "parameters", "bytes", "ms_per_batch"}
FIGURES = {"accuracy", "zero_fraction", *SIZE, "ms_per_step", "saved_bytes_per_step"}
TRAINED = ("dense", "sparse", "group_sparse")
MODELS = (*TRAINED, "compacted")
FILES = ("report.json", "sparse.pt", "compacted.pt", "compacted.png", "training.png", "weights.png")
OPTIONS = (
    "--out",
    "--seeds",
    "--steps",
    "--batch-size",
    "--lr",
    "--lam",
    "--group-lam",
    "--device",
)
FORMATTING = ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE")  # rich obeys them
LAYERS = ((64, 256), (256, 256), (256, 10))


@pytest.fixture(scope="module")
def short(tmp_path_factory):
    """(stdout, stderr, folder) of a short run in a process of its own, into a new folder."""
    out = tmp_path_factory.mktemp("demo") / "new" / "[bold]folder"
    command = [sys.executable, "-W", "error", "-m", "torchcalc", "demo", "--steps", "60"]
    strong = ["--group-lam", "0.01"]  # so that neurons die in so few steps
    done = subprocess.run(
        [*command, *strong, "--seeds", "5", "--out", str(out)],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if name not in FORMATTING},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr, out


def saved_bytes(model: str, batch_size: int) -> int:
    """By hand, for float32 on the CPU."""
    hidden, number = 256, 4
    x = 64 * number
    layer = {
        # what GELU keeps (z), dropout's mask of floats, what the next Linear keeps (y)
        "dense": 3 * hidden * number,
        # z, and y for the next layer
        "sparse": 2 * hidden * number,
        "group_sparse": 2 * hidden * number,
    }[model]
    loss = 10 * number + 8  # log-probabilities and labels
    whole_batch = number  # the weight of all labels together
    seeds = 0 if model == "dense" else 2 * 8
    return batch_size * (x + 2 * layer + loss) + whole_batch + seeds


def test_files(short):
    _, _, out = short
    assert {path.name for path in out.iterdir()} == set(FILES)
    for picture in ("compacted.png", "training.png", "weights.png"):
        content = (out / picture).read_bytes()
        assert content.startswith(b"\x89PNG")
        width, height = (int.from_bytes(content[k : k + 4], "big") for k in (16, 20))
        assert width > 1000
        assert height > 500


def test_report(short):
    report = json.loads((short[2] / "report.json").read_text())
    others = {"seeds", "settings", "inference_batch", "architecture", "per_seed"}
    assert report.keys() == {*MODELS, *others}
    assert report["seeds"] == [5]
    assert report["settings"]["steps"] == 60
    for model in TRAINED:
        figures = report[model]
        assert figures.keys() == FIGURES
        assert 0.3 < figures["accuracy"] <= 1  # ten digits: 0.1 is chance
        assert figures["ms_per_step"] > 0
        assert figures["saved_bytes_per_step"] == saved_bytes(model, 128)
        assert figures["ms_per_batch"] > 0
        assert figures["parameters"] == sum((k + 1) * n for k, n in LAYERS)
        assert figures["bytes"] == 4 * figures["parameters"]
    assert report["dense"]["zero_fraction"] == 0
    assert 0 < report["sparse"]["zero_fraction"] < 1
    compacted, widths = report["compacted"], report["architecture"]["widths"]
    assert compacted.keys() == {"accuracy", "zero_fraction", *SIZE}
    assert compacted["hidden_neurons"] == sum(widths[1:-1]) < 512
    assert compacted["parameters"] == sum((k + 1) * n for k, n in pairwise(widths))
    assert compacted["accuracy"] == pytest.approx(report["group_sparse"]["accuracy"], abs=0.003)


def test_compacted_loads_by_its_report(short):
    report = json.loads((short[2] / "report.json").read_text())
    model = models.sparse(report["architecture"]["widths"])
    model.load_state_dict(torch.load(short[2] / "compacted.pt", weights_only=True))
    _, test_set = digits.load(torch.device("cpu"))
    assert training.accuracy(model, test_set) == report["compacted"]["accuracy"]


def test_compacted_computes_the_same():
    torch.manual_seed(0)
    model = models.sparse_like(models.dense())
    data = digits.load(torch.device("cpu"))
    order = digits.batches(len(data[0].y), steps=60, batch_size=128, seed=0)
    optimizer = models.group_optimizer(model, lr=2e-3, lam=0.01)
    training.train(model, optimizer, data, order, 0, lambda steps: None)
    smaller = compact(model)
    assert sum(models.widths(smaller)) < sum(models.widths(model))
    with torch.no_grad():
        of_both = [each.eval()(data[1].x) for each in (model, smaller)]
    torch.testing.assert_close(*of_both, rtol=1e-4, atol=1e-4)
    rows, columns = ((w == 0).all(1 - d) for w, d in ((model[0].weight, 0), (model[1].weight, 1)))
    assert rows.any() or columns.any()  # whole neurons


def test_state_dict_gives_the_report(short):
    """Accuracy and zeros again from sparse.pt alone, in plain PyTorch."""
    state = torch.load(short[2] / "sparse.pt", weights_only=True)
    matrices = [state[f"{layer}.weight"] for layer in range(3)]
    biases = [state[f"{layer}.bias"] for layer in range(3)]
    assert [tuple(w.shape) for w in matrices] == [(n, k) for k, n in LAYERS]
    _, test_set = digits.load(torch.device("cpu"))
    x = test_set.x
    for weight, bias in zip(matrices[:-1], biases, strict=False):
        x = F.gelu(F.linear(x, weight, bias))
    named = F.linear(x, matrices[-1], biases[-1]).argmax(1)
    sparse = json.loads((short[2] / "report.json").read_text())["sparse"]
    assert sparse["accuracy"] == pytest.approx((named == test_set.y).double().mean().item())
    zeros = sum((w == 0).sum().item() for w in matrices)
    assert sparse["zero_fraction"] == pytest.approx(zeros / sum(w.numel() for w in matrices))


def test_output_for_a_pipe(short):
    stdout, stderr, out = short
    assert stderr == ""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", stdout), "control characters"
    report = json.loads((out / "report.json").read_text())
    for label, texts in {
        "test accuracy": [f"{report[m]['accuracy']:.1%}" for m in MODELS],
        "exactly zero weights": [f"{report[m]['zero_fraction']:.1%}" for m in MODELS],
        "hidden neurons": [f"{report[m]['hidden_neurons']}" for m in MODELS],
        "parameters": [f"{report[m]['parameters']:,}" for m in MODELS],
        "size (bytes)": [f"{report[m]['bytes']:,}" for m in MODELS],
        "inference (ms per 1024)": [f"{report[m]['ms_per_batch']:.2f}" for m in MODELS],
        "training (ms per step)": [f"{report[m]['ms_per_step']:.2f}" for m in TRAINED] + ["-"],
        "saved for backward (bytes)": ["825,348", "563,220", "563,220", "-"],
    }.items():
        (line,) = (line for line in stdout.splitlines() if label in line)
        assert re.findall(r"[\d.,]+%?|-", line.split(label)[1]) == texts
    (head,) = (line for line in stdout.splitlines() if "dense" in line)
    assert re.findall(r"[\w-]+", head) == ["dense", "L1", "group-sparse", "compacted"]
    for name in FILES:
        assert str(out / name) in stdout


def test_help(capsys):
    with pytest.raises(SystemExit) as done:
        main(["demo", "--help"])
    assert done.value.code == 0
    text = capsys.readouterr().out
    described = dict(re.findall(r"^  (--[a-z-]+) .*?\(default:\s+(.*?)\)", text, re.S | re.M))
    assert described == dict(
        zip(
            OPTIONS,
            ("runs/demo", "0 1 2", "3000", "128", "0.002", "0.0005", "0.003", "cpu"),
            strict=True,
        )
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "--steps: must be an integer >= 1, got '0'"),
        (["--steps", "many"], "--steps: must be an integer >= 1, got 'many'"),
        (["--batch-size", "-1"], "--batch-size: must be an integer >= 1, got '-1'"),
        (["--lr", "0"], "--lr: must be a finite number > 0, got '0'"),
        (["--lr", "nan"], "--lr: must be a finite number > 0, got 'nan'"),
        (["--lam=-1e-3"], "--lam: must be a finite number >= 0, got '-1e-3'"),
        (["--lam", "inf"], "--lam: must be a finite number >= 0, got 'inf'"),
        (["--seeds"], "--seeds: expected at least one argument"),
        (["--seeds", "1", "-2"], "--seeds: must be an integer in [0, 2^63), got '-2'"),
        (["--seeds", "1", "2", "1"], "--seeds: names a seed twice"),
        (["--device", "abacus"], "--device: must be cpu, cuda or cuda:N, got 'abacus'"),
        (["--device", "meta"], "--device: must be cpu, cuda or cuda:N, got 'meta'"),
        (["--out", __file__], f"--out: [Errno 17] File exists: '{__file__}'"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and len(value[0]) < 9 else "",
)
def test_bad_arguments(capsys, arguments, message):
    with pytest.raises(SystemExit) as done:
        main(["demo", *arguments])
    assert done.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].endswith(message)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_cuda(capsys):
    with pytest.raises(SystemExit):
        main(["demo", "--device", "cuda"])
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(f"--device: 'cuda': torch {torch.__version__} finds no CUDA here")


@pytest.mark.parametrize("module", ["sklearn", "matplotlib", "rich"])
def test_missing_package(module, tmp_path):
    code = (
        f"import sys; sys.modules[{module!r}] = None\n"
        "from torchcalc.cli.main import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "demo", "--out", str(tmp_path / "out")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert done.stderr == f"the demo needs {module}: pip install torchcalc[demo]\n"
    assert not (tmp_path / "out").exists()


def test_split():
    train_set, test_set = digits.load(torch.device("cpu"))
    assert (len(train_set.y), len(test_set.y)) == (1347, 450)
    x = torch.cat((train_set.x, test_set.x))
    pixels = torch.as_tensor(load_digits().data, dtype=torch.float32)
    assert x.min() == 0
    assert x.max() == 1
    assert sorted((16 * x).tolist()) == sorted(pixels.tolist())  # each digit in one of them, once
    shares = torch.bincount(test_set.y) / torch.bincount(torch.cat((train_set.y, test_set.y)))
    assert shares.min() > 0.24
    assert shares.max() < 0.26
    again = digits.load(torch.device("cpu"))
    assert torch.equal(again[1].x, test_set.x)


def test_batches():
    order = digits.batches(n=10, steps=7, batch_size=4, seed=1)
    assert order.shape == (7, 4)
    for epoch in order.flatten()[:20].split(10):
        assert sorted(epoch.tolist()) == list(range(10))
    assert torch.equal(order, digits.batches(10, 7, 4, 1))
    assert not torch.equal(order, digits.batches(10, 7, 4, 2))


def test_same_start():
    dense = models.dense()
    sparse = models.sparse_like(dense)
    x = torch.rand(5, 64)
    torch.testing.assert_close(sparse.eval()(x), dense.eval()(x))
    with torch.no_grad():
        next(sparse.parameters()).zero_()
    assert next(dense.parameters()).abs().sum() > 0, "the models share parameters"


@pytest.mark.parametrize("batch_size", [1, 7, 128])
def test_saved_bytes(batch_size):
    dense = models.dense()
    x, y = torch.rand(batch_size, 64), torch.zeros(batch_size, dtype=torch.int64)
    assert training.saved_bytes(dense, x, y) == saved_bytes("dense", batch_size)
    sparse = models.sparse_like(dense)
    assert training.saved_bytes(sparse, x, y) == saved_bytes("sparse", batch_size)


@pytest.mark.parametrize(
    "options",
    [["--lr", "1e30"], ["--lam", "1e30", "--group-lam", "1e30"], ["--batch-size", "2000"]],
)
def test_extreme_options(options, tmp_path):
    """Weights that are all NaN or all zero are still written, drawn and reported."""
    assert main(["demo", "--steps", "3", "--seeds", "0", "--out", str(tmp_path), *options]) == 0
    assert (tmp_path / "weights.png").exists()


@pytest.mark.slow
def test_claim(tmp_path, capsys):
    """Accuracies within one point of the dense model's: the defaults, three seeds.

    With L1 90 % of the weights are exactly zero; the compacted model is half as large, and faster.
    """
    threads = torch.get_num_threads()
    assert main(["demo", "--out", str(tmp_path)]) == 0
    assert torch.get_num_threads() == threads
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["seeds"] == [0, 1, 2]
    assert report["sparse"]["zero_fraction"] >= 0.9
    assert report["sparse"]["accuracy"] >= report["dense"]["accuracy"] - 0.01
    assert report["compacted"]["accuracy"] >= report["dense"]["accuracy"] - 0.01
    assert report["compacted"]["bytes"] <= report["dense"]["bytes"] / 2
    assert report["compacted"]["ms_per_batch"] < report["dense"]["ms_per_batch"]
    for model in MODELS:
        for key, mean in report[model].items():
            of_seeds = [figures[key] for figures in report["per_seed"][model]]
            assert mean == pytest.approx(sum(of_seeds) / 3)
    # sparse.pt is of the first seed.
    state = torch.load(tmp_path / "sparse.pt", weights_only=True)
    zeros = torch.cat([w.flatten() == 0 for name, w in state.items() if name.endswith("weight")])
    expected = report["per_seed"]["sparse"][0]["zero_fraction"]
    assert zeros.double().mean().item() == pytest.approx(expected)
