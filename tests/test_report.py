"""The page of a search, from real histories of every kind of search."""

import json
import os
import re
import shlex
import subprocess
import sys
from html import unescape
from pathlib import Path

import numpy as np
import pytest
import torch

from autonf_nb.metrics import calibration
from autonf_nb.report import _judged, number, page, write_report
from autonf_nb.search import RECIPES, search_flow
from autonf_nb.strategies import STRATEGIES


def summary_of(result, columns, options):
    found = {"name": "AutoNF", "kind": "found", "nll": result.nll_val, "nll_2se": 0.1, "cost": result.cost}
    plain = {"name": "Gaussian", "kind": "reference", "nll": result.nll_val + 1, "nll_2se": 0.1}
    return {"data": {"name": "made up", "columns": columns, "rows": {"train": 200, "val": 50}, "held_out": "val", "log_abs_det": 0.5},
            "search": options, "flow": {"architecture": list(result.architecture), "cost": result.cost}, "models": [found, plain],
            "history": result.history, "seconds": result.seconds, "notes": result.notes}


@pytest.mark.parametrize("strategy", [*filter(RECIPES.get, STRATEGIES), "evolution", "op2-sampled"])
@pytest.mark.parametrize("features, lam, candidates", [(2, 0.01, ("MAF", "RealNVP", "NULL")), (1, 100.0, ("RealNVP", "NULL")),
                                                       (2, 0.01, ("RealNVP", "RQ-C"))])
def test_every_history_makes_a_page(strategy, features, lam, candidates, tmp_path):
    x = torch.randn(250, features, generator=torch.Generator().manual_seed(0))
    options = dict(candidates=candidates, n_layers=2, lam=lam, strategy=strategy, steps=10, hidden_features=8, batch_size=32, seed=0)
    result = search_flow(x[:200], x[200:], progress=False, **options)
    path = write_report(tmp_path / "out", summary_of(result, [f"c{i}" for i in range(features)], options))
    text = path.read_text()
    assert "Why this one" in text and ("Block 1" in text) == (strategy in RECIPES)
    assert json.loads((path.parent / "metrics.json").read_text())["flow"]["architecture"] == list(result.architecture)
    assert json.loads((path.parent / "history.json").read_text()).keys() == result.history.keys()
    assert not list(path.parent.rglob("*.part"))


def test_page_asks_nothing_of_the_network():
    bare = {"data": {"name": "x", "columns": ["a", "b"], "rows": {"train": 10}}, "search": {"lam": 0.1},
            "flow": {"architecture": [], "cost": 0.0}, "models": [{"name": "AutoNF", "kind": "found", "nll": 1.0, "nll_2se": 0.1}],
            "samples": {"data": np.random.default_rng(0).normal(size=(50, 2)), "flow": np.zeros((50, 2))}}
    html, pictures = page(bare)
    links = re.findall(r'(?:src|srcset|href)="([^"]*)"', html)
    assert len(links) == 2 * len(pictures) and all(link.startswith("data:image/png;base64,") for link in links)
    assert "default-src 'none'" in html and 'name="viewport"' in html and "prefers-color-scheme:dark" in html and "@media print" in html


NAMES = ["<b>x&y</b>", "$a_1$ and $b", "温度 🌡️", "t" * 80]


@pytest.fixture(scope="module")
def searched(tmp_path_factory):
    "A small search with all that a report can hold: stacks beside it, bounds, ties, odd names. Its folder."
    from autonf_nb import cli
    from autonf_nb.data import plane_set, write_table

    home, rng = tmp_path_factory.mktemp("a home"), np.random.default_rng(0)
    moons = plane_set("two_moons", 400)
    table = write_table(np.c_[moons, np.exp(moons[:, 0] + rng.normal(size=400)), np.round(3 * moons[:, 1])], NAMES, home / "my table.csv")
    keep, cli.STACKS = cli.STACKS, (1, 2)
    options = "--steps 30 --n_layers 2 --hidden_features 8 --batch_size 64 --candidates MAF,RQ-C,NULL --lam 0.01 --compare --dequantize"
    try:
        code = cli.main(["search", str(table), "--out", str(home / "my flow"), "--bounds", f"{NAMES[2]}=0:", *options.split(), "--quiet"])
    finally:
        cli.STACKS = keep
    assert code == 0
    return home / "my flow"


