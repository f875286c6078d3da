"""What every transform promises, whatever its family: one contract, all layers, widths, dtypes, with and without a context.

`make test` runs a selection of the cases, `make test-all` all of them. Data, weights and disturbances come from fixed seeds."""
import copy
import zlib
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from nflows.distributions import StandardNormal
from nflows.flows import Flow as NFlow
from nflows.transforms import CompositeTransform, InverseTransform
from nflows.transforms.base import Transform

from autonf_nb.candidates import CANDIDATES
from autonf_nb.cnf import ImageCNF
from autonf_nb.transforms.autoregressive import Autoregressive, RecurrentConditioner
from autonf_nb.transforms.continuous import ContinuousFlow, SolverError
from autonf_nb.transforms.coupling import AFFINE, Coupling, FeatureMajorResNet, rational_quadratic
from autonf_nb.transforms.linear import Householder, LULinear, Permutation, QRLinear, ReversePermutation, SVDLinear
from autonf_nb.transforms.monotonic import RootError
from autonf_nb.transforms.multiscale import ActNorm, BatchNorm, ImageCoupling, PerPixel, ToImage

RQ = rational_quadratic(num_bins=5, bound=3.0)
HIDDEN, CONTEXT, WIDTHS = 16, 3, (1, 2, 5, 21)


class Family(NamedTuple):
    build: Callable[[int, int], Transform]   # (features, context_features)
    conditional: bool = True                 # takes a context
    train_differs: str = ""                  # why training mode computes something else than eval mode
    train_agrees_later: bool = False         # ... in its first batch only


def nonlinear(name: str) -> Callable[[int, int], Transform]:
    "The nonlinear part of a candidate, which without its LU layer and reversal has to be the identity at the start."
    return lambda d, c: CANDIDATES[name].nonlinear(features=d, hidden_features=HIDDEN, context_features=c, num_bins=5, layer=0)


def on_rows(transform: Transform, features: int) -> Transform:
    "A layer of images as a layer of rows: each row is an image of one pixel."
    to_image = ToImage((features, 1, 1))
    return CompositeTransform([to_image, transform, InverseTransform(to_image)])


FAMILIES = {name: Family(nonlinear(name)) for name in CANDIDATES if name != "NULL"}
FAMILIES["Glow"] = Family(nonlinear("Glow"), train_differs="activation normalisation takes its start from the first training batch",
                          train_agrees_later=True)
# as a candidate its tolerance is 1e-5, which is then its error: the contract is for exact functions
FAMILIES["CNF"] = Family(lambda d, c: ContinuousFlow(d, hidden_features=HIDDEN, context_features=c, tolerance=1e-11))
FAMILIES["CNF, convolutions"] = Family(  # each row a picture of one line of pixels
    lambda d, c: ImageCNF((1, 1, d), scales=1, hidden_features=4, context_features=c, tolerance=1e-11, max_steps=150))
FAMILIES |= {
    "RQ-C, residual conditioner": Family(
        lambda d, c: Coupling(d, RQ, hidden_features=HIDDEN, context_features=c, network=FeatureMajorResNet)),
    "RQ-AF, recurrent conditioner": Family(
        lambda d, c: Autoregressive(d, RQ, hidden_features=HIDDEN, context_features=c, conditioner=RecurrentConditioner)),
    "RQ-C, nothing passes": Family(
        lambda d, c: Coupling(d, RQ, hidden_features=HIDDEN, context_features=c, mask=torch.zeros(d, dtype=torch.bool))),
    "RealNVP, one feature is transformed": Family(
        lambda d, c: Coupling(d, AFFINE, hidden_features=HIDDEN, context_features=c, mask=torch.arange(d) > 0)),
    "image coupling": Family(lambda d, c: on_rows(ImageCoupling(d, RQ, hidden_features=HIDDEN, context_features=c), d)),
    "1x1 convolution": Family(lambda d, c: on_rows(PerPixel(LULinear(d)), d), conditional=False),
    "LULinear": Family(lambda d, c: LULinear(d), conditional=False),
    "QRLinear": Family(lambda d, c: QRLinear(d), conditional=False),
    "SVDLinear": Family(lambda d, c: SVDLinear(d), conditional=False),
    "Householder": Family(lambda d, c: Householder(d), conditional=False),
    "ReversePermutation": Family(lambda d, c: ReversePermutation(d), conditional=False),
    "Permutation": Family(lambda d, c: Permutation.random(d), conditional=False),
    "ActNorm": Family(lambda d, c: ActNorm(d), conditional=False, train_differs="the first training batch sets its scale",
                      train_agrees_later=True),
    "BatchNorm": Family(lambda d, c: BatchNorm(d), conditional=False, train_differs="a training batch is normalised by its own statistics"),
}
PERMUTATIONS = ("ReversePermutation", "Permutation")   # no parameters, and not the identity: chapter 02a checks their order
MAY_HAVE_NO_ROOT = ("B-NAF",)   # its weights multiply: with 21 features and outputs of 1e4 its values pass what single precision can hold
MAY_HAVE_NO_SOLUTION = ("CNF", "CNF, convolutions")   # with a velocity of thousands its 500 steps do not arrive
WITHOUT_EFFECT = {("Householder", 1)}   # a rotation of one feature is the identity, whatever its parameters
FREE_OF_NETWORKS = ("planar", "radial", "Sylvester")   # without a context


