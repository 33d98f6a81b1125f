"""Proximal operators as functions; that they are the argmin is in test_penalties.py."""

from __future__ import annotations

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from torchcalc import functional, nn, prox


def test_functions_are_the_proxes_of_unit_step(device, dtype):
    x = torch.randn(100, device=device).to(dtype)
    assert torch.equal(functional.soft_threshold(x, 0.5), prox.L1(0.5).prox(x))
    assert torch.equal(functional.prox_l2(x, 0.5), prox.L2(0.5).prox(x))
    assert torch.equal(functional.prox_elastic_net(x, 0.5, 0.2), prox.ElasticNet(0.5, 0.2).prox(x))


def test_soft_threshold_is_softshrink(device, dtype):
    x = torch.randn(1000, device=device).to(dtype)
    actual = functional.soft_threshold(x, 0.25)
    torch.testing.assert_close(actual, torch.nn.functional.softshrink(x, 0.25))
    assert (actual == 0).sum() == (x.abs() <= 0.25).sum() > 0


def test_a_float_strength_keeps_its_precision():
    # As opmath, not rounded to bfloat16 first: 0.1 would become 0.10009765625.
    x = torch.full((8,), 256.0, dtype=torch.bfloat16)
    exact = 256 / (1 + 0.1)
    assert functional.prox_l2(x, 0.1)[0].item() == torch.tensor(exact).bfloat16().item()


def test_values_of_strength_tensors_are_not_inspected():
    x, lam = torch.tensor([1.0, -2.0]), torch.tensor([-0.5, float("nan")])
    y = functional.soft_threshold(x, lam)
    assert y[0] == 1.5
    assert y[1].isnan()


def test_penalty_values_and_moreau():
    w = torch.randn(50, dtype=torch.float64)
    assert prox.L1(2.0).value(w) == pytest.approx(2 * w.abs().sum().item())
    assert prox.L2(2.0).value(w) == pytest.approx(w.square().sum().item())
    assert prox.ElasticNet(1.0, 2.0).value(w) == pytest.approx((w.abs() + w.square()).sum().item())
    # Moreau: v = prox_g(v) + projection of v on the dual ball, for the L1 norm.
    torch.testing.assert_close(w, prox.L1(0.3).prox(w) + w.clamp(-0.3, 0.3))


def test_soft_threshold_module_learns_its_threshold():
    module = nn.SoftThreshold(torch.nn.Parameter(torch.tensor(0.5)))
    x = torch.tensor([2.0, -3.0, 0.1])
    module(x).abs().sum().backward()
    assert module.lam.grad == -2
    assert list(module.state_dict()) == ["lam"]
    assert not list(nn.SoftThreshold(0.5).state_dict())
    assert list(dict(nn.SoftThreshold(torch.tensor(0.5)).named_buffers())) == ["lam"]


@pytest.mark.parametrize(
    "function",
    [
        functional.soft_threshold,
        functional.prox_l2,
        lambda x, lam: functional.prox_elastic_net(x, lam, 2 * lam),
    ],
    ids=["soft_threshold", "prox_l2", "prox_elastic_net"],
)
def test_a_number_that_changes_is_an_input_of_the_compiled_function(function):
    counter = CompileCounter()
    compiled = torch.compile(function, backend=counter, fullgraph=True)
    x = torch.randn(5, requires_grad=True)
    for lam in (0.1, 0.2, 0.35, 0.4, 1.5):
        actual, expected = compiled(x, lam), function(x, lam)
        torch.testing.assert_close(actual, expected)
        torch.testing.assert_close(
            *(torch.autograd.grad(y.square().sum(), x) for y in (actual, expected))
        )
    assert counter.frame_count == 2  # with the first number, and with any


