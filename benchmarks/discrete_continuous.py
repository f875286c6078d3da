"""Discrete layers against a continuous flow: NLL, time to train, to evaluate and to sample, on three plane sets and a real table.

    python benchmarks/discrete_continuous.py   # goes on where it was stopped; half an hour of one processor
                                               # -> results/discrete_continuous.json, results/discrete_continuous.npz

1. Tuning, on validation NLL, seed 0, STEPS steps each. A stack of one family is made twice as deep for as long as that helps, then tried
   with a smaller learning rate. A continuous flow is changed one choice at a time. The architecture that `AutoNF` finds is trained as such.
   Of what was tried, the cheapest within NEAR of the best is chosen, for both kinds alike.
2. Three seeds of what was chosen: equal optimiser steps.
3. Equal seconds: what takes longer than Real NVP's STEPS steps is trained again, seed 0, for as many as fit that time.
4. Seconds, of the processor and one thread: those of one training step, or of one evaluation of the velocity in a training step, whose
   number differs from step to step; all models of a data set in turn and again. Training seconds are steps or evaluations times that.
5. The summer-school report's setting (Alfalouji 2022): what an epoch takes, with its solver and trace and with ours, same weights.

A continuous flow trains at its own tolerance and is always judged at TOLERANCE. NLL in nats on standardised rows."""
import math
import time
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from nflows.transforms import CompositeTransform
from scipy.integrate import trapezoid
from torch import Tensor, nn

from autonf_nb.candidates import Architecture
from autonf_nb.data import Standardizer, dequantize, load_dataset, split_rows
from autonf_nb.estimator import AutoNF
from autonf_nb.flow import Flow
from autonf_nb.metrics import nll_with_error
from autonf_nb.parallel import run_tasks
from autonf_nb.training import (Batches, Rows, adam, cosine, mean_nll, one_thread, read_tensors, row_log_prob, seeded, set_lr, step_theta,
                                write_tensors)
from autonf_nb.transforms.continuous import ContinuousFlow, HyperNetwork
from autonf_nb.transforms.coupling import AFFINE, Coupling, FeatureMajorMLP, alternating_mask
from gallery import plane
from record import RESULTS, medians, meta, write

PLANES, TABLE = ("two_moons", "two_blobs", "boomerang"), "gas_turbine"
SETS, FAMILIES = (*PLANES, TABLE), ("RealNVP", "MAF", "RQ-C", "RQ-AF")
MODELS = (*FAMILIES, "AutoNF", "CNF")
STEPS, BATCH, HIDDEN, DEPTHS, SEEDS = 600, 256, 64, (1, 2, 4, 8), (0, 1, 2)
RATES = (1e-2, 3e-3)
NEAR = 0.005                   # nats of validation NLL
LAM = 0.01                     # AutoNF's price: nats for the operations of a Real NVP layer
TOLERANCE = 1e-5               # of every density that is reported
CNF = {"layers": 1, "hidden_features": HIDDEN, "dynamics": "concatsquash", "tolerance": 1e-3}
CHANGES = ({"dynamics": "concat"}, {"lr": RATES[1]}, {"hidden_features": 128}, {"layers": 2}, {"tolerance": 1e-4})
TIMED_ROWS = 1000
WORK = Path("discrete_continuous_work")


# --- data and models
class RealTable:
    "The gas turbine's rows, their rounding undone by noise, split 80 : 10 : 10 at random and standardised."
    def __init__(self, name: str):
        X = dequantize(load_dataset(name).X, seed=0)
        split = split_rows(len(X), seed=0)
        standardizer = Standardizer().fit(X[split.train])
        self.train, self.val, self.test = (Rows(torch.tensor(standardizer.transform(X[part]), dtype=torch.float32)) for part in split)


@cache
def data_of(name: str):
    return RealTable(name) if name == TABLE else plane(name)


def build(spec: dict, features: int, seed: int) -> Flow:
    "A flow of the layers that `spec` lists, or of continuous ones."
    with seeded(seed):
        if "architecture" in spec:
            return Flow(Architecture(spec["architecture"]).build(features, hidden_features=HIDDEN), features)
        layers, options = spec["layers"], {k: spec[k] for k in ("hidden_features", "dynamics", "tolerance")}
        return Flow(CompositeTransform([ContinuousFlow(features, **options) for _ in range(layers)]), features)


def continuous(flow: nn.Module) -> list[ContinuousFlow]:
    return [layer for layer in flow.modules() if isinstance(layer, ContinuousFlow)]


