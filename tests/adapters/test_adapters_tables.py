"""Data sets from files: what columns become, and what is refused."""

import csv
import io
import re
import tarfile
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from modelkeep.adapters.csvrows import CsvRows, _Asked, with_header
from modelkeep.adapters.streams import ReaderFile, buffered
from modelkeep.adapters.tables import Source, read_batches, read_table
from modelkeep.adapters.tables import pictures as pictures_of
from modelkeep.adapters.tarred import TarFolder
from modelkeep.container.reader import BytesReader, read_bytes
from modelkeep.core.tables import joined
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted, TooLarge

CSV = """id,age,rate,gap,flag,half,code,who
1,30,0.5,3,true,true,007,Ann
2,41,1e-3,,false,NA,012,"Bo, Lee"
3,-7,.25,5,True,False,000,
"""


def same(one, other):
    assert list(one.columns) == list(other.columns)
    for name, column in one.columns.items():
        assert column.dtype == other.column(name).dtype
        np.testing.assert_array_equal(column, other.column(name))


def test_what_the_columns_of_a_csv_file_become(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(CSV)
    found = read_table(path)
    kinds = {name: column.dtype.kind for name, column in found.columns.items()}
    assert kinds == {"id": "i", "age": "i", "rate": "f", "gap": "f", "flag": "b", "half": "f", "code": "O", "who": "O"}
    assert found.column("age").tolist() == [30, 41, -7]
    assert found.column("rate").tolist() == [0.5, 0.001, 0.25]
    np.testing.assert_array_equal(found.column("gap"), [3, np.nan, 5])
    np.testing.assert_array_equal(found.column("half"), [1, np.nan, 0])
    assert found.column("flag").tolist() == [True, False, True]
    assert found.column("code").tolist() == ["007", "012", "000"]
    assert found.column("who").tolist() == ["Ann", "Bo, Lee", None]


def test_columns_are_chosen_by_name_and_in_that_order(tmp_path):
    path = tmp_path / "people.csv"
    path.write_text(CSV)
    assert list(read_table(path, columns=["who", "id"]).columns) == ["who", "id"]
    with pytest.raises(Missing, match="no column 'salary'"):
        read_table(path, columns=["salary"])


def test_separators_a_byte_order_mark_and_blanks_after_commas(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes("\ufeffa;b\r\n1;x\r\n2;\u00e9\r\n".encode())
    assert read_table(path).column("b").tolist() == ["x", "\u00e9"]
    path.write_text('a, b\n1, x\n2, "y, z"\n')
    assert read_table(path).column("b").tolist() == ["x", "y, z"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (b"", "first line must name"),
        (b"a,a\n1,2\n", "names two columns 'a': put a line of names above the rows"),
        (b"a,\n1,2\n", "first line must name"),
        (b"a,b\n1,2\n3\n", "row 2 has 1 values, and the header names 2"),
        (b"a,b\n1,\xff\xfe\n", "UTF-8"),
        (b'a,b\n1,"x\n', "cannot be read as rows"),
        (b"a,b\n", "no rows"),
    ],
)
def test_what_is_no_csv_file_is_said_in_one_sentence(tmp_path, text, why):
    path = tmp_path / "a.csv"
    path.write_bytes(text)
    with pytest.raises(Invalid, match=why):
        read_table(path)


ADULT = b"39, State-gov, 77516, Bachelors, 13, <=50K\n50, Self-emp-not-inc, 83311, Bachelors, 13, >50K\n"


@pytest.mark.parametrize(
    "first",
    [ADULT.split(b"\n")[0], b"5.1,3.5,1.4,0.2", b"alice,1", b"x,2,9", b"a,3,2,1", b"a,inf,b", b"150,4,setosa,virginica"],
)
def test_a_first_row_that_would_become_names_is_refused(tmp_path, first):
    path = tmp_path / "a.csv"
    path.write_bytes(first + b"\n" + first + b"\n")
    with pytest.raises(Invalid, match=r"in it is a number: put a line of names above the rows \(so does 'modelkeep data add"):
        read_table(path)


@pytest.mark.parametrize("first", ["0,1", "1,2,3", "label,0,1,2,3", "country,1990,1995,2000", "y,0.5,0.6,0.7", "0", "x1,x2"])
def test_numbered_columns_are_names(tmp_path, first):
    path = tmp_path / "a.csv"
    path.write_text(first + "\n" + ",".join("7" for _ in first.split(",")) + "\n")
    assert list(read_table(path).columns) == first.split(",")


@pytest.mark.parametrize("mark", [b"", "\ufeff".encode()])
def test_a_header_line_is_put_before_a_file_that_has_none(mark):
    names = ["age", "work", "weight", "school", "years", 'more, or "less"']
    reader = with_header(BytesReader(mark + ADULT), names)
    whole = read_bytes(reader, 0, reader.size)
    assert whole == b'age,work,weight,school,years,"more, or ""less"""\n' + ADULT
    for offset in range(0, len(whole), 7):  # across the seam, too
        assert read_bytes(reader, offset, min(20, len(whole) - offset)) == whole[offset : offset + 20]
    for offset, length in ((-1, 2), (len(whole) - 1, 2)):
        with pytest.raises(NotTrusted):
            reader.read_into(offset, memoryview(bytearray(length)))
    rows = CsvRows(reader)
    assert (rows.names, rows.rows) == (names, 2)
    assert CsvRows(with_header(BytesReader(b"1;2\n3;4\n"), ["a", "b"])).rows == 2
    with pytest.raises(Invalid, match="row 1 has 6 values, and the header names 2"):
        CsvRows(with_header(BytesReader(ADULT), ["a", "b"]))
    with pytest.raises(Invalid, match="UTF-8"):
        with_header(BytesReader(b"\xff\xfe1\n"), ["a"])


@pytest.mark.parametrize(
    "names", [["a;b;c", "d"], ["a|b|c", "d"], [" a", "b"], ["a\rb", "c"], ["\ufeffa", "b"], ["a", "\udcff"]], ids=ascii
)
def test_names_that_a_header_line_would_not_give_back_are_refused(names):
    with pytest.raises(Invalid, match="would be read as others"):
        with_header(BytesReader(b"1,2\n3,4\n"), names)


def test_a_value_of_another_kind_than_pinned_is_refused():
    rows = CsvRows(BytesReader(b"a\n1\nx\n"), {"a": "int64"})
    with pytest.raises(Invalid, match="column 'a' has a value that is not int64"):
        list(rows.batches(10, ["a"]))
    with pytest.raises(Invalid, match="does not have the columns"):
        CsvRows(BytesReader(b"a\n1\n"), {"b": "int64"})


VALUES = st.lists(
    st.tuples(
        st.integers(-(1 << 63), (1 << 63) - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.booleans(),
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1).filter(
            lambda text: text == text.lstrip(" ") and text not in ("NA", "NaN", "nan")
        ),
    ),
    min_size=1,
    max_size=30,
)


@settings(max_examples=60, deadline=None)
@given(VALUES, st.integers(1, 40))
def test_what_is_written_as_csv_is_read_back_in_batches_of_any_size(tmp_path_factory, values, size):
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["i", "f", "b", "t"])
    writer.writerows([(i, repr(f), b, f"t{t}") for i, f, b, t in values])
    rows = CsvRows(BytesReader(text.getvalue().encode()))
    found = joined(list(rows.batches(size, rows.names)))
    assert [list(column) for column in found.columns.values()] == [
        [i for i, _, _, _ in values],
        [f for _, f, _, _ in values],
        [b for _, _, b, _ in values],
        [f"t{t}" for *_, t in values],
    ]


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_arrays_keep_rows_and_order_whether_packed_or_not(tmp_path, save):
    draw = np.random.default_rng(1)
    arrays = {
        "x": draw.standard_normal((50, 3, 2)).astype(np.float32),
        "f": np.asfortranarray(draw.standard_normal((50, 4))),
        "y": np.arange(50, dtype=np.int16),
        "u": np.arange(50, dtype=np.uint64),
        "b": np.arange(50) % 2 == 0,
        "t": np.array([f"row {n}" for n in range(50)]),
        "big": np.arange(50, dtype=">f4"),
    }
    path = tmp_path / "a.npz"
    save(path, **arrays)
    whole = read_table(path)
    assert {name: str(column.dtype) for name, column in whole.columns.items()} == {
        "x": "float32", "f": "float64", "y": "int64", "u": "int64", "b": "bool", "t": "object", "big": "float64",
    }  # fmt: skip
    for name, array in arrays.items():
        np.testing.assert_array_equal(whole.column(name), array)
    same(joined(list(read_batches(path, 7))), whole)


