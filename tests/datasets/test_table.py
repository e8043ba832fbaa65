from __future__ import annotations

import bz2
import csv
import gzip
import lzma
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from fssa_bayes.data import Preferences
from fssa_bayes.datasets import table

ROLES = {"user": "who", "left": "a", "right": "b", "choice": "win"}
VOTES = "who,a,b,win\nann,x,y,1\nbob,y,z,0\nann,z,x,1\nbob,x,z,0\n"
FEATURES = "item,price,size\nz,3,0\nx,1,-1\ny,2,1e1\n"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Returns a function that writes text or bytes to a file and returns its path."""

    def write_file(content: str | bytes, name: str = "votes.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write_file


@pytest.fixture
def save_npz(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes arrays to an npz file and returns its path."""

    def save(**arrays: np.ndarray) -> Path:
        np.savez(tmp_path / "features.npz", **arrays)
        return tmp_path / "features.npz"

    return save


def comparisons(data: Preferences) -> list[tuple[str, str, str, float]]:
    """Lists person, left, right and choice by name."""
    person = np.repeat(data.user_names.to_numpy(), data.counts)
    left, right = (data.item_names[side].tolist() for side in (data.left, data.right))
    return list(zip(person.tolist(), left, right, data.choice.tolist(), strict=True))


EXPECTED = [
    ("ann", "x", "y", 1.0),
    ("ann", "z", "x", 1.0),
    ("bob", "y", "z", 0.0),
    ("bob", "x", "z", 0.0),
]

# Files that are right.


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("votes.csv", VOTES.encode()),
        ("votes.txt", VOTES.encode()),
        ("votes.CSV", ("\ufeff" + VOTES.replace("\n", "\r\n")).encode()),
        ("votes.csv", VOTES.replace("\n", "\n\n").rstrip().encode()),
        ("votes.tsv", VOTES.replace(",", "\t").encode()),
        ("votes.csv.gz", gzip.compress(VOTES.encode(), mtime=0)),
        ("votes.tsv.bz2", bz2.compress(VOTES.replace(",", "\t").encode())),
        ("votes.csv.xz", lzma.compress(VOTES.encode())),
    ],
    ids=["csv", "txt", "bom-crlf", "blank-lines", "tsv", "gz", "tsv.bz2", "xz"],
)
def test_every_container_gives_the_same_comparisons(
    write: Write, name: str, content: bytes
) -> None:
    read = table.read(write(content, name), **ROLES)
    assert comparisons(read.data) == EXPECTED
    assert (read.rows, read.missing) == (4, {})


def test_zip_holds_one_file(tmp_path: Path) -> None:
    path = tmp_path / "votes.csv.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("votes.csv", VOTES)
        archive.writestr("__MACOSX/._votes.csv", "junk")
    assert comparisons(table.read(path, **ROLES).data) == EXPECTED
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("more.csv", VOTES)
    with pytest.raises(ValueError, match=r"must hold one file, got 'votes.csv', 'more.csv'"):
        table.read(path, **ROLES)


def test_quoted_commas_quotes_line_ends_and_long_cells(write: Write) -> None:
    long = "w" * 200_000  # The csv module stops at 131,072 unless told.
    text = f'who,a,b,win\nann,"x, or ""y""","two\r\nlines",1\nann,"two\r\nlines",{long},0\n'
    assert comparisons(table.read(write(text), **ROLES).data) == [
        ("ann", 'x, or "y"', "two\r\nlines", 1.0),
        ("ann", "two\r\nlines", long, 0.0),
    ]
    assert csv.field_size_limit() == 131_072


def test_delimiter_and_other_columns(write: Write) -> None:
    text = 'note;win;b;a;who;;\n"1;2";1;y;x;ann;;\n;0;x;y;é;;\n'
    read = table.read(write(text), **ROLES, delimiter=";")
    assert comparisons(read.data) == [("ann", "x", "y", 1.0), ("é", "y", "x", 0.0)]


def test_names_are_text(write: Write) -> None:
    text = "who,a,b,win\n007,1,01,1\n7,01,NA,0\n7,None,nan,1\n7,1,NA,0\n7, ,nan,0\n7, ,1,1\n"
    read = table.read(write(text), **ROLES)
    assert list(read.data.user_names) == ["007", "7"]
    assert set(read.data.item_names) == {"1", "01", "NA", "None", "nan", " "}
    assert read.missing == {}