def test_a_threshold_that_changes_in_a_compiled_module():
    counter = CompileCounter()
    layer = nn.SoftThreshold(0.1)
    compiled = torch.compile(layer, backend=counter, fullgraph=True)
    x = torch.randn(5)
    for lam in (0.1, 0.2, 0.35, 0.4, 1.5):
        layer.lam = lam
        torch.testing.assert_close(compiled(x), functional.soft_threshold(x, lam))
    assert counter.frame_count == 2


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_a_compiled_number_is_as_exact_as_an_eager_one(half):
    x = torch.randn(1000).to(half)
    for function in (functional.soft_threshold, functional.prox_l2):
        compiled = torch.compile(function, backend="eager", fullgraph=True)
        for lam in (0.3, 0.7, 1e5):
            assert torch.equal(compiled(x, lam), function(x, lam))


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_a_learned_float32_strength_of_half_types(half, device):
    x = torch.randn(64, device=device).to(half).requires_grad_()
    lams = [torch.tensor(v, device=device, requires_grad=True) for v in (0.3, 0.7)]
    y = functional.prox_elastic_net(x, *lams)
    assert y.dtype == half
    grads = torch.autograd.grad(y.sum(), [x, *lams])
    assert [g.dtype for g in grads] == [half, torch.float32, torch.float32]
    exact = [t.detach().double().requires_grad_() for t in (x, *lams)]
    expected = torch.autograd.grad(functional.prox_elastic_net(*exact).sum(), exact)
    for g, e in zip(grads, expected, strict=True):
        torch.testing.assert_close(g.double(), e, atol=0.3, rtol=0.02)


@pytest.mark.parametrize("bad", [float("inf"), float("nan")])
def test_what_the_prox_has_shrunk_to_zero_gets_no_gradient(bad, dtype, device):
    x = torch.tensor([0.0, 1e-3, -0.4, 0.5], device=device, dtype=dtype, requires_grad=True)
    lam = torch.tensor(0.5, device=device, dtype=dtype, requires_grad=True)
    cotangent = torch.full_like(x, bad)
    y = functional.soft_threshold(x, lam)
    grads = torch.autograd.grad(y, [x, lam], cotangent, create_graph=True)
    assert all((g == 0).all() for g in grads)
    (second,) = torch.autograd.grad(grads[0], x, cotangent, allow_unused=True)
    assert (second == 0).all()


# --- prox: of any penalty, differentiable in v, steps and strengths

LEARNED = {  # of two strengths
    "L1": lambda a, b: prox.L1(a),
    "ElasticNet": prox.ElasticNet,
    "NonNegativeL1": lambda a, b: prox.NonNegativeL1(a),
    "Huber": prox.Huber,
    "L0": lambda a, b: prox.L0(a),
    "LHalf": lambda a, b: prox.LHalf(a),
    "MCP": lambda a, b: prox.MCP(a, 4 * b),
    "MCP, hard": lambda a, b: prox.MCP(a, b / 4),
    "SCAD": lambda a, b: prox.SCAD(a, 2 + b, 2 * b),
    "a sum": lambda a, b: prox.MCP(a, 4 * b) + prox.ElasticNet(b, a),
    "GroupL2": lambda a, b: prox.GroupL2(a),
    "SparseGroupL2": lambda a, b: prox.SparseGroupL2(a, b, dim=1),
    "LInf": lambda a, b: prox.LInf(4 * a),
    "L1Ball": lambda a, b: prox.L1Ball(3 * a),
    "L2Ball": lambda a, b: prox.L2Ball(a),
    "Simplex": lambda a, b: prox.Simplex(a),
    "TV1D": lambda a, b: prox.TV1D(a),
    "Nuclear": lambda a, b: prox.Nuclear(a),
}


def arguments(device, name):
    v = torch.randn(3, 4, device=device, dtype=torch.float64)
    a, b = (torch.tensor(t, device=device, dtype=torch.float64) for t in (0.6, 0.4))
    step = torch.rand(() if name == "Nuclear" else (3, 4), device=device).double() + 0.5
    return v, step, a, b


