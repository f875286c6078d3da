"""Does a local search after the race bring the default recipe nearer to the best flow of the table?

    python benchmarks/climbing.py --jobs 2         # 4 data sets x 10 seeds x 3 lambdas; a stopped run goes on
    python benchmarks/climbing.py --collect        # what is finished -> results/climbing.json

Three flows of the race are trained in full instead of five. From the best of them all flows that differ in one layer are trained briefly,
the `tries` best of these in full, and so on from there as long as that finds a better one. Rows, scores and effort as in regret.py."""
import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from record import RESULTS, finished, job_parser, meta, write
from regret import LAMS, SEEDS, scored
from tabular import DATASETS, HIDDEN, STEPS, rows_of

from autonf_nb import search
from autonf_nb.candidates import Architecture
from autonf_nb.parallel import run_tasks
from autonf_nb.search import Prefix, Settings, from_scratch, hopeless, prefix_of
from autonf_nb.strategies import FlowTable, RowTrials, by_search
from autonf_nb.training import Rows, Run, one_thread

TRIES = (2, 3)


def neighbours(flow: Architecture, candidates: tuple[str, ...], n_layers: int) -> list[Architecture]:
    "All flows of at least one layer with one layer replaced, taken out or put in."
    changed = []
    for i in range(len(flow)):
        changed += [(*flow[:i], name, *flow[i + 1:]) for name in candidates] + [(*flow[:i], *flow[i + 1:])]
    if len(flow) < n_layers:
        changed += [(*flow[:i], name, *flow[i:]) for i in range(len(flow) + 1) for name in candidates]
    return [a for a in dict.fromkeys(map(Architecture, changed)) if a and a != flow]


def climb(s: Settings, rivals: list[Prefix], tries: int, train: Rows, val: Rows, run: Run) -> list[Prefix]:
    "The rivals and what the climb tried, the best fully trained flow in front."
    while True:
        best = min((p for p in rivals if p.steps in (0, s.steps)), key=lambda p: p.fom1)
        known, near = {(p.architecture, p.steps) for p in rivals}, neighbours(best.architecture, s.space(1).without_null, s.n_layers)
        for a in near:
            heats = [p for p in rivals if p.steps == s.search_steps]
            if (a, s.search_steps) not in known and not hopeless(s, a, prefix_of(s, a, [], val).cost, heats):
                rivals = [*rivals, from_scratch(s, a, train, val, run, steps=s.search_steps)]
        ranked = sorted((p for p in rivals if p.steps == s.search_steps and p.architecture in near), key=lambda p: p.fom1)
        names = [p.architecture for p in ranked if (p.architecture, s.steps) not in known][:tries]
        found = [from_scratch(s, a, train, val, run) for a in names]
        rivals = [*rivals, *found]
        if min((p.fom1 for p in found), default=math.inf) >= best.fom1:
            return [best, *(p for p in rivals if p is not best)]


def climbing(tries: int) -> Callable:
    "In the form that `search_flow` knows strategies by."
    def growing(s: Settings, train: Rows, val: Rows, run: Run) -> tuple[list[Prefix], list[dict]]:
        s = replace(s, strategy="op2")
        block = search._search_next(s, 0, s.block_sizes[0], prefix_of(s, Architecture(()), [], val), train, val, run, math.inf).history
        finalists, search.FINALISTS = search.FINALISTS, 3
        try:
            rivals = search._race(s, block, train, val, run, math.inf)
        finally:
            search.FINALISTS = finalists
        return climb(s, rivals, tries, train, val, run), [block]
    return growing


for tries in TRIES:
    search.GROWERS[f"op2, climbing {tries}"] = climbing(tries)
    search.RECIPES[f"op2, climbing {tries}"] = search.RECIPES["op2"]


def learn(dataset: str, seed: int, work: str) -> list[dict]:
    "The default recipe with and without a climb, on one draw of rows at all lambdas."
    train, val, _ = rows_of(dataset, seed)
    shared, out = Path(work)/f"{dataset}-{seed}", []
    shared.mkdir(parents=True, exist_ok=True)
    for lam, strategy in itertools.product(LAMS, ("op2", *(f"op2, climbing {tries}" for tries in TRIES))):
        s = Settings(n_layers=3, block_size=2, lam=lam, hidden_features=HIDDEN, steps=STEPS, seed=seed)
        with one_thread():
            trials = RowTrials(train, val, s, Run(shared=shared))
            architecture = list(by_search(strategy)(trials, np.random.default_rng(seed)))[-1]
        out.append({"dataset": dataset, "strategy": strategy, "lam": lam, "seed": seed, "architecture": list(architecture),
                    "seconds": trials.seconds, "steps": trials.steps})
    return out


if __name__ == "__main__":
    parser = job_parser(__doc__, "climbing_work")
    parser.add_argument("--note", help="what is to be said of where the parts were trained")
    args = parser.parse_args()
    tasks = {f"{d}, seed {s}": {"dataset": d, "seed": s, "work": str(args.work/"flows")} for s, d in itertools.product(SEEDS, DATASETS)}
    if not args.collect:
        run_tasks(learn, tasks, args.work/"parts", jobs=args.jobs, title="climbing")
    else:
        tables = {dataset: FlowTable.load(dataset) for dataset in DATASETS}
        done = finished(tasks, args.work/"parts").values()
        about = meta("python benchmarks/climbing.py --jobs N; --collect", seeds=list(SEEDS), packages=("numpy",), lambdas=LAMS,
                     hidden_features=HIDDEN, steps=STEPS, note=args.note, data="the rows of autonf_nb/datasets/tabular_benchmark.npz")
        write(RESULTS/"climbing.json", about, [scored(row, tables) for part in done for row in part])