def test_arrays_that_are_no_columns_are_refused(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, x=np.zeros(3), y=np.zeros(4))
    with pytest.raises(Invalid, match="different lengths"):
        read_table(path)
    assert len(read_table(path, columns=["y"])) == 4
    np.savez(path, x=np.array([{}], object))
    with pytest.raises(Invalid, match="nothing is unpickled"):
        read_table(path)
    np.savez(path, x=np.float64(3))
    with pytest.raises(Invalid, match="no rows"):
        read_table(path)
    np.savez(path, x=np.array([1 << 63], np.uint64))
    with pytest.raises(Invalid, match=r"2\^63"):
        read_table(path)
    path.write_bytes(b"PK nothing")
    with pytest.raises(Invalid, match=r"no \.npz"):
        read_table(path)


def test_an_array_that_says_it_is_larger_than_memory_is_not_unpacked(tmp_path):
    path, rows = tmp_path / "a.npz", 1 << 32
    head = io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f8", "fortran_order": False, "shape": (rows,)})
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", head.getvalue())
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"PK\x01\x02")
    size = len(head.getvalue()) + rows * 8  # 32 GiB, in a zip64 field
    name_end = at + 46 + 5
    raw[at + 24 : at + 28] = b"\xff" * 4
    raw[at + 30 : at + 32] = (12).to_bytes(2, "little")
    raw[name_end:name_end] = b"\x01\x00\x08\x00" + size.to_bytes(8, "little")
    end = raw.rindex(b"PK\x05\x06")
    raw[end + 12 : end + 16] = (int.from_bytes(raw[end + 12 : end + 16], "little") + 12).to_bytes(4, "little")
    path.write_bytes(raw)
    with pytest.raises(TooLarge, match="16 GiB"):
        read_table(path)


