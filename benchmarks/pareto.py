"""The whole Pareto front from one search without lambda, against one search for each of ten lambdas.

    python benchmarks/pareto.py --worker 0/2 &     # any number of workers share data sets and seeds; a stopped one goes on
    python benchmarks/pareto.py --worker 1/2 &
    python benchmarks/pareto.py --collect          # -> results/pareto.json

All flows are trained from scratch for the same number of steps and chosen on validation rows; figures are those of the test rows. What
trains the same flow is trained once, in a folder the searches share (--work); the seconds of a search are those of all its trainings,
whoever ran them, without the fine-tuning, which the front does not have either. POWER and protein are looked for under AUTONF_DATA."""
import argparse
import json
from pathlib import Path

import torch

from autonf_nb.data import load_dataset
from autonf_nb.front import search_front
from autonf_nb.metrics import fom1, hypervolume
from autonf_nb.parallel import run_tasks
from autonf_nb.search import Settings, flow_of, from_scratch, search_flow
from autonf_nb.training import Run, mean_nll
from record import RESULTS, meta, write
from search_vs_stacks import DATASETS, SEEDS, rows_of

LAMS = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
COST_REF = 24.0  # dearer than eight layers of any type; the NLL of the reference point is that of the identity


def study(dataset: str, seed: int, work: str) -> dict:
    "The front and the ten searches on one data set and seed."
    rows, folder, s = rows_of(dataset, seed), Path(work)/f"{dataset}-{seed}", Settings(seed=seed)
    front = search_front(rows["train"].x, rows["val"].x, seed=seed, shared=folder, progress=False)
    flows = [{"architecture": list(r.architecture), "cost": r.cost, "val_nll": r.nll_val, "nll": mean_nll(r.flow, rows["test"])}
             for r in front.flows]
    found = []
    for lam in LAMS:
        result = search_flow(rows["train"].x, rows["val"].x, lam=lam, seed=seed, shared=folder, progress=False)
        layers = from_scratch(s, result.architecture, rows["train"], rows["val"], Run(shared=folder)).layers if result.architecture else []
        seconds = sum(t for stage, t in result.stages.items() if not stage.startswith("fine-tune"))
        found.append({"lam": lam, "search_architecture": list(result.architecture), "search_cost": result.cost,
                      "search_nll": mean_nll(flow_of(layers, rows["test"]), rows["test"]), "search_seconds": seconds})
    identity = mean_nll(flow_of([], rows["test"]), rows["test"])
    return {"flows": flows, "searches": found, "front_seconds": sum(front.stages.values()), "identity_nll": identity}


def rows_from(dataset: str, seed: int, part: dict) -> list[dict]:
    "One row for each lambda: what the search found, and what the front offers for it."
    volumes = {"front_hypervolume": hypervolume([f["nll"] for f in part["flows"]], [f["cost"] for f in part["flows"]],
                                                part["identity_nll"], COST_REF),
               "search_hypervolume": hypervolume([r["search_nll"] for r in part["searches"]], [r["search_cost"] for r in part["searches"]],
                                                 part["identity_nll"], COST_REF)}
    out = []
    for r in part["searches"]:
        best = min(part["flows"], key=lambda f: fom1(f["val_nll"], f["cost"], r["lam"]))
        out.append({"dataset": dataset, "seed": seed, **r, "search_fom1": fom1(r["search_nll"], r["search_cost"], r["lam"]),
                    "front_architecture": best["architecture"], "front_cost": best["cost"], "front_nll": best["nll"],
                    "front_fom1": fom1(best["nll"], best["cost"], r["lam"]), "front_seconds": part["front_seconds"], **volumes})
    return out


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worker", default="0/1", help="I/N: this worker's share of data sets and seeds")
    parser.add_argument("--work", type=Path, default=Path("pareto_work"), help="folder for what is trained and finished")
    parser.add_argument("--collect", action="store_true", help="write what is finished")
    args = parser.parse_args()
    torch.set_num_threads(1)
    tasks = {f"{d}, seed {s}": {"dataset": d, "seed": s, "work": str(args.work/"flows")} for s in SEEDS for d in DATASETS}
    if not args.collect:
        i, n = map(int, args.worker.split("/"))
        run_tasks(study, dict(list(tasks.items())[i::n]), args.work/"parts", title="pareto")
    else:
        parts = {name: json.loads(f.read_text())["result"] for name in tasks if (f := args.work/"parts"/f"{name}.json").exists()}
        done = [(tasks[name]["dataset"], tasks[name]["seed"], part) for name, part in parts.items()]
        about = meta("python benchmarks/pareto.py --worker I/N; --collect", seeds=list(SEEDS), packages=("numpy",), steps=Settings.steps,
                     lambdas=LAMS, cost_ref=COST_REF, data={d: load_dataset(d).note for d in DATASETS})
        write(RESULTS/"pareto.json", about, [r for d in done for r in rows_from(*d)],
              fronts=[{"dataset": d, "seed": s, "flows": part["flows"]} for d, s, part in done])