class Case(NamedTuple):
    family: str
    features: int
    context_features: int
    dtype: torch.dtype

    def __str__(self) -> str:
        context = "-context" if self.context_features else ""
        return f"{self.family}-D{self.features}{context}-{str(self.dtype).removeprefix('torch.')}"

    @property
    def loose(self) -> float:
        "Tolerance: rounding errors of a dozen shaken functions, one after another."
        return 1e-9 if self.dtype == torch.float64 else 2e-3

    def fresh(self) -> Transform:
        torch.manual_seed(0)
        return FAMILIES[self.family].build(self.features, self.context_features).to(self.dtype).eval()

    def shaken(self) -> Transform:
        "Every parameter moved off the identity start, alike in each call."
        transform = self.fresh()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in transform.parameters():
                p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p))
        return transform

    def rows(self, n: int, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor | None]:
        generator = torch.Generator().manual_seed(zlib.crc32(str(self).encode()))
        x = scale * torch.randn(n, self.features, generator=generator, dtype=torch.float64)
        c = torch.randn(n, self.context_features, generator=generator, dtype=torch.float64) if self.context_features else None
        return x.to(self.dtype), c if c is None else c.to(self.dtype)


CASES = [Case(name, features, context, dtype) for name, family in FAMILIES.items() for features in WIDTHS
         for context in ((0, CONTEXT) if family.conditional else (0,)) for dtype in (torch.float32, torch.float64)]
# what `make test` runs: one feature with a context, an odd number without, two with one in single precision
SELECTION = {(1, CONTEXT, torch.float64), (5, 0, torch.float64), (2, CONTEXT, torch.float32)}
UNCONDITIONAL_SELECTION = {(1, 0, torch.float64), (5, 0, torch.float32), (5, 0, torch.float64)}


def parametrized(*conditions: Callable[[Case], bool]) -> pytest.MarkDecorator:
    "The cases that meet the conditions, marked slow where `make test` leaves them out."
    def marks(case: Case) -> tuple:
        selection = SELECTION if FAMILIES[case.family].conditional else UNCONDITIONAL_SELECTION
        return () if case[1:] in selection else (pytest.mark.slow,)
    cases = [case for case in CASES if all(condition(case) for condition in conditions)]
    return pytest.mark.parametrize("case", [pytest.param(case, marks=marks(case)) for case in cases], ids=str)


def double(case: Case) -> bool:
    return case.dtype == torch.float64


def learnt(case: Case) -> bool:
    return case.family not in PERMUTATIONS


every_case = parametrized()


def close(a: torch.Tensor, b: torch.Tensor, eps: float) -> None:
    torch.testing.assert_close(a, b, atol=eps, rtol=eps)


def jacobian(direction: Callable, x: torch.Tensor, context: torch.Tensor | None) -> torch.Tensor:
    "(B, D, D): rows do not influence one another, so one pass over the summed batch gives all Jacobians."
    return torch.autograd.functional.jacobian(lambda x: direction(x, context)[0].sum(0), x).movedim(1, 0)


