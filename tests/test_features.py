"""python -m torchcalc features: its files, what it prints, its rule, its claim."""

from __future__ import annotations

import json
import re

import pytest
import torch

for package in ("sklearn", "matplotlib", "rich"):
    pytest.importorskip(package)

from sklearn.datasets import load_breast_cancer, load_wine  # noqa: E402

from torchcalc.cli.features import selection, tables  # noqa: E402
from torchcalc.cli.features.settings import LAMS, Settings  # noqa: E402
from torchcalc.cli.main import main  # noqa: E402

pytestmark = pytest.mark.no_kernels

SUMMARY = {"accuracy", "inputs", "jaccard", "validation_loss", "standard_error"}


def test_short_run(tmp_path, capsys):
    options = ["--data", "wine", "--seeds", "3", "7", "--steps", "150", "--lam", "0.2"]
    assert main(["features", *options, "--lr", "0.01", "--out", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    report = json.loads((tmp_path / "report.json").read_text())
    assert {"dense", "selected", "lam", "inputs", "path", "per_seed", "seeds"} <= report.keys()
    assert report["dense"].keys() == report["selected"].keys() == SUMMARY
    assert (report["lam"], report["seeds"]) == (0.2, [3, 7])
    assert [step["lam"] for step in report["path"]] == [0, 0.2]
    assert report["dense"]["inputs"] == 13
    assert report["selected"]["accuracy"] > 0.6
    names = load_wine().feature_names
    assert set(report["inputs"]) == set(names)
    printed = dict(re.findall(r"│ (\S+) +│ (\d) of 2 │", out))
    assert 0 < len(printed) < 13
    chosen = [of_seed["selected"] for of_seed in report["per_seed"]]
    for name in names:
        count = sum(name in of_seed for of_seed in chosen)
        assert report["inputs"][name]["seeds"] == count == int(printed.get(name, 0))
        assert (report["inputs"][name]["norm"] == 0) == (count == 0)
    gone = re.search(r"exactly zero in every seed: (.*)", out)[1].split(", ")
    assert set(gone) == set(names) - set(printed)
    a, b = map(set, chosen)
    assert report["selected"]["jaccard"] == pytest.approx(len(a & b) / len(a | b))
    assert (tmp_path / "features.png").read_bytes().startswith(b"\x89PNG")


def test_split():
    table = tables.load("breast_cancer")
    assert table.names == tuple(load_breast_cancer().feature_names)
    train, validation, test = tables.split(table, seed=1)
    assert [len(part.y) for part in (train, validation, test)] == [340, 86, 143]
    torch.testing.assert_close(train.x.mean(0), torch.zeros(30), atol=1e-5, rtol=0)
    torch.testing.assert_close(train.x.std(0, correction=0), torch.ones(30))
    assert validation.x.mean(0).abs().max() > 0.01  # by the training rows' mean
    other = tables.split(table, seed=2)
    assert torch.equal(other[2].y, test.y)
    assert not torch.equal(other[0].x[:86], train.x[:86])


def test_unneeded_input():
    """Of two inputs, one tells the class and one is noise."""
    torch.manual_seed(0)
    x = torch.randn(200, 2)
    part = tables.Part(x, (x[:, 1] > 0).long())
    settings = Settings(steps=200, lr=0.01)
    fit = selection.fit((part, part, part), 2, 0.03, 0, settings)
    assert fit.selected == {1}
    assert fit.accuracy > 0.95
    assert selection.fit((part, part, part), 2, 0.0, 0, settings).selected == {0, 1}


def test_one_standard_error():
    losses = {0.0: [2.0, 2.0], 0.1: [0.9, 1.1], 0.2: [1.0, 1.15], 0.4: [1.2, 1.4]}
    assert selection.one_standard_error(losses) == 0.2  # the smallest is 1, its error 0.1
    assert selection.one_standard_error({0.0: [1.0], 0.1: [2.0]}) == 0


def test_jaccard():
    a, b, empty = frozenset({1, 2}), frozenset({2, 3}), frozenset()
    assert selection.jaccard([a, b]) == pytest.approx(1 / 3)
    assert selection.jaccard([a, a, empty]) == pytest.approx(1 / 3)
    assert selection.jaccard([empty, empty]) == selection.jaccard([a]) == 1


def test_help(capsys):
    with pytest.raises(SystemExit) as done:
        main(["features", "--help"])
    assert done.value.code == 0
    text = " ".join(capsys.readouterr().out.split())
    defaults = ("runs/features", "breast_cancer", "0 1 2 3 4", "1000", "0.002", "0.3")
    assert re.findall(r"\(default: (\S+(?: \d)*)\)", text) == list(defaults)
    assert ", ".join(f"{lam:g}" for lam in LAMS) in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data", "iris"], "--data: invalid choice: 'iris'"),
        (["--lam", "-1"], "--lam: "),
        (["--seeds", "1", "1"], "--seeds: names a seed twice"),
        (["--weight-decay", "nan"], "--weight-decay: must be a finite number >= 0, got 'nan'"),
        (["--out", __file__], "--out: [Errno 17] File exists"),
    ],
)
def test_bad_arguments(capsys, options, message):
    with pytest.raises(SystemExit) as done:
        main(["features", *options])
    assert done.value.code == 2
    assert f"argument {message}" in capsys.readouterr().err


@pytest.mark.slow
def test_claim(tmp_path):
    """The defaults: a stable third of the inputs, at most one point less accurate."""
    assert main(["features", "--out", str(tmp_path)]) == 0
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["selected"]["inputs"] <= 15
    assert report["selected"]["jaccard"] >= 0.7
    assert report["selected"]["accuracy"] >= report["dense"]["accuracy"] - 0.01
