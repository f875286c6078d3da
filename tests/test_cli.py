"""`autonf` as a process: what it prints, what it leaves, how it ends."""
import inspect
import json
import os
import shlex
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest

from autonf_nb import AutoNF
from autonf_nb import cli
from autonf_nb.data import plane_set, read_table, write_table

SMALL = "--steps 10 --n_layers 2 --hidden_features 8 --batch_size 64 --candidates MAF,RQ-C,NULL --lam 0.001".split()


@pytest.fixture(scope="session")
def run(root):
    "Run a command line, or Python code, as a process of its own."
    def run(*argv, code=None, **options):
        command = ["-c", code] if code else ["-m", "autonf_nb.cli", *map(str, argv)]
        return subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300, cwd=options.pop("cwd", root),
                              env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}, **options)
    return run


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    d = tmp_path_factory.mktemp("data")
    X = np.c_[plane_set("two_moons", 300)*[2, 50], np.exp(np.random.default_rng(0).standard_normal(300))]
    for ext in (".csv", ".parquet", ".npy", ".npz"):
        write_table(X, ("a", "b", "c"), d/f"moons{ext}")
    return d


@pytest.fixture(scope="module")
def found(run, data, tmp_path_factory):
    "One search as a process: its folder and what it said."
    out = tmp_path_factory.mktemp("found")/"out"
    return out, run("search", data/"moons.csv", "--out", out, "--bounds", "c=0:", *SMALL)


def test_help_does_not_import_torch(run):
    code = """
import sys, io, contextlib
from autonf_nb.cli import main
said = io.StringIO()
for argv in (["--help"], ["search", "--help"], ["--version"]):
    try:
        with contextlib.redirect_stdout(said): main(argv)
    except SystemExit as e: assert not e.code
heavy = {"torch", "nflows", "sklearn", "pandas", "matplotlib"} & set(sys.modules)
assert not heavy, heavy
print(said.getvalue())
"""
    done = run(code=code)
    assert done.returncode == 0, done.stderr
    assert all(word in done.stdout for word in ("search", "evaluate", "sample", "--n_layers", "--lam", "gas_turbine"))


def test_command_again_is_the_command(tmp_path, monkeypatch):
    "What a report tells to run is parsed into the options of the search it tells of."
    monkeypatch.chdir(tmp_path)
    given = ["search", "my data.csv", "--out", "my out", "--lam", "0.5", "--candidates", "MAF,RQ-C,NULL", "--cost", "MAF=1,RQ-C=2,NULL=0",
             "--bounds", "a b=-1:", "--bounds", "c=0.1:2", "--context", "d,e f", "--dequantize", "--max_seconds", "9", "--compare"]
    job = cli.open_job(cli.parse(given), given)
    assert job.command == "autonf " + shlex.join(given)
    words = shlex.split(cli.command_again(job))
    other = cli.open_job(cli.parse(words[1:]), words[1:])
    assert other.options == job.options and other.data == job.data == str(tmp_path/"my data.csv") and other.out.name == "my out_again"