def test_report_has_all_that_is_asked_of_it(searched):
    html = (searched / "report.html").read_text()
    text, metrics = re.sub(r"\s+", " ", unescape(re.sub(r"<[^>]+>", " ", html))), json.loads((searched / "metrics.json").read_text())
    found = metrics["models"][0]
    shown = ["The flow found", f"{found['cost']:.2f} cost, density direction", "flops: operations for a row", "The words on this page",
             "Nats a row", number(found["nll"]), f"± {number(found['nll_2se'])}", "Gaussian mixture", "AutoNF from scratch",
             "MAF x 2", "RQ-C x 1", "The Pareto front", "Block 1", "samples of the flow", "Calibration", "Load and use it",
             "To get it again", *NAMES, "Checksum", "sha256", "scikit-learn",
             *(f"{k} " for k in metrics["meta"]["search"] if k != "verbose")]
    assert not [words for words in shown if words not in text]
    kinds = {m["kind"] for m in metrics["models"]}
    assert kinds == {"found", "reference", "variant", "stack"} and all("gap_2se" in m for m in metrics["models"][1:])
    assert {p.stem for p in (searched / "figures").iterdir()} >= {"models", "tradeoff", "weights_block_1", "training", "marginals_1",
                                                                  "pair", "calibration"}
    assert html.count("<figcaption>") == html.count("<figure>") and all(alt for alt in re.findall('alt="([^"]*)"', html))


def test_nll_in_the_data_s_units_differs_as_the_report_says(searched):
    metrics = json.loads((searched / "metrics.json").read_text())
    shift = -metrics["meta"]["data"]["log_abs_det"]     # with bounds: the mean over the test rows
    assert all(m["nll_data_units"] - m["nll"] == pytest.approx(shift, abs=1e-9) for m in metrics["models"])


def test_the_flow_from_scratch_is_trained_as_a_stack(searched):
    "So that a flow found that is itself a stack has the very figures of that stack."
    models = {m["name"]: m for m in json.loads((searched / "metrics.json").read_text())["models"]}
    architecture = models["AutoNF"]["detail"].split(" > ")
    stack = models.get(f"{architecture[0]} x {len(architecture)}")
    assert models["AutoNF from scratch"]["cost"] == pytest.approx(models["AutoNF"]["cost"])
    assert len(set(architecture)) == 1, "the search found another flow than a stack: give it other options"
    assert stack["nll"] == models["AutoNF from scratch"]["nll"] and stack["gap_2se"] == 0 < models["Gaussian"]["gap_2se"]


def _blocks(searched):
    return [unescape(code) for code in re.findall(r"<pre[^>]*>(.*?)</pre>", (searched / "report.html").read_text(), re.S)]


def _run(*argv, cwd):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*map(str, argv)], cwd=cwd, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_code_of_the_report_runs_where_it_is_pasted(searched, tmp_path):
    python, shell, _ = _blocks(searched)
    assert len([line for line in python.splitlines() if line]) == 4       # the import and three lines
    assert _run(sys.executable, "-c", python + "\nprint(X.shape, est.log_prob(X).shape)", cwd=tmp_path) == "(1000, 4) (1000,)\n"
    new = tmp_path / "new.csv"
    new.write_bytes((searched.parent / "my table.csv").read_bytes())
    for line in shell.splitlines():
        assert line.startswith("autonf ")
        _run(sys.executable, "-m", "autonf_nb.cli", *shlex.split(line)[1:], cwd=tmp_path)
    assert (tmp_path / "drawn.csv").exists()


def test_command_of_the_report_gives_the_same_figures(searched, tmp_path, monkeypatch, capsys):
    from autonf_nb import cli

    *_, command = _blocks(searched)
    argv = shlex.split(command)
    assert argv[:2] == ["autonf", "search"] and argv[3:5] == ["--out", "my flow_again"] and Path(argv[2]).is_absolute()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "STACKS", (1, 2))
    assert cli.main([*argv[1:], "--quiet"]) == 0
    first, second = (json.loads((out / "metrics.json").read_text()) for out in (searched, tmp_path / "my flow_again"))
    assert all(second[key] == first[key] for key in ("flow", "models", "tried", "marginal_ks", "calibration"))
    checksums = {m["meta"]["data"]["checksum"] for m in (first, second)}
    assert len(checksums) == 1


