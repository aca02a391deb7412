"""What is said of a data set: planted faults are named, clean rows are not accused, and the report shows nothing personal."""

import numpy as np
import pytest

from modelkeep.core.tables import Table
from modelkeep.errors import Invalid, Missing
from modelkeep.training.datapage import Subject, render
from modelkeep.training.encoding import codes_of, matrix_of
from modelkeep.training.findings import Asked, default_label, examine, reasons_of, with_suspicions
from modelkeep.training.schema import infer


def text(values):
    column = np.empty(len(values), object)
    column[:] = values
    return column


def loans(rows=600, seed=1, **changed):
    rng = np.random.default_rng(seed)
    income = rng.lognormal(10, 0.6, rows)
    columns = {
        "income": income,
        "age": rng.integers(18, 80, rows),
        "city": text(rng.choice(["Ulm", "Graz", "Bern", None], rows, p=[0.5, 0.3, 0.1, 0.1])),
        "default": (income + rng.normal(size=rows) * 9000 < 20_000).astype(np.int64),
    }
    return Table(columns | changed)


def told(table, *, against=None, **asked):
    return {
        (one.check, str(one.level), one.column) for one in examine(table, Asked("default", **asked), against=against).findings
    }


@pytest.mark.parametrize("seed", range(1, 6))
def test_of_clean_rows_nothing_is_said(seed):
    assert told(loans(seed=seed), against=loans(200, seed + 50), schema=infer(loans(900, 77))) == set()


def test_every_planted_fault_is_named():
    table, rng = loans(), np.random.default_rng(0)
    assert ("columns", "warning", "id") in told(loans(id=np.arange(600)))
    assert ("columns", "note", "still") in told(loans(still=np.ones(600)))
    assert ("columns", "warning", "void") in told(loans(void=text([None] * 600)))
    assert ("columns", "warning", "ratio") in told(loans(ratio=np.where(np.arange(600) == 3, np.inf, rng.normal(size=600))))
    assert ("columns", "note", "job") in told(loans(job=text(["cook", "?", "clerk"] * 200)))
    assert ("columns", "note", "years") in told(loans(years=table.columns["age"] * 12))
    assert ("leakage", "error", "arrears") in told(
        loans(arrears=text([["none", "some"][one] for one in table.columns["default"]]))
    )
    assert ("personal", "error", "mail") in told(loans(mail=text([f"p{at}@example.org" for at in range(600)])))
    assert ("personal", "note", "religion") in told(loans(religion=text(["a", "b", "c"] * 200)))
    assert ("schema", "error", "age") in told(loans(age=np.r_[999, table.columns["age"][1:]]), schema=infer(table))


def test_what_is_declared_is_no_error():
    mail = loans(mail=text([f"p{at}@example.org" for at in range(600)]))
    assert ("personal", "note", "mail") in told(mail, declared=frozenset({"mail"}))
    pinned = infer(mail)
    assert ("personal", "error", "mail") in told(mail, schema=pinned)
    with pytest.raises(Missing):
        examine(mail, Asked(declared=frozenset({"male"})))


def test_copies_and_contradictions_are_told_by_how_many_there_are():
    table = loans()
    few, many = (table.rows(np.r_[np.arange(600), np.arange(count)]) for count in (2, 100))
    assert ("duplicates", "note", "") in told(few)
    found = examine(many, Asked("default"))
    assert [str(one.level) for one in found.findings if one.check == "duplicates"] == ["warning"]
    assert list(reasons_of(found.suspects)) == list(range(600, 700))
    columns = dict(many.columns)
    columns["default"] = np.r_[columns["default"][:600], 1 - columns["default"][600:]]
    assert ("labels", "warning", "") in told(Table(columns))


def test_rows_of_the_test_set_are_a_leak_and_a_strange_test_set_is_told():
    table = loans()
    assert ("leakage", "error", "") in told(table, against=table.rows(np.arange(40)))
    assert ("schema", "warning", "city") in told(table, against=loans(100, 9, city=text(["Rome"] * 100)))
    with pytest.raises(Invalid, match="none of the columns"):
        examine(table, Asked("default"), against=Table({"x": np.arange(5)}))
    with pytest.raises(Invalid, match="another type"):
        examine(table, Asked("default"), against=loans(100, 9, age=text(["old"] * 100)))