def test_missing_rows_are_left_out_counted_and_reported(write: Write) -> None:
    text = VOTES + ",x,y,1\n,,y,1\nann,x,,\nbob,x,y,\nbob,x,y,NA\nbob,x,y,null\nbob,y,x,None\n"
    with pytest.warns(UserWarning, match="have an empty cell") as caught:
        read = table.read(write(text), **ROLES)
    assert comparisons(read.data) == EXPECTED
    assert (read.rows, read.missing) == (11, {"who": 2, "b": 1, "win": 4})
    message = "7 of 11 rows have an empty cell and were left out (2 in 'who', 1 in 'b', 4 in 'win')"
    assert [message in str(warning.message) for warning in caught] == [True]
    assert caught[0].filename == __file__


def test_what_is_called_none_is_an_answer_where_it_means_something(write: Write) -> None:
    text = "who,a,b,win\nann,None,x,None\nann,x,y,x\nann,y,None,y\n"
    assert [row[3] for row in comparisons(table.read(write(text), **ROLES).data)] == [1, 1, 1]
    text = "who,a,b,win\nann,x,y,none\nann,x,y,A\n"
    read = table.read(write(text), **ROLES, choice_labels={"A": "left", "none": "tie"}, ties="half")
    assert [row[3] for row in comparisons(read.data)] == [0.5, 1.0]


def test_no_complete_row_is_an_error(write: Write) -> None:
    with pytest.raises(ValueError, match=r"votes.csv must have a row .* 2 rows .*1 in 'a', 1 in"):
        table.read(write("who,a,b,win\nann,,y,1\nann,x,y,\n"), **ROLES)
    with pytest.raises(ValueError, match="at least one row, got a header alone"):
        table.read(write("who,a,b,win\n"), **ROLES)


# Choices.


@pytest.mark.parametrize(
    ("words", "choice"),
    [
        (("1", "0", "0.5"), (1.0, 0.0, 0.5)),
        (("1.0", "0.0", ".50"), (1.0, 0.0, 0.5)),
        (("true", "false", "TRUE"), (1.0, 0.0, 1.0)),
        (("left", "right", "tie"), (1.0, 0.0, 0.5)),
        (("x", "z", "tie"), (1.0, 0.0, 0.5)),
        (("y", "y", "tie"), (0.0, 1.0, 0.5)),
    ],
    ids=["integers", "floats", "booleans", "words", "names", "other-names"],
)
def test_codings_of_the_choice(
    write: Write, words: tuple[str, ...], choice: tuple[float, ...]
) -> None:
    text = "who,a,b,win\n" + "".join(
        f"ann,{pair},{word}\n" for pair, word in zip(("x,y", "y,z", "z,x"), words, strict=True)
    )
    data = table.read(write(text), **ROLES, ties="half").data
    assert tuple(data.choice.tolist()) == choice


def test_choice_labels_are_compared_as_text(write: Write) -> None:
    path = write("who,a,b,win\nann,x,y,1\nann,y,z,2\nann,z,x,0\n")
    read = table.read(path, **ROLES, choice_labels={1: "right", "2": "left", 0: "tie"}, ties="half")
    assert read.data.choice.tolist() == [0.0, 1.0, 0.5]
    with pytest.raises(TypeError, match="choice_labels must be a mapping"):
        table.read(path, **ROLES, choice_labels=["1=left"])


def test_numbers_that_are_item_names_too_are_ambiguous(write: Write) -> None:
    path = write("who,a,b,win\nann,1,0,1\nann,0,1,1\nann,0,1,0\n")
    with pytest.raises(ValueError, match=r"'1' at row 3 says left .* right .*choice_labels"):
        table.read(path, **ROLES)
    read = table.read(path, **ROLES, choice_labels={"1": "left", "0": "right"})
    assert read.data.choice.tolist() == [1.0, 1.0, 0.0]


