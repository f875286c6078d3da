"""The default search against the single-type stacks of 1, 2, 4 and 8 layers, on gas turbine, POWER and protein.

    python benchmarks/search_vs_stacks.py --worker 0/2 &      # any number of workers share the tasks; a stopped one goes on
    python benchmarks/search_vs_stacks.py --worker 1/2 &
    python benchmarks/search_vs_stacks.py --worker 0/1 --kind short     # every flow of at most three layers, where search and stack tie
    python benchmarks/search_vs_stacks.py --collect           # -> results/search_vs_stacks.json

Every flow, found or stacked, is trained for the same number of steps with the same rows, batches and schedule. POWER and protein are
looked for under AUTONF_DATA. Figures are on the test rows, standardised by the training rows."""
import argparse
import itertools
import json
import time

import torch

from autonf_nb.candidates import Architecture
from autonf_nb.cost import architecture_cost
from autonf_nb.data import Standardizer, dequantize, load_dataset, split_rows
from autonf_nb.flow import Flow
from autonf_nb.metrics import nll_with_error
from autonf_nb.search import search_flow
from autonf_nb.training import LEARNING_RATE, Rows, mean_nll, row_log_prob, seeded, train_flow
from record import RESULTS, meta, write

DATASETS, LAMS, SEEDS, DEPTHS = ("gas_turbine", "power", "protein"), (0.02, 0.1, 0.5), (0, 1, 2), (1, 2, 4, 8)
LAYERS = ("MAF", "RealNVP", "RQ-AF", "RQ-C")
STEPS = 1000
SHORT, SHORT_LAYERS = (("power", 0), ("protein", 0), ("gas_turbine", 2)), 3  # where a stack of one or two layers was found
PARTS = RESULTS/"search_vs_stacks.jsonl"


def rows_of(name: str, seed: int) -> dict[str, Rows]:
    "Standardised training, validation and test rows; tied columns are dequantised."
    table = load_dataset(name)
    X = dequantize(table.X, seed=0)
    split = split_rows(len(X), seed=seed)
    standardizer = Standardizer().fit(X[split.train])
    parts = {part: standardizer.transform(X[getattr(split, part)]) for part in ("train", "val", "test")}
    return {part: Rows(torch.tensor(x, dtype=torch.float32)) for part, x in parts.items()}


def measured(flow: Flow, test: Rows) -> dict:
    nll, error = nll_with_error(row_log_prob(flow, test))
    return {"nll": nll, "nll_2se": error}


def fit(names: list[str], rows: dict[str, Rows], seed: int) -> dict:
    "The architecture trained from scratch."
    D, start = rows["train"].x.shape[1], time.perf_counter()
    with seeded(seed):
        flow = Flow(Architecture(names).build(D), D)
    if names:
        train_flow(flow, rows["train"], rows["val"], steps=STEPS, seed=seed)
    return {"val_nll": mean_nll(flow, rows["val"]), **measured(flow, rows["test"]), "train_seconds": time.perf_counter() - start}


def run(task: dict) -> dict:
    rows = rows_of(task["dataset"], task["seed"])
    D, row = rows["train"].x.shape[1], dict(task)
    if task["kind"] == "search":
        result = search_flow(rows["train"].x, rows["val"].x, lam=task["lam"], seed=task["seed"], steps=STEPS, progress=False)
        row |= {"architecture": list(result.architecture), "search_seconds": result.seconds["search"],
                "train_seconds": result.seconds["training"], "figures": result.history["figures"],
                "prefixes": result.history["prefixes"], "notes": result.notes}
        row |= {f"delivered_{k}": v for k, v in measured(result.flow, rows["test"]).items()}
        row["retrained"] = fit(row["architecture"], rows, task["seed"])
        row |= {k: row["retrained"][k] for k in ("nll", "nll_2se")}
    else:
        row |= fit(row["architecture"], rows, task["seed"])
    return row | {"cost": architecture_cost(Architecture(row["architecture"]), D)}