@every_case
@pytest.mark.parametrize("rows", [0, 1, 6])
def test_shapes(case, rows):
    transform, (x, context) = case.shaken(), case.rows(rows)
    assert isinstance(transform, Transform)
    for direction in (transform, transform.inverse):
        y, logabsdet = direction(x, context)
        assert y.shape == x.shape and logabsdet.shape == (rows,)
        assert y.dtype == logabsdet.dtype == case.dtype


@parametrized(learnt)
def test_identity_start(case):
    x, context = case.rows(6)
    for direction in (case.fresh(), case.fresh().inverse):
        y, logabsdet = direction(x, context)
        close(y, x, 1e-5)
        close(logabsdet, torch.zeros_like(logabsdet), 1e-5)


@every_case
@pytest.mark.parametrize("grad", [True, False], ids=["grad", "no_grad"])  # the autoregressive inverse has a form for each
def test_round_trips(case, grad):
    transform, (x, context) = case.shaken(), case.rows(20, scale=2.0)
    with torch.set_grad_enabled(grad):
        for there, back in ((transform, transform.inverse), (transform.inverse, transform)):
            y, logabsdet = there(x, context)
            x_back, logabsdet_back = back(y, context)
            close(x_back, x, case.loose)
            close(logabsdet_back, -logabsdet, case.loose)


@parametrized(double)
def test_log_determinant_is_autograds(case):
    transform, (x, context) = case.shaken(), case.rows(4)
    for direction in (transform, transform.inverse):
        close(direction(x, context)[1], torch.linalg.slogdet(jacobian(direction, x, context)).logabsdet, 1e-8)


@parametrized(learnt)
@pytest.mark.parametrize("direction", ["density", "sampling"])
def test_every_parameter_gets_a_finite_gradient(case, direction):
    transform, (x, context) = case.shaken(), case.rows(64)
    y, logabsdet = (transform if direction == "density" else transform.inverse)(x, context)
    (y.pow(3).sum() - logabsdet.sum()).backward()    # cubes, because rotations keep the sum of squares
    for name, p in transform.named_parameters():
        if p.numel():
            assert p.grad is not None, name
            assert p.grad.isfinite().all(), name
            # 1e-6: above what rounding leaves of a gradient that is zero
            assert p.grad.abs().max() > 1e-6 or (case.family, case.features) in WITHOUT_EFFECT, name


@every_case
def test_state_round_trip(case):
    transform, (x, context) = case.shaken(), case.rows(6)
    twin = case.fresh()
    twin.load_state_dict(transform.state_dict())
    for other in (twin, copy.deepcopy(transform)):
        for mine, its in ((transform, other), (transform.inverse, other.inverse)):
            for a, b in zip(mine(x, context), its(x, context)):
                assert torch.equal(a, b)


@every_case
def test_tails_are_finite(case):
    transform, (x, context) = case.shaken(), case.rows(20)
    for far in (1e3 * x, torch.full_like(x, 1e3), torch.full_like(x, -1e3)):
        for direction in (transform, transform.inverse):
            y, logabsdet = direction(far, context)
            assert y.isfinite().all() and logabsdet.isfinite().all()


@every_case
def test_training_mode_computes_the_same(case):
    "Where it does not, the family says why."
    transform, (x, context) = case.shaken(), case.rows(20)
    expected = transform(x, context)
    family, twin = FAMILIES[case.family], copy.deepcopy(transform).train()
    trained = twin(x, context)
    assert all(t.isfinite().all() for t in trained)
    same = all(torch.allclose(a, b, atol=case.loose, rtol=case.loose) for a, b in zip(expected, trained))
    assert same != bool(family.train_differs)
    if not family.train_differs or family.train_agrees_later:
        for a, b in zip(twin(x, context), twin.eval()(x, context)):
            close(a, b, case.loose)


@parametrized(lambda case: case.dtype == torch.float32, lambda case: FAMILIES[case.family].conditional)
@pytest.mark.parametrize("sigma", [1.0, 30.0, 1e4])
def test_large_network_outputs_are_finite(case, sigma):
    "A run that diverges must show itself as a bad loss, not as NaN: only the last layers, which start at zero, are made large."
    transform, (x, context) = case.fresh(), case.rows(50)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        outputs = conditioner_outputs(transform)
        assert outputs or (case.family in FREE_OF_NETWORKS and not case.context_features)
        for p in outputs:
            p.copy_(sigma * torch.randn(p.shape, generator=generator))
    for direction in (transform, transform.inverse):
        transform.zero_grad()
        try:
            y, logabsdet = direction(x, context)
        except RootError:  # says so, which is what counts
            assert case.family in MAY_HAVE_NO_ROOT and sigma == 1e4 and direction == transform.inverse
            continue
        except SolverError:
            assert case.family in MAY_HAVE_NO_SOLUTION and sigma == 1e4
            continue
        assert y.isfinite().all() and logabsdet.isfinite().all()
        (y.tanh().sum() + logabsdet.tanh().sum()).backward()
        assert all(p.grad.isfinite().all() for p in transform.parameters() if p.grad is not None)


