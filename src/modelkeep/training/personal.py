"""Personal data in the columns of a table: what a column's values and its name say of it.

A column is judged by its distinct values. Each kind has a form, a check where the standard has one, and the *chance* that a
value of that length which is none would pass it; that so many pass by chance must be less than one in a million, or the name of
the column must say so, too. So a column of account numbers of which a tenth pass Luhn's test holds no cards, and three e-mail
addresses among a million notes are found. Examples show the form of a value (``aaaa@aaaa.aa``), never the value.

Names of persons in running text are not looked for, and a column of names is told by its own name and its form alone.
"""

import ipaddress
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from msgspec import Struct

from modelkeep.training import identifiers as ids
from modelkeep.training.tables import Column, Table
from modelkeep.training.tails import binomial_tail

MOST_VALUES = 50_000
"""Distinct values of a column that are looked at, evenly spaced."""
BY_CHANCE, _BY_CHANCE_IN_TEXT = 1e-6, 1e-3
_MOST = 0.5
"""Share of values from which a column *is* of a kind, and does not only hold some."""
_LEAST, _TOO_LONG = 10_000_000, 10**18
"""Between which a whole number can be one of a person: none of the kinds has fewer than eight digits."""
_SEPARATORS = re.compile(r"[ .\-/()\u00a0\u2011\u2013]")
_EMAIL = r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@(?:[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?\.)+[A-Za-z]{2,63}"
_NORTH_AMERICAN = r"(?:\+?1[ .-]?)?(?:\([2-9]\d\d\) ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}"
_DATE = re.compile(r"(?:(\d{4})[-/.](\d\d?)[-/.](\d\d?)|(\d\d?)[-/.](\d\d?)[-/.](\d{4}))(?:[T ]00:00(?::00)?Z?)?\Z")
_NAME = re.compile(r"[^\W\d_]+\.?(?:(?:, ?|[ '\u2019.-]{1,2})[^\W\d_]+\.?){0,4}\Z")
_STREET = re.compile(r"(?:\d+[A-Za-z]?[ ,]+[^\W\d_].*|[^\W\d_].*[ ,]\d+ ?[A-Za-z]?)\Z")
_EMBEDDED = {
    "e-mail address": re.compile(rf"(?<![\w.]){_EMAIL}(?!\w)"),
    "bank account (IBAN)": re.compile(r"(?<!\w)[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){2,7}(?: ?[A-Z0-9]{1,3})?(?!\w)"),
    "payment card": re.compile(r"(?<![\w-])\d{4}[ -]?\d{4,6}[ -]?\d{4,5}(?:[ -]?\d{1,4})?(?![\w-])"),
    "telephone number": re.compile(
        rf"(?<![\w+])(?:\+[1-9]\d{{0,2}}[ .-]?(?:\(0\) ?)?\d(?:[ .-]?\d){{6,11}}|{_NORTH_AMERICAN})(?!\w)"
    ),
    "US social security number": re.compile(r"(?<![\w-])\d{3}-\d{2}-\d{4}(?![\w-])"),
}


class Personal(Struct, frozen=True):
    """What a column seems to hold. ``share``: of its distinct values that are so; ``confidence``: ``certain`` (a check digit or
    an unmistakable form), ``likely`` or ``possible``; ``example``: the form of a value; ``named``: the column's name says
    so."""

    column: str
    kind: str
    share: float
    confidence: str
    example: str
    named: bool


class Kind(NamedTuple):
    """``holds``: whether a value is one; ``chance``: that one which is none passes; ``hints``: words in a column's name;
    ``sure``: what is claimed of a column by its values alone; ``alone``: whether it is claimed without a hint at all."""

    name: str
    holds: Callable[[str], bool]
    chance: float
    hints: frozenset[str]
    sure: str = "certain"
    alone: bool = True


def find_personal(table: Table) -> tuple[Personal, ...]:
    """What seems to be personal in a table, at most one kind a column, in the order of the columns."""
    return tuple(found for name in table.columns if (found := of_column(name, table.columns[name])))


def of_column(name: str, column: Column) -> Personal | None:
    """What a column, by its name and its values, seems to hold; None if nothing personal."""
    values = _distinct(column)
    if not values:
        return None
    words = words_of(name)
    found = [one for kind in KINDS if (one := _judge(name, words, values, kind))]
    if found:
        return max(found, key=lambda one: (one.share >= _MOST, one.named, _RANKS[one.confidence], one.share))
    return _embedded(name, values) if column.dtype.kind == "O" else None


def words_of(name: str) -> frozenset[str]:
    """The words of a column's name, lower case: ``dateOfBirth`` and ``DATE_OF_BIRTH`` alike; neighbours together, too."""
    parts = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-zà-ÿ]+|\d+", name)
    lower = [one.lower() for one in parts]
    return frozenset([*lower, *("".join(lower[at : at + size]) for size in (2, 3) for at in range(len(lower) - size + 1))])


def form(value: str) -> str:
    """The form of a value, and nothing else of it: letters as ``a`` and ``A``, digits as ``0``, at most 40 of them."""
    shown = "".join("A" if one.isupper() else "a" if one.isalpha() else "0" if one.isalnum() else one for one in value[:40])
    return shown + "…" * (len(value) > 40)


