"""Every candidate family on seven plane sets, at about equal parameters and equal processor time; and planar against Real NVP over time.

    python benchmarks/gallery.py                 # goes on where it was stopped
    python benchmarks/gallery.py --collect       # -> results/gallery.json, results/gallery.npz

What a training step takes is measured first, in processor time and one thread, all families in turn and again, so that whatever else the
machine does falls on all of them alike. Each family then gets the number of steps that fill SECONDS at its pace, and its result does not
depend on the load any more. Continuous flows have no pace, their steps take longer the more they have learnt: they are stopped by the
clock of the processor. All figures are in nats per row on standardised rows; `gap` is the NLL above that of the density which drew the
rows, row by row, so that the chance of the draw cancels."""
import argparse
import base64
import json
import math
import time
from functools import lru_cache

import numpy as np
import torch
from record import RESULTS, meta, write
from scipy.spatial.distance import cdist
from scipy.special import logsumexp
from torch import Tensor

from autonf_nb.candidates import CANDIDATES, Architecture
from autonf_nb.cost import count_operations, layer_cost
from autonf_nb.data import Standardizer, plane_set
from autonf_nb.flow import Flow
from autonf_nb.metrics import nll_with_error
from autonf_nb.training import LEARNING_RATE, Batches, Rows, adam, cosine, mean_nll, row_log_prob, seeded, set_lr, step_theta
from autonf_nb.transforms.continuous import ContinuousFlow

FAMILIES = tuple(name for name in CANDIDATES if name != "NULL")
FEW_NUMBERS = {"planar", "radial", "Sylvester"}   # no network: their width is that of the data, and only layers can be added
CONTINUOUS = "CNF"   # one layer, as long as it needs to be; and by the clock
LAYERS, LAYERS_OF_FEW = 4, 16
DEPTHS, DEPTH_SETS = {"planar": (4, 8, 16, 32, 64), "RealNVP": (2, 4, 8, 16), "RQ-C": (1, 2, 4, 8)}, ("two_moons", "checkerboard")
PARAMETERS, SECONDS, BATCH, SEED = 4000, 8.0, 256, 0
TRAIN, VAL, TEST, SIDE, DRAWS = 10_000, 2_000, 10_000, 72, 400
# what a picture shows, in standardised units: (left, right), (bottom, top)
BOXES = {"two_moons": ((-2.2, 2.2), (-2.2, 2.2)), "two_blobs": ((-2.4, 2.4), (-2.4, 2.4)), "boomerang": ((-1.4, 3.2), (-2.7, 2.7)),
         "checkerboard": ((-1.95, 1.95), (-1.95, 1.95)), "circles": ((-2, 2), (-2, 2)),
         "eight_gaussians": ((-1.9, 1.9), (-1.9, 1.9)), "pinwheel": ((-2.5, 2.5), (-2.5, 2.5))}
REPORT_SETS, REPORT_ROWS, REPORT_BATCH = ("two_moons", "two_blobs", "boomerang"), 400, 32
REPORT_EPOCHS = {"RealNVP": 200, "CNF": 100}
PARTS = RESULTS/"gallery.jsonl"


# --- the densities that drew the rows, data units, (n, 2) -> (n,)
def _normals(x: np.ndarray, centres: np.ndarray, sd: float) -> np.ndarray:
    "An even mixture of round normals; a curve is a mixture of many."
    return logsumexp(-0.5 * cdist(x, centres, "sqeuclidean") / sd**2, axis=1) - math.log(len(centres) * 2 * math.pi * sd**2)


def _circle(n: int, radius: float = 1.0) -> np.ndarray:
    angle = 2 * np.pi * np.arange(n) / n
    return radius * np.c_[np.cos(angle), np.sin(angle)]


def _two_moons(x: np.ndarray) -> np.ndarray:
    t = np.pi * (np.arange(400) + 0.5) / 400
    return _normals(x, np.r_[np.c_[np.cos(t), np.sin(t)], np.c_[1 - np.cos(t), 0.5 - np.sin(t)]], 0.05)


def _boomerang(x: np.ndarray) -> np.ndarray:
    return -0.5 * (x[:, 1] / 4)**2 - 0.5 * (x[:, 0] - x[:, 1]**2 / 4)**2 - math.log(2 * math.pi * 4)