def mode(flow: Flow, spec: dict, training: bool) -> Flow:
    for layer in continuous(flow):
        layer.tolerance = spec["tolerance"] if training else TOLERANCE
    return flow.train(training)


def units(flow: Flow) -> int:
    "What the last step is paid by: evaluations of the velocity, or one step."
    return sum(layer.nfe for layer in continuous(flow)) or 1


# --- one training
def train(flow: Flow, spec: dict, name: str, seed: int, steps: int = STEPS, checks: int = 20) -> dict:
    "Leaves the weights that were best on the validation rows; checks are denser at first."
    data, optimizer = data_of(name), adam(list(mode(flow, spec, True).parameters()), spec["lr"])
    batches, due = Batches(len(data.train), BATCH, seed), [((i + 1) / checks)**1.5 for i in range(checks)]
    used, best, curve, start = 0, (math.inf, None), [], time.process_time()
    for done in range(1, steps + 1):
        set_lr(optimizer, cosine((done - 1) / steps, spec["lr"]))
        step_theta(-flow.log_prob(data.train[batches(done - 1)].x).mean(), optimizer)
        used += units(flow)
        if done / steps >= due[0]:
            due = [share for share in due if share > done / steps]
            nll = mean_nll(mode(flow, spec, False), data.val)
            curve.append({"steps": done, "units": used, "val_nll": nll})
            if nll < best[0]:
                best = nll, {k: v.detach().clone() for k, v in flow.state_dict().items()}
            mode(flow, spec, True)
    flow.load_state_dict(best[1])
    mode(flow, spec, False)
    return {"units": used, "val_nll": best[0], "curve": curve, "processor_seconds": time.process_time() - start}


def weights(name: str, model: str, seed: int, steps: int = STEPS) -> Path:
    return WORK/f"{name} {model} {seed}{f' {steps} steps' * (steps != STEPS)}.safetensors"


def load(spec: dict, file: Path, features: int) -> Flow:
    flow = build(spec, features, 0)
    flow.load_state_dict(read_tensors(file)[0])
    return mode(flow, spec, False)


# --- tuning
def search(name: str) -> tuple[list[str], dict]:
    data, start = data_of(name), time.process_time()
    est = AutoNF(lam=LAM, steps=STEPS, batch_size=BATCH, hidden_features=HIDDEN, seed=0, device="cpu")
    est.fit(data.train.x.numpy(), X_val=data.val.x.numpy())
    seconds = time.process_time() - start
    nll, error = nll_with_error(est.log_prob(data.test.x.numpy()))
    return list(est.architecture_), {"search_processor_seconds": seconds, "search_seconds": est.seconds_, "delivered_nll": nll,
                                     "delivered_nll_2se": error}


def tune(name: str, model: str) -> dict:
    "What was tried and what was best, whose weights are kept."
    tried, best, features = [], None, data_of(name).train.x.shape[1]

    def attempt(spec: dict) -> bool:
        nonlocal best
        flow = build(spec, features, 0)
        tried.append({"spec": spec} | train(flow, spec, name, 0))
        print(name, model, *spec.values(), f"{tried[-1]['val_nll']:.4f} {tried[-1]['processor_seconds']:.1f} s", flush=True)
        better = best is None or tried[-1]["val_nll"] < best["val_nll"]
        if better:
            best = tried[-1]
            write_tensors(weights(name, model, 0), flow.state_dict(), {})
        return better

    extra = {}
    if model == "CNF":
        attempt(CNF | {"lr": RATES[0]})
        for change in CHANGES:
            attempt(best["spec"] | change)
    else:
        if model == "AutoNF":
            architecture, extra = search(name)
            attempt({"architecture": architecture, "lr": RATES[0]})
        else:
            for depth in DEPTHS:
                if not attempt({"architecture": [model] * depth, "lr": RATES[0]}):
                    break
        attempt(best["spec"] | {"lr": RATES[1]})
    return {"tried": tried, "best": best} | extra


def chosen(tuned: dict) -> dict:
    "The record of the cheapest of what was tried within NEAR of the best: of stacks the fewest layers, of continuous flows the least time."
    near = [t for t in tuned["tried"] if t["val_nll"] < min(t["val_nll"] for t in tuned["tried"]) + NEAR]
    return min(near, key=lambda t: (len(t["spec"].get("architecture", ())) or t["processor_seconds"], t["val_nll"]))


# --- what was chosen: its paces, its other seeds
def step(flow: Flow, x: Tensor, optimizer: torch.optim.Optimizer) -> None:
    step_theta(-flow.log_prob(x).mean(), optimizer)


