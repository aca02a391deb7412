"""OpenSSF signatures: what the reference tool wrote is read, what somebody changed is refused, and the tool reads ours."""

import base64
import hashlib
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_der_private_key, load_pem_public_key
from hypothesis import example, given, settings
from hypothesis import strategies as st

from modelkeep.app.modelfiles import check_signature
from modelkeep.core.values import digest_of
from modelkeep.custody.keys import COMPROMISED, OMS_SIGNING, PRIMARY, VERIFY_ONLY, KeyVersion, new_material
from modelkeep.custody.oms import HASHES, WHOLE, BundleKey, BundleSigner, bundle_keys, open_bundle, signed_by
from modelkeep.errors import Invalid, Missing, ModelkeepError, NotTrusted, TooLarge

VECTORS = json.loads((Path(__file__).parents[1] / "vectors" / "oms" / "bundles.json").read_text("utf-8"))
TOOL = Path(sys.executable).with_name("model_signing")


class CountingEntropy:
    """The same bytes every time."""

    def __init__(self, seed=0):
        self.seed = seed

    def token(self, size):
        self.seed += 1
        return hashlib.shake_256(self.seed.to_bytes(4)).digest(size)


SIGNER = BundleSigner(new_material(OMS_SIGNING, CountingEntropy())["key"])
OTHER = BundleSigner(new_material(OMS_SIGNING, CountingEntropy(77))["key"])
FILES = {"config.json": b"{}\n", "weights/part-0.bin": bytes(range(256)), "weights-index": b"part-0.bin\n"}


def digests(files):
    return {path: digest_of(data) for path, data in files.items()}


def lay(root, files):
    """``files`` on disk under ``root``; the path of the model."""
    for path, data in files.items():
        place = root if path == WHOLE else root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_bytes(data)
    return root


def tool(*arguments):
    done = subprocess.run([TOOL, *map(str, arguments)], capture_output=True, text=True, timeout=120, check=False)
    return done.returncode, done.stdout + done.stderr


# -- known answers --


@pytest.mark.parametrize("vector", VECTORS, ids=lambda vector: vector["comment"])
def test_known_answers(vector, tmp_path):
    model = lay(tmp_path / "model", {path: base64.b64decode(data) for path, data in vector["files"].items()})
    (tmp_path / "model.sig").write_text(vector["bundle"])
    expected = pytest.raises((NotTrusted, Invalid), match=vector["error"]) if vector["error"] else nullcontext()
    with expected as refusal:
        done = check_signature(str(model), str(tmp_path / "model.sig"), BundleKey.from_pem(vector["key"].encode()))
    if refusal is None:
        assert (done.name, set(done.files) <= set(vector["files"])) == ("model", True)
    else:
        assert "\n" not in str(refusal.value)


