"""Which learning rate for a training of 1,000 steps? Two flows on the gas turbine data.

    python benchmarks/learning_rate.py    # -> results/learning_rate.json, two minutes"""
import torch

from autonf_nb.candidates import Architecture
from autonf_nb.data import Standardizer, dequantize, load_dataset, split_rows
from autonf_nb.flow import Flow
from autonf_nb.training import Rows, mean_nll, one_thread, seeded, train_flow
from record import RESULTS, meta, write

RATES, FLOWS, STEPS, SEED = (1e-3, 3e-3, 1e-2, 2e-2, 4e-2), (("RQ-AF",) * 2, ("RealNVP",) * 4), 1000, 0


def main() -> None:
    table = load_dataset("gas_turbine")
    X, split = dequantize(table.X, seed=0), split_rows(len(table.X), seed=SEED)
    standardizer = Standardizer().fit(X[split.train])
    train, val = (Rows(torch.tensor(standardizer.transform(X[i]), dtype=torch.float32)) for i in (split.train, split.val))
    rows = []
    for names in FLOWS:
        for lr in RATES:
            with seeded(SEED):
                flow = Flow(Architecture(names).build(X.shape[1]), X.shape[1])
            train_flow(flow, train, val, steps=STEPS, lr=lr, seed=SEED)
            rows.append({"architecture": list(names), "lr": lr, "val_nll": mean_nll(flow, val)})
            print(rows[-1], flush=True)
    write(RESULTS/"learning_rate.json", meta("python benchmarks/learning_rate.py", seeds=[SEED], steps=STEPS, data=table.note), rows)


if __name__ == "__main__":
    with one_thread():
        main()
