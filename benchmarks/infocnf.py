"""InfoCNF at the size of two slow cores: CCNF, InfoCNF and InfoCNF with learned tolerances, and what the paper claims of them.

    python benchmarks/infocnf.py                  # a stopped run goes on; --group small,large: only these, see `tasks`
    python benchmarks/infocnf.py --collect        # -> results/infocnf_runs.json and, claim by claim, results/infocnf.json
    python benchmarks/infocnf.py --claims         # the latter anew, from infocnf_runs.json and latent_ode.json

Digits are scikit-learn's, 8x8 pixels, 17 grey values: 1,437 images train, 360 test, the same for all. A seed draws weights, batches and
all noise. Small batches have 64 images, large ones 239 (22 and 6 steps an epoch; the paper has 55 and 6), for equally many epochs; large
ones have a learning rate larger by the square root of that. Fixed tolerances are 1e-5, with large batches the tuned one. What is tuned,
in the group `tuning`, by trainings that are judged on 237 of the training images: that tolerance and the price alpha of an evaluation,
each as cheap as it can be with an NLL within 0.01 of the best. Gates begin at 1e-5. Groups named `early ...` train for a third of the
epochs, and stand in for claims whose full trainings are not finished. `mnist` needs mnist.npz in the folder mnist of $AUTONF_DATA; its
images are averaged to 14x14.

A claim that one method is better than another `agrees`, "yes" or "no", when the 95 % interval of the paired difference over seeds
(Student's t) does not hold zero; a claim that two are alike, when the interval lies within ("yes") or beyond ("no") MARGINS. Otherwise,
and with fewer than three seeds, it is "undecided"."""
import json
import math
import os
import statistics
import time
from functools import cache
from itertools import product
from pathlib import Path

import numpy as np
import torch
from nflows.transforms import CompositeTransform
from scipy.stats import t as student_t
from sklearn.datasets import load_digits
from torch import Tensor

from autonf_nb.cnf import PixelLogit, continuous_flows
from autonf_nb.infocnf import (
    CIFAR10, METHODS, GatedFlow, InfoCNF, LabelledFlow, evaluate, gated_flows, train_labelled,
)
from autonf_nb.parallel import run_tasks
from autonf_nb.training import one_thread, seeded
from autonf_nb.transforms.multiscale import Glow, ToImage, dequantize_images
from record import RESULTS, finished, job_parser, meta, write

SEEDS, EPOCHS, EARLY, BATCH = (0, 1, 2), 24, 8, {"small": 64, "large": 239}
LR, PLAIN_LR, ALPHA, BETA = {"small": 1e-2, "large": 2e-2}, 1e-2, 1.0, 0.5  # PLAIN_LR: large batches as the small ones
FIXED, TUNED = 1e-5, {"small": 1e-2, "large": 1e-2}
TRIED, PRICES = (1e-4, 1e-3, 1e-2), (0.03, 0.1, 0.3, 1.0)
DIGITS = {"shape": [1, 8, 8], "hidden_features": 16, "train_trace": "rademacher"}
MNIST = {**DIGITS, "shape": [1, 14, 14]}
MARGINS = {"error": 1.0, "nll": 0.03, "marginal_nll": 0.03, "nfe": 5.0}       # per cent, bits per dimension, per cent of NFE
THREE = CCNF, INFOCNF, LEARNED = "CCNF", "InfoCNF", "InfoCNF, learned"


@cache
def images(name: str) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    "Pixels and labels to train and to test, whole numbers, and the number of grey values."
    if name == "digits":
        digits = load_digits()
        order = torch.randperm(len(digits.data), generator=torch.Generator().manual_seed(0))
        x, y = torch.tensor(digits.data, dtype=torch.float32)[order], torch.tensor(digits.target)[order]
        return x[:1437], y[:1437], x[1437:], y[1437:], 17
    file = Path(os.path.expanduser(os.environ.get("AUTONF_DATA", "~/.autonf")))/"mnist"/"mnist.npz"
    if not file.exists():
        raise FileNotFoundError(f"the group mnist needs {file}: put the file there, or name its parent folder in AUTONF_DATA")
    with np.load(file) as stored:
        parts = []
        for part, n in (("train", 2000), ("test", 500)):
            x = torch.tensor(stored[f"x_{part}"][:n], dtype=torch.float32)[:, None]
            parts += [torch.nn.functional.avg_pool2d(x, 2).floor().flatten(1), torch.tensor(stored[f"y_{part}"][:n]).long()]
    return *parts, 256


