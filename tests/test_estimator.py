"""AutoNF: scikit-learn's own checks, units, context, saving, and the same answer twice."""
import json
import pickle

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import lognorm, norm
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from autonf_nb import AutoNF
from autonf_nb.data import plane_set
from autonf_nb.estimator import Units, build_flow, canonical, fit_units, leaves
from autonf_nb.search import search_flow

TINY = dict(steps=3, n_layers=2, hidden_features=4, batch_size=8)
DEEP = dict(steps=40, n_layers=2, hidden_features=8, batch_size=64, candidates=("RQ-AF", "RQ-C"), lam=0.0)

# Checks of scikit-learn that cannot apply to AutoNF, each with its reason. None is needed today: what asks for labels, predictions,
# transforms or sample weights is not run for a density estimator without them. (check_array_api_input skips itself unless
# SCIPY_ARRAY_API is set: AutoNF makes NumPy arrays of what it is given and does not claim array API support.)
CANNOT_APPLY: dict[str, str] = {}


@parametrize_with_checks([AutoNF(**TINY, candidates=("RealNVP", "NULL")), AutoNF(**TINY, candidates=("MAF", "RQ-C"))],
                         expected_failed_checks=lambda estimator: CANNOT_APPLY)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_scikit_learn(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def X():
    "Two moons in odd units, and a positive column."
    moons = plane_set("two_moons", 300)*[3, 1e4] + [5, -2e5]
    return np.c_[moons, np.exp(np.random.default_rng(0).standard_normal(300))]


@pytest.fixture(scope="module")
def fitted(X):
    return AutoNF(**DEEP, bounds={"c": (0, None)}).fit(pd.DataFrame(X, columns=list("abc")))


def test_attributes(fitted, X):
    assert len(fitted.architecture_) == 2 and set(fitted.architecture_) <= {"RQ-AF", "RQ-C"}
    assert fitted.n_features_in_ == 3 and list(fitted.feature_names_in_) == list("abc")
    assert fitted.cost_ > 0 and np.isfinite(fitted.nll_val_) and isinstance(fitted.history_, dict)
    json.dumps([fitted.history_, fitted.seconds_, fitted.notes_])
    assert fitted.score(X) == pytest.approx(fitted.log_prob(X).mean())
    assert np.array_equal(fitted.score_samples(X), fitted.log_prob(X))
    assert not any(p.requires_grad and p.grad is not None and p.grad.isnan().any() for p in fitted.flow_.parameters())


def test_density_is_in_the_data_s_units(fitted, X):
    "log p(x) = log p(z) + log|det dz/dx|, the determinant from autograd on the map written out here."
    mean, scale = (torch.tensor(v) for v in (fitted.units_.standardizer.mean_, fitted.units_.standardizer.scale_))
    x = torch.tensor(X[0])
    to_z = lambda x: (torch.stack([x[0], x[1], x[2].log()]) - mean)/scale  # noqa: E731
    logdet = torch.linalg.slogdet(torch.func.jacrev(to_z)(x)).logabsdet
    flow = pickle.loads(pickle.dumps(fitted)).flow_.double()
    with torch.no_grad():
        expected = flow.log_prob(to_z(x)[None])[0] + logdet
    assert fitted.log_prob(X[:1])[0] == pytest.approx(float(expected), abs=1e-9)


def test_density_integrates_to_one():
    "One positive column: the integral over (0, 60), beyond which a lognormal has 2e-5 of its mass."
    x = np.exp(np.random.default_rng(1).standard_normal(400))[:, None]
    est = AutoNF(**DEEP, bounds={0: (0, None)}).fit(x)
    grid = np.linspace(1e-6, 60, 60_001)
    mass = np.trapezoid(np.exp(est.log_prob(grid[:, None])), grid)
    assert mass == pytest.approx(1, abs=0.01)


def test_the_identity_is_the_gaussian_of_the_training_rows(X):
    "A large lam leaves no layer: the density is known in closed form."
    est = AutoNF(**TINY | dict(lam=1e6), bounds={2: (0, None)}).fit(X, X_val=X)
    assert est.architecture_ == () and est.cost_ == 0
    expected = norm(X[:, :2].mean(0), X[:, :2].std(0)).logpdf(X[:, :2]).sum(1)
    log = np.log(X[:, 2])
    expected += lognorm(log.std(), scale=np.exp(log.mean())).logpdf(X[:, 2])
    assert est.log_prob(X) == pytest.approx(expected, abs=1e-9)


def test_samples(fitted, X):
    S = fitted.sample(2000, seed=1)
    assert S.shape == (2000, 3) and S.dtype == np.float64 and (S[:, 2] > 0).all()
    assert np.array_equal(S, fitted.sample(2000, seed=1)) and not np.array_equal(S, fitted.sample(2000))
    assert fitted.sample(0).shape == (0, 3) and fitted.sample().shape == (1, 3)
    # standard error of a mean is sd/sqrt(300) for the data; six of them
    for j, column in enumerate((X[:, 0], X[:, 1], np.log(X[:, 2]))):
        drawn = S[:, j] if j < 2 else np.log(S[:, j])
        assert abs(np.median(drawn) - np.median(column)) < 6*1.25*column.std()/np.sqrt(300)


def test_save_and_load_bit_for_bit(fitted, X, tmp_path):
    folder = fitted.save(tmp_path/"flow")
    assert sorted(p.name for p in folder.iterdir()) == ["config.json", "flow.safetensors"]
    loaded = AutoNF.load(folder)
    assert np.array_equal(loaded.log_prob(X), fitted.log_prob(X))
    assert np.array_equal(loaded.sample(7, seed=3), fitted.sample(7, seed=3))
    assert loaded.get_params() == fitted.get_params() and loaded.architecture_ == fitted.architecture_
    for name in ("cost_", "nll_val_", "history_", "seconds_", "notes_", "columns_", "n_features_in_"):
        assert getattr(loaded, name) == getattr(fitted, name)
    loaded.save(folder)                     # over the old one
    assert np.array_equal(AutoNF.load(folder, device="cpu").log_prob(X), fitted.log_prob(X))
    assert np.array_equal(pickle.loads(pickle.dumps(fitted)).log_prob(X), fitted.log_prob(X))


def test_load_does_not_disturb_random_numbers(fitted, tmp_path):
    folder = fitted.save(tmp_path/"flow")
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    AutoNF.load(folder)
    assert torch.equal(torch.rand(1), expected)


def test_same_seed_same_answer(X):
    a, b, c = (AutoNF(**TINY | dict(seed=s, candidates=("MAF", "RQ-C"))).fit(X) for s in (4, 4, 5))
    assert a.architecture_ == b.architecture_ and np.array_equal(a.log_prob(X), b.log_prob(X))
    assert not np.array_equal(a.log_prob(X), c.log_prob(X))


@pytest.mark.parametrize("make", [np.asarray, torch.tensor, lambda X: pd.DataFrame(X), lambda X: X.tolist(), np.asfortranarray])
def test_kinds_of_table(X, make):
    est = AutoNF(**TINY).fit(make(X))
    assert est.log_prob(make(X)) == pytest.approx(AutoNF(**TINY).fit(X).log_prob(X))


def test_x_val_is_used_for_validation(X):
    p = AutoNF(**TINY).prepare(X[:200], X_val=X[200:])
    assert len(p.train) == 200 and len(p.val) == 100
    assert p.train.x.double().mean(0).abs().max() < 1e-6    # the training rows alone are standardised to mean 0
    q = AutoNF(**TINY).prepare(X)
    assert len(q.train) == 270 and len(q.val) == 30


def test_context():
    "The mean moves with the context: the conditional density must follow it, and samples too."
    rng = np.random.default_rng(0)
    C = rng.uniform(-1, 1, (400, 1))
    X = 10*C + rng.standard_normal((400, 2))
    est = AutoNF(steps=150, n_layers=1, hidden_features=16, batch_size=64, candidates=("MAF",), lam=0.0).fit(X, context=C)
    assert est.score(X, context=C) > est.score(X, context=-C) + 5
    S = est.sample(500, context=[0.8], seed=0)
    assert S.shape == (500, 2) and abs(S.mean() - 8) < 1.5
    both = est.sample(2, context=[[-0.9], [0.9]], seed=0)
    assert both[0].mean() < 0 < both[1].mean()


def test_context_is_saved(tmp_path):
    rng = np.random.default_rng(0)
    C = pd.DataFrame({"hour": rng.uniform(0, 24, 60), "day": 1.0})   # a constant context column is no fault
    X = rng.standard_normal((60, 2))
    est = AutoNF(**TINY | dict(candidates=("RQ-C",))).fit(X, context=C)
    loaded = AutoNF.load(est.save(tmp_path/"flow"))
    assert loaded.context_columns_ == ("hour", "day")
    assert np.array_equal(loaded.log_prob(X, C), est.log_prob(X, C))


def test_ties_draw_a_warning_and_dequantize_cures_it():
    X = np.random.default_rng(0).standard_normal((200, 2))
    X[:, 1] = np.round(X[:, 1])
    with pytest.warns(UserWarning, match="'x1'.*dequantize=True"):
        AutoNF(**TINY).fit(X)
    import warnings
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        est = AutoNF(**TINY, dequantize=True).fit(X)
    assert est.tied_columns_ == ("x1",) and est.quanta_.tolist() == [0, 1]
    with pytest.raises(ValueError, match="upper bound 3 must be at least"):
        AutoNF(**TINY, dequantize=True, bounds={"x1": (-9, 3)}).fit(np.c_[X[:, 0], X[:, 1].clip(-3, 3)])


def test_one_column_and_max_seconds():
    import time
    x = np.random.default_rng(0).standard_normal((300, 1))
    start = time.monotonic()
    est = AutoNF(max_seconds=2, batch_size=64, n_layers=2, hidden_features=8, steps=100_000).fit(x)
    assert time.monotonic() - start < 10 and np.isfinite(est.score(x))


def test_pipeline_clone_and_grid_search(X):
    pipe = make_pipeline(StandardScaler(), AutoNF(**TINY)).fit(X)
    assert pipe.score_samples(X).shape == (300,) and np.isfinite(pipe.score(X))
    est = AutoNF(**TINY, bounds={"c": (0, None)})
    assert clone(est).get_params() == est.get_params()
    grid = GridSearchCV(AutoNF(**TINY | dict(candidates=("MAF", "NULL"))), {"lam": [0.0, 1e6]}, cv=2).fit(X)
    assert grid.best_params_["lam"] in (0.0, 1e6) and np.isfinite(grid.best_score_)
    assert grid.best_estimator_.architecture_ is not None


def test_verbose_shows_what_it_is_doing(X, capfd, monkeypatch):
    monkeypatch.setattr("autonf_nb.training._is_watched", lambda: True)  # as in a terminal
    AutoNF(**TINY, verbose=True).fit(X)
    err = capfd.readouterr().err
    assert "block 1" in err and "left" in err


@pytest.mark.parametrize("features", [1, 2, 3])
def test_every_flow_found_has_the_form_that_load_builds(features):
    "Also where the printed superflow dropped a NULL between two layers, so that a coupling mask is that of a later position."
    from nflows.transforms import CompositeTransform
    from autonf_nb.candidates import CANDIDATES, Architecture
    from autonf_nb.flow import Flow
    torch.manual_seed(0)
    layers = [CANDIDATES["RealNVP"].build(features, layer=0), CANDIDATES["RQ-C"].build(features, layer=2)]
    for p in (p for layer in layers for p in layer.parameters()):
        torch.nn.init.normal_(p, std=0.3)
    flow = Flow(CompositeTransform([CompositeTransform(layers)]), features)
    plain, numbers = canonical(Architecture(("RealNVP", "RQ-C")), flow)
    x = torch.randn(50, features)
    assert torch.allclose(plain.log_prob(x), flow.log_prob(x), atol=1e-5)
    assert numbers == ([0, 2] if features == 3 else [0, 1]) and len(leaves(plain.transform)) == 6
    assert torch.equal(build_flow(Architecture(("RealNVP",)), [0], features)._reference(),
                       build_flow(Architecture(("RealNVP",)), [0], features)._reference())


def test_units_round_trip():
    rng = np.random.default_rng(0)
    X = np.c_[rng.uniform(0, 1, 100), rng.exponential(size=100), 1e6 + rng.standard_normal(100)]
    units = fit_units(X, ("a", "b", "c"), {"a": (0, 1), 1: (0, None)})
    Z, logabsdet = units.to_standard(X)
    assert units.from_standard(Z) == pytest.approx(X, rel=1e-12) and Z.mean(0) == pytest.approx(0, abs=1e-9)
    again = Units.from_dict(json.loads(json.dumps(units.to_dict())))
    assert np.array_equal(again.to_standard(X)[0], Z) and np.array_equal(again.to_standard(X)[1], logabsdet)


def test_the_estimator_returns_what_the_search_found(X):
    est = AutoNF(**TINY | dict(candidates=("MAF", "RQ-C"), n_layers=2))
    p = est.prepare(X)
    result = search_flow(p.train.x, p.val.x, candidates=est.candidates, **{k: v for k, v in TINY.items()}, progress=False)
    est.fit(X)
    assert est.architecture_ == result.architecture and est.nll_val_ == result.nll_val
    assert est.cost_ == pytest.approx(result.cost)


def test_noise_is_where_samples_come_from(fitted):
    drawn = fitted.sample(50, seed=0)
    noise = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).numpy()
    # sampling and density direction undo each other up to the inverse's rounding
    np.testing.assert_allclose(fitted.to_noise(pd.DataFrame(drawn, columns=list("abc"))), noise, atol=1e-6)
