"""python -m torchcalc check: the derivatives of every op against finite differences."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from torchcalc import ops
from torchcalc.testing import OPS, Op, Sample

Inputs = tuple[Tensor, ...]


def _gradcheck(call: Callable[..., Tensor], inputs: Inputs) -> None:
    gradcheck(call, inputs)


def _gradgradcheck(call: Callable[..., Tensor], inputs: Inputs) -> None:
    gradgradcheck(call, inputs, check_fwd_over_rev=True)


def _forward_ad(call: Callable[..., Tensor], inputs: Inputs) -> None:
    gradcheck(call, inputs, check_forward_ad=True, check_backward_ad=False)


# By the op table's names for them. Each raises where a derivative is wrong.
MODES = {"gradcheck": _gradcheck, "gradgradcheck": _gradgradcheck, "forward AD": _forward_ad}


def select(names: Sequence[str] | None) -> list[Op]:
    """The ops of these names; linear_act stands for linear_act[gelu] and its likes, too."""
    if names is None:
        return OPS
    for name in names:
        if not any(_named(op, name) for op in OPS):
            raise ValueError(f"must be one of {', '.join(op.name for op in OPS)}, got {name!r}")
    return [op for op in OPS if any(_named(op, name) for name in names)]


def _named(op: Op, name: str) -> bool:
    return name in (op.name, op.name.partition("[")[0])


def run(chosen: Sequence[Op], device: torch.device | None) -> int:
    """Prints the table cell by cell, as results come; returns 1 if anything fails, else 0."""
    start = time.perf_counter()
    width = max(len(op.name) for op in chosen) + 2
    print(f"{'op':<{width}}{'device':<8}" + "".join(f"{mode:<16}" for mode in MODES).rstrip())
    failures: list[str] = []
    skipped: dict[str, list[str]] = {}  # reason -> ops
    for op in chosen:
        for place in _devices() if device is None else [device]:
            print(f"{op.name:<{width}}{place!s:<8}", end="", flush=True)
            for mode, derivatives in MODES.items():
                if mode in op.skip:
                    result = "not applicable"
                    skipped.setdefault(op.skip[mode], []).append(op.name)
                else:
                    errors = _errors(op, derivatives, place)
                    failures += [f"{op.name} on {place}, {mode}, {error}" for error in errors]
                    result = "fail" if errors else "pass"
                print(f"{result:<16}" if mode != list(MODES)[-1] else result, end="", flush=True)
            print()
    print()
    for reason, names in skipped.items():
        print(f"not applicable to {', '.join(dict.fromkeys(names))}: {reason}")
    for failure in failures:
        print(f"FAIL {failure}")
    number = f"{len(chosen)} op{'s' if len(chosen) > 1 else ''}"
    verdict = f"{len(failures)} failures" if failures else "all derivatives are right"
    print(f"{verdict} ({number}, float64, {time.perf_counter() - start:.0f} s)")
    return 1 if failures else 0


def _devices() -> list[torch.device]:
    here = [torch.device("cpu")]
    if torch.cuda.is_available() and ops.is_native(torch.device("cuda")):
        here.append(torch.device("cuda"))
    return here


def _errors(
    op: Op, derivatives: Callable[[Callable[..., Tensor], Inputs], None], device: torch.device
) -> list[str]:
    """One line for each sample that fails."""
    errors = []
    for sample in op.samples(device, torch.float64):
        try:
            derivatives(sample.call, _leaves(sample))
        except Exception as error:  # whatever a broken kernel raises is a failure of its row
            first_line = str(error).strip().partition("\n")[0]
            errors.append(f"sample {sample.name!r}: {type(error).__name__}: {first_line}")
    return errors


def _leaves(sample: Sample) -> Inputs:
    return tuple(t.clone().requires_grad_() for t in sample.inputs)
