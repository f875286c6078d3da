"""Where the time of one layer goes: its network, its function of one number, the rest.

    python benchmarks/layer_parts.py            # writes results/speed_parts.json

The parts of a layer are timed alone, in turn, in one process on one thread, in processor time; `rest` is what the whole layer takes
beyond them. `train` is forward and backward, `log_prob` forward without gradients."""
import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from autonf_nb.transforms.autoregressive import Autoregressive
from autonf_nb.transforms.coupling import AFFINE, Coupling, rational_quadratic
from record import RESULTS, medians, meta, write

LAYERS = {"RealNVP": (Coupling, AFFINE), "MAF": (Autoregressive, AFFINE), "RQ-C": (Coupling, rational_quadratic()),
          "RQ-AF": (Autoregressive, rational_quadratic())}


def forward_backward(function: Callable[..., Tensor | tuple[Tensor, ...]], inputs: tuple[Tensor, ...]) -> None:
    "Gradients of the inputs and of all parameters, by the sum of the outputs."
    inputs = tuple(x.detach().requires_grad_() for x in inputs)
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    torch.autograd.backward(outputs, [torch.ones_like(o) for o in outputs])


def parts(family: str, features: int, hidden: int, batch: int) -> dict[str, tuple[nn.Module, tuple[Tensor, ...]]]:
    "What to time, with its inputs: the layer, its network alone, its function alone."
    kind, univariate = LAYERS[family]
    layer = kind(features, univariate, hidden_features=hidden)
    for p in layer.parameters():
        p.data.add_(0.02 * torch.randn_like(p))
    moved = len(layer.transformed) if kind is Coupling else features
    seen = features - moved if kind is Coupling else features
    params = torch.randn(univariate.n_params, moved, batch)
    return {"layer": (layer, (torch.randn(batch, features),)), "network": (layer.conditioner, (torch.randn(seen, batch),)),
            "function": (univariate, (torch.randn(moved, batch), params))}


def measure(family: str, args: argparse.Namespace) -> list[dict]:
    timed = parts(family, args.features, args.hidden, args.batch)
    rows = []
    for operation, run in (("log_prob", lambda f, x: f(*x)), ("train", forward_backward)):
        with torch.set_grad_enabled(operation == "train"):
            ms = medians({name: lambda run=run, f=f, x=x: run(f, x) for name, (f, x) in timed.items()}, args.repeats)
        ms["rest"] = max(0.0, ms["layer"] - ms["network"] - ms["function"])
        rows.append({"operation": operation, "family": family, "D": args.features, "hidden": args.hidden, "batch": args.batch, "threads": 1,
                     **{f"{name}_ms": round(value, 3) for name, value in ms.items()}})
        print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=int, default=21)
    parser.add_argument("--hidden", type=int, default=128)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--out", type=Path, default=RESULTS/"speed_parts.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rows = [row for family in LAYERS for row in measure(family, args)]
    write(args.out, meta(" ".join(["python benchmarks/layer_parts.py", *sys.argv[1:]]), seeds=[0],
                         data="standard normal rows, one layer with two hidden layers, 8 bins, float32"), rows)