def test_an_independent_check_of_what_is_written():
    """The same bytes with nothing but a JSON parser and an ECDSA implementation."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    bundle = json.loads(SIGNER.sign("model", digests(FILES)))
    assert bundle["mediaType"] == "application/vnd.dev.sigstore.bundle.v0.3+json"
    assert bundle["verificationMaterial"] == {
        "publicKey": {"hint": hashlib.sha256(SIGNER.public.pem).hexdigest()},
        "tlogEntries": [],
    }
    envelope = bundle["dsseEnvelope"]
    payload = base64.b64decode(envelope["payload"])
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload)
    signature = base64.b64decode(envelope["signatures"][0]["sig"])
    load_pem_public_key(SIGNER.public.pem).verify(signature, signed, ECDSA(SHA256()))
    statement = json.loads(payload)
    names = [resource["name"] for resource in statement["predicate"]["resources"]]
    assert names == ["config.json", "weights/part-0.bin", "weights-index"]  # by path components, as the reference sorts
    root = hashlib.sha256(b"".join(hashlib.sha256(FILES[name]).digest() for name in names)).hexdigest()
    assert statement["subject"] == [{"name": "model", "digest": {"sha256": root}}]


def test_the_same_model_gives_the_same_bytes_and_the_key_is_on_p256():
    assert SIGNER.sign("m", digests(FILES)) == SIGNER.sign("m", dict(reversed(digests(FILES).items())))
    key = load_der_private_key(new_material(OMS_SIGNING, CountingEntropy())["key"], None)
    assert key.curve.name == "secp256r1"


# -- the reference tool --


@pytest.mark.parametrize(
    ("name", "files"),
    [("model.onnx", {WHOLE: b"an ONNX file"}), ("model with space.safetensors", {WHOLE: b""}), ("model", FILES)],
    ids=["one file", "an empty file", "a folder"],
)
def test_the_reference_tool_verifies_ours_and_refuses_a_changed_file(name, files, tmp_path):
    model = lay(tmp_path / name, files)
    (tmp_path / "ours.sig").write_bytes(SIGNER.sign(name, digests(files)))
    (tmp_path / "key.pem").write_bytes(SIGNER.public.pem)
    (tmp_path / "other.pem").write_bytes(OTHER.public.pem)
    asked = ("verify", "key", model, "--signature", tmp_path / "ours.sig", "--public_key")
    assert tool(*asked, tmp_path / "key.pem") == (0, "Verification succeeded\n")
    assert tool(*asked, tmp_path / "other.pem")[0] != 0
    changed = model if WHOLE in files else model / "config.json"
    changed.write_bytes(b"something else")
    assert tool(*asked, tmp_path / "key.pem")[0] != 0


@pytest.mark.parametrize("files", [{WHOLE: b"an ONNX file"}, FILES], ids=["one file", "a folder"])
def test_we_verify_what_the_reference_tool_wrote(files, tmp_path):
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = load_der_private_key(new_material(OMS_SIGNING, CountingEntropy())["key"], None)
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    model = lay(tmp_path / "model", files)
    signature = tmp_path / "model.sig" if WHOLE in files else model / "model.sig"  # its usual place in a folder
    code, said = tool("sign", "key", model, "--private_key", tmp_path / "key.pem", "--signature", signature)
    assert code == 0, said
    done = check_signature(str(model), str(signature), OTHER.public, SIGNER.public)
    assert (done.key, done.name, done.files) == (SIGNER.public.hint, "model", tuple(sorted(files)))
    changed = model if WHOLE in files else model / "weights-index"
    changed.write_bytes(b"something else")
    with pytest.raises(NotTrusted, match="is not the file that was signed"):
        check_signature(str(model), str(signature), SIGNER.public)


# -- laws --

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=8).filter(
    lambda n: n not in {".", ".."}
)
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)


@settings(deadline=None)
@given(st.dictionaries(PATHS, st.binary(max_size=20), min_size=1, max_size=6), st.text(min_size=1, max_size=20))
def test_what_is_signed_is_read_back_and_nothing_else_passes(files, name):
    signed = open_bundle(SIGNER.sign(name, digests(files)), OTHER.public, SIGNER.public)
    assert (signed.name, signed.key, signed.algorithm) == (name, SIGNER.public, "sha256")
    found = {path: hashlib.sha256(data).hexdigest() for path, data in files.items()}
    signed.check(found)
    victim = sorted(found)[0]
    for other in (
        {**found, victim: "0" * 64},
        {**found, "one more/x": "0" * 64},
        {p: d for p, d in found.items() if p != victim},
    ):
        with pytest.raises(NotTrusted):
            signed.check(other)


BUNDLE = SIGNER.sign("model.onnx", {WHOLE: digest_of(b"an ONNX file")})
READ = open_bundle(BUNDLE, SIGNER.public)


@settings(deadline=None, max_examples=400)
@given(st.integers(0, len(BUNDLE) - 1), st.integers(0, 7))
@example(0, 0)
def test_no_changed_bit_changes_what_is_believed(at, bit):
    """Most are refused; what is not (in an unused part of the JSON) says the same as before."""
    changed = bytearray(BUNDLE)
    changed[at] ^= 1 << bit
    try:
        assert open_bundle(bytes(changed), SIGNER.public) == READ
    except ModelkeepError as refusal:
        assert isinstance(refusal, NotTrusted | Invalid)


@settings(deadline=None)
@given(st.integers(0, len(BUNDLE) - 1))
def test_a_truncated_bundle_is_no_bundle(size):
    with pytest.raises(Invalid):
        open_bundle(BUNDLE[:size], SIGNER.public)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=20,
)


@settings(deadline=None)
@given(JSON | st.fixed_dictionaries({"mediaType": JSON, "verificationMaterial": JSON, "dsseEnvelope": JSON}))
def test_any_json_is_refused_in_one_line(data):
    with pytest.raises((Invalid, NotTrusted)) as refusal:
        open_bundle(json.dumps(data).encode(), SIGNER.public)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff", b"null", b"[" * 100_000, b"NaN", b'{"a":1,"a":1}', b"1" * 10_000, b'"\\ud800"'],
    ids=["nothing", "not UTF-8", "null", "deep", "NaN", "a key twice", "a long number", "half a character"],
)
def test_what_is_no_bundle_is_refused(data):
    with pytest.raises(Invalid):
        open_bundle(data, SIGNER.public)


def test_a_bundle_too_large_is_not_parsed():
    with pytest.raises(TooLarge):
        open_bundle(b" " * ((64 << 20) + 1), SIGNER.public)


def test_no_key_at_all_verifies_nothing():
    with pytest.raises(NotTrusted, match="another key"):
        open_bundle(BUNDLE)


@pytest.mark.parametrize(
    "files", [{}, {WHOLE: "sha256:" + "0" * 64, "a": "sha256:" + "0" * 64}, {"../a": "sha256:" + "0" * 64}]
)
def test_nothing_that_could_not_be_verified_is_signed(files):
    with pytest.raises(Invalid):
        SIGNER.sign("model", files)


# -- the model on disk --


def check(root, signature, signed=None):
    signature.write_bytes(signed or SIGNER.sign(root.name, digests(FILES)))
    return check_signature(str(root), str(signature), SIGNER.public)


def test_the_signature_itself_may_lie_in_the_folder_under_any_name(tmp_path):
    root = lay(tmp_path / "model", FILES)
    assert check(root, root / "some.sig").files == tuple(sorted(FILES))


def test_a_second_signature_in_the_folder_was_not_signed(tmp_path):
    root = lay(tmp_path / "model", {**FILES, "older.sig": b"{}"})
    with pytest.raises(NotTrusted, match=r"'older\.sig' was not signed"):
        check(root, root / "some.sig")


@pytest.mark.parametrize("target", ["../secret", "config.json"], ids=["out of the folder", "within the folder"])
def test_a_symbolic_link_is_refused_where_the_signer_allowed_none(target, tmp_path):
    (tmp_path / "secret").write_bytes(FILES["weights-index"])
    root = lay(tmp_path / "model", FILES)
    (root / "weights-index").unlink()
    (root / "weights-index").symlink_to(target)
    with pytest.raises(NotTrusted, match="symbolic link, and the signer allowed none"):
        check(root, tmp_path / "m.sig")


def test_a_link_to_a_file_is_followed_where_the_signer_allowed_it_and_one_to_a_folder_never(tmp_path):
    signed = SIGNER.sign("model", digests(FILES))
    signed = allowing_links(signed)
    root = lay(tmp_path / "model", FILES)
    (root / "weights-index").rename(tmp_path / "elsewhere")
    (root / "weights-index").symlink_to("../elsewhere")
    assert check(root, tmp_path / "m.sig", signed).files == tuple(sorted(FILES))
    (root / "more").symlink_to("weights")
    with pytest.raises(NotTrusted, match="does not lead to a file"):
        check(root, tmp_path / "m.sig", signed)
    (root / "more").unlink()
    (root / "more").symlink_to("nowhere")
    with pytest.raises(NotTrusted, match="does not lead to a file"):
        check(root, tmp_path / "m.sig", signed)


def allowing_links(bundle):
    """The bundle of the same files whose signer followed links."""
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA
    from cryptography.hazmat.primitives.hashes import SHA256

    data = json.loads(bundle)
    payload = base64.b64decode(data["dsseEnvelope"]["payload"]).replace(b'"allow_symlinks":false', b'"allow_symlinks":true')
    key = load_der_private_key(new_material(OMS_SIGNING, CountingEntropy())["key"], None)
    signature = key.sign(b"DSSEv1 28 application/vnd.in-toto+json %d %b" % (len(payload), payload), ECDSA(SHA256()))
    data["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    data["dsseEnvelope"]["signatures"][0]["sig"] = base64.b64encode(signature).decode()
    return json.dumps(data).encode()


def test_a_pipe_in_the_folder_is_refused_and_not_waited_for(tmp_path):
    root = lay(tmp_path / "model", FILES)
    os.mkfifo(root / "pipe")
    with pytest.raises(NotTrusted, match="neither a file nor a folder"):
        check(root, tmp_path / "m.sig")


def test_an_unsigned_file_whose_name_is_no_text_is_refused(tmp_path):
    root = lay(tmp_path / "model", FILES)
    (root / os.fsdecode(b"\xff\xfe")).write_bytes(b"")
    with pytest.raises(NotTrusted, match="was not signed"):
        check(root, tmp_path / "m.sig")


def test_what_is_not_there_is_missing(tmp_path):
    (tmp_path / "m.sig").write_bytes(BUNDLE)
    with pytest.raises(Missing, match="no file or folder"):
        check_signature(str(tmp_path / "gone"), str(tmp_path / "m.sig"), SIGNER.public)
    with pytest.raises(Missing, match="no file"):
        check_signature(str(tmp_path), str(tmp_path / "gone.sig"), SIGNER.public)


# -- keys --


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_what_is_no_key_is_invalid(pem):
    with pytest.raises(Invalid):
        BundleKey.from_pem(pem)


def test_a_key_of_another_kind_is_invalid():
    from cryptography.hazmat.primitives.asymmetric.ec import SECP256K1, generate_private_key
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    for key in (Ed25519PrivateKey.generate(), generate_private_key(SECP256K1())):
        with pytest.raises(Invalid, match="P-256, P-384 or P-521"):
            BundleKey.from_pem(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_a_damaged_private_key_is_not_quoted():
    secret = new_material(OMS_SIGNING, CountingEntropy())["key"]
    with pytest.raises(Invalid) as refusal:
        BundleSigner(secret[:-1])
    assert refusal.value.__cause__ is None
    assert refusal.value.__suppress_context__
    assert secret.hex()[60:90] not in repr(SIGNER)


def test_the_hint_names_the_key_and_proves_nothing():
    assert signed_by(BUNDLE) == SIGNER.public.hint == READ.key.hint
    assert signed_by(BUNDLE.replace(SIGNER.public.hint.encode(), OTHER.public.hint.encode())) == OTHER.public.hint
    with pytest.raises(NotTrusted, match="does not hold"):
        open_bundle(BUNDLE.replace(SIGNER.public.hint.encode(), OTHER.public.hint.encode()), OTHER.public)


def version(number, state):
    return KeyVersion(number, state, 0, new_material(OMS_SIGNING, CountingEntropy(number)))


def test_the_trust_root_follows_rotation_and_ends_a_compromised_key():
    first = bundle_keys((), "keep", [version(1, PRIMARY)], 0)
    assert [(key.name, key.until) for key in first] == [("keep/oms-signing/1", None)]
    rotated = bundle_keys(first, "keep", [version(1, VERIFY_ONLY), version(2, PRIMARY)], 5)
    assert [(key.name, key.until) for key in rotated] == [("keep/oms-signing/1", None), ("keep/oms-signing/2", None)]
    ended = bundle_keys(rotated, "keep", [version(1, COMPROMISED), version(2, PRIMARY)], 9)
    assert [key.until for key in ended] == [9, None]
    assert bundle_keys(ended, "keep", [version(1, COMPROMISED), version(2, PRIMARY)], 12) == ended
    ended[0].check_may_sign("risk", 8)
    with pytest.raises(NotTrusted, match="compromised"):
        ended[0].check_may_sign("risk", 9)


def test_the_table_of_digests_says_their_sizes():
    assert all(begin().digest_size == size for begin, size in HASHES.values())
