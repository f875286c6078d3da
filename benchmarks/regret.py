"""How far from the best flow each strategy ends, by the table of every flow (benchmarks/tabular.py).

    python benchmarks/regret.py --jobs 2 --datasets gas_turbine,two_moons                       # those that learn: 10 seeds x 3 lambdas
    python benchmarks/regret.py --jobs 2 --strategies op2,op2-printed --datasets power,protein  # a stopped run goes on
    python benchmarks/regret.py --collect   # those that only ask, 100 seeds from the table; -> results/regret.json

A strategy that learns is given the rows that a seed of the table draws, also for seeds that the table has no trainings of; what it finds is
scored by the table's test rows, those of its own seed excepted. One that only asks is told one seed's validation rows and scored on the
others'. Effort is in layer steps, one layer of a flow trained for one step, and in seconds of one processor, for those that ask the
table's."""
import itertools
from pathlib import Path

import numpy as np
from record import RESULTS, finished, job_parser, meta, write
from tabular import DATASETS, HIDDEN, STEPS, rows_of

from autonf_nb.parallel import run_tasks
from autonf_nb.search import Settings
from autonf_nb.strategies import ASKING, FlowTable, RowTrials, by_sampling, by_search, judge, noise_floor
from autonf_nb.training import Run, one_thread

LAMS, SEEDS = (0.01, 0.1, 0.5), range(10)
# those that do not go on to train what they found get longer trainings; OP2 as printed as many layer steps as the default recipe
LEARNING = {"op2": by_search("op2"), "op2-printed": by_search("op2-printed", longer=4.5), "op1": by_search("op1", longer=2),
            "gumbel": by_search("gumbel", longer=2), "op2-sampled": by_sampling(longer=2),
            "reinforce": by_sampling(paths=1, longer=4, leave_one_out=False)}
ASKED = {name: range(100 if "optuna" not in name else 30) for name in ASKING}
GRIDS = {"steps": np.geomspace(1_000, 100_000, 25), "seconds": np.geomspace(2, 200, 25)}  # effort at which curves are kept


def learn(dataset: str, strategy: str, seed: int, work: str) -> list[dict]:
    "One strategy on one draw of rows, all lambdas; what does not depend on lambda is trained once and charged to each."
    train, val, _ = rows_of(dataset, seed)
    shared, out = Path(work)/f"{dataset}-{seed}", []
    shared.mkdir(parents=True, exist_ok=True)
    for lam in LAMS:
        s = Settings(n_layers=3, block_size=2, lam=lam, hidden_features=HIDDEN, steps=STEPS, seed=seed, strategy="op2")
        with one_thread():
            trials = RowTrials(train, val, s, Run(shared=shared))
            architecture = list(LEARNING[strategy](trials, np.random.default_rng(seed)))[-1]
        out.append({"dataset": dataset, "strategy": strategy, "lam": lam, "seed": seed, "architecture": list(architecture),
                    "seconds": trials.seconds, "steps": trials.steps})
    return out


def scored(row: dict, tables: dict[str, FlowTable]) -> dict:
    "A row of `learn` with the regret of its flow by the test rows of all seeds but its own."
    table = tables[row["dataset"]]
    others = [s for s in range(table.val_nll.shape[1]) if s != row["seed"]]
    return row | {"regret": table.regret(row["architecture"], row["lam"], seeds=others)}


def ask(table: FlowTable, strategy: str, lam: float) -> dict[str, np.ndarray]:
    "(seeds, grid) regret of a strategy that only asks, by the unit of the effort; NaN before its first recommendation."
    out = {unit: [] for unit in GRIDS}
    for seed in ASKED[strategy]:
        record = judge(ASKING[strategy], table, lam, seed=seed, budget=GRIDS["steps"][-1])
        for unit, grid in GRIDS.items():
            at = np.searchsorted(record[unit], grid, side="right") - 1  # the last recommendation within the effort
            out[unit].append([record["regret"][i] if i >= 0 else np.nan for i in at])
    return {unit: np.array(regrets) for unit, regrets in out.items()}


def curves(table: FlowTable) -> list[dict]:
    "Mean, median and quantiles over seeds of each asking strategy's regret along the grids, where half of the seeds have spoken."
    out = []
    for strategy, lam in itertools.product(ASKING, LAMS):
        for unit, regrets in ask(table, strategy, lam).items():
            spoken = np.isfinite(regrets).mean(0) > 0.5
            low, middle, high = np.nanquantile(regrets[:, spoken], (0.1, 0.5, 0.9), axis=0)
            out.append({"dataset": table.dataset, "strategy": strategy, "lam": lam, "unit": unit, "effort": GRIDS[unit][spoken].tolist(),
                        "mean": np.nanmean(regrets[:, spoken], 0).tolist(), "low": low.tolist(), "median": middle.tolist(),
                        "high": high.tolist()})
    return out


def collect(parts: dict[str, list[dict]]) -> None:
    tables, lines, floors = {dataset: FlowTable.load(dataset) for dataset in DATASETS}, [], []
    rows = [scored(row, tables) for part in parts.values() for row in part]
    for table in tables.values():
        lines += curves(table)
        for lam in LAMS:
            picked, oracle = noise_floor(table, lam)
            floors.append({"dataset": table.dataset, "lam": lam, "floor": float(picked.mean()), "floor_max": float(picked.max()),
                           "oracle": float(oracle.mean())})
    about = meta("python benchmarks/regret.py --jobs N, with the strategies and datasets of its first lines; --collect",
                 seeds=list(SEEDS), packages=("numpy", "optuna"), lambdas=LAMS,
                 hidden_features=HIDDEN, steps=STEPS, asked={k: len(v) for k, v in ASKED.items()},
                 data="the rows of autonf_nb/datasets/tabular_benchmark.npz")
    write(RESULTS/"regret.json", about, rows, curves=lines, floors=floors)


if __name__ == "__main__":
    parser = job_parser(__doc__, "regret_work")
    parser.add_argument("--strategies", default=",".join(LEARNING))
    parser.add_argument("--datasets", default=",".join(DATASETS))
    args = parser.parse_args()
    strategies, datasets = (LEARNING, DATASETS) if args.collect else (args.strategies.split(","), args.datasets.split(","))
    tasks = {f"{d}, {k}, seed {s}": {"dataset": d, "strategy": k, "seed": s, "work": str(args.work/"flows")}
             for s, k, d in itertools.product(SEEDS, strategies, datasets)}
    if not args.collect:
        run_tasks(learn, tasks, args.work/"parts", jobs=args.jobs, title="regret")
    else:
        collect(finished(tasks, args.work/"parts"))