def test_numbers_are_clear_where_the_names_do_not_fit_every_row(write: Write) -> None:
    read = table.read(write("who,a,b,win\nann,1,0,1\nann,2,1,0\nann,0,2,1\n"), **ROLES)
    assert read.data.choice.tolist() == [1.0, 0.0, 1.0]
    read = table.read(write("who,a,b,win\nann,2,3,3\nann,3,1,3\nann,2,1,1\n"), **ROLES)
    assert read.data.choice.tolist() == [0.0, 1.0, 0.0]
    path = write("who,a,b,win\nann,0,5,0\nann,5,3,tie\nann,3,0,0\n")
    assert table.read(path, **ROLES, ties="half").data.choice.tolist() == [1.0, 0.5, 0.0]


def test_a_choice_without_meaning_names_file_and_line(write: Write) -> None:
    with pytest.raises(ValueError, match=r"votes.csv: choice must be .* got '2' at row 4"):
        table.read(write("who,a,b,win\nann,x,y,1\n\nann,x,z,2\nann,y,z,0\n"), **ROLES)


# Files that are wrong.


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.csv", b"", "must have a header and rows, got an empty file"),
        ("v.csv", b"\n\r\n", "must have a header and rows, got an empty file"),
        ("v.csv", VOTES.encode("utf-16"), "must be UTF-8 text .* got byte 0xff"),
        ("v.csv", "who,a,b,win\né,x,y,1".encode("latin-1"), "must be UTF-8 text .* byte 0xe9"),
        ("v.csv", bytes(range(256)), "must be UTF-8 text .* got byte 0x80"),
        ("v.csv", b"\x00\x01,\x02\n", "must be text, got a binary file"),
        ("v.csv.gz", b"who,a,b,win\n", "must be a whole, readable file, got: Not a gzipped"),
        (
            "v.csv.gz",
            gzip.compress(VOTES.encode(), mtime=0)[:-20],
            "whole, readable file, got: Compressed",
        ),
        ("v.csv.bz2", VOTES.encode(), "must be a whole, readable file"),
        ("v.csv.xz", VOTES.encode(), "must be a whole, readable file"),
        ("v.csv.zip", VOTES.encode(), "must be a whole, readable file, got: File is not a zip"),
        ("v.csv", b"who,a,b,win\nann,x,y,1\nann,x,y\n", "4 cells in every .* got 3 at line 3"),
        ("v.csv", b"who,a,b,win\nann,x,y,1,\n", "must have 4 cells in every row, .* got 5 at line"),
        ("v.csv", b'who,a,b,win\nann,x,y,"1\nbob', "must quote cells as csv does, got at line 3"),
        ("v.csv", b"who,a,b,win,a\nann,x,y,1,2\n", "must have distinct columns, got 'a' 2 times"),
        ("v.csv", b"who;a;b;win\nann;x;0,5;1\n", "one column 'who;a;b;win'; try delimiter=';'"),
        ("v.csv", b"who\ta\tb\twin\n", r"got one column .*; try delimiter='\\t'"),
        ("v.csv", b"who|a|b|win\n", r"got one column .*; try delimiter='\|'"),
        ("v.tsv", VOTES.encode(), "got one column .*; try delimiter=','"),
        ("v.csv", b"who,a,B,win\n1,2,3,4\n", "right='b' is not a column .* 'who', 'a', 'B', 'win'"),
    ],
)
def test_what_is_not_such_a_table_is_refused(
    write: Write, name: str, content: bytes, message: str
) -> None:
    path = write(content, name)
    with pytest.raises(ValueError, match=message) as caught:
        table.read(path, **ROLES)
    assert str(path) in str(caught.value)


def test_corrupt_bytes_inside_a_gzip_file(write: Write) -> None:
    rows = "".join(f"u{n * 7919 % 997},x{n % 31},y{n % 37},{n % 2}\n" for n in range(5000))
    content = bytearray(gzip.compress(("who,a,b,win\n" + rows).encode()))
    content[2000:2050] = bytes(50)
    with pytest.raises(ValueError, match="must be a whole, readable file|must be UTF-8|cells in"):
        table.read(write(bytes(content), "votes.csv.gz"), **ROLES)


def test_paths_that_are_no_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"there is no '.*none\.csv'"):
        table.read(tmp_path / "none.csv", **ROLES)
    with pytest.raises(ValueError, match="must be a file, got the directory"):
        table.read(tmp_path, **ROLES)
    with pytest.raises(FileNotFoundError, match=r"there is no '.*none\.npz'"):
        table.read_items(tmp_path / "none.npz")


