"""Bad input to the data module: each mistake gets one clear sentence that names the culprit and the remedy."""
import builtins
import io
import sys

import numpy as np
import pandas as pd
import pytest
import torch

from autonf_nb.data import (DATASETS, Bounds, DataError, Standardizer, Table, check_context, check_table, load_dataset, plane_set,
                            read_table, split_rows, write_table)


def good(rows=30, features=3):
    return np.random.default_rng(0).normal(size=(rows, features))


def changed(value, row=3, column=1):
    X = good()
    X[row, column] = value
    return X


def with_column(values):
    X = good()
    X[:, 1] = values
    return X


def frame(**columns):
    return pd.DataFrame({"a": good()[:, 0], "b": good()[:, 1], **columns})


def says(call, culprit, remedy):
    "The call raises DataError in one paragraph that holds both."
    with pytest.raises(DataError) as info:
        call()
    text = str(info.value)
    assert "\n" not in text
    for part in [*culprit, remedy]:
        assert part in text, f"{part!r} is not in: {text}"


TABLES = {
    "nan": (lambda: changed(np.nan), ["X", "'x1'", "NaN", "row 3"], "drop such rows or fill them in"),
    "inf": (lambda: changed(-np.inf), ["'x1'", "inf", "row 3"], "drop such rows"),
    "two bad entries are counted": (lambda: np.where(good() > 1, np.nan, good()), ["NaN", "more such entr"], "fill them in"),
    "too large": (lambda: changed(1e200), ["'x1'", "1e+200", "row 3"], "rescale"),
    "missing in a frame": (lambda: frame(c=[None, *range(29)]), ["'c'", "missing value", "row 0"], "fill them in"),
    "pandas NA": (lambda: frame(c=pd.array([pd.NA, *range(29)], dtype="Int64")), ["'c'", "missing value", "row 0"], "fill them in"),
    "masked": (lambda: np.ma.masked_greater(good(), 2), ["NaN", "missing value"], "fill them in"),
    "constant": (lambda: with_column(7.0), ["'x1'", "constant", "7"], "leave it out"),
    "constant but for rounding": (lambda: with_column(0.1 + np.arange(30) % 2 * 1e-16), ["'x1'", "constant"], "leave it out"),
    "two values": (lambda: with_column(np.arange(30) % 2), ["'x1'", "two values only (0 and 1)"], "context"),
    "booleans": (lambda: good() > 0, ["'x0'", "two values only"], "leave it out"),
    "text column": (lambda: frame(colour=["red"] * 30), ["'colour'", "text", "'red'", "row 0"], "turn it into numbers"),
    "text among numbers": (lambda: [[1.0, 2.0], [3.0, "four"]] * 10, ["'x1'", "text", "'four'", "row 1"], "turn it into numbers"),
    "complex": (lambda: good() + 1j, ["X", "complex"], "columns"),
    "complex entry": (lambda: np.array([[1, 2j]] * 12, dtype=object), ["'x1'", "row 0", "complex"], "two columns"),
    "dates": (lambda: np.full((20, 2), "2020-01-01", dtype="M8[D]"), ["X", "dates"], "seconds"),
    "a dict for an entry": (lambda: np.array([[1, {}]] * 12, dtype=object), ["'x1'", "row 0", "dict"], "a number"),
    "one axis": (lambda: good()[:, 0], ["one axis", "(30,)"], "X.reshape(-1, 1)"),
    "a series": (lambda: frame()["a"], ["one axis"], "X.reshape(-1, 1)"),
    "three axes": (lambda: good()[None], ["3 axes", "(1, 30, 3)"], "reshape"),
    "no columns": (lambda: np.empty((10, 0)), ["0 feature(s)"], "at least one column"),
    "one row": (lambda: good(1), ["X has 1 row ", "at least 10"], "more rows"),
    "no rows": (lambda: good(0), ["X has 0 rows"], "more rows"),
    "ragged lists": (lambda: [[1, 2, 3], [4, 5], [6, 7, 8]], ["row 1 has 2", "row 0 has 3"], "same number"),
    "duplicate names": (lambda: pd.DataFrame(good(), columns=list("aba")), ["'a'", "more than one column"], "rename"),
    "a path": (lambda: "data.csv", ["a str"], "read_table"),
    "nothing": (lambda: None, ["nothing"], "(rows, features)"),
    "structured": (lambda: np.zeros(20, dtype=[("height", float), ("age", int)]), ["structured", "'height'"], "plain"),
    "sparse": (lambda: pytest.importorskip("scipy.sparse").csr_matrix(good()), ["sparse"], "toarray()"),
    "sparse, in the manner of a dict": (lambda: pytest.importorskip("scipy.sparse").dok_array(good()), ["sparse"], "toarray()"),
    "sparse tensor": (lambda: torch.tensor(good()).to_sparse(), ["sparse"], "to_dense()"),
    "torch NaN": (lambda: torch.tensor(changed(np.nan), requires_grad=True), ["'x1'", "NaN", "row 3"], "drop such rows"),
}