def test_without_a_label_it_says_so_and_arrays_have_one():
    found = examine(loans(), Asked()).findings
    assert [one.said for one in found if one.check == "labels"] == [
        "no label was named, so nothing was checked that needs one (--label COLUMN)"
    ]
    assert default_label(Table({"x": np.zeros((3, 2)), "y": np.arange(3)})) == "y"
    assert default_label(loans()) == ""


def test_rows_that_look_planted_are_an_error_and_their_sources_are_named():
    table = loans(branch=text(["a", "b"] * 300))
    found = examine(table, Asked("default", origin="branch"))
    assert "branch" not in found.features
    planted, wrong = np.arange(600) % 100 == 3, np.arange(600) == 8
    none = np.zeros(600, dtype=bool)
    more = with_suspicions(found, table.columns["default"], {"planted": planted, "mislabelled": wrong}, {"a": 0.5, "b": 1e-9})
    said = [(str(one.level), one.rows) for one in more.findings if one.check == "poison"]
    assert said == [("error", 6), ("warning", 1), ("warning", 0)]
    assert [one.said for one in more.findings if "source" in one.said] == [
        "more rows of source b are in question than of others (p = 1e-09)"
    ]
    assert list(reasons_of(more.suspects)) == [3, 8, 103, 203, 303, 403, 503]
    assert with_suspicions(found, table.columns["default"], {"planted": none}).findings == found.findings


def test_the_page_shows_columns_and_plots_and_nothing_personal():
    table = loans(mail=text([f"secret{at}@example.org" for at in range(600)]), card=text(["<b>x</b>"] * 600))
    found = examine(table, Asked("default"))
    subject = Subject("loans.csv", "sha256:" + "0" * 64, table, "default", loans(100, 3), "test.csv")
    page = render(subject, found, {"spectral": np.linspace(0, 1, 600)}).decode()
    assert "secret" not in page
    assert "<b>" not in page
    assert "loans.csv: 1 to mend" in page
    assert page.count("<svg") == 4
    assert all(name in page for name in ("income", "city", "spectral", "aaaaaa0@aaaaaaa.aaa"))


def test_whole_numbers_of_few_values_have_a_bar_each():
    table = Table({"grade": np.repeat([1, 2, 4], 50), "default": np.arange(150) % 2})
    page = render(Subject("t", "d", table), examine(table, Asked("default"))).decode()
    drawn = page.split(">grade</text>")[1].split(">default</text>")[0]
    heights = [float(one.split('height="')[1].split('"')[0]) for one in drawn.split("<rect")[1:]]
    assert heights == [62.0, 62.0, 0.0, 62.0]
    assert ">1</text>" in drawn
    assert ">4</text>" in drawn


def test_columns_become_numbers_that_keep_what_is_missing():
    table = Table(
        {"x": np.array([1.0, 2.0, np.nan, 1e9]), "t": text(["a", "b", None, "a"]), "p": np.full((4, 2, 2), 255, np.uint8)}
    )
    matrix = matrix_of(table, ["x", "t", "p"])
    assert matrix.shape == (4, 2 + 3 + 4)
    assert np.isfinite(matrix).all()
    assert matrix[:, 1].tolist() == [0, 0, 1, 0]
    assert matrix_of(Table({"x": np.r_[np.arange(50), 1e9]}), ["x"]).max() == 5.0
    assert (matrix[0, 2:5] == matrix[3, 2:5]).all()
    assert matrix[:, 2:5].sum(axis=1).tolist() == [1, 1, 1, 1]
    assert (matrix[:, 5:] == 1.0).all()
    assert codes_of(text(["b", "a", "b"])).tolist() == [1, 0, 1]
    assert codes_of(np.array([7, 3, 7])).tolist() == [1, 0, 1]
    with pytest.raises(Invalid):
        matrix_of(table, [])