def test_arguments_are_checked_before_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="different columns, got 'a' for left and for right"):
        table.read(tmp_path / "none.csv", **{**ROLES, "right": "a"})
    for delimiter in ("\\t", "", '"'):
        with pytest.raises(ValueError, match="delimiter must be one character"):
            table.read(tmp_path / "none.csv", **ROLES, delimiter=delimiter)


def test_many_columns_are_listed_in_part(write: Write) -> None:
    header = ",".join(f"c{n}" for n in range(50))
    with pytest.raises(ValueError, match=r"'c19', … \(50 in all\)") as caught:
        table.read(write(header + "\n"), **ROLES)
    assert "'c20'" not in str(caught.value)


# Items and users.


def test_items_join_by_name(write: Write) -> None:
    items = write(FEATURES, "items.csv")
    data = table.read(write(VOTES), **ROLES, items=items).data
    assert list(data.feature_names) == ["price", "size"]
    price = dict(zip(data.item_names, data.items[:, 0].tolist(), strict=True))
    assert price == {"x": 1.0, "y": 2.0, "z": 3.0}
    assert data.items[data.left[0]].tolist() == [1.0, -1.0]
    assert comparisons(data) == EXPECTED


def test_users_join_by_name_and_idle_people_are_left_out(write: Write) -> None:
    users = write("region,who,age\n1,bob,40\n2,eve,50\n3,ann,30\n", "users.csv")
    with pytest.warns(UserWarning, match="users: 1 of 3 people have no comparisons .*: 'eve'"):
        data = table.read(write(VOTES), **ROLES, users=users).data
    assert list(data.user_names) == ["ann", "bob"]
    assert data.covariates.tolist() == [[3.0, 30.0], [1.0, 40.0]]
    assert list(data.covariate_names) == ["region", "age"]
    with pytest.raises(ValueError, match=r"users.csv must .* every person .* 'bob' \(1 of 2 have"):
        table.read(write(VOTES), **ROLES, users=write("who,age\nann,3\n", "users.csv"))


def test_the_column_of_names(write: Write) -> None:
    path = write("code,user,item\n1,5,7\n2,6,8\n", "features.csv")
    cases = [
        (table.read_items(path), "item", ["7", "8"], ["code", "user"]),
        (table.read_users(path), "user", ["5", "6"], ["code", "item"]),
        (table.read_items(path, names="code"), "code", ["1", "2"], ["user", "item"]),
        (table.read_items(write("q,r\nx,1\n", "other.csv")), "q", ["x"], ["r"]),
    ]
    for read, name, index, columns in cases:
        assert read.index.name == name
        assert (list(read.index), list(read.columns)) == (index, columns)
    with pytest.raises(ValueError, match="names='r' is not a column of .* 'code', 'user', 'item'"):
        table.read_users(path, names="r")


def test_item_features_as_given_back_by_read_items(write: Write) -> None:
    items = table.read_items(write(FEATURES.replace(",", ";"), "items.csv"), delimiter=";")
    assert items.loc["y"].tolist() == [2.0, 10.0]
    assert set(items.dtypes) == {np.dtype(np.float64)}
    assert comparisons(table.read(write(VOTES), **ROLES, items=items).data) == EXPECTED
    numbered = pd.DataFrame({"size": [1.0, 2.0]}, index=[7.0, 8.0])
    read = table.read(write("who,a,b,win\nann,7,8,1\n"), **ROLES, items=numbered)
    assert comparisons(read.data) == [("ann", "7", "8", 1.0)]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("item,price\nx,1\ny,2\n", r"every item compared, got none for 'z' \(1 of 3 .*'x', 'y'"),
        (
            "item,price\nx,1\ny,2\nx,3\nz,1\n",
            r"one row for each name .* got 'x' again at row 4 \(1",
        ),
        ("item,price\nx,1\n,2\nz,3\n", r"must name every row in column 'item', got an .* row 3"),
        ("item,price,size\nx,1,2\ny,2,big\nz,3,4\n", "got 'big' for 'y' in column 'size' .1 such"),
        ("item,price\nx,1\ny,\nz,3\n", "got '' for 'y' in column 'price'"),
        ("item,price\nx,1\ny,inf\nz,nan\n", r"got 'inf' for 'y' in column 'price' \(2 such cells"),
        ("item,price\nx,1\ny,1e200\nz,3\n", "got '1e200' for 'y'"),
        ("item\nx\n", "at least one row .* got 1 rows and 0 columns"),
        ("item,price\n", "at least one row .* got 0 rows and 1 columns"),
        ("item;price\nx;1\n", "try delimiter=';'"),
        ("item,price,price\nx,1,2\n", "distinct columns, got 'price' 2 times"),
    ],
)
def test_item_tables_that_do_not_fit(write: Write, content: str, message: str) -> None:
    path = write(content, "items.csv")
    with pytest.raises(ValueError, match=message) as caught:
        table.read(write(VOTES), **ROLES, items=path)
    assert str(path) in str(caught.value)