@pytest.mark.parametrize("make, culprit, remedy", TABLES.values(), ids=TABLES.keys())
def test_table(make, culprit, remedy):
    says(lambda: check_table(make()), culprit, remedy)


def test_table_at_predict_time():
    says(lambda: check_table(good(5, 2), n_features=3), ["2 features", "expecting 3 features"], "the columns it was fitted on")
    expected = ["a", "b", "c"]
    three = pd.DataFrame(good(), columns=expected)
    says(lambda: check_table(three[["b", "a", "c"]], n_features=3, columns=expected), ["another order"], "reorder")
    says(lambda: check_table(three.rename(columns={"c": "z"}), n_features=3, columns=expected), ["unseen at fit time: 'z'"], "missing: 'c'")
    says(lambda: check_table(good(), columns=["a", "b"]), ["3 columns", "2 column names"], "one name for each")
    for rows in (0, 1):  # what is too little to fit on can still be evaluated
        assert check_table(np.ones((rows, 3)), n_features=3)[0].shape == (rows, 3)


GOOD = {
    "lists": good().tolist(),
    "float32": good().astype(np.float32),
    "bfloat16": torch.tensor(good(), dtype=torch.bfloat16),
    "integers": (good() * 100).astype(int),
    "torch integers": torch.arange(60).reshape(20, 3),
    "frame": pd.DataFrame(good(), columns=list("abc")),
    "objects": good().astype(object),
    "one column": good()[:, :1],
    "Fortran order": np.asfortranarray(good()),
}


@pytest.mark.parametrize("X", GOOD.values(), ids=GOOD.keys())
def test_good_tables_pass(X):
    A, names = check_table(X)
    assert A.dtype == np.float64 and A.flags.c_contiguous and np.isfinite(A).all() and len(names) == A.shape[1]


CONTEXTS = {
    "wrong length": (lambda: check_context(good(5), rows=30), ["5 rows", "30"], "one row of context for each row"),
    "wrong width": (lambda: check_context(good(30, 2), rows=30, n_features=3), ["2 columns", "3"], "the same columns"),
    "one axis": (lambda: check_context(good()[:, 0], rows=30), ["context", "one axis"], "context.reshape(-1, 1)"),
    "NaN": (lambda: check_context(changed(np.nan), rows=30), ["context", "'x1'", "row 3"], "fill them in"),
    "missing": (lambda: check_context(None, rows=30, n_features=2), ["context is missing", "2 context columns"], "give one row"),
    "unwanted": (lambda: check_context(good(), rows=30, n_features=0), ["without one"], "leave it out"),
}


@pytest.mark.parametrize("call, culprit, remedy", CONTEXTS.values(), ids=CONTEXTS.keys())
def test_context(call, culprit, remedy):
    says(call, culprit, remedy)


def test_good_contexts_pass():
    assert check_context(None, rows=3) is None
    assert check_context(np.ones((3, 1), dtype=int), rows=3).tolist() == [[1.0]] * 3  # labels may be constant


BOUNDS = {
    "unknown column": (lambda: Bounds({"age": (0, 120)}, ["height"]), ["'age'"], "the columns are 'height'"),
    "low above high": (lambda: Bounds({"a": (2, 1)}, ["a"]), ["'a'", "(2, 1)"], "low must be below high"),
    "low equals high": (lambda: Bounds({"a": (1, 1)}, ["a"]), ["'a'", "(1, 1)"], "low must be below high"),
    "not a pair": (lambda: Bounds({"a": 3}, ["a"]), ["'a'", "3"], "give a pair (low, high)"),
    "text": (lambda: Bounds({"a": ("zero", 1)}, ["a"]), ["'a'", "'zero'"], "give a pair (low, high) of numbers"),
    "NaN": (lambda: Bounds({"a": (np.nan, 1)}, ["a"]), ["'a'", "NaN"], "None for no bound"),
    "no bound": (lambda: Bounds({"a": (None, np.inf)}, ["a"]), ["'a'", "bounds nothing"], "leave the column out"),
    "below": (lambda: Bounds({"b": (0, None)}, ["a", "b"]).to_line([[1, 2], [1, -3]]), ["'b'", "-3", "row 1", "(0, inf)"], "correct"),
    "above": (lambda: Bounds({"a": (None, 4)}, ["a"]).to_line([[5], [6]]), ["'a'", "5", "row 0", "and 1 more", "(-inf, 4)"], "correct"),
    "on the edge": (lambda: Bounds({"a": (0, 1)}, ["a"]).to_line([[0.5], [1.0]]), ["'a'", "row 1", "on the edge"], "widen the bounds"),
}


