"""Flows of five layers in autonf_nb, nflows, zuko and normflows, and their conditioner networks alone (the floor), side by side.

    pip install normflows==1.7.3 --no-deps       # all else that is needed comes with autonf_nb's dev extra
    python benchmarks/layers.py                  # one thread, all shapes; processor time
    python benchmarks/layers.py --threads 2      # two threads, two shapes; time on the clock
    python benchmarks/layers.py --compile        # torch.compile of our flows, one shape, one thread
    python benchmarks/layers.py --collect        # writes results/speed.json
    python benchmarks/layers.py --only RQ-C --features 6 --batch 64 --repeats 2 --seconds 0 --rows /tmp/rows.jsonl   # a quick try

Every run appends its rows to results/speed.jsonl and skips what is there. All competitors of a cell run in one process, in turn: trust
the ratios. On one thread processor time is measured, the same as the clock on an idle machine and less distorted on a busy one; with
more threads the clock on the wall.

The work: RealNVP, MAF, RQ-C and RQ-AF (8 bins on [-4, 4]), two hidden ReLU layers in each conditioner, features reversed between the
layers, standard normal base, float32, standard normal rows, weights moved off their start. `log_prob` and `sample` run without
gradients, `train` is the NLL of a batch and its gradients of all parameters. The floor is the five conditioners as dense networks: one
pass for log_prob and sample, forward and backward for train. Before a cell is timed, parameters and multiply-adds of the matrix
products are counted and have to agree within 5 %.

What differs between the libraries, by their own design:
- scale of an affine layer: autonf_nb exp(2 tanh(s / 2)), zuko a softly clipped exponential, nflows a shifted sigmoid (RealNVP) or a
  softplus (MAF), normflows exp (RealNVP) or a shifted sigmoid (MAF);
- reversal: a layer of its own, in zuko the order or mask of the next layer, at no cost;
- halves of a coupling: every other feature, in normflows' RealNVP the first and the last half (with an odd number of features its
  conditioners see the larger one each time, the others' the larger and the smaller in turn);
- sampling: all but autonf_nb call an autoregressive network D times; all but zuko compute log-determinants along with the samples.
And by hand, so that the work is the same: normflows' plain MADE has no activation after its first layer and is given one, and its
autoregressive and RQ coupling layers are turned round, so that their one-pass direction evaluates densities, as in the others.
nflows and normflows divide spline logits by sqrt(hidden) where the network tells its width; these networks do not.
"""
from __future__ import annotations

import argparse
import json
import signal
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import nflows.distributions
import nflows.flows
import nflows.transforms as nft
import normflows
import torch
import zuko
from normflows.flows.neural_spline.autoregressive import MaskedPiecewiseRationalQuadraticAutoregressive
from normflows.flows.neural_spline.coupling import PiecewiseRationalQuadraticCoupling
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from autonf_nb.candidates import layer_mask
from autonf_nb.flow import Flow
from autonf_nb.transforms.autoregressive import Autoregressive
from autonf_nb.transforms.coupling import AFFINE, Coupling, rational_quadratic
from autonf_nb.transforms.linear import ReversePermutation
from record import RESULTS, meta, write

SEED, N_LAYERS, NUM_BINS, BOUND = 0, 5, 8, 4.0
FAMILIES, OPERATIONS = ("RealNVP", "MAF", "RQ-C", "RQ-AF"), ("log_prob", "train", "sample")
SLOW_S, SLOW_REPEATS = 2.0, 3  # a call longer than this is repeated no more than so often
LONG_S = 0.5  # warming up matters little to a call longer than this
LONGEST_S = 5.0  # a call expected to be longer is left out, if its batch is above 512
COMPILE_LIMIT_S = 120
COMMANDS = " && ".join(f"python benchmarks/layers.py{option}" for option in ("", " --threads 2", " --compile", " --collect"))

warnings.filterwarnings("ignore", message="Inputs to the softmax are not scaled down")


def is_coupling(family: str) -> bool:
    return family in ("RealNVP", "RQ-C")


def is_spline(family: str) -> bool:
    return family.startswith("RQ")