def conditioner_outputs(transform: Transform) -> list[torch.nn.Parameter]:
    "The parameters that are zero at the start, last layers of networks, but for ActNorm's: scales of its own, without bound."
    norms = {id(p) for module in transform.modules() if isinstance(module, ActNorm) for p in module.parameters()}
    return [p for p in transform.parameters() if p.numel() and not p.any() and id(p) not in norms]


@every_case
def test_a_row_is_transformed_alone(case):
    transform, (x, context) = case.shaken(), case.rows(6)
    y, logabsdet = transform(x, context)
    for i in range(len(x)):
        y_i, logabsdet_i = transform(x[i:i + 1], None if context is None else context[i:i + 1])
        close(y_i, y[i:i + 1], case.loose)
        close(logabsdet_i, logabsdet[i:i + 1], case.loose)


@every_case
def test_another_width_is_refused(case):
    transform, (x, context) = case.shaken(), case.rows(6)
    for direction in (transform, transform.inverse):
        with pytest.raises(ValueError):
            direction(torch.cat([x, x], 1), context)


@parametrized(lambda case: case.context_features > 0)
def test_the_context_matters(case):
    transform, (x, context) = case.shaken(), case.rows(6)
    assert not torch.allclose(transform(x, context)[0], transform(x, context + 1)[0])
    with pytest.raises(ValueError, match="context"):
        transform(x)
    with pytest.raises(ValueError, match="context"):
        transform(x, context[:, :1])


@every_case
def test_inside_nflows(case):
    transform, (x, context) = case.shaken(), case.rows(5)
    chain = CompositeTransform([transform, InverseTransform(copy.deepcopy(transform))])  # together the identity
    flow = NFlow(chain, StandardNormal([case.features]).to(case.dtype))
    log_prob = flow.log_prob(x, context=context)
    close(log_prob, StandardNormal([case.features]).to(case.dtype).log_prob(x), 10 * case.loose)
    if case.dtype == torch.float32:  # nflows draws float32 noise whatever the parameters' dtype
        samples = flow.sample(3, context=context)
        assert samples.shape == ((3, case.features) if context is None else (5, 3, case.features))
        assert samples.isfinite().all()


@parametrized(lambda case: not double(case))
def test_double_agrees_with_float(case):
    transform, (x, context) = case.shaken(), case.rows(20)
    y, logabsdet = transform(x, context)
    y64, logabsdet64 = transform.double()(x.double(), None if context is None else context.double())
    assert y64.dtype == logabsdet64.dtype == torch.float64
    close(y.double(), y64, 1e-4)
    close(logabsdet.double(), logabsdet64, 1e-3)


def tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    "Parameters, buffers, and what is neither and would stay behind."
    found = dict(module.named_parameters()) | dict(module.named_buffers())
    for name, part in module.named_modules():
        found |= {f"{name}.{key}": value for key, value in vars(part).items() if isinstance(value, torch.Tensor)}
    return found


@parametrized(lambda case: not double(case))
def test_everything_moves_to_a_device(case):
    "The device without memory, which every machine has: what stays behind would meet rows of another device."
    assert all(t.device.type == "meta" for t in tensors(case.fresh().to("meta")).values())


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@parametrized(double)
def test_cuda_agrees_with_the_cpu(case):
    transform, (x, context) = case.shaken(), case.rows(6)
    expected = [*transform(x, context), *transform.inverse(x, context)]
    transform, x, context = transform.cuda(), x.cuda().requires_grad_(), None if context is None else context.cuda()
    results = [*transform(x, context), *transform.inverse(x, context)]
    for a, b in zip(results, expected):
        close(a.cpu(), b, 1e-8)
    sum(r.sum() for r in results).backward()
    assert x.grad.isfinite().all()
