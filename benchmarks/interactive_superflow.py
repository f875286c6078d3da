"""What one block's superflow says at each of many lambdas, for the page on which a reader moves lambda.

    python benchmarks/interactive_superflow.py --jobs 2      # 2 data sets x 24 lambdas, then the flows they chose; a stopped run goes on
    python benchmarks/interactive_superflow.py --collect     # -> results/interactive_superflow.json

The default recipe on one block of two layers. Its warm-up knows no lambda: it is trained once for a data set, and each lambda goes on from
there. Every flow that some lambda chose is then trained by itself; its picture is its density (two moons), or the density of two of its
columns, counted from samples (gas turbine)."""
import base64
from pathlib import Path

import numpy as np
import torch
from record import RESULTS, finished, job_parser, meta, write

from autonf_nb.candidates import Architecture
from autonf_nb.data import DATASETS, Standardizer, dequantize, load_dataset, plane_set, split_rows
from autonf_nb.metrics import nll_with_error
from autonf_nb.parallel import run_tasks
from autonf_nb.search import Settings, flow_of, from_scratch, prefix_of, search_block
from autonf_nb.training import Rows, Run, one_thread, row_log_prob

SETTINGS = Settings(n_layers=2, hidden_features=32, steps=500)
BLOCK_STEPS, BATCH, SIDE, SAMPLES, ROWS = 480, 128, 60, 100_000, 8000
LAMBDAS = {"two_moons": [0.0, *np.geomspace(0.005, 1.0, 23).round(4)], "gas_turbine": [0.0, *np.geomspace(0.02, 20.0, 23).round(3)]}
COLUMNS = {"two_moons": (0, 1), "gas_turbine": (0, 9)}  # those of the picture


def rows_of(dataset: str) -> tuple[list[Rows], list[str]]:
    "Standardised training, validation and test rows, and the names of the picture's two columns."
    if dataset == "two_moons":
        parts, names = [plane_set(dataset, n, seed=seed) for seed, n in enumerate((ROWS, 2000, 10_000))], ["x", "y"]
    else:
        table = load_dataset(dataset)
        X, split = dequantize(table.X, seed=0), split_rows(len(table.X), 0)
        parts, names = [X[split.train[:ROWS]], X[split.val[:2000]], X[split.test]], [table.columns[i] for i in COLUMNS[dataset]]
    standardizer = Standardizer().fit(parts[0])
    return [Rows(torch.tensor(standardizer.transform(part), dtype=torch.float32)) for part in parts], names


def window(test: torch.Tensor, columns: tuple[int, int]) -> list[list[float]]:
    "Lowest and highest value of the picture, for each of its columns: where all but a few rows lie, and a margin."
    low, high = (test[:, columns].quantile(q, 0) for q in (0.002, 0.998))
    margin = 0.15 * (high - low)
    return torch.stack([low - margin, high + margin], 1).tolist()


def counted(points: np.ndarray, box: list[list[float]]) -> np.ndarray:
    "Density of points of the plane on SIDE x SIDE cells, from a count that is smoothed over three cells each way."
    count, *_ = np.histogram2d(*points.T, bins=SIDE, range=box)
    for axis in (0, 1):
        count = sum(w * np.roll(count, shift, axis) for shift, w in ((-1, 0.25), (0, 0.5), (1, 0.25)))
    (left, right), (bottom, top) = box
    return count / len(points) / ((right - left) * (top - bottom) / SIDE**2)


@torch.no_grad()
def picture(flow: torch.nn.Module, dataset: str, box: list[list[float]]) -> np.ndarray:
    "(SIDE, SIDE) density of the picture's columns, the first axis the first column."
    if dataset == "two_moons":
        axes = [torch.linspace(low, high, 2 * SIDE + 1)[1::2] for low, high in box]
        return flow.log_prob(torch.cartesian_prod(*axes)).exp().view(SIDE, SIDE).numpy()
    drawn = flow.sample(SAMPLES, generator=torch.Generator().manual_seed(0))
    return counted(drawn[:, COLUMNS[dataset]].numpy(), box)


def as_bytes(values: np.ndarray) -> str:
    "Numbers between 0 and 1 in steps of 1/255, as base64."
    return base64.b64encode((255 * np.asarray(values)).round().astype(np.uint8).tobytes()).decode()


def packed(density: np.ndarray, highest: float) -> str:
    "A picture, row by row from the top; the square root of the density, so that faint bridges show."
    return as_bytes(np.sqrt(np.clip(density / highest, 0, 1)).T[::-1])


def searched(dataset: str, lam: float, work: str) -> dict:
    "The default recipe on one block: weights along the way, the price list at the end, what was chosen."
    (train, val, _), _ = rows_of(dataset)
    shared = Path(work)/f"{dataset} warm-up"
    shared.mkdir(parents=True, exist_ok=True)
    with one_thread(), Run(shared=shared) as run:
        block = search_block(train, val, SETTINGS.space(2), lam=lam, steps=BLOCK_STEPS, batch_size=BATCH, seed=0, run=run, begin="warm-up",
                             name=f"lambda {lam:g}")
    h = block.history
    known = [i for i, phase in enumerate(h["phase"]) if phase == "search"]
    weights = {"depth": [h["depth_weights"][i] for i in known], **{d: [h["layer_weights"][i][d] for i in known] for d in ("1", "2")}}
    prices = {" > ".join(p["path"]): [p["nll"], p["cost"]] for p in h["alternatives"]}
    return {"steps": [h["step"][i] for i in known], "weights": {k: np.round(v, 3).tolist() for k, v in weights.items()},
            "prices": prices, "chosen": h["chosen"], "argmin": h["argmin"]}


