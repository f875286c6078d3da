"""Spirals, fitted and extrapolated by a latent ODE with and without the partitioned code (InfoCNF paper, section 4.6).

    python benchmarks/latent_ode.py [--jobs 2]     # minutes a training; a stopped one goes on where it was
    python benchmarks/latent_ode.py --tune         # three learning rates, three beta, on windows of their own
    python benchmarks/latent_ode.py --collect      # -> results/latent_ode.json
    python benchmarks/latent_ode.py --paper        # the paper's 20,000 epochs, hours a training, in a folder and a file of their own

Each seed draws its own 5,000 training windows, weights and noise; both models get the same windows, batches, steps and learning rate. All
are judged on the same 1,000 other windows. Errors are root mean squares per coordinate against the truth without noise."""
import math
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from autonf_nb.latent_ode import (A, B, BETA, BEYOND, FIRST, LAST, NOISE, PAPER, STEP, WINDOW, LatentODE, Windows, draw_windows, hold,
                                  predict_labels, rmse, scores, squared_errors, train_latent_ode, trajectory)
from autonf_nb.parallel import run_tasks
from autonf_nb.training import Run, one_thread, seeded
from record import RESULTS, finished, job_parser, meta, write

SEEDS, TEST_SEED, TEST = (0, 1, 2, 3, 4, 5), 10_000, 1000
TUNE_SEED, TUNE_EPOCHS = 100, 25
FAST = {"epochs": 100, "batch_size": 125, "lr": 1e-2, "final": 0.1}
OFFSETS = torch.arange(-BEYOND, WINDOW + BEYOND)
KEPT = slice(0, None, 10)  # of 600 offsets, for the figures
CLAIMS = {"fit": "LatentODE with the partitioned code outperforms the baseline in trajectory fitting",
          "beyond": "LatentODE with the partitioned code outperforms the baseline in extrapolation",
          "unseen": "... especially in unseen domains"}


@cache
def test_windows() -> Windows:
    return draw_windows(TEST, TEST_SEED)


@cache
def examples() -> list[int]:
    "The first two test windows of either direction that have 200 points on both sides."
    w = test_windows()
    whole = (w.start <= 1000 - WINDOW - BEYOND).tolist()
    return [[i for i in range(TEST) if whole[i] and w.y[i, 2] == sign][k] for sign in (1, -1) for k in (0, 1)]


def rounded(points: Tensor) -> list[list[float]]:
    return [[round(v, 3) for v in p] for p in points.tolist()]


def by_offset(curves: Tensor) -> dict[str, list]:
    "Root mean squared error by offset from the window's first point: all, and by direction."
    e, clockwise = squared_errors(curves, test_windows()), test_windows().y[:, 2] > 0
    groups = {"all": e, "clockwise": e[clockwise], "counter-clockwise": e[~clockwise]}
    lines = {name: part.nanmean(0).sqrt()[KEPT].tolist() for name, part in groups.items()}
    return {"offset": OFFSETS[KEPT].tolist(), **{name: [round(v, 4) for v in line] for name, line in lines.items()}}


def judged(curves: Tensor) -> dict[str, float]:
    w = test_windows()
    out = scores(curves, w)
    for name, sign in (("clockwise", 1), ("counter-clockwise", -1)):
        e = squared_errors(curves, w)[w.y[:, 2] == sign]
        out |= {f"fit, {name}": rmse(e[:, BEYOND:-BEYOND]), f"beyond, {name}": rmse(torch.cat([e[:, :BEYOND], e[:, -BEYOND:]], 1))}
    return {k: round(v, 4) for k, v in out.items()}


def explained(y: Tensor, w: Windows) -> dict[str, float]:
    "Share of the variance of a and b that predictions `(n, 2)` explain: all, and by direction of the spiral."
    shares = {}
    for where, mine in (("", w.y[:, 2] != 0), (", clockwise", w.y[:, 2] > 0), (", counter-clockwise", w.y[:, 2] < 0)):
        left = 1 - (y - w.y[:, :2])[mine].square().mean(0) / w.y[mine, :2].var(0)
        shares |= {f"explained {name}{where}": round(float(v), 3) for name, v in zip("ab", left)}
    return shares