def paces(name: str, specs: dict[str, dict]) -> dict:
    "Of each model: milliseconds of a unit of training; of log p and of 1,000 samples, and the evaluations these took."
    data = data_of(name)
    flows = {model: load(spec, weights(name, model, 0), data.train.x.shape[1]) for model, spec in specs.items()}
    rows, out = data.test.x[:TIMED_ROWS], {model: {} for model in specs}
    still = {m: adam(list(flow.parameters()), 0.0) for m, flow in flows.items()}   # its steps leave the weights as they are
    step_ms = medians({m: partial(step, mode(flow, specs[m], True), data.train.x[:BATCH], still[m]) for m, flow in flows.items()}, 25)
    for m, flow in flows.items():
        out[m] |= {"step_ms": step_ms[m], "unit_ms": step_ms[m] / units(flow), "parameters": sum(p.numel() for p in flow.parameters())}
        mode(flow, specs[m], False)

    def evaluate(model: str):
        with torch.no_grad():
            flows[model].log_prob(rows)

    calls = {"density": evaluate, "sampling": lambda m: flows[m].sample(TIMED_ROWS, generator=torch.Generator().manual_seed(0))}
    for direction, call in calls.items():
        for m, ms in medians({m: partial(call, m) for m in specs}, 15).items():
            out[m] |= {f"{direction}_ms": ms, f"{direction}_nfe": units(flows[m]) if continuous(flows[m]) else 0}
    return out


def again(name: str, model: str, spec: dict, seed: int, steps: int = STEPS) -> dict:
    flow = build(spec, data_of(name).train.x.shape[1], seed)
    record = train(flow, spec, name, seed, steps, checks=10)
    write_tensors(weights(name, model, seed, steps), flow.state_dict(), {})
    return record


def fitting(run: dict, units: float) -> int:
    "After how many steps of a run `units` were used up."
    return round(np.interp(units, [0, *(c["units"] for c in run["curve"])], [0, *(c["steps"] for c in run["curve"])]))


# --- the report's setting
class GELUNetwork(FeatureMajorMLP):
    def forward(self, h: Tensor) -> Tensor:
        *hidden, last = self.layers
        for layer in hidden:
            h = nn.functional.gelu(torch.addmm(layer.bias[:, None], layer.weight, h))
        return torch.addmm(last.bias[:, None], last.weight, h)


class WithoutClosedForm(HyperNetwork):
    "The same velocity, its trace left to autograd, in D passes, as in torchdiffeq's example."
    def at(self, times, context=None):
        return [field.__call__ for field in super().at(times, context)]


REPORT_ROWS, REPORT_BATCH, REPORT_EPOCHS, REPORT_MINUTES = 400, 32, {"RealNVP": 200, "CNF": 100}, {"RealNVP": 1.15, "CNF": 20.76}
SNAPSHOTS = (0, 5, 10, 25, 50, 75, 100)   # epochs
WAYS = {"ours": {}, "torchdiffeq, direct": {"solver": "torchdiffeq"}, "torchdiffeq, adjoint": {"solver": "torchdiffeq-adjoint"},
        "torchdiffeq, adjoint, trace by autograd": {"solver": "torchdiffeq-adjoint", "dynamics": WithoutClosedForm}}


def report_flow(way: str | None) -> Flow:
    "Five coupling layers, three linear maps of width 32 each; or a hypernetwork of width 64."
    with seeded(0):
        if way is None:
            return Flow(CompositeTransform([Coupling(2, AFFINE, hidden_features=32, mask=alternating_mask(2, i), network=GELUNetwork)
                                            for i in range(5)]), 2)
        return Flow(ContinuousFlow(2, hidden_features=64, **{"dynamics": "hypernetwork"} | WAYS[way]), 2)


