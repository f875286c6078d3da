"""Prefix tree against one chain of calls per path: time of forward and backward, interleaved, one thread.

    python benchmarks/superflow_tree.py            # writes results/speed_superflow.json
    python benchmarks/superflow_tree.py --depths 2 --repeats 3 --out /tmp/speed.json
"""
from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from itertools import product
from pathlib import Path

import torch

from autonf_nb.candidates import SearchSpace
from autonf_nb.flow import standard_normal_log_prob
from autonf_nb.superflow import SuperFlow
from machine import cpu_model

CANDIDATES = ("MAF", "RQ-AF", "RealNVP", "RQ-C", "NULL")
SEED = 0


def tree(superflow: SuperFlow, x: torch.Tensor) -> None:
    superflow.path_log_prob(x).mean().backward()


def chains(superflow: SuperFlow, x: torch.Tensor) -> None:
    "Each path's own forward and backward pass, so that no more than one path is held in memory."
    paths = list(product(range(len(CANDIDATES)), repeat=superflow.space.n_layers))
    for path in paths:
        u, logabsdet = superflow.path_transform(path)(x)
        loss = (standard_normal_log_prob(u) + logabsdet).mean() / len(paths)
        if loss.requires_grad:  # the path of NULLs has no parameters
            loss.backward()


def milliseconds(step: Callable, superflow: SuperFlow, x: torch.Tensor) -> float:
    superflow.zero_grad(set_to_none=True)
    start = time.perf_counter()
    step(superflow, x)
    return 1e3 * (time.perf_counter() - start)


def same_gradients(superflow: SuperFlow, x: torch.Tensor) -> None:
    found = []
    for step in (tree, chains):
        superflow.zero_grad(set_to_none=True)
        step(superflow, x)
        found.append([p.grad.clone() for p in superflow.theta()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def measure(n_layers: int, args: argparse.Namespace) -> dict:
    torch.manual_seed(SEED)
    superflow = SuperFlow(SearchSpace(CANDIDATES, n_layers=n_layers, hidden_features=args.hidden), args.features)
    with torch.no_grad():
        for p in superflow.theta():
            p.add_(0.05 * torch.randn_like(p))
    x = torch.randn(args.batch, args.features)
    same_gradients(superflow, x)  # warms up, too
    times = {tree: [], chains: []}
    for _ in range(args.repeats):
        for step, seen in times.items():
            seen.append(milliseconds(step, superflow, x))
    fast, slow = (statistics.median(times[step]) for step in (tree, chains))
    row = {"operation": "superflow forward + backward", "m": len(CANDIDATES), "n_layers": n_layers, "paths": superflow.space.n_paths,
           "D": args.features, "hidden": args.hidden, "batch": args.batch, "threads": torch.get_num_threads(), "repeats": args.repeats,
           "tree_median_ms": round(fast, 2), "chains_median_ms": round(slow, 2), "ratio": round(slow / fast, 2)}
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--features", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=Path(__file__).parents[1] / "results" / "speed_superflow.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(n_layers, args) for n_layers in args.depths]
    meta = {"command": " ".join(["python benchmarks/superflow_tree.py", *sys.argv[1:]]), "seeds": [SEED],
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "nflows": version("nflows")},
            "machine": {"cpu": cpu_model(), "threads": 1}, "date": datetime.date.today().isoformat(),
            "data": "standard normal rows"}
    args.out.parent.mkdir(exist_ok=True)
    args.out.write_text(json.dumps({"meta": meta, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
