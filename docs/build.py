"""Build the documentation site from the notebooks, without Quarto and without the network.

    python docs/build.py            # -> docs/_build/html

1. nbdev's own processors run over `nbs/` (directives, hidden cells, show_doc, doclinks) -> `_proc/`
2. the little Quarto markdown they leave is mapped onto MyST                            -> `docs/_build/src/`
3. Sphinx (myst-nb) renders the stored outputs                                          -> `docs/_build/html/`
"""

import argparse
import ast
import copy
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import nbdev.processors
import nbdev.serve
import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell

HERE = Path(__file__).resolve().parent
DIREC = re.compile(r"^#\|\s*([\w-]+)\s*:\s*(.*?)\s*$")
CALLOUT = re.compile(
    r"^(?P<f>:{3,})\s*\{\.callout-(?P<k>note|tip|warning|important|caution)[^}]*\}[ \t]*\n(?:\s*\n)*(?:#+[ \t]+(?P<t>.+)\n)?", re.M
)
DISPLAY = re.compile(r"^\$\$(?P<tex>.+?)\$\$[ \t]*(?:\{#(?P<label>eq-[\w-]+)\})?[ \t]*$", re.M | re.S)
DIV = re.compile(r"^(:{3,})[ \t]*\{\.(nb-[\w-]+)\}[ \t]*$", re.M)  # our own classes, in Quarto's way
SHOWDOC = re.compile(r"^---\n+(?:\[source\]\((?P<url>[^)]+)\)\{[^}]*\}\n+)?(?P<h>#+) (?P<name>\S+)\n+")
TOGETHER = re.compile(r" (±|x(?= \d)|(?<=\d )x) ")
WORKERS = min(4, os.cpu_count() or 1)
nbdev_runs, nbdev_parallel = nbdev.processors._do_eval, nbdev.serve.parallel


def page_name(stem):
    return re.sub(r"^\d+[a-zA-Z0-9]*_", "", stem.lower())  # as nbdev names its pages


# --- 1. nbdev ---------------------------------------------------------------------------------
def plain(said):
    "A signature or a table's cell without what only Python asks for: modules, addresses, the type of a float, every one of many numbers"
    said = re.sub(r"\b(?:__main__|collections\.abc|typing|pathlib|autonf_nb(?:\.\w+)*|(?<=torch\.)_C)\.|(?<=\w) at 0x[0-9a-f]+", "", said)
    said = re.sub(r"np\.float64\(([^()]+)\)", lambda m: f"{float(m[1]):.6g}", said)
    return re.sub(r"(\((?:-?[\d.]+, ){3})(?:-?[\d.]+, ){3,}(-?[\d.]+\))", r"\1..., \2", said)


def _renderer():
    "A `show_doc` renderer: signature, summary, then nbdev's own table of documented parameters"
    import inspect
    import nbdev.showdoc as sd
    from fastcore.docments import DocmentTbl, _maybe_nm

    base = sd.BasicMarkdownRenderer

    class Table(DocmentTbl):
        def __init__(self, sym):
            super().__init__(sym)
            for row in self.dm.values():  # `Tensor | None` is one cell, not two
                row |= {k: plain(_maybe_nm(v)).replace("|", "\\|") for k, v in row.items() if v is not inspect.Parameter.empty}

    class TableRenderer(base):
        def __init__(self, sym, name=None, title_level=3):
            super().__init__(sym, name=name, title_level=title_level, maxline=92)  # characters: what stands beside the two sidebars

        def _repr_markdown_(self):
            head, code, tail = re.split(r"(```python\n.*?\n```)", super()._repr_markdown_(), maxsplit=1, flags=re.S)
            tbl = str(Table(self.sym))
            if tbl:  # the table carries the comments, so take them out of the signature
                code, tail = re.sub(r"[ \t]*#(?!\s*noqa).*$", "", code, flags=re.M), f"{tail}\n\n{tbl}"
            return head + plain(code) + tail.replace("*Call self as a function.*", "")  # what Python says where nobody said anything

    return base, TableRenderer


def only_imports(source):
    return all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in ast.parse(source).body)


def runs_for_docs(cell):
    "Which cells the site's build executes: the exported ones, plain imports and `show_doc`; never an example that also imports"
    exported = cell.directives_ and cell.directives_.keys() & {"export", "exports", "exporti", "exec_doc"}
    plain = cell.cell_type == "code" and only_imports(cell.source)
    return (exported or plain or "show_doc(" in cell.source) and nbdev_runs(cell)


def modules():
    "The module that a notebook is exported to, by the notebook's file name"
    root, found = HERE.parent, {}
    for path in sorted((root / "autonf_nb").rglob("*.py")):
        if made_from := re.search(r"File to edit: \S*?(\w+\.ipynb)", path.read_text()):
            found[made_from[1]] = path.relative_to(root)
    return found


