"""Puzzles: showing that about so many SHA-256 hashes were computed for one body and no other.

A nonce solves the puzzle of a challenge, a body and a number of hashes when the first eight bytes of

    SHA-256(challenge ‖ SHA-256(body) ‖ nonce),

read as a big-endian number, times that number of hashes are below 2^64. Every nonce does with the same chance, 1 in ``hashes``,
so that solving takes ``hashes`` tries on average whoever tries, and n times as many are n times the work; 2^b are b leading
zero bits. Checking takes two hashes. Sources: Dwork and Naor 1992, "Pricing via Processing or Combatting Junk Mail"; Back 2002,
"Hashcash". The page of the format: docs/formats/puzzle.md.
"""

from hashlib import sha256

from modelkeep.errors import Invalid, NotTrusted

CHALLENGE_BYTES, NONCE_BYTES = 32, 8
"""With the digest of the body, 32 bytes, a challenge fills one block of SHA-256: a try hashes one more."""
_HEAD = 8


def check_solution(challenge: bytes, body: bytes, hashes: int, nonce: bytes) -> None:
    """Raises NotTrusted: ``nonce`` does not solve the puzzle."""
    head = sha256(challenge + sha256(body).digest() + nonce).digest()[:_HEAD]
    if int.from_bytes(head) * hashes >= 1 << 8 * _HEAD:
        raise NotTrusted(f"the nonce {nonce.hex()} does not solve the puzzle of {hashes:,} hashes for this body")


def solve(challenge: bytes, body: bytes, hashes: int, most: int) -> bytes:
    """The first nonce, counted from 0, that solves the puzzle: the tries it took are its number, and one.

    ``most``: tries to make at most; 20 ``hashes`` fail once in 10^8 puzzles. Raises Invalid: none of them does.
    """
    begun = sha256(challenge + sha256(body).digest())
    bound = (((1 << 8 * _HEAD) - 1) // hashes).to_bytes(_HEAD) + b"\xff" * 25  # no digest that passes is above this
    for count in range(most):
        nonce = count.to_bytes(NONCE_BYTES)
        tried = begun.copy()
        tried.update(nonce)
        if tried.digest() <= bound:
            return nonce
    raise Invalid(f"none of {most:,} nonces solves the puzzle of {hashes:,} hashes")
