"""Density and coverage against the package of their authors."""

import numpy as np
import pytest

from autonf_nb.metrics import density_coverage


@pytest.mark.parametrize("n, m, features, k", [(400, 400, 1, 5), (1000, 700, 11, 5), (300, 900, 43, 3), (600, 600, 2, 50)])
@pytest.mark.parametrize("shift", [0.0, 100.0])
def test_equals_prdc(n, m, features, k, shift):
    prdc = pytest.importorskip("prdc")
    rng = np.random.default_rng(n + features)
    real, fake = rng.normal(size=(n, features)) + shift, 1.2 * rng.normal(size=(m, features)) + shift
    theirs = prdc.compute_prdc(real, fake, nearest_k=k)
    np.testing.assert_allclose(density_coverage(real, fake, k), (theirs["density"], theirs["coverage"]), atol=1e-6, rtol=0)


def test_chunks_do_not_matter():
    rng = np.random.default_rng(0)
    real, fake = rng.normal(size=(257, 3)), rng.normal(size=(100, 3))
    assert len({density_coverage(real, fake, chunk=chunk) for chunk in (1, 100, 256, 257, 10_000)}) == 1


def test_no_square_matrix(monkeypatch):
    "No matrix of distances has more than chunk rows."
    import torch

    shapes, addmm = [], torch.addmm
    monkeypatch.setattr(torch, "addmm", lambda *args, **kw: shapes.append(addmm(*args, **kw)) or shapes[-1])
    rng = np.random.default_rng(0)
    density_coverage(rng.normal(size=(1000, 3)), rng.normal(size=(900, 3)), chunk=64)
    assert max(s.shape[0] for s in shapes) == 64