def sensitive(name: str) -> str:
    """The special category of personal data (GDPR, article 9) that a column's name speaks of; "" = none."""
    words = words_of(name)
    return next((what for what, hints in _SPECIAL.items() if words & hints), "")


@dataclass(frozen=True, slots=True)
class _Values:
    """Distinct values of a column as text, at most ``MOST_VALUES``; ``filled``: rows that have a value."""

    texts: tuple[str, ...]
    filled: int
    numbers: bool

    def __bool__(self) -> bool:
        return bool(self.texts)


def _distinct(column: Column) -> _Values:
    if column.ndim != 1 or column.dtype.kind not in "Oiuf":
        return _Values((), 0, numbers=False)
    if column.dtype.kind == "O":
        filled = [one.strip() for one in column if one is not None and one.strip()]
        return _Values(_spaced(list(dict.fromkeys(filled))), len(filled), numbers=False)
    whole = column[np.isfinite(column)] if column.dtype.kind == "f" else column
    long = whole[(whole >= _LEAST) & (whole < _TOO_LONG)]
    if len(long) < _MOST * len(whole) or not len(long) or (column.dtype.kind == "f" and (long != np.floor(long)).any()):
        return _Values((), 0, numbers=True)
    return _Values(_spaced([str(int(one)) for one in np.unique(long)]), len(whole), numbers=True)