def tasks() -> list[dict]:
    "One seed and one data set after another, so that early figures come early."
    out = []
    for seed, dataset in itertools.product(SEEDS, DATASETS):
        out += [dict(kind="search", dataset=dataset, seed=seed, lam=lam) for lam in LAMS]
        out += [dict(kind="stack", dataset=dataset, seed=seed, architecture=[name] * n) for n in DEPTHS for name in LAYERS]
    return out


def short_tasks() -> list[dict]:
    "Every flow of at most three layers, on a few data sets and seeds: is a tie with a stack a miss, or is nothing better there?"
    paths = [list(path) for n in range(1, SHORT_LAYERS + 1) for path in itertools.product(LAYERS, repeat=n)]
    return [dict(kind="short", dataset=dataset, seed=seed, architecture=path) for dataset, seed in SHORT for path in paths]


def done() -> list[dict]:
    return [json.loads(line) for line in PARTS.read_text().splitlines()] if PARTS.exists() else []


def same(row: dict, task: dict) -> bool:
    return all(row.get(k) == v for k, v in task.items())


def work(i: int, n: int, kind: str | None) -> None:
    chosen = short_tasks() if kind == "short" else [t for t in tasks() if kind in (None, t["kind"])]
    for task in chosen[i::n]:
        if not any(same(row, task) for row in done()):
            row = run(task)
            with PARTS.open("a") as f:
                f.write(json.dumps(row) + "\n")
            print(json.dumps({k: row.get(k) for k in ("kind", "dataset", "lam", "seed", "architecture", "nll", "cost")}), flush=True)


def collect() -> None:
    "Set each search beside the best stack of its data set and seed."
    parts, rows = done(), []
    for search in (p for p in parts if p["kind"] == "search"):
        stacks = [p for p in parts if p["kind"] == "stack" and p["dataset"] == search["dataset"] and p["seed"] == search["seed"]]
        if len(stacks) < len(DEPTHS) * len(LAYERS):
            continue
        lam = search["lam"]
        best = min(stacks, key=lambda p: p["nll"] + lam * p["cost"])
        fom1, best_fom1 = search["nll"] + lam * search["cost"], best["nll"] + lam * best["cost"]
        rows.append({**search, "fom1": fom1, "delivered_fom1": search["delivered_nll"] + lam * search["cost"],
                     "best_stack": best["architecture"], "best_stack_nll": best["nll"], "best_stack_cost": best["cost"],
                     "best_stack_fom1": best_fom1, "gap_to_best_stack": fom1 - best_fom1,
                     "delivered_gap": search["delivered_nll"] + lam * search["cost"] - best_fom1})
    about = meta("python benchmarks/search_vs_stacks.py --worker I/N; --collect", seeds=list(SEEDS), packages=("numpy",), steps=STEPS,
                 learning_rate=LEARNING_RATE, data={d: load_dataset(d).note for d in DATASETS},
                 planned=sum(t["kind"] == "search" for t in tasks()))
    of_kind = {kind: [p for p in parts if p["kind"] == kind] for kind in ("stack", "short")}
    write(RESULTS/"search_vs_stacks.json", about, rows, stacks=of_kind["stack"], short=of_kind["short"])
    for r in rows:
        print(f"{r['dataset']:12} {r['lam']:<5} {r['seed']} {' > '.join(r['architecture']):40} {r['fom1']:8.4f} "
              f"delivered {r['delivered_fom1']:8.4f} | {len(r['best_stack'])} x {r['best_stack'][0]:8} {r['best_stack_fom1']:8.4f} "
              f"gap {r['gap_to_best_stack']:+.4f} / {r['delivered_gap']:+.4f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", help="I/N: this worker's share of the tasks")
    parser.add_argument("--kind", choices=("stack", "search", "short"), help="only these tasks; short ones run only when asked for")
    parser.add_argument("--collect", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.worker:
        work(*map(int, args.worker.split("/")), args.kind)
    if args.collect:
        collect()