def _checkerboard(x: np.ndarray) -> np.ndarray:
    square = np.floor(x).astype(int)
    black = (square.sum(1) % 2 == 0) & (square >= -2).all(1) & (square < 2).all(1)
    return np.where(black, -math.log(8), -np.inf)


def _pinwheel(x: np.ndarray) -> np.ndarray:
    "Sum over the (arm, r) that lead to x of p(r) p(across) / |det|: r are the roots of g(r) = x . e(turn(r)) - r, and |det| is |g'|."
    r, density = np.linspace(-0.6, 2.6, 1601), np.zeros(len(x))
    for arm in range(5):
        turn = 2 * np.pi * arm / 5 + 0.25 * np.exp(r)
        g = np.outer(x[:, 0], np.cos(turn)) + np.outer(x[:, 1], np.sin(turn)) - r
        row, i = np.nonzero(g[:, :-1] * g[:, 1:] <= 0)
        root = r[i] + (r[1] - r[0]) * g[row, i] / (g[row, i] - g[row, i + 1])
        turn = 2 * np.pi * arm / 5 + 0.25 * np.exp(root)
        across = x[row, 1] * np.cos(turn) - x[row, 0] * np.sin(turn)
        normal = np.exp(-0.5 * ((root - 1) / 0.3)**2 - 0.5 * (across / 0.1)**2) / (2 * np.pi * 0.3 * 0.1)
        np.add.at(density, row, normal / 5 / np.abs(0.25 * np.exp(root) * across - 1))
    return np.log(np.maximum(density, 1e-300))


TRUTH = {"two_moons": _two_moons, "boomerang": _boomerang, "checkerboard": _checkerboard, "pinwheel": _pinwheel,
         "two_blobs": lambda x: _normals(x, np.array([[-0.5, 0.5], [0.5, -0.5]]), 0.2),
         "eight_gaussians": lambda x: _normals(x, _circle(8, 2.0), 0.2),
         "circles": lambda x: _normals(x, np.r_[_circle(400, 0.5), _circle(400)], 0.05)}


