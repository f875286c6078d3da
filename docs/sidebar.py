"""Write nbs/sidebar.yml: the chapters by theme, in the order in which this site, and Quarto's, shows them.

    python docs/sidebar.py

A notebook falls in by the number that its name begins with, so a new chapter needs no entry here.
"""
import re
from pathlib import Path

from nbdev.config import get_config

THEMES = {
    "Foundations": "00 01",
    "Transforms": "02",
    "Search": "03 04 05 06 07 08 09 10",
    "Experiments": "12 16",
    "Continuous flows": "02i 13 14 15",
    "Using it": "11 17 18 19",
}
REST = "The project"  # pages without a number, and the numbers above


def theme(stem: str) -> str:
    "The theme of a notebook: that of the longest number its name begins with, `02i` before `02`."
    number = re.match(r"(\d*)([a-z]*)_", stem)
    of = {n: name for name, numbers in THEMES.items() for n in numbers.split()}
    return (of.get(number[1] + number[2]) or of.get(number[1]) or REST) if number else REST


def sidebar(notebooks: list[Path]) -> str:
    "The text of sidebar.yml for these notebooks."
    stems = sorted(p.stem for p in notebooks if p.stem != "index")
    lines = ["website:", "  sidebar:", "    contents:", "      - index.ipynb"]
    for name in (*THEMES, REST):
        inside = [stem for stem in stems if theme(stem) == name]
        lines += [f"      - section: {name}", "        contents:", *(f"          - {stem}.ipynb" for stem in inside)] if inside else []
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    nbs = get_config().nbs_path
    (nbs / "sidebar.yml").write_text(sidebar(list(nbs.glob("*.ipynb"))))
