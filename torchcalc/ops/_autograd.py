"""How an op carries its derivative: one mechanism, which every family goes through.

``register`` puts a derivative under an op's dispatch key Autograd. So eager mode, functorch,
Dynamo, export and tensor subclasses all see one op with one meaning, and nothing asks who is
looking. The callable that it returns takes a short cut where that means the same: it enters the
derivative, or the op below autograd where nothing is recorded, without a way through the dispatcher
and Python.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _functorch
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad

Outputs = Tensor | tuple[Tensor, ...]

_C = torch._C
_KERNELS = torch.library.Library("torchcalc", "IMPL")  # type: ignore[no-untyped-call]
_AUTOGRAD = _C.DispatchKey.AutogradCPU  # excluded together with those of all other devices

# Where the dispatcher has nothing but autograd to do: plain tensors, and in the thread's state what
# it starts with, so no mode, no tracing and no functorch transform.
_PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None), bool, int, float, list, tuple})
_QUIET = (
    _C.DispatchKeySet(_C.DispatchKey.BackendSelect).add(_C.DispatchKey.ADInplaceOrView).raw_repr()
)


def _is_quiet(args: tuple[Any, ...]) -> bool:
    return (
        _PLAIN.issuperset(map(type, args))
        and _C._dispatch_tls_local_include_set().raw_repr() == _QUIET
        and not _C._is_torch_function_mode_enabled()
    )


def _is_recorded(args: tuple[Any, ...]) -> bool:
    """Whether autograd has anything to do; known for sure only where it is quiet."""
    return forward_ad._current_level >= 0 or (
        torch.is_grad_enabled() and _C._any_requires_grad(*args)
    )


def native(name: str) -> Any:
    """The op, with no more than the dispatcher around it."""
    return getattr(torch.ops.torchcalc, name).default._op


def below(op: Callable[..., Any], *args: Any) -> Any:
    """What the op does below autograd; how a Function's forward calls it."""
    if _C._are_functorch_transforms_active():
        # A Function's forward runs with both modes off for the levels of all transforms; at the
        # outer ones the op is still to be recorded, or nested transforms are silently wrong.
        with (
            torch.enable_grad(),
            forward_ad._set_fwd_grad_enabled(True),
            _C._AutoDispatchBelowAutograd(),
        ):
            return op(*args)
    with _C._AutoDispatchBelowAutograd():
        return op(*args)


NATIVE = {"cpu", "meta"}  # device types with kernels; meta's are the fake ones


def register(
    name: str, derivative: Callable[..., Any], reference: Callable[..., Any] | None = None
) -> Callable[..., Any]:
    """Makes ``derivative(*args)``, the op's value as autograd sees it, the op's derivative.

    Args:
        name: of the op, in ``torch.ops.torchcalc``.
        derivative: a ``Function``'s ``record``, or a function made of differentiable ops.
        reference: the op in plain PyTorch, which runs, and is differentiated, on devices without
            kernels. The op's first argument is a tensor then.

    Returns:
        The op, to be called by the rest of torchcalc.
    """
    overload = getattr(torch.ops.torchcalc, name).default
    op = native(name)

    def record(*args: Any) -> Any:
        if reference is not None and args[0].device.type not in NATIVE:
            return reference(*args)
        return derivative(*args)

    def autograd_kernel(*args: Any) -> Any:
        # The graphs that torch.compile makes come through here, mostly with nothing to record.
        if _is_quiet(args) and not _is_recorded(args):
            with _C._AutoDispatchBelowAutograd():
                return op(*args)
        return record(*args)

    implement(name, autograd_kernel, "Autograd")
    if reference is not None:
        implement(name, reference, "CompositeExplicitAutograd")

    def call(*args: Any) -> Any:
        if torch.compiler.is_dynamo_compiling():  # a constant to Dynamo, in its own frames only
            return overload(*args)
        if not _is_quiet(args):
            return op(*args)
        if not _is_recorded(args):
            with _C._AutoDispatchBelowAutograd():
                return op(*args)
        if _C._dispatch_tls_is_dispatch_key_excluded(_AUTOGRAD):
            return op(*args)
        return record(*args)

    return call


