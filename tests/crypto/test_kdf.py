import pytest

from modelkeep.crypto.kdf import Argon2Params, argon2id, hkdf
from modelkeep.errors import Invalid, NotTrusted

# HKDF-SHA-512 over the inputs of RFC 5869, appendix A (the RFC prints SHA-256 results; these are Project Wycheproof's and
# pyca/cryptography's values for the same inputs).
HKDF_VECTORS = [
    (
        "0b" * 22,
        bytes(range(13)).hex(),
        bytes(range(0xF0, 0xFA)).hex(),
        "832390086cda71fb47625bb5ceb168e4c8e26a1a16ed34d9fc7fe92c1481579338da362cb8d9f925d7cb",
    ),
    (
        "0b" * 22,
        "",
        "",
        "f5fa02b18298a72a8c23898a8703472c6eb179dc204c03425c970e3b164bf90fff22d04836d0e2343bac",
    ),
]


@pytest.mark.parametrize(("ikm", "salt", "info", "okm"), HKDF_VECTORS)
def test_hkdf_known_answers(ikm, salt, info, okm):
    wanted = bytes.fromhex(okm)
    assert hkdf(bytes.fromhex(ikm), salt=bytes.fromhex(salt), info=bytes.fromhex(info), size=len(wanted)) == wanted


def test_argon2id_known_answer():
    """From test.c of the argon2 reference implementation, version 0x13."""
    key = argon2id(b"password", b"somesalt", params=Argon2Params(memory_kib=65536, passes=2, lanes=1))
    assert key.hex() == "09316115d5cf24ed5a15a31a3ba326e5cf32edc24702987c02b6566f61913cf7"


@pytest.mark.parametrize(
    "numbers", [(0, 1, 1), (1 << 20 | 1, 1, 1), (65536, 0, 1), (65536, 17, 1), (65536, 1, 0), (65536, 1, 17), (31, 1, 4)]
)
def test_work_that_a_file_may_not_ask_for(numbers):
    with pytest.raises(Invalid):
        Argon2Params(*numbers)
    with pytest.raises(NotTrusted):
        Argon2Params.read(*numbers)


def test_an_empty_passphrase_and_a_short_salt_are_invalid():
    cheap = Argon2Params(memory_kib=64, passes=1, lanes=1)
    with pytest.raises(Invalid, match="empty"):
        argon2id(b"", bytes(16), params=cheap)
    with pytest.raises(Invalid, match="salt"):
        argon2id(b"x", bytes(7), params=cheap)