class Plain(nn.Sequential):
    "The conditioner that a coupling layer is given; nflows and normflows call it with a context."

    def __init__(self, n_in: int, n_out: int, hidden: int):
        super().__init__(nn.Linear(n_in, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, n_out))

    def forward(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        return super().forward(x)


class Competitor:
    "One library's flow: what is asked of it is `log_prob(x)` and `sample(n)`."

    def __init__(self, module: nn.Module, log_prob: Callable[[Tensor], Tensor], sample: Callable[[int], Tensor]):
        self.module, self.log_prob, self.sample = module, log_prob, sample
        self.parameters = list(module.parameters())
        with torch.no_grad():
            for p in self.parameters:
                p.add_(0.02 * torch.randn_like(p))

    def operation(self, name: str, x: Tensor) -> Callable:
        return {"log_prob": lambda: self.log_prob(x), "sample": lambda: self.sample(len(x)),
                "train": lambda: torch.autograd.grad(-self.log_prob(x).mean(), self.parameters)}[name]


def with_reversals(layers: list[nn.Module], reverse: Callable[[], nn.Module]) -> list[nn.Module]:
    "A reversal between every two layers."
    return [part for layer in layers for part in (layer, reverse())][:-1]


def ours(family: str, features: int, hidden: int) -> Competitor:
    univariate = rational_quadratic(NUM_BINS, BOUND) if is_spline(family) else AFFINE
    if is_coupling(family):
        layers = [Coupling(features, univariate, hidden_features=hidden, mask=layer_mask(features, i)) for i in range(N_LAYERS)]
    else:
        layers = [Autoregressive(features, univariate, hidden_features=hidden) for _ in range(N_LAYERS)]
    flow = Flow(nft.CompositeTransform(with_reversals(layers, partial(ReversePermutation, features))), features)
    return Competitor(flow, flow.log_prob, flow.sample)


def of_nflows(family: str, features: int, hidden: int) -> Competitor:
    spline = {"num_bins": NUM_BINS, "tails": "linear", "tail_bound": BOUND} if is_spline(family) else {}
    if is_coupling(family):
        cls = nft.PiecewiseRationalQuadraticCouplingTransform if spline else nft.AffineCouplingTransform
        layers = [cls((~layer_mask(features, i)).int(), partial(Plain, hidden=hidden), **spline) for i in range(N_LAYERS)]
    else:
        cls = nft.MaskedPiecewiseRationalQuadraticAutoregressiveTransform if spline else nft.MaskedAffineAutoregressiveTransform
        layers = [cls(features=features, hidden_features=hidden, num_blocks=1, use_residual_blocks=False, **spline)
                  for _ in range(N_LAYERS)]
    transform = nft.CompositeTransform(with_reversals(layers, partial(nft.ReversePermutation, features)))
    flow = nflows.flows.Flow(transform, nflows.distributions.StandardNormal([features]))
    return Competitor(flow, flow.log_prob, flow.sample)


def of_zuko(family: str, features: int, hidden: int) -> Competitor:
    spline = {"univariate": partial(zuko.transforms.MonotonicRQSTransform, bound=BOUND),
              "shapes": [(NUM_BINS,), (NUM_BINS,), (NUM_BINS - 1,)]} if is_spline(family) else {}
    cls = zuko.flows.RealNVP if is_coupling(family) else zuko.flows.MAF
    flow = cls(features, transforms=N_LAYERS, hidden_features=(hidden, hidden), **spline)
    return Competitor(flow, lambda x: flow().log_prob(x), lambda n: flow().sample((n,)))


class TurnedRound(normflows.flows.Flow):
    "normflows samples with `forward` and evaluates densities with `inverse`; this exchanges them."

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.layer = layer

    def forward(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.inverse(z)

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.layer.forward(z)


def normflows_reversal(features: int) -> nn.Module:
    permute = normflows.flows.Permute(features)
    permute.perm = permute.inv_perm = torch.arange(features).flip(0)
    return permute


def normflows_layer(family: str, features: int, hidden: int, layer: int) -> nn.Module:
    spline = {"num_bins": NUM_BINS, "tails": "linear", "tail_bound": BOUND} if is_spline(family) else {}
    if family == "RealNVP":
        return normflows.flows.AffineCouplingBlock(Plain((features + 1) // 2, 2 * (features // 2), hidden))
    if family == "RQ-C":
        mask = (~layer_mask(features, layer)).int()
        return TurnedRound(PiecewiseRationalQuadraticCoupling(mask, partial(Plain, hidden=hidden), **spline))
    cls = MaskedPiecewiseRationalQuadraticAutoregressive if spline else normflows.flows.MaskedAffineAutoregressive
    turned = cls(features, hidden, num_blocks=1, use_residual_blocks=False, **spline)
    made = turned.autoregressive_net
    made.initial_layer = nn.Sequential(made.initial_layer, nn.ReLU())
    return TurnedRound(turned)


def of_normflows(family: str, features: int, hidden: int) -> Competitor:
    layers = [normflows_layer(family, features, hidden, i) for i in range(N_LAYERS)]
    base = normflows.distributions.DiagGaussian(features, trainable=False)
    flow = normflows.NormalizingFlow(base, with_reversals(layers, partial(normflows_reversal, features)))
    return Competitor(flow, flow.log_prob, lambda n: flow.sample(n)[0])


class Floor(Competitor):
    "The conditioners alone, dense. Backward, all but the first also pass a gradient on to their inputs, as in a flow."

    def __init__(self, family: str, features: int, hidden: int):
        n_params = 3 * NUM_BINS - 1 if is_spline(family) else 2
        passing = [int(layer_mask(features, i).sum()) for i in range(N_LAYERS)]
        sizes = [(n, features - n) for n in passing] if is_coupling(family) else [(features, features)] * N_LAYERS
        self.nets = nn.ModuleList(Plain(n_in, n_params * n_out, hidden) for n_in, n_out in sizes)
        super().__init__(self.nets, self.one_pass, self.one_pass)

    def one_pass(self, x: Tensor) -> list[Tensor]:
        return [net(x[:, :net[0].in_features]) for net in self.nets]

    def operation(self, name: str, x: Tensor) -> Callable:
        inputs = [x[:, :net[0].in_features].clone().requires_grad_(name == "train" and i > 0) for i, net in enumerate(self.nets)]

        def one_pass():
            return [net(h) for net, h in zip(self.nets, inputs)]

        if name != "train":
            return one_pass
        ones = [torch.ones_like(out) for out in one_pass()]
        return lambda: torch.autograd.grad(one_pass(), [*self.parameters, *inputs[1:]], ones)


LIBRARIES = {"autonf_nb": ours, "nflows": of_nflows, "zuko": of_zuko, "normflows": of_normflows, "floor": Floor}


def check_same_work(models: dict[str, Competitor], features: int, rows: int = 16) -> None:
    "Print parameters and multiply-adds of the matrix products in log_prob, and assert that they agree within 5 %."
    x, counts = torch.randn(rows, features), {}
    for library, model in models.items():
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.log_prob(x)
        counts[library] = sum(p.numel() for p in model.parameters), counter.get_total_flops() // (2 * rows)
    print("  parameters, multiply-adds a row: " + "; ".join(f"{k} {p:,}, {m:,}" for k, (p, m) in counts.items()), flush=True)
    for values in zip(*counts.values()):
        assert max(values) <= 1.05 * min(values), f"the libraries do not do the same work: {counts}"


def seconds_of(function: Callable, clock: Callable[[], float]) -> float:
    start = clock()
    function()
    return clock() - start


def check_finite(result: Tensor | list[Tensor] | tuple[Tensor, ...], library: str) -> None:
    assert all(torch.isfinite(t).all() for t in ([result] if isinstance(result, Tensor) else result)), f"{library} is not finite"


def times_of(functions: dict[str, Callable], clock: Callable[[], float], repeats: int, seconds: float) -> dict[str, list[float]]:
    """Seconds of each call, the functions called in turn.

    At least `repeats` calls of each, more while the cell takes less than about `seconds`; a slow function is called three times.
    The first call of a long one counts; the others are warmed up by two calls that do not.
    """
    times, typical = {}, {}
    for library, function in functions.items():
        typical[library] = seconds_of(lambda f=function, name=library: check_finite(f(), name), clock)
        times[library] = [typical[library]] if typical[library] > LONG_S else []
        if not times[library]:
            typical[library] = min(typical[library], seconds_of(function, clock))
    quick = [library for library in functions if typical[library] <= SLOW_S]
    fitting = int(seconds / max(1e-9, sum(typical[library] for library in quick)))
    rounds = {library: min(50, max(repeats, fitting)) if library in quick else SLOW_REPEATS for library in functions}
    order = list(functions)
    for _ in range(max(rounds.values())):
        for library in order:
            if len(times[library]) < rounds[library]:
                times[library].append(seconds_of(functions[library], clock))
        order.append(order.pop(0))
    return times


def left_out(model: Competitor, library: str, operation: str, family: str, x: Tensor, clock: Callable[[], float]) -> str | None:
    "Why a call is not worth its time, if so: sampling in D passes, each of which takes what log_prob takes."
    if operation != "sample" or is_coupling(family) or library in ("autonf_nb", "floor") or len(x) <= 512:
        return None
    expected = x.shape[1] * seconds_of(model.operation("log_prob", x), clock)
    return f"left out: D passes of the network would take about {expected:.0f} s a call" if expected > LONGEST_S else None


def row_of(cell: dict, library: str, times: list[float], medians: dict[str, float], note: str | None, compile_s: float | None) -> dict:
    row = {"operation": cell["operation"], "family": cell["family"], "library": library,
           **{name: cell[name] for name in ("D", "hidden", "batch", "threads")},
           "median_ms": None, "ratio_to_nflows": None, "ratio_to_floor": None, "q1_ms": None, "q3_ms": None,
           "note": note, "compile_s": compile_s}
    if times:
        q1, median, q3 = (1e3 * q for q in (statistics.quantiles(times, n=4, method="inclusive") if len(times) > 1 else 3 * times))
        row |= {"median_ms": round(median, 3), "q1_ms": round(q1, 3), "q3_ms": round(q3, 3),
                "ratio_to_floor": round(median / medians["floor"], 2)}
        if "nflows" in medians:
            row["ratio_to_nflows"] = round(medians["nflows"] / median, 2)
        if len(times) < 5:
            row["note"] = "; ".join(filter(None, (note, f"{len(times)} repeats")))
    return row


def rows_of(cell: dict, functions: dict[str, Callable], args: argparse.Namespace, clock: Callable[[], float],
            notes: dict[str, str], compile_s: dict[str, float]) -> list[dict]:
    times = times_of(functions, clock, args.repeats, args.seconds)
    medians = {library: 1e3 * statistics.median(seen) for library, seen in times.items()}
    rows = [row_of(cell, library, times.get(library, []), medians, notes.get(library), compile_s.get(library))
            for library in {**functions, **notes}]
    print("  " + "; ".join(f"{r['library']} {r['note'] if r['median_ms'] is None else format(r['median_ms'], '.2f') + ' ms'}"
                           for r in rows), flush=True)
    return rows


def measure(cell: dict, models: dict[str, Competitor], x: Tensor, args: argparse.Namespace, clock: Callable[[], float]) -> list[dict]:
    "Rows of one operation, all libraries."
    operation = cell["operation"]
    with torch.set_grad_enabled(operation == "train"):
        notes = {}
        for library, model in models.items():
            if why := left_out(model, library, operation, cell["family"], x, clock):
                notes[library] = why
        functions = {library: model.operation(operation, x) for library, model in models.items() if library not in notes}
        return rows_of(cell, functions, args, clock, notes, {})


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    "TimeoutError in the main thread after so many seconds."
    def stop(signum, frame):
        raise TimeoutError(f"stopped after {seconds:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def measure_compiled(cell: dict, models: dict[str, Competitor], x: Tensor, args: argparse.Namespace,
                     clock: Callable[[], float]) -> list[dict]:
    "One row: our flow under torch.compile, timed beside the same flow without it, nflows and the floor."
    plain, library = models["autonf_nb"], "autonf_nb, compiled"
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    torch._inductor.config.force_disable_caches = True  # else a second run finds its kernels on the disk
    torch._inductor.config.compile_threads = 1  # in this process: nothing goes on in the background when the time is up
    compiled = Competitor.__new__(Competitor)  # the same weights
    compiled.parameters, compiled.log_prob = plain.parameters, torch.compile(plain.log_prob, dynamic=False)
    with torch.set_grad_enabled(cell["operation"] == "train"):
        functions = {name: models[name].operation(cell["operation"], x) for name in ("autonf_nb", "nflows", "floor")}
        functions[library] = compiled.operation(cell["operation"], x)
        start = time.perf_counter()
        try:
            with time_limit(args.compile_limit):
                compiled_result = functions[library]()
            torch.testing.assert_close(compiled_result, functions["autonf_nb"](), rtol=1e-3, atol=1e-3)
            note = f"compiled to {torch._dynamo.utils.counters['stats']['unique_graphs']} graph(s)"
        except Exception as error:  # whatever the compiler stumbles over is the result of this row
            del functions[library]
            note = f"failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if time.perf_counter() - start > args.compile_limit:  # the compiler wraps our TimeoutError in its own
                note = f"not compiled within {args.compile_limit:g} s"
            print(f"  {error!r}", flush=True)
        seconds = round(time.perf_counter() - start, 1)
        rows = rows_of(cell, functions, args, clock, {library: note}, {library: seconds})
        beside = next(row["median_ms"] for row in rows if row["library"] == "autonf_nb")
        row = next(row for row in rows if row["library"] == library)
        return [row | {"note": f"{row['note']}; not compiled, beside it: {beside} ms"}]


def shapes(args: argparse.Namespace) -> list[tuple[int, int, int]]:
    "(features, hidden, batch): those asked for, else the benchmark's."
    if args.features or args.hidden or args.batch:
        return [(d, h, b) for b in args.batch or [512] for h in args.hidden or [128] for d in args.features or [21]]
    if args.compile:
        return [(21, 128, 512)]
    if args.threads > 1:
        return [(21, 128, 512), (63, 128, 512)]
    return [(d, 128, b) for b in (512, 8192) for d in (6, 21, 43, 63)] + [(21, 64, 512), (21, 256, 512)]


def key_of(row: dict) -> tuple:
    "What a row is of; the rows of one cell differ only in their library, and are written together."
    return tuple(row[name] for name in ("operation", "family", "D", "hidden", "batch", "threads"))


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    clock = time.process_time if args.threads == 1 else time.perf_counter
    seen = [json.loads(line) for line in args.rows.read_text().splitlines()] if args.rows.exists() else []
    done = {key_of(row) for row in seen if ("compiled" in row["library"]) == args.compile}
    operations = [name for name in args.operations if not (args.compile and name == "sample")]
    for features, hidden, batch in shapes(args):
        for family in args.only:
            cells = [{"operation": name, "family": family, "D": features, "hidden": hidden, "batch": batch, "threads": args.threads}
                     for name in operations]
            cells = [cell for cell in cells if key_of(cell) not in done]
            if not cells:
                continue
            print(f"{family}, D = {features}, hidden {hidden}, batch {batch}, {args.threads} thread(s)", flush=True)
            torch.manual_seed(SEED)
            models = {library: build(family, features, hidden) for library, build in LIBRARIES.items()}
            check_same_work(models, features)
            x = torch.randn(batch, features)
            for cell in cells:
                print(f" {cell['operation']}", flush=True)
                rows = (measure_compiled if args.compile else measure)(cell, models, x, args, clock)
                with args.rows.open("a") as out:
                    out.write("".join(json.dumps(row) + "\n" for row in rows))


def collect(args: argparse.Namespace) -> None:
    rows = [json.loads(line) for line in args.rows.read_text().splitlines()]
    about = {"data": f"standard normal rows; {N_LAYERS} layers, two hidden layers, {NUM_BINS} bins on [-{BOUND:g}, {BOUND:g}]; float32",
            "repeats": f"at least 5, {SLOW_REPEATS} where a call takes over {SLOW_S:g} s, interleaved",
            "median_ms": "one call: processor time for 1 thread, time on the clock for more; q1_ms and q3_ms are its quartiles",
            "ratio_to_nflows": "nflows' median over this one: above 1 is faster than nflows",
            "ratio_to_floor": "this median over that of the dense conditioner networks alone: 1 is the limit",
            "compile_s": "time on the clock of the first call of a compiled flow, compilation included"}
    threads = sorted({row["threads"] for row in rows})
    write(args.out, meta(COMMANDS, seeds=[SEED], packages=("nflows", "zuko", "normflows"), threads=threads, **about), rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=FAMILIES, default=FAMILIES, metavar="FAMILY")
    parser.add_argument("--operations", nargs="+", choices=OPERATIONS, default=OPERATIONS, metavar="OPERATION")
    for name in ("features", "hidden", "batch"):
        parser.add_argument(f"--{name}", type=int, nargs="+", help="in place of the benchmark's shapes")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5, help="the least number of calls that are counted")
    parser.add_argument("--seconds", type=float, default=0.5, help="quick cells are repeated for about so long, 50 times at most")
    parser.add_argument("--compile", action="store_true", help="torch.compile of our log_prob and train only")
    parser.add_argument("--compile-limit", type=float, default=COMPILE_LIMIT_S, help="seconds")
    parser.add_argument("--collect", action="store_true", help="write what was measured to --out and stop")
    parser.add_argument("--rows", type=Path, default=RESULTS / "speed.jsonl")
    parser.add_argument("--out", type=Path, default=RESULTS / "speed.json")
    args = parser.parse_args()
    args.rows.parent.mkdir(exist_ok=True)
    collect(args) if args.collect else run(args)


if __name__ == "__main__":
    sys.exit(main())
