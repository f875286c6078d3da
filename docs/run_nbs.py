"""Run notebooks in place, in the order given, and clean them: python docs/run_nbs.py [--flags slow] nbs/*.ipynb

Cells that nbdev skips (`#| eval: false` and the `tst_flags` of settings.ini) keep the output they have. A notebook that
fails is left as it was.
"""
import argparse
import re
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbdev.clean import nbdev_clean
from nbdev.config import get_config

DIRECTIVE = re.compile(r"^\s*#\s*\|\s*([^\s:]+)(:?)\s*(.*?)\s*$")


def directives(source: str) -> dict[str, str]:
    found = {}
    for line in source.splitlines():
        if match := DIRECTIVE.match(line):
            found[match[1]] = match[3]
        elif line.strip():
            break
    return found


class Client(NotebookClient):
    skipped = frozenset()

    async def async_execute_cell(self, cell, cell_index, **kw):
        if cell.cell_type == "code":
            found = directives(cell.source)
            if found.get("eval", "").lower() == "false" or self.skipped & found.keys() or "nbdev_export(" in cell.source:
                return cell
        return await super().async_execute_cell(cell, cell_index, **kw)


def run(path: Path, skipped: set[str], timeout: int) -> None:
    nb, start = nbformat.read(path, as_version=4), time.time()
    resources = {"metadata": {"path": str(path.parent)}}
    quiet = ["--log-level=ERROR"]  # ipykernel would warn at each start that it speaks TCP, which here stays on this machine
    client = Client(nb, timeout=timeout, kernel_name="python3", resources=resources, record_timing=False, extra_arguments=quiet)
    client.skipped = frozenset(skipped)
    client.execute()
    nbformat.write(nb, path)
    nbdev_clean.__wrapped__(fname=str(path))
    print(f"{path}: {time.time() - start:.1f}s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", type=Path)
    parser.add_argument("--flags", default="", help="flags of cells to run although settings.ini skips them")
    parser.add_argument("--timeout", type=int, default=600, help="seconds that one cell may take")
    args = parser.parse_args()
    skipped = set(get_config().tst_flags.split()) - set(args.flags.split())
    for path in args.files:
        run(path, skipped, args.timeout)


if __name__ == "__main__":
    main()
