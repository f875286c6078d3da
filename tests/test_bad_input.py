"""Bad input: one clear sentence that names what is wrong, exit code 2 on the command line, nothing half-written."""
import json
import pickle
import resource
import shutil
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import NotFittedError

from autonf_nb import AutoNF
from autonf_nb.cli import main
from autonf_nb.data import DataError, write_table
from autonf_nb.estimator import FlowFolderError

ROWS = 60
TINY = dict(steps=2, n_layers=1, hidden_features=4, batch_size=16, candidates=("MAF",))


def table(rows=ROWS, columns=3):
    return np.random.default_rng(0).standard_normal((rows, columns))


def changed(row, column, value, dtype=float):
    X = table().astype(dtype)
    X[row, column] = value
    return X


def column(values):
    X = table()
    X[:, 1] = values
    return X


# --- the table

TABLES = {
    "NaN": (changed(3, 1, np.nan), r"column 'x1' holds NaN.* row 3"),
    "inf": (changed(3, 1, np.inf), r"column 'x1' holds inf in row 3"),
    "too large": (changed(3, 1, 1e200), r"too large"),
    "missing value": (pd.DataFrame(changed(5, 0, pd.NA, object), columns=list("abc")), r"column 'a' holds NaN.* row 5"),
    "None": (changed(3, 1, None, object), r"column 'x1' holds NaN"),
    "constant column": (column(2.0), r"column 'x1' is constant"),
    "two values": (column(np.arange(ROWS) % 2), r"column 'x1' holds two values"),
    "text column": (pd.DataFrame({"a": table()[:, 0], "b": ["red"] * ROWS}), r"column 'b', row 0, holds text"),
    "complex": (table() + 1j, r"[Cc]omplex"),
    "dates": (pd.DataFrame({"a": table()[:, 0], "b": pd.date_range("2020", periods=ROWS)}), r"'b'|dates"),
    "three axes": (table()[:, :, None], r"3 axes"),
    "one axis": (table()[:, 0], r"one axis.*[Rr]eshape"),
    "one row": (table(1), r"1 row .*at least"),
    "no rows": (table(0), r"0 rows"),
    "no columns": (table()[:, :0], r"0 feature"),
    "ragged lists": ([[1.0, 2.0]] * 20 + [[1.0]], r"row 20 has 1 entries"),
    "dict": ({"a": [1, 2]}, r"dict where a table"),
    "nothing": (None, r"nothing where a table"),
    "file name": ("data.csv", r"read_table"),
    "sparse": (scipy.sparse.csr_matrix(table()), r"sparse"),
    "same name twice": (pd.DataFrame(table(), columns=["a", "a", "b"]), r"more than one column of the name 'a'"),
}


@pytest.mark.parametrize("X, says", TABLES.values(), ids=TABLES)
def test_a_bad_table_is_refused(X, says):
    est = AutoNF(**TINY)
    with pytest.raises((ValueError, TypeError), match=says):
        est.fit(X)
    assert not hasattr(est, "flow_")


# --- the arguments

