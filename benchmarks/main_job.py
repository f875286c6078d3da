"""Run the main job and keep its figures for the landing page.

    python benchmarks/main_job.py                # `make search` into an empty folder -> results/main_job.json

Wall time and peak memory are those of the whole command, once the environment stands."""
import json
import resource
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def record(out: Path, seconds: float, peak_mb: float) -> None:
    "metrics.json of the folder `out` in the form of results/."
    metrics = json.loads((out/"metrics.json").read_text())
    meta = metrics["meta"] | {"command": "make search", "wall_seconds": round(seconds, 1), "peak_memory_mb": round(peak_mb)}
    kept = {k: metrics[k] for k in ("flow", "val_nll", "tried", "seconds", "notes")}
    (ROOT/"results"/"main_job.json").write_text(json.dumps({"meta": meta, "rows": metrics["models"], **kept}, indent=1) + "\n")


if __name__ == "__main__":
    subprocess.run(["make", ".venv/.run"], cwd=ROOT, check=True)
    with tempfile.TemporaryDirectory() as folder:
        out, start = Path(folder)/"gas_turbine_flow", time.perf_counter()
        subprocess.run(["make", "search", f"OUT={out}"], cwd=ROOT, check=True)
        # ru_maxrss of children is in kB on Linux
        record(out, time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)