@pytest.mark.parametrize("call, culprit, remedy", BOUNDS.values(), ids=BOUNDS.keys())
def test_bounds(call, culprit, remedy):
    says(call, culprit, remedy)


def npy(X, **kw):
    f = io.BytesIO()
    np.save(f, X, **kw)
    return f.getvalue()


def npz(**arrays):
    f = io.BytesIO()
    np.savez_compressed(f, **arrays)
    return f.getvalue()


def parquet(X):
    f = io.BytesIO()
    pd.DataFrame(X).to_parquet(f)
    return f.getvalue()


FILES = {
    "empty.csv": (b"", ["is empty"], "export the table again"),
    "blank.csv": (b"\n\n", ["is empty"], "export the table again"),
    "header_only.csv": (b"a,b\n", ["header but no rows"], "export the table again"),
    "ragged.csv": (b"a,b\n1,2\n3,4,5\n", ["line 3 has 3 cells", "line 1 has 2"], "correct that line"),
    "text.csv": (b"a,colour\n1,2\n1,red\n", ["'colour'", "'red'", "line 3"], "turn it into numbers"),
    "text_no_header.csv": (b"1,red\n2,blue\n", ["'x1'", "'red'", "line 1"], "leave the column out"),
    "decimal_comma.csv": (b"a;b\n1,5;2\n", ["'a'", "'1,5'", "line 2"], "write 1.5, not 1,5"),
    "missing.csv": (b"a,b\n1,2\n3,\n", ["'b'", "missing value", "line 3"], "fill them in"),
    "na.csv": (b"a,b\n1,2\n3,NA\n", ["'b'", "missing value", "'NA'", "line 3"], "fill them in"),
    "nan.csv": (b"a,b\n1,2\n\n3,nan\n", ["'b'", "NaN", "line 4"], "fill them in"),
    "inf.csv": (b"a,b\n1,2\n3,inf\n", ["'b'", "inf", "line 3"], "drop such rows"),
    "twice.csv": (b"a,b,a\n1,2,3\n", ["'a'", "more than one column"], "rename"),
    "latin1.csv": ("größe\n1\n".encode("latin-1"), ["UTF-8"], "export it again"),
    "binary.csv": (npz(X=good()), ["CSV"], "export it again"),
    "truncated.npz": (npz(X=good(500))[:-400], ["damaged or cut short"], "save it again"),
    "truncated.npy": (npy(good())[:-100], ["damaged or cut short"], "save it again"),
    "no_table.npz": (npz(train=good(), test=good()), ["'train', 'test'", "'X'"], "save the table under that name"),
    "pickled.npy": (npy(np.array([[1, "a"]], dtype=object), allow_pickle=True), ["pickled", "never loaded"], "X.astype(float)"),
    "pickled.npz": (npz(X=np.array([[1, "a"]], dtype=object)), ["pickled", "never loaded"], "X.astype(float)"),
    "names.npz": (npz(X=good(), columns=np.array(["a", "b"])), ["3 columns", "2 column names"], "one name for each"),
    "one_axis.npy": (npy(good()[:, 0]), ["one axis"], "reshape(-1, 1)"),
    "three_axes.npy": (npy(good()[None]), ["3 axes"], "reshape"),
    "complex.npy": (npy(good() + 1j), ["complex"], "columns of their own"),
    "nan.npy": (npy(changed(np.nan)), ["'x1'", "NaN", "row 3"], "fill them in"),
    "no_rows.npy": (npy(good(0)), ["0 rows"], "more rows"),
    "truncated.parquet": (parquet(good())[:-50], ["Parquet", "damaged or cut short"], "export it again"),
    "text.parquet": (parquet({"a": ["x", "y"]}), ["'a'", "text", "'x'", "row 0"], "turn it into numbers"),
    "table.xlsx": (b"PK", ["'.xlsx'", "unknown"], ".csv, .parquet, .npy, .npz"),
    "table": (b"1,2\n", ["no extension"], ".csv, .parquet, .npy, .npz"),
}


