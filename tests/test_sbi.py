"""The found flow inside the package sbi: its posterior, its diagnostics, its training."""
import copy
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from autonf_nb.estimator import AutoNF
from autonf_nb.sbi import TWO_MOONS, expected_coverage, sbi_builder, sbi_estimator

pytest.importorskip("sbi", reason="the optional package sbi is not installed: pip install 'autonf_nb[sbi]'")


@pytest.fixture(scope="module")
def est() -> AutoNF:
    theta, x = TWO_MOONS.pairs(2000, seed=0)
    small = AutoNF(candidates=("RQ-C", "MAF"), n_layers=2, steps=100, hidden_features=16, bounds=TWO_MOONS.bounds, device="cpu")
    return small.fit(theta, context=x)


@pytest.fixture(scope="module")
def prior():
    from sbi.utils import BoxUniform
    return BoxUniform(-torch.ones(2), torch.ones(2))


@pytest.fixture(scope="module")
def fresh() -> tuple[np.ndarray, np.ndarray, torch.Tensor, torch.Tensor]:
    theta, x = TWO_MOONS.pairs(150, seed=1)
    return theta, x, torch.tensor(theta).float(), torch.tensor(x).float()


@pytest.fixture(scope="module")
def posterior(est, prior):
    from sbi.inference import DirectPosterior
    return DirectPosterior(sbi_estimator(est), prior)


def test_shapes_are_those_of_sbi(est, fresh):
    density, (_, _, theta, x) = sbi_estimator(est), fresh
    assert density.input_shape == (2,) and density.condition_shape == (2,)
    assert density.log_prob(theta, x).shape == (1, 150) and density.log_prob(theta.expand(4, 150, 2), x).shape == (4, 150)
    assert density.log_prob(theta.expand(4, 150, 2), x[:1]).shape == (4, 150) and density.loss(theta, x).shape == (150,)
    assert torch.allclose(density.loss(theta, x), -density.log_prob(theta, x)[0])
    assert density.sample(torch.Size([5, 3]), x).shape == (5, 3, 150, 2) and density.sample(torch.Size([]), x).shape == (150, 2)
    with pytest.raises(ValueError, match="condition"):
        density.log_prob(theta, x[:, :1])


def test_samples_belong_to_their_condition(est, fresh):
    density, (_, x, _, seen) = sbi_estimator(est), fresh
    torch.manual_seed(0)
    drawn = density.sample(torch.Size([2000]), seen[:3])
    for j in range(3):  # seed 0: means of 2,000 draws by either way, five standard errors of their difference
        ours = est.sample(2000, x[j], seed=0)
        error = np.sqrt(ours.var(0) / 2000 + drawn[:, j].var(0).numpy() / 2000)
        assert (abs(ours.mean(0) - drawn[:, j].mean(0).numpy()) < 5 * error).all()


def test_the_posterior_is_ours(est, posterior, fresh):
    theta, x, seen_theta, seen = fresh
    ours = est.log_prob(theta, np.repeat(x[:1], len(theta), 0))
    assert np.allclose(posterior.log_prob(seen_theta, x=seen[:1]).numpy(), ours, atol=1e-3)  # float32 against float64
    outside = torch.tensor([[1.5, 0.0], [0.0, -1.0]])
    assert (posterior.log_prob(outside, x=seen[:1]) == -torch.inf).all()
    drawn = posterior.sample((500,), x=seen[0], show_progress_bars=False)
    assert drawn.shape == (500, 2) and drawn.abs().max() < 1
    assert posterior.leakage_correction(x=seen[:1], show_progress_bars=False) == 1  # nothing is ever rejected
    assert posterior.sample_batched((10,), x=seen[:7], show_progress_bars=False).shape == (10, 7, 2)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["copy", "pickle"])
def test_the_posterior_can_be_kept(posterior, fresh, again):
    _, _, theta, x = fresh
    assert torch.equal(again(posterior).log_prob(theta, x=x[:1]), posterior.log_prob(theta, x=x[:1]))


def test_the_fitted_estimator_is_left_alone(est, fresh):
    theta, x, seen_theta, seen = fresh
    before, density = est.log_prob(theta, x), sbi_estimator(est)
    with torch.no_grad():
        for p in density.parameters():
            p.add_(1.0)
    assert np.array_equal(est.log_prob(theta, x), before)


def test_float64(est, fresh):
    theta, x, _, _ = fresh
    density = sbi_estimator(est).double()
    assert np.allclose(density.log_prob(torch.tensor(theta), torch.tensor(x))[0].detach().numpy(), est.log_prob(theta, x), atol=1e-5)