@pytest.mark.parametrize("name", LEARNED)
def test_prox_differentiates_in_v_steps_and_strengths_twice(name, device):
    def call(v, step, a, b):
        return functional.prox(v, LEARNED[name](a, b), step)

    inputs = [t.requires_grad_() for t in arguments(device, name)]
    numbers = LEARNED[name](*(t.item() for t in inputs[2:]))
    step = inputs[1].item() if name == "Nuclear" else inputs[1]
    torch.testing.assert_close(call(*inputs), functional.prox(inputs[0], numbers, step))
    assert torch.autograd.gradcheck(call, inputs)
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True, check_backward_ad=False)
    assert torch.autograd.gradgradcheck(call, inputs)


@pytest.mark.parametrize("name", LEARNED)
def test_prox_under_vmap_and_compile(name, device):
    v, step, a, b = arguments(device, name)
    vs = torch.stack([v, -2 * v, v.flip(0)])

    def gradients(v, a):
        def total(v, a):
            return functional.prox(v, LEARNED[name](a, b), step).square().sum()

        return torch.func.grad(total, argnums=(0, 1))(v, a)

    lams = torch.stack([a, 2 * a, a / 2])
    expected = [torch.stack(t) for t in zip(*map(gradients, vs, lams), strict=True)]
    torch.testing.assert_close(list(torch.func.vmap(gradients)(vs, lams)), expected)
    numbers = LEARNED[name](a.item(), b.item())
    one = step.item() if name == "Nuclear" else step
    batched = torch.func.vmap(lambda v: functional.prox(v, numbers, one))(vs)
    torch.testing.assert_close(batched, torch.stack([functional.prox(t, numbers, one) for t in vs]))


@pytest.mark.no_kernels  # a graph with the same ops
@pytest.mark.parametrize("name", ["L0", "MCP", "SparseGroupL2", "L1Ball", "TV1D"])
def test_compiled_prox(name, device):
    v, step, a, b = arguments(device, name)

    def call(v, step, a):
        learned = functional.prox(v, LEARNED[name](a, b), step)
        return learned + functional.prox(v, LEARNED[name](0.6, 0.4), 0.7)

    def with_gradients(function):
        y = function(*inputs)
        return [y, *torch.autograd.grad(y.square().sum(), inputs)]

    inputs = [t.requires_grad_() for t in (v, step, a)]
    backend = "inductor" if name == "MCP" else "aot_eager"  # which takes less of a test's time
    compiled = torch.compile(call, fullgraph=True, backend=backend)
    torch.testing.assert_close(with_gradients(compiled), with_gradients(call))