@pytest.mark.parametrize("file, content, culprit, remedy", [(k, *v) for k, v in FILES.items()], ids=FILES.keys())
def test_file(tmp_path, file, content, culprit, remedy):
    path = tmp_path / file
    path.write_bytes(content)
    says(lambda: read_table(path), [str(path), *culprit], remedy)


def test_no_file(tmp_path):
    says(lambda: read_table(tmp_path / "none.csv"), ["there is no file", "none.csv"], "check the path")
    (tmp_path / "folder.csv").mkdir()
    says(lambda: read_table(tmp_path / "folder.csv"), ["folder.csv", "is a folder"], "name the file")


def test_unreadable_file(tmp_path, monkeypatch):
    path = tmp_path / "locked.csv"
    path.write_text("1,2\n")

    def locked(file, *args, **kw):  # chmod would not stop a superuser
        raise PermissionError(13, "Permission denied", str(file))
    monkeypatch.setattr(builtins, "open", locked)
    says(lambda: read_table(path), ["locked.csv", "Permission denied"], "check the permissions")


def test_never_unpickles(tmp_path):
    class Trap:
        def __reduce__(self):
            return (sys.exit, ("a pickle was run",))
    for name, content in {"trap.npy": npy(np.array([[Trap()]], dtype=object), allow_pickle=True),
                          "trap.npz": npz(X=np.array([[Trap()]], dtype=object))}.items():
        (tmp_path / name).write_bytes(content)
        says(lambda path=tmp_path / name: read_table(path), ["never loaded"], "X.astype(float)")


@pytest.mark.parametrize("ext", [".csv", ".parquet", ".npy", ".npz"])
def test_write_and_read(tmp_path, ext):
    columns = ("a", 'b, "quoted"')
    X = good(20, 2) * [1e-300, 1e9]
    table = read_table(write_table(X, columns, tmp_path / f"t{ext}"))
    assert isinstance(table, Table) and np.array_equal(table.X, X)  # to the last bit
    assert table.columns == (columns if ext != ".npy" else ("x0", "x1"))
    assert [p.name for p in tmp_path.iterdir()] == [f"t{ext}"]


def test_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = write_table(good(), None, tmp_path / "t.npz")
    before = path.read_bytes()

    def full(*args, **kw):
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(np, "savez_compressed", full)
    says(lambda: write_table(good() + 1, None, path), [str(path), "No space left"], "free some space")
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_unwritable(tmp_path):
    says(lambda: write_table(good(), None, tmp_path / "no_such_folder" / "t.csv"), ["no_such_folder", "No such file"], "another folder")
    says(lambda: write_table(good(), None, tmp_path / "t.txt"), ["'.txt'"], ".csv")
    says(lambda: write_table(changed(np.nan), None, tmp_path / "t.csv"), ["NaN", "row 3"], "fill them in")
    assert not list(tmp_path.iterdir())


OTHERS = {
    "unknown data set": (lambda: load_dataset("gas"), ["'gas'"], "gas_turbine"),
    "unknown plane set": (lambda: plane_set("moons", 5), ["'moons'"], "two_moons"),
    "negative n": (lambda: plane_set("ring", -1), ["-1"], "0 or more"),
    "shares": (lambda: split_rows(100, val=0.6, test=0.5), ["0.6", "0.5"], "below 1"),
    "too few to split": (lambda: split_rows(2), ["2 rows"], "more rows"),
    "constant to standardise": (lambda: Standardizer().fit(with_column(1.0), ["a", "b", "c"]), ["'b'", "constant"], "leave it out"),
    "one row to standardise": (lambda: Standardizer().fit(good(1)), ["1 row"], "at least 2"),
}


@pytest.mark.parametrize("call, culprit, remedy", OTHERS.values(), ids=OTHERS.keys())
def test_others(call, culprit, remedy):
    says(call, culprit, remedy)


def test_data_sets_from_outside(tmp_path, monkeypatch):
    monkeypatch.delenv("AUTONF_DATA", raising=False)
    says(lambda: load_dataset("protein"), ["'protein'", "AUTONF_DATA"], "tabular/protein.npz")
    monkeypatch.setenv("AUTONF_DATA", str(tmp_path))
    says(lambda: load_dataset("protein"), ["there is no file", "protein.npz"], "put tabular/protein.npz")
    (tmp_path / "tabular").mkdir()
    (tmp_path / "tabular" / "protein.npz").write_bytes(npz(X=good()))
    says(lambda: load_dataset("protein"), ["protein.npz", "sha256"], "get it again")
    assert load_dataset("gas_turbine").X.shape == (DATASETS["gas_turbine"].rows, DATASETS["gas_turbine"].features)
