"""The superflow against its definition: every path enumerated, every density integrated."""
from itertools import product

import pytest
import torch

from autonf_nb.candidates import SearchSpace
from autonf_nb.flow import standard_normal_log_prob
from autonf_nb.objective import architecture_loss, depth_values, op1_loss, op2_loss, theta_loss
from autonf_nb.superflow import StratifiedSuperFlow, SuperFlow, prefix_tree_log_prob

FIVE = ("MAF", "RQ-AF", "RealNVP", "RQ-C", "NULL")


@pytest.fixture(autouse=True)
def one_thread_one_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def perturbed(superflow, scale=0.2):
    "A little away from the start, where every path is the same standard normal."
    with torch.no_grad():
        for p in superflow.parameters():
            p.add_(scale * torch.randn_like(p))
    return superflow


def small(kind=SuperFlow, candidates=FIVE, n_layers=2, features=3, scale=0.2, **kw):
    return perturbed(kind(SearchSpace(candidates, n_layers=n_layers, hidden_features=12, num_bins=4), features, **kw), scale)


def enumerate_paths(superflow, x, context=None):
    found = []
    for path in product(range(len(superflow.space.candidates)), repeat=superflow.space.n_layers):
        u, logabsdet = superflow.path_transform(path)(x, context)
        found.append(standard_normal_log_prob(u) + logabsdet)
    return torch.stack(found, 1).view(len(x), *superflow.path_cost().shape)


@pytest.mark.parametrize("n_layers", [1, 2, 3])
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-10)])
def test_tree_equals_enumeration(n_layers, dtype, tolerance):
    superflow = small(n_layers=n_layers).to(dtype)
    x = torch.randn(13, 3, dtype=dtype)
    assert (superflow.path_log_prob(x) - enumerate_paths(superflow, x)).abs().max() < tolerance


def test_tree_equals_enumeration_with_context():
    superflow = small(n_layers=3, context_features=2).double()
    x, context = torch.randn(5, 3).double(), torch.randn(5, 2).double()
    assert (superflow.path_log_prob(x, context) - enumerate_paths(superflow, x, context)).abs().max() < 1e-10


def test_axis_i_plus_1_is_layer_i_from_the_data_side():
    def shift(u, context):
        return u + 3, u.new_zeros(len(u))

    def double(u, context):
        return 2 * u, u.new_full((len(u),), 2.0).log()

    x = torch.linspace(-1, 1, 4)[:, None]
    log_prob = prefix_tree_log_prob([[double, None, shift], [None, shift, double]], x)
    assert log_prob.shape == (4, 3, 3)
    double_then_shift, shift_then_double = 2 * x + 3, 2 * (x + 3)
    log_2 = torch.tensor(2.0).log()
    torch.testing.assert_close(log_prob[:, 0, 1], standard_normal_log_prob(double_then_shift) + log_2)
    torch.testing.assert_close(log_prob[:, 2, 2], standard_normal_log_prob(shift_then_double) + log_2)
    torch.testing.assert_close(log_prob[:, 1, 0], standard_normal_log_prob(x))


def integrals(density, features, edge, points):
    axis = torch.linspace(-edge, edge, points, dtype=torch.float64)
    grid = axis[:, None] if features == 1 else torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        return sum(density(part).exp().sum(0) for part in grid.split(4096)) * (axis[1] - axis[0]) ** features


@pytest.mark.parametrize("features, edge, points, scale", [(1, 40, 8001, 0.2), (2, 9, 201, 0.1)])
def test_every_path_and_the_mixture_integrate_to_one(features, edge, points, scale):
    superflow = small(features=features, scale=scale).double()
    one = torch.ones(5, 5, dtype=torch.float64)
    torch.testing.assert_close(integrals(superflow.path_log_prob, features, edge, points), one, atol=2e-3, rtol=0)
    torch.testing.assert_close(integrals(superflow.log_prob, features, edge, points), one[0, 0], atol=2e-3, rtol=0)


