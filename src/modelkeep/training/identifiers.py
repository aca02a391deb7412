"""Numbers that stand for one person or one account, told by their form and their check digits. Known answers: python-stdnum's.

Each check takes a value without spaces and separators where its form allows those, and says whether it can be one.
"""

import re
from collections.abc import Sequence

_CARD = re.compile(
    r"(?:4(?:\d{12}|\d{15}|\d{18})|5[1-5]\d{14}|2[2-7]\d{14}|3[47]\d{13}|3(?:0[0-5]|[689]\d)\d{11}|35\d{14}|6(?:011|5\d\d|4[4-9]\d)\d{12})\Z"
)
_IBAN = re.compile(r"[A-Z]{2}\d{2}[A-Z0-9]{11,27}\Z")
_IBAN_LENGTHS = {
    15: "NO", 16: "BE", 18: "DK FI FO GL NL SD", 19: "MK SI", 20: "AT BA EE KZ LT LU XK", 21: "CH HR LI LV",
    22: "BG BH CR DE GB GE IE ME RS VA", 23: "AE GI IL IQ OM TL", 24: "AD CZ ES MD PK RO SA SE SK TN VG",
    25: "LY PT ST", 26: "IS TR", 27: "BI DJ FR GR IT MC MR SM", 28: "AL AZ BY CY DO GT HU LB NI PL SV", 29: "BR EG PS QA UA",
    30: "JO KW MU", 31: "MT SC", 32: "LC", 33: "RU",
}  # fmt: skip
_LENGTH_OF = {country: length for length, countries in _IBAN_LENGTHS.items() for country in countries.split()}
_SSN = re.compile(r"(?!000|666|9)\d{3}(?!00)\d{2}(?!0000)\d{4}\Z")
_NINO = re.compile(r"(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]\d{6}[A-D]\Z")
_NIR = re.compile(r"[12]\d{2}(?:0[1-9]|1[0-2]|[2-9]\d)(?:\d{2}|2A|2B)\d{6}\d{2}\Z")
_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
_FISCALE = re.compile(r"[A-Z]{6}[\dL-NP-V]{2}[A-EHLMPRST][\dL-NP-V]{2}[A-Z][\dL-NP-V]{3}[A-Z]\Z")
_FISCALE_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)
_HETU_LETTERS = "0123456789ABCDEFHJKLMNPRSTUVWXY"
_HETU = re.compile(r"(\d{6})[-+ABCDEFYXWVU](\d{3})([0-9A-Y])\Z")


def digits(text: str, length: int) -> bool:
    """Whether ``text`` is so many ASCII digits."""
    return len(text) == length and text.isascii() and text.isdigit()


def luhn(number: str) -> bool:
    """ISO/IEC 7812-1, annex B."""
    twice = [int(one) * 2 for one in number[-2::-2]]
    return (sum(map(int, number[-1::-2])) + sum(one - 9 * (one > 9) for one in twice)) % 10 == 0


def card(number: str) -> bool:
    """A payment card: the prefix and length of an issuer, and Luhn's digit."""
    return bool(_CARD.match(number)) and luhn(number)


def iban(text: str) -> bool:
    """ISO 13616: country, length and the remainder modulo 97 (ISO/IEC 7064)."""
    if not _IBAN.match(text) or _LENGTH_OF.get(text[:2]) != len(text):
        return False
    return int("".join(str(int(one, 36)) for one in text[4:] + text[:4])) % 97 == 1


def us_ssn(number: str) -> bool:
    """United States, social security number: it has no check digit, so only what is never given out is told."""
    return bool(_SSN.match(number))


def uk_nino(text: str) -> bool:
    """United Kingdom, national insurance number: its prefixes and suffix (HMRC, NIM39110); it has no check digit."""
    return bool(_NINO.match(text))


def de_steuer_id(number: str) -> bool:
    """Germany, tax identification number: one digit of the first ten two or three times, ISO/IEC 7064 MOD 11,10."""
    if not digits(number, 11) or number[0] == "0":
        return False
    most = sorted((number[:10].count(one) for one in set(number[:10])), reverse=True)
    if most[0] not in {2, 3} or (len(most) > 1 and most[1] != 1):
        return False
    check = 10
    for one in number[:10]:
        check = ((check + int(one)) % 10 or 10) * 2 % 11
    return (11 - check) % 10 == int(number[10])


def fr_nir(text: str) -> bool:
    """France, numéro de sécurité sociale: sex, month and key; Corsica's departments are 2A and 2B."""
    if not _NIR.match(text):
        return False
    number = text.replace("2A", "19").replace("2B", "18") if text[5:7] in {"2A", "2B"} else text
    return number.isdigit() and 97 - int(number[:13]) % 97 == int(number[13:])