ARGUMENTS = {
    "lam negative": (dict(lam=-0.1), r"lam must be at least 0.*-0.1"),
    "lam NaN": (dict(lam=float("nan")), r"lam .*nan"),
    "lam text": (dict(lam="0.1"), r"lam must be a number, got '0.1'"),
    "unknown candidate": (dict(candidates=("MAF", "GLOW")), r"'GLOW'.*MAF"),
    "candidates a string": (dict(candidates="MAF"), r"candidates .*'MAF'"),
    "no candidates": (dict(candidates=()), r"candidates is empty"),
    "NULL alone": (dict(candidates=("NULL",)), r"NULL alone"),
    "candidate twice": (dict(candidates=("MAF", "MAF")), r"more than once"),
    "unknown strategy": (dict(strategy="magic"), r"strategy .*'op2'.*'magic'"),
    "unknown cost": (dict(cost="seconds"), r"cost .*'seconds'"),
    "cost without a candidate": (dict(cost={"RQ-C": 1.0}), r"no entry for 'MAF'"),
    "unknown direction": (dict(direction="forward"), r"direction .*'forward'"),
    "unknown engine": (dict(engine="cloud"), r"engine .*'cloud'"),
    "unknown masks": (dict(masks="diagonal"), r"masks .*'evolve'.*'diagonal'"),
    "n_layers 0": (dict(n_layers=0), r"n_layers must be at least 1, got 0"),
    "n_layers a float": (dict(n_layers=2.5), r"n_layers must be a whole number.*2.5"),
    "block larger than n_layers": (dict(n_layers=2, block_size=3), r"block_size=3 is larger than n_layers=2"),
    "block_size 0": (dict(block_size=0), r"block_size must be at least 1, got 0"),
    "hidden_features 0": (dict(hidden_features=0), r"hidden_features .*0"),
    "batch larger than rows": (dict(batch_size=256), r"batch_size=256 is larger than the number of training rows, 54"),
    "batch_size 0": (dict(batch_size=0), r"batch_size .*0"),
    "steps 0": (dict(steps=0), r"steps must be at least 1, got 0"),
    "max_seconds 0": (dict(max_seconds=0), r"max_seconds must be above 0"),
    "seed negative": (dict(seed=-1), r"seed .*-1"),
    "no such device": (dict(device="cuda:99"), r"device='cuda:99'"),
    "no device at all": (dict(device="toaster"), r"device='toaster'"),
    "dequantize text": (dict(dequantize="yes"), r"dequantize .*'yes'"),
    "bounds of no column": (dict(bounds={"power": (0, None)}), r"'power'.*x0"),
    "bounds of no number": (dict(bounds={7: (0, None)}), r"column 7"),
    "bounds not a mapping": (dict(bounds=(0, 1)), r"bounds must be a mapping"),
    "bounds the wrong way": (dict(bounds={"x0": (1, 0)}), r"low must be below high"),
    "value outside bounds": (dict(bounds={"x0": (0, None)}), r"column 'x0' has the value .* outside its declared bounds"),
}


@pytest.mark.parametrize("arguments, says", ARGUMENTS.values(), ids=ARGUMENTS)
def test_a_bad_argument_is_refused_by_fit_and_not_before(arguments, says):
    est = AutoNF(**TINY | arguments)
    with pytest.raises((ValueError, TypeError), match=says):
        est.fit(table())
    assert not hasattr(est, "flow_") and not hasattr(est, "n_features_in_")


FITS = {
    "context of the wrong length": (dict(context=np.zeros((5, 1))), r"context has 5 rows where X has 60"),
    "context with NaN": (dict(context=np.full((ROWS, 1), np.nan)), r"context.*NaN"),
    "context_val alone": (dict(context_val=np.zeros((5, 1))), r"context_val was given without X_val"),
    "X_val of another width": (dict(X_val=table(20, 2)), r"X_val has 2 features"),
    "X_val without its context": (dict(context=table(ROWS, 1), X_val=table(20)), r"context is missing"),
}


@pytest.mark.parametrize("data, says", FITS.values(), ids=FITS)
def test_bad_data_beside_the_table_are_refused(data, says):
    with pytest.raises(ValueError, match=says):
        AutoNF(**TINY).fit(table(), **data)


