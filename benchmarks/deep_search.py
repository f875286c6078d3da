"""Deep flows, up to eight layers: blocks of two and a race against a joint search by drawn paths whose weights cool.

    python benchmarks/deep_search.py --jobs 2         # 3 data sets x 2 seeds x 3 lambdas; a stopped run goes on
    python benchmarks/deep_search.py --collect        # -> results/deep_search.json

Rows and networks are those of benchmarks/tabular.py; POWER and protein are parts. What both ways train in the same manner they train once,
and both are charged for it. Scores are those of the flow that a search trained, on validation rows and on test rows of its own seed."""
import itertools
from pathlib import Path

import numpy as np
from record import RESULTS, finished, job_parser, meta, write
from tabular import HIDDEN, STEPS, rows_of

from autonf_nb.metrics import nll_with_error
from autonf_nb.parallel import run_tasks
from autonf_nb.search import Settings, flow_of, from_scratch
from autonf_nb.strategies import RowTrials, by_annealing, by_search
from autonf_nb.training import Run, one_thread, row_log_prob

DATASETS, LAMS, SEEDS = ("gas_turbine", "power", "protein"), (0.01, 0.05, 0.2), range(2)
WAYS = {"blocks": by_search("op2"), "joint": by_annealing()}


def search(dataset: str, seed: int, work: str) -> list[dict]:
    "Both ways on one draw of rows, at all lambdas."
    train, val, test = rows_of(dataset, seed)
    shared, out = Path(work)/f"{dataset}-{seed}", []
    shared.mkdir(parents=True, exist_ok=True)
    for lam, (way, strategy) in itertools.product(LAMS, WAYS.items()):
        s = Settings(n_layers=8, block_size=2, lam=lam, hidden_features=HIDDEN, steps=STEPS, seed=seed)
        with one_thread():
            trials = RowTrials(train, val, s, Run(shared=shared))
            architecture = list(strategy(trials, np.random.default_rng(seed)))[-1]
            found = from_scratch(s, architecture, train, val, Run(shared=shared))  # as trained in the search
            nll, error = nll_with_error(row_log_prob(flow_of(found.layers, test).eval(), test))
        out.append({"dataset": dataset, "way": way, "lam": lam, "seed": seed, "architecture": list(architecture), "cost": found.cost,
                    "val_fom1": found.fom1, "test_nll": nll, "test_2se": error, "test_fom1": nll + lam * found.cost,
                    "steps": trials.steps, "seconds": trials.seconds})
    return out


if __name__ == "__main__":
    parser = job_parser(__doc__, "deep_work")
    args = parser.parse_args()
    tasks = {f"{d}, seed {s}": {"dataset": d, "seed": s, "work": str(args.work/"flows")} for s, d in itertools.product(SEEDS, DATASETS)}
    if not args.collect:
        run_tasks(search, tasks, args.work/"parts", jobs=args.jobs, title="deep search")
    else:
        done = finished(tasks, args.work/"parts").values()
        about = meta("python benchmarks/deep_search.py --jobs N; --collect", seeds=list(SEEDS), packages=("numpy",), lambdas=LAMS,
                     hidden_features=HIDDEN, steps=STEPS, n_layers=8, data="the rows of autonf_nb/datasets/tabular_benchmark.npz")
        write(RESULTS/"deep_search.json", about, sum(done, []))
