"""A continuous flow against FFJORD's way to run one, torchdiffeq's solver and zuko, on the same velocity, side by side.

    python benchmarks/cnf.py                     # writes results/speed_cnf.json; needs torchdiffeq and zuko
    python benchmarks/cnf.py --images            # the same for a velocity of convolutions: results/speed_cnf_images.json
    python benchmarks/cnf.py --features 6 --repeats 3 --out /tmp/speed.json

All competitors of a row run in one process, in turn, and processor time is measured, not the clock on the wall: on one thread they are
the same on an idle machine, and a busy one distorts it less. Trust the ratios.

The velocity: FFJORD's concatsquash with two hidden tanh layers, one set of weights for all competitors, normal with standard deviation
1.5 / sqrt(inputs), so that the solvers have some work. `log_prob` runs without gradients, `train` is the NLL of the batch and its
gradients of all parameters. Before they are timed, the log-densities are compared with those at a tolerance of 1e-10 in double
precision: `worst_error` is the largest difference among the rows, in nats. The tolerance, 1e-5, is the same for all, but not what is
held to it: the largest error of a row (autonf_nb), the mean over the batch (torchdiffeq), the largest error of all numbers, that of the
log-determinant divided by 100 (zuko).

- autonf_nb: `ContinuousFlow` as it comes: exact trace, its own solver, gradients by backpropagation;
- autonf_nb, 1e-4: the same at a tolerance ten times as loose, where its worst row is about as exact as torchdiffeq's at 1e-5;
- FFJORD: the velocity row by row as that paper's code has it, one draw of Gaussian noise for the trace, torchdiffeq's dopri5 and
  adjoint method;
- torchdiffeq: `ContinuousFlow` with torchdiffeq's solver and backpropagation through it: the same velocity and exact trace;
- zuko, exact trace and zuko, Hutchinson: the velocity row by row in zuko's transform, its solver and adjoint method;
- zuko's CNF: zuko's own flow with as many hidden units (ELU, time as sines), weights of the same size, and its own defaults: exact trace,
  tolerances 1e-6 and 1e-5. Another velocity: compare it evaluation by evaluation.

With --images the velocity is that of chapter 13, three convolutions with softplus; zuko has none. Beside autonf_nb and FFJORD:

- exact, a pass a number: `ContinuousFlow` with the exact trace as autograd gives it, one backward pass for each pixel (log_prob alone).
"""
from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import zuko
from torch import Tensor, nn
from torchdiffeq import odeint_adjoint

from autonf_nb.cnf import ConvDynamics
from autonf_nb.flow import standard_normal_log_prob
from autonf_nb.transforms.continuous import ConcatSquash, ContinuousFlow
from record import RESULTS, medians, meta, write

SEED, TOLERANCE, GAIN = 0, 1e-5, 1.5
BASELINE, ONE_BY_ONE = "FFJORD", "exact, a pass a number"
PICTURES = ((1, 8, 8), (1, 14, 14))


def enlarge(net: nn.Module) -> None:
    "Give every matrix that follows other units normal weights of standard deviation GAIN / sqrt(inputs)."
    for layer in net.modules():
        if isinstance(layer, nn.Conv2d) or isinstance(layer, nn.Linear) and layer.in_features > 1:
            nn.init.normal_(layer.weight, std=GAIN / layer.weight[0].numel()**0.5)


class RowByRow(nn.Module):
    "FFJORD's concatsquash network `(t, z)`, `(B, D) -> (B, D)`, as its code has it, with the parameters of ours; counts its calls."

    def __init__(self, net: ConcatSquash):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, t: Tensor, z: Tensor, c: None = None) -> Tensor:
        self.calls += 1
        gates = (self.net.gate.weight[:, 0] * t + self.net.gate.bias).sigmoid().split(self.net.sizes)
        shifts = (self.net.shift.weight[:, 0] * t).split(self.net.sizes)
        for i, (layer, gate, shift) in enumerate(zip(self.net.layers, gates, shifts)):
            z = layer(z) * gate + shift
            z = z.tanh() if i < 2 else z
        return z


