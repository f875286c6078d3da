"""Prefix tree against one chain of calls per path: time of forward and backward, interleaved, one thread.

    python benchmarks/superflow_tree.py            # writes results/speed_superflow.json
    python benchmarks/superflow_tree.py --depths 2 --repeats 3 --out /tmp/speed.json
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import torch

from autonf_nb.candidates import SearchSpace
from autonf_nb.flow import standard_normal_log_prob
from autonf_nb.superflow import SuperFlow
from record import RESULTS, medians, meta, write

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


def gradients(step: Callable, superflow: SuperFlow, x: torch.Tensor) -> list[torch.Tensor]:
    superflow.zero_grad(set_to_none=True)
    step(superflow, x)
    return [p.grad for p in superflow.theta()]


def same_gradients(superflow: SuperFlow, x: torch.Tensor) -> None:
    for a, b in zip(gradients(tree, superflow, x), gradients(chains, superflow, x), strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)


def measure(n_layers: int, args: argparse.Namespace) -> dict:
    torch.manual_seed(SEED)
    superflow = SuperFlow(SearchSpace(CANDIDATES, n_layers=n_layers, hidden_features=args.hidden), args.features)
    with torch.no_grad():
        for p in superflow.theta():
            p.add_(0.05 * torch.randn_like(p))
    x = torch.randn(args.batch, args.features)
    same_gradients(superflow, x)
    ms = medians({step.__name__: lambda step=step: gradients(step, superflow, x) for step in (tree, chains)}, args.repeats)
    row = {"operation": "superflow forward + backward", "m": len(CANDIDATES), "n_layers": n_layers, "paths": superflow.space.n_paths,
           "D": args.features, "hidden": args.hidden, "batch": args.batch, "threads": torch.get_num_threads(), "repeats": args.repeats,
           **{f"{name}_median_ms": round(value, 2) for name, value in ms.items()}, "ratio": round(ms["chains"] / ms["tree"], 2)}
    print(row, flush=True)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--depths", type=int, nargs="+", default=[2, 3, 4])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--features", type=int, default=6)
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--out", type=Path, default=RESULTS/"speed_superflow.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [measure(n_layers, args) for n_layers in args.depths]
    write(args.out, meta(" ".join(["python benchmarks/superflow_tree.py", *sys.argv[1:]]), seeds=[SEED], data="standard normal rows"), rows)


if __name__ == "__main__":
    main()