# Files of NumPy arrays, npz.


def test_npz_of_half_precision_and_whole_numbers(
    write: Write, save_npz: Callable[..., Path]
) -> None:
    values = np.array([[0.5, 1.0], [0.25, -2.0]], dtype=np.float16)
    for names in (
        np.array([7, 8]),
        np.array([7.0, 8.0]),
        np.array(["7", "8"]),
        np.array([b"7", b"8"]),
    ):
        path = save_npz(vector=values, name=names, version=np.array(3))
        data = table.read(write("who,a,b,win\nann,8,7,1\n"), **ROLES, items=path).data
        assert comparisons(data) == [("ann", "8", "7", 1.0)]
        assert data.items[data.left[0]].tolist() == [0.25, -2.0]
        assert list(data.feature_names) == ["vector_0", "vector_1"]


def test_npz_of_booleans(save_npz: Callable[..., Path]) -> None:
    path = save_npz(n=np.array(["x", "y"]), v=np.array([[True], [False]]))
    assert table.read_items(path)["v_0"].to_dict() == {"x": 1.0, "y": 0.0}


def test_npz_arrays_that_do_not_fit(write: Write, save_npz: Callable[..., Path]) -> None:
    names, values = np.array(["x", "y"]), np.ones((2, 3))
    cases = [
        ({"v": values}, r"one 1-D array of names and one 2-D .* got 'v' \(2, 3\)"),
        ({"n": names, "m": names, "v": values}, r"got 'n' \(2,\), 'm' \(2,\), 'v' \(2, 3\)"),
        ({"n": names, "v": values, "w": values}, r"got 'n' \(2,\), 'v' \(2, 3\), 'w' \(2, 3\)"),
        ({"n": names[:1], "v": values}, r"as many rows, got 'n' \(1,\), 'v' \(2, 3\)"),
        ({"n": names.astype(object), "v": values}, "without Python objects .*array 'n'"),
        ({"n": names, "v": values.astype(str)}, "numbers in its 2-D array 'v', got <U"),
        ({"n": names, "v": values * np.nan}, "got 'nan' for 'x' in column 'v_0'"),
        ({"n": names[[0, 0]], "v": values}, "got 'x' again at row 1"),
    ]
    for arrays, message in cases:
        path = save_npz(**arrays)
        with pytest.raises(ValueError, match=message) as caught:
            table.read_items(path)
        assert str(path) in str(caught.value)
    path = save_npz(n=names, m=names[::-1], v=values)
    assert list(table.read_items(path, names="m").index) == ["y", "x"]
    with pytest.raises(ValueError, match="a 1-D array 'q' of names"):
        table.read_items(path, names="q")


def test_files_that_are_no_npz(write: Write, save_npz: Callable[..., Path]) -> None:
    whole = save_npz(n=np.array(["x"]), v=np.ones((1, 500))).read_bytes()
    for content in (b"", b"junk", whole[:1000]):
        with pytest.raises(ValueError, match=r"items.npz must be an npz file .* got: "):
            table.read_items(write(content, "items.npz"))


# Files of type parquet.


