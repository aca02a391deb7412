"""Make ``bundles.json`` anew: OpenSSF signatures by the reference tool, and what becomes of them when somebody tampers.

Run it as ``python tests/vectors/oms/make.py`` with ``model_signing`` 1.1.1 installed. Keys are fresh and signatures random, so
a second run gives other bytes with the same meaning. ``error`` is empty, or words of the refusal that a reader must give.
"""

import base64
import datetime
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from model_signing.hashing import Config as Hashing
from model_signing.signing import Config as Signing

HERE = Path(__file__).parent
FOLDER = {
    "config.json": b"{}\n",
    "weights/part-0.bin": bytes(range(256)),
    "weights-index": b"part-0.bin\n",
    ".gitignore": b"*\n",
}
WHOLE = {".": b"one file of a model\n"}


def main() -> None:
    keys = {name: ec.generate_private_key(curve()) for name, curve in CURVES.items()}
    vectors = [*good(keys), *bad(keys)]
    (HERE / "bundles.json").write_text(json.dumps(vectors, indent=1) + "\n", "utf-8")


CURVES: dict[str, Callable[[], ec.EllipticCurve]] = {"p256": ec.SECP256R1, "p384": ec.SECP384R1, "p521": ec.SECP521R1}


def good(keys):
    p256 = keys["p256"]
    without_git = {path: data for path, data in FOLDER.items() if path != ".gitignore"}
    yield vector("one file", p256, sign(p256, WHOLE), WHOLE)
    for name, key in keys.items():
        yield vector(f"a folder, {name}", key, sign(key, FOLDER), FOLDER)
    everything = Hashing().set_ignored_paths(paths=[], ignore_git_paths=False)
    yield vector("a folder, nothing left out", p256, sign(p256, FOLDER, everything), FOLDER)
    left_out = Hashing().set_ignored_paths(paths=["weights"])
    yield vector("a folder, another folder left out", p256, sign(p256, FOLDER, left_out), FOLDER)
    for name in ("blake2", "blake3"):
        hashing = Hashing().use_file_serialization(hashing_algorithm=name)
        yield vector(f"a folder by {name}", p256, sign(p256, FOLDER, hashing), without_git)
    yield vector(
        "no hint which key",
        p256,
        edited(sign(p256, WHOLE), lambda b: b["verificationMaterial"]["publicKey"].pop("hint")),
        WHOLE,
    )


def bad(keys):
    p256, p384 = keys["p256"], keys["p384"]
    one, folder = sign(p256, WHOLE), sign(p256, FOLDER)
    shards = Hashing().use_shard_serialization(shard_size=100)
    yield vector(
        "shards, which the tool itself cannot verify", p256, sign(p256, FOLDER, shards), FOLDER, "by the method 'shards'"
    )
    yield vector("a certificate", p256, sign_with_certificate(WHOLE), WHOLE, "signed with a certificate")
    yield vector("another key", p384, one, WHOLE, "made with another key")
    yield vector(
        "no hint, another key",
        p384,
        edited(one, lambda b: b["verificationMaterial"]["publicKey"].pop("hint")),
        WHOLE,
        "does not hold",
    )
    yield vector("a byte of the model changed", p256, one, {".": b"One file of a model\n"}, "is not the file that was signed")
    yield vector("a file of the folder is gone", p256, folder, without(FOLDER, "config.json"), "was signed and is not there")
    yield vector("a file more in the folder", p256, folder, {**FOLDER, "weights/extra.bin": b""}, "was not signed")
    yield vector(
        "two files swapped", p256, folder, swapped(FOLDER, "config.json", "weights-index"), "is not the file that was signed"
    )
    yield vector("a folder where a file was signed", p256, one, {"a": WHOLE["."]}, "the signature is that of one file")
    yield vector("a file where a folder was signed", p256, folder, WHOLE, "the signature is that of a folder")
    for comment, change, error in FORGERIES:
        yield vector(comment, p256, resigned(p256, folder, change), FOLDER, error)
    for comment, change, error in EDITS:
        yield vector(comment, p256, edited(folder, change), FOLDER, error)
    twice = one.replace('{"mediaType"', '{"mediaType":"x","mediaType"', 1)
    yield vector("a key twice in the bundle", p256, twice, WHOLE, "stands twice")


def predicate(statement):
    return statement["predicate"]


def resource(statement, at=0):
    return predicate(statement)["resources"][at]


def first_twice(statement):
    resources = predicate(statement)["resources"]
    resources.append({**resources[0], "digest": "0" * 64})


