"""How an op carries its derivative: one mechanism, which every family goes through.

``register`` puts a derivative under an op's dispatch key Autograd. So eager mode, functorch,
Dynamo, export and tensor subclasses all see one op with one meaning, and nothing asks who is
looking. The callable that it returns takes a short cut where that means the same: plain tensors,
and nobody but autograd between the call and the kernel.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch._C import _functorch
from torch.autograd import forward_ad

from torchcalc.ops import _sharding
from torchcalc.ops._library import NATIVE

Outputs = Tensor | tuple[Tensor, ...]
MaybeTensor = TypeVar("MaybeTensor", Tensor, Tensor | None)

_C = torch._C
_KERNELS = torch.library.Library("torchcalc", "IMPL")  # type: ignore[no-untyped-call]


def _keys(*keys: Any) -> Any:
    keyset = _C.DispatchKeySet(keys[0])
    for key in keys[1:]:
        keyset = keyset.add(key)
    return keyset


_Key = _C.DispatchKey
_BATCHED = _keys(_Key.FuncTorchBatched)
_AUTOGRAD = _Key.AutogradCPU  # excluded together with those of all other devices

# The thread's state where no mode, tracing or functorch transform wants to see the ops: what it
# starts with, and the same in inference mode. And arguments that are no subclass of Tensor.
_QUIET = frozenset(
    keys.raw_repr()
    for keys in (_keys(_Key.BackendSelect, _Key.ADInplaceOrView), _keys(_Key.BackendSelect))
)
_tls_included = _C._dispatch_tls_local_include_set
_is_profiler_on = _C._autograd._profiler_enabled
_PLAIN = frozenset({Tensor, torch.nn.Parameter, type(None), bool, int, float, list, tuple})


def is_quiet() -> bool:
    """Whether no mode, tracing, functorch transform or profiler sees what this thread calls."""
    return _tls_included().raw_repr() in _QUIET and not _is_profiler_on()


class Kernels:
    """The ops below autograd, as attributes: what ``how`` makes of each.

    ``save_for_forward(ctx, *tensors)`` is ``ctx.save_for_forward``, which takes its time, where
    there may be forward mode.
    """

    def __init__(self, how: Callable[[Any], Callable[..., Any]], anywhere: bool = False) -> None:
        self._how = how
        self._anywhere = anywhere

    def save_for_forward(self, ctx: Any, *tensors: Tensor | None) -> None:
        if self._anywhere or forward_ad._current_level >= 0:
            ctx.save_for_forward(*tensors)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = self._how(getattr(torch.ops.torchcalc, name).default)
        setattr(self, name, call)
        return call


def _below_autograd(op: Callable[..., Any], *args: Any) -> Any:
    try:
        if not _C._are_functorch_transforms_active():
            with _C._AutoDispatchBelowAutograd():
                return op(*args)
        # A Function's forward runs with both modes off for the levels of all transforms; at the
        # outer ones the op is still to be recorded, or nested transforms are silently wrong. (Each
        # of torch's context managers takes longer than all of this.)
        grad, forward = torch.is_grad_enabled(), _C._is_fwd_grad_enabled()
        _C._set_grad_enabled(True)
        _C._set_fwd_grad_enabled(True)
        try:
            with _C._AutoDispatchBelowAutograd():
                return op(*args)
        finally:
            _C._set_grad_enabled(grad)
            _C._set_fwd_grad_enabled(forward)
    except RuntimeError as error:
        raise_as_torch(error, args)
        raise


def _with_torchs_errors(call: Callable[..., Any], *args: Any) -> Any:
    try:
        return call(*args)
    except RuntimeError as error:
        raise_as_torch(error, args)
        raise


def raise_as_torch(error: RuntimeError, args: Sequence[Any]) -> None:
    """Where a kernel got no memory, asks torch for as much: it raises its own type and text."""
    text = str(error)
    found = re.match(r"allocating a tensor of \[((?:\d+, )*\d+)\] bytes failed", text)
    if found:
        device = next(t.device for t in args if isinstance(t, Tensor))
        try:
            torch.empty([int(n) for n in found[1].split(",")], dtype=torch.uint8, device=device)
        except RuntimeError as told:
            raise told from None
        # What the kernel had allocated before is free again.
        raise (RuntimeError if device.type == "cpu" else torch.OutOfMemoryError)(text) from None
    if re.match(r"\w.* failed: CUDA out of memory", text):  # torch's text, of 2.13 and later
        raise torch.OutOfMemoryError(text) from None


def _straight_to(backend: Any) -> Kernels:
    # Past every key but those of lazy negation and zeros, which plain tensors may have.
    keyset = _keys(backend, _Key.Negative, _Key.ZeroTensor)
    return Kernels(lambda op: partial(op._handle.redispatch_boxed, keyset))


_ANYWHERE = Kernels(lambda op: partial(_below_autograd, op._op), anywhere=True)
below_autograd = _ANYWHERE  # for functions of an op's value that need that value
_ON_CPU, _ON_CUDA = _straight_to(_Key.CPU), _straight_to(_Key.CUDA)


class Function:
    """A derivative: ``forward``, ``backward`` and ``tangents``, as static methods.

    ``forward(ctx, *args, kernels)`` is the op's value, from ``kernels``, which has the ops below
    autograd. ``tangents(ctx, saved, *tangents)`` is the forward-mode rule, ``saved`` what forward
    gave ``kernels.save_for_forward``. It and ``backward(ctx, *cotangents)`` call ops.

    Each of its ``record`` methods applies it as an autograd Function: as ``apply``, but without
    what that does for Functions that are to be transformed themselves; here the ops are.
    """

    forward: Callable[..., Any]
    backward: Callable[..., Any]
    tangents: Callable[..., Any]

    @classmethod
    def record_on(cls, kernels: Kernels) -> Callable[..., Any]:
        # A copy of forward with a default: a partial object would cost each call more.
        forward = types.FunctionType(cls.forward.__code__, cls.forward.__globals__)
        forward.__kwdefaults__ = {"kernels": kernels}
        body = {
            "forward": staticmethod(forward),
            "backward": staticmethod(cls.backward),
            "jvp": staticmethod(_as_jvp(cls.tangents)),
            "__module__": cls.__module__,
        }
        function = types.new_class(
            cls.__name__, (torch.autograd.Function,), exec_body=lambda space: space.update(body)
        )
        # What the engine calls; torch's own looks up which of two rules to call, each time.
        function._backward_cls.apply = cls.backward  # type: ignore[attr-defined]
        record: Callable[..., Any] = super(torch.autograd.Function, function).apply  # type: ignore[misc]
        return record


def register(
    name: str,
    derivative: type[Function] | Callable[..., Any],
    reference: Callable[..., Any] | None = None,
    *,
    first: bool = False,
    if_recorded: bool = False,
) -> Callable[..., Any]:
    """Gives an op its derivative.

    Args:
        name: of the op, in ``torch.ops.torchcalc``.
        derivative: a ``Function``; or a function made of differentiable ops, of the op's value.
        reference: the op in plain PyTorch, which runs, and is differentiated, on devices without
            kernels. The op's first argument is a tensor then.
        first: the op is the first of the Function's outputs.
        if_recorded: a derivative that is a function runs only where something is recorded; else,
            in a graph too, the op stays one.

    Returns:
        The op, to be called by the rest of torchcalc.
    """
    overload = getattr(torch.ops.torchcalc, name).default

    def record_on(kernels: Kernels) -> Callable[..., Any]:
        if not (isinstance(derivative, type) and issubclass(derivative, Function)):
            return derivative
        record = derivative.record_on(kernels)
        return _first_of(record) if first else record

    record_anywhere = _within_transforms(record_on(_ANYWHERE))

    def record(*args: Any) -> Any:
        if reference is not None and args[0].device.type not in NATIVE:
            return reference(*args)
        if if_recorded and not (
            forward_ad._current_level >= 0
            or (torch.is_grad_enabled() and _C._any_requires_grad(*args))
        ):
            return _below_autograd(overload._op, *args)
        return record_anywhere(*args)

    on_cpu, on_cuda = (
        (record_on(kernels), getattr(kernels, name)) for kernels in (_ON_CPU, _ON_CUDA)
    )

    def with_short_cut(otherwise: Callable[..., Any]) -> Callable[..., Any]:
        # A call costs no more than PyTorch's own if little is looked up on its way.
        is_dynamo_compiling = torch.compiler.is_dynamo_compiling
        is_plain = _PLAIN.issuperset
        is_grad_enabled, any_requires_grad = torch.is_grad_enabled, _C._any_requires_grad
        is_excluded = _C._dispatch_tls_is_dispatch_key_excluded
        types = [str(argument.type) for argument in overload._schema.arguments]
        where = types.index("Tensor")  # an argument that is always a tensor
        tensors = slice(1 + max(i for i, kind in enumerate(types) if "Tensor" in kind))

        def call(*args: Any) -> Any:
            if is_dynamo_compiling():  # a constant to Dynamo, in its own frames only
                if reference is not None and forward_ad._current_level >= 0:
                    # Entered by the graph: where that is run as it is, nothing says so.
                    return reference(*args)
                return overload(*args)
            if is_plain(map(type, args)) and is_quiet():
                x = args[where]
                if x.is_cpu:
                    record, kernel = on_cpu
                elif x.is_cuda and "cuda" in NATIVE:
                    record, kernel = on_cuda
                else:
                    return otherwise(*args)
                recorded = forward_ad._current_level >= 0 or (
                    is_grad_enabled() and (x.requires_grad or any_requires_grad(*args[tensors]))
                )
                if not (recorded and is_excluded(_AUTOGRAD)):
                    try:
                        return record(*args) if recorded else kernel(*args)
                    except RuntimeError as error:
                        # What a kernel refuses may have been no plain tensor after all, but one
                        # that a transform that has ended left wrapped: the long way will tell.
                        raise_as_torch(error, args)
            _sharding.prepare()
            return otherwise(*args)

        return call

    # The graphs that torch.compile makes come to the op itself, mostly with nothing to record.
    implement(name, with_short_cut(record), "Autograd")
    if reference is not None:
        implement(name, reference, "CompositeExplicitAutograd")
    return with_short_cut(partial(_with_torchs_errors, overload._op))


def _within_transforms(record: Callable[..., Any]) -> Callable[..., Any]:
    def recorded(*args: Any) -> Any:
        if _C._are_functorch_transforms_active():
            before = _functorch.get_single_level_autograd_function_allowed()
            _functorch.set_single_level_autograd_function_allowed(True)
            try:
                return record(*args)
            finally:
                _functorch.set_single_level_autograd_function_allowed(before)
        return record(*args)

    return recorded


def _first_of(record: Callable[..., Any]) -> Callable[..., Any]:
    def first(*args: Any) -> Any:
        outputs = record(*args)
        return outputs if isinstance(outputs, Tensor) else outputs[0]

    return first


def implement(name: str, kernel: Callable[..., Any], key: str) -> None:
    """A kernel in Python, for a dispatch key."""
    _KERNELS.impl(name, kernel, key)  # type: ignore[no-untyped-call]


def register_vmap(name: str, rule: Callable[..., Any]) -> None:
    """``rule(info, in_dims, *args)`` as for ``torch.library.register_vmap``.

    That looks for tensors in any structure of arguments, at several times the cost of a small
    kernel; ours are flat.
    """
    overload = getattr(torch.ops.torchcalc, name).default
    unwrap, wrap = _functorch._unwrap_batched, _functorch._add_batch_dim
    pop, push = _functorch.pop_dynamic_layer_stack, _functorch.push_dynamic_layer_stack

    def run(size: int, in_dims: list[int | None], plain: list[Any], level: int) -> Any:
        if level == 1 and not (
            forward_ad._current_level >= 0
            or (torch.is_grad_enabled() and _C._any_requires_grad(*plain))
        ):
            # Outside of this vmap there is nothing: without it the ops take their short cuts.
            layer = pop()
            try:
                return rule(_Info(size), tuple(in_dims), *plain)
            finally:
                push(layer)
        return rule(_Info(size), tuple(in_dims), *plain)

    def batched(*args: Any) -> Any:
        level = _functorch.peek_interpreter_stack().level()
        plain = list(args)
        in_dims: list[int | None] = [None] * len(args)
        size = None
        for i, arg in enumerate(args):
            if isinstance(arg, Tensor):
                plain[i], dim = unwrap(arg, level)
                if dim is not None:
                    in_dims[i], size = dim, plain[i].shape[dim]
        with _C._ExcludeDispatchKeyGuard(_BATCHED):
            if size is None:
                return overload(*args)
            outputs, dims = run(size, in_dims, plain, level)
        if isinstance(outputs, Tensor):
            return wrap(outputs, dims, level)
        return tuple(
            y if dim is None else wrap(y, dim, level) for y, dim in zip(outputs, dims, strict=True)
        )

    implement(name, batched, "FuncTorchBatched")


class _Info(NamedTuple):
    batch_size: int


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


def in_front(t: MaybeTensor, dim: int | None, size: int) -> MaybeTensor:
    """A vmapped tensor with its batch dimension first, expanded where it has none."""
    if t is None or dim == 0:
        return t
    return t.expand(size, *t.shape) if dim is None else t.movedim(dim, 0)