def test_columns_of_a_parquet_file(tmp_path):
    path = tmp_path / "a.parquet"
    table = pyarrow.table({
        "i": pyarrow.array([1, 2, 3], pyarrow.int32()),
        "gap": pyarrow.array([1, None, 3], pyarrow.int64()),
        "f": pyarrow.array([0.5, None, 2.5], pyarrow.float32()),
        "b": [True, False, True],
        "half": [True, None, False],
        "t": ["x", None, "y"],
        "d": pyarrow.array(["x", None, "x"]).dictionary_encode(),
        "when": pyarrow.array([0, 86_400, None], pyarrow.timestamp("s")),
        "v": pyarrow.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], pyarrow.list_(pyarrow.float32(), 2)),
    })  # fmt: skip
    pyarrow.parquet.write_table(table, path, row_group_size=2)
    found = read_table(path)
    assert found.column("i").dtype == np.int64
    np.testing.assert_array_equal(found.column("gap"), [1, np.nan, 3])
    np.testing.assert_array_equal(found.column("f"), [0.5, np.nan, 2.5])
    assert found.column("b").tolist() == [True, False, True]
    np.testing.assert_array_equal(found.column("half"), [1, np.nan, 0])
    assert found.column("t").tolist() == ["x", None, "y"]
    assert found.column("d").tolist() == ["x", None, "x"]
    assert found.column("when").tolist() == ["1970-01-01 00:00:00.000", "1970-01-02 00:00:00.000", None]
    assert found.column("v").tolist() == [[1, 2], [3, 4], [5, 6]]
    assert [len(part) for part in read_batches(path, 2, columns=["t"])] == [2, 1]
    with pytest.raises(Missing):
        read_table(path, columns=["z"])


