"""What the benchmarks share: how they time calls, and what they write beside their rows."""
import argparse
import datetime
import json
import platform
import statistics
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from autonf_nb import __version__
from autonf_nb.parallel import Results

RESULTS = Path(__file__).resolve().parents[1]/"results"


def cpu_model() -> str:
    "The processor's name as Linux gives it, else its architecture."
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.machine()


def medians(calls: dict[str, Callable[[], object]], repeats: int, *, clock: Callable[[], float] = time.process_time,
            warm_up: int = 3) -> dict[str, float]:
    "Median milliseconds of each, of the processor or of another clock, called in turn; `warm_up` more rounds before them."
    times = {name: [] for name in calls}
    for repeat in range(repeats + warm_up):
        for name, call in calls.items():
            start = clock()
            call()
            if repeat >= warm_up:
                times[name].append(1e3 * (clock() - start))
    return {name: statistics.median(seen) for name, seen in times.items()}


def meta(command: str, *, seeds: list[int], packages: tuple[str, ...] = (), threads: int | list[int] = 1, **more) -> dict:
    "What made a result: command, seeds, versions (Python's, ours, torch's and those of `packages`), machine, date; and `more`."
    versions = {"python": platform.python_version(), "autonf_nb": __version__, **{name: version(name) for name in ("torch", *packages)}}
    return {"command": command, "seeds": seeds, "versions": versions, "machine": {"cpu": cpu_model(), "threads": threads},
            "date": datetime.date.today().isoformat(), **more}


def write(path: Path, meta: dict, rows: list[dict], **more) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"meta": meta, "rows": rows, **more}, indent=1) + "\n")
    print(f"wrote {len(rows)} rows to {path}")


def job_parser(doc: str, work: str) -> argparse.ArgumentParser:
    "Options of a benchmark of many trainings: --jobs, --work (by default the folder `work`), --collect."
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=1, help="trainings side by side")
    parser.add_argument("--work", type=Path, default=Path(work), help="folder of what is trained and finished")
    parser.add_argument("--collect", action="store_true", help="write what is finished")
    return parser


def finished(tasks: dict[str, dict], folder: Path) -> dict[str, object]:
    "The results of those tasks of `run_tasks` that are finished in `folder`, by name."
    found = {name: Results(folder).get(name, arguments) for name, arguments in tasks.items()}
    return {name: part["result"] for name, part in found.items() if part}
