"""Personal data in columns: every kind by its own values, none in columns of numbers that only look like it."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.core.tables import Table
from modelkeep.training import identifiers as ids
from modelkeep.training.personal import find_personal, form, of_column, sensitive, words_of

ROWS = 120


def text(values):
    column = np.empty(len(values), object)
    column[:] = values
    return column


def passing(check, draw, count=ROWS):
    """So many different values that pass ``check``, from what ``draw`` makes of random digits."""
    rng, found = np.random.default_rng(7), {}
    while len(found) < count:
        value = draw("".join(map(str, rng.integers(0, 10, 30))))
        if check(value):
            found[value] = None
    return list(found)


def day(digits):
    return f"{int(digits[:4]) % 12 + 1:02}{int(digits[4:8]) % 28 + 1:02}"


COLUMNS = {
    "e-mail address": [f"p{at}@mail{at % 7}.example.org" for at in range(ROWS)],
    "bank account (IBAN)": [f"DE{98 - int(f'{at + 10**17}131400') % 97:02} {at + 10**17:018}" for at in range(ROWS)],
    "payment card": [f"{one[:4]} {one[4:8]} {one[8:12]} {one[12:]}" for one in passing(ids.card, lambda d: "4" + d[:15])],
    "telephone number": [f"+49 30 {at + 100_000}" for at in range(ROWS)],
    "US social security number": [f"219-{at % 90 + 10}-{at + 1000}" for at in range(ROWS)],
    "UK national insurance number": [f"AB {at % 90 + 10} {at % 80 + 11} {at % 70 + 12} C" for at in range(ROWS)],
    "German tax number (Steuer-ID)": passing(ids.de_steuer_id, lambda d: d[:11]),
    "French social security number (NIR)": passing(ids.fr_nir, lambda d: "1" + d[:2] + day(d)[:2] + d[2:12]),
    "Spanish identity number (DNI, NIE)": [f"{at}{'TRWAGMYFPDXBNJZSQVHLCKE'[at % 23]}" for at in range(10**7, 10**7 + ROWS)],
    "Italian tax code (codice fiscale)": passing(
        ids.it_codice_fiscale, lambda d: f"RSSMRA{d[:2]}A{int(d[2:4]) % 28 + 1:02}H{d[4:7]}{chr(65 + int(d[7:10]) % 26)}"
    ),
    "Dutch citizen number (BSN)": passing(ids.nl_bsn, lambda d: d[:9]),
    "Swedish personal number": passing(ids.se_personnummer, lambda d: d[:2] + day(d) + d[2:6]),
    "Polish number (PESEL)": passing(ids.pl_pesel, lambda d: d[:2] + day(d) + d[2:7]),
    "Indian number (Aadhaar)": passing(ids.in_aadhaar, lambda d: d[:12]),
    "Brazilian number (CPF)": passing(ids.br_cpf, lambda d: d[:11]),
    "Belgian national number": passing(ids.be_rrn, lambda d: d[:2] + day(d) + d[2:7]),
    "Swiss AHV number": passing(ids.ch_ahv, lambda d: "756" + d[:10]),
    "Finnish identity code": passing(
        ids.fi_hetu, lambda d: f"{day(d)[2:]}{day(d)[:2]}{d[:2]}-{d[2:5]}{'0123456789ABCDEFHJK'[int(d[5:8]) % 19]}"
    ),
    "IP address": [f"203.0.{at % 7}.{at}" for at in range(ROWS)],
}
NAMED = {
    "date of birth": ("dateOfBirth", [f"19{at % 60 + 30}-0{at % 9 + 1}-{at % 18 + 10}" for at in range(ROWS)]),
    "name of a person": ("last_name", [f"Miller{chr(97 + at // 26)}{chr(97 + at % 26)}" for at in range(ROWS)]),
    "postal address": ("street", [f"Long Road {at}" for at in range(ROWS)]),
    "telephone number": ("PHONE", np.arange(5550100000, 5550100000 + ROWS)),
    "US social security number": ("SSN", np.arange(219_090_001, 219_090_001 + ROWS)),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_a_column_is_known_by_its_values_alone(kind):
    found = of_column("c17", text(COLUMNS[kind]))
    assert found is not None
    assert (found.kind, found.share, found.named) == (kind, 1.0, False)
    assert found.confidence == ("likely" if kind == "IP address" else "certain")


@pytest.mark.parametrize("kind", ["German tax number (Steuer-ID)", "payment card", "Indian number (Aadhaar)"])
def test_numbers_that_were_read_as_numbers_are_known_too(kind):
    numbers = np.array([int(one.replace(" ", "")) for one in COLUMNS[kind]])
    assert of_column("c17", numbers).kind == kind
    assert of_column("c17", np.array([*numbers, np.nan], dtype=np.float64)).kind == kind


@pytest.mark.parametrize("kind", NAMED)
def test_what_has_no_form_of_its_own_needs_the_name_of_the_column(kind):
    name, values = NAMED[kind]
    column = values if isinstance(values, np.ndarray) else text(values)
    found = of_column(name, column)
    assert (found.kind, found.confidence, found.named) == (kind, "likely", True)
    assert of_column("c17", column) is None


@pytest.mark.parametrize("seed", range(5))
def test_random_and_running_numbers_are_nobody(seed):
    rng = np.random.default_rng(seed)
    columns = {f"n{size}": rng.integers(10 ** (size - 1), 10**size, 400) for size in range(5, 18)}
    columns |= {f"s{size}": np.arange(10**size, 10**size + 400) for size in range(5, 18)}
    columns |= {f"t{size}": text([str(one) for one in columns[f"n{size}"]]) for size in range(5, 18)}
    columns["ms"] = 1_600_000_000_000 + rng.integers(0, 10**10, 400)
    columns["version"] = text([f"{at}.1.2" for at in range(400)])
    columns["day"] = text([f"2024-01-{at % 28 + 1:02}" for at in range(400)])
    columns["product_name"] = text([f"Thing{chr(97 + at // 26)}{chr(97 + at % 26)}" for at in range(400)])
    columns["x"] = rng.normal(size=400) * 1e9
    assert find_personal(Table(columns)) == ()


def test_a_few_among_many_are_found_and_a_few_that_can_be_chance_are_not():
    notes = [f"case {at}" for at in range(2000)]
    assert of_column("note", text([*notes, "b@example.org", "c@example.org"])).kind == "e-mail address"
    cards = [str(4_000_000_000_000_000 + at) for at in range(2000)]
    assert 150 < sum(map(ids.card, cards)) < 250
    assert of_column("number", text(cards)) is None


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ("please write to bob.miller@example.com about it", "e-mail address in text"),
        ("paid from DE89 3704 0044 0532 0130 00 today", "bank account (IBAN) in text"),
        ("card 4111 1111 1111 1111 declined", "payment card in text"),
        ("call back under +49 30 1234567", "telephone number in text"),
        ("ssn 219-09-9999 on file", "US social security number in text"),
    ],
)
def test_running_text_is_searched(said, kind):
    found = of_column("note", text([*[f"nothing to say about case {at}" for at in range(300)], said]))
    assert found.kind == kind
    assert not re.search(r"[b-zB-Z1-9]", found.example.replace("A", "").replace("a", ""))


def test_running_text_with_other_numbers_is_left_alone():
    said = ["order 4111-1111-1111-1112 of 2024-01-05", "version 10.0.0.1 and 12345678", "tel. none", "AB12 CDEF GHIJ KLMN"]
    assert of_column("note", text(said * 10)) is None


@given(st.text(max_size=60))
def test_an_example_shows_the_form_and_nothing_of_the_value(value):
    shown = form(value)
    assert not {one for one in shown if one.isalnum()} - {"a", "A", "0"}
    assert len(shown) <= 41


def test_names_of_columns_are_read_in_any_spelling():
    for name in ("date_of_birth", "dateOfBirth", "DATE OF BIRTH", "date-of-birth"):
        assert "dateofbirth" in words_of(name)
    assert "ip" not in words_of("zip")
    assert sensitive("race") == "racial or ethnic origin"
    assert sensitive("raceway") == sensitive("age") == ""