@pytest.mark.parametrize("size", [2, 4, 5, 8, 64, 65, 3000])
@pytest.mark.parametrize("one_step", [True, False])
def test_of_equals_the_lowest_index_stays(size, one_step, device, dtype):
    v = torch.ones(size, device=device, dtype=dtype)
    v[size // 2] = 2.0
    step = 0.5 if one_step else torch.full_like(v, 0.5)
    with torch.no_grad():
        x = prox.TopK(k=min(4, size - 1)).prox(v, step)
    others = [i for i in range(size) if i != size // 2][: min(3, size - 2)]
    expected = torch.zeros_like(v)
    expected[size // 2] = 2
    expected[others] = 1
    assert torch.equal(x, expected)


@pytest.mark.parametrize("penalty", [prox.NMSparse(2, 4), prox.TopK(k=3)], ids=str)
def test_what_is_not_differentiable(penalty, device):
    v = torch.randn(3, 4, device=device, requires_grad=True)
    with pytest.raises(NotImplementedError, match="not differentiable"):
        functional.prox(v, penalty)
    with pytest.raises(NotImplementedError, match="not differentiable"):
        functional.prox(v.detach(), penalty, torch.ones_like(v).requires_grad_())
    with pytest.raises(NotImplementedError, match="not differentiable"):
        torch.func.jvp(lambda v: functional.prox(v, penalty), (v.detach(),), (v.detach(),))
    with torch.no_grad():
        x = functional.prox(v, penalty)
    assert penalty.value(x) == 0


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", LEARNED)
def test_prox_of_half_types_is_rounded_once(half, name, device):
    if name == "Nuclear" and half == torch.float16 and device != "cpu":
        return
    v, step, *_ = arguments(device, name)
    v, penalty = v.to(half), LEARNED[name](0.6, 0.4)
    step = 0.75 if name == "Nuclear" else step.float()
    exact = penalty.prox(v.float(), step)
    assert torch.equal(penalty.prox(v, step), exact.to(half))


@pytest.mark.parametrize("scale", [1e-25, 1e-3, 1.0, 1e25])
@pytest.mark.parametrize("name", LEARNED)
def test_prox_is_the_same_where_something_is_recorded(name, scale, device):
    v, step, *_ = (t.float() for t in arguments(device, name))
    penalty = LEARNED[name](0.6, 0.4)
    if name in ("L1Ball", "L2Ball", "Simplex", "GroupL2", "LInf", "TV1D", "L0"):
        # Of these v and the strength scale together, that of L0 by its square.
        factor = scale * scale if name == "L0" else scale
        numbers = (0.6 * factor, 0.4)
        penalty = LEARNED[name](*numbers) if 0 < numbers[0] < 1e30 else LEARNED[name](0.0, 0.4)
        v = v * scale
    step = step.item() if name == "Nuclear" else step
    expected = penalty.prox(v, step)
    x = penalty.prox(v.requires_grad_(), step)
    torch.testing.assert_close(x.detach() / scale, expected / scale, atol=1e-5, rtol=1e-5)
    assert torch.autograd.grad(x.sum(), v)[0].isfinite().all()


@pytest.mark.parametrize("ball", [prox.L1Ball, prox.L2Ball])
@pytest.mark.parametrize("radius", [0.3, 3.0, 7.0])
def test_what_is_inside_of_a_ball_stays(ball, radius, device, dtype):
    for seed in range(20):
        torch.manual_seed(seed)
        v = (torch.randn(16, device=device) / 400 * radius).to(dtype).requires_grad_()
        for size in (radius, torch.tensor(radius, device=device).to(dtype)):
            x = ball(size).prox(v)
            assert torch.equal(x, v)
            assert (torch.autograd.grad(x.sum(), v)[0] == 1).all()
    assert (ball(0.0).prox(v) == 0).all()


def test_nuclear_where_it_is_not_finite_and_with_no_step(device):
    v = torch.randn(4, 3, device=device)
    assert torch.equal(prox.Nuclear(0.5).prox(v, 0.0), v)
    v[0, 1] = torch.nan
    assert prox.Nuclear(0.5).prox(v).isnan().all()
    assert prox.Nuclear(0.5).value(torch.eye(3, device=device).bfloat16()) == 1.5


def test_values_of_half_types_are_added_up_in_float32(device):
    ones = torch.ones(100_000, device=device)
    for half in (torch.bfloat16, torch.float16):
        assert prox.L1(1.0).value(ones.to(half)) == 100_000
        assert prox.L0(1.0).value(ones.to(half)) == 100_000


@pytest.mark.parametrize("tiny", [1e-9, 1e-18, 0.0])
def test_a_dead_group_has_no_gradient_however_small(tiny, device, dtype):
    v = torch.tensor([[1.0, 2.0], [tiny, tiny]], dtype=dtype, device=device, requires_grad=True)
    lam = torch.tensor(0.1, dtype=dtype, device=device, requires_grad=True)
    step = torch.full_like(v, 5.0).requires_grad_()
    for penalty in (prox.GroupL2(lam), prox.SparseGroupL2(1e-3, lam)):
        y = penalty.prox(v, step)
        first = torch.autograd.grad(y.sum(), (v, lam, step), create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), (v, lam, step))
        assert all(g.isfinite().all() for g in (*first, *second))
        assert (first[0][1] == 0).all()
        assert (first[2][1] == 0).all()


@pytest.mark.parametrize("penalty", [prox.GroupL2(0.1), prox.MCP(0.1) + prox.NonNegative()])
def test_a_step_that_changes_is_an_input_of_the_compiled_function(penalty):
    counter = CompileCounter()
    compiled = torch.compile(penalty.prox, backend=counter, fullgraph=True)
    v = torch.randn(5, 4)
    for k in range(12):
        torch.testing.assert_close(compiled(v, 0.1 * k + 0.05), penalty.prox(v, 0.1 * k + 0.05))
    assert counter.frame_count <= 3


def test_strengths_that_change_while_tracing():
    compiled = torch.compile(lambda v, lam: prox.LInf(lam).prox(v), backend="eager", fullgraph=True)
    v = torch.randn(5)
    for lam in (0.1, 0.2, 0.3):
        torch.testing.assert_close(compiled(v, lam), prox.LInf(lam).prox(v))


def test_values_and_conjugates_of_large_tensors_are_no_laxer():
    n = 1_000_000
    u = torch.full((n,), 1.005)
    assert prox.ElasticNet(1.0, 1.0).conjugate(torch.full((n,), 2.0)).item() == pytest.approx(n / 2)
    for penalty in (prox.L1(1.0), prox.NonNegativeL1(1.0)):
        assert penalty.conjugate(u).isinf()
    assert prox.GroupL2(1.0).conjugate(u.view(n, 1)).isinf()
    one = torch.full((n,), 1.0)
    for penalty, w in (
        (prox.L2Ball(1.0), one / n**0.5),
        (prox.L1Ball(1.0), one / n),
        (prox.Simplex(1.0), one / n),
    ):
        assert penalty.value(w) == 0
        assert penalty.value(1.005 * w).isinf()
        assert penalty.value(penalty.prox(torch.randn(n))) == 0
    assert prox.Simplex(9e4).value(torch.full((1000,), 90.0).half()) == 0


def test_conjugates_refuse_what_values_refuse():
    for call in (
        lambda: prox.L2(0.1).conjugate(torch.randn(3).cfloat()),
        lambda: prox.L1(0.1).dual_norm(torch.arange(3)),
    ):
        with pytest.raises(TypeError, match="u must be float32"):
            call()
    for penalty in (prox.L1(1.0), prox.GroupL2(1.0), prox.L1Ball(1.0), prox.Simplex(1.0)):
        assert penalty.conjugate(torch.zeros(0)) == 0


@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16], ids=str)
def test_a_conjugate_of_half_types_has_their_rounding(half):
    for penalty in (prox.L1(0.1), prox.NonNegativeL1(0.1), prox.GroupL2(0.1), prox.LInf(0.1)):
        for sign in (1, 1 - 1e-5):  # whichever way 0.1 is rounded
            assert penalty.conjugate(torch.tensor([0.1 * sign], dtype=half)) == 0
        assert penalty.conjugate(torch.tensor([0.11], dtype=half)).isinf()


def test_a_value_has_a_gradient_at_zero():
    w = torch.tensor([0.0, 4.0], requires_grad=True)
    prox.LHalf(2.0).value(w).backward()
    assert torch.equal(w.grad, torch.tensor([0.0, 0.5]))


@pytest.mark.parametrize("n", range(1, 34))
def test_l1_ball_far_inside_in_any_metric(n, device):
    generator = torch.Generator().manual_seed(n)
    v = (1000 * torch.randn(n, generator=generator)).to(device)
    s = (0.4 + 1.4 * torch.rand(n, generator=generator)).to(device)
    for radius in (1e-3, 1.0):
        x = prox.L1Ball(radius).prox(v, s)
        assert x.double().abs().sum().item() == pytest.approx(radius, rel=1e-6)
        assert prox.L1Ball(radius).value(x) == 0