def es_dni(text: str) -> bool:
    """Spain, DNI and NIE: a letter by the number modulo 23."""
    number = "XYZ".find(text[:1])
    body = f"{number}{text[1:8]}" if text[:1] in {"X", "Y", "Z"} else text[:8]
    return len(text) == 9 and digits(body, 8) and text[8] == _DNI_LETTERS[int(body) % 23]


def it_codice_fiscale(text: str) -> bool:
    """Italy, codice fiscale: its form, and the control letter of DM 23/12/1976."""
    if not _FISCALE.match(text):
        return False
    at = [int(one) if one.isdigit() else ord(one) - 65 for one in text[:15]]
    total = sum(_FISCALE_ODD[one] if place % 2 == 0 else one for place, one in enumerate(at))
    return chr(65 + total % 26) == text[15]


def nl_bsn(number: str) -> bool:
    """Netherlands, burgerservicenummer: the test of eleven."""
    return digits(number, 9) and number != "000000000" and _weighed(number, (9, 8, 7, 6, 5, 4, 3, 2, -1)) % 11 == 0


def se_personnummer(number: str) -> bool:
    """Sweden, personnummer of 10 or 12 digits: a day, and Luhn's digit over the last ten."""
    ten = number[-10:]
    return number[:-10] in {"", "18", "19", "20"} and digits(ten, 10) and _day(ten[4:6], ten[2:4], over=60) and luhn(ten)


def pl_pesel(number: str) -> bool:
    """Poland, PESEL: a day whose month tells the century, and a check digit of weights 1, 3, 7, 9."""
    if not digits(number, 11) or not _day(number[4:6], f"{int(number[2:4]) % 20:02}"):
        return False
    return _weighed(number, (1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1)) % 10 == 0


def in_aadhaar(number: str) -> bool:
    """India, Aadhaar: no 0 or 1 first, no palindrome, and Verhoeff's digit."""
    return digits(number, 12) and number[0] not in "01" and number != number[::-1] and verhoeff(number)


def br_cpf(number: str) -> bool:
    """Brazil, CPF: two check digits modulo 11."""
    if not digits(number, 11) or len(set(number)) == 1:
        return False
    first = (-_weighed(number[:9], range(10, 1, -1))) % 11 % 10
    second = (-_weighed(number[:9] + str(first), range(11, 1, -1))) % 11 % 10
    return number[9:] == f"{first}{second}"


def be_rrn(number: str) -> bool:
    """Belgium, rijksregisternummer: 97 less the number modulo 97, with a 2 before it for those born in 2000 or later."""
    if not digits(number, 11) or not _day(number[4:6], f"{int(number[2:4]) % 20:02}"):
        return False
    return int(number[9:]) in {97 - int(century + number[:9]) % 97 for century in ("", "2")}


def ch_ahv(number: str) -> bool:
    """Switzerland, AHV number: 756, and the check digit of EAN-13."""
    return digits(number, 13) and number.startswith("756") and _weighed(number, (1, 3) * 6 + (1,)) % 10 == 0


def fi_hetu(text: str) -> bool:
    """Finland, henkilötunnus: a day, and a check character modulo 31."""
    found = _HETU.match(text)
    if not found or not _day(text[:2], text[2:4]):
        return False
    return _HETU_LETTERS[int(found[1] + found[2]) % 31] == found[3]


def verhoeff(number: str) -> bool:
    """J. Verhoeff 1969, "Error detecting decimal codes": the check digit by the dihedral group of order ten."""
    check = 0
    for place, one in enumerate(reversed(number)):
        check = _DIHEDRAL[check][_PERMUTED[place % 8][int(one)]]
    return check == 0


def _dihedral(a: int, b: int) -> int:
    turn = (a + b) % 5 if a < 5 else (a - b) % 5
    return turn + 5 * ((a >= 5) != (b >= 5))


_DIHEDRAL = tuple(tuple(_dihedral(a, b) for b in range(10)) for a in range(10))
_FIRST = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)


def _powers(times: int) -> tuple[int, ...]:
    at = tuple(range(10))
    for _ in range(times):
        at = tuple(_FIRST[one] for one in at)
    return at


_PERMUTED = tuple(_powers(times) for times in range(8))


def _weighed(number: str, weights: Sequence[int]) -> int:
    return sum(int(one) * weight for one, weight in zip(number, weights, strict=True))


def _day(day: str, month: str, *, over: int = 0) -> bool:
    """Whether such a day can be; ``over``: what may be added to it (Swedish coordination numbers)."""
    at = int(day) - over if over and int(day) > over else int(day)
    return 1 <= at <= 31 and 1 <= int(month) <= 12