def alone(dataset: str, architecture: list[str], work: str) -> dict:
    "A flow trained by itself: its NLL on test rows, and its picture."
    (train, val, test), _ = rows_of(dataset)
    with one_thread(), Run() as run:
        names = Architecture(architecture)
        p = from_scratch(SETTINGS, names, train, val, run) if names else prefix_of(SETTINGS, names, [], val)
        flow = flow_of(p.layers, test).eval()
        nll, error = nll_with_error(row_log_prob(flow, test))
        density = picture(flow, dataset, window(test.x, COLUMNS[dataset]))
    return {"cost": p.cost, "nll": nll, "nll_2se": error, "density": density.tolist()}


def task(kind: str, **arguments) -> dict:
    return {"searched": searched, "alone": alone}[kind](**arguments)


def in_words(architecture: list[str]) -> str:
    return " > ".join(architecture) or "identity"


def searches(work: Path) -> dict[str, dict]:
    "The first lambda of a data set is in front: it leaves the warm-up for the others."
    return {f"{d}, lambda {lam:g}": {"kind": "searched", "dataset": d, "lam": float(lam), "work": str(work)}
            for d in LAMBDAS for lam in LAMBDAS[d]}


def flows(found: dict[str, dict], work: Path) -> dict[str, dict]:
    chosen = {(name.split(",")[0], tuple(part["chosen"])): None for name, part in found.items()}
    return {f"{d}, {in_words(a)}": {"kind": "alone", "dataset": d, "architecture": list(a), "work": str(work)} for d, a in chosen}


def flat_weights(part: dict) -> np.ndarray:
    "(records, 15): of each record the depth weights 0, 1, 2, then the layer weights of depth 1, then those of depth 2."
    return np.concatenate([np.reshape(part["weights"][k], (len(part["steps"]), -1)) for k in ("depth", "1", "2")], 1)


def a_set(dataset: str, found: dict[str, dict], trained: dict[str, dict]) -> dict:
    "What all lambdas of a data set share: steps, paths and their costs, the chosen flows trained by themselves, the pictures."
    (train, val, test), columns = rows_of(dataset)
    box, first = window(test.x, COLUMNS[dataset]), found[f"{dataset}, lambda 0"]
    own = {name.removeprefix(f"{dataset}, "): part for name, part in trained.items() if name.startswith(dataset)}
    highest = float(np.quantile(np.concatenate([np.ravel(part["density"]) for part in own.values()]), 0.999))
    flows = {name: {**{k: round(part[k], 4) for k in ("cost", "nll", "nll_2se")}, "picture": packed(np.array(part["density"]), highest)}
             for name, part in own.items()}
    return {"dataset": dataset, "columns": columns, "box": box, "rows": [len(train), len(val), len(test)], "steps": first["steps"],
            "costs": {name or "identity": round(cost, 4) for name, (_, cost) in first["prices"].items()},
            "data": packed(counted(test.x[:, COLUMNS[dataset]].numpy(), box), highest), "flows": flows}


def collect(found: dict[str, dict], trained: dict[str, dict]) -> None:
    sets = [a_set(d, found, trained) for d in LAMBDAS]
    rows = []
    for name, arguments in searches(Path()).items():
        d, lam, part = arguments["dataset"], arguments["lam"], found[name]
        prices = {path or "identity": round(nll, 3) for path, (nll, _) in part["prices"].items()}
        rows.append({"dataset": d, "lam": lam, "chosen": in_words(part["chosen"]), "argmin": in_words(part["argmin"]),
                     "nll": " ".join(str(prices[path]) for path in sets[list(LAMBDAS).index(d)]["costs"]),
                     "weights": as_bytes(flat_weights(part))})
    about = meta("python benchmarks/interactive_superflow.py --jobs N; --collect", seeds=[0], packages=("numpy",), block_steps=BLOCK_STEPS,
                 flow_steps=SETTINGS.steps, hidden_features=SETTINGS.hidden_features, candidates=list(SETTINGS.space(1).without_null),
                 side=SIDE,
                 weights="base64 of (records, 15) bytes, 255 = 1: depths 0, 1, 2; the layer of depth 1; the two layers of depth 2",
                 pictures="base64 of (side, side) bytes from the top row down: 255 times the square root of the density over the highest",
                 nll="shared NLL of each path on the validation rows, in the order of the set's `costs`",
                 data={"two_moons": "drawn by autonf_nb.data.plane_set, seeds 0, 1 and 2 for training, validation and test rows",
                       "gas_turbine": f"{ROWS} training and 2000 validation rows of: {DATASETS['gas_turbine'].title}; dequantised"})
    write(RESULTS/"interactive_superflow.json", about, rows, sets=sets)


if __name__ == "__main__":
    args = job_parser(__doc__, "interactive_superflow").parse_args()
    if args.collect:
        found = finished(searches(args.work), args.work/"parts")
        collect(found, finished(flows(found, args.work), args.work/"parts"))
    else:
        for first in (True, False):  # the warm-ups before those that go on from them
            tasks = {name: t for name, t in searches(args.work).items() if (t["lam"] == 0) >= first}
            found = run_tasks(task, tasks, args.work/"parts", jobs=args.jobs, title="searches")
        run_tasks(task, flows(found, args.work), args.work/"parts", jobs=args.jobs, title="flows")
