"""Coupling masks on a part of HIGGS: alternating, half, random, evolved, and chosen by a superflow, with and without LU layers.

    python benchmarks/structure.py    # -> results/structure.json; a stopped run goes on

Stacks of four RealNVP or RQ-C layers, 32 hidden units; `bare` ones have no LU layers and no reversals. A seed draws 20,000 rows, their
split, the batches, the weights and the masks. Random search and evolution train as many flows, 24, for 150 steps each; the superflow's two
blocks of two layers take as many layer steps, with five or six masks to choose from in each layer. Then each arm's masks are trained for
800 steps. HIGGS is looked for under AUTONF_DATA; what is there is a part of it."""
import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from nflows.transforms import CompositeTransform

from autonf_nb.candidates import CANDIDATES, Architecture, Candidate, in_coupling, register_candidate, without_bins
from autonf_nb.data import Standardizer, load_dataset, split_rows
from autonf_nb.metrics import nll_with_error
from autonf_nb.parallel import run_tasks
from autonf_nb.search import Prefix, Settings, flow_of, from_scratch, grow, prefix_of
from autonf_nb.strategies import RowTrials
from autonf_nb.structure import alternating_roles, evolve, half_roles, random_roles, roles_of, with_roles
from autonf_nb.training import Rows, Run, one_thread, row_log_prob, train_flow
from autonf_nb.transforms.coupling import AFFINE, Coupling, rational_quadratic
from autonf_nb.transforms.linear import LULinear
from record import RESULTS, meta, write

LAYERS, HIDDEN, ROWS, STEPS, SHORT, TRAININGS, LAM = 4, 32, 20_000, 800, 150, 24, 0.1
KINDS = {"RealNVP": (0,), "RQ-C": (0,), "RealNVP-bare": (0, 1)}   # seeds of each kind; more may be added, what is finished is kept
for name, univariate in (("RealNVP", without_bins(AFFINE)), ("RQ-C", rational_quadratic)):
    register_candidate(Candidate(f"{name}-bare", "the coupling layer alone", in_coupling(univariate), mixing=False))


def rows_of(seed: int) -> tuple[Rows, Rows, Rows]:
    "Standardised training, validation and test rows."
    X = load_dataset("higgs").X
    X = X[np.random.default_rng(seed).permutation(len(X))[:ROWS]]
    split = split_rows(len(X), seed=seed)
    standardizer = Standardizer().fit(X[split.train])
    return tuple(Rows(torch.tensor(standardizer.transform(X[part]), dtype=torch.float32)) for part in (split.train, split.val, split.test))


def fixed(kind: str, features: int) -> list[Architecture]:
    "The stack with alternating masks, and with halves."
    return [with_roles(Architecture([kind] * LAYERS), roles(LAYERS, features)) for roles in (alternating_roles, half_roles)]


def drawn(kind: str, features: int, seed: int) -> list[Architecture]:
    "As many stacks of random masks as evolution trains."
    rng = np.random.default_rng(1000 + seed)
    return [with_roles(Architecture([kind] * LAYERS), random_roles(LAYERS, features, rng)) for _ in range(TRAININGS)]


def choices(kind: str, features: int, seed: int) -> tuple[str, ...]:
    "Six masks of a layer, as candidates: of each sort a pair of opposite ones, which two neighbouring layers may share."
    pairs = [alternating_roles(2, features), half_roles(2, features), random_roles(2, features, np.random.default_rng(seed))]
    return tuple(name for words in pairs for name in with_roles(Architecture([kind] * 2), words))


def by_superflow(s: Settings, kind: str, train: Rows, val: Rows, seed: int) -> Architecture:
    names = dict.fromkeys(choices(kind, train.x.shape[1], seed))
    if CANDIDATES[kind].mixing:   # turned round, the second alternating mask is the first
        names |= dict.fromkeys(f"{kind}[{word}]" for word in alternating_roles(2, train.x.shape[1]))
    m = len(names)
    steps = TRAININGS * SHORT * LAYERS // ((m + m * m) * (LAYERS // 2))
    s = replace(s, candidates=tuple(names), n_layers=LAYERS, block_size=2, steps=round(steps / 0.2))
    return grow(s, train, val, Run())[0][0].architecture


class Heirs(RowTrials):
    "Trials in which a flow goes on from the weights of the one tried whose masks are most like its own; the first eight start afresh."

    def evaluate(self, architecture: Architecture, steps: int) -> tuple[float, float]:
        if len(self.tried) < 8:
            return super().evaluate(architecture, steps)
        s, features = self.settings, self.val.x.shape[1]
        own = roles_of(architecture, features)

        def distance(p: Prefix) -> int:
            return sum(a != b for x, y in zip(own, roles_of(p.architecture, features)) for a, b in zip(x, y))

        parent = min(reversed(self.tried), key=distance)
        layers = list(architecture.build(features, 0, s.hidden_features)._transforms)
        inherit(CompositeTransform(layers), CompositeTransform(parent.layers))
        train_flow(flow_of(layers, self.train), self.train, self.val, steps=steps, batch_size=s.batch_size, seed=s.seed)
        self.tried.append(prefix_of(s, architecture, layers, self.val, steps=steps))
        return self.tried[-1].nll, 0.0


