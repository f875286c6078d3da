"""Posteriors of two moons and SLCP: the searched flow against stacks of one type, and with the prior's bounds against without.

    python benchmarks/sbi_posteriors.py --worker 0/2 &    # any number of workers share the tasks; a stopped one goes on
    python benchmarks/sbi_posteriors.py --worker 1/2 &
    python benchmarks/sbi_posteriors.py --collect         # -> results/sbi.json

Every flow is trained from scratch for the same number of steps on the same pairs, batches and schedule: `nll`. `delivered_nll` is that of
what `AutoNF.fit` hands over, which was trained for longer. Figures are on fresh pairs, in nats; `gap` is the mean of log p - log q over
them, an estimate of the expected Kullback-Leibler divergence from the posterior. (Not called sbi.py: it would hide the package.)"""
import argparse
import json
import time
from functools import cache
from pathlib import Path

import numpy as np
import torch

from autonf_nb.candidates import Architecture
from autonf_nb.cost import architecture_cost
from autonf_nb.estimator import AutoNF, Prepared
from autonf_nb.flow import Flow
from autonf_nb.metrics import nll_with_error
from autonf_nb.parallel import run_tasks
from autonf_nb.sbi import SLCP, TWO_MOONS, FlowInUnits, expected_coverage, moons_log_posterior, slcp_log_posterior
from autonf_nb.training import one_thread, seeded, train_flow
from record import RESULTS, meta, write

SIMULATORS = {s.name: (s, exact) for s, exact in ((TWO_MOONS, moons_log_posterior), (SLCP, slcp_log_posterior))}
STACKS = (("MAF", 5), ("RQ-AF", 1), ("RQ-AF", 2), ("RQ-AF", 5), ("RQ-C", 5), ("RealNVP", 5))
PAIRS, FRESH, COVERED, SAMPLES, STEPS, LAM, SEEDS = 20_000, 2000, 1000, 200, 1000, 0.01, (0,)


class Fitted:
    "A flow and its units with the two methods of `AutoNF` that `expected_coverage` asks for."
    def __init__(self, flow: Flow, prepared: Prepared):
        self.net = FlowInUnits(flow, prepared.units, prepared.context_units)

    @torch.no_grad()
    def log_prob(self, X: np.ndarray, context: np.ndarray) -> np.ndarray:
        return self.net.log_prob(torch.tensor(X), torch.tensor(context)).double().numpy()

    def sample(self, n: int, context: np.ndarray, seed: int) -> np.ndarray:
        with seeded(seed):
            return self.net.sample(torch.tensor(context)).double().numpy()


@cache
def fresh_pairs(name: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    "theta, x and log p(theta | x); 2,000 evidences of SLCP take a minute."
    simulator, log_posterior = SIMULATORS[name]
    theta, x = simulator.pairs(FRESH, 1000 + seed)
    return theta, x, log_posterior(theta, x)


def from_scratch(prepared: Prepared, names: list[str], seed: int) -> Fitted:
    D, C = prepared.train.x.shape[1], prepared.train.context.shape[1]
    with seeded(seed):
        flow = Flow(Architecture(names).build(D, C), D)
    train_flow(flow, prepared.train, prepared.val, steps=STEPS, seed=seed)
    return Fitted(flow, prepared)


def coverage_of(density: Fitted, theta: np.ndarray, x: np.ndarray) -> dict:
    c = expected_coverage(density, theta[:COVERED], x[:COVERED], samples=SAMPLES)
    return {"levels": c.levels.tolist(), "coverage": c.coverage.tolist(), "band": c.band.tolist(), "distance": c.distance,
            "p_value": c.p_value}


def scores(log_q: np.ndarray, log_p: np.ndarray, prefix: str = "") -> dict:
    (nll, error), (gap, gap_error) = nll_with_error(log_q), nll_with_error(log_q - log_p)
    return {f"{prefix}nll": nll, f"{prefix}nll_2se": error, f"{prefix}gap": gap, f"{prefix}gap_2se": gap_error}


def posterior(name: str, seed: int, architecture: list[str] | None, bounded: bool) -> dict:
    "One flow of one simulator; architecture None: searched."
    simulator = SIMULATORS[name][0]
    theta, x = simulator.pairs(PAIRS, seed)
    fresh, seen, log_p = fresh_pairs(name, seed)
    start, row = time.perf_counter(), {}
    est = AutoNF(lam=LAM, steps=STEPS, seed=seed, device="cpu", bounds=simulator.bounds if bounded else None)
    prepared = est.prepare(theta, context=x)
    if architecture is None:
        est.fit_prepared(prepared)
        architecture, start = list(est.architecture_), time.perf_counter()
        row |= {"search_seconds": est.seconds_["search"], **scores(est.log_prob(fresh, seen), log_p, "delivered_")}
        row["delivered_coverage"] = coverage_of(est, fresh, seen)
    flow = from_scratch(prepared, architecture, seed)
    cost = architecture_cost(Architecture(architecture), simulator.features, context_features=x.shape[1])
    row |= {"architecture": architecture, "cost": cost, "train_seconds": time.perf_counter() - start, "exact_nll": float(-log_p.mean()),
            **scores(flow.log_prob(fresh, seen), log_p)}
    drawn = flow.sample(50 * COVERED, np.repeat(seen[:COVERED], 50, axis=0), seed)
    row["leak"] = float((np.abs(drawn) >= simulator.half_width).any(1).mean())
    return row | coverage_of(flow, fresh, seen)


def run(**arguments) -> dict:
    with one_thread():
        return posterior(**arguments)


def tasks() -> dict[str, dict]:
    "Seed by seed, so that a whole set of figures comes early."
    out = {}
    for seed in SEEDS:
        for name in SIMULATORS:
            for names in (None, *([layer] * n for layer, n in STACKS)):
                label = "search" if names is None else f"{names[0]} x {len(names)}"
                out[f"{name}, {label}, seed {seed}"] = dict(name=name, seed=seed, architecture=names, bounded=True)
            out[f"{name}, RQ-AF x 2 without bounds, seed {seed}"] = dict(name=name, seed=seed, architecture=["RQ-AF"] * 2,
                                                                        bounded=False)
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", default="0/1", help="I/N: this worker's share of the tasks")
    parser.add_argument("--work", type=Path, default=Path("sbi_work"), help="folder of the finished tasks")
    parser.add_argument("--collect", action="store_true", help="write what is finished")
    args = parser.parse_args()
    if not args.collect:
        i, n = map(int, args.worker.split("/"))
        run_tasks(run, dict(list(tasks().items())[i::n]), args.work, title="posteriors", progress=False)
    else:
        rows = [{"task": name, **task, **json.loads(f.read_text())["result"]} for name, task in tasks().items()
                if (f := args.work/f"{name}.json").exists()]
        about = meta("python benchmarks/sbi_posteriors.py --worker I/N; --collect", seeds=list(SEEDS), packages=("numpy", "scipy"),
                     pairs=PAIRS, fresh_pairs=FRESH, covered_pairs=COVERED, samples=SAMPLES, steps=STEPS, lam=LAM,
                     planned=len(tasks()))
        write(RESULTS/"sbi.json", about, rows)