# --- rows and pictures
class PlaneSet:
    "Standardised rows of a plane set, their true log-density, and the grid of its picture."
    def __init__(self, name: str, n_train: int = TRAIN, n_val: int = VAL):
        parts = [plane_set(name, n, seed) for seed, n in enumerate((n_train, n_val, TEST))]
        self.name, self.box = name, BOXES[name]
        self.standardizer = Standardizer().fit(parts[0])
        self.train, self.val, self.test = (Rows(torch.tensor(self.standardizer.transform(X), dtype=torch.float32)) for X in parts)
        self.truth = self.true_log_prob(self.standardizer.transform(parts[2]))
        fine = [low + (high - low) * (np.arange(2 * SIDE) + 0.5) / (2 * SIDE) for low, high in self.box]
        self.grid = np.stack(np.meshgrid(*fine, indexing="xy"), -1).reshape(-1, 2)
        self.area = math.prod(high - low for low, high in self.box) / len(self.grid)
        self.true_density = np.exp(self.true_log_prob(self.grid))
        self.white = self.pixels(self.true_density).max()

    def true_log_prob(self, z: np.ndarray) -> np.ndarray:
        parts = np.array_split(self.standardizer.inverse(z), 1 + len(z) // 2000)
        return np.concatenate([TRUTH[self.name](x) for x in parts]) - self.standardizer.log_abs_det

    @staticmethod
    def pixels(density: np.ndarray) -> np.ndarray:
        "(SIDE, SIDE), each the mean of four points of the grid."
        return density.reshape(SIDE, 2, SIDE, 2).mean((1, 3))

    def image(self, density: np.ndarray) -> np.ndarray:
        "uint8, the square root of the density: faint bridges show; 255 is the truth's highest pixel, and all above."
        return np.clip(255 * np.sqrt(self.pixels(density) / self.white), 0, 255).round().astype(np.uint8)

    def mass(self, density: np.ndarray) -> float:
        return float(density.sum() * self.area)


@lru_cache(2)
def plane(name: str, n_train: int = TRAIN, n_val: int = VAL) -> PlaneSet:
    return PlaneSet(name, n_train, n_val)


def packed(array: np.ndarray) -> str:
    return base64.b64encode(array.tobytes()).decode()


# --- one fit
def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


@lru_cache
def shape(family: str, layers: int | None = None) -> tuple[int, int]:
    "(layers, hidden width): the width whose number of parameters is nearest to PARAMETERS."
    layers = layers or (LAYERS_OF_FEW if family in FEW_NUMBERS else 1 if family == CONTINUOUS else LAYERS)
    if family in FEW_NUMBERS:
        return layers, 2
    size = {h: layers * count(CANDIDATES[family].build(2, hidden_features=h)) for h in range(2, 65)}
    return layers, min(size, key=lambda h: abs(size[h] - PARAMETERS))


def build(family: str, layers: int, hidden: int) -> Flow:
    with seeded(SEED):
        return Flow(Architecture([family] * layers).build(2, hidden_features=hidden), 2)


class Fit:
    """Maximum likelihood by the project's recipe: Adam, the learning rate falling from `lr` to `final * lr`, for a number of steps,
    or where there is none for SECONDS of processor time."""
    def __init__(self, flow: Flow, train: Rows, steps: int | None, *, lr: float = LEARNING_RATE, final: float = 0.1, batch: int = BATCH):
        self.flow, self.train, self.steps, self.lr, self.final = flow.train(), train, steps, lr, final
        self.optimizer, self.batches, self.done = adam(list(flow.parameters()), lr), Batches(len(train), batch, SEED), 0
        self.spent = 0.0

    @property
    def share(self) -> float:
        "What is done of the whole, 0 to 1."
        return self.done / self.steps if self.steps else min(1.0, self.spent / SECONDS)

    def step(self) -> None:
        start = time.process_time()
        set_lr(self.optimizer, cosine(self.share, self.lr, self.final))
        step_theta(-self.flow.log_prob(self.train[self.batches(self.done)].x).mean(), self.optimizer)
        self.done += 1
        self.spent += time.process_time() - start

    def run(self, val: Rows, checks: int = 20, watch=None) -> dict:
        """All steps; leaves the flow with the weights that were best on `val`. `watch(flow)`, where given, is recorded at each check.
        Checks are close together at first, where the NLL falls fast."""
        due = [((i + 1) / checks)**2 for i in range(checks)]
        best, curve, wall, cpu = (math.inf, None), [], time.monotonic(), time.process_time()
        while self.share < 1:
            self.step()
            if self.share >= due[0]:
                due = [share for share in due if share > self.share]
                self.flow.eval()
                nll = mean_nll(self.flow, val)
                if nll < best[0]:
                    best = nll, {k: v.detach().clone() for k, v in self.flow.state_dict().items()}
                curve.append({"steps": self.done, "seconds": self.spent, "val_nll": nll} | ({"nll": watch(self.flow)} if watch else {}))
                self.flow.train()
        self.flow.load_state_dict(best[1])
        self.flow.eval()
        return {"steps": self.done, "val_nll": best[0], "curve": curve, "wall_seconds": time.monotonic() - wall,
                "processor_seconds": time.process_time() - cpu}


def pace(fits: dict[str, Fit], rounds: int = 9, each: int = 5) -> dict[str, float]:
    "Seconds of processor time for one step: the median of `rounds` rounds, in each of which every fit takes `each` steps."
    taken = {name: [] for name in fits}
    for _ in range(rounds + 1):
        for name, fit in fits.items():
            start = time.process_time()
            for _ in range(each):
                fit.step()
            taken[name].append((time.process_time() - start) / each)
    return {name: float(np.median(t[1:])) for name, t in taken.items()}   # the first round warms up


def gap_to(truth: np.ndarray, log_prob: Tensor) -> tuple[float, float]:
    "Mean of log p - log q over the test rows, and two standard errors."
    gap = truth - log_prob.double().numpy()
    return float(gap.mean()), float(2 * gap.std() / math.sqrt(len(gap)))


def measured(flow: Flow, data: PlaneSet) -> dict:
    log_prob = row_log_prob(flow, data.test)
    (nll, error), (gap, gap_error) = nll_with_error(log_prob), gap_to(data.truth, log_prob)
    start = time.process_time()
    draws = flow.sample(1000, generator=torch.Generator().manual_seed(SEED))
    return {"nll": nll, "nll_2se": error, "gap": gap, "gap_2se": gap_error, "sample_ms": 1000 * (time.process_time() - start),
            "draws": packed(draws[:DRAWS].numpy().astype(np.float16))}


def gallery_paces() -> dict[str, float]:
    return pace({f: Fit(build(f, *shape(f)), plane("two_blobs").train, 1000) for f in FAMILIES if f != CONTINUOUS})


def depth_paces() -> dict[str, float]:
    return pace({f"{f} x {n}": Fit(build(f, *shape(f, n)), plane("two_blobs").train, 1000) for f, depths in DEPTHS.items() for n in depths})


def steps_at(step_seconds: float | None) -> int | None:
    return round(SECONDS / step_seconds) if step_seconds else None


def run(fit: Fit, data: PlaneSet, step_seconds: float | None, **options) -> dict:
    "The record of a fit and what it is worth; without a pace its steps took what they took."
    record = fit.run(data.val, **options)
    step_seconds = step_seconds or fit.spent / fit.done
    return {"step_ms": 1000 * step_seconds} | record | {"seconds": fit.done * step_seconds} | measured(fit.flow, data)


def gallery(task: dict, step_seconds: float | None) -> dict:
    family, data = task["family"], plane(task["set"])
    layers, hidden = shape(family, task.get("layers"))
    flow = build(family, layers, hidden)
    row = task | {"layers": layers, "hidden": hidden, "parameters": count(flow)}
    row |= run(Fit(flow, data.train, steps_at(step_seconds)), data, step_seconds)
    density = row_log_prob(flow, Rows(torch.tensor(data.grid, dtype=torch.float32))).exp().numpy()
    return row | {"mass": data.mass(density), "image": packed(data.image(density))}


# --- the report's comparison
REPORT_CNF = {"dynamics": "hypernetwork", "solver": "torchdiffeq-adjoint"}
FLOWS = {  # candidate, layers, hidden width, rows to train on, options of `Fit`; the report's rates are constant
    "Real NVP, the report's recipe": ("RealNVP", 5, 32, REPORT_ROWS, {"lr": 1e-3, "final": 1.0, "batch": REPORT_BATCH}),
    "CNF, the report's recipe": ("CNF", 1, 64, REPORT_ROWS, {"lr": 3e-3, "final": 1.0, "batch": REPORT_BATCH}),
    "planar": ("planar", 16, 2, REPORT_ROWS, {}),
    "Real NVP": ("RealNVP", 5, 32, REPORT_ROWS, {}),
    "RQ coupling": ("RQ-C", 3, 24, REPORT_ROWS, {}),
    "CNF": ("CNF", 1, 58, REPORT_ROWS, {}),
    "planar, 10,000 rows": ("planar", 16, 2, TRAIN, {}),
    "Real NVP, 10,000 rows": ("RealNVP", 5, 32, TRAIN, {}),
    "RQ coupling, 10,000 rows": ("RQ-C", 3, 24, TRAIN, {}),
    "CNF, 10,000 rows": ("CNF", 1, 58, TRAIN, {})}


def report_fit(flow_name: str, set_name: str, step_seconds: float | None) -> tuple[Fit, PlaneSet]:
    name, layers, hidden, n, options = FLOWS[flow_name]
    data = plane(set_name, n, n // 4)                                     # 80 % to train on, 20 % kept aside, as in the report
    steps = REPORT_EPOCHS[name] * (n // REPORT_BATCH) if "final" in options else steps_at(step_seconds)
    if name == CONTINUOUS and "final" in options:
        with seeded(SEED):
            flow = Flow(ContinuousFlow(2, hidden_features=hidden, **REPORT_CNF), 2)
    else:
        flow = build(name, layers, hidden)
    return Fit(flow, data.train, steps, **options), data


def report_paces() -> dict[str, float]:
    return pace({name: report_fit(name, "two_blobs", 0.01)[0] for name, (family, *_) in FLOWS.items() if family != CONTINUOUS})


def report(task: dict, step_seconds: float | None) -> dict:
    name, layers, hidden, n, _ = FLOWS[task["flow"]]
    fit, data = report_fit(task["flow"], task["set"], step_seconds)
    row = task | {"candidate": name, "layers": layers, "hidden": hidden, "rows": n, "parameters": count(fit.flow)}
    return row | run(fit, data, step_seconds, checks=32, watch=lambda flow: mean_nll(flow, data.test))


# --- all of it
PACES = {"gallery": gallery_paces, "report": report_paces, "depth": depth_paces}


def tasks() -> list[dict]:
    return [{"kind": "gallery", "set": s, "family": f} for s in BOXES for f in FAMILIES] + [
        {"kind": "report", "set": s, "flow": f} for s in REPORT_SETS for f in FLOWS] + [
        {"kind": "depth", "set": s, "family": f, "layers": n} for s in DEPTH_SETS for f, depths in DEPTHS.items() for n in depths]


def done() -> list[dict]:
    return [json.loads(line) for line in PARTS.read_text().splitlines()] if PARTS.exists() else []


def found(task: dict) -> dict | None:
    return next((row for row in done() if all(row.get(k) == v for k, v in task.items())), None)


def keep(row: dict) -> dict:
    with PARTS.open("a") as f:
        f.write(json.dumps(row) + "\n")
    return row


def pace_name(task: dict) -> str:
    return task.get("flow") or task["family"] + (f" x {task['layers']}" if "layers" in task else "")


def work() -> None:
    paces = {kind: (found({"kind": f"{kind} paces"}) or keep({"kind": f"{kind} paces", "paces": measure()}))["paces"]
             for kind, measure in PACES.items()}
    for task in tasks():
        if not found(task):
            fit = report if task["kind"] == "report" else gallery
            row = keep(fit(task, paces[task["kind"]].get(pace_name(task))))
            print(*task.values(), *(f"{k} {row[k]:.4g}" for k in ("steps", "nll", "gap", "processor_seconds", "wall_seconds")), flush=True)


def operations(family: str, direction: str) -> float:
    "Of the whole stack, per row: `layer_cost` is in Real NVP layers of the same width, which are counted by formula."
    layers, hidden = shape(family)
    unit = count_operations("RealNVP", 2, direction=direction, hidden_features=hidden).total
    return layers * unit * layer_cost(family, 2, direction=direction, hidden_features=hidden)


def unpacked(rows: list[dict], key: str, dtype, size: tuple[int, ...]) -> np.ndarray:
    return np.stack([np.frombuffer(base64.b64decode(row.pop(key)), dtype).reshape(size) for row in rows])


def collect() -> None:
    rows, curves, depths = ([found(t) for t in tasks() if t["kind"] == kind] for kind in PACES)
    depths = [{k: v for k, v in row.items() if k not in ("image", "draws", "curve")} for row in depths]
    sets = [plane(name) for name in BOXES]
    for row in rows:
        row.pop("curve")
        for direction in ("density", "sampling"):
            row[f"operations_{direction}"] = operations(row["family"], direction)
            row[f"cost_{direction}"] = operations(row["family"], direction) / operations("RealNVP", direction)
    table = (len(sets), len(FAMILIES))
    np.savez_compressed(
        RESULTS/"gallery.npz", families=FAMILIES, sets=list(BOXES), boxes=np.array(list(BOXES.values())),
        density=unpacked(rows, "image", np.uint8, (SIDE, SIDE)).reshape(*table, SIDE, SIDE),
        draws=unpacked(rows, "draws", np.float16, (DRAWS, 2)).reshape(*table, DRAWS, 2),
        true_density=np.stack([s.image(s.true_density) for s in sets]),
        true_draws=np.stack([s.test.x[:DRAWS].numpy().astype(np.float16) for s in sets]),
        report_draws=unpacked(curves, "draws", np.float16, (DRAWS, 2)))
    truth = [{"set": s.name, "nll": float(-s.truth.mean()), "nll_2se": float(2 * s.truth.std() / math.sqrt(TEST)),
              "mass": s.mass(s.true_density)} for s in sets]
    about = meta("python benchmarks/gallery.py; python benchmarks/gallery.py --collect", seeds=[SEED], packages=("numpy",), seconds=SECONDS,
                 clock="steps times the processor time of one step, medians of interleaved rounds; of CNF, the sum of its steps",
                 learning_rate=LEARNING_RATE, batch_size=BATCH, rows={"train": TRAIN, "val": VAL, "test": TEST},
                 data="plane sets drawn by autonf_nb.data.plane_set, seeds 0, 1 and 2 for training, validation and test rows")
    write(RESULTS/"gallery.json", about, rows, truth=truth, depths=depths, curves=curves)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--collect", action="store_true")
    torch.set_num_threads(1)
    collect() if parser.parse_args().collect else work()
