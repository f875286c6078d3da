"""The page of a search, from real histories of every kind of search."""

import json
import re

import numpy as np
import pytest
import torch

from autonf_nb.report import page, write_report
from autonf_nb.search import RECIPES, search_flow
from autonf_nb.strategies import STRATEGIES


def summary_of(result, columns, options):
    found = {"name": "AutoNF", "kind": "found", "nll": result.nll_val, "nll_2se": 0.1, "cost": result.cost}
    plain = {"name": "Gaussian", "kind": "reference", "nll": result.nll_val + 1, "nll_2se": 0.1}
    return {"data": {"name": "made up", "columns": columns, "rows": {"train": 200, "val": 50}, "held_out": "val", "log_abs_det": 0.5},
            "search": options, "flow": {"architecture": list(result.architecture), "cost": result.cost}, "models": [found, plain],
            "history": result.history, "seconds": result.seconds, "notes": result.notes}


@pytest.mark.parametrize("strategy", [*filter(RECIPES.get, STRATEGIES), "evolution", "op2-sampled"])
@pytest.mark.parametrize("features, lam, candidates", [(2, 0.01, ("MAF", "RealNVP", "NULL")), (1, 100.0, ("RealNVP", "NULL")),
                                                       (2, 0.01, ("RealNVP", "RQ-C"))])
def test_every_history_makes_a_page(strategy, features, lam, candidates, tmp_path):
    x = torch.randn(250, features, generator=torch.Generator().manual_seed(0))
    options = dict(candidates=candidates, n_layers=2, lam=lam, strategy=strategy, steps=10, hidden_features=8, batch_size=32, seed=0)
    result = search_flow(x[:200], x[200:], progress=False, **options)
    path = write_report(tmp_path / "out", summary_of(result, [f"c{i}" for i in range(features)], options))
    text = path.read_text()
    assert "Why this one" in text and ("Block 1" in text) == (strategy in RECIPES)
    assert json.loads((path.parent / "metrics.json").read_text())["flow"]["architecture"] == list(result.architecture)
    assert json.loads((path.parent / "history.json").read_text()).keys() == result.history.keys()
    assert not list(path.parent.rglob("*.part"))


def test_page_asks_nothing_of_the_network():
    bare = {"data": {"name": "x", "columns": ["a", "b"], "rows": {"train": 10}}, "search": {"lam": 0.1},
            "flow": {"architecture": [], "cost": 0.0}, "models": [{"name": "AutoNF", "kind": "found", "nll": 1.0, "nll_2se": 0.1}],
            "samples": {"data": np.random.default_rng(0).normal(size=(50, 2)), "flow": np.zeros((50, 2))}}
    html, pictures = page(bare)
    links = re.findall(r'(?:src|srcset|href)="([^"]*)"', html)
    assert len(links) == 2 * len(pictures) and all(link.startswith("data:image/png;base64,") for link in links)
    assert "default-src 'none'" in html and 'name="viewport"' in html and "prefers-color-scheme:dark" in html and "@media print" in html
