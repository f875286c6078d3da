"""Many trainings at once: the same results with any number of workers, a killed worker's tasks again, finished ones never twice."""
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autonf_nb import cli
from autonf_nb.parallel import TRIES, TaskError, run_tasks

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra ray")


def train(seed: int, log: str) -> float:
    "A small training; `log` gets a line for each call."
    import torch

    from autonf_nb.candidates import Architecture
    from autonf_nb.flow import Flow
    from autonf_nb.training import Rows, mean_nll, seeded, train_flow

    with open(log, "a") as f:
        f.write(f"{seed}\n")
    with seeded(seed):
        flow, x = Flow(Architecture(("RealNVP",)).build(2, hidden_features=8), 2), torch.randn(200, 2).exp()
    train_flow(flow, Rows(x[:150]), Rows(x[150:]), steps=20, batch_size=50, seed=seed)
    return mean_nll(flow, Rows(x[150:]))


def die_once(seed: int, log: str, marker: str) -> float:
    "The worker of seed 3 is killed, as by the kernel when memory runs out, at its first try."
    if seed == 3 and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return train(seed, log)


def die(seed: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def train_or_kill(seed: int, log: str, marker: str) -> float:
    "Seed 2 stops in the middle of its first try, and is killed there, worker and all, by seed 3; `log` is a folder of a file each."
    victim = Path(log)/"pid"
    if seed == 2 and not Path(marker).exists():
        with open(Path(log)/"2", "a") as f:
            f.write("2\n")
        victim.with_suffix(".part").write_text(str(os.getpid()))
        victim.with_suffix(".part").rename(victim)
        time.sleep(300)
    if seed == 3 and not Path(marker).exists():
        while not victim.exists():
            time.sleep(0.05)
        Path(marker).touch()
        os.kill(int(victim.read_text()), signal.SIGKILL)
    return train(seed, str(Path(log)/str(seed)))


def square(x: int, log: str) -> int:
    with open(log, "a") as f:
        f.write(f"{x}\n")
    return x * x


def where(x: int, driver: str, marker: str) -> list:
    "Square, machine, threads and data of a task. The first task on another machine than the driver's takes that machine down."
    import ray

    machine = ray.get_runtime_context().get_node_id()
    if machine != driver and not Path(marker).exists():
        Path(marker).touch()
        os.kill(os.getppid(), signal.SIGKILL)  # the program that `ray start` leaves running on a machine
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.2)
    return [x * x, machine, os.environ["OMP_NUM_THREADS"], os.environ["AUTONF_DATA"]]


def calls(log: Path) -> list[int]:
    return sorted(int(line) for line in log.read_text().split())


def test_two_workers_give_the_results_of_one(tmp_path):
    tasks = {f"seed {s}": {"seed": s, "log": str(tmp_path/"log")} for s in range(4)}
    one = run_tasks(train, tasks, tmp_path/"one", progress=False)
    two = run_tasks(train, tasks, tmp_path/"two", jobs=2, progress=False)
    assert one == two and list(two) == list(tasks) and len(set(one.values())) == 4
    assert run_tasks(train, tasks, tmp_path/"two", jobs=2, progress=False) == two
    assert calls(tmp_path/"log") == sorted(2 * list(range(4)))  # the last call ran nothing


def test_a_killed_workers_tasks_are_run_again_and_finished_ones_are_not(tmp_path):
    tasks = {f"seed {s}": {"seed": s, "log": str(tmp_path/"log"), "marker": str(tmp_path/"killed")} for s in range(6)}
    found = run_tasks(die_once, tasks, tmp_path/"parts", jobs=2, progress=False)
    assert (tmp_path/"killed").exists()
    assert found == run_tasks(die_once, tasks, tmp_path/"undisturbed", progress=False)
    again = calls(tmp_path/"log")
    # once in each job; a task that was under way when its neighbour died, or finished but unsaved, may have begun twice
    assert all(2 <= again.count(s) <= 3 for s in range(6)) and again.count(3) == 2


def test_workers_that_keep_dying_end_the_job_with_a_sentence(tmp_path):
    with pytest.raises(TaskError, match=f"a worker died {TRIES} times in a row, at one of: only"):
        run_tasks(die, {"only": {"seed": 0}, "other": {"seed": 1}}, tmp_path, jobs=2, progress=False)
    assert not list(tmp_path.glob("*.json"))


def test_a_task_that_raises_in_a_worker_is_named(tmp_path):
    with pytest.raises(TaskError, match="task 'no log' failed: TypeError"):
        run_tasks(train, {"no log": {"seed": 0}, "and": {"seed": 1, "log": str(tmp_path/"log")}}, tmp_path/"parts", jobs=2, progress=False)


@pytest.fixture(scope="module")
def address():
    "A real Ray cluster of two machines with one core each, both of them here."
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read when Ray is imported
    from ray.cluster_utils import Cluster

    small = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=small)
    cluster.add_node(**small)
    yield cluster.address
    cluster.shutdown()


