"""Package, README and notebooks agree; chapters stand in order; what the notebooks store is fit to be read."""
import ast
import filecmp
import json
import os
import re
import runpy
import shutil
import subprocess
import sys
import zipfile
from configparser import ConfigParser
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "autonf_nb"
NOTEBOOKS = sorted((ROOT / "nbs").glob("*.ipynb"))
DEFAULT_EXP = re.compile(r"^#\s*\|\s*default_exp\s+([\w.]+)", re.M)
LOCAL_PATH = re.compile(r"(?<![\w.])/(?:home|root|tmp|work|Users|private|var|opt|mnt)/[\w.]+|\b[A-Z]:\\\w+|ipykernel_\d+")
PROGRESS = re.compile(r"\r|it/s\]|s/it\]|\?it")

per_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)


def source(cell: dict) -> str:
    return "".join(cell["source"])


def code_cells(path: Path) -> list[dict]:
    return [c for c in json.loads(path.read_text(encoding="utf-8"))["cells"] if c["cell_type"] == "code"]


def module_of(path: Path) -> str | None:
    "The module that a notebook exports, as in 'transforms.linear'."
    match = DEFAULT_EXP.search("\n".join(map(source, code_cells(path))))
    return match[1] if match else None


CHAPTERS = {module: path.stem for path in NOTEBOOKS if (module := module_of(path))}  # in the order of the chapters
per_module = pytest.mark.parametrize("module", CHAPTERS)


def imports(module: str) -> set[str]:
    "The absolute names of all modules that `module` imports, inside functions too."
    path = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    package = ["autonf_nb", *module.split(".")[:-1]]
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            target = ".".join(base + ([node.module] if node.module else []))
            found |= {target} | {f"{target}.{alias.name}" for alias in node.names}
    return found


def run_python(code: str, cwd: Path = ROOT) -> str:
    env = {k: v for k, v in os.environ.items() if k != "IN_TEST"}  # under IN_TEST nbdev exports nothing
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    "A copy of the project whose notebooks were cleaned and whose package was made anew from them."
    copy = tmp_path_factory.mktemp("exported")
    shutil.copy(ROOT / "settings.ini", copy)
    shutil.copytree(ROOT / "nbs", copy / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints"))
    for path in PACKAGE.rglob("__init__.py"):  # written by hand
        (copy / path.relative_to(ROOT)).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy / path.relative_to(ROOT))
    run_python(
        "from nbdev.clean import nbdev_clean; from nbdev.doclinks import nbdev_export\n"
        "for step in (nbdev_clean, nbdev_export): step.__wrapped__()",
        cwd=copy,
    )
    return copy


def different(made: Path, kept: Path, pattern: str) -> list[str]:
    "The files that differ between two trees or stand in one alone."
    names = {p.relative_to(tree).as_posix() for tree in (made, kept) for p in tree.rglob(pattern) if ".ipynb_checkpoints" not in p.parts}
    same = filecmp.cmpfiles(made, kept, names, shallow=False)[0]
    return sorted(names - set(same))


def test_package_is_what_the_notebooks_export(exported):
    assert not different(exported / "autonf_nb", PACKAGE, "*.py"), "edit the notebook, not the module, then run `make sync`"


def test_notebooks_are_clean(exported):
    assert not different(exported / "nbs", ROOT / "nbs", "*.ipynb"), "run `make sync`"


def test_sidebar_lists_the_notebooks():
    made = runpy.run_path(str(ROOT / "docs/sidebar.py"))["sidebar"](NOTEBOOKS)
    assert made == (ROOT / "nbs/sidebar.yml").read_text(), "run `make sync`"


def test_readme_is_what_the_index_gives():
    done = subprocess.run([sys.executable, "docs/readme.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@per_module
def test_module_imports_only_earlier_chapters(module):
    order = list(CHAPTERS)
    # `sbi` alone is the package of that name, not our module
    own = {name.removeprefix("autonf_nb.") for name in imports(module) if name.startswith("autonf_nb.")} & set(order)
    later = {CHAPTERS[name] for name in own if order.index(name) >= order.index(module)}
    assert not later, f"{CHAPTERS[module]} imports from {sorted(later)}"


@per_module
def test_module_imports_only_what_is_required(module):
    settings = ConfigParser(delimiters=["="])
    settings.read(ROOT / "settings.ini", encoding="utf-8")
    named = " ".join(settings["DEFAULT"][f"{extra}requirements"] for extra in ("", "bsds300_", "cnf_", "optuna_", "ray_", "sbi_")).split()
    required = {re.split(r"[<>=!~]", r)[0].replace("-", "_") for r in named}
    known = required | {"sklearn", "autonf_nb"} | sys.stdlib_module_names
    assert not {name.split(".")[0] for name in imports(module)} - known, "name it among the requirements of settings.ini"


@per_notebook
def test_notebook_has_outputs_to_read(path):
    cells = code_cells(path)
    outputs = [out for cell in cells for out in cell["outputs"]]
    assert outputs or not module_of(path), "no outputs stored: run the notebook (`make notebooks`)"
    assert path.stat().st_size < 3_000_000, "make its figures smaller"
    for out in outputs:
        assert out["output_type"] != "error", f"an error is stored: {out.get('evalue')}"
        data = out.get("data", {})
        assert not [kind for kind in data if "widget" in kind], "a widget is stored, which nobody can see later"
        text = "".join("".join(part) for kind, part in [("text/plain", out.get("text", "")), *data.items()] if kind.startswith("text/"))
        assert not LOCAL_PATH.search(text), f"an output names a path of one machine: {LOCAL_PATH.search(text)[0]}"
        assert not PROGRESS.search(text), "a progress bar is stored: call with progress=False"


@per_notebook
def test_options_of_cells_are_yaml(path):
    "Quarto reads them, and stops at a colon and a space that no quotes hold."
    for cell in code_cells(path):
        for option in re.findall(r"^#\|\s*([\w-]+:.*)", source(cell), re.M):
            yaml.safe_load(option)


def test_import_is_light():
    code = "import sys, autonf_nb; assert 'AutoNF' in dir(autonf_nb); print({'torch', 'pandas', 'sklearn'} & set(sys.modules))"
    assert run_python(code).strip() == "set()"


@pytest.mark.skipif("cli" not in CHAPTERS, reason="no command line yet")
def test_help_of_the_command_line_is_light():
    code = """
import sys
from autonf_nb.cli import main
try:
    main(["--help"])
except SystemExit as end:
    assert not end.code
assert "torch" not in sys.modules
"""
    assert "search" in run_python(code)


def test_wheel_holds_the_package_and_its_data(tmp_path):
    tree = tmp_path / "tree"
    tree.mkdir()
    for name in ("settings.ini", "setup.py", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"):
        shutil.copy(ROOT / name, tree)
    shutil.copytree(PACKAGE, tree / "autonf_nb", ignore=shutil.ignore_patterns("__pycache__"))
    build = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet", "-w", tmp_path, tree]
    done = subprocess.run(build, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    held = set(zipfile.ZipFile(wheel).namelist())
    kept = {p.relative_to(ROOT).as_posix() for pattern in ("*.py", "*.npz") for p in PACKAGE.rglob(pattern)}
    assert kept <= held and any(name.endswith("/LICENSE") for name in held)
