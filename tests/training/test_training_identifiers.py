"""Numbers of persons and accounts: published examples, and those of python-stdnum's pages; a wrong digit never passes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelkeep.training import identifiers as ids

KNOWN = {
    ids.luhn: ("79927398713", "4111111111111111"),
    ids.verhoeff: ("2363", "123451", "234123412346"),
    ids.card: (
        "4111111111111111",
        "5555555555554444",
        "2223003122003222",
        "378282246310005",
        "6011111111111117",
        "30569309025904",
    ),
    ids.iban: ("GB82WEST12345698765432", "DE89370400440532013000", "FR1420041010050500013M02606", "NO9386011117947"),
    ids.us_ssn: ("219099999", "536904399"),
    ids.uk_nino: ("AB123456C", "JG103759A"),
    ids.de_steuer_id: ("36574261809", "86095742719", "65929970489", "47036892816"),
    ids.fr_nir: ("295109912611193", "253072B07300470", "253072A07300443"),
    ids.es_dni: ("54362315K", "X2482300W", "12345678Z"),
    ids.it_codice_fiscale: ("RCCMNL83S18D969H", "MRTMTT91D08F205J"),
    ids.nl_bsn: ("111222333", "123456782"),
    ids.se_personnummer: ("8803200016", "198803200016", "8112189876"),
    ids.pl_pesel: ("44051401359",),
    ids.in_aadhaar: ("234123412346",),
    ids.br_cpf: ("52998224725", "39053344705"),
    ids.be_rrn: ("85073003328", "17073003384"),
    ids.ch_ahv: ("7569217076985", "7561234567897"),
    ids.fi_hetu: ("131052-308T", "131052A308T"),
}
WRONG = {
    ids.card: ("4111111111111112", "9111111111111111", "411111111111111", ""),
    ids.iban: ("GB82WEST12345698765431", "DE8937040044053201300", "ZZ89370400440532013000", "gb82WEST12345698765432"),
    ids.us_ssn: ("000123456", "666123456", "900123456", "219009999", "219090000"),
    ids.uk_nino: ("QQ123456C", "GB123456A", "AO123456A", "AB123456E"),
    ids.de_steuer_id: ("36574261890", "02476291358", "12345678901", "3657426180"),
    ids.fr_nir: ("295109912611194", "253072C07300443", "395109912611193"),
    ids.es_dni: ("54362315Z", "X2482300A", "5436231K", ""),
    ids.it_codice_fiscale: ("RCCMNL83S18D969A", "RCCMNL83S18D969"),
    ids.nl_bsn: ("111252333", "000000000", "11122233"),
    ids.se_personnummer: ("8803200018", "8899200016", "880320001", "178803200016"),
    ids.pl_pesel: ("44051401358", "44991401353"),
    ids.in_aadhaar: ("234123412347", "123456789012", "643343343346"),
    ids.br_cpf: ("39053344706", "11111111111", "3905334470"),
    ids.be_rrn: ("85073003329", "85993003328"),
    ids.ch_ahv: ("7569217076984", "1234567890128"),
    ids.fi_hetu: ("131052-308U", "991352-308T", "131052+30T"),
}


@pytest.mark.parametrize(("check", "value"), [(check, value) for check, values in KNOWN.items() for value in values])
def test_published_examples_pass(check, value):
    assert check(value)


@pytest.mark.parametrize(("check", "value"), [(check, value) for check, values in WRONG.items() for value in values])
def test_what_breaks_the_form_or_the_check_digit_does_not(check, value):
    assert not check(value)


EVERY_DIGIT = (ids.luhn, ids.verhoeff, ids.iban, ids.nl_bsn, ids.se_personnummer, ids.ch_ahv, ids.es_dni, ids.de_steuer_id)


@given(st.sampled_from(EVERY_DIGIT), st.data())
def test_one_wrong_digit_is_always_told(check, data):
    value = data.draw(st.sampled_from([one for one in KNOWN[check] if one != "198803200016"]))  # no digit checks a century
    at = data.draw(st.sampled_from([place for place, one in enumerate(value) if one.isdigit()]))
    other = data.draw(st.sampled_from([one for one in "0123456789" if one != value[at]]))
    assert not check(value[:at] + other + value[at + 1 :])


@given(st.data())
def test_neighbours_that_changed_places_are_told_by_verhoeff(data):
    value = data.draw(st.sampled_from(KNOWN[ids.verhoeff]))
    at = data.draw(st.integers(0, len(value) - 2))
    turned = value[:at] + value[at + 1] + value[at] + value[at + 2 :]
    assert ids.verhoeff(turned) == (turned == value)


@given(st.text(max_size=30))
def test_any_text_is_judged_without_an_error(text):
    for check in WRONG:
        assert check(text) in {True, False}
