"""InfoCNF at the paper's full size, and models that are saved and loaded."""
import math

import pytest
import torch

from autonf_nb.cnf import continuous_flows
from autonf_nb.infocnf import CIFAR10, METHODS, InfoCNF, evaluate, gated_flows, train_labelled
from autonf_nb.training import Run
from autonf_nb.transforms.multiscale import dequantize_images

SMALL = {"shape": [1, 4, 4], "classes": 3, "hidden_features": 4, "tolerance": 1e-3, "train_trace": "rademacher"}


def pictures(shape: list[int], n: int, classes: int, levels: int = 256) -> tuple[torch.Tensor, torch.Tensor]:
    "Noise in the place of pictures: whole numbers `(n, D)`, and labels."
    generator = torch.Generator().manual_seed(0)
    return (torch.randint(levels, (n, math.prod(shape)), generator=generator).float(),
            torch.randint(classes, (n,), generator=generator))


@pytest.mark.slow
@pytest.mark.parametrize("method", ["CCNF", "InfoCNF, learned"])
def test_one_step_at_the_size_of_the_paper(method):
    "CIFAR-10's shape, 4 scales of 2 + 2 flows with 64 filters; two pictures and a loose tolerance, because the step is what matters."
    x, y = pictures(CIFAR10["shape"], 2, 10)
    torch.manual_seed(0)
    how = dict(METHODS[method])
    if "gates" in how:
        how["gates"] = {"start": -2.0}
    flow = InfoCNF(**{**CIFAR10, "tolerance": 1e-2}, **how)
    (record,) = train_labelled(flow, x, y, epochs=1, batch_size=2, lr=1e-3, levels=256, prepare=lambda rows: dequantize_images(rows, 256))
    assert len(record["nfe"]) == len(continuous_flows(flow)) == 14 and min(record["nfe"]) >= 7
    assert 6 < record["nll"] < 12  # pictures of noise have 8 bits a pixel, and the flow does not know it yet
    assert all(f.dynamics.layers[-1].weight.any() for f in continuous_flows(flow))  # they begin at zero
    scores = evaluate(flow, dequantize_images(x, 256), y)
    assert math.isfinite(scores["nll"]) and math.isfinite(scores["marginal_nll"])


@pytest.mark.parametrize("method", list(METHODS))
def test_saved_and_loaded(method, tmp_path):
    x, y = pictures(SMALL["shape"], 24, 3)
    torch.manual_seed(1)
    flow = InfoCNF(**SMALL, **METHODS[method])
    train_labelled(flow, x, y, epochs=1, batch_size=8, lr=1e-2, levels=256, prepare=lambda rows: dequantize_images(rows, 256))
    flow.save(tmp_path/"flow")
    again = InfoCNF.load(tmp_path/"flow")
    rows = dequantize_images(x, 256, torch.Generator().manual_seed(2))
    assert evaluate(again, rows, y) == evaluate(flow, rows, y)
    assert len(gated_flows(again)) == (3 if "learned" in method else 0)


class Stopped(Exception):
    pass


def test_a_training_goes_on_as_if_it_had_not_been_stopped(tmp_path):
    x, y = pictures(SMALL["shape"], 24, 3)

    def train(folder, stop_at=99):
        folder.mkdir(exist_ok=True)
        torch.manual_seed(1)
        flow, calls = InfoCNF(**SMALL, part=0.5, gates={}), []

        def prepare(rows):
            calls.append(len(rows))
            if len(calls) == stop_at:
                raise Stopped
            return dequantize_images(rows, 256)

        with Run(folder, save_every=0.0) as run:
            return flow, train_labelled(flow, x, y, epochs=2, batch_size=8, lr=1e-2, seed=3, levels=256, run=run, prepare=prepare)

    whole, records = train(tmp_path/"whole")
    with pytest.raises(Stopped):
        train(tmp_path/"parts", stop_at=4)
    resumed, again = train(tmp_path/"parts")
    assert again == records
    assert all(torch.equal(p, q) for p, q in zip(whole.parameters(), resumed.parameters()))