def report() -> dict:
    "Milliseconds of a training step at snapshots of one training of the continuous flow, by our solver, for each way to take that step."
    x = plane("two_moons", REPORT_ROWS, REPORT_ROWS // 4).train.x
    flows = {way: report_flow(way) for way in WAYS} | {"RealNVP": report_flow(None)}
    ours, batches, points = flows["ours"], Batches(len(x), REPORT_BATCH, 0), []
    optimizer = adam(list(ours.parameters()), 3e-3)
    nothing = {name: adam(list(flow.parameters()), 0.0) for name, flow in flows.items()}
    for epoch in range(SNAPSHOTS[-1] + 1):
        if epoch in SNAPSHOTS:
            for way in WAYS:
                flows[way].load_state_dict(ours.state_dict())
            batch = x[batches(epoch * batches.per_epoch)]
            ms = medians({name: partial(step, flow, batch, nothing[name]) for name, flow in flows.items()}, 9, warm_up=1)
            points.append({"epoch": epoch, "step_ms": ms, "nfe": {way: flows[way].transform.nfe for way in WAYS}})
        for i in range(batches.per_epoch):
            step(ours, x[batches(epoch * batches.per_epoch + i)], optimizer)
    return {"steps_per_epoch": batches.per_epoch, "points": points}


# --- all of it
def in_one_thread(function: str, arguments: dict) -> dict:
    with one_thread():
        return globals()[function](**arguments)


def job(function: str, named: dict[str, dict]) -> dict[str, dict]:
    "Results by name; what is finished is not run again."
    tasks = {f"{function} {name}": {"function": function, "arguments": arguments} for name, arguments in named.items()}
    return dict(zip(named, run_tasks(in_one_thread, tasks, WORK, title=function, progress=False).values()))


def work() -> dict:
    pairs = [(s, m) for s in SETS for m in MODELS]
    tuned = job("tune", {f"{s} {m}": {"name": s, "model": m} for s, m in pairs})
    base = {f"{s} {m}": {"name": s, "model": m, "spec": chosen(tuned[f"{s} {m}"])["spec"]} for s, m in pairs}
    first = {key: chosen(tuned[key]) for key in base if chosen(tuned[key]) == tuned[key]["best"]}   # trained already, its weights are kept
    first |= job("again", {key: arguments | {"seed": 0} for key, arguments in base.items() if key not in first})
    timed = job("paces", {s: {"name": s, "specs": {m: base[f"{s} {m}"]["spec"] for m in MODELS}} for s in SETS})
    epochs = job("report", {"setting": {}})["setting"]
    seeds = job("again", {f"{key} {seed}": arguments | {"seed": seed} for seed in SEEDS[1:] for key, arguments in base.items()})
    steps = {f"{s} {m}": fitting(first[f"{s} {m}"], STEPS * timed[s]["RealNVP"]["unit_ms"] / timed[s][m]["unit_ms"]) for s, m in pairs}
    short = job("again", {f"{key} {n} steps": base[key] | {"seed": 0, "steps": n} for key, n in steps.items() if n < STEPS})
    return {"tuned": tuned, "first": first, "timed": timed, "report": epochs, "seeds": seeds, "steps": steps, "short": short}


# --- what is written
def log_probs(spec: dict, files: list[Path], data) -> np.ndarray:
    "(files, test rows)"
    return np.stack([row_log_prob(load(spec, f, data.test.x.shape[1]), data.test).double().numpy() for f in files])


def scores(log_q: np.ndarray, data) -> dict:
    "NLL of rows (n,), and above the truth where it is known; each with two standard errors."
    nll, error = nll_with_error(log_q)
    gap, gap_error = nll_with_error(log_q - data.truth) if hasattr(data, "truth") else (None, None)
    return {"nll": nll, "nll_2se": error, "gap": gap, "gap_2se": gap_error}


def evaluations(curve: list[dict]) -> list[dict]:
    "Mean evaluations of a training step between checks."
    ends = [{"steps": 0, "units": 0}, *curve]
    return [{"steps": b["steps"], "nfe": (b["units"] - a["units"]) / (b["steps"] - a["steps"])} for a, b in zip(ends, ends[1:])]


def row_of(done: dict, name: str, model: str, cnf: np.ndarray | None) -> tuple[dict, np.ndarray]:
    "A line of the table, and the mean over seeds of log q, row by row."
    key, data = f"{name} {model}", data_of(name)
    tuned, timed = done["tuned"][key], done["timed"][name]
    spec, pace, unit = chosen(tuned)["spec"], timed[model], timed["RealNVP"]
    runs = [done["first"][key], *(done["seeds"][f"{key} {seed}"] for seed in SEEDS[1:])]
    log_q = log_probs(spec, [weights(name, model, seed) for seed in SEEDS], data)
    base = STEPS * unit["unit_ms"]
    seconds = float(np.mean([run["units"] * pace["unit_ms"] / 1000 for run in runs]))
    row = {"set": name, "model": model, "spec": spec, "parameters": pace["parameters"], "steps": STEPS} | scores(log_q.mean(0), data)
    row |= {"nll_seeds": (-log_q.mean(1)).tolist(), "train_seconds": seconds, "train_ratio": 1000 * seconds / base}
    row |= {"processor_seconds": [run["processor_seconds"] for run in runs], "unit_ms": pace["unit_ms"]}
    for direction in ("density", "sampling"):
        row |= {f"{direction}_{k}": pace[f"{direction}_{k}"] for k in ("ms", "nfe")}
        row[f"{direction}_ratio"] = pace[f"{direction}_ms"] / unit[f"{direction}_ms"]
    row["minus_cnf"], row["minus_cnf_2se"] = (0.0, 0.0) if cnf is None else nll_with_error(log_q.mean(0) - cnf)
    row["tried"] = [{k: t[k] for k in ("spec", "val_nll", "processor_seconds")} for t in tuned["tried"]]
    row["nfe"] = evaluations(runs[0]["curve"]) if model == "CNF" else None
    row["curve"] = [{"steps": c["steps"], "seconds": c["units"] * pace["unit_ms"] / 1000, "val_nll": c["val_nll"]}
                    for c in runs[0]["curve"]]
    n = done["steps"][key]
    run = runs[0] if n == STEPS else done["short"][f"{key} {n} steps"]
    row["equal_seconds"] = {"steps": n, "seconds": run["units"] * pace["unit_ms"] / 1000,
                            **scores(log_probs(spec, [weights(name, model, 0, n)], data)[0], data)}
    row |= {k: tuned[k] for k in ("search_processor_seconds", "delivered_nll", "delivered_nll_2se") if k in tuned}
    return row, log_q.mean(0)


def epochs(points: list[dict]) -> list[dict]:
    "For each way to train the report's continuous flow: mean over its epochs, as a multiple of what its Real NVP takes."
    at = [p["epoch"] for p in points]

    def mean(values: list[float]) -> float:
        return float(trapezoid(values, at) / at[-1])

    unit = float(np.median([p["step_ms"]["RealNVP"] for p in points]))
    out = [{"way": "RealNVP", "step_ms": unit, "ratio_per_epoch": 1.0, "ratio": 1.0}]
    for way in WAYS:
        ms = mean([p["step_ms"][way] for p in points])
        out.append({"way": way, "step_ms": ms, "nfe": mean([p["nfe"][way] for p in points]), "ratio_per_epoch": ms / unit,
                    "ratio": ms / unit * REPORT_EPOCHS["CNF"] / REPORT_EPOCHS["RealNVP"]})
    return out


def collect(done: dict) -> None:
    rows = []
    for name in SETS:
        last, cnf = row_of(done, name, "CNF", None)
        rows += [row_of(done, name, model, cnf)[0] for model in MODELS[:-1]] + [last]
    moons = data_of("two_moons")
    grid = Rows(torch.tensor(moons.grid, dtype=torch.float32))
    flows = [load(r["spec"], weights("two_moons", r["model"], 0), 2) for r in rows if r["set"] == "two_moons"]
    density = [row_log_prob(flow, grid).exp().numpy() for flow in flows]
    np.savez_compressed(RESULTS/"discrete_continuous.npz", models=["truth", *MODELS], box=np.array(moons.box),
                        density=np.stack([moons.image(d) for d in (moons.true_density, *density)]))
    truth = [{"set": name, "nll": float(-data_of(name).truth.mean())} for name in PLANES]
    ratio = REPORT_MINUTES["CNF"] / REPORT_MINUTES["RealNVP"]
    report_row = {"way": "the report", "ratio": ratio, "ratio_per_epoch": ratio * REPORT_EPOCHS["RealNVP"] / REPORT_EPOCHS["CNF"]}
    about = meta("python benchmarks/discrete_continuous.py", seeds=list(SEEDS), packages=("numpy", "torchdiffeq"), steps=STEPS,
                 batch_size=BATCH, hidden_features=HIDDEN, depths=DEPTHS, rates=RATES, near=NEAR,
                 lam=LAM, tolerance=TOLERANCE, timed_rows=TIMED_ROWS,
                 rows={name: {k: len(getattr(data_of(name), k)) for k in ("train", "val", "test")} for name in SETS},
                 features={name: data_of(name).train.x.shape[1] for name in SETS},
                 clock="processor time, one thread, medians of interleaved calls; training: steps, or evaluations, times the time of one",
                 data="plane sets drawn by formula; gas turbine complete, its rounding undone by noise, split 80 : 10 : 10 at random")
    write(RESULTS/"discrete_continuous.json", about, rows, truth=truth, report=[report_row, *epochs(done["report"]["points"])],
          report_points=done["report"]["points"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    collect(work())
