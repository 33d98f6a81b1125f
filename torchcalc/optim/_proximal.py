"""What the optimizers share: groups and their penalties, the step, loading of state."""

from __future__ import annotations

import abc
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from torchcalc._C import missing
from torchcalc._check import check_floating
from torchcalc.ops import optim as ops
from torchcalc.ops.penalty_prox import TV, Kernel
from torchcalc.optim import _penalty
from torchcalc.optim._penalty import check_range
from torchcalc.optim._plan import Batch, Call, Gradients, Plan
from torchcalc.optim._state import Pack, Slot
from torchcalc.prox import Penalty

_MANY = 4  # packs of a group


_NOTHING = Kernel()


class ProximalOptimizer(torch.optim.Optimizer, abc.ABC):
    """w = prox(update(w)): one fused kernel for the parameters of a group."""

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
        super().__init__(params, {**defaults, **plain})

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
        if isinstance(group["lr"], Tensor) and group["lr"].numel() == 1:
            group["lr"] = float(group["lr"])
        check_range(op, "lr", group["lr"], 0.0)
        check_range(op, "weight_decay", group["weight_decay"], 0.0)
        return _penalty.check(op, group)

    @abc.abstractmethod
    def names(self, group: dict[str, Any]) -> tuple[str, ...]:
        """Names of states with an element for each of the parameter's, in the kernel's order."""

    @abc.abstractmethod
    def run_kernel(self, group: dict[str, Any], call: Call, kernel: Kernel) -> None:
        """One step of a batch; ``kernel`` is the penalty's."""

    @abc.abstractmethod
    def prox_step(self, group: dict[str, Any], state: Sequence[Tensor]) -> Tensor | float:
        """The step of a parameter's coordinates that the penalty's prox takes."""

    def prox_bound(self, group: dict[str, Any]) -> float:
        """How far a penalty may pull a coordinate in a step."""
        return math.inf

    def _forget(self) -> None:
        self._plan: Plan | None = None
        self._looked_at = True
        self._slots: dict[Tensor, Slot] = {}
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
                check_floating(op, "params", param)
                if penalty is not None:
                    self._check_shape(penalty, param)
                if hasattr(param, "placements"):
                    raise TypeError(
                        f"{op}: params must not be sharded (DTensor), as fully_shard makes them: "
                        "the kernels take whole tensors; ZeroRedundancyOptimizer and DDP work"
                    )
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
        before = self.register_load_state_dict_pre_hook(lambda _, saved: self._merge(saved))
        after = self.register_load_state_dict_post_hook(lambda _: self._adapt(), prepend=True)
        try:
            super().load_state_dict(state_dict)
        finally:
            before.remove()
            after.remove()

    def _merge(self, state_dict: dict[str, Any]) -> dict[str, Any] | None:
        """The state to load, complete and checked."""
        saved_groups = state_dict["param_groups"]
        if len(saved_groups) != len(self.param_groups):
            return None  # torch raises
        merged = [
            {
                **{
                    key: own[key]
                    for key in own
                    if key != "params" and not ("penalty" in saved and key.startswith("penalty_"))
                },
                **saved,
            }
            for own, saved in zip(self.param_groups, saved_groups, strict=True)
        ]
        for own, group in zip(self.param_groups, merged, strict=True):
            _penalty.forget_others(group)
            _penalty.make_plain(group)
            penalty = self.check_group(group)
            if penalty is not None:
                for param in own["params"]:
                    self._check_shape(penalty, param)
        self._check_shapes(state_dict["state"], saved_groups)
        return {**state_dict, "param_groups": merged}

    def _check_shapes(self, saved_states: Any, saved_groups: list[dict[str, Any]]) -> None:
        for own, saved in zip(self.param_groups, saved_groups, strict=True):
            for param, key in zip(own["params"], saved["params"], strict=False):
                for name, value in saved_states.get(key, {}).items():
                    if name in self.counts or not isinstance(value, Tensor):
                        continue
                    if value.shape != param.shape:
                        raise ValueError(
                            f"{type(self).__name__}: state {name!r} of parameter {key} must have "
                            f"shape {tuple(param.shape)}, got {tuple(value.shape)}"
                        )

    def _adapt(self) -> None:
        """Loaded states as the kernels want them, in memory of their own."""
        states = vars(self)["state"]
        for group in self.param_groups:
            elements = self.names(group)
            names = (*elements, *self.counts)
            complete: dict[Any, list[Tensor]] = {}
            for param in group["params"]:
                state = states.get(param, {})
                for name, value in state.items():
                    if name in self.counts:  # a number in old checkpoints, on the CPU in torch's
                        value = torch.as_tensor(value, dtype=torch.float32, device=param.device)
                        state[name] = value.clone()
                    elif isinstance(value, Tensor) and name not in elements:
                        state[name] = torch.empty_like(param).copy_(value)  # with param's strides
                if all(state.get(name) is not None for name in names):
                    complete.setdefault((param.dtype, param.device), []).append(param)
            for params in complete.values() if elements else ():
                pack = Pack(params, elements, self.counts, [states[param] for param in params])
                for param, slot in zip(params, pack.slots, strict=True):
                    states[param].update(zip(names, slot.views, strict=True))
                    self._slots[param] = slot

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
            which = [i for i, param in enumerate(params) if param.grad is not None]
            chosen = [params[i] for i in which]
            grads = [param.grad for param in chosen]
            torch.ops.torchcalc.optimizer_step(chosen, grads, self._number, which)
        else:
            params = [param for group in self.param_groups for param in group["params"]]
            self._update(params, params, [param.grad for param in params])
        return loss

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
        """A step with ``params`` and ``grads`` for ``owners``, the parameters of all groups.

        (A compiled graph may hand over other tensors than the parameters themselves.)
        """
        sizes, names, layouts, penalties = [], [], [], []
        for group in self.param_groups:
            penalty = self.check_group(group)
            penalties.append(penalty)
            sizes.append(len(group["params"]))
            names.append((*self.names(group), *self.counts))
            layouts.append((names[-1], penalty and (penalty.name, penalty.layout)))
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
        batches = self._batches(owners, params, grads, names, penalties)
        plan = Plan(owners, sizes, layouts, grads, batches)
        self._run(plan, [batch.call(params, grads) for batch in batches], penalties)
        plan.register(states)
        # Of parameters that have left, nothing stays.
        self._slots = {owner: self._slots[owner] for owner in owners if owner in self._slots}
        for batch in plan.batches:
            self._slots.update(zip((owners[i] for i in batch.members), batch.slots, strict=True))
        self._plan = plan

    def _run(self, plan: Plan, calls: Sequence[Call], penalties: Sequence[Penalty | None]) -> None:
        """All of the calls or, where one is refused, none."""
        for call in calls[1:]:  # the first one's kernel checks for itself
            call.check(len(self.counts))
        for batch, call in zip(plan.batches, calls, strict=True):
            group, penalty = self.param_groups[batch.group], penalties[batch.group]
            kernel = _NOTHING if penalty is None else penalty.kernel
            if penalty is not None and (kernel is None or kernel.kind == TV):
                self.run_kernel(group, call, _NOTHING)
                call.commit()
                for param, slot in zip(call.originals, batch.slots, strict=True):
                    step = self.prox_step(group, slot.views)
                    _penalty.pull(param, penalty, step, self.prox_bound(group))
            else:
                self.run_kernel(group, call, kernel or _NOTHING)
                call.commit()

    def _accepted(self, calls: Sequence[Call]) -> bool:
        try:
            for call in calls:
                call.check(len(self.counts))
        except RuntimeError:
            return False
        return True

    def _batches(
        self,
        owners: Sequence[Tensor],
        params: Sequence[Tensor],
        grads: Gradients,
        names: Sequence[tuple[str, ...]],
        penalties: Sequence[Penalty | None],
    ) -> list[Batch]:
        """What a step consists of, each tensor looked at; makes packs for states without one."""
        batches: dict[tuple[int, Pack], Batch] = {}
        states = vars(self)["state"]
        begin = 0
        for number, group in enumerate(self.param_groups):
            homeless: dict[Any, list[tuple[int, Tensor]]] = {}  # whose states are in no pack
            end = begin + len(group["params"])
            # Parameters that got their first gradients one by one have packs, and kernel calls, of
            # their own: one for all once all of them have gradients.
            packs = {self._slots[p].pack for p in owners[begin:end] if p in self._slots}
            merge = len(packs) > _MANY and 1 not in missing(grads[begin:end])
            for i in range(begin, end):
                param, grad = params[i], grads[i]
                if grad is None:
                    continue
                self._check_gradient(param, grad)
                penalty = penalties[number]
                if penalty is not None:
                    self._check_shape(penalty, param)
                state = states.get(owners[i], {})
                slot = self._slots.get(owners[i])
                if slot is not None and not merge and slot.fits(param, names[number], state):
                    key = number, slot.pack
                    batch = batches.get(key) or batches.setdefault(key, Batch(*key))
                    batch.add(i, param, grad, slot)
                else:
                    fresh = not any(state.get(name) is not None for name in names[number])
                    homeless.setdefault((param.dtype, param.device, fresh), []).append((i, grad))
            for (_, _, fresh), members in homeless.items():
                values = [{} if fresh else states[owners[i]] for i, _ in members]
                shaped = [params[i] for i, _ in members]
                pack = Pack(shaped, self.names(group), self.counts, values)
                batch = batches[number, pack] = Batch(number, pack)
                for (i, grad), slot in zip(members, pack.slots, strict=True):
                    batch.add(i, params[i], grad, slot)
            begin = end
        for batch in batches.values():
            batch.close(params, penalties[batch.group])
        return list(batches.values())

    def _check_shape(self, penalty: Penalty, param: Tensor) -> None:
        try:
            penalty.indexes(param.shape)
        except ValueError as error:
            raise ValueError(f"{type(self).__name__}: penalty {error}") from None

    def _check_gradient(self, param: Tensor, grad: Tensor) -> None:
        if grad.dtype is not param.dtype or grad.layout is not torch.strided:
            raise TypeError(
                f"{type(self).__name__}: gradients must be dense and of their parameter's "
                f"dtype, {param.dtype}; got {grad.layout}, {grad.dtype}"
            )
        if any(s == 0 and n > 1 for s, n in zip(param.stride(), param.shape, strict=True)):
            raise ValueError(
                f"{type(self).__name__}: params must have memory for each of their elements, got "
                f"shape {tuple(param.shape)} with strides {param.stride()}"
            )
        if grad.shape != param.shape or grad.device != param.device:
            raise ValueError(
                f"{type(self).__name__}: gradients must have the shape of their parameter, "
                f"{tuple(param.shape)}, on {param.device}; got {tuple(grad.shape)} on "
                f"{grad.device}"
            )
