"""Every flow of up to three layers of four candidates, trained on its own: the table that search strategies are judged against.

    python benchmarks/tabular.py --jobs 2       # 4 data sets x 85 flows x 7 seeds; a stopped run goes on
    python benchmarks/tabular.py --collect      # -> autonf_nb/datasets/tabular_benchmark.npz and results/tabular_benchmark.json

Small networks and short trainings, as a table of a thousand trainings asks for: 32 hidden units, 800 steps of 256 rows. The seed draws the
split, the batches and the weights. Tied columns are dequantised; protein is looked for under AUTONF_DATA. Seconds are those of the
processor, on one thread, so that two trainings side by side do not count twice."""
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch

from autonf_nb.candidates import Architecture
from autonf_nb.cost import architecture_cost
from autonf_nb.data import Standardizer, dequantize, load_dataset, plane_set, split_rows
from autonf_nb.metrics import nll_with_error
from autonf_nb.parallel import run_tasks
from autonf_nb.search import Settings, flow_of, from_scratch, prefix_of
from autonf_nb.training import Rows, Run, one_thread, row_log_prob
from record import RESULTS, job_parser, meta, write

DATASETS = ("gas_turbine", "two_moons", "power", "protein")
CANDIDATES, DEPTH, SEEDS = ("MAF", "RQ-AF", "RealNVP", "RQ-C"), 3, range(7)
TIMED = (0, 1, 2)  # the seeds whose seconds are kept: others may be trained on another machine
HIDDEN, STEPS, ROWS = 32, 800, 20_000
COSTS = [(model, direction) for direction in ("density", "sampling") for model in ("flops", "latency")]
COSTS += [("params", "density"), ("paper", "density")]
TABLE = Path(__file__).resolve().parents[1]/"autonf_nb"/"datasets"/"tabular_benchmark.npz"


def architectures() -> list[tuple[str, ...]]:
    return [names for depth in range(DEPTH + 1) for names in itertools.product(CANDIDATES, repeat=depth)]


def rows_of(name: str, seed: int) -> tuple[Rows, Rows, Rows]:
    "Standardised training, validation and test rows of at most ROWS rows, drawn by the seed."
    X = plane_set("two_moons", ROWS, seed=seed) if name == "two_moons" else dequantize(load_dataset(name).X, seed=0)
    X = X[np.random.default_rng(seed).permutation(len(X))[:ROWS]]
    split = split_rows(len(X), seed=seed)
    standardizer = Standardizer().fit(X[split.train])
    return tuple(Rows(torch.tensor(standardizer.transform(X[part]), dtype=torch.float32)) for part in (split.train, split.val, split.test))


def train(dataset: str, seed: int, architecture: list[str]) -> dict:
    "One entry of the table."
    train_rows, val, test = rows_of(dataset, seed)
    s, names = Settings(hidden_features=HIDDEN, steps=STEPS, seed=seed), Architecture(architecture)
    with one_thread(), Run() as run:
        start = time.process_time()
        p = from_scratch(s, names, train_rows, val, run) if names else prefix_of(s, names, [], val)
        seconds = time.process_time() - start
        nll, error = nll_with_error(row_log_prob(flow_of(p.layers, test).eval(), test))
        curve = {k: p.training.get(k, []) for k in ("step", "val_nll")}
        return {"val_nll": p.nll, "test_nll": nll, "test_2se": error, "curve": curve, "seconds": seconds,
                "features": test.x.shape[1]}


def collect(parts: dict[str, dict], tasks: dict[str, dict], note: str | None) -> None:
    "The table as arrays, (datasets, architectures, seeds); curves have one axis more, costs and seconds one less."
    flows = architectures()
    cell = {(t["dataset"], tuple(t["architecture"]), t["seed"]): parts[name] for name, t in tasks.items()}

    def array(value) -> np.ndarray:
        return np.array([[[value(cell[d, a, s]) for s in SEEDS] for a in flows] for d in DATASETS])

    steps = cell[DATASETS[0], ("MAF",), 0]["curve"]["step"]
    curve = array(lambda r: r["curve"]["val_nll"] or [r["val_nll"]] * len(steps))  # the identity does not learn
    features = [cell[d, (), 0]["features"] for d in DATASETS]
    costs = {f"cost_{model}_{direction}": np.array([[architecture_cost(a, D, cost=model, direction=direction, hidden_features=HIDDEN)
                                                      for a in flows] for D in features]) for model, direction in COSTS}
    about = meta("python benchmarks/tabular.py --jobs N; --collect", seeds=list(SEEDS), packages=("numpy",), datasets=DATASETS,
                 candidates=CANDIDATES, depth=DEPTH, hidden_features=HIDDEN, steps=STEPS, rows=ROWS, features=features, timed=TIMED,
                 note=note,
                 data={d: "drawn from its formula" if d == "two_moons" else load_dataset(d).note for d in DATASETS})
    arrays = {k: array(lambda r, k=k: r[k]) for k in ("val_nll", "test_nll", "test_2se")} | {"curve": curve} | costs
    arrays["seconds"] = array(lambda r: r["seconds"])[..., list(TIMED)].mean(-1)
    np.savez_compressed(TABLE, meta=json.dumps(about), architectures=[" > ".join(a) for a in flows], curve_steps=steps,
                        **{k: v.astype(np.float32) for k, v in arrays.items()})
    rows = [{"dataset": d, "architecture": list(a), "test_sd_over_seeds": float(arrays["test_nll"][i, j].std(ddof=1)),
             **{k: float(arrays[k][i, j].mean()) for k in ("val_nll", "test_nll", "seconds")}}
            for i, d in enumerate(DATASETS) for j, a in enumerate(flows)]
    write(RESULTS/"tabular_benchmark.json", about, rows)
    print(f"{TABLE}: {TABLE.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    parser = job_parser(__doc__, "tabular_work")
    parser.add_argument("--note", help="what is to be said of where the parts were trained")
    args = parser.parse_args()
    tasks = {f"{d}, {' > '.join(a) or 'identity'}, seed {s}": {"dataset": d, "seed": s, "architecture": list(a)}
             for d, s, a in itertools.product(DATASETS, SEEDS, architectures())}
    parts = run_tasks(train, tasks, args.work, jobs=args.jobs, title="table")
    if args.collect:
        collect(parts, tasks, args.note)