def _spaced(values: list[str]) -> tuple[str, ...]:
    return tuple(values[:: -(-len(values) // MOST_VALUES) or 1])


def _judge(name: str, words: frozenset[str], values: _Values, kind: Kind) -> Personal | None:
    named = bool(words & kind.hints) and not words & _NOT_PERSONS
    if not (named or kind.alone) or (values.numbers and kind.name in _TEXT_ALONE):
        return None
    hits = [one for one in values.texts if kind.holds(one)]
    share = len(hits) / len(values.texts)
    if not hits or (share < _MOST and kind.chance > 1e-3):
        return None
    surprise = binomial_tail(len(hits), len(values.texts), kind.chance)
    confidence = kind.sure if surprise < BY_CHANCE else "likely" if named and share >= _MOST else ""
    if not confidence or (kind.name == "name of a person" and not _varied(values)):
        return None
    return Personal(name, kind.name, share, confidence, form(hits[0]), named)


def _varied(values: _Values) -> bool:
    """Whether values differ as names of persons do, and are no list of a few categories."""
    return len(values.texts) >= min(30, max(3, values.filled // 3))


def _embedded(name: str, values: _Values) -> Personal | None:
    """What running text holds within: the kind, if most that looks like it is."""
    known = {kind.name: kind for kind in reversed(KINDS)}
    running = [one for one in values.texts if len(one) > 12 and re.search(r"[^\W\d_]", one)]
    for kind, pattern in _EMBEDDED.items():
        looks = [hit for text in running for hit in pattern.findall(text)]
        hits = [one for one in looks if known[kind].holds(one)]
        if 2 * len(hits) > len(looks):
            chance = binomial_tail(len(hits), len(looks), known[kind].chance)
            confidence = "likely" if chance < _BY_CHANCE_IN_TEXT else "possible"
            return Personal(name, f"{kind} in text", len(hits) / len(values.texts), confidence, form(hits[0]), named=False)
    return None


# -- the kinds --


def _bare(check: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda value: len(value) <= 40 and check(_SEPARATORS.sub("", value).upper())


def _email(value: str) -> bool:
    return bool(re.fullmatch(_EMAIL, value))


def _phone(value: str) -> bool:
    """E.164, or a national form with its separators."""
    if _DATE.match(value) or len(value) > 24:
        return False
    if value.startswith(("+", "00")):
        return bool(re.fullmatch(r"(?:\+|00)[1-9]\d{6,14}", _SEPARATORS.sub("", value.replace("(0)", ""))))
    return bool(re.fullmatch(_NORTH_AMERICAN, value) or re.fullmatch(r"0\d{1,5}[ /-]+\d{2,8}(?:[ -]?\d{1,4}){0,4}", value))


def _phone_digits(value: str) -> bool:
    return bool(re.fullmatch(r"\+?\d{7,15}", _SEPARATORS.sub("", value)))


def _ssn_written(value: str) -> bool:
    return bool(re.fullmatch(r"\d{3}-\d{2}-\d{4}", value)) and ids.us_ssn(value.replace("-", ""))


def _address(value: str) -> bool:
    try:
        return bool(ipaddress.ip_address(value)) if value.count(".") == 3 or value.count(":") > 1 else False
    except ValueError:
        return False


def _birth(value: str) -> bool:
    """A day between 1900 and 2025, written with its year, or as eight digits."""
    found = _DATE.match(value)
    if found:
        year, parts = found[1] or found[6], (found[2] or found[4], found[3] or found[5])
    elif ids.digits(value, 8):
        year, parts = value[:4], (value[4:6], value[6:])
    else:
        return False
    return 1900 <= int(year) <= 2025 and all(1 <= int(one) <= 31 for one in parts) and min(map(int, parts)) <= 12


def _person(value: str) -> bool:
    return len(value) <= 60 and bool(_NAME.match(value)) and (value[0].isupper() or " " in value)


def _street(value: str) -> bool:
    return len(value) <= 120 and bool(_STREET.match(value))


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_NUMBER = "nationalid nationalnumber idnumber personalnumber personid identitynumber"
_TAX = "taxid taxnumber tin"
KINDS: Sequence[Kind] = (
    Kind("e-mail address", _email, 1e-12, _words("email mail emailaddress courriel correo")),
    Kind("bank account (IBAN)", _bare(ids.iban), 1e-5, _words("iban account bankaccount konto kontonummer")),
    Kind("payment card", _bare(ids.card), 0.05, _words("card cardnumber creditcard pan ccnumber kartennummer cc")),
    Kind("telephone number", _phone, 1e-4, _words("phone tel telephone mobile telefon handy cell fax movil telefono msisdn")),
    Kind(
        "telephone number", _phone_digits, 0.9, _words("phone telephone mobile telefon handy cellphone movil telefono msisdn"),
        "likely", alone=False,
    ),
    Kind("US social security number", _ssn_written, 1e-4, _words("ssn socialsecurity socialsecuritynumber")),
    Kind("US social security number", _bare(ids.us_ssn), 0.9, _words("ssn socialsecurity"), "likely", alone=False),
    Kind("UK national insurance number", _bare(ids.uk_nino), 1e-4, _words(f"nino nationalinsurance {_NUMBER}")),
    Kind("German tax number (Steuer-ID)", _bare(ids.de_steuer_id), 0.04, _words(f"steuerid steueridnr idnr {_TAX}")),
    Kind("French social security number (NIR)", _bare(ids.fr_nir), 1e-3, _words(f"nir insee securitesociale {_NUMBER}")),
    Kind("Spanish identity number (DNI, NIE)", _bare(ids.es_dni), 1e-3, _words(f"dni nie nif {_NUMBER}")),
    Kind("Italian tax code (codice fiscale)", _bare(ids.it_codice_fiscale), 1e-6, _words(f"codicefiscale cf {_TAX}")),
    Kind("Dutch citizen number (BSN)", _bare(ids.nl_bsn), 1 / 11, _words(f"bsn burgerservicenummer sofi {_NUMBER}")),
    Kind("Swedish personal number", _bare(ids.se_personnummer), 0.01, _words(f"personnummer {_NUMBER}")),
    Kind("Polish number (PESEL)", _bare(ids.pl_pesel), 0.02, _words(f"pesel {_NUMBER}")),
    Kind("Indian number (Aadhaar)", _bare(ids.in_aadhaar), 0.1, _words(f"aadhaar aadhar uidai {_NUMBER}")),
    Kind("Brazilian number (CPF)", _bare(ids.br_cpf), 0.01, _words(f"cpf {_NUMBER}")),
    Kind("Belgian national number", _bare(ids.be_rrn), 0.01, _words(f"rijksregisternummer niss insz {_NUMBER}")),
    Kind("Swiss AHV number", _bare(ids.ch_ahv), 1e-4, _words(f"ahv avs {_NUMBER}")),
    Kind("Finnish identity code", lambda value: ids.fi_hetu(value.upper()), 1e-4, _words(f"hetu henkilotunnus {_NUMBER}")),
    Kind("IP address", _address, 1e-4, _words("ip ipaddress ipaddr remoteaddr clientip"), "likely"),
    Kind(
        "date of birth", _birth, 0.9,
        _words("birth dob birthdate birthday dateofbirth geburtsdatum geburtstag naissance nacimiento nascita born"),
        "likely", alone=False,
    ),
    Kind(
        "name of a person", _person, 0.9,
        _words(
            "name names fullname firstname lastname surname forename givenname middlename familyname nachname vorname "
            "nom prenom nombre apellido apellidos cognome nome imie nazwisko voornaam achternaam"
        ),
        "likely", alone=False,
    ),
    Kind(
        "postal address", _street, 0.9, _words("address street adresse strasse straße direccion indirizzo postaladdress"),
        "likely", alone=False,
    ),
)  # fmt: skip
_TEXT_ALONE = frozenset({"e-mail address", "IP address", "name of a person", "postal address"})
_RANKS = {"certain": 3, "likely": 2, "possible": 1}
_NOT_PERSONS = _words(
    "file filename path host hostname domain product item model brand company employer organisation organization firm city "
    "town country state county region place event class category job column feature variable type species course school bank "
    "device"
)
_SPECIAL = {
    "racial or ethnic origin": _words("race ethnicity ethnic skincolor ethnie"),
    "political opinions": _words("political politics politicalparty"),
    "religious or philosophical beliefs": _words("religion religious belief faith"),
    "trade union membership": _words("unionmember tradeunion unionmembership"),
    "health": _words("diagnosis disease disability illness icd icd10 hiv medication patient"),
    "sex life or sexual orientation": _words("sexualorientation sexlife"),
    "genetic or biometric data": _words("genome genotype fingerprint biometric dna"),
}