def test_parquet_without_its_reader(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    path = write(b"PAR1", "votes.parquet")
    with pytest.raises(ImportError, match=r"votes.parquet needs pyarrow .*pip install pyarrow"):
        table.read(path, **ROLES)
    with pytest.raises(ImportError, match="or save the table as csv"):
        table.read_items(path)


def test_parquet_round_trip(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    large = 2**53 + 1  # Not a double: it would become the name of its neighbour.
    votes = pd.DataFrame(
        {
            "who": pd.array([large, 7, None, 7], dtype="Int64"),
            "a": [1.0, 2.0, 1.0, 2.0],
            "b": pd.Categorical(["2", "1", "2", "1"]),
            "win": pd.array([True, False, True, None], dtype="boolean"),
        },
        index=[3, 4, 5, 9],
    )
    votes.to_parquet(tmp_path / "votes.parquet")
    items = pd.DataFrame({"size": [0.5, 1.5]}, index=pd.Index([1, 2], name="item"))
    items.to_parquet(tmp_path / "items.parquet")
    with pytest.warns(UserWarning, match=re.escape("2 of 4 rows have an empty cell")):
        read = table.read(tmp_path / "votes.parquet", **ROLES, items=tmp_path / "items.parquet")
    assert comparisons(read.data) == [(str(large), "1", "2", 1.0), ("7", "2", "1", 0.0)]
    assert read.data.items[read.data.left, 0].tolist() == [0.5, 1.5]
    assert (read.rows, read.missing) == (4, {"who": 1, "win": 1})


def test_parquet_keeps_the_index_that_pandas_wrote(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for index in (pd.RangeIndex(1, 3, name="item"), pd.Index(["1", "2"])):
        pd.DataFrame({"size": [0.5, 1.5]}, index=index).to_parquet(tmp_path / "items.parquet")
        read = table.read_items(tmp_path / "items.parquet")
        assert read["size"].to_dict() == {"1": 0.5, "2": 1.5}


def test_parquet_that_does_not_fit(write: Write, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(ValueError, match="must be a parquet file, got"):
        table.read(write(b"who,a,b,win\n", "votes.parquet"), **ROLES)
    times = pd.DataFrame({"item": ["x"], "made": pd.to_datetime(["2024-01-01"])})
    times.to_parquet(tmp_path / "items.parquet")
    with pytest.raises(ValueError, match="got '2024-01-01 00:00:00' for 'x' in column 'made'"):
        table.read_items(tmp_path / "items.parquet")
    pd.DataFrame({"who": [["x"]], "a": 1, "b": 2, "win": 1}).to_parquet(tmp_path / "votes.parquet")
    with pytest.raises(ValueError, match="one word or number in each cell of column 'who'"):
        table.read(tmp_path / "votes.parquet", **ROLES)


@pytest.mark.slow
def test_many_rows(write: Write) -> None:
    """85,000 rows, of which every seventeenth has no answer."""
    rows = 85_000
    row = np.arange(rows)
    frame = pd.DataFrame(
        {
            "who": row % 4001,
            "a": row % 100,
            "b": (row + 1 + row // 100 % 99) % 100,
            "win": np.where(row % 17 == 0, "", (row % 2).astype(str)),
        }
    )
    path = write(frame.to_csv(index=False))
    with pytest.warns(UserWarning, match="5000 of 85000 rows have an empty cell"):
        read = table.read(path, **ROLES)
    kept = frame[frame["win"] != ""].sort_values("who", kind="stable")
    assert read.data.num_comparisons == len(kept) == 80_000
    expected = sorted(map(tuple, kept.astype(str).assign(win=kept["win"].astype(float)).to_numpy()))
    assert sorted(comparisons(read.data)) == expected


def test_whole_numbers_that_were_written_with_a_point_are_names_without(tmp_path: Path) -> None:
    """A program that met an empty cell writes the numbers of that column as 0.0, 1.0, …"""
    (tmp_path / "votes.csv").write_text("u,l,r,c\n1,0.0,1,left\n1,,2,right\n2,2.0,0,left\n")
    (tmp_path / "items.csv").write_text("item,size\n0,1.5\n1,2.5\n2,0.5\n")
    with pytest.warns(UserWarning, match="1 of 3 rows"):
        found = table.read(
            tmp_path / "votes.csv",
            user="u", left="l", right="r", choice="c", items=tmp_path / "items.csv",
        )  # fmt: skip
    assert found.data.item_names.tolist() == ["0", "1", "2"]
    assert found.data.left.tolist() == [0, 2]
    (tmp_path / "mixed.csv").write_text("u,l,r,c\n1,1.0,1.5,left\n2,1.5,1.0,left\n")
    found = table.read(tmp_path / "mixed.csv", user="u", left="l", right="r", choice="c")
    assert set(found.data.item_names) == {"1.0", "1.5"}