def test_an_error_of_the_system_names_the_file_and_what_to_do(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as caught:
        open(tmp_path / "file" / "none")
    assert cli._sentence(caught.value) == (f"{tmp_path / 'file' / 'none'} cannot be used (Not a directory): check the path and its "
                                           "permissions, or make room")


def test_options_are_the_estimator_s_arguments():
    parameters = inspect.signature(AutoNF).parameters
    expected = {name: p.default for name, p in parameters.items() if name not in ("bounds", "verbose")}
    assert {name: o.default for name, o in cli.OPTIONS.items()} == expected


def test_search_leaves_a_folder(found):
    out, done = found
    assert done.returncode == 0, done.stderr
    assert {p.name for p in out.iterdir()} == {"flow.safetensors", "config.json", "metrics.json", "history.json", "report.html",
                                               "run.json", "figures"}
    assert done.stderr.count(" left") == 2 and "100%" in done.stderr   # no terminal: the bar stands at the beginning and at the end
    assert "flow found" in done.stdout and "Gaussian mixture" in done.stdout and str(out) in done.stdout
    metrics = json.loads((out/"metrics.json").read_text())
    assert [m["kind"] for m in metrics["models"]] == ["found", "reference", "reference"]
    assert metrics["meta"]["data"]["rows"] == {"train": 240, "val": 30, "test": 30}
    assert len(list((out/"figures").glob("*.png"))) >= 3 and "<html" in (out/"report.html").read_text()[:500]


def test_metrics_are_those_of_the_flow_on_the_test_rows(found, data):
    from autonf_nb.data import split_rows
    out, _ = found
    est, X = AutoNF.load(out), read_table(data/"moons.csv").X
    model = json.loads((out/"metrics.json").read_text())["models"][0]
    test = X[split_rows(len(X), 0).test]
    assert model["nll"] == pytest.approx(-est.standard_log_prob(test).mean(), abs=1e-9)
    assert model["nll_data_units"] == pytest.approx(-est.score(test), abs=1e-9)
    assert model["fom1"] == pytest.approx(model["nll"] + 0.001*est.cost_)


def test_evaluate_and_sample(run, found, data, tmp_path):
    out, _ = found
    done = run("evaluate", out, data/"moons.csv", "--out", tmp_path/"rows.csv")
    assert done.returncode == 0, done.stderr
    est, X = AutoNF.load(out), read_table(data/"moons.csv").X
    said = json.loads(done.stdout)
    assert said["rows"] == 300 and said["nll_data_units"] == pytest.approx(-est.score(X))
    assert said["architecture"] == list(est.architecture_)
    assert read_table(tmp_path/"rows.csv").X[:, 0] == pytest.approx(est.log_prob(X), abs=1e-12)
    assert cli.main(["sample", str(out), "-n", "7", "--out", str(tmp_path/"drawn.parquet"), "--seed", "3"]) == 0
    drawn = pd.read_parquet(tmp_path/"drawn.parquet")
    assert list(drawn.columns) == ["a", "b", "c"] and drawn.to_numpy() == pytest.approx(est.sample(7, seed=3), abs=0)


def test_an_error_is_one_sentence_and_exit_2(run, data, tmp_path):
    done = run("search", data/"moons.csv", "--out", tmp_path/"out", "--lam", "-1")
    assert done.returncode == 2 and done.stdout == "" and not (tmp_path/"out").exists()
    assert done.stderr.startswith("autonf search: error: lam ") and done.stderr.count("\n") == 1


def test_interrupt_says_how_to_go_on(root, data, tmp_path):
    out = tmp_path/"my out"
    process = subprocess.Popen([sys.executable, "-m", "autonf_nb.cli", "search", str(data/"moons.csv"), "--out", str(out), "--quiet",
                                "--batch_size", "64"], cwd=root, env=os.environ | {"OMP_NUM_THREADS": "1"},
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                               # a test run in the background of a shell hands on an ignored SIGINT
                               preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
    while not (out/"checkpoint"/"run.json").exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and f"autonf search --resume --out '{out}'" in err and "Traceback" not in err


@pytest.mark.parametrize("ext", [".parquet", ".npy", ".npz"])
def test_formats_and_context(data, tmp_path, capsys, ext):
    context, small = ("x2" if ext == ".npy" else "c"), [*SMALL, "--quiet"]
    assert cli.main(["search", str(data/f"moons{ext}"), "--out", str(tmp_path/"out"), "--context", context, *small]) == 0
    est = AutoNF.load(tmp_path/"out")
    assert est.n_features_in_ == 2 and est.context_columns_ == (context,)
    assert cli.main(["evaluate", str(tmp_path/"out"), str(data/f"moons{ext}")]) == 0
    assert cli.main(["sample", str(tmp_path/"out"), "-n", "3", "--context", "1.5", "--out", str(tmp_path/f"s{ext}")]) == 0
    assert read_table(tmp_path/f"s{ext}").X.shape == (3, 2)
    capsys.readouterr()


def test_compare_trains_stacks(data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(cli, "STACKS", (1, 2))
    argv = ["search", str(data/"moons.csv"), "--out", str(tmp_path/"out"), "--compare", "--dequantize", *SMALL, "--quiet"]
    assert cli.main(argv) == 0
    models = json.loads((tmp_path/"out"/"metrics.json").read_text())["models"]
    stacks = {m["name"]: m for m in models if m["kind"] == "stack"}
    mine = next(m for m in models if m["kind"] == "variant")      # the architecture found, trained as the stacks
    assert mine["cost"] == pytest.approx(models[0]["cost"]) and mine["layers"] == models[0]["layers"]
    assert set(stacks) == {"MAF x 1", "MAF x 2", "RQ-C x 1", "RQ-C x 2"}
    assert stacks["MAF x 2"]["cost"] == pytest.approx(2*stacks["MAF x 1"]["cost"]) and stacks["MAF x 2"]["layers"] == 2
    assert "MAF x 2" in capsys.readouterr().out and not (tmp_path/"out"/"checkpoint").exists()


def test_ties_are_warned_of(tmp_path, capsys):
    X = plane_set("two_moons", 300)
    write_table(np.c_[X, np.round(X[:, 0]*3)], ("a", "b", "steps"), tmp_path/"ties.csv")
    assert cli.main(["search", str(tmp_path/"ties.csv"), "--out", str(tmp_path/"out"), *SMALL, "--quiet"]) == 0
    err = capsys.readouterr().err
    assert err.count("warning") == 1 and "'steps'" in err and "dequantize" in err
    assert "'steps'" in json.loads((tmp_path/"out"/"metrics.json").read_text())["warnings"][0]


@pytest.fixture(scope="module")
def front(run, data, tmp_path_factory):
    "A front as a process: its folder and what it said."
    out = tmp_path_factory.mktemp("front")/"out"
    options = [o for o in SMALL if o not in ("--lam", "0.001")]
    return out, run("pareto", data/"moons.csv", "--out", out, "--bounds", "c=0:", *options)


def test_pareto_leaves_flows_and_a_page(run, front, data):
    out, done = front
    assert done.returncode == 0, done.stderr
    stored = json.loads((out/"front.json").read_text())
    rows = stored["rows"]
    assert {p.name for p in out.iterdir()} == {"run.json", "front.json", "report.html", "figures", *(r["folder"] for r in rows)}
    assert all(r["folder"] in done.stdout for r in rows) and rows[0]["architecture"] == []
    assert all(a["cost"] < b["cost"] and a["val_nll"] > b["val_nll"] for a, b in zip(rows, rows[1:]))
    last = rows[-1]
    said = json.loads(run("evaluate", out/last["folder"], data/"moons.csv").stdout)
    assert said["architecture"] == last["architecture"] and said["cost"] == last["cost"]
    assert "lam" not in stored["meta"]["search"] and "best for" in (out/"report.html").read_text()


def test_a_front_is_neither_run_twice_nor_gone_on_with_as_a_search(run, front, data):
    out, _ = front
    before = (out/"front.json").read_bytes()
    done = run("pareto", "--out", out, "--resume")
    assert done.returncode == 0 and "is finished" in done.stdout and (out/"front.json").read_bytes() == before
    done = run("search", data/"moons.csv", "--out", out, "--resume")
    assert done.returncode == 2 and "is that of an autonf pareto" in done.stderr


def test_table1_is_kept_as_it_comes(run, tmp_path):
    command = ["table1", "--datasets", "GAS", "--seeds", "0", "--steps", "2", "--jobs", "2", "--out", tmp_path/"t"]
    done = run(*command)
    assert done.returncode == 0, done.stderr
    rows = json.loads((tmp_path/"t"/"table1.json").read_text())["rows"]
    cases = {(r["direction"], r["cost_model"]) for r in rows}
    assert cases == {("density", "flops"), ("density", "paper"), ("sampling", "flops")} and len(rows) == 3 * 6
    wanted = ("dataset", "data", "direction", "model", "architecture", "lam", "nll", "nll_2se", "nll_data_units", "cost", "cost_model",
              "fom1", "density", "gap_to_best_stack", "train_seconds", "seed")
    assert all(r.keys() >= set(wanted) for r in rows) and "| GAS | density, 1 | flops |" in done.stdout
    parts = {p: p.stat().st_mtime_ns for p in (tmp_path/"t"/"parts").iterdir()}
    assert run(*command).returncode == 0 and {p: p.stat().st_mtime_ns for p in (tmp_path/"t"/"parts").iterdir()} == parts


@pytest.mark.parametrize("line, words", [
    ("table1 --datasets GASS", "'GASS' is not one of the paper's data sets"),
    ("table1 --preset half", "there is no preset 'half'"),
    ("table1 --seeds a", "not a list of whole numbers"),
    ("figure2 --dataset protein", "'protein' is not one of the paper's data sets"),
    ("figure3 --jobs 0", "jobs must be a whole number"),
    ("pareto gas_turbine --dequantize --candidates MAF", "add NULL"),
    ("pareto gas_turbine --lam 0.1", "unknown option --lam"),
])
def test_bad_experiments_get_a_sentence(capsys, tmp_path, line, words):
    code, said = cli.main([*line.split(), "--out", str(tmp_path/"out")]), capsys.readouterr().err
    assert code == 2 and words in said and said.count("\n") == 1, said
    assert not list(tmp_path.rglob("*.json"))
