"""Parameter groups from rules on parameters' names."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch

from torchcalc.prox import Penalty


def groups(model: torch.nn.Module, rules: Mapping[str, Penalty | None]) -> list[dict[str, Any]]:
    """One parameter group for each rule, a glob on parameters' names and the penalty it brings.

    The first rule that matches a name wins.

    Args:
        model: whose ``named_parameters()`` are grouped.
        rules: for example ``{"*.weight": torchcalc.prox.L1(1e-4), "*.bias": None}``.

    Returns:
        The groups, in the order of the rules, to pass to an optimizer of ``torchcalc.optim``.

    Raises:
        ValueError: a rule matches no parameter, or a parameter is matched by no rule.
        TypeError: a rule's value is neither a penalty nor None.
    """
    for pattern, penalty in rules.items():
        if penalty is not None and not isinstance(penalty, Penalty):
            raise TypeError(
                f"groups: penalty of rule {pattern!r} must be a torchcalc.prox penalty or None, "
                f"got {penalty!r}"
            )
    members: dict[str, list[torch.nn.Parameter]] = {pattern: [] for pattern in rules}
    matched = set()
    seen = set()
    for name, parameter in model.named_parameters(remove_duplicate=False):
        hits = [pattern for pattern in rules if fnmatchcase(name, pattern)]
        if not hits:
            raise ValueError(
                f"groups: parameter {name!r} is matched by no rule; rules are {list(rules)}"
            )
        matched.update(hits)
        if parameter not in seen:  # a shared parameter goes by its first name
            seen.add(parameter)
            members[hits[0]].append(parameter)
    for pattern in rules:
        if pattern not in matched:
            raise ValueError(f"groups: rule {pattern!r} matches no parameter")
    return [
        {"params": members[pattern], "penalty": penalty}
        for pattern, penalty in rules.items()
        if members[pattern]
    ]
