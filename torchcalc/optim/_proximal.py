"""What the optimizers share: groups and their penalties, the step, loading of state."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcalc._check import check_floating, is_sharded
from torchcalc.ops import optim as ops
from torchcalc.ops.penalty_prox import TV, Kernel
from torchcalc.optim import _penalty, _sharded
from torchcalc.optim._batches import make_batches
from torchcalc.optim._checkpoint import adapt, merge
from torchcalc.optim._penalty import check_range
from torchcalc.optim._plan import Call, Gradients, Plan
from torchcalc.optim._state import Slot
from torchcalc.prox import Penalty
from torchcalc.reference import optim as reference
from torchcalc.reference.rounding import round_randomly

_NOTHING = Kernel()


def number(value: Any) -> Any:
    """A hyperparameter that may be a tensor of one element, as it is now."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def is_live(value: Any) -> bool:
    """Whether it is a number on a device, which a kernel reads there: to ask for it is to wait."""
    return isinstance(value, Tensor) and value.device.type != "cpu" and value.numel() == 1


def given(value: Any) -> Any:
    """A hyperparameter as an op takes it: of what is on a device, any number."""
    return 0.5 if is_live(value) else number(value)


class ProximalOptimizer(torch.optim.Optimizer, abc.ABC):
    """w = prox(update(w)): one fused kernel for the parameters of a group."""

    op: ClassVar[str]  # its kernel
    _step_supports_amp_scaling = True  # GradScaler: unscaling is the kernel's, skipping too
    takes_sparse = False  # sparse gradients, as the torch.optim namesake
    counts: tuple[str, ...] = ()  # names of states with one number for each parameter
    later_options: ClassVar[dict[str, Any]] = {}  # what groups pickled by earlier versions lack

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        penalty: Penalty | str | None,
        arguments: dict[str, Any],
    ) -> None:
        op = type(self).__name__
        for key in arguments:
            if not _penalty.is_key(key):
                raise TypeError(f"{op}: unknown argument {key!r}")
        given = {key: value for key, value in arguments.items() if value is not None}
        if isinstance(penalty, Penalty) and given:
            names = " and ".join(key for key in arguments)
            raise ValueError(f"{op}: {names} come with penalty, {penalty!r}; got {given}")
        plain = _penalty.plain(op, {"penalty": penalty, **arguments})
        self._forget()
        super().__init__(params, {**self.later_options, **defaults, **plain})

    # A property, to know whether anybody may have given a state other memory (``.data``): to ask
    # each of thousands at every step would cost a tenth of it.
    @property
    def state(self) -> Any:
        self._looked_at = True
        return vars(self)["state"]

    @state.setter
    def state(self, value: Any) -> None:
        vars(self)["state"] = value

    def check_group(self, group: dict[str, Any]) -> Penalty | None:
        """Raises unless the group's values are valid; schedulers and users may have set them.

        A penalty that was set as an object becomes plain values. Returns the group's penalty.
        """
        op = type(self).__name__
        _penalty.name_it(op, group)
        check_range(op, "lr", given(group["lr"]), 0.0)
        check_range(op, "weight_decay", group["weight_decay"], 0.0)
        if group["differentiable"]:
            raise ValueError(f"{op}: differentiable must be False: a step is done in place")
        start = group.get("prox_start", 0)
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise ValueError(f"{op}: prox_start must be an integer >= 0, got {start!r}")
        if group.get("stochastic_rounding") and group.get("rounding_seed") is None:
            group["rounding_seed"] = 0  # the same on all ranks that hold the same parameters
        if group.get("state_dtype") not in (None, torch.float32):
            raise ValueError(
                f"{op}: state_dtype must be None, for that of the parameters, or torch.float32, "
                f"got {group['state_dtype']!r}"
            )
        return _penalty.check(op, group)

    @abc.abstractmethod
    def names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Names of states with an element for each of the parameter's, in the kernel's order."""

    @abc.abstractmethod
    def rule(self, group: dict[str, Any], fresh: bool) -> reference.Rule:
        """The update of a group, ``fresh`` where its states start with this step."""

    def metric(self, group: dict[str, Any]) -> tuple[bool, float] | tuple[()]:
        """Whether each coordinate has a step of its own, and the bound of a penalty's pull.

        Empty where neither is a choice.
        """
        return ()

    def dtype_of(self, group: dict[str, Any], param: Tensor) -> torch.dtype | None:
        """Of a parameter's states, where it is not the parameter's own."""
        dtype: torch.dtype | None = group.get("state_dtype")
        return dtype if param.dtype in (torch.float16, torch.bfloat16) else None

    def start(self, group: dict[str, Any], param: Tensor, states: Sequence[Tensor]) -> None:
        """Gives states that start with this step their first values; they are zeros."""

    def _forget(self) -> None:
        self._plan: Plan | None = None
        self._looked_at = True
        self.slots: dict[Tensor, Slot] = {}
        # States as they were saved, while they are loaded.
        self.loading: dict[Tensor, dict[str, Any]] = vars(self).get("loading", {})
        self._number = ops.register(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Also what loading and copying end with: states are in no pack of this optimizer then.
        super().__setstate__(state)
        for group in self.param_groups:
            for key, value in self.later_options.items():
                group.setdefault(key, value)
        self._forget()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        op = type(self).__name__
        if "penalty" in param_group:
            param_group = {**param_group, **_penalty.plain(op, param_group)}
        else:
            _penalty.check_known(op, self.defaults["penalty"], param_group)
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            _penalty.forget_others(group)
            penalty = self.check_group(group)
            _penalty.check_used(op, group)
            for param in group["params"]:
                # A complex number is two real ones to a rule without a penalty.
                is_complex = isinstance(param, Tensor) and param.is_complex()
                check_floating(op, "params", torch.view_as_real(param) if is_complex else param)
                if penalty is not None:
                    self.check_shape(penalty, param)
            if len(set(group["params"])) < len(group["params"]):
                raise ValueError(f"{op}: params has a parameter twice")
            _penalty.make_plain(group)
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    def state_dict(self) -> dict[str, Any]:
        """As that of its torch.optim namesake; groups hold plain values besides the parameters."""
        for group in self.param_groups:
            _penalty.name_it(type(self).__name__, group)
            _penalty.make_plain(group)
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes this optimizer's state, or that of its torch.optim namesake.

        What the state's groups do not have, such as a penalty, stays as it is here.
        """
        # Behind all hooks that others have registered: what those return is what is loaded.
        before = self.register_load_state_dict_pre_hook(lambda _, saved: merge(self, saved))
        after = self.register_load_state_dict_post_hook(lambda _: adapt(self), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of every parameter that has a gradient.

        Under torch.compile it is one op, which reads the groups' values when it runs: a learning
        rate that changes compiles nothing anew. It writes the states unseen by the graph: read or
        change them in another graph than the step's.

        Args:
            closure: reevaluates the model and returns the loss.

        Returns:
            What closure returned, else None.

        Raises:
            TypeError, ValueError: a gradient or a value of a group is not valid; then no parameter
                and no state has changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if torch.compiler.is_dynamo_compiling():
            # By vars: Dynamo would guard all values of groups that it sees as an attribute.
            params = [param for group in vars(self)["param_groups"] for param in group["params"]]
            if any(map(is_sharded, params)):
                self._uncompiled_step()  # a graph has no rule for shards: it ends here
                return loss
            which = [i for i, param in enumerate(params) if param.grad is not None]
            chosen = [params[i] for i in which]
            grads = [param.grad for param in chosen]
            torch.ops.torchcalc.optimizer_step(chosen, grads, self._number, which)
        else:
            self._step()
        return loss

    def _step(self) -> None:
        params = [param for group in self.param_groups for param in group["params"]]
        self._update(params, params, [param.grad for param in params])

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _uncompiled_step(self) -> None:
        self._step()

    @torch.no_grad()
    def step_with(self, params: list[Tensor], grads: list[Tensor], which: list[int]) -> None:
        """A step in a compiled graph: those of all parameters, by position, with a gradient."""
        owners = [param for group in self.param_groups for param in group["params"]]
        all_params: list[Tensor] = list(owners)
        all_grads: list[Tensor | None] = [None] * len(owners)
        for i, param, grad in zip(which, params, grads, strict=True):
            all_params[i], all_grads[i] = param, grad
        self._update(owners, all_params, all_grads)

    def _update(self, owners: list[Tensor], params: Sequence[Tensor], grads: Gradients) -> None:
        self._do_update(owners, params, grads)
        for group in self.param_groups:
            # One without lr is how torch.distributed.checkpoint makes states; nothing has moved.
            if given(group["lr"]):
                self.stepped(group)

    def stepped(self, group: dict[str, Any]) -> None:
        """After a step: what a group holds for the next one."""
        if group.get("prox_start"):
            group["prox_start"] -= 1
        if group.get("stochastic_rounding"):
            group["rounding_seed"] = (group["rounding_seed"] + 1) % 2**63

    def _do_update(self, owners: list[Tensor], params: Sequence[Tensor], grads: Gradients) -> None:
        """A step with ``params`` and ``grads`` for ``owners``, the parameters of all groups.

        (A compiled graph may hand over other tensors than the parameters themselves.)
        """
        sizes, names, layouts, penalties = [], [], [], []
        for group in self.param_groups:
            penalty = self.check_group(group)
            if group.get("prox_start"):
                penalty = None  # not yet
            penalties.append(penalty)
            sizes.append(len(group["params"]))
            names.append((*self.names(group), *self.counts))
            layout = penalty and (penalty.name, penalty.layout)
            layouts.append((names[-1], layout, group.get("state_dtype")))
        if _sharded.is_any(owners):
            params = [_sharded.local(param) for param in params]
            grads = [
                grad if grad is None else _sharded.local(_sharded.placed_as(owner, grad))
                for owner, grad in zip(owners, grads, strict=True)
            ]
        plan, states = self._plan, vars(self)["state"]
        looked_at, self._looked_at = self._looked_at, False
        if plan is not None and plan.holds(
            owners, sizes, layouts, params, grads, states, looked_at
        ):
            calls = [batch.call(params, grads) for batch in plan.batches]
            try:
                self._run(plan, calls, penalties)
                return
            except RuntimeError:
                if self._accepted(calls):  # then it was no refusal
                    raise
        if self.takes_sparse:
            grads = [g.to_dense() if g is not None and g.is_sparse else g for g in grads]
        batches = make_batches(self, owners, params, grads, names, penalties)
        plan = Plan(owners, sizes, layouts, grads, batches)
        self._run(plan, [batch.call(params, grads) for batch in batches], penalties)
        plan.register(states)
        # Of parameters that have left, nothing stays.
        self.slots = {owner: self.slots[owner] for owner in owners if owner in self.slots}
        for batch in plan.batches:
            self.slots.update(zip((owners[i] for i in batch.members), batch.slots, strict=True))
        self._plan = plan

    def _run(self, plan: Plan, calls: Sequence[Call], penalties: Sequence[Penalty | None]) -> None:
        """All of the calls or, where one is refused, none."""
        for call in calls[1:]:  # the first one's kernel checks for itself
            call.check(len(self.counts))
        across: list[_sharded.Pull] = []
        for batch, call in zip(plan.batches, calls, strict=True):
            group, penalty = self.param_groups[batch.group], penalties[batch.group]
            kernel = _NOTHING if penalty is None else penalty.kernel
            of_kernel = kernel is not None and kernel.kind != TV and not batch.across
            self._run_kernel(group, call, kernel if kernel and of_kernel else _NOTHING)
            call.commit()
            if penalty is None or of_kernel:
                continue
            found_inf = getattr(self, "found_inf", None)
            if found_inf is not None and found_inf.item():
                continue
            for i, param, slot, position in zip(
                batch.members, call.originals, batch.slots, batch.positions, strict=True
            ):
                step, bound = self._prox_step(group, slot.views)
                prox = partial(_penalty.bounded_prox, penalty, bound)
                write = partial(self._write, group, param, position)
                if batch.across:
                    across.append(_sharded.Pull(plan.owners[i], penalty, prox, step, bound, write))
                else:
                    write(prox(param, step))
        if across:
            _sharded.pull(across)

    def _write(self, group: dict[str, Any], param: Tensor, position: int, x: Tensor) -> None:
        """A result of PyTorch's operations, rounded as a kernel would."""
        if group.get("stochastic_rounding") and param.dtype.itemsize < 4:
            x = round_randomly(x.float(), param.dtype, group["rounding_seed"], position, 2)
        param.copy_(x)

    def _run_kernel(self, group: dict[str, Any], call: Call, kernel: Kernel) -> None:
        getattr(torch.ops.torchcalc, self.op)(
            call.params,
            call.grads,
            call.states,
            call.places,
            *self.rule(group, call.fresh),
            kernel[0],
            kernel[1:],
            *self.metric(group),
            *self._live(group, call.params[0].device),
            group["rounding_seed"] if group.get("stochastic_rounding") else -1,
        )

    def live(self, group: dict[str, Any]) -> dict[str, Any]:
        """By their names in ``ops.LIVE``, hyperparameters that may be tensors on a device."""
        return {"lr": group["lr"]}

    def _live(
        self, group: dict[str, Any], device: torch.device
    ) -> tuple[Sequence[Tensor], Sequence[int]]:
        """The tensors that a kernel reads, and which numbers they are."""
        found = {name: t for name, t in self.live(group).items() if is_live(t)}
        for name in ("grad_scale", "found_inf"):  # set by torch.amp.GradScaler for a step
            value = getattr(self, name, None)
            if value is not None:
                found[name] = value.to(device, non_blocking=True)
        if not found:
            return (), ()
        return [t.detach() for t in found.values()], [ops.LIVE.index(name) for name in found]

    def _prox_step(
        self, group: dict[str, Any], views: Sequence[Tensor]
    ) -> tuple[Tensor | float, float]:
        """The steps of a parameter's coordinates, and the bound of the pull."""
        adaptive, clip = self.metric(group) or (True, math.inf)
        rule = self.rule(group, False)
        rule = rule._replace(**{name: number(value) for name, value in self.live(group).items()})
        states = [t.to(torch.promote_types(t.dtype, torch.float32)) for t in views]
        k = float(states.pop()) if self.counts else 0.0
        step = reference.prox_step(rule, k, states, adaptive)
        return step, reference.bound(rule, k, clip)

    def _accepted(self, calls: Sequence[Call]) -> bool:
        try:
            for call in calls:
                call.check(len(self.counts))
        except RuntimeError:
            return False
        return True

    def check_shape(self, penalty: Penalty, param: Tensor) -> None:
        if param.is_complex():
            raise ValueError(
                f"{type(self).__name__}: penalty must be None for complex parameters, got "
                f"{type(penalty).__name__}"
            )
        try:
            penalty.indexes(param.shape)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: penalty {error}") from None