def labels_found(model: LatentODE) -> dict[str, float]:
    "Share of the variance of a and b that is predicted, and the share of directions that are right."
    w = test_windows()
    y = predict_labels(model, w.x)
    return explained(y[:, :2], w) | {"directions": float((y[:, 2] * w.y[:, 2] > 0).float().mean())}


def watched(model: LatentODE) -> dict[str, float]:
    w = test_windows()
    return scores(trajectory(model, w.x, BEYOND, BEYOND), w) | (labels_found(model) if model.partitioned else {})


def training(partitioned: bool, seed: int, beta: float, schedule: dict, folder: str) -> dict:
    with one_thread(), seeded(seed):
        model = LatentODE(partitioned)
        with Run(Path(folder)/f"partitioned {partitioned}, beta {beta:g}, seed {seed}", save_every=30) as run:
            run.folder.mkdir(parents=True, exist_ok=True)
            records = train_latent_ode(model, draw_windows(seed=seed), beta=beta, seed=seed, watch=watched, run=run, **schedule)
            seconds = run.seconds
            model.save(run.folder/"model")
        curves = trajectory(model, test_windows().x, BEYOND, BEYOND)
        model.stride = 1
        finer = trajectory(model, test_windows().x, BEYOND, BEYOND)
    solver = rmse((curves - finer).square().mean(2).where(test_windows().truth(OFFSETS)[1], math.nan))
    return {"seconds": seconds, "solver": solver, **judged(curves), **(labels_found(model) if partitioned else {}), "history": records,
            "by_offset": by_offset(curves), "curves": [rounded(curves[i, ::5]) for i in examples()]}


def tried(partitioned: bool, lr: float, beta: float) -> dict[str, float]:
    "Errors after a short training, on windows that nothing else sees."
    w = draw_windows(TEST, TEST_SEED + TUNE_SEED)
    with one_thread(), seeded(TUNE_SEED):
        model = LatentODE(partitioned)
        train_latent_ode(model, draw_windows(seed=TUNE_SEED), beta=beta, seed=TUNE_SEED, **FAST | {"epochs": TUNE_EPOCHS, "lr": lr})
    return {k: round(v, 4) for k, v in scores(trajectory(model, w.x, BEYOND, BEYOND), w).items()}


def equations(w: Windows, iterations: int = 8) -> tuple[Tensor, dict[str, float]]:
    """Curves `(n, 600, 2)` of the most likely a, b and first point given the window, by Gauss-Newton from the truth on, in float64; and
    the share of the variance of a and b that they explain."""
    prior, offsets = torch.tensor([1.0, 1.0, 0.0]).double(), OFFSETS.double()

    def curve(theta: Tensor, clockwise: Tensor, offsets: Tensor) -> Tensor:
        t = FIRST + (theta[2] + offsets) * STEP
        t = torch.where(clockwise, FIRST + LAST - t, t).clamp_min(0.5)
        radius = A[0] + A[1] * theta[0] + (B[0] + B[1] * theta[1]) * torch.where(clockwise, 50 / t, t)
        return torch.stack([radius * t.cos() + torch.where(clockwise, -5.0, 5.0), radius * t.sin()], -1)

    window = partial(curve, offsets=torch.arange(WINDOW).double())
    slope = torch.vmap(torch.func.jacfwd(window))
    x, clockwise = w.x.double(), w.y[:, 2] > 0
    theta = torch.cat([w.y[:, :2].double(), w.start[:, None].double()], 1)
    for _ in range(iterations):
        J = slope(theta, clockwise).flatten(1, 2) / NOISE
        residual = (x - torch.vmap(window)(theta, clockwise)).flatten(1) / NOISE
        normal = J.mT @ J + torch.diag(prior)
        theta = theta + torch.linalg.solve(normal, (J.mT @ residual[..., None])[..., 0] - prior * theta)
    return torch.vmap(partial(curve, offsets=offsets))(theta, clockwise).float(), explained(theta[:, :2], w)