def test_a_report_for_a_conditional_flow_can_be_pasted_too(tmp_path, capsys):
    from autonf_nb import cli
    from autonf_nb.data import plane_set, write_table

    X = plane_set("two_moons", 300)
    table = write_table(np.c_[X, X[:, 0] ** 2 + 0.1 * np.random.default_rng(0).normal(size=300)], ("a", "b", "c"), tmp_path / "t.csv")
    options = "--steps 5 --n_layers 1 --hidden_features 4 --batch_size 64 --candidates MAF --context c --quiet"
    assert cli.main(["search", str(table), "--out", str(tmp_path / "out"), *options.split()]) == 0
    python, shell, _ = _blocks(tmp_path / "out")
    code = python + "\nprint(X.shape, est.log_prob(X, [[0.5]] * 1000).shape)"
    assert _run(sys.executable, "-c", code, cwd=tmp_path) == "(1000, 2) (1000,)\n"
    assert "--context" in shell and "marginals_1" in {p.stem for p in (tmp_path / "out" / "figures").iterdir()}
    assert "given c" in (tmp_path / "out" / "report.html").read_text()


def test_a_full_disk_leaves_the_old_report_and_says_where(searched, tmp_path, monkeypatch):
    import shutil

    from autonf_nb import estimator

    out = shutil.copytree(searched, tmp_path / "out")
    before = {p: p.read_bytes() for p in out.rglob("*.*") if p.is_file()}

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(estimator.os, "fsync", full)
    summary = {"data": {"name": "x", "columns": ["a"], "rows": {"train": 10}}, "search": {"lam": 0.1},
               "flow": {"architecture": [], "cost": 0.0}, "models": [{"name": "AutoNF", "kind": "found", "nll": 1.0, "nll_2se": 0.1}]}
    with pytest.raises(OSError, match="cannot be written .No space left on device.: choose another folder, or make room"):
        write_report(out, summary)
    assert {p: p.read_bytes() for p in out.rglob("*.*") if p.is_file()} == before


# --- calibration, where the truth is known: rows of normal noise are what a right flow makes of held-out rows

def _says(noise):
    return " ".join(_judged(calibration(noise)))


def test_a_right_flow_is_seldom_called_wrong():
    "Each sentence is to be wrong in 1 of 20 cases or fewer: of 200 right flows, seed 0, at most 20 (p < 0.001 for more)."
    rng = np.random.default_rng(0)
    said = [_says(rng.normal(size=(500, 4))) for _ in range(200)]
    assert sum("Over all" in s and "what chance does to a right flow" not in s for s in said) <= 20
    assert sum("None of the 4 features" not in s for s in said) <= 20 and sum("very rare rows" in s for s in said) <= 20


WRONG = {
    "too narrow": (lambda rng: 1.2 * rng.normal(size=(2000, 3)), "too sure of itself"),
    "too wide": (lambda rng: 0.85 * rng.normal(size=(2000, 3)), "not sure enough of itself"),
    "heavy tails": (lambda rng: rng.standard_t(4, size=(2000, 3)) / np.sqrt(2), "very rare rows are commoner"),       # variance 1
    "one feature of ten shifted": (lambda rng: rng.normal(size=(2000, 10)) + 0.3 * np.eye(10)[4], "1 of the 10 features of the noise"),
}


@pytest.mark.parametrize("noise, words", WRONG.values(), ids=WRONG)
def test_what_is_wrong_is_said(noise, words):
    assert words in _says(noise(np.random.default_rng(0)))


def test_shares_of_the_regions_are_those_of_the_truth():
    "Noise 1.5 times too wide in two dimensions: the region of 90 holds 1 - 0.1^(1/1.5^2) of the rows; 20,000 of them, error 0.3 %."
    noise = 1.5 * np.random.default_rng(0).normal(size=(20000, 2))
    html, _ = page({"data": {"name": "x", "columns": ["a", "b"], "rows": {"train": 10}}, "search": {}, "noise": noise,
                    "flow": {"architecture": [], "cost": 0.0}, "models": [{"name": "AutoNF", "kind": "found", "nll": 1.0}]})
    said = float(re.search(r"([\d.]+) in that of 90", html)[1])
    assert said == pytest.approx(100 * (1 - 0.1 ** (1 / 1.5**2)), abs=1.5)