@pytest.mark.parametrize("kind", [SuperFlow, StratifiedSuperFlow])
@pytest.mark.parametrize("features", [1, 2, 5])
def test_gradients_reach_every_parameter(kind, features):
    superflow = small(kind, features=features)
    x = torch.randn(64, features)
    log_prob = superflow.path_log_prob(x)
    if kind is SuperFlow:
        loss = op1_loss(log_prob, superflow.log_weights(), superflow.path_cost(), 0.1)
    else:
        loss = theta_loss(log_prob) + architecture_loss([-lp.mean(0) for lp in log_prob], superflow, 0.1)
    loss.backward()
    silent = [name for name, p in superflow.named_parameters()
              if p.numel() and (p.grad is None or not p.grad.abs().sum() > 0)]  # one feature leaves MADE without hidden units
    assert silent == []


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("features", [1, 2])
def test_no_row_and_one_row(rows, features):
    x = torch.randn(rows, features)
    assert small(features=features).path_log_prob(x).shape == (rows, 5, 5)
    assert [tuple(lp.shape) for lp in small(StratifiedSuperFlow, features=features).path_log_prob(x)] == [(rows,), (rows, 4), (rows, 4, 4)]


def test_log_weights_sum_to_one():
    assert small(n_layers=3, scale=3.0).log_weights().flatten().logsumexp(0).abs() < 1e-5


@pytest.mark.parametrize("args, message", [
    ((torch.zeros(4, 2), None), r"\(rows, 3\)"),
    ((torch.zeros(4, 3), None), "context_features=2"),
    ((torch.zeros(4, 3), torch.zeros(3, 2)), "one row for each row"),
])
def test_wrong_shapes_are_named(args, message):
    with pytest.raises(ValueError, match=message):
        small(context_features=2).path_log_prob(*args)


def test_op2_bounds_op1_and_meets_it_at_a_vertex():
    superflow = small().double()
    log_prob, cost = superflow.path_log_prob(torch.randn(50, 3).double()), superflow.path_cost()
    inside = superflow.log_weights()
    assert op2_loss(log_prob, inside, cost, 0.1) > op1_loss(log_prob, inside, cost, 0.1) + 1e-6
    vertex = torch.full_like(inside, -torch.inf)
    vertex[1, 3] = 0
    price = -log_prob[:, 1, 3].mean() + 0.1 * cost[1, 3]
    for loss in (op1_loss, op2_loss):
        torch.testing.assert_close(loss(log_prob, vertex, cost, 0.1), price)


def test_stratified_objectives_by_hand():
    superflow, lam = small(StratifiedSuperFlow).double(), 0.3
    log_prob = superflow.path_log_prob(torch.randn(20, 3).double())
    torch.testing.assert_close(theta_loss(log_prob), -log_prob[1].mean() - log_prob[2].mean())
    nll = [-lp.mean(0) for lp in log_prob]
    w1, (u, v) = superflow.stratum(1).weights()[0], superflow.stratum(2).weights()
    costs = superflow.path_cost()
    values = torch.stack([nll[0], w1 @ (nll[1] + lam * costs[1]), u @ (nll[2] + lam * costs[2]) @ v])
    torch.testing.assert_close(depth_values(nll, superflow, lam), values)
    torch.testing.assert_close(architecture_loss(nll, superflow, lam), superflow.q() @ values + values[1:].sum() / 3)
    architecture_loss(nll, superflow, lam).backward()
    assert all(p.grad is None for p in superflow.theta())
    assert all(p.grad.abs().sum() > 0 for p in superflow.arch_parameters())


def test_every_candidate_takes_part():
    "All families in one layer, and each of them before a RealNVP layer: finite densities of every path, gradients for every weight."
    from autonf_nb.candidates import CANDIDATES
    real = [name for name in CANDIDATES if name != "NULL"]
    x = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    for names, n_layers in ((tuple(real), 1), *(((name, "RealNVP", "NULL"), 2) for name in real if name != "RealNVP")):
        superflow = SuperFlow(SearchSpace(names, n_layers=n_layers, hidden_features=8, num_bins=4), features=3)
        log_prob = superflow.path_log_prob(x)
        assert log_prob.shape == (16, *[len(names)] * n_layers) and log_prob.isfinite().all()
        (-superflow.log_prob(x).mean()).backward()
        assert superflow.alpha.grad.isfinite().all()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in superflow.parameters() if p.numel())