def verdict(rows: list[dict], key: str) -> dict:
    "A claim and what we found: 'yes' or 'no' where the 95 % interval of the mean gain over seeds (paired, Student's t) says so."
    found = {p: {r["seed"]: r[key] for r in rows if r["partitioned"] == p} for p in (True, False)}
    seeds = sorted(found[True].keys() & found[False].keys())
    gains = np.array([found[False][s] - found[True][s] for s in seeds])
    reach = stats.t.ppf(0.975, len(seeds) - 1) * gains.std(ddof=1) / len(seeds)**0.5
    agrees = "yes" if gains.mean() > reach else "no" if gains.mean() < -reach else "undecided"
    shown = ", ".join(f"{found[True][s]:.2f} against {found[False][s]:.2f}" for s in seeds)
    return {"claim": CLAIMS[key], "section": "4.6", "paper": "outperforms, no numbers given", "key": key, "gain": float(gains.mean()),
            "reach": float(reach), "agrees": agrees,
            "ours": f"error with against without, by seed: {shown}; gain {gains.mean():.2f} ± {reach:.2f}"}


def tasks(schedule: dict, folder: Path) -> dict[str, dict]:
    return {f"{'with' if partitioned else 'without'} partition, seed {seed}":
            dict(partitioned=partitioned, seed=seed, beta=BETA, schedule=schedule, folder=str(folder))
            for seed in SEEDS for partitioned in (False, True)}


def tunings() -> dict[str, dict]:
    grid = [(p, lr, BETA) for lr in (0.01, 0.005, 0.02) for p in (False, True)] + [(True, 0.01, 0.1 * BETA), (True, 0.01, 10 * BETA)]
    return {f"{'with' if p else 'without'} partition, lr {lr}, beta {beta:g}": dict(partitioned=p, lr=lr, beta=beta)
            for p, lr, beta in grid}


if __name__ == "__main__":
    parser = job_parser(__doc__, "latent_ode_work")
    parser.add_argument("--paper", action="store_true", help="the paper's schedule")
    parser.add_argument("--tune", action="store_true", help="short trainings with other learning rates and beta")
    args = parser.parse_args()
    schedule, work = (PAPER, args.work.with_name(f"{args.work.name}_paper")) if args.paper else (FAST, args.work)
    if args.tune:
        run_tasks(tried, tunings(), args.work/"tuning", jobs=args.jobs, title="tuning")
    elif not args.collect:
        run_tasks(training, tasks(schedule, work), work, jobs=args.jobs, title="latent ODEs")
    else:
        done, w = finished(tasks(schedule, work), work), test_windows()
        rows = [{"task": name, **{k: task[k] for k in ("partitioned", "seed", "beta")}, **done[name]}
                for name, task in tasks(schedule, work).items() if name in done]
        found, shares = equations(w)
        others = {name: judged(curves) | {"by_offset": by_offset(curves)} for name, curves in (("hold", hold(w.x)), ("equations", found))}
        others["equations"] |= shares
        whole, _ = w.truth(OFFSETS[::5])
        shown = [{"start": int(w.start[i]), "x": rounded(w.x[i]), "truth": rounded(whole[i])} for i in examples()]
        about = meta("python benchmarks/latent_ode.py; --collect" + " --paper" * args.paper, seeds=list(SEEDS), packages=("numpy", "scipy"),
                     **schedule, beta=BETA, test_windows=TEST, planned=len(tasks(schedule, work)))
        tuned = [{**tunings()[name], **found} for name, found in finished(tunings(), args.work/"tuning").items()]
        write(RESULTS/("latent_ode_paper.json" if args.paper else "latent_ode.json"), about, rows, others=others, examples=shown,
              tuning={"seed": TUNE_SEED, "epochs": TUNE_EPOCHS, "rows": tuned},
              claims=[verdict(rows, key) for key in CLAIMS] if len(rows) == len(tasks(schedule, work)) else [])