def lines_of(module):
    "Where each function, class and method of a module begins, by name"
    lines = {}
    for node in ast.parse((HERE.parent / module).read_text()).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            lines[node.name] = node.lineno
            lines |= {f"{node.name}.{child.name}": child.lineno for child in node.body if isinstance(child, ast.FunctionDef)}
    return lines


def index_all(symbols):
    "Complete nbdev's index of symbols: it passes over each notebook whose name holds `auto`, so its names get neither source nor links"
    for file, module in modules().items():
        name, page = ".".join(module.with_suffix("").parts), page_name(Path(file).stem)
        if not symbols[name]:
            symbols[name] |= {f"{name}.{f}": (f"{page}.html#{f.lower()}", module.as_posix()) for f in lines_of(module) if "." not in f}


def process():
    from autonf_nb._modidx import d as index
    from nbdev.config import get_config
    import nbdev.showdoc as sd
    import torch  # noqa: F401

    _, sd.BasicMarkdownRenderer = _renderer()
    index_all(index["syms"])
    nbdev.processors._do_eval = runs_for_docs
    # forked: each worker has the renderer above, and torch, imported once
    nbdev.serve.parallel = lambda f, items, n_workers, pause, method: nbdev_parallel(f, items, n_workers=n_workers, method="fork")
    return get_config(), nbdev.serve.proc_nbs(force=True, n_workers=WORKERS)


# --- 2. Quarto markdown -> MyST ------------------------------------------------------------------
def shown_at(cfg):
    "The address below which the repository shows its files"
    return f"{cfg.git_url}/blob/{cfg.branch}/"


def entries(nb, module, blob):
    """The entries of `show_doc` in the order of the code, each with its own source.

    nbdev puts those of one cell in the reverse order, and looks the source up by the bare name, which two modules may share."""
    lines, run = lines_of(module) if module else {}, []

    def shown(cell):
        md = [out["data"]["text/markdown"] for out in cell.get("outputs", []) if "text/markdown" in out.get("data", {})]
        return SHOWDOC.match("".join(md[0])) if len(md) == 1 and "show_doc" in cell.source else None

    for place, cell in enumerate([*nb.cells, None]):
        if cell is not None and (m := shown(cell)) and m["name"] in lines:
            url, md = f"{blob}{module.as_posix()}#L{lines[m['name']]}", "".join(cell.outputs[0]["data"]["text/markdown"])
            cell.outputs[0]["data"]["text/markdown"] = md.replace(m["url"], url, 1) if m["url"] else md
            run.append((lines[m["name"]], cell))
        elif run:
            nb.cells[place - len(run) : place] = [cell for _, cell in sorted(run, key=lambda entry: entry[0])]
            run = []
    return nb


