"""Signatures of tokens: the vectors of the RFCs, PyJWT as the other side, and every way to be almost right."""

import json

import jwt
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from hypothesis import given
from hypothesis import strategies as st
from identity import public_jwk

from modelkeep.crypto.jose import (
    ALGORITHMS,
    Jwk,
    algorithms_of,
    check_signature,
    decode_part,
    encode_part,
    public_key,
    split_jws,
    thumbprint,
)
from modelkeep.errors import NotTrusted

RSA_7638 = {  # RFC 7638, section 3.1
    "kty": "RSA",
    "n": "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhMst"
    "n64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n9"
    "1CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw",
    "e": "AQAB",
    "alg": "RS256",
    "kid": "2011-04-29",
}
RSA_7515 = {  # RFC 7515, appendix A.2
    "kty": "RSA",
    "n": "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMs"
    "D1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQ"
    "Y4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
    "e": "AQAB",
}
EC_7515 = {  # RFC 7515, appendix A.3
    "kty": "EC",
    "crv": "P-256",
    "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
    "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
}
ED_8037 = {"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}  # RFC 8037, appendix A.2
JOE = "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
SIGNED = {
    "RFC 7515 A.2": (
        "RS256",
        RSA_7515,
        f"eyJhbGciOiJSUzI1NiJ9.{JOE}.cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5"
        "jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOL"
        "n6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypG"
        "lUPQGe77Rw",
    ),
    "RFC 7515 A.3": (
        "ES256",
        EC_7515,
        f"eyJhbGciOiJFUzI1NiJ9.{JOE}.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
    ),
    "RFC 8037 A.4": (
        "EdDSA",
        ED_8037,
        "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc"
        ".hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
    ),
}


def parse(jwk: dict) -> Jwk:
    return msgspec.convert(jwk, Jwk)


@pytest.mark.parametrize("name", SIGNED)
def test_signatures_of_the_rfcs_hold(name):
    algorithm, jwk, token = SIGNED[name]
    check_signature(algorithm, public_key(parse(jwk)), split_jws(token))


@pytest.mark.parametrize(
    ("jwk", "expected"),
    [
        (RSA_7638, "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"),  # RFC 7638, section 3.1
        (ED_8037, "kPrK_qmxVWaYVA9wwBF6Iuo3vVzz7TxHCTwXBygrS4k"),  # RFC 8037, appendix A.3
    ],
    ids=["RSA", "Ed25519"],
)
def test_thumbprints_of_the_rfcs(jwk, expected):
    assert thumbprint(parse(jwk)) == expected


@pytest.mark.parametrize("name", SIGNED)
def test_no_other_algorithm_will_do(name):
    algorithm, jwk, token = SIGNED[name]
    same = {"EdDSA", "Ed25519"} if algorithm == "EdDSA" else {algorithm}
    for other in {*ALGORITHMS, "none", "HS256", "", "nOnE"} - same:
        with pytest.raises(NotTrusted):
            check_signature(other, public_key(parse(jwk)), split_jws(token))


KEYS = {
    **dict.fromkeys(["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"], rsa.generate_private_key(65537, 2048)),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
    "ES384": ec.generate_private_key(ec.SECP384R1()),
    "ES512": ec.generate_private_key(ec.SECP521R1()),
    "EdDSA": Ed25519PrivateKey.generate(),
}


@pytest.mark.parametrize("algorithm", KEYS)
def test_what_pyjwt_signs_holds_and_fits_its_key_alone(algorithm):
    key = public_key(parse(public_jwk(KEYS[algorithm])))
    token = split_jws(jwt.encode({"a": 1}, KEYS[algorithm], algorithm=algorithm))
    check_signature(algorithm, key, token)
    assert algorithm in algorithms_of(key) and json.loads(token.payload) == {"a": 1}
    for other in ALGORITHMS:
        if {other, algorithm} != {"EdDSA", "Ed25519"} and other != algorithm:
            with pytest.raises(NotTrusted):
                check_signature(other, key, token)


@given(st.data())
def test_no_changed_token_holds(data):
    algorithm, jwk, token = SIGNED[data.draw(st.sampled_from(sorted(SIGNED)))]
    at = data.draw(st.integers(0, len(token) - 1))
    letter = data.draw(
        st.sampled_from("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_.=+/ ").filter(
            lambda c: c != token[at]
        )
    )
    changed = token[:at] + letter + token[at + 1 :]
    with pytest.raises(NotTrusted):
        check_signature(algorithm, public_key(parse(jwk)), split_jws(changed))


@given(st.binary(max_size=80))
def test_base64url_has_one_text_for_each_value(data):
    text = encode_part(data)
    assert decode_part(text) == data
    for wrong in (text + "=", text + "\n", " " + text, text.replace("-", "+") if "-" in text else "+", "A"):
        with pytest.raises(NotTrusted):
            decode_part(wrong)


def test_spare_bits_are_not_ignored():
    assert decode_part("AA") == b"\0"
    with pytest.raises(NotTrusted):
        decode_part("AB")


WEAK = {
    "RSA 1024": public_jwk(rsa.generate_private_key(65537, 1024)),
    "RSA 8192, or so it says": {"kty": "RSA", "n": encode_part(b"\xff" * 1024), "e": "AQAB"},
    "RSA exponent of 300 bits": {**RSA_7515, "e": encode_part(b"\x01" * 38)},
    "RSA exponent 1": {**RSA_7515, "e": "AQ"},
    "a point that is on no curve": {**EC_7515, "y": EC_7515["x"]},
    "a short coordinate": {**EC_7515, "x": encode_part(decode_part(EC_7515["x"])[1:])},
    "another curve": {**EC_7515, "crv": "secp256k1"},
    "X25519": {**ED_8037, "crv": "X25519"},
    "a short Ed25519 key": {**ED_8037, "x": "AAAA"},
    "a secret": {"kty": "oct", "k": "c2VjcmV0"},
    "a private key": {**ED_8037, "d": "nWGxne_9WmC6hEr0kuwsxERJxWl7MmkZcDusAxyuf2A"},
}


@pytest.mark.parametrize("what", WEAK)
def test_weak_and_strange_keys_are_refused(what):
    with pytest.raises(NotTrusted):
        public_key(parse(WEAK[what]))


def test_an_ecdsa_signature_in_der_is_refused():
    token = jwt.encode({}, KEYS["ES256"], algorithm="ES256")
    parts = split_jws(token)
    der = KEYS["ES256"].sign(parts.signed, ec.ECDSA(SHA256()))
    with pytest.raises(NotTrusted):
        check_signature("ES256", public_key(parse(public_jwk(KEYS["ES256"]))), parts._replace(signature=der))


@pytest.mark.parametrize("token", ["", "a.b", "a.b.c.d", "..", "a..c", "a.b.", ".b.c", "é.b.c"])
def test_what_is_no_token(token):
    with pytest.raises(NotTrusted):
        split_jws(token)