@needs_ray
def test_a_worker_killed_on_a_ray_cluster_changes_no_result(tmp_path, address):
    tasks = {f"seed {s}": {"seed": s, "log": str(tmp_path/"log"), "marker": str(tmp_path/"killed")} for s in range(6)}
    (tmp_path/"log").mkdir()
    found = run_tasks(train_or_kill, tasks, tmp_path/"ray", jobs=2, engine="ray", address=address, progress=False)
    assert (tmp_path/"killed").exists() and list(found) == list(tasks)
    assert [calls(tmp_path/"log"/str(s)) for s in range(6)] == [[s] * (1 + (s == 2)) for s in range(6)]  # the killed one twice, others once
    assert found == run_tasks(train_or_kill, tasks, tmp_path/"here", progress=False)


@needs_ray
def test_one_engine_goes_on_from_another(tmp_path, address):
    tasks = {f"{x}": {"x": x, "log": str(tmp_path/"log")} for x in range(6)}
    run_tasks(square, dict(list(tasks.items())[:2]), tmp_path/"parts", progress=False)
    run_tasks(square, dict(list(tasks.items())[:4]), tmp_path/"parts", engine="ray", address=address, jobs=None, progress=False)
    assert run_tasks(square, tasks, tmp_path/"parts", progress=False) == {f"{x}": x * x for x in range(6)}
    assert calls(tmp_path/"log") == list(range(6))


@needs_ray
def test_on_ray_too_a_bad_task_is_named_and_a_deadly_one_is_not_tried_forever(tmp_path, address):
    where_to = {"folder": tmp_path/"parts", "engine": "ray", "address": address, "jobs": 2, "progress": False}
    with pytest.raises(TaskError, match="task 'no log' failed: TypeError"):
        run_tasks(square, {"no log": {"x": 0}}, **where_to)
    with pytest.raises(TaskError, match=f"a worker died {TRIES} times in a row, at one of: only. Is there"):
        run_tasks(die, {"only": {"seed": 0}}, **where_to)
    assert not list((tmp_path/"parts").iterdir())
    host, port = address.split(":")
    socket.create_connection((host, int(port)), timeout=5).close()  # the cluster that was joined, and left, is still there


@needs_ray
def test_an_experiment_gives_the_same_rows_on_ray(tmp_path, address, capsys):
    rows = {}
    for engine in (["--engine", "ray", "--address", address], ["--jobs", "1"]):
        line = ["figure3", "--dataset", "GAS", "--seeds", "0,1", "--steps", "4", "--out", str(tmp_path/engine[1]), *engine]
        assert cli.main(line) == 0, capsys.readouterr().err
        rows[engine[1]] = json.loads((tmp_path/engine[1]/"figure3.json").read_text())["rows"]
    for r in sum(rows.values(), []):
        assert r.pop("search_seconds") > 0
    assert rows["ray"] == rows["1"] and len(rows["1"]) == 6


@needs_ray
def test_a_lost_machine_costs_its_own_tasks_only(tmp_path, address, monkeypatch):
    import ray

    monkeypatch.setenv("AUTONF_DATA", "data")  # as on the command line: said from where the driver is
    ray.init(address, log_to_driver=False, logging_level="ERROR")
    driver = ray.get_runtime_context().get_node_id()
    ray.shutdown()
    tasks = {f"{x}": {"x": x, "driver": driver, "marker": str(tmp_path/"down")} for x in range(6)}
    found = run_tasks(where, tasks, tmp_path/"parts", jobs=2, engine="ray", address=address, progress=False)
    assert (tmp_path/"down").exists()
    assert found == {f"{x}": [x * x, driver, "1", str(Path.cwd()/"data")] for x in range(6)}


@needs_ray
def test_a_cluster_for_one_call_is_gone_after_it(tmp_path):
    code = """
import os, subprocess, sys
from autonf_nb.parallel import run_tasks
tasks = {"a": {"cmd": "echo $OMP_NUM_THREADS; grep PPid /proc/$PPID/status"}}
threads, _, machine = run_tasks(subprocess.getoutput, tasks, sys.argv[1], jobs=1, engine="ray")["a"].split()
import ray
print(threads, ray.is_initialized(), os.path.exists(f"/proc/{machine}"))
"""
    done = subprocess.run([sys.executable, "-c", code, tmp_path/"parts"], capture_output=True, text=True)
    assert done.stdout.strip() == "1 False False", done.stderr
    assert "ray" not in done.stderr.lower(), done.stderr  # nothing but the progress bar


@needs_ray
def test_nobody_at_the_address_is_said_at_once(tmp_path, capsys):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(ValueError, match="as in 192.168.0.1:6379, got 'first'"):
        run_tasks(square, {"a": {}}, tmp_path, engine="ray", address="first")
    start = time.monotonic()
    assert cli.main(["figure3", "--engine", "ray", "--address", nobody, "--out", str(tmp_path/"f")]) == 2
    said = capsys.readouterr().err
    assert f"no Ray cluster answers at {nobody}: start one with `ray start --head`" in said and time.monotonic() - start < 20


def test_without_ray_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r"the engine 'ray' needs Ray: pip install 'autonf_nb\[ray\]'"):
        run_tasks(square, {"a": {}}, tmp_path, engine="ray", progress=False)
