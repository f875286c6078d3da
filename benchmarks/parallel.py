"""How a sweep scales with its workers, and what a task costs besides its training; -> results/parallel.json

    python benchmarks/parallel.py           # a quarter of an hour on two quiet cores; a stopped run goes on

A sweep is 12 trainings that need nothing of each other, by each engine and number of workers in turn, three times. Beside it, a task
that does nothing, a worker that imports PyTorch, and a program that has a thousand tasks out at once, as with a thousand workers.
`busy` are the cores that other programs used just before."""
import argparse
import itertools
import os
import statistics
import tempfile
import time
from pathlib import Path

import psutil
from record import RESULTS, meta, write

from autonf_nb.parallel import Results, run_tasks

ENGINES = [("local", 1), ("local", 2), ("ray", 1), ("ray", 2)]
TRAININGS = 12
IDLE, MANY = 400, 4000  # tasks that do nothing; of the program with a thousand out


def train(seed: int, steps: int) -> float:
    "Seconds of the training of four spline layers on the gas turbine data."
    import torch  # here, since each worker of `nothing` imports this file

    from autonf_nb.candidates import Architecture
    from autonf_nb.data import load_dataset
    from autonf_nb.flow import Flow
    from autonf_nb.training import Rows, one_thread, seeded, train_flow

    x = torch.tensor(load_dataset("gas_turbine").X, dtype=torch.float32)
    x = (x - x.mean(0)) / x.std(0)
    with one_thread(), seeded(seed):
        flow, start = Flow(Architecture(("RQ-C",) * 4).build(x.shape[1]), x.shape[1]), time.monotonic()
        train_flow(flow, Rows(x[2000:]), Rows(x[:2000]), steps=steps, batch_size=256, seed=seed)
    return time.monotonic() - start


def nothing(i: int) -> int:
    return i


def ready(i: int) -> float:
    "Seconds that a worker needs to import what a training needs."
    start = time.time()
    import autonf_nb.search  # noqa: F401
    return time.time() - start


def written(folder: str, tasks: dict[str, dict]) -> list[float]:
    "The times of day at which the results were there."
    return sorted(Results(Path(folder)).file(name).stat().st_mtime for name in tasks)


def sweep(engine: str, workers: int, repeat: int, steps: int) -> dict:
    "Wall clock seconds of all trainings."
    tasks = {f"{i}": {"seed": i, "steps": steps} for i in range(TRAININGS)}
    busy = psutil.cpu_percent(2.0) / 100 * psutil.cpu_count()
    with tempfile.TemporaryDirectory() as d:
        start = time.monotonic()
        own = run_tasks(train, tasks, d, engine=engine, jobs=workers, progress=False)
        seconds = time.monotonic() - start
    return {"engine": engine, "workers": workers, "repeat": repeat, "seconds": seconds, "trainings": list(own.values()), "busy": busy}


def overhead(engine: str, workers: int, repeat: int) -> dict:
    "Seconds to the first result of a task that does nothing, and from one to the next."
    with tempfile.TemporaryDirectory() as d:
        tasks, start = {f"{i}": {"i": i} for i in range(IDLE)}, time.time()
        run_tasks(nothing, tasks, d, engine=engine, jobs=workers, progress=False)
        times = written(d, tasks)
    return {"engine": engine, "workers": workers, "repeat": repeat, "first": times[0] - start, "task": (times[-1] - times[0]) / (IDLE - 1)}


def imports(repeat: int) -> dict:
    "Seconds that each of two new workers needs to import PyTorch and the search, side by side."
    with tempfile.TemporaryDirectory() as d:
        return {"repeat": repeat, "seconds": max(run_tasks(ready, {"0": {"i": 0}, "1": {"i": 1}}, d, jobs=2, progress=False).values())}


def driver(repeat: int) -> dict:
    "Seconds of one task of many, with a thousand out at a time; two cores do the work of the program and of all workers."
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "object_store_memory": 80 * 2**20, "include_dashboard": False})
    tasks = {f"{i}": {"i": i} for i in range(MANY)}
    try:
        with tempfile.TemporaryDirectory() as d:
            run_tasks(nothing, tasks, d, engine="ray", address=cluster.address, jobs=1000, progress=False)
            times, start = written(d, tasks), time.monotonic()
            again = Results(Path(d)/"again")
            for name, arguments in tasks.items():
                again.put(name, arguments, 0)
            return {"repeat": repeat, "task": (times[-1] - times[0]) / (MANY - 1), "file": (time.monotonic() - start) / MANY}
    finally:
        cluster.shutdown()


KINDS = {"sweep": sweep, "overhead": overhead, "imports": imports, "driver": driver}


def measure(kind: str, **case) -> dict:
    return KINDS[kind](**case)


def table(sweeps: list[dict]) -> list[dict]:
    "A row for each engine and number of workers: median seconds, and the speed-up over one process in the median round."
    rows = []
    for engine, workers in ENGINES:
        own = sorted((s for s in sweeps if (s["engine"], s["workers"]) == (engine, workers)), key=lambda s: s["repeat"])
        base = sorted((s for s in sweeps if (s["engine"], s["workers"]) == ENGINES[0]), key=lambda s: s["repeat"])
        ratios = [b["seconds"] / s["seconds"] for b, s in zip(base, own)]
        rows.append({"engine": engine, "workers": workers, "seconds": statistics.median(s["seconds"] for s in own),
                     "speed_up": statistics.median(ratios), "speed_ups": ratios, "busy": max(s["busy"] for s in own)})
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("parallel_work"), help="folder of what is measured; a new one measures anew")
    parser.add_argument("--steps", type=int, default=250, help="of a training")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    args = parser.parse_args()
    tasks = {}
    for repeat in range(args.repeats):
        for kind, (engine, workers) in itertools.product(("sweep", "overhead"), ENGINES):
            case = {"kind": kind, "engine": engine, "workers": workers, "repeat": repeat}
            tasks[f"{kind}, {engine}, {workers}, {repeat}"] = case | ({"steps": args.steps} if kind == "sweep" else {})
        tasks |= {f"{kind}, {repeat}": {"kind": kind, "repeat": repeat} for kind in ("imports", "driver")}
    train(0, 10)  # what is done once in a process
    found = run_tasks(measure, tasks, args.work, title="parallel")
    of = {kind: [found[name] for name, task in tasks.items() if task["kind"] == kind] for kind in KINDS}
    about = meta(f"python benchmarks/parallel.py --steps {args.steps} --repeats {args.repeats}", seeds=list(range(TRAININGS)),
                 packages=("ray",), trainings=TRAININGS, data="gas_turbine, bundled", cores=os.cpu_count())
    write(RESULTS/"parallel.json", about, table(of["sweep"]), **{kind: of[kind] for kind in ("overhead", "imports", "driver", "sweep")})