def test_a_checkpoint_folder_with_foreign_files_is_left_alone(tmp_path):
    (tmp_path/"thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="holds other files"):
        AutoNF(**TINY).fit(table(), checkpoint=tmp_path)
    assert (tmp_path/"thesis.txt").read_text() == "years of work"


def test_a_checkpoint_below_a_file_is_refused(tmp_path):
    (tmp_path/"file").write_text("")
    with pytest.raises(OSError, match="checkpoint folder .* cannot be written"):
        AutoNF(**TINY).fit(table(), checkpoint=tmp_path/"file"/"checkpoint")


# --- a fitted flow

@pytest.fixture(scope="module")
def fitted():
    X = table()
    X[:, 2] = np.exp(X[:, 2])
    return AutoNF(**TINY, bounds={"c": (0, None)}).fit(pd.DataFrame(X, columns=list("abc")))


@pytest.fixture(scope="module")
def conditional():
    return AutoNF(**TINY).fit(table(), context=table(ROWS, 2))


QUESTIONS = {
    "wrong width": (lambda e: e.log_prob(np.ones((4, 2))), r"2 features, but AutoNF is expecting 3"),
    "other names": (lambda e: e.log_prob(pd.DataFrame(np.ones((4, 3)), columns=list("abx"))), r"feature names.*'x'"),
    "other order": (lambda e: e.log_prob(pd.DataFrame(np.ones((4, 3)), columns=list("acb"))), r"another order"),
    "one axis": (lambda e: e.log_prob(np.ones(3)), r"[Rr]eshape"),
    "NaN": (lambda e: e.score(np.full((2, 3), np.nan)), r"'a' holds NaN"),
    "outside bounds": (lambda e: e.score_samples(-np.ones((2, 3))), r"'c' has the value -1 .*outside"),
    "unasked context": (lambda e: e.log_prob(np.ones((2, 3)), context=np.ones((2, 1))), r"fitted without one"),
    "samples below 0": (lambda e: e.sample(-1), r"n must be at least 0, got -1"),
    "half a sample": (lambda e: e.sample(1.5), r"n must be a whole number.*1.5"),
}


@pytest.mark.parametrize("ask, says", QUESTIONS.values(), ids=QUESTIONS)
def test_a_bad_question_is_refused(fitted, ask, says):
    with pytest.raises((ValueError, TypeError), match=says):
        ask(fitted)


CONTEXTS = {
    "missing": (lambda e: e.log_prob(table(4)), r"context is missing"),
    "wrong length": (lambda e: e.log_prob(table(4), context=table(3, 2)), r"context has 3 rows where X has 4"),
    "wrong width": (lambda e: e.log_prob(table(4), context=table(4, 1)), r"context has 1 columns.*2"),
    "missing for samples": (lambda e: e.sample(4), r"context is missing"),
    "wrong number for samples": (lambda e: e.sample(4, context=table(3, 2)), r"context has 3 rows where 4 samples"),
}


@pytest.mark.parametrize("ask, says", CONTEXTS.values(), ids=CONTEXTS)
def test_a_bad_context_is_refused(conditional, ask, says):
    with pytest.raises(ValueError, match=says):
        ask(conditional)


def test_before_fit_there_is_no_answer(tmp_path):
    for ask in (lambda e: e.log_prob(table()), lambda e: e.sample(1), lambda e: e.save(tmp_path)):
        with pytest.raises(NotFittedError):
            ask(AutoNF())


def test_a_density_that_is_not_a_number_is_an_error_not_a_nan(fitted):
    broken = pickle.loads(pickle.dumps(fitted))
    with torch.no_grad():
        next(broken.flow_.parameters()).fill_(float("nan"))
    with pytest.raises(DataError, match="row 0 is not a number"):
        broken.log_prob(np.ones((2, 3)))


# --- the folder of a flow

def damage_weights(folder):
    data = bytearray((folder/"flow.safetensors").read_bytes())
    data[-5] ^= 1
    (folder/"flow.safetensors").write_bytes(data)


def edit_config(folder, **values):
    config = json.loads((folder/"config.json").read_text()) | values
    (folder/"config.json").write_text(json.dumps(config))


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


FOLDERS = {
    "missing": (shutil.rmtree, r"there is no folder"),
    "empty": (lambda d: [p.unlink() for p in d.iterdir()], r"flow has no config.json: it is incomplete"),
    "without weights": (lambda d: (d/"flow.safetensors").unlink(), r"flow has no flow.safetensors: it is incomplete"),
    "weights cut short": (lambda d: cut(d/"flow.safetensors"), r"flow.safetensors is damaged"),
    "one bit of the weights": (damage_weights, r"flow.safetensors is damaged"),
    "a pickle for weights": (lambda d: (d/"flow.safetensors").write_bytes(pickle.dumps({"a": 1})), r"flow.safetensors is damaged"),
    "config cut short": (lambda d: cut(d/"config.json"), r"config.json is damaged"),
    "config edited": (lambda d: edit_config(d, cost=0.0), r"config.json is damaged"),
    "other JSON": (lambda d: (d/"config.json").write_text("[1, 2]"), r"does not describe a flow"),
    "newer version": (lambda d: edit_config(d, format_version=99), r"format 99 .* newer .*upgrade"),
}


@pytest.mark.parametrize("spoil, says", FOLDERS.values(), ids=FOLDERS)
def test_a_bad_folder_is_refused(fitted, tmp_path, spoil, says):
    folder = fitted.save(tmp_path/"flow")
    spoil(folder)
    with pytest.raises(FlowFolderError, match=says):
        AutoNF.load(folder)


def test_a_file_in_the_way_of_the_folder(fitted, tmp_path):
    (tmp_path/"flow").write_text("mine")
    for folder in (tmp_path/"flow", tmp_path/"flow"/"below"):
        with pytest.raises(OSError, match="cannot be written"):
            fitted.save(folder)
    assert (tmp_path/"flow").read_text() == "mine"


@contextmanager
def full_disk(size):
    "No file may grow beyond `size` bytes: to the writer the same as a full disk."
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_what_was_there(fitted, tmp_path):
    folder = fitted.save(tmp_path/"flow")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with full_disk(200):
        for target in (folder, tmp_path/"new"):
            with pytest.raises(OSError, match="cannot be written"):
                fitted.save(target)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before and not (tmp_path/"new").exists()


# --- the command line

@pytest.fixture(scope="module")
def place(tmp_path_factory, fitted):
    "A folder with good and bad files."
    d = tmp_path_factory.mktemp("place")
    write_table(table(), ("a", "b", "c"), d/"good.csv")
    fitted.save(d/"flow")
    good = (d/"good.csv").read_text().splitlines()
    (d/"empty.csv").write_text("")
    (d/"header.csv").write_text("a,b,c\n")
    (d/"ragged.csv").write_text("\n".join([*good[:5], "1.0,2.0", *good[5:]]))
    (d/"text.csv").write_text("\n".join([*good[:5], "1.0,red,2.0", *good[5:]]))
    (d/"missing.csv").write_text("\n".join([*good[:5], "1.0,,2.0", *good[5:]]))
    (d/"one_row.csv").write_text("\n".join(good[:2]))
    (d/"constant.csv").write_text("a,b\n" + "\n".join(f"{i * 0.7},1.0" for i in range(50)))
    (d/"noise.csv").write_bytes(bytes(range(256)) * 4)
    (d/"table.xlsx").write_text("")
    (d/"folder.csv").mkdir()
    (d/"unreadable.csv").symlink_to("/proc/self/mem")
    np.savez(d/"whole.npz", X=table())
    (d/"cut.npz").write_bytes((d/"whole.npz").read_bytes()[:-200])
    np.save(d/"objects.npy", np.array([{"a": 1}] * 20, dtype=object), allow_pickle=True)
    np.save(d/"wide.npy", table(30, 7))
    (d/"cut.parquet").write_bytes(b"PAR1 and nothing more")
    (d/"file").write_text("mine")
    (d/"full").mkdir()
    (d/"full"/"thesis.txt").write_text("years of work")
    return d


SMALL = "--steps 2 --n_layers 1 --hidden_features 4 --batch_size 16 --candidates MAF --quiet"
COMMANDS = {
    "no verb": ("", r"VERB"),
    "unknown verb": ("find {d}/good.csv", r"'find'"),
    "missing file": ("search {d}/absent.csv", r"no file .*absent.csv"),
    "unknown data set": ("search gas_turbines", r"'gas_turbines'.*gas_turbine"),
    "data set that is elsewhere": ("search higgs", r"higgs.*AUTONF_DATA"),
    "empty file": ("search {d}/empty.csv", r"empty"),
    "header only": ("search {d}/header.csv", r"no rows"),
    "ragged CSV": ("search {d}/ragged.csv", r"line 6 has 2 cells"),
    "text column": ("search {d}/text.csv", r"column 'b' holds text, 'red' on line 6"),
    "missing value": ("search {d}/missing.csv", r"column 'b' has a missing value .*line 6"),
    "one row": ("search {d}/one_row.csv", r"1 row"),
    "constant column": ("search {d}/constant.csv", r"constant.csv: column 'b' is constant"),
    "not text": ("search {d}/noise.csv", r"noise.csv"),
    "unknown format": ("search {d}/table.xlsx", r"'.xlsx'"),
    "a folder": ("search {d}/folder.csv", r"is a folder"),
    "unreadable": ("search {d}/unreadable.csv", r"cannot be read"),
    "truncated NPZ": ("search {d}/cut.npz", r"cut.npz.*(damaged|cut short)"),
    "pickled objects": ("search {d}/objects.npy", r"pickled Python objects"),
    "truncated Parquet": ("search {d}/cut.parquet", r"cut.parquet.*damaged"),
    "negative lambda": ("search {d}/good.csv --lam -1", r"lam .*-1"),
    "lambda not a number": ("search {d}/good.csv --lam much", r"--lam.*'much'"),
    "unknown candidate": ("search {d}/good.csv --candidates MAF,GLOW", r"'GLOW'"),
    "unknown option": ("search {d}/good.csv --frobnicate 3", r"unknown option --frobnicate"),
    "misspelt option": ("search {d}/good.csv --n-layers 3", r"--n-layers: did you mean --n_layers"),
    "n_layers 0": ("search {d}/good.csv --n_layers 0", r"n_layers .*0"),
    "block larger than n_layers": ("search {d}/good.csv --n_layers 2 --block_size 3", r"block_size=3"),
    "batch larger than rows": ("search {d}/good.csv --batch_size 1000", r"batch_size=1000"),
    "seed negative": ("search {d}/good.csv --seed -1", r"seed .*-1"),
    "cost not a mapping": ("search {d}/good.csv --cost MAF=x", r"MAF=x"),
    "context of no column": ("search {d}/good.csv --context z", r"no column 'z'"),
    "nothing but context": ("search {d}/good.csv --context a,b,c", r"every column"),
    "bounds of no column": ("search {d}/good.csv --bounds z=0:", r"'z'"),
    "bounds misspelt": ("search {d}/good.csv --bounds a>0", r"NAME=low:high"),
    "value outside bounds": ("search {d}/good.csv --bounds a=0:", r"column 'a' has the value"),
    "out is a file": ("search {d}/good.csv --out {d}/file", r"not a folder"),
    "out below a file": ("search {d}/good.csv --out {d}/file/out", r"cannot be written"),
    "out holds other files": ("search {d}/good.csv --out {d}/full", r"not empty"),
    "resume of nothing": ("search --resume", r"no search .*to go on with"),
    "evaluate without a flow": ("evaluate {d}/absent {d}/good.csv", r"no folder"),
    "evaluate other columns": ("evaluate {d}/flow {d}/constant.csv", r"no column 'c'"),
    "evaluate another width": ("evaluate {d}/flow {d}/wide.npy", r"7 features, but AutoNF is expecting 3"),
    "evaluate outside bounds": ("evaluate {d}/flow {d}/good.csv", r"'c' .*outside"),
    "sample below 0": ("sample {d}/flow -n -3 --out {d}/s.csv", r"-3"),
    "sample into an unknown format": ("sample {d}/flow --out {d}/s.txt", r"'.txt'"),
    "sample into no folder": ("sample {d}/flow --out {d}/absent/s.csv", r"cannot be written"),
    "sample with an unasked context": ("sample {d}/flow --out {d}/s.csv --context 1,2", r"fitted without one"),
    "sample with text for context": ("sample {d}/flow --out {d}/s.csv --context red", r"red is neither"),
}


@pytest.mark.parametrize("line, says", COMMANDS.values(), ids=COMMANDS)
def test_a_bad_command_says_one_sentence_and_writes_nothing(place, tmp_path, monkeypatch, capsys, line, says):
    import re
    monkeypatch.delenv("AUTONF_DATA", raising=False)
    before = {p: p.is_file() and p.stat().st_mtime_ns for p in place.rglob("*")}
    argv = line.format(d=place).split()
    if argv[:1] == ["search"]:
        given = {word for word in argv if word.startswith("--")}
        small = SMALL.split()
        argv += [w for name, value in zip(small[:-1:2], small[1::2]) if name not in given for w in (name, value)] + ["--quiet"]
        argv += [] if "--out" in given else ["--out", str(tmp_path/"out")]
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and err.startswith("autonf") and "Traceback" not in err
    assert re.search(says, err), err
    assert not any(tmp_path.iterdir())
    assert {p: p.is_file() and p.stat().st_mtime_ns for p in place.rglob("*")} == before


def test_a_full_disk_while_sampling(place, tmp_path, capsys):
    with full_disk(5000):
        assert main(["sample", str(place/"flow"), "-n", "1000", "--out", str(tmp_path/"s.csv")]) == 2
    assert "cannot be written" in capsys.readouterr().err and not any(tmp_path.iterdir())


def test_a_full_disk_while_searching_can_be_gone_on_with(place, tmp_path, capsys):
    out = tmp_path/"out"
    with full_disk(2000):
        assert main(["search", str(place/"good.csv"), "--out", str(out), *SMALL.split()]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "Traceback" not in err and not (out/"flow.safetensors").exists()
    assert main(["search", "--resume", "--out", str(out), "--quiet"]) == 0
    assert AutoNF.load(out).architecture_ == ("MAF",)
