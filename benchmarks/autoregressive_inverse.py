"""Sampling direction of one autoregressive layer: incremental against naive inverse, nflows, and one pass of the network alone.

    python benchmarks/autoregressive_inverse.py            # writes results/speed_autoregressive.json
    python benchmarks/autoregressive_inverse.py --features 6 --repeats 3 --out /tmp/speed.json

All competitors of a row run in one process, in turn, and processor time is measured, not the clock on the wall: on one thread they are
the same on an idle machine, and a busy one distorts it less. Trust the ratios. nflows has its own weights, of the same shapes.
ratio_to_nflows: nflows' median over this one (above 1 is faster than nflows). ratio_to_floor: this median over that of one dense pass
of a network of the same size (1 is the limit).
"""
from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from nflows.transforms import MaskedAffineAutoregressiveTransform, MaskedPiecewiseRationalQuadraticAutoregressiveTransform
from torch import nn

from autonf_nb.transforms.autoregressive import Autoregressive
from autonf_nb.transforms.coupling import AFFINE, rational_quadratic
from record import RESULTS, medians, meta, write

SEED, NUM_BINS, BOUND = 0, 8, 4.0


def naive_inverse(layer: Autoregressive, u: torch.Tensor) -> torch.Tensor:
    "The textbook's algorithm: D passes of the whole network, each of which makes one more feature right."
    x = torch.zeros_like(u)
    for _ in range(layer.features):
        x = layer.univariate(u.t(), layer.conditioner(x.t()), True)[0].t()
    return x


def nflows_layer(family: str, features: int, hidden: int) -> nn.Module:
    shared = {"features": features, "hidden_features": hidden, "num_blocks": 1, "use_residual_blocks": False}
    if family == "MAF":
        return MaskedAffineAutoregressiveTransform(**shared)
    return MaskedPiecewiseRationalQuadraticAutoregressiveTransform(**shared, num_bins=NUM_BINS, tails="linear", tail_bound=BOUND)


def competitors(family: str, features: int, hidden: int, batch: int) -> dict[str, dict[str, Callable]]:
    "operation -> library -> what to time, on layers whose weights were moved off the identity start."
    univariate = AFFINE if family == "MAF" else rational_quadratic(NUM_BINS, BOUND)
    ours, theirs = Autoregressive(features, univariate, hidden_features=hidden), nflows_layer(family, features, hidden)
    dense = nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
                          nn.Linear(hidden, univariate.n_params * features))
    for p in (*ours.parameters(), *theirs.parameters()):
        p.data.add_(0.02 * torch.randn_like(p))
    x = torch.randn(batch, features)
    torch.testing.assert_close(ours.inverse(x)[0], naive_inverse(ours, x), atol=1e-3, rtol=1e-3)
    return {
        "sample": {"autonf_nb": lambda: ours.inverse(x), "autonf_nb, naive": lambda: naive_inverse(ours, x),
                   "nflows": lambda: theirs.inverse(x), "floor": lambda: dense(x)},
        "log_prob": {"autonf_nb": lambda: ours(x), "nflows": lambda: theirs(x), "floor": lambda: dense(x)},
    }


def measure(family: str, features: int, args: argparse.Namespace) -> list[dict]:
    torch.manual_seed(SEED)
    rows = []
    with torch.no_grad():
        for operation, functions in competitors(family, features, args.hidden, args.batch).items():
            ms = medians(functions, args.repeats)
            for library, median in ms.items():
                rows.append({"operation": operation, "family": family, "library": library, "D": features, "hidden": args.hidden,
                             "batch": args.batch, "threads": torch.get_num_threads(), "median_ms": round(median, 3),
                             "ratio_to_nflows": round(ms["nflows"] / median, 2), "ratio_to_floor": round(median / ms["floor"], 2)})
                print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, nargs="+", default=[6, 21, 63])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--out", type=Path, default=RESULTS/"speed_autoregressive.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    rows = [row for family in ("MAF", "RQ-AF") for features in args.features for row in measure(family, features, args)]
    about = meta(" ".join(["python benchmarks/autoregressive_inverse.py", *sys.argv[1:]]), seeds=[SEED], packages=("nflows",),
                 data="standard normal rows, one layer with two hidden layers, 8 bins; float32", repeats=args.repeats,
                 median_ms="processor time of one call", ratio_to_nflows="nflows' median over this one: above 1 is faster than nflows",
                 ratio_to_floor="this median over that of one dense pass of the network alone")
    write(args.out, about, rows)


if __name__ == "__main__":
    main()
