"""A search killed with SIGKILL at three points and gone on with each time ends as an undisturbed one: same files, same figures."""
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from autonf_nb import AutoNF
from autonf_nb.cli import main
from autonf_nb.data import plane_set, write_table

# a checkpoint after every step (not every five seconds), so that each kill falls inside a stage
PROGRAM = """
import sys
from autonf_nb.training import Run
init = Run.__init__
Run.__init__ = lambda self, *args, **options: init(self, *args, **options | {"save_every": 0.0})
from autonf_nb.cli import main
sys.exit(main(sys.argv[1:]))
"""
OPTIONS = "--steps 20 --n_layers 1 --hidden_features 8 --batch_size 64 --lam 0.001 --candidates MAF,RQ-C,NULL --quiet".split()


def start(root, *argv):
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, "-c", PROGRAM, *map(str, argv)], env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True)


def kill_when(process, there):
    "SIGKILL as soon as `there()` holds."
    while not there():
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_table(plane_set("two_moons", 300), ("a", "b"), tmp_path_factory.mktemp("data")/"moons.csv")


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")/"out"
    assert main(["search", str(data), "--out", str(out), *OPTIONS]) == 0
    return out


def result(out):
    "All that must not depend on what happened on the way."
    metrics = json.loads((out/"metrics.json").read_text())
    config = json.loads((out/"config.json").read_text())
    figures = {k: metrics[k] for k in ("flow", "models")}
    return figures | {"weights": config["flow_sha256"], "history": config["history"], "nll_val": config["nll_val"]}


def test_killed_three_times_it_ends_the_same(root, data, undisturbed, tmp_path):
    out = tmp_path/"out"
    checkpoint = out/"checkpoint"

    def stages(n):
        return lambda: len(list(checkpoint.glob("*.safetensors"))) >= n

    kill_when(start(root, "search", data, "--out", out, *OPTIONS), stages(1))        # in the first step of the first block's search
    kill_when(start(root, "search", "--resume", "--out", out, "--quiet"), stages(3))  # later, in another training
    assert not (out/"flow.safetensors").exists()
    kill_when(start(root, "search", data, "--resume", "--out", out, *OPTIONS), (out/"flow.safetensors").exists)
    assert json.loads((out/"run.json").read_text())["finished"] is None              # between the flow and its report
    assert main(["search", "--resume", "--out", str(out), "--quiet"]) == 0
    assert result(out) == result(undisturbed)
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in undisturbed.iterdir())
    assert AutoNF.load(out).architecture_ == AutoNF.load(undisturbed).architecture_


def test_killed_before_the_first_file_it_can_be_started_again(data, tmp_path, capsys):
    out = tmp_path/"out"
    out.mkdir()
    (out/".run.json.part").write_text("{")    # what a kill in the first write leaves
    small = "--steps 2 --n_layers 1 --hidden_features 4 --batch_size 64 --candidates MAF --quiet".split()
    assert main(["search", str(data), "--resume", "--out", str(out), *small]) == 0
    assert "flow found: MAF" in capsys.readouterr().out


def test_a_finished_search_says_so(undisturbed, capsys):
    before = {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")}
    assert main(["search", "--resume", "--out", str(undisturbed)]) == 0
    assert "is finished" in capsys.readouterr().out
    assert main(["search", "--out", str(undisturbed)]) == 2
    assert "--resume" in capsys.readouterr().err
    assert {p: p.stat().st_mtime_ns for p in undisturbed.rglob("*")} == before


@pytest.fixture
def unfinished(data, tmp_path, monkeypatch, capsys):
    "A search that was interrupted at the keyboard."
    import autonf_nb.report

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(autonf_nb.report, "write_report", interrupt)
    copy = write_table(plane_set("two_moons", 300), ("a", "b"), tmp_path/"moons.csv")
    small = "--steps 2 --n_layers 1 --hidden_features 4 --batch_size 64 --candidates MAF --quiet".split()
    assert main(["search", str(copy), "--out", str(tmp_path/"out"), *small]) == 130
    err = capsys.readouterr().err
    assert f"autonf search --resume --out {tmp_path/'out'}" in err and "Traceback" not in err
    monkeypatch.undo()
    return tmp_path/"out"


@pytest.mark.parametrize("option, value, says", [
    ("--lam", "0.5", "--lam 0.1, not 0.5"), ("--candidates", "MAF,RQ-C", "--candidates MAF, not MAF,RQ-C"),
    ("--seed", "7", "--seed 0, not 7"), ("--bounds", "a=-9:9", "--bounds None")])
def test_another_option_is_refused_by_name(unfinished, capsys, option, value, says):
    assert main(["search", "--resume", "--out", str(unfinished), option, value]) == 2
    assert says in capsys.readouterr().err


def test_other_data_are_refused(unfinished, data, capsys):
    assert main(["search", str(data), "--resume", "--out", str(unfinished)]) == 2
    assert "was started on" in capsys.readouterr().err
    write_table(plane_set("two_moons", 300, seed=1), ("a", "b"), unfinished.parent/"moons.csv")
    assert main(["search", "--resume", "--out", str(unfinished)]) == 2
    assert "has changed since" in capsys.readouterr().err


def test_an_interrupted_search_goes_on(unfinished, capsys):
    assert main(["search", "--resume", "--out", str(unfinished), "--quiet"]) == 0
    assert (unfinished/"report.html").exists() and not (unfinished/"checkpoint").exists()


def test_a_damaged_checkpoint_is_named(unfinished, capsys):
    stage = next((unfinished/"checkpoint").glob("*.safetensors"))
    stage.write_bytes(stage.read_bytes()[:30])
    assert main(["search", "--resume", "--out", str(unfinished), "--quiet"]) == 2
    err = capsys.readouterr().err
    assert stage.name in err and "damaged" in err and err.count("\n") == 1
