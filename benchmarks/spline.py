"""Time the rational-quadratic spline against nflows, side by side in one process: python benchmarks/spline.py

Every repeat times each library once, one after another, and processor time is measured, not the clock on the wall: on one thread they
are the same on an idle machine, and a busy one distorts it less. Trust the ratios.
Writes results/speed_spline.json.
"""
import argparse
import time
from collections.abc import Callable
from pathlib import Path

import torch
from nflows.transforms.splines.rational_quadratic import unconstrained_rational_quadratic_spline
from torch import Tensor
from zuko.transforms import MonotonicRQSTransform

from autonf_nb.transforms.splines import rational_quadratic_spline
from record import RESULTS, meta, write

BINS, BOUND = 8, 3.0
SHAPES = [(11, 256), (5, 1024), (43, 512), (21, 8192)]  # features, batch
OPERATIONS = [("density", False, False), ("density", False, True), ("sampling", True, False), ("sampling", True, True)]


def nflows(x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    w, h, d = params[..., :BINS], params[..., BINS:2 * BINS], params[..., 2 * BINS:]
    return unconstrained_rational_quadratic_spline(x, w, h, d, inverse=inverse, tail_bound=BOUND)


def ours(x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    return rational_quadratic_spline(x, params, BOUND, inverse)


def zuko(x: Tensor, params: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    t = MonotonicRQSTransform(params[..., :BINS], params[..., BINS:2 * BINS], params[..., 2 * BINS:], bound=BOUND)
    if not inverse:
        return t.call_and_ladj(x)
    y = t._inverse(x)  # what its flows do when they sample with a log-density
    return y, -t.call_and_ladj(y)[1]


def once(f: Callable, x: Tensor, params: Tensor, inverse: bool, gradient: bool) -> float:
    "Processor milliseconds of one call."
    with torch.set_grad_enabled(gradient):
        x, params = x.detach().requires_grad_(gradient), params.detach().requires_grad_(gradient)
        start = time.process_time()
        y, logabsdet = f(x, params, inverse)
        if gradient:
            torch.autograd.grad((y, logabsdet), (x, params), (torch.ones_like(y), torch.ones_like(logabsdet)))
        return (time.process_time() - start) * 1e3


def measure(features: int, batch: int, inverse: bool, gradient: bool, libraries: dict, repeats: int, seed: int) -> dict[str, float]:
    "Median milliseconds by library, of interleaved repeats."
    g = torch.Generator().manual_seed(seed)
    x, params = 1.2 * torch.randn(features, batch, generator=g), torch.randn(3 * BINS - 1, features, batch, generator=g)
    rows_first = x.t().contiguous(), params.permute(2, 1, 0).contiguous()  # each library is given the layout it asks for
    for name, f in libraries.items():  # glibc returns freed memory to the system until it has seen how much a caller needs, as in training
        for _ in range(5):
            once(f, *((x, params) if name == "autonf_nb" else rows_first), inverse, True)
    times = {name: [] for name in libraries}
    for i in range(repeats + 5):
        for name, f in libraries.items():
            ms = once(f, *((x, params) if name == "autonf_nb" else rows_first), inverse, gradient)
            if i >= 5:  # the first calls warm the caches
                times[name].append(ms)
    return {name: sorted(t)[len(t) // 2] for name, t in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS/"speed_spline.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    libraries = {"nflows": nflows, "autonf_nb": ours, "zuko": zuko}
    rows = []
    for features, batch in SHAPES:
        for direction, inverse, gradient in OPERATIONS:
            repeats = max(10, args.repeats * 4096 // max(4096, features * batch))
            ms = measure(features, batch, inverse, gradient, libraries, repeats, seed=0)
            operation = f"spline, {direction} direction" + (", with gradient" if gradient else "")
            for name, t in ms.items():
                rows.append({"operation": operation, "family": "rational-quadratic spline", "library": name, "D": features,
                             "hidden": None, "batch": batch, "threads": args.threads, "median_ms": round(t, 4),
                             "ratio_to_nflows": round(ms["nflows"] / t, 2), "ratio_to_floor": None})
            times = ", ".join(f"{name} {t:.2f} ms ({ms['nflows'] / t:.1f}x)" for name, t in ms.items())
            print(f"{features:3d} x {batch:5d} {operation:40s} {times}", flush=True)
    command = f"python benchmarks/spline.py --repeats {args.repeats} --threads {args.threads}"
    data = f"processor time; x = 1.2 times standard normal, standard normal parameters, {BINS} bins, bound {BOUND:g}, float32"
    write(args.out, meta(command, seeds=[0], packages=("nflows", "zuko"), threads=args.threads, data=data), rows)


if __name__ == "__main__":
    main()