def model_of(method: str, data: str, tolerance: float) -> LabelledFlow:
    how = METHODS[method.removeprefix("Glow, ")]
    if method.startswith("Glow"):
        glow = CompositeTransform([PixelLogit(), ToImage((1, 8, 8)), Glow((1, 8, 8), levels=2, steps=2, hidden_features=16)])
        return LabelledFlow(glow, 64, classes=10, supervised=round(64 * how["part"]))
    return InfoCNF(**(DIGITS if data == "digits" else MNIST), tolerance=tolerance, **how)


def at_tolerances(flow: LabelledFlow, x: Tensor, y: Tensor, levels: int) -> list[dict]:
    "Scores in double precision at ever finer tolerances (section 4.2); slow, so of one seed and few images."
    flow, rows = flow.double(), []
    for tolerance in (1e-5, 1e-6, 1e-7, 1e-8):
        for f in continuous_flows(flow):
            f.tolerance = tolerance
        rows.append({"tolerance": tolerance, **_plain(evaluate(flow, x.double(), y, levels=levels))})
    return rows


def with_learned(flow: LabelledFlow, parts: dict[str, tuple[Tensor, Tensor]], levels: int) -> list[dict]:
    "Scores and tolerances by the gates themselves, by part and batch size (appendix D)."
    for f in gated_flows(flow):
        f.learned = True
    rows = [{"part": part, "batch": size, **_plain(evaluate(flow, *rows, levels=levels, batch_size=size))}
            for part, rows in parts.items() for size in ((BATCH["small"],) if part == "train" else (8, BATCH["small"], len(rows[0])))]
    for f in gated_flows(flow):
        f.learned = False
    return rows


def _plain(scores: dict) -> dict:
    return {**scores, "nfe": sum(scores["nfe"]), "flow_tolerance": scores["tolerance"]}