@torch.no_grad()
def inherit(flow: torch.nn.Module, parent: torch.nn.Module) -> None:
    "Copy the parent's weights; of a conditioner's first and last layer those of the features that both read and both move."
    for new, old in zip(flow.modules(), parent.modules()):
        if isinstance(new, Coupling):
            ours, theirs = ([m for m in c.conditioner.modules() if isinstance(m, torch.nn.Linear)] for c in (new, old))
            read = {f: i for i, f in enumerate(old.passing.tolist())}
            moved, n = {f: i for i, f in enumerate(old.transformed.tolist())}, new.univariate.n_params
            ours[0].bias.copy_(theirs[0].bias)
            ours[1].load_state_dict(theirs[1].state_dict())
            for i, f in enumerate(new.passing.tolist()):
                ours[0].weight[:, i] = theirs[0].weight[:, read[f]] if f in read else 0
            for i, f in enumerate(new.transformed.tolist()):
                if f in moved:   # the parameters of a feature stand a number of features apart
                    ours[2].weight.view(n, -1, ours[2].in_features)[:, i] = theirs[2].weight.view(n, -1, ours[2].in_features)[:, moved[f]]
                    ours[2].bias.view(n, -1)[:, i] = theirs[2].bias.view(n, -1)[:, moved[f]]
        elif isinstance(new, LULinear):
            new.load_state_dict(old.state_dict())


def search(kind: str, seed: int, arm: str) -> dict:
    "What an arm tries, in order: masks, validation NLL and cost of each short training; the masks it chose."
    train, val, _ = rows_of(seed)
    s = Settings(hidden_features=HIDDEN, steps=round(SHORT / 0.2), seed=seed, lam=0.0 if arm == "evolved for NLL" else LAM)
    features, start = train.x.shape[1], time.process_time()
    first, short = fixed(kind, features), replace(s, steps=SHORT)
    with one_thread():
        if arm.startswith("evolved"):
            chosen, trials = evolve(s, first[0], train, val, Run(), trainings=TRAININGS, starts=[roles_of(a, features) for a in first],
                                    trials=Heirs if arm == "evolved, inheriting" else RowTrials)
            tried = trials.tried
        else:
            asked = (first if arm == "fixed" else drawn(kind, features, seed) if arm == "random"
                     else [by_superflow(s, kind, train, val, seed)])
            tried = [from_scratch(short, a, train, val, Run()) for a in asked]
            chosen = min(tried, key=lambda p: p.fom1).architecture
    return {"chosen": list(chosen), "nll": [p.nll for p in tried], "cost": [p.cost for p in tried],
            "seconds": time.process_time() - start, "tried": [list(p.architecture) for p in tried]}


def train(seed: int, architecture: list[str]) -> dict:
    "The flow with these masks, trained for long."
    train_rows, val, test = rows_of(seed)
    start = time.process_time()
    with one_thread():
        p = from_scratch(Settings(hidden_features=HIDDEN, steps=STEPS, seed=seed), Architecture(architecture), train_rows, val, Run())
        flow = flow_of(p.layers, test).eval()
        nll, error = nll_with_error(row_log_prob(flow, test))
    return {"val_nll": p.nll, "test_nll": nll, "test_2se": error, "cost": p.cost, "params": sum(q.numel() for q in flow.parameters()),
            "curve": p.training["val_nll"], "steps": p.training["step"], "roles": roles_of(p.architecture, test.x.shape[1]),
            "seconds": time.process_time() - start}


ARMS = ("fixed", "random", "evolved", "evolved for NLL", "superflow", "evolved, inheriting")
FIXED = ("alternating", "half")


def has(kind: str, arm: str) -> bool:
    "At this lambda the cost of an affine layer's masks hardly counts, so its evolution for NLL alone would be the same again."
    return arm != "evolved for NLL" or kind.startswith("RQ-C")


def run_cell(seed: int, kind: str, work: Path, jobs: int) -> tuple[list[dict], list[dict]]:
    "All arms of one kind of stack and one seed: a row for each long training, and for each search the figures of what it tried."
    what, arms = {"kind": kind, "seed": seed}, [arm for arm in ARMS if has(kind, arm)]
    searches = run_tasks(search, {f"{kind}, {arm}, seed {seed}": what | {"arm": arm} for arm in arms}, work/"searches", jobs=jobs,
                         title=f"{kind}, seed {seed}: searches")
    chosen = {}
    for arm, part in zip(arms, searches.values()):
        chosen |= dict(zip(FIXED, part["tried"])) if arm == "fixed" else {arm: part["chosen"]}
    flows = run_tasks(train, {f"{kind}, {arm}, seed {seed}": {"seed": seed, "architecture": a} for arm, a in chosen.items()}, work/"flows",
                      jobs=jobs, title=f"{kind}, seed {seed}: long trainings")
    return ([what | {"arm": arm} | part for arm, part in zip(chosen, flows.values())],
            [what | {"arm": arm} | {k: part[k] for k in ("nll", "cost", "seconds")} for arm, part in zip(arms, searches.values())])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("structure_work"), help="folder of the finished trainings")
    args = parser.parse_args()
    cells = [run_cell(seed, kind, args.work, args.jobs) for kind, seeds in KINDS.items() for seed in seeds]
    seeds = sorted({seed for seeds in KINDS.values() for seed in seeds})
    about = meta("python benchmarks/structure.py", seeds=seeds, packages=("numpy",), data=load_dataset("higgs").note, kinds=KINDS,
                 layers=LAYERS, hidden_features=HIDDEN, rows=ROWS, steps=STEPS, short_steps=SHORT, trainings=TRAININGS, lam=LAM)
    rows, searches = ([row for cell in cells for row in cell[i]] for i in (0, 1))
    write(RESULTS/"structure.json", about, rows, searches=searches)