FORGERIES = [  # by whoever holds the key, so that the signature itself holds
    ("an older predicate", lambda s: s.update(predicateType="https://model_signing/Digests/v0.1"), "sign the model again"),
    ("a predicate of something else", lambda s: s.update(predicateType="https://slsa.dev/v1"), "sign the model again"),
    ("another kind of statement", lambda s: s.update(_type="https://in-toto.io/Statement/v0.1"), "sign the model again"),
    ("no resources", lambda s: predicate(s).update(resources=[]), "names no file at all"),
    ("no list of resources", lambda s: predicate(s).pop("resources"), "resources"),
    ("no subject", lambda s: s.update(subject=[]), "contradicts itself"),
    ("two subjects", lambda s: s["subject"].append(s["subject"][0]), "contradicts itself"),
    ("a file twice", first_twice, "twice"),
    ("a path out of the folder", lambda s: resource(s).update(name="../config.json"), "not a path within the model"),
    ("an absolute path", lambda s: resource(s).update(name="/etc/passwd"), "not a path within the model"),
    ("a path with a dot", lambda s: resource(s).update(name="./config.json"), "not a path within the model"),
    ("a path with two slashes", lambda s: resource(s).update(name="weights//part-0.bin"), "not a path within the model"),
    ("an empty name", lambda s: resource(s).update(name=""), "not a path within the model"),
    ("the whole beside its parts", lambda s: resource(s).update(name="."), "and files of it besides"),
    ("everything left out", lambda s: serialization(s).update(ignore_paths=["."]), "not a path within the model"),
    ("left out above the folder", lambda s: serialization(s).update(ignore_paths=[".."]), "not a path within the model"),
    ("signed and left out", lambda s: serialization(s).update(ignore_paths=["weights"]), "leaves it out"),
    ("an unknown digest", lambda s: serialization(s).update(hash_type="md5"), "hashed with 'md5'"),
    ("another digest for one file", lambda s: resource(s).update(algorithm="blake3"), "something else than a sha256 digest"),
    ("a digest in capitals", lambda s: resource(s).update(digest=resource(s)["digest"].upper()), "else than a sha256 digest"),
    ("a short digest", lambda s: resource(s).update(digest=resource(s)["digest"][:62]), "something else than a sha256 digest"),
    ("an unknown method", lambda s: serialization(s).update(method="tensors"), "by the method 'tensors'"),
    ("a field that changes what is hashed", lambda s: serialization(s).update(chunks=7), "unknown field"),
    ("the root of other files", lambda s: s["subject"][0]["digest"].update(sha256="0" * 64), "contradicts itself"),
]  # fmt: skip


def serialization(statement):
    return predicate(statement)["serialization"]


def envelope(bundle):
    return bundle["dsseEnvelope"]


def flip(bundle):
    raw = bytearray(base64.b64decode(envelope(bundle)["payload"]))
    raw[raw.index(b"config.json")] ^= 1
    envelope(bundle)["payload"] = base64.b64encode(raw).decode()


def material(bundle):
    return bundle["verificationMaterial"]


EDITS = [  # by whoever holds no key
    ("another media type", lambda b: b.update(mediaType=b["mediaType"].replace("3", "4")), "not a Sigstore bundle v0.3"),
    ("another payload type", lambda b: envelope(b).update(payloadType="text/plain"), "signs 'text/plain'"),
    ("a byte of the statement changed", flip, "does not hold"),
    ("no signature", lambda b: envelope(b).update(signatures=[]), "signatures"),
    ("two signatures", lambda b: envelope(b)["signatures"].append({"sig": "AAAA", "keyid": ""}), "signatures"),
    ("an empty signature", lambda b: envelope(b)["signatures"][0].update(sig=""), "does not hold"),
    ("a payload that is not base64", lambda b: envelope(b).update(payload="*"), "not standard base64"),
    ("no key", lambda b: material(b).pop("publicKey"), "names no key"),
    ("a certificate besides", lambda b: material(b).update(certificate={"rawBytes": ""}), "signed with a certificate"),
    ("log entries that nobody checks", lambda b: material(b).update(tlogEntries=[{}]), "transparency-log entries"),
    ("a field that nobody knows", lambda b: b.update(messageSignature={}), "unknown field"),
]  # fmt: skip


def vector(comment, key, bundle, files, error=""):
    pem = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    shown = {path: base64.b64encode(data).decode() for path, data in files.items()}
    return {"comment": comment, "error": error, "key": pem, "files": shown, "bundle": bundle}


def sign(key, files, hashing=None):
    with tempfile.TemporaryDirectory() as scratch:
        private = Path(scratch) / "key.pem"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return _signed(Signing().use_elliptic_key_signer(private_key=private), files, hashing, Path(scratch))


def sign_with_certificate(files):
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer")])
    now = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + datetime.timedelta(days=3650))
    builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    with tempfile.TemporaryDirectory() as scratch:
        private, public = Path(scratch) / "key.pem", Path(scratch) / "certificate.pem"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(certificate.public_bytes(Encoding.PEM))
        config = Signing().use_certificate_signer(private_key=private, signing_certificate=public, certificate_chain=[public])
        return _signed(config, files, None, Path(scratch))


def _signed(config, files, hashing, scratch):
    root = scratch / "model"
    for path, data in files.items():
        place = root if path == "." else root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    if hashing is not None:
        config = config.set_hashing_config(hashing)
    config.sign(root, scratch / "model.sig")
    return (scratch / "model.sig").read_text("utf-8")


def edited(bundle, change):
    data = json.loads(bundle)
    change(data)
    return json.dumps(data, separators=(",", ":"))


def resigned(key, bundle, change):
    data = json.loads(bundle)
    statement = json.loads(base64.b64decode(data["dsseEnvelope"]["payload"]))
    change(statement)
    payload = json.dumps(statement).encode()
    kind = b"application/vnd.in-toto+json"
    message = b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)
    signature = key.sign(message, ec.ECDSA(hashes.SHA256()))
    data["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    data["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return json.dumps(data, separators=(",", ":"))


def without(files, path):
    return {name: data for name, data in files.items() if name != path}


def swapped(files, one, other):
    return {**files, one: files[other], other: files[one]}


if __name__ == "__main__":
    main()
