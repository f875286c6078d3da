"""Density and coverage of 10,000 rows against 10,000: ours beside prdc's, in one process; and our peak memory.

    python benchmarks/density_coverage.py         # -> results/density_coverage.json

prdc (the package of the metric's authors, a dev dependency) also returns precision and recall, from one more matrix of distances; it
has no function for less. Both may use all cores; time is the clock's. The memory is that of a process that does nothing else, beside one
that only imports the same."""
import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from record import RESULTS, medians, meta, write

N, K, SEED = 10_000, 5, 0
WIDTHS = (2, 11, 63)


def rows_of(features: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(SEED)
    return rng.normal(size=(N, features)), 1.1 * rng.normal(size=(N, features))


def peak_memory_mb(features: int) -> float:
    "Of a process of its own; features = 0: of the imports alone."
    command = [sys.executable, __file__, "--peak", str(features)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def peak(features: int) -> None:
    from autonf_nb.metrics import density_coverage
    if features:
        density_coverage(*rows_of(features), k=K)
    # Linux's high-water mark in kB; that of `resource` starts from the memory of the process that started this one
    print(int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1024)


def row_of(features: int, repeats: int) -> dict:
    from prdc import compute_prdc

    from autonf_nb.metrics import density_coverage
    real, fake = rows_of(features)
    theirs, ours = compute_prdc(real, fake, nearest_k=K), density_coverage(real, fake, k=K)
    difference = max(abs(ours[0] - theirs["density"]), abs(ours[1] - theirs["coverage"]))
    assert difference < 1e-6, difference
    milliseconds = medians({"autonf_nb": lambda: density_coverage(real, fake, k=K), "prdc": lambda: compute_prdc(real, fake, nearest_k=K)},
                           repeats, clock=time.perf_counter, warm_up=1)
    return {"features": features, "rows": N, "k": K, "density": ours[0], "coverage": ours[1], "largest_difference": difference,
            "seconds": round(milliseconds["autonf_nb"] / 1e3, 2), "prdc_seconds": round(milliseconds["prdc"] / 1e3, 2),
            "ratio": round(milliseconds["prdc"] / milliseconds["autonf_nb"], 2),
            "peak_memory_mb": round(peak_memory_mb(features)), "imports_mb": round(peak_memory_mb(0))}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peak", type=int, metavar="FEATURES", help="print the peak memory of one evaluation and stop")
    args = parser.parse_args()
    if args.peak is not None:
        peak(args.peak)
    else:
        rows = [row_of(features, args.repeats) for features in WIDTHS]
        print(json.dumps(rows, indent=1))
        about = {"data": "standard normal rows, and rows 1.1 times as wide", "repeats": f"{args.repeats}, in turn; medians"}
        write(RESULTS/"density_coverage.json", meta("python benchmarks/density_coverage.py", seeds=[SEED], packages=("prdc",),
                                                    threads=torch.get_num_threads(), **about), rows)
