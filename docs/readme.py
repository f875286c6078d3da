"""Write README.md from nbs/index.ipynb, without Quarto.

    python docs/readme.py            # README.md and its figures in docs/images
    python docs/readme.py --check    # only say whether they are up to date

The notebook goes through those of nbdev's processors that hide and filter cells, then becomes GitHub markdown. Links
stay inside the repository: a link to another notebook opens that notebook.
"""
import argparse
import base64
import posixpath
import re
import sys
from pathlib import Path

import yaml
from execnb.nbio import read_nb
from nbdev.config import get_config
from nbdev.frontmatter import FrontmatterProc
from nbdev.process import NBProcessor
from nbdev.processors import clean_magics, filter_stream_, hide_, hide_line, rm_export, rm_header_dash, strip_ansi

IMAGES = "docs/images"
NOTICE = "<!-- Generated from nbs/index.ipynb by docs/readme.py: edit the notebook. -->"
PROCESSORS = [FrontmatterProc, strip_ansi, hide_line, filter_stream_, rm_header_dash, rm_export, clean_magics, hide_]
OPTION = re.compile(r"^#\s*\|\s*([\w-]+):\s*(.*?)\s*$", re.M)
LINK = re.compile(r"(\]\()([^)\s]+)")
DIV = re.compile(r"^:{3,}.*\n+", re.M)  # Quarto's fenced divs, which GitHub does not know
FENCED = re.compile(r"(^```.*?^```$)", re.M | re.S)


def fence(text: str, language: str = "") -> str:
    return f"```{language}\n{text.rstrip()}\n```"


def from_root(match: re.Match) -> str:
    "A link of the notebook's, from the repository's root instead of from nbs/."
    target = match[2]
    if re.match(r"[a-zA-Z][\w+.-]*:|#|/", target):
        return match[0]
    path, mark, anchor = target.partition("#")
    return match[1] + posixpath.normpath(posixpath.join("nbs", path)) + mark + anchor


def markdown(text: str) -> str:
    "Prose with its links turned and its divs undone; code blocks are left alone."
    prose = (part if part.startswith("```") else LINK.sub(from_root, DIV.sub("", part + "\n")) for part in FENCED.split(text))
    return re.sub(r"\n{3,}", "\n\n", "".join(prose)).strip()


def front_matter(source: str) -> list[str]:
    "Title and subtitle, which nbdev keeps as YAML."
    meta = yaml.safe_load(source.strip().strip("-")) or {}
    title = [f"# {meta['title']}"] if meta.get("title") else []
    return title + ([f"> {meta['description']}"] if meta.get("description") else [])


def output(out: dict, alt: str, caption: str, figures: dict[str, bytes]) -> str | None:
    "One output as markdown, or None for what a README cannot show; a picture is put into `figures`."
    data = out.get("data", {})
    if out["output_type"] == "stream":
        return fence("".join(out["text"])) if out["name"] == "stdout" else None
    if "image/png" in data:
        name = f"{IMAGES}/index-{len(figures) + 1}.png"
        figures[name] = base64.b64decode("".join(data["image/png"]))
        return f"![{alt}]({name})" + (f"\n\n*{caption}*" if caption else "")
    if "text/markdown" in data:
        return markdown("".join(data["text/markdown"]))
    return fence("".join(data["text/plain"])) if "text/plain" in data else None


def code(cell: dict, figures: dict[str, bytes]) -> list[str]:
    "A code cell and its outputs, as its `#| echo`, `#| output` and `#| fig-alt` say."
    options = dict(OPTION.findall(cell.source))
    source = re.sub(r"^#\s*\|.*\n?", "", cell.source, flags=re.M).strip()
    shown = [fence(source, "python")] if source and options.get("echo") != "false" else []
    if options.get("output") == "false":
        return shown
    caption, alt = (options.get(f"fig-{part}", "").strip("\"'") for part in ("cap", "alt"))
    return shown + [text for out in cell.get("outputs", []) if (text := output(out, alt, caption, figures))]


def render(notebook: Path) -> dict[str, bytes]:
    "Every file that the notebook gives, by its path from the root."
    nb = read_nb(notebook)
    NBProcessor(nb=nb, procs=PROCESSORS).process()
    parts, figures = [NOTICE], {}
    for cell in nb.cells:
        source = "".join(cell.source or "").strip()
        if cell.cell_type == "raw" and source.startswith("---"):
            parts += front_matter(source)
        elif cell.cell_type == "markdown" and source:
            parts.append(markdown(source))
        elif cell.cell_type == "code" and source:
            parts += code(cell, figures)
    return {**figures, "README.md": ("\n\n".join(parts) + "\n").encode()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; exit with 1 when something is out of date")
    check = parser.parse_args().check
    cfg = get_config()
    root, notebook = Path(cfg.config_path), Path(cfg.nbs_path) / "index.ipynb"
    if not notebook.exists():
        sys.exit(f"{notebook} is missing: README.md is made from it")
    files = render(notebook)
    stale = [name for name, content in files.items() if not (root / name).exists() or (root / name).read_bytes() != content]
    left = [p for p in sorted((root / IMAGES).glob("index-*")) if p.relative_to(root).as_posix() not in files]
    changed = ", ".join(stale + [p.relative_to(root).as_posix() for p in left])
    if check:
        sys.exit(f"out of date, run `make sync`: {changed}" if changed else None)
    for name in stale:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(files[name])
    for path in left:
        path.unlink()
    print(f"wrote {changed}" if changed else "README.md is up to date")


if __name__ == "__main__":
    main()