def implement(name: str, kernel: Callable[..., Any], key: str) -> None:
    """A kernel in Python, for a dispatch key."""
    _KERNELS.impl(name, kernel, key)  # type: ignore[no-untyped-call]


def register_vmap(name: str, rule: Callable[..., Any]) -> None:
    """``rule(info, in_dims, *args)`` as for ``torch.library.register_vmap``."""
    torch.library.register_vmap(f"torchcalc::{name}", rule, lib=_KERNELS)


class Function(torch.autograd.Function):
    """``forward(ctx, *args)``, ``backward`` and ``tangents(ctx, saved, *tangents)``.

    ``tangents`` is the forward-mode rule, ``saved`` what ``ctx.save_for_forward`` was given. All
    three call ops. ``record`` applies the Function: as ``apply``, but without what that does for
    Functions that have a ``setup_context`` or are to be transformed themselves; here the ops are.
    """

    record: Callable[..., Any]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.jvp = staticmethod(_as_jvp(cls.__dict__["tangents"].__func__))  # type: ignore[method-assign]
        apply = super(torch.autograd.Function, cls).apply  # type: ignore[misc]

        def record(*args: Any) -> Any:
            if _C._are_functorch_transforms_active():
                with enable_single_level_autograd_function():
                    return apply(*args)
            return apply(*args)

        cls.record = staticmethod(record)


def _as_jvp(rule: Callable[..., Any]) -> Callable[..., Any]:
    # torch calls jvp with forward mode off, for the levels of all transforms: what a rule computes
    # with plain operations would lose the outer levels' tangents and silently be 0. So there
    # forward mode is on in here, and this level's tangents are taken off instead.
    def primal(t: Any) -> Any:
        # The number of the level: each transform has one of its own, and that is its only one.
        return torch.ops.aten._fw_primal(t, 0) if isinstance(t, Tensor) else t

    def jvp(ctx: Any, *tangents: Any) -> Any:
        # Under vmap alone there are no outer levels, and no batching rule for _fw_primal.
        interpreter = _functorch.peek_interpreter_stack()
        if interpreter is None or interpreter.key() == _functorch.TransformType.Vmap:
            return rule(ctx, ctx.saved_for_forward, *tangents)
        with forward_ad._set_fwd_grad_enabled(True):
            saved = tuple(map(primal, ctx.saved_for_forward))
            return rule(ctx, saved, *map(primal, tangents))

    return jvp


def vmap_by_loop(
    function: Callable[..., Outputs], info: Any, in_dims: Sequence[int | None], args: Sequence[Any]
) -> tuple[Outputs, int | tuple[int, ...]]:
    """A vmap rule: one sample after the other, results stacked in front."""

    def sample(b: int) -> Outputs:
        pairs = zip(args, in_dims, strict=True)
        return function(*(a.select(d, b) if isinstance(d, int) else a for a, d in pairs))

    size = info.batch_size
    if size == 0:  # a sample of zeros tells the shapes
        args = tuple(
            a.new_zeros([1 if i == d else n for i, n in enumerate(a.shape)])
            if isinstance(d, int)
            else a
            for a, d in zip(args, in_dims, strict=True)
        )
    results = [sample(b) for b in range(max(size, 1))]
    if isinstance(results[0], Tensor):
        return torch.stack(results)[:size], 0  # type: ignore[arg-type]
    stacked = tuple(torch.stack(parts)[:size] for parts in zip(*results, strict=True))
    return stacked, (0,) * len(stacked)


def in_front(t: Tensor | None, dim: int | None, size: int) -> Tensor | None:
    """A vmapped tensor with its batch dimension first, expanded where it has none."""
    if t is None:
        return None
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