def test_what_is_no_parquet_file_or_of_a_strange_type_is_refused(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and no more")
    with pytest.raises(Invalid, match="no Parquet file"):
        read_table(path)
    pyarrow.parquet.write_table(pyarrow.table({"raw": [b"\0\1"]}), path)
    with pytest.raises(Invalid, match="column 'raw' is binary"):
        read_table(path)


def pictures(folder: Path, mode: str = "L", size: tuple[int, int] = (5, 4)) -> Path:
    for number in range(6):
        (folder / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new(mode, size, number if mode == "L" else (number, 0, 0)).save(folder / f"class{number % 2}/{number}.png")
    return folder


@pytest.mark.parametrize(("mode", "shape"), [("L", (6, 4, 5)), ("RGB", (6, 4, 5, 3))])
def test_pictures_in_folders_of_classes(tmp_path, mode, shape):
    found = read_table(pictures(tmp_path, mode))
    assert found.column("x").shape == shape
    assert found.column("x").dtype == np.uint8
    assert found.column("x").reshape(6, -1)[:, 0].tolist() == [0, 2, 4, 1, 3, 5]
    assert found.column("y").tolist() == ["class0"] * 3 + ["class1"] * 3
    same(joined(list(read_batches(tmp_path, 4))), found)


def test_pictures_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(Invalid, match="no pictures"):
        read_table(tmp_path)
    pictures(tmp_path)
    Image.new("L", (9, 9)).save(tmp_path / "class1/odd.png")
    with pytest.raises(Invalid, match="make them alike"):
        read_table(tmp_path)
    (tmp_path / "class1/odd.png").write_bytes(b"no picture")
    with pytest.raises(Invalid, match="damaged"):
        read_table(tmp_path)
    (tmp_path / "class1/odd.png").rename(tmp_path / "odd.png")
    with pytest.raises(Invalid, match="no picture in the folder of a class"):
        read_table(tmp_path)


def test_files_that_are_nothing_of_this(tmp_path):
    with pytest.raises(Missing, match="there is no file"):
        read_table(tmp_path / "none.csv")
    (tmp_path / "a.xlsx").write_bytes(b"")
    with pytest.raises(Invalid, match="no data set that is read"):
        read_table(tmp_path / "a.xlsx")
    (tmp_path / "a.csv").write_text("a\n1\n")
    with pytest.raises(Invalid, match="at least one row"):
        list(read_batches(tmp_path / "a.csv", 0))


def test_a_folder_of_pictures_as_one_archive_is_what_tar_reads(tmp_path):
    folder = pictures(tmp_path / "pictures")
    (folder / ("class0/" + "long" * 40 + ".png")).write_bytes((folder / "class0/0.png").read_bytes())
    names = list(pictures_of(folder))
    archive = TarFolder(folder, names)
    whole = read_bytes(archive, 0, archive.size)
    for size in (333, 513):
        parts = [read_bytes(archive, at, min(size, archive.size - at)) for at in range(0, archive.size, size)]
        assert b"".join(parts) == whole
    with tarfile.open(fileobj=io.BytesIO(whole)) as found:
        assert [member.name for member in found] == names
        assert all(found.extractfile(name).read() == (folder / name).read_bytes() for name in names)
    rows = Source("images", BytesReader(whole)).rows()
    same(joined(list(rows.batches(3, ["x", "y"]))), read_table(folder))
    assert (rows.rows, rows.kinds) == (7, {"x": "|u1[4x5]", "y": "text"})
    (folder / names[0]).write_bytes(b"another")
    with pytest.raises(Conflict, match="changed while"):
        read_bytes(archive, 0, archive.size)


_WHOLE = re.compile(r"[+-]?(?:0|[1-9][0-9]{0,18})", re.ASCII)
_NUMBER = re.compile(r"[+-]?(?:(?:0|[1-9][0-9]*)(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?|[+-]?[iI]nf", re.ASCII)
_ODD = [
    "01",
    "-0",
    "00",
    "0.",
    ".5",
    "1e05",
    "Inf",
    "infinity",
    "1_0",
    " 1",
    "\u0661",
    "1\0002",
    "9" * 30,
    str(1 << 63),
    str(-(1 << 63)),
]
value = st.one_of(st.text("0123456789+-.eEinf", min_size=1, max_size=5), st.sampled_from(_ODD), st.integers().map(str))


@given(st.lists(value, min_size=1, max_size=4))
def test_what_a_column_of_numbers_is_follows_from_its_values_one_by_one(values):
    asked = _Asked()
    asked.see(values)
    whole = all(_WHOLE.fullmatch(value) and -(1 << 63) <= int(value) < 1 << 63 for value in values)
    number = whole or all(map(_NUMBER.fullmatch, values))
    assert asked.kind() == ("int64" if whole else "float64" if number else "text")


def test_a_reader_as_a_file_gives_buffers_that_follow_each_other():
    for file in (ReaderFile(BytesReader(bytes(range(10)))), buffered(BytesReader(bytes(range(10))))):
        assert file.read(2) == b"\0\1"
        assert bytes(file.read_buffer(3)) == b"\2\3\4"
        assert file.read(1) == b"\5"
        assert bytes(file.read_buffer(1 << 60)) == b"\6\7\x08\x09"
        assert bytes(file.read_buffer(1)) == b"" == file.read(1)
        assert file.seek(9) == 9
        assert bytes(file.read_buffer(1)) == b"\x09"


def test_of_threads_that_read_one_file_each_gets_buffers_of_its_own():
    data, other = bytes(range(20)), threading.Event()

    class Slow(BytesReader):
        def read_into(self, offset, into):
            if into.nbytes == 10 and not other.is_set():
                other.wait(0.2)  # would the other thread read the same place meanwhile?
            super().read_into(offset, into)
            other.set()

    file = buffered(Slow(data))
    with ThreadPoolExecutor(2) as pool:
        found = [bytes(one) for one in pool.map(file.read_buffer, [10, 10])]
    assert sorted(found) == [data[:10], data[10:]]
