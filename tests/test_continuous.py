"""What the chapter on continuous flows leaves out: every kind, width and dtype; solves that fail; torchdiffeq at tight tolerances."""
import copy
import math
import sys
from collections.abc import Callable

import pytest
import torch

from autonf_nb.estimator import AutoNF
from autonf_nb.flow import Flow
from autonf_nb.training import Rows, Run, train_flow
from autonf_nb.transforms.continuous import DYNAMICS, ContinuousFlow, Dynamics, SolverError, dopri5, one_by_one, with_torchdiffeq

CONTEXT = 3
# what a tolerance of 1e-10 leaves of the errors; single precision does not go below 16 eps
LOOSE = {torch.float64: 1e-8, torch.float32: 5e-4}

each_kind = pytest.mark.parametrize("kind", DYNAMICS)
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
each_context = pytest.mark.parametrize("context_features", [0, CONTEXT], ids=["", "context"])
each_solver = pytest.mark.parametrize("solver", ContinuousFlow.SOLVERS)
each_width = pytest.mark.parametrize("features", [1, 2, 5])


def shaken(features: int, *, kind: str = "concatsquash", dtype: torch.dtype = torch.float64, scale: float = 0.2,
           **options) -> ContinuousFlow:
    "A layer with its parameters moved off the identity start, alike in each call."
    torch.manual_seed(0)
    layer = ContinuousFlow(features, **({"hidden_features": 16, "dynamics": kind, "tolerance": 1e-10} | options)).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(scale * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))
    return layer