@pytest.mark.filterwarnings("ignore:Capping max_sampling_batch_size")
def test_sbis_diagnostics_take_it(est, posterior, fresh):
    from sbi.diagnostics import run_sbc, run_tarp
    theta, x, seen_theta, seen = fresh
    torch.manual_seed(0)
    ranks, _ = run_sbc(seen_theta, seen, posterior, num_posterior_samples=100, reduce_fns=posterior.log_prob, show_progress_bar=False)
    ours = expected_coverage(est, theta, x, samples=100)
    # sbi counts the draws of lower density, ours those of higher: seed 0, 150 rows, each known to about a twentieth from 100 draws
    assert np.corrcoef(ours.ranks, ranks[:, 0].numpy())[0, 1] < -0.95
    assert abs(ours.ranks - (1 - ranks[:, 0].numpy() / 100)).mean() < 0.06
    coverage, levels = run_tarp(seen_theta, seen, posterior, num_posterior_samples=100, show_progress_bar=False)
    assert coverage.shape == levels.shape


@pytest.mark.filterwarnings("ignore:Maximum number of epochs")
def test_sbi_trains_the_architecture_found(est, prior, fresh, monkeypatch, tmp_path):
    from sbi.inference import NPE
    monkeypatch.chdir(tmp_path)  # it writes its logs where it runs
    _, _, theta, x = fresh
    pairs = [torch.tensor(t).float() for t in TWO_MOONS.pairs(3000, seed=2)]
    torch.manual_seed(0)
    inference = NPE(prior=prior, density_estimator=sbi_builder(est), show_progress_bars=False)
    trained = inference.append_simulations(*pairs).train(max_num_epochs=15, training_batch_size=100)
    fresh_flow = sbi_builder(est)(*pairs)
    gained = (trained.log_prob(theta, x) - fresh_flow.log_prob(theta, x)).mean()
    assert gained > 0.5  # nats; seed 0 gains 2.3
    posterior = inference.build_posterior(trained)
    assert posterior.sample((20,), x=x[0], show_progress_bars=False).shape == (20, 2)
    assert len(list(trained.parameters())) == len(list(est.flow_.parameters()))


@pytest.mark.filterwarnings("ignore:Maximum number of epochs", "ignore:The proposal you passed")
def test_sbi_trains_it_in_rounds(est, prior, monkeypatch, tmp_path):
    from sbi.inference import NPE
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    inference, observed = NPE(prior=prior, density_estimator=sbi_builder(est), show_progress_bars=False), torch.zeros(2)
    inference.append_simulations(*(torch.tensor(t).float() for t in TWO_MOONS.pairs(500, seed=2))).train(max_num_epochs=2)
    proposal = inference.build_posterior().set_default_x(observed)
    theta = proposal.sample((200,), show_progress_bars=False)
    x = TWO_MOONS.simulate(theta.double().numpy(), np.random.default_rng(0))
    inference.append_simulations(theta, torch.tensor(x).float(), proposal=proposal).train(max_num_epochs=2)
    drawn = inference.build_posterior().sample((50,), x=observed, show_progress_bars=False)
    assert drawn.shape == (50, 2) and drawn.abs().max() < 1


def test_builder_makes_fresh_flows(est):
    pairs = [torch.tensor(t).float() for t in TWO_MOONS.pairs(200, seed=3)]
    build = sbi_builder(est)
    torch.manual_seed(0)
    first, second = build(*pairs), build(*pairs)
    torch.manual_seed(0)
    third = build(*pairs)
    weights = [torch.cat([p.flatten() for p in f.parameters()]) for f in (first, second, third)]
    assert torch.equal(weights[0], weights[2]) and not torch.equal(weights[0], weights[1])
    assert torch.equal(first.net.low, torch.tensor([-1.0, -1.0])) and torch.allclose(first.net.context_mean, pairs[1].mean(0), atol=1e-6)


def test_bad_input(est):
    pairs = [torch.tensor(t).float() for t in TWO_MOONS.pairs(200, seed=3)]
    with pytest.raises(ValueError, match="2 parameters given 2 numbers"):
        sbi_builder(est)(pairs[0], pairs[1][:, :1])
    plain = AutoNF(candidates=("RealNVP",), n_layers=1, steps=5, hidden_features=8, batch_size=50, device="cpu").fit(pairs[0].numpy())
    for wrap in (sbi_estimator, sbi_builder):
        with pytest.raises(ValueError, match="fitted without a context"):
            wrap(plain)


def test_sbi_is_imported_only_when_asked_for():
    code = "import sys, autonf_nb.sbi; print('sbi' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "False"


def test_without_sbi_the_error_says_what_to_install(est, monkeypatch):
    import autonf_nb.sbi as ours
    monkeypatch.setitem(sys.modules, "sbi.neural_nets.estimators.base", None)
    ours._estimator_class.cache_clear()
    try:
        with pytest.raises(ImportError, match=r"pip install 'autonf_nb\[sbi\]'"):
            sbi_estimator(est)
    finally:
        ours._estimator_class.cache_clear()
