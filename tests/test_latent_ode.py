"""What the chapter on latent ODEs leaves out: dtypes, both models, stops by the clock, files of others, systems that explode."""
import math

import pytest
import torch

from autonf_nb.latent_ode import (PAPER, LatentODE, Windows, draw_windows, load_latent_ode, save_latent_ode, squared_errors, terms,
                                  train_latent_ode, trajectory)
from autonf_nb.training import Run, TrainingError, write_tensors
from autonf_nb.transforms.continuous import SolverError

both = pytest.mark.parametrize("partitioned", [False, True], ids=["plain", "partitioned"])
each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
QUICK = {"epochs": 3, "batch_size": 20, "watches": 3}


def few(n: int = 60, points: int = 30, dtype: torch.dtype = torch.float32) -> Windows:
    w = draw_windows(n, seed=0, dtype=dtype)
    return Windows(w.x[:, :points], w.y, w.paths, w.start)


def model(partitioned: bool = True, **options) -> LatentODE:
    torch.manual_seed(0)
    return LatentODE(partitioned, stride=10, **options)


@both
@each_dtype
def test_every_weight_learns_in_both_precisions(partitioned, dtype):
    w, net = few(dtype=dtype), model(partitioned).to(dtype)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    records = train_latent_ode(net, w, **QUICK)
    assert [r["step"] for r in records] == [3, 6, 9] and records[-1]["loss"] < records[0]["loss"]
    for name, value in net.state_dict().items():
        assert value.dtype == dtype and not torch.equal(value, before[name]), name
    curves = trajectory(net, w.x, 4, 6)
    assert curves.shape == (60, 40, 2) and curves.dtype == dtype and curves.isfinite().all()


@both
def test_rows_do_not_mix(partitioned):
    w, net, epsilon = few(), model(partitioned), torch.randn(5, 60)
    together, alone = terms(net, w.x, w.y, epsilon), terms(net, w.x[7:8], w.y[7:8], epsilon[:, 7:8])
    for all_rows, one_row in zip(together, alone):
        assert all_rows.shape == (60,) and torch.allclose(all_rows[7:8], one_row, rtol=1e-4)
    assert (together.kl >= 0).all() and (together.supervised >= 0).all()


def test_a_curve_meets_itself():
    w, net = few(), model()
    curve = trajectory(net, w.x, 50, 70)
    assert torch.equal(curve[:, 50:80], trajectory(net, w.x)) and torch.equal(curve[:, :80], trajectory(net, w.x, 50))
    assert (curve[:, 50] - curve[:, 49]).abs().max() < 5 * (curve[:, 51] - curve[:, 50]).abs().max()


def test_a_run_stopped_by_the_clock_keeps_its_place(tmp_path):
    w, whole = few(), model()
    wanted = train_latent_ode(whole, w, **QUICK)

    def stop(net: LatentODE) -> dict:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        train_latent_ode(model(), w, **QUICK, watch=stop, run=Run(tmp_path, save_every=0))
    again = model()
    assert train_latent_ode(again, w, **QUICK, run=Run(tmp_path)) == wanted
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in whole.state_dict().items())
    assert train_latent_ode(model(), w, **QUICK, run=Run(max_seconds=0.0))[-1]["step"] == 0


def test_files_of_others_are_refused(tmp_path):
    file = tmp_path/"model.safetensors"
    save_latent_ode(model(), file)
    state = torch.get_rng_state()
    load_latent_ode(str(file))
    assert torch.equal(torch.get_rng_state(), state)
    write_tensors(file, {"w": torch.ones(1)}, {"step": 3})
    with pytest.raises(ValueError, match="holds no latent ODE"):
        load_latent_ode(file)
    write_tensors(file, {"w": torch.ones(1)}, {"format": "autonf_nb latent ODE", "version": 2})
    with pytest.raises(ValueError, match="newer than the 1 that is read here: upgrade"):
        load_latent_ode(file)
    with pytest.raises(FileNotFoundError, match="there is no file"):
        load_latent_ode(tmp_path)


def test_what_cannot_be_trained_on_is_named():
    w = few()
    bad = w.x.clone()
    bad[11, 4, 1] = math.inf
    for windows, message in ((Windows(bad, w.y, w.paths, w.start), "window 11, point 4, is not finite"),
                             (Windows(w.x, w.y[:5], w.paths, w.start), r"labels must have shape \(60, 3\)"),
                             (Windows(w.x[:0], w.y[:0], w.paths[:0], w.start[:0]), "no windows"),
                             (Windows(w.x[..., :1], w.y, w.paths, w.start), r"got \(60, 30, 1\)")):
        with pytest.raises(ValueError, match=message):
            train_latent_ode(model(), windows, **QUICK)
    labels = w.y.clone()
    labels[5, 0] = math.nan
    with pytest.raises(ValueError, match="labels of window 5 are"):
        train_latent_ode(model(), Windows(w.x, labels, w.paths, w.start), **QUICK)
    for option in ({"epochs": 0}, {"beta": -1.0}, {"final": 0.0}, {"lr": math.nan}):
        with pytest.raises(ValueError, match="epochs, batch_size and watches must be 1 or more"):
            train_latent_ode(model(), w, **(QUICK | option))
    with pytest.raises(TrainingError, match="the latent ODE"):
        train_latent_ode(model(), Windows(w.x * 1e25, w.y, w.paths, w.start), **QUICK)


def test_a_system_that_explodes_says_so():
    net = model()
    with torch.no_grad():
        net.dynamics[2].weight.fill_(1e38)
    with pytest.raises(SolverError, match="not finite"):
        trajectory(net, few().x)


def test_one_window_two_points_and_the_paper():
    w = few(1, 2)
    net = model()
    train_latent_ode(net, w, epochs=1, batch_size=PAPER["batch_size"], lr=PAPER["lr"], final=PAPER["final"])
    assert trajectory(net, w.x).shape == (1, 2, 2)
    w = draw_windows(3, seed=0)
    assert squared_errors(trajectory(net, w.x, 200, 200), w).shape == (3, 600)