def rows(n: int, features: int, context_features: int = 0, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor | None]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(n, features, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randn(n, context_features, generator=generator, dtype=torch.float64).to(dtype) if context_features else None


def close(a: torch.Tensor, b: torch.Tensor, eps: float) -> None:
    torch.testing.assert_close(a, b, atol=eps, rtol=eps)


def jacobian(direction: Callable, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
    return torch.autograd.functional.jacobian(lambda x: direction(x, context)[0].sum(0), x).movedim(1, 0)


@each_kind
@each_width
@each_context
@each_dtype
def test_both_directions(kind, features, context_features, dtype):
    layer = shaken(features, kind=kind, dtype=dtype, context_features=context_features, scale=0.1 if kind == "hypernetwork" else 0.2)
    x, c = rows(6, features, context_features, dtype)
    for there, back in ((layer, layer.inverse), (layer.inverse, layer)):
        y, logabsdet = there(x, c)
        assert y.dtype == logabsdet.dtype == dtype and (y - x).abs().max() > 0.01
        x_back, logabsdet_back = back(y, c)
        close(x_back, x, LOOSE[dtype])
        close(logabsdet_back, -logabsdet, LOOSE[dtype])
        close(logabsdet, torch.linalg.slogdet(jacobian(there, x, c)).logabsdet, LOOSE[dtype])


@each_kind
@each_context
def test_single_precision_agrees_with_double(kind, context_features):
    layer, (x, c) = shaken(3, kind=kind, context_features=context_features), rows(50, 3, context_features)
    expected = layer(x, c)
    for a, b in zip(layer.float()(x.float(), None if c is None else c.float()), expected):
        assert a.dtype == torch.float32
        close(a.double(), b, 1e-4)


@each_kind
@each_width
@each_context
@pytest.mark.parametrize("direction", ["density", "sampling"])
def test_every_parameter_gets_a_gradient(kind, features, context_features, direction):
    layer = shaken(features, kind=kind, dtype=torch.float32, context_features=context_features, tolerance=1e-5)
    x, c = rows(64, features, context_features, torch.float32)
    y, logabsdet = (layer if direction == "density" else layer.inverse)(x, c)
    (y.pow(3).sum() - logabsdet.sum()).backward()
    for name, p in layer.named_parameters():
        assert p.grad is not None and p.grad.isfinite().all() and p.grad.abs().max() > 1e-6, name


@each_kind
def test_gradients_are_those_of_differences(kind):
    layer, (x, c) = shaken(2, kind=kind, context_features=CONTEXT, hidden_features=4, scale=0.1), rows(2, 2, CONTEXT)
    inputs = x.requires_grad_(), c.requires_grad_()
    for direction in (layer.forward, layer.inverse):
        assert torch.autograd.gradcheck(direction, inputs, atol=1e-6, rtol=1e-4, eps=1e-4)


@each_kind
@each_context
def test_torchdiffeq_agrees(kind, context_features):
    ours = shaken(3, kind=kind, context_features=context_features, scale=0.1 if kind == "hypernetwork" else 0.2)
    x, c = rows(10, 3, context_features)
    values, gradients = {}, {}
    for solver in ContinuousFlow.SOLVERS:
        layer = copy.deepcopy(ours)
        layer.solver, layer.steps = solver, 60
        u, logabsdet = layer(x, c)
        back, _ = layer.inverse(u, c)
        values[solver] = torch.cat([u, logabsdet[:, None], back], 1)
        gradients[solver] = torch.autograd.grad((u.pow(3).sum(1) - logabsdet).mean(), list(layer.parameters()))
        assert layer.nfe > 30
    for solver in ContinuousFlow.SOLVERS[1:]:
        close(values[solver], values["dopri5"], 1e-8)
        for a, b in zip(gradients[solver], gradients["dopri5"]):
            close(a, b, 1e-6)


def test_the_adjoint_reaches_the_context():
    layer, (x, c) = shaken(2, context_features=CONTEXT), rows(5, 2, CONTEXT)
    c.requires_grad_()
    found = []
    for layer.solver in ("dopri5", "torchdiffeq-adjoint", "torchdiffeq-rk4-adjoint"):
        found.append(torch.autograd.grad(layer(x, c)[1].sum(), c)[0])
    close(found[1], found[0], 1e-7)
    close(found[2], found[0], 1e-5)  # 20 steps
    assert found[0].abs().max() > 1e-4


@pytest.mark.parametrize("solver", ["rk4", "torchdiffeq-rk4", "torchdiffeq-rk4-adjoint"])
def test_fixed_steps_converge(solver):
    layer, (x, _) = shaken(2), rows(20, 2)
    with torch.no_grad():
        u, logabsdet = layer(x)
        layer.solver, errors = solver, []
        for layer.steps in (10, 20):
            u_steps, logabsdet_steps = layer(x)
            assert layer.nfe == 4 * layer.steps
            errors.append(max((u_steps - u).abs().max().item(), (logabsdet_steps - logabsdet).abs().max().item()))
    assert 11 < errors[0] / errors[1] < 22, errors  # fourth order: 16


def test_torchdiffeq_is_optional(monkeypatch):
    layer = ContinuousFlow(2, solver="torchdiffeq")
    monkeypatch.setitem(sys.modules, "torchdiffeq", None)
    with pytest.raises(ImportError, match=r"pip install 'autonf_nb\[cnf\]'"):
        layer(torch.randn(3, 2))
    ContinuousFlow(2)(torch.randn(3, 2))


@each_kind
@pytest.mark.parametrize("n", [0, 1])
def test_few_rows(kind, n):
    for features, context_features in ((1, 0), (4, CONTEXT)):
        layer, (x, c) = shaken(features, kind=kind, context_features=context_features), rows(n, features, context_features)
        for direction in (layer, layer.inverse, layer.forward_with_penalties):
            y, *numbers = direction(x, c)
            assert y.shape == (n, features) and all(number.shape == (n,) for number in numbers)
            assert y.isfinite().all() and {t.dtype for t in (y, *numbers)} == {torch.float64}


@each_kind
def test_state_travels(kind):
    layer, (x, c) = shaken(3, kind=kind, context_features=CONTEXT), rows(7, 3, CONTEXT)
    expected = layer(x, c)
    twin = ContinuousFlow(3, hidden_features=16, dynamics=kind, tolerance=1e-10, context_features=CONTEXT).double()
    twin.load_state_dict(layer.state_dict())
    assert set(layer.state_dict()) == {name for name, _ in layer.named_parameters()}  # no state but the parameters
    for other in (twin, copy.deepcopy(layer), layer):
        for a, b in zip(other(x, c), expected):
            assert torch.equal(a, b)


@each_kind
def test_everything_moves_to_a_device(kind):
    layer = ContinuousFlow(3, context_features=CONTEXT, dynamics=kind).to("meta")
    held = [*layer.parameters(), *layer.buffers()]
    held += [value for part in layer.modules() for value in vars(part).values() if isinstance(value, torch.Tensor)]
    assert held and all(t.device.type == "meta" for t in held)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_kind
def test_cuda_agrees_with_the_cpu(kind):
    layer, (x, c) = shaken(3, kind=kind, context_features=CONTEXT), rows(7, 3, CONTEXT)
    expected = [*layer(x, c), *layer.inverse(x, c), *layer.forward_with_penalties(x, c)[:3]]
    layer, x, c = layer.cuda(), x.cuda().requires_grad_(), c.cuda()
    found = [*layer(x, c), *layer.inverse(x, c), *layer.forward_with_penalties(x, c)[:3]]
    for a, b in zip(found, expected):
        close(a.cpu(), b, 1e-8)
    sum(a.sum() for a in found).backward()
    assert x.grad.isfinite().all()


@each_dtype
def test_finer_than_the_dtype_is_as_fine_as_it_goes(dtype):
    layer, (x, _) = shaken(2, dtype=dtype, tolerance=1e-15), rows(20, 2, dtype=dtype)
    with torch.no_grad():
        u, _ = layer(x)
        close(layer.inverse(u)[0], x, 1e-4 if dtype == torch.float32 else 1e-12)


def test_the_count_of_evaluations():
    layer, calls = shaken(2, tolerance=1e-5, scale=0.5), []
    at = layer.dynamics.at
    layer.dynamics.at = lambda times, context: [lambda z, field=field: calls.append(1) or field(z) for field in at(times, context)]
    for direction in (layer, layer.inverse):
        calls.clear()
        direction(torch.randn(10, 2, dtype=torch.float64))
        assert layer.nfe == len(calls) > 7 and layer.nfe % 6 == 1
    identity = ContinuousFlow(2)
    identity(torch.randn(10, 2))
    assert identity.nfe == 7


def test_a_batch_keeps_each_rows_tolerance():
    "One hard row among a thousand easy ones is as exact as alone: torchdiffeq's mean over the batch would let it go."
    spin = one_by_one(lambda t, y: torch.stack([-y[1] * y[2], y[0] * y[2], torch.zeros_like(y[2])]))
    y = torch.tensor([[1.0], [0.0], [0.1]], dtype=torch.float64).repeat(1, 1000)
    y[2, 500] = 20.0
    end, _ = dopri5(spin, y, 0.0, 1.0, 1e-6)
    expected = torch.stack([y[2].cos(), y[2].sin(), y[2]])
    assert (end - expected).abs().max() < 1e-4


def test_estimates_only_while_training():
    x, _ = rows(500, 4)
    exact = shaken(4)(x)[1]
    for kind in ("gaussian", "rademacher"):
        layer = shaken(4, train_trace=kind)
        drawn = []
        for _ in range(2):
            torch.manual_seed(3)
            drawn.append(layer(x)[1])
        assert torch.equal(*drawn) and not torch.equal(layer(x)[1], drawn[0])
        off = drawn[0] - exact
        assert off.abs().max() > 0.01 and off.mean().abs() < 5 * off.std() / 500**0.5
        close(layer.eval()(x)[1], exact, 1e-8)


def test_penalties_change_nothing_and_add_up():
    layer, (x, c) = shaken(3, context_features=CONTEXT), rows(20, 3, CONTEXT)
    u, logabsdet, kinetic, stretch = layer.forward_with_penalties(x, c)
    for a, b in zip((u, logabsdet), layer(x, c)):
        assert torch.equal(a, b)
    assert (kinetic >= (u - x).square().sum(1) - 1e-9).all()  # no way is shorter than the straight one
    assert (stretch > 0).all()
    for penalty in (kinetic, stretch):
        gradients = torch.autograd.grad(penalty.sum(), list(layer.dynamics.parameters()), retain_graph=True, allow_unused=True)
        assert any(g is not None and g.abs().max() > 0 for g in gradients)


def test_penalties_while_training():
    layer, (x, c) = shaken(3, context_features=CONTEXT, train_penalties=(0.1, 0.3)), rows(20, 3, CONTEXT)
    torch.manual_seed(0)
    u, logabsdet, kinetic, stretch = layer.forward_with_penalties(x, c)
    torch.manual_seed(0)
    found = layer(x, c)
    assert torch.equal(found[0], u)
    close(found[1], logabsdet - 0.1 * kinetic - 0.3 * stretch, 1e-12)
    assert torch.equal(layer.eval()(x, c)[1], logabsdet)
    close(layer.train().inverse(u, c)[1], -logabsdet, 1e-8)


def trained(folder, x: torch.Tensor, stop: int | None = None) -> ContinuousFlow:
    "Six steps; with `stop`, an interruption after so many."
    torch.manual_seed(0)
    flow, count = Flow(ContinuousFlow(2, hidden_features=8), 2), [0]

    def interrupt(*_):
        count[0] += flow.training
        if stop is not None and count[0] > stop:
            raise KeyboardInterrupt

    flow.transform.register_forward_hook(interrupt)
    with Run(folder, save_every=0) as run:
        train_flow(flow, Rows(x[:40]), Rows(x[40:]), steps=6, batch_size=20, validations=2, run=run)
    return flow.transform


def test_training_goes_on_where_it_was_stopped(tmp_path):
    x, _ = rows(60, 2, dtype=torch.float32)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path, x, stop=4)
    resumed, whole = trained(tmp_path, x), trained(None, x)
    for a, b in zip(resumed.state_dict().values(), whole.state_dict().values()):
        assert torch.equal(a, b)


def test_an_estimator_saves_and_loads_it(tmp_path):
    x = rows(200, 2)[0].numpy()
    est = AutoNF(candidates=("CNF",), n_layers=1, hidden_features=8, steps=5, batch_size=50, lam=0.0).fit(x)
    assert tuple(est.architecture_) == ("CNF",)
    est.save(tmp_path/"flow")
    found = AutoNF.load(tmp_path/"flow").log_prob(x)
    assert (found == est.log_prob(x)).all()


class Runaway(Dynamics):
    "dz/dt = z^2: a row above 1 reaches infinity before t = 1."

    def __init__(self, features: int, **options):
        super().__init__(features, **options)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def at(self, times, context=None):
        return [lambda z: self.scale * z.square()] * len(times)


@each_solver
@each_dtype
def test_a_row_that_runs_away(solver, dtype):
    layer = ContinuousFlow(1, dynamics=Runaway, solver=solver).to(dtype)
    x = torch.tensor([[0.1], [0.2], [3.0], [0.3]], dtype=dtype)
    with pytest.raises(SolverError) as caught:
        layer(x)
    message = str(caught.value)
    assert "row 2" in message and "standardise" in message and "\n" not in message
    u, _ = layer(x[[0, 1, 3]])  # the layer is none the worse for it
    close(u, x[[0, 1, 3]] / (1 - x[[0, 1, 3]]), 1e-3)


class Lost(Dynamics):
    "A row beyond 2 has a velocity until t = 1/2."

    def __init__(self, features: int, **options):
        super().__init__(features, **options)
        self.scale = torch.nn.Parameter(torch.ones(()))

    def at(self, times, context=None):
        return [lambda z, t=t: torch.where((z > 2) & (t > 0.5), math.nan, self.scale * 0.1 * z) for t in times]


@each_solver
@each_dtype
def test_a_row_that_is_lost_on_the_way(solver, dtype):
    layer = ContinuousFlow(1, dynamics=Lost, solver=solver).to(dtype)
    with pytest.raises(SolverError, match="row 2") as caught:
        layer(torch.tensor([[0.1], [0.2], [3.0], [0.3]], dtype=dtype))
    assert "finite" in str(caught.value) and "standardise" in str(caught.value)


@pytest.mark.parametrize("steps", [None, 20], ids=["dopri5", "rk4"])
def test_the_adjoint_equation_names_rows_too(steps):
    "Velocities are finite, the derivative of row 2's is not; and a gradient that comes in as NaN."
    scale, y = torch.ones((), requires_grad=True), torch.tensor([[0.1, 0.2, 3.0, 0.3]])
    root = one_by_one(lambda t, y: scale * torch.sqrt(torch.where(y > 2, 0 * y, 1.0)))
    end, _ = with_torchdiffeq(root, y.requires_grad_(), 0.0, 1.0, 1e-5, steps=steps, adjoint=(scale,))
    with pytest.raises(SolverError, match="row 2"):
        end.sum().backward()
    end, _ = with_torchdiffeq(one_by_one(lambda t, y: scale * y), y, 0.0, 1.0, 1e-5, steps=steps, adjoint=(scale,))
    with pytest.raises(SolverError, match="row 1 of 4 is not finite .* gradient"):
        (end * torch.tensor([1.0, math.nan, 1.0, 1.0])).sum().backward()


def test_torchdiffeq_keeps_to_max_steps():
    layer = shaken(2, scale=1.0, tolerance=1e-9, solver="torchdiffeq", max_steps=10)
    with pytest.raises(SolverError, match="after 10 steps, because of row"):
        layer(rows(5, 2)[0])


@each_solver
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_row_that_is_not_finite(solver, value):
    for layer in (shaken(2, solver=solver, dtype=torch.float32), ContinuousFlow(2, solver=solver)):
        x, _ = rows(5, 2, dtype=torch.float32)
        x[3, 1] = value
        for direction in (layer, layer.inverse):
            with pytest.raises(SolverError, match="row 3 of 5 is not finite"):
                direction(x)


def test_more_rows_that_are_not_finite():
    x, _ = rows(5, 2, dtype=torch.float32)
    x[1:4] = math.nan
    with pytest.raises(SolverError, match="rows 1 and 2 more of 5 are not finite"):
        ContinuousFlow(2)(x)


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_weights_of_a_diverged_training(scale):
    "Either a finite answer or a SolverError: never NaN, never without end."
    layer = shaken(3, dtype=torch.float32, tolerance=1e-5, scale=0.05, max_steps=100)
    with torch.no_grad():
        layer.dynamics.layers[-1].weight.mul_(scale / layer.dynamics.layers[-1].weight.std())
    for direction in (layer, layer.inverse):
        try:
            y, logabsdet = direction(rows(20, 3, dtype=torch.float32)[0])
        except SolverError as error:
            assert "after 100 steps" in str(error) and "smaller learning rate" in str(error)
        else:
            assert scale < 1e4 and y.isfinite().all() and logabsdet.isfinite().all()


def test_far_rows_are_finite():
    layer, (x, _) = shaken(3, dtype=torch.float32, tolerance=1e-5), rows(20, 3, dtype=torch.float32)
    for direction in (layer, layer.inverse):
        for far in (1e3 * x, 1e6 * x):
            y, logabsdet = direction(far)
            assert y.isfinite().all() and logabsdet.isfinite().all()


@pytest.mark.parametrize("options, message", [
    ({"dynamics": "conv"}, "dynamics must be one of concat, concatsquash, hypernetwork, got 'conv'"),
    ({"solver": "euler"}, "solver must be one of dopri5, rk4"), ({"train_trace": "none"}, "train_trace must be one of exact"),
    ({"tolerance": 0.0}, "tolerance must be between 0 and 1"), ({"steps": 0}, "steps and max_steps must be 1 or more"),
    ({"hidden_features": 0}, "hidden_features must be 1 or more"),
    ({"train_penalties": (0.1,)}, "train_penalties must be two weights of 0 or more"),
    ({"train_penalties": (0.1, math.nan)}, "train_penalties must be two weights of 0 or more")])
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        ContinuousFlow(2, **options)


def test_bad_shapes():
    layer, (x, c) = shaken(2, context_features=CONTEXT), rows(5, 2, CONTEXT)
    for direction in (layer, layer.inverse, layer.forward_with_penalties):
        for inputs, context, message in ((torch.cat([x, x], 1), c, "inputs must have shape"), (x, None, "needs a context"),
                                         (x, c[:, :1], "context must have shape"), (x, c[:2], "context must have shape")):
            with pytest.raises(ValueError, match=message):
                direction(inputs, context)
    with pytest.raises(ValueError, match="context_features=0"):
        shaken(2)(x, c)