class Prep:
    def __init__(self, cfg, names, anchors):
        self.names, self.anchors, self.labelled, self.page = names, anchors, set(), ""
        self.figures, self.equations = 0, 0
        self.base = (cfg.doc_host + cfg.doc_baseurl).rstrip("/") + "/"
        self.blob = shown_at(cfg)
        self.jupyter = f"https://mybinder.org/v2/gh/{cfg.user}/{cfg.repo}/{cfg.branch}?urlpath=lab/tree/nbs/"

    def table(self, s):
        "Markdown whose tables break no line within `0.5 ± 0.1` and `8 x MAF`"
        return re.sub(r"^\|.*", lambda row: TOGETHER.sub("\u00a0\\1\u00a0", row[0]), s, flags=re.M)

    def markdown(self, s):
        s = self.table(s).replace("<!-- WARNING: THIS FILE WAS AUTOGENERATED! DO NOT EDIT! -->", "")

        def callout(m):
            if m["t"]:
                return f"{m['f']}{{admonition}} {m['t']}\n:class: {m['k']}\n\n"
            return f"{m['f']}{{{m['k']}}}\n"

        def equation(m):  # each has a number, anew on each page; those that Quarto would number have a name to be called by
            self.equations += 1
            return f"$${m['tex']}$$ ({self.page}-{m['label'] or self.equations})"

        s = CALLOUT.sub(callout, s)
        s = DIV.sub(r"\1{div} \2", s)
        s = DISPLAY.sub(equation, s)
        s = re.sub(r"(?<![\w`@.])@(eq-[\w-]+)", rf"eq. {{eq}}`{self.page}-\1`", s)
        s = re.sub(r"\{target=\"_blank\"[^}]*\}", "", s)

        def doclink(m):  # a name of this page's own is that one; a method that no page shows is looked for on its class's page
            here, there = (f"{page}--{m[2].lower()}" for page in (self.page, m[1]))
            label = here if here in self.anchors else there
            return f"](#{label})" if label in self.anchors else f"]({m[1]}.ipynb)"

        def page(m):
            return f"]({self.names[m[1]]}.ipynb{m[2] or ''})" if m[1] in self.names else m[0]

        s = re.sub(r"\]\(([\w.-]+\.ipynb)(#[^)]*)?\)", page, s)
        s = re.sub(r"\]\(" + re.escape(self.base) + r"([\w-]+)\.html#([^)]+)\)", doclink, s)
        return re.sub(r"\]\(\.\./", "](" + self.blob, s).strip()  # a file beside nbs/ is shown where the code is

    def showdoc(self, md):
        m = SHOWDOC.match(md)
        if not m:
            return self.markdown(md)
        name, url = m["name"], m["url"]
        src = f'<a class="nb-source" href="{url}" title="Source of {name}">source</a>' if url else ""
        body = self.markdown(md[m.end() :])
        body = re.sub(r"^\*(.+?)\*$", r"\1", body, count=1, flags=re.M)  # the summary need not be italic
        body = re.sub(r"(^\| .*\n\| ?-.*(?:\n\|.*)*)", r"::::{div} nb-params\n\n\1\n\n::::", body, flags=re.M)
        head, label = f"{m['h']} `{name}`\n\n", f"{self.page}--{name.lower()}"
        if label not in self.labelled:  # of `Picture` and `picture` the first has the anchor: nbdev's links know no case
            self.labelled.add(label)
            head, src = f"({label})=\n{head}", f'<span id="{name.lower()}" class="nb-anchor"></span>{src}'
        return f"{head}:::::{{div}} nb-api\n{src}\n\n{body}\n:::::"

    def __call__(self, nb, file, page):
        self.page, self.figures, self.equations, cells = page, 0, 0, []
        for c in copy.deepcopy(nb.cells):
            if c.cell_type == "raw" and c.source.lstrip().startswith("---"):
                fm = yaml.safe_load(c.source.strip().strip("-")) or {}
                txt = f"# {fm.get('title', '')}\n"
                if fm.get("description"):
                    txt += f"\n{{.lead}}\n{fm['description']}\n"
                if page != "index":
                    txt += f"\n{{.nb-open}}\n[Open in Jupyter]({self.jupyter}{file}) [Notebook on GitHub]({self.blob}nbs/{file})\n"
                cells.append(new_markdown_cell(txt, id=c.id))
            elif c.cell_type == "markdown":
                c.source = self.markdown(c.source)
                if c.source:
                    cells.append(c)
            elif c.cell_type == "code":
                d, lines = {}, c.source.splitlines()
                while lines and (m := DIREC.match(lines[0])):
                    d[m[1]] = m[2].strip("\"'")
                    lines.pop(0)
                if d.get("output") == "asis":
                    mds = ["".join(o["data"]["text/markdown"]) for o in c.outputs if "text/markdown" in o.get("data", {})]
                    cells += [new_markdown_cell(self.showdoc(o) if "show_doc" in c.source else self.markdown(o)) for o in mds]
                    continue
                if d.get("include") == "false":
                    continue
                c.source, tags = "\n".join(lines), c.metadata.setdefault("tags", [])
                if d.get("echo") == "false":
                    tags.append("remove-input")
                if d.get("output") == "false":
                    tags.append("remove-output")
                if d.get("code-fold") in ("true", "show"):
                    tags.append("hide-input")
                mystnb = c.metadata.setdefault("mystnb", {})
                if only_imports(c.source) and len(c.source.splitlines()) > 2:
                    tags.append("hide-input")
                    mystnb |= {"code_prompt_show": "Imports", "code_prompt_hide": "Imports"}
                if d.get("warning") == "false":
                    c.outputs = [o for o in c.outputs if not (o.output_type == "stream" and o.name == "stderr")]
                for o in c.outputs:
                    if "text/markdown" in o.get("data", {}):
                        o.data["text/markdown"] = self.table(o.data["text/markdown"])
                if "fig-cap" in d:
                    self.figures += 1
                    pictures = [o for o in c.outputs if any(kind.startswith("image/") for kind in o.get("data", {}))]
                    if any(o.output_type != "stream" for o in c.outputs if o not in pictures):  # a table has no part in the caption
                        c.outputs = [o for o in c.outputs if o not in pictures]
                        cells.append(c)
                        c = new_code_cell(outputs=pictures, metadata={"tags": ["remove-input"], "mystnb": {}})
                        mystnb = c.metadata["mystnb"]
                    mystnb["figure"] = {"caption": f"**Figure {self.figures}.** {self.markdown(d['fig-cap'])}"}
                if "fig-alt" in d:
                    mystnb["image"] = {"alt": d["fig-alt"]}
                cells.append(c)
        nb.cells = cells
        return nb


