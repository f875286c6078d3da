"""Many trainings at once: the same results with any number of workers, a killed worker's tasks again, finished ones never twice."""
import os
import signal
from pathlib import Path

import pytest

from autonf_nb.parallel import TRIES, TaskError, run_tasks


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
