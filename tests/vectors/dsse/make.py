"""Make ``mldsa65.json`` anew with an implementation of FIPS 204 that shares nothing with ours: ``dilithium-py`` 1.5.1.

Install that (``pip install dilithium-py==1.5.1``) and run ``python tests/vectors/dsse/make.py``. Signing is deterministic, so
the file comes out the same. The messages are DSSE pre-authentication encodings.
"""

import hashlib
import json
from pathlib import Path

from dilithium_py.ml_dsa import ML_DSA_65

HERE = Path(__file__).parent
TYPE = b"application/vnd.in-toto+json"
PAYLOADS = (b"", b'{"_type":"https://in-toto.io/Statement/v1"}', bytes(range(256)) * 9)


def main() -> None:
    """Rewrite the file."""
    vectors = []
    for number, payload in enumerate(PAYLOADS):
        seed = hashlib.sha256(b"modelkeep test vector %d" % number).digest()
        public, private = ML_DSA_65.key_derive(seed)
        message = b"DSSEv1 %d %b %d %b" % (len(TYPE), TYPE, len(payload), payload)
        signature = ML_DSA_65.sign(private, message, deterministic=True)
        shown = {"seed": seed, "public": public, "payload": payload, "signature": signature}
        vectors.append({name: value.hex() for name, value in shown.items()})
    (HERE / "mldsa65.json").write_text(json.dumps(vectors, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