def toctree(contents, names):
    "MyST toctrees from nbdev's sidebar.yml (so a Quarto build and this one share one order)"
    flat = [names[o] for o in contents if isinstance(o, str) and names.get(o, "index") != "index"]
    res = [(None, flat)] if flat else []
    for o in contents:
        if isinstance(o, dict):
            res.append((o["section"], [names[Path(p).name] for p in o["contents"] if isinstance(p, str)]))

    def one(cap, items):
        return "```{toctree}\n:hidden:\n" + (f":caption: {cap}\n" if cap else "") + "\n" + "\n".join(items) + "\n```"

    return "\n\n".join(one(*o) for o in [*res, ("Reference", ["api"])])


def title(nb):
    "The chapter's title, which nbdev keeps as YAML in the first cell"
    return yaml.safe_load(nb.cells[0].source.strip().strip("-"))["title"]


def summary(entry):
    "The first sentence of an entry; nbdev marks the first line of it"
    if not (said := re.search(r"^\*(.+)\*\n?((?:.+\n?)*)", entry, re.M)):
        return ""
    return re.split(r"(?<=[\w`)]\.) (?=[A-Z`])", " ".join(f"{said[1]} {said[2]}".split()))[0].rstrip(".:;").replace("|", "\\|")


def reference(chapters, shown):
    "The page of all public functions and classes, from the very outputs of `show_doc` that the chapters show"
    parts = ["# API reference\n\n{.lead}\nEvery public function and class, by chapter; a name opens at its entry there.\n"]
    for page, name in chapters.items():
        rows = {}
        for md in shown[page]:
            m = SHOWDOC.match(md)
            if "." not in m["name"] and m["name"].lower() not in rows:
                label = f"[`{m['name']}`](#{page}--{m['name'].lower()})"
                rows[m["name"].lower()] = f"| {label} | {summary(md[m.end() :])} | " + (f"[code]({m['url']}) |" if m["url"] else "|")
        if rows:
            table = "| Name | What it is | Source |\n|---|---|---|\n" + "\n".join(rows.values())
            parts.append(f"## [{name}]({page}.ipynb)\n\n::::{{div}} nb-names\n\n{table}\n\n::::")
    return "\n\n".join(parts) + "\n"


def sources(cfg, cache, dest):
    shutil.rmtree(dest, ignore_errors=True)
    dest.mkdir(parents=True)
    nbs = sorted(cache.rglob("*.ipynb"))
    names = {p.name: page_name(p.stem) for p in nbs}
    made = modules()
    read = {fn: entries(nbformat.read(fn, as_version=4), made.get(fn.name), shown_at(cfg)) for fn in nbs}
    shown = {names[fn.name]: [md for c in nb.cells for out in c.get("outputs", [])
                              if SHOWDOC.match(md := out.get("data", {}).get("text/markdown", ""))] for fn, nb in read.items()}
    anchors = {f"{page}--{SHOWDOC.match(md)['name'].lower()}" for page, mds in shown.items() for md in mds}
    titles = {fn.name: title(nb) for fn, nb in read.items()}
    prep = Prep(cfg, names, anchors)
    contents = yaml.safe_load((cfg.nbs_path / "sidebar.yml").read_text())["website"]["sidebar"]["contents"]
    for fn, nb in read.items():
        nb = prep(nb, fn.name, names[fn.name])
        if names[fn.name] == "index":
            nb.cells.append(new_markdown_cell(toctree(contents, names)))
        nbformat.write(nb, dest / f"{names[fn.name]}.ipynb")
    chapters = {names[file]: titles[file] for o in contents if isinstance(o, dict) for file in o["contents"]}
    prep.page = "api"
    (dest / "api.md").write_text(prep.markdown(reference(chapters, shown)))


if __name__ == "__main__":
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, default=HERE / "_build" / "html")
    a = p.parse_args()
    t0 = time.time()
    cfg, cache = process()
    t1 = time.time()
    sources(cfg, cache, HERE / "_build" / "src")
    t2 = time.time()
    rc = subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-W",
            "--keep-going",
            "-E",
            "-j",
            str(WORKERS),
            "-b",
            "html",
            "-c",
            str(HERE),
            "-d",
            str(HERE / "_build" / "doctrees"),
            str(HERE / "_build" / "src"),
            str(a.out),
        ]
    ).returncode
    print(f"nbdev {t1 - t0:.1f}s, MyST {t2 - t1:.1f}s, Sphinx {time.time() - t2:.1f}s -> {a.out}")
    sys.exit(rc)