class PictureByPicture(nn.Module):
    "Three convolutions `(t, z)` of flattened pictures, `(B, D) -> (B, D)`, with the parameters of ours; counts its calls."

    def __init__(self, net: ConvDynamics):
        super().__init__()
        self.net, self.calls = net, 0

    def forward(self, t: Tensor, z: Tensor) -> Tensor:
        self.calls += 1
        z = z.reshape(-1, *self.net.shape)
        shifts = (self.net.time.weight[:, 0] * t).split([layer.out_channels for layer in self.net.layers])
        for i, (layer, shift) in enumerate(zip(self.net.layers, shifts)):
            z = layer(z) + shift[:, None, None]
            z = nn.functional.softplus(z) if i < 2 else z
        return z.flatten(1)


class WithoutLoops(ConvDynamics):
    "Ours without its closed forms: autograd finds the trace."

    def at(self, times, context=None):
        return [field.__call__ for field in super().at(times, context)]


class WithHutchinson(nn.Module):
    "FFJORD's right-hand side for torchdiffeq: velocity and `e^T J e` with the noise `e` of one solve."

    def __init__(self, velocity: RowByRow | PictureByPicture):
        super().__init__()
        self.velocity, self.e = velocity, None

    def forward(self, t: Tensor, state: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            z = state[0].requires_grad_()
            v = self.velocity(t, z)
            (product,) = torch.autograd.grad(v, z, self.e, create_graph=True)
        return v, (product * self.e).sum(1)


class OfZuko(zuko.flows.continuous.FFJTransform):
    "zuko's transform with another velocity."

    def __init__(self, velocity: RowByRow, exact: bool):
        super().__init__(velocity.net.features, atol=TOLERANCE, rtol=TOLERANCE, exact=exact)
        self.ode = velocity

    def f(self, t: Tensor, x: Tensor, c: None = None) -> Tensor:
        return self.ode(t, x)


class Competitor:
    "One way to a log-density: `log_prob(x)`, its parameters, and how to read the evaluations of the velocity since the last reset."

    def __init__(self, log_prob: Callable[[Tensor], Tensor], module: nn.Module, calls: Callable[[], int], reset: Callable[[], None]):
        self.log_prob, self.module, self.parameters, self.calls, self.reset = log_prob, module, list(module.parameters()), calls, reset

    def evaluate(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return self.log_prob(x)

    def train(self, x: Tensor) -> None:
        for p in self.parameters:
            p.grad = None
        (-self.log_prob(x).mean()).backward()

    def evaluations(self, operation: Callable[[], object]) -> int:
        self.reset()
        operation()
        return self.calls()


def of_layer(layer: ContinuousFlow) -> Competitor:
    def log_prob(x: Tensor) -> Tensor:
        u, logabsdet = layer(x)
        return standard_normal_log_prob(u) + logabsdet

    return Competitor(log_prob, layer, lambda: layer.nfe, lambda: None)


def counted(log_prob: Callable[[Tensor], Tensor], velocity: RowByRow | PictureByPicture) -> Competitor:
    def reset() -> None:
        velocity.calls = 0

    return Competitor(log_prob, velocity, lambda: velocity.calls, reset)


def of_ffjord(velocity: RowByRow | PictureByPicture) -> Competitor:
    rhs, times = WithHutchinson(velocity), torch.tensor([0.0, 1.0])

    def log_prob(x: Tensor) -> Tensor:
        rhs.e = torch.randn_like(x)
        z, logabsdet = odeint_adjoint(rhs, (x, x.new_zeros(len(x))), times, rtol=TOLERANCE, atol=TOLERANCE, method="dopri5")
        return standard_normal_log_prob(z[-1]) + logabsdet[-1]

    return counted(log_prob, rhs.velocity)


def of_zuko(net: ConcatSquash, exact: bool) -> Competitor:
    transform = OfZuko(RowByRow(net), exact)

    def log_prob(x: Tensor) -> Tensor:
        u, logabsdet = transform().call_and_ladj(x)
        return standard_normal_log_prob(u) + logabsdet

    return counted(log_prob, transform.ode)


def zukos_own(features: int, hidden: int) -> Competitor:
    flow = zuko.flows.CNF(features, hidden_features=(hidden, hidden))
    enlarge(flow)
    calls = []
    flow.transform.ode.register_forward_hook(lambda *_: calls.append(1))
    return Competitor(lambda x: flow().log_prob(x), flow, lambda: len(calls), calls.clear)


def competitors(features: int, hidden: int) -> dict[str, Competitor]:
    torch.manual_seed(SEED)
    ours = ContinuousFlow(features, hidden_features=hidden, tolerance=TOLERANCE)
    enlarge(ours)
    looser = ContinuousFlow(features, hidden_features=hidden, tolerance=10 * TOLERANCE)
    theirs = ContinuousFlow(features, hidden_features=hidden, tolerance=TOLERANCE, solver="torchdiffeq")
    theirs.dynamics = looser.dynamics = net = ours.dynamics
    return {"autonf_nb": of_layer(ours), "autonf_nb, 1e-4": of_layer(looser), "torchdiffeq": of_layer(theirs),
            BASELINE: of_ffjord(RowByRow(net)), "zuko, exact trace": of_zuko(net, exact=True),
            "zuko, Hutchinson": of_zuko(net, exact=False), "zuko's CNF": zukos_own(features, hidden)}


def image_competitors(shape: tuple[int, int, int], hidden: int) -> dict[str, Competitor]:
    torch.manual_seed(SEED)
    ours, plain = (ContinuousFlow(math.prod(shape), dynamics=partial(kind, shape=shape), hidden_features=hidden, tolerance=TOLERANCE)
                   for kind in (ConvDynamics, WithoutLoops))
    enlarge(ours)
    plain.dynamics.load_state_dict(ours.dynamics.state_dict())
    return {"autonf_nb": of_layer(ours), BASELINE: of_ffjord(PictureByPicture(ours.dynamics)), ONE_BY_ONE: of_layer(plain)}


def reference(flow: Competitor, x: Tensor) -> Tensor:
    "Log-densities of a copy of our layer in double precision at a tolerance of 1e-10."
    layer = copy.deepcopy(flow.module).double()
    layer.tolerance = 1e-10
    return of_layer(layer).evaluate(x.double())


def measure(flows: dict[str, Competitor], features: int, args: argparse.Namespace) -> list[dict]:
    x = torch.randn(args.batch, features)
    exact, rows = reference(flows["autonf_nb"], x), []
    errors = {name: float((flow.evaluate(x) - exact).abs().max()) for name, flow in flows.items() if name != "zuko's CNF"}
    for name, error in errors.items():
        if name != BASELINE and "Hutchinson" not in name and error > 0.01:
            raise RuntimeError(f"{name} computes another density: up to {error:.3g} nats off")
    for operation in ("log_prob", "train"):
        calls = {name: partial(flow.evaluate if operation == "log_prob" else flow.train, x) for name, flow in flows.items()
                 if (operation, name) != ("train", ONE_BY_ONE)}
        ms = medians(calls, args.repeats)
        for name, median in ms.items():
            rows.append({"operation": operation, "D": features, "hidden": args.hidden, "batch": args.batch,
                         "threads": torch.get_num_threads(), "library": name, "median_ms": round(median, 2),
                         "nfe": flows[name].evaluations(calls[name]), "ratio": round(ms[BASELINE] / median, 2),
                         "worst_error": float(f"{errors[name]:.2g}") if name in errors else None})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", action="store_true", help="pictures and convolutions in place of rows and matrices")
    parser.add_argument("--features", type=int, nargs="+", default=[2, 6, 21])
    parser.add_argument("--hidden", type=int, help="hidden units, 64 by default; filters, 16 by default")
    parser.add_argument("--batch", type=int, help="512 by default, 32 pictures")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.hidden, args.batch = args.hidden or (16 if args.images else 64), args.batch or (32 if args.images else 512)
    torch.set_num_threads(1)
    if args.images:
        rows = [{"shape": shape} | row for shape in PICTURES
                for row in measure(image_competitors(shape, args.hidden), math.prod(shape), args)]
    else:
        rows = [row for features in args.features for row in measure(competitors(features, args.hidden), features, args)]
    velocity = "three convolutions with softplus" if args.images else "concatsquash with two hidden tanh layers"
    about = meta(" ".join(["python benchmarks/cnf.py", *sys.argv[1:]]), seeds=[SEED], packages=("torchdiffeq", "zuko"),
                 data=f"standard normal rows; one flow, {velocity}; float32", tolerance=TOLERANCE,
                 repeats=args.repeats, median_ms="processor time of one call", ratio="FFJORD's median over this one: above 1 is faster",
                 nfe="evaluations of the velocity in one call, those of the adjoint equation included",
                 worst_error="largest error of a row's log-density, in nats, against tolerance 1e-10 in double precision")
    write(args.out or RESULTS/f"speed_cnf{'_images' * args.images}.json", about, rows)


if __name__ == "__main__":
    main()