def training(method: str, data: str, seed: int, epochs: int, batch: int, lr: float, tolerance: float, alpha: float = 0.0,
             held_out: bool = False) -> dict:
    "One training and its scores on the test images; with `held_out`, on the last 237 training images, which then do not train."
    x, y, test_x, test_y, levels = images(data)
    if held_out:
        x, y, test_x, test_y = x[:1200], y[:1200], x[1200:], y[1200:]
    test_x = dequantize_images(test_x, levels, torch.Generator().manual_seed(1))
    with seeded(seed):
        flow = model_of(method, data, tolerance)
    start = time.process_time()
    records = train_labelled(flow, x, y, epochs=epochs, batch_size=batch, lr=lr, beta=BETA, alpha=alpha, levels=levels, seed=seed,
                             prepare=lambda pixels: dequantize_images(pixels, levels))
    row = {"seconds": time.process_time() - start, "parameters": sum(p.numel() for p in flow.parameters() if p.requires_grad),
           "gate_parameters": sum(p.numel() for f in gated_flows(flow) for p in f.gate.parameters())}
    for f in continuous_flows(flow):
        f.tolerance = FIXED
    row |= {"test": _plain(evaluate(flow, test_x, test_y, levels=levels)), **history(records, len(x) // min(batch, len(x)))}
    if gated_flows(flow):
        train_x = dequantize_images(x[:len(test_x)], levels, torch.Generator().manual_seed(2))
        row["learned"] = with_learned(flow, {"train": (train_x, y[:len(test_x)]), "test": (test_x, test_y)}, levels)
    if continuous_flows(flow) and data == "digits" and batch == BATCH["small"] and seed == 0:
        row["finer"] = at_tolerances(flow, test_x[:100], test_y[:100], levels)
    return row


def history(records: list[dict], per_epoch: int) -> dict:
    "Means over each epoch: evaluations of all solvers, bits per dimension, cross-entropy, and tolerances by solver."
    epochs = [records[i:i + per_epoch] for i in range(0, len(records), per_epoch)]
    mean = {key: [statistics.fmean(r[key] for r in part) for part in epochs] for key in ("nll", "xent")}
    nfe = [statistics.fmean(sum(r["nfe"]) for r in part) for part in epochs]
    tolerances = [[10 ** statistics.fmean(math.log10(t) for t in solver) for solver in zip(*(r["tolerance"] for r in part))]
                  for part in epochs]
    return {"nfe": statistics.fmean(nfe), "epoch_nfe": nfe, "epoch_nll": mean["nll"], "epoch_xent": mean["xent"],
            "epoch_tolerance": tolerances}


def three_normals(n: int, seed: int) -> tuple[Tensor, Tensor]:
    "The mixture of section 4.2 in one dimension: rows `(n, 1)` and the component of each."
    rng = np.random.default_rng(seed)
    y = rng.choice(3, n, p=[0.3, 0.4, 0.3])
    return torch.tensor((np.array([-4.0, 0.0, 3.5])[y] + np.array([0.8, 0.5, 1.0])[y] * rng.standard_normal(n))[:, None],
                        dtype=torch.float32), torch.tensor(y)


def mixture(seed: int, alpha: float) -> dict:
    "Area under p(x) of a flow of one dimension, by Riemann sum in double precision, against the tolerance; and at the learned one."
    x, y = three_normals(4000, seed)
    with seeded(seed):
        flow = LabelledFlow(GatedFlow(1, hidden_features=32, tolerance=FIXED), 1, classes=3, supervised=1)
    train_labelled(flow, x, y, epochs=25, batch_size=250, lr=1e-2, beta=BETA, alpha=alpha, seed=seed)
    grid = torch.linspace(-14, 14, 5601, dtype=torch.float64)[:, None]
    (solver,), cell, flow = gated_flows(flow), 28 / 5600, flow.double().eval()

    @torch.no_grad()
    def area() -> dict:
        density = flow.marginal_log_prob(grid).exp()
        return {"tolerance": solver.used, "area": float(density.sum()) * cell, "nfe": solver.nfe, "density": density[::40].tolist()}

    rows = []
    for k in range(1, 9):
        solver.tolerance = 10.0**-k
        rows.append(area())
    solver.tolerance = 10 ** float(solver.gate(x.double()).mean.detach())  # the gate judges data, not a grid
    return {"areas": rows, "learned": area(), "grid": grid[::40, 0].tolist()}


def run(kind: str, **arguments) -> dict:
    with one_thread():
        return mixture(**arguments) if kind == "mixture" else training(**arguments)


def tasks() -> dict[str, dict]:
    "By name, `group, method, seed`."
    out = {f"mixture, InfoCNF, seed {seed}": {"kind": "mixture", "seed": seed, "alpha": 0.1} for seed in SEEDS}

    def add(group: str, method: str, seed: int, size: str = "small", data: str = "digits", epochs: int = EPOCHS, **more) -> None:
        how = {"lr": LR[size], "tolerance": FIXED, "batch": BATCH[size], **({"alpha": ALPHA} if "learned" in method else {}), **more}
        out[f"{group}, {method}, seed {seed}"] = {"kind": "training", "method": method, "data": data, "seed": seed, "epochs": epochs, **how}

    for size, tolerance in product(BATCH, TRIED):
        add(f"tuning {size} {tolerance:g}", INFOCNF, 10, size, epochs=3, tolerance=tolerance, held_out=True)
    for alpha, seed in product(PRICES, (10, 11)):
        add(f"tuning alpha {alpha:g}", LEARNED, seed, epochs=3, alpha=alpha, held_out=True)
    for early, epochs in (("early ", EARLY), ("", EPOCHS)):
        for seed in SEEDS:
            for method in THREE:
                add(f"{early}small", method, seed, epochs=epochs)
                add(f"{early}large", method, seed, "large", epochs=epochs, tolerance=FIXED if method == LEARNED else TUNED["large"])
            add(f"{early}manual", INFOCNF, seed, epochs=epochs, tolerance=TUNED["small"])
            for method in (CCNF, INFOCNF):
                add(f"{early}plain", method, seed, "large", epochs=epochs, lr=PLAIN_LR)
                add(f"{early}glow", f"Glow, {method}", seed, epochs=epochs)
            for method in ("CNF", "CNF, learned"):
                add(f"{early}unconditional", method, seed, epochs=epochs)
    for method in THREE:
        add("mnist", method, 0, data="mnist", epochs=3)
    return out


SCORES = {"error": ("test error", "points", lambda r: 100 * r["test"]["error"]), "nll": ("NLL", "bits/dim", lambda r: r["test"]["nll"]),
          "marginal_nll": ("marginal NLL", "bits/dim", lambda r: r["test"]["marginal_nll"]), "nfe": ("NFE", "%", lambda r: r["nfe"])}
Side = tuple[str, str]  # group, method


class Runs:
    "The finished trainings, and comparisons of two of them seed by seed."

    def __init__(self, done: dict[str, dict]):
        self.by_key = {tuple(name.rsplit(", seed ", 1)): result for name, result in done.items()}

    def of(self, side: Side) -> dict[str, dict]:
        "Results by seed."
        return {seed: result for (name, seed), result in self.by_key.items() if name == ", ".join(side)}

    def differences(self, a: Side, b: Side, score: str) -> list[float]:
        "By seed, a less b; NFE in per cent of b's."
        value, first, second = SCORES[score][2], self.of(a), self.of(b)
        both = sorted(first.keys() & second.keys())
        if score == "nfe":
            return [100 * (value(first[s]) / value(second[s]) - 1) for s in both]
        return [value(first[s]) - value(second[s]) for s in both]

    def means(self, a: Side, score: str) -> str:
        values = [SCORES[score][2](r) for r in self.of(a).values()]
        return f"{statistics.fmean(values):.{3 if 'nll' in score else 1}f}" if values else "-"

    def compare(self, a: Side, b: Side, score: str, says: str) -> tuple[str, str]:
        "`ours` and `agrees` of the claim that a's score is `says` ('lower', 'higher', 'alike') than b's."
        found, epochs = self.differences(a, b, score), EPOCHS
        if len(found) < 3 and len(early := self.differences(*(("early " + group, method) for group, method in (a, b)), score)) == 3:
            a, b, found, epochs = ("early " + a[0], a[1]), ("early " + b[0], b[1]), early, EARLY
        if not found:
            return "not measured", "undecided"
        mean = statistics.fmean(found)
        error = statistics.stdev(found) / len(found)**0.5 if len(found) > 1 else math.nan
        name, unit, _ = SCORES[score]
        text = (f"{name} {self.means(a, score)} against {self.means(b, score)}: {mean:+.{3 if 'nll' in score else 1}f} {unit}, "
                + (f"standard error {error:.{3 if 'nll' in score else 1}f}, {len(found)} seeds" if len(found) > 1 else "1 seed")
                + f", {EARLY} epochs only" * (epochs == EARLY))
        if len(found) < 3:
            return text, "undecided"
        reach = float(student_t.ppf(0.975, len(found) - 1)) * error
        if says == "alike":
            margin = MARGINS[score]
            return text, "yes" if abs(mean) + reach <= margin else "no" if abs(mean) - reach > margin else "undecided"
        return text, "undecided" if abs(mean) <= reach else "yes" if (mean < 0) == (says == "lower") else "no"


Comparison = tuple[str, str, str, Side, Side, str, str]  # section, claim, paper, a, b, score, what a's score is said to be


def table_one() -> list[Comparison]:
    "Sections 4.3 and 4.4: the rows of Table 1, two by two."
    rows = []

    def add(section: str, size: str, what: str, a: str, b: str, **said: tuple[str, str]) -> None:
        for score, (says, paper) in said.items():
            name = SCORES[score][0]
            rows.append((section, f"{size} batches: {what}, {name} {says}", paper, (size, a), (size, b), score, says))

    what = "InfoCNF with learned tolerances against CCNF"
    add("4.3", "small", what, LEARNED, CCNF, error=("lower", "20.99 against 33.09, -12 points"), nll=("alike", "3.568 against 3.511"),
        nfe=("lower", "776 against 924, -16 %"))
    add("4.3", "large", what, LEARNED, CCNF, error=("lower", "27.88 against 38.14, -10 points"), nll=("lower", "3.638 against 3.710"),
        nfe=("lower", "590 against 661, -11 %"))
    what = "InfoCNF with fixed tolerances, the partition alone, against CCNF"
    add("4.3", "small", what, INFOCNF, CCNF, error=("lower", "21.50 against 33.09"), nll=("alike", "3.533 against 3.511"),
        nfe=("higher", "985 against 924, +7 %"))
    add("4.3", "large", what, INFOCNF, CCNF, error=("lower", "31.64 against 38.14"), nll=("lower", "3.674 against 3.710"),
        nfe=("lower", "582 against 661, -12 %"))
    add("4.4", "small", "learned against fixed tolerances", LEARNED, INFOCNF, error=("alike", "20.99 against 21.50"),
        nll=("alike", "3.568 against 3.533"), nfe=("lower", "776 against 985, -21 %"))
    add("4.4", "large", "learned against manually tuned tolerances", LEARNED, INFOCNF, error=("lower", "27.88 against 31.64"),
        nll=("lower", "3.638 against 3.674"), nfe=("alike", "590 against 582"))
    return rows


def further() -> list[Comparison]:
    "The rest of section 4.4, section 4.5, appendices F and G, and two looks of our own."
    what, a, b = "small batches: learned against manually tuned tolerances", ("small", LEARNED), ("manual", INFOCNF)
    rows = [("4.4, F", f"{what}, test error alike", "Figure 10", a, b, "error", "alike"),
            ("4.4, F", f"{what}, NLL alike", "Figure 10", a, b, "nll", "alike"),
            ("4.4, F", f"{what}, NFE slightly higher", "Figure 10", a, b, "nfe", "higher")]
    a, b = ("unconditional", "CNF, learned"), ("unconditional", "CNF")
    rows += [("4.4", "unconditional CNF: gates lower the NFE", "-15 %", a, b, "nfe", "lower"),
             ("4.4", "unconditional CNF: gates leave the NLL as it is", "3.37 with and without", a, b, "marginal_nll", "alike")]
    for method, score in product((CCNF, INFOCNF), ("error", "nll", "nfe", "marginal_nll")):
        section, figure = ("G", "Figure 12") if score == "marginal_nll" else ("4.5", "Figure 5")
        rows.append((section, f"large batches, {method}: larger learning rate and tuned tolerance lower the {SCORES[score][0]}", figure,
                     ("large", method), ("plain", method), score, "lower"))
    for size, says in (("small", "higher"), ("large", "lower")):
        rows.append(("G", f"{size} batches: InfoCNF with learned tolerances against CCNF, marginal NLL {says}", "Figure 11",
                     (size, LEARNED), (size, CCNF), "marginal_nll", says))
    for score, says in (("error", "lower"), ("nll", "alike"), ("nfe", "lower")):
        rows.append(("4.3, ours", f"small batches, {EARLY} epochs in place of {EPOCHS}: InfoCNF with learned tolerances against CCNF, "
                     f"{SCORES[score][0]} {says}", "the claim of 4.3, early in the training",
                     ("early small", LEARNED), ("early small", CCNF), score, says))
    for score, says in (("error", "lower"), ("nll", "alike")):
        rows.append(("4.3, ours", f"the partition in a discrete flow (Glow): half a code against all of it, {SCORES[score][0]} {says}",
                     "the claim of 4.3, carried over", ("glow", "Glow, InfoCNF"), ("glow", "Glow, CCNF"), score, says))
    for score, says in (("error", "lower"), ("nll", "alike"), ("nfe", "lower")):
        rows.append(("4.3, ours", f"14x14 MNIST: InfoCNF with learned tolerances against CCNF, {SCORES[score][0]} {says}",
                     "the claim of 4.3 on another set", ("mnist", LEARNED), ("mnist", CCNF), score, says))
    return rows


def verdict(yes: bool) -> str:
    return "yes" if yes else "no"


def evaluation_claims(runs: Runs) -> list[dict]:
    "Section 4.2 and appendix D."
    out = []

    def add(section: str, claim: str, paper: str, ours: str, agrees: str) -> None:
        out.append({"claim": claim, "section": section, "paper": paper, "ours": ours, "agrees": agrees})

    mixtures = list(runs.of(("mixture", "InfoCNF")).values())
    if mixtures:
        worst = {row["tolerance"]: max(abs(m["areas"][i]["area"] - 1) for m in mixtures) for i, row in enumerate(mixtures[0]["areas"])}
        add("4.2", "the area under a density of one dimension is 1, with negligible error, at tolerances of 1e-5 and below", "Figure 2a",
            "the area is off by at most " + ", ".join(f"{e:.0e} at {t:.0e}" for t, e in worst.items()),
            verdict(max(e for t, e in worst.items() if t < 2e-5) < 1e-4))
        error, at = max((abs(m["learned"]["area"] - 1), m["learned"]["tolerance"]) for m in mixtures)
        add("D", "at the learned tolerance the area's error is still small", "0.00014", f"off by up to {error:.5f}, at {at:.0e}",
            verdict(error < 1e-3))
    finer = [r["finer"] for r in runs.by_key.values() if "finer" in r]
    if finer:
        d_error = max(abs(row.get("error", 0) - rows[0].get("error", 0)) for rows in finer for row in rows)
        d_nll = max(abs(row["marginal_nll"] - rows[0]["marginal_nll"]) for rows in finer for row in rows)
        add("4.2", "tolerances of 1e-6, 1e-7 and 1e-8 give the same test errors and NLLs as 1e-5", "the same",
            f"{len(finer)} flows, 100 images: errors differ by up to {100 * d_error:.2f} points, NLLs by {d_nll:.1e} bits/dim",
            verdict(d_error < 1e-9 and d_nll < 1e-3))
    learned = list(runs.of(("small", "InfoCNF, learned")).values())
    if learned:
        def at(run: dict, part: str, batch: int) -> dict:
            (row,) = [r for r in run["learned"] if (r["part"], r["batch"]) == (part, batch)]
            return row
        n = BATCH["small"]
        ratio = max(abs(math.log10(a / b)) for r in learned
                    for a, b in zip(at(r, "train", n)["flow_tolerance"], at(r, "test", n)["flow_tolerance"]))
        spread = statistics.fmean(abs(math.log10(a / FIXED)) for r in learned for a in at(r, "test", n)["flow_tolerance"])
        add("4.2", "learned tolerances are alike on training and test images", "Figure 2b",
            f"log10 tolerances differ by {ratio:.3f} at most, and moved by {spread:.2f} on average from where they began",
            verdict(ratio < 0.1))
        d_error, d_nll = (max((at(r, "test", n)[key] - r["test"][key] for r in learned), key=abs) for key in ("error", "nll"))
        add("D", "test error and NLL at the learned tolerances are close to those at 1e-5", "20.85 and 3.566 against 20.99 and 3.568",
            f"they differ by at most {100 * d_error:+.2f} points and {d_nll:+.1e} bits/dim",
            verdict(abs(100 * d_error) < 1 and abs(d_nll) < 0.01))
        sizes = [row["batch"] for row in learned[0]["learned"] if row["part"] == "test"]
        by_size = {size: (statistics.fmean(100 * at(r, "test", size)["error"] for r in learned),
                          statistics.fmean(at(r, "test", size)["nll"] for r in learned)) for size in sizes}
        add("D", "evaluation with learned tolerances: batches up to that of training alike, much larger ones worse",
            "1 to 2,000 alike, 4,000 to 8,000 worse (trained with 900)",
            "; ".join(f"batch {s}: {e:.2f} %, {b:.5f} bits/dim" for s, (e, b) in by_size.items()),
            verdict(by_size[sizes[-1]][1] - by_size[n][1] > 0.001 and abs(by_size[sizes[0]][1] - by_size[n][1]) < 0.001))
    return out


def other_claims(runs: Runs) -> list[dict]:
    "Parameters, the course of the NFE, the effort of tuning."
    full = {m: sum(p.numel() for p in InfoCNF(**CIFAR10, **METHODS[m]).parameters()) for m in ("CCNF", "InfoCNF")}
    small = {m: next(iter(runs.of(("small", m)).values()), {}).get("parameters") for m in full}
    share = 100 * (1 - full["InfoCNF"] / full["CCNF"])
    ours = f"CIFAR-10 size {full['InfoCNF']:,} against {full['CCNF']:,}: {share:.1f} % fewer"
    if all(small.values()):
        ours += f"; digits {small['InfoCNF']:,} against {small['CCNF']:,}: {100 * (1 - small['InfoCNF'] / small['CCNF']):.1f} % fewer"
    out = [{"claim": "InfoCNF needs fewer parameters than CCNF", "section": "2.2", "paper": "4 % fewer", "ours": ours,
            "agrees": verdict(2 <= share <= 8)}]
    learned, base = (runs.of(("small", m)) for m in ("InfoCNF, learned", "CCNF"))
    both = sorted(learned.keys() & base.keys())
    if both:
        ratios = [[100 * (a / b - 1) for a, b in zip(learned[s]["epoch_nfe"], base[s]["epoch_nfe"])] for s in both]
        n = round(0.6 * len(ratios[0]))
        early, late = ([statistics.fmean(part) for part in parts] for parts in ([r[:n] for r in ratios], [r[n:] for r in ratios]))
        decided = len(both) >= 3 and max(early) < 0 and (min(late) > 0 or max(late) < 0)
        out.append({"claim": "small batches: InfoCNF needs fewer evaluations than CCNF in the first 60 % of the training, later more",
                    "section": "4.3", "paper": "fewer until epoch 240 of 400, then more (Figure 3c)",
                    "ours": f"{statistics.fmean(early):+.1f} % in the first {n} epochs, {statistics.fmean(late):+.1f} % after them",
                    "agrees": verdict(min(late) > 0) if decided else "undecided"})
    tuning = [r["seconds"] for (name, _), r in runs.by_key.items() if name.startswith("tuning small")]
    if tuning and learned and runs.of(("manual", "InfoCNF")):
        gates, manual = (statistics.fmean(r["seconds"] for r in rows.values()) for rows in (learned, runs.of(("manual", "InfoCNF"))))
        out.append({"claim": "learning the tolerances takes much less time than tuning them by hand", "section": "4.4",
                    "paper": "much less",
                    "ours": f"{gates:.0f} s of processor with gates; {manual:.0f} s at the tuned tolerance and {sum(tuning):.0f} s to try "
                            f"{len(tuning)} of them in shorter trainings", "agrees": verdict(gates < 0.75 * (manual + sum(tuning)))})
    return out


def claims(runs: Runs) -> list[dict]:
    "Every claim of sections 4.2 to 4.6: claim, section, paper, ours, agrees. Those of 4.6 are in results/latent_ode.json, if it is there."
    out = evaluation_claims(runs) + other_claims(runs)
    for section, claim, paper, a, b, score, says in table_one() + further():
        ours, agrees = runs.compare(a, b, score, says)
        out.append({"claim": claim, "section": section, "paper": paper, "ours": ours, "agrees": agrees})
    latent = RESULTS/"latent_ode.json"
    if latent.exists():
        found = json.loads(latent.read_text())
        keys = ("claim", "section", "paper", "ours", "agrees")
        out += [{k: row[k] for k in keys} for row in found["claims"]]
    return sorted(out, key=lambda row: [part.strip() for part in row["section"].split(",")])


if __name__ == "__main__":
    parser = job_parser(__doc__, "infocnf_work")
    parser.add_argument("--group", help="only the tasks whose names begin with one of these, separated by commas")
    parser.add_argument("--claims", action="store_true", help="write results/infocnf.json anew from results/infocnf_runs.json")
    args = parser.parse_args()
    todo = tasks()
    if args.group:
        todo = {name: task for name, task in todo.items() if name.startswith(tuple(args.group.split(",")))}
    if args.claims:
        stored = json.loads((RESULTS/"infocnf_runs.json").read_text())
        write(RESULTS/"infocnf.json", stored["meta"], claims(Runs({row["task"]: row for row in stored["rows"]})))
    elif not args.collect:
        run_tasks(run, todo, args.work, jobs=args.jobs, title="infocnf", progress=False)
    else:
        done = finished(todo, args.work)
        about = meta("python benchmarks/infocnf.py; --collect", seeds=list(SEEDS), packages=("numpy", "scipy", "nflows", "scikit-learn"),
                     epochs=EPOCHS, early=EARLY, batch=BATCH, lr=LR, plain_lr=PLAIN_LR, alpha=ALPHA, beta=BETA, fixed=FIXED, tuned=TUNED,
                     digits=DIGITS, mnist=MNIST, planned=len(todo))
        write(RESULTS/"infocnf_runs.json", about, [{"task": name, **todo[name], **result} for name, result in done.items()])
        write(RESULTS/"infocnf.json", about, claims(Runs(done)))
