"""What only a token can do wrong, live on SoftHSM2: keys that leave it, PINs, forks, other programs and processes, Ed25519."""

import hashlib
import os
import subprocess
import sys

import pkcs11
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from key_providers import Clock
from pkcs11 import Attribute, GCMParams, KeyType, Mechanism, MechanismFlag, ObjectClass
from softhsm import MODULE, Token

from modelkeep.adapters.keys.pkcs11_token import module, parse_uri
from modelkeep.adapters.keys.uri import open_keys, open_signing
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Unavailable

KEY, CONTEXT = bytes(range(32)), b"context"


@pytest.fixture(scope="module")
def token():
    return Token()


@pytest.fixture
def uri(token, request):
    return token.uri("k" + hashlib.sha256(request.node.nodeid.encode()).hexdigest()[:12])


@pytest.fixture
def keys(uri):
    found = open_keys(uri)
    found.create()
    return found


def on_token(uri, work):
    """``work`` with the module's own session, on its thread: what another program with the PIN could do."""
    parsed = parse_uri(uri)
    return module(parsed.module).call(parsed, work, 10)


def objects(session, uri, version=1, kind=ObjectClass.SECRET_KEY):
    return list(session.get_objects({Attribute.CLASS: kind, Attribute.LABEL: f"{parse_uri(uri).name}/{version}"}))


def test_a_key_was_made_in_the_token_and_never_leaves_it(keys, uri):
    def look(session):
        (key,) = objects(session, uri)
        always = [Attribute.ALWAYS_SENSITIVE, Attribute.NEVER_EXTRACTABLE, Attribute.LOCAL]
        assert [key[each] for each in (Attribute.SENSITIVE, Attribute.PRIVATE, *always)] == [True] * 5
        assert [key[each] for each in (Attribute.EXTRACTABLE, Attribute.WRAP, Attribute.UNWRAP, Attribute.SIGN)] == [False] * 4
        with pytest.raises(pkcs11.AttributeSensitive):
            key[Attribute.VALUE]
        for attribute, value in ((Attribute.EXTRACTABLE, True), (Attribute.SENSITIVE, False)):
            with pytest.raises(pkcs11.AttributeReadOnly):
                key[attribute] = value
        wrapping = session.generate_key(KeyType.AES, 256, capabilities=MechanismFlag.WRAP)
        with pytest.raises(pkcs11.PKCS11Error):
            wrapping.wrap_key(key)

    on_token(uri, look)


def test_the_wrapped_bytes_are_what_the_document_says(keys, uri):
    """Independent check: the token's AES-GCM, called without our adapter."""
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    assert len(wrapped) == 12 + 32 + 16

    def unwrap(session):
        (key,) = objects(session, uri)
        params = GCMParams(wrapped[:12], hashlib.sha512(CONTEXT).digest(), 128)
        return bytes(key.decrypt(wrapped[12:], mechanism=Mechanism.AES_GCM, mechanism_param=params))

    assert on_token(uri, unwrap) == KEY


def test_a_version_that_was_seen_disabled_opens_when_it_is_enabled_again(keys, uri):
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    keys.rotate()
    keys.disable(1)
    other = open_keys(uri)
    with pytest.raises(Denied, match="disabled"):
        other.wrapper(1).unwrap(wrapped, CONTEXT)
    keys.enable(1)
    assert other.wrapper(1).unwrap(wrapped, CONTEXT) == KEY


def test_the_token_itself_enforces_the_states(keys, uri):
    keys.rotate()
    keys.disable(1)

    def rights(session):
        found = [objects(session, uri, version)[0] for version in (1, 2)]
        return [(key[Attribute.ENCRYPT], key[Attribute.DECRYPT]) for key in found]

    assert on_token(uri, rights) == [(False, False), (True, True)]
    keys.destroy(1, grace_days=0)
    assert on_token(uri, lambda session: objects(session, uri)) == []


def test_a_key_that_may_leave_the_token_is_not_used(keys, uri):
    def swap(session):
        (key,) = objects(session, uri)
        key.destroy()
        session.generate_key(
            KeyType.AES,
            256,
            label=f"{parse_uri(uri).name}/1",
            store=True,
            template={Attribute.EXTRACTABLE: True, Attribute.SENSITIVE: False},
        )

    on_token(uri, swap)
    with pytest.raises(NotTrusted, match="stays in its token"):
        keys.wrapper(1).wrap(KEY, CONTEXT)


def test_two_keys_of_one_name_are_not_guessed_between(keys, uri):
    on_token(uri, lambda session: session.generate_key(KeyType.AES, 256, label=f"{parse_uri(uri).name}/1", store=True) and None)
    with pytest.raises(NotTrusted, match="2 keys"):
        open_keys(uri).wrapper(1).wrap(KEY, CONTEXT)


def test_a_record_that_another_program_wrote_is_not_trusted(keys, uri):
    def meddle(session):
        label = f"{parse_uri(uri).name}/1"
        kind = {Attribute.CLASS: ObjectClass.DATA, Attribute.APPLICATION: "modelkeep", Attribute.LABEL: label}
        session.create_object({**kind, Attribute.VALUE: b"{", Attribute.TOKEN: True, Attribute.PRIVATE: True})

    on_token(uri, meddle)
    with pytest.raises(NotTrusted, match="record"):
        keys.versions()


def test_a_token_that_unwraps_nothing_is_told_from_altered_bytes(keys, uri):
    """The known ciphertext of the record does not open under a key that was put in the place of ours."""
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)

    def swap(session):
        objects(session, uri)[0].destroy()
        session.generate_key(KeyType.AES, 256, label=f"{parse_uri(uri).name}/1", store=True)

    on_token(uri, swap)
    with pytest.raises(Unavailable, match="not even what it must"):
        open_keys(uri).wrapper(1).unwrap(wrapped, CONTEXT)


def test_a_number_is_not_used_again_after_a_rotation_that_was_cut_off(keys, uri):
    """As if the process died after it reserved version 2: the record is there, the key is not."""

    def cut(session):
        label = f"{parse_uri(uri).name}/2"
        kind = {Attribute.CLASS: ObjectClass.DATA, Attribute.APPLICATION: "modelkeep", Attribute.LABEL: label}
        value = b'{"version":2,"created":1,"due":0,"check":"","edition":1}'
        session.create_object({**kind, Attribute.VALUE: value, Attribute.TOKEN: True, Attribute.PRIVATE: True})

    on_token(uri, cut)
    assert [info.state for info in keys.versions()] == ["primary", "destroyed"]
    assert keys.wrapper().key_id.endswith("/1")
    assert keys.rotate().key_id.endswith("/3")
    assert [info.state for info in keys.versions()] == ["decrypt-only", "destroyed", "primary"]


def test_a_rotation_cut_off_before_the_old_key_lost_its_right_has_one_primary(keys, uri):
    keys.rotate()
    on_token(uri, lambda session: objects(session, uri)[0].__setitem__(Attribute.ENCRYPT, True))
    assert [info.state for info in keys.versions()] == ["decrypt-only", "primary"]


OTHER = """
import sys
from modelkeep.adapters.keys.uri import open_keys
keys = open_keys(sys.argv[1])
print(getattr(keys, sys.argv[2])(*map(int, sys.argv[3:])))
"""


def test_what_another_process_does_holds_here(keys, uri):
    def other(*arguments):
        subprocess.run([sys.executable, "-c", OTHER, uri, *arguments], check=True, capture_output=True)

    held = keys.wrapper()
    wrapped = held.wrap(KEY, CONTEXT)
    other("rotate")
    with pytest.raises(Denied, match="decrypt-only"):
        held.wrap(KEY, CONTEXT)
    other("disable", "1")
    with pytest.raises(Denied, match="disabled"):
        held.unwrap(wrapped, CONTEXT)
    other("enable", "1")
    assert held.unwrap(wrapped, CONTEXT) == KEY


def test_a_forked_child_uses_the_token_and_its_parent_goes_on(keys):
    held = keys.wrapper()
    wrapped = held.wrap(KEY, CONTEXT)
    child = os.fork()
    if child == 0:
        os._exit(0 if held.unwrap(wrapped, CONTEXT) == KEY and keys.rotate().key_id.endswith("/2") else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert held.unwrap(wrapped, CONTEXT) == KEY
    assert [info.state for info in keys.versions()] == ["decrypt-only", "primary"]


def test_two_tokens_of_one_process_do_not_meet(keys, uri):
    with pytest.raises(Missing):
        open_keys(Token().uri(parse_uri(uri).name)).versions()
    assert keys.wrapper().wrap(KEY, CONTEXT)


def child(uri, **environment):
    """What ``versions`` says in a process of its own: the module keeps a login for the whole of one."""
    program = """
import sys
from modelkeep.adapters.keys.uri import open_keys
from modelkeep.errors import ModelkeepError
try:
    print("ok", len(open_keys(sys.argv[1]).versions()))
except ModelkeepError as error:
    print(type(error).__name__, error)
"""
    found = subprocess.run(
        [sys.executable, "-c", program, uri], capture_output=True, text=True, check=True, env=os.environ | environment
    )
    assert "Traceback" not in found.stderr
    return found.stdout


def test_where_the_pin_and_the_module_come_from(keys, uri, token, tmp_path):
    bare = uri.partition("?")[0]
    assert child(bare, PKCS11_MODULE_PATH=MODULE, PKCS11_PIN=token.pin) == "ok 1\n"
    assert child(bare, PKCS11_MODULE_PATH=MODULE, PKCS11_PIN_FILE=str(token.pin_file), PKCS11_PIN="0000") == "ok 1\n"
    assert child(f"{bare}?pin-source={token.pin_file}", PKCS11_MODULE_PATH=MODULE) == "ok 1\n"
    assert child(f"{bare}?pin-source=file://{token.pin_file}", PKCS11_MODULE_PATH=MODULE) == "ok 1\n"
    assert "Invalid no PIN" in child(bare, PKCS11_MODULE_PATH=MODULE)
    assert "Unavailable cannot read the token's PIN" in child(f"{bare}?pin-source={tmp_path}/no", PKCS11_MODULE_PATH=MODULE)
    (tmp_path / "empty").write_text("\n")
    assert "Invalid the PIN file" in child(f"{bare}?pin-source={tmp_path}/empty", PKCS11_MODULE_PATH=MODULE)


def test_a_wrong_pin_is_tried_once_and_not_shown(keys, uri):
    said = child(uri.partition("?")[0], PKCS11_MODULE_PATH=MODULE, PKCS11_PIN="wrong-pin-24680")
    assert said.startswith("Denied")
    assert "refuses the PIN (PinIncorrect)" in said
    assert "wrong-pin" not in said


GUESSES = """
import os, sys
from modelkeep.adapters.keys.uri import open_keys
from modelkeep.errors import ModelkeepError
keys = open_keys(sys.argv[1])
for pin in sys.argv[2:]:
    os.environ["PKCS11_PIN"] = pin
    try:
        print("ok", len(keys.versions()))
    except ModelkeepError as error:
        print("tried" if "PinIncorrect" in str(error) else "not tried" if "before" in str(error) else error)
"""


def test_a_refused_pin_is_not_tried_again_until_it_is_another(keys, uri, token):
    environment = os.environ | {"PKCS11_MODULE_PATH": MODULE}
    command = [sys.executable, "-c", GUESSES, uri.partition("?")[0], "wrong", "wrong", "other", "wrong", "wrong", token.pin]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    assert said == ["tried", "not tried", "tried", "tried", "not tried", "ok 1"]


def test_a_token_that_is_not_there(uri):
    said = child(uri.replace(parse_uri(uri).token, "nobody"))
    assert said.startswith("Unavailable")
    assert "no such token" in said


def test_a_serial_names_a_token_too(keys, uri):
    serial = on_token(uri, lambda session: session.token.serial.decode().strip())
    parsed = parse_uri(uri)
    text = f"pkcs11:serial={serial};object={parsed.name}?module-path={MODULE}&pin-source={parsed.pin_file}"
    assert len(open_keys(text).versions()) == 1
    with pytest.raises(Unavailable):
        open_keys(text.replace(serial, "0000000000000000")).versions()


# -- Ed25519 --


@pytest.fixture
def signing(uri):
    found = open_signing(uri)
    found.create()
    return found


def test_a_signature_of_the_token_is_ed25519(signing):
    key = signing.signer()
    signature = key.sign(b"message")
    assert len(signature) == 64
    assert len(key.public) == 32
    Ed25519PublicKey.from_public_bytes(key.public).verify(signature, b"message")
    assert key.sign(b"message") == signature  # RFC 8032 is deterministic
    assert key.sign(b"") != signature
    assert len(key.sign(bytes(100_000))) == 64


def test_the_private_half_never_leaves_the_token(signing, uri):
    def look(session):
        (key,) = objects(session, uri, kind=ObjectClass.PRIVATE_KEY)
        assert key[Attribute.SENSITIVE]
        assert not key[Attribute.EXTRACTABLE]
        with pytest.raises(pkcs11.AttributeSensitive):
            key[Attribute.VALUE]

    on_token(uri, look)


def test_versions_of_a_signing_key(signing, uri):
    with pytest.raises(Conflict):
        open_signing(uri).create()
    first = signing.signer()
    second = signing.rotate()
    assert signing.versions() == (1, 2)
    assert signing.signer().public == second.public != first.public
    assert signing.signer(1).public == first.public
    assert first.key_id.endswith("/1")
    assert first.where == first.key_id
    with pytest.raises(Missing):
        signing.signer(3)
    signing.destroy(1)
    for use in (lambda: first.sign(b"x"), lambda: signing.signer(1), lambda: signing.destroy(1)):
        with pytest.raises(Denied, match="destroyed"):
            use()
    assert signing.rotate().version == 3


def test_it_says_which_half_is_where_and_wraps_the_other_in_the_same_token(signing, uri):
    said = signing.signer().describe()
    assert "Ed25519: in the token" in said
    assert "ML-DSA-65: software" in said
    assert "pin-source" not in said
    seed_keys = signing.seed_keys
    wrapper = seed_keys.create()
    assert wrapper.unwrap(wrapper.wrap(KEY, CONTEXT), CONTEXT) == KEY
    assert wrapper.key_id == f"{parse_uri(uri).text}-seed/1"


def test_a_token_that_signs_with_another_key_is_caught(signing, uri):
    first = signing.signer()
    signing.rotate()

    def swap(session):
        (one,) = objects(session, uri, 1, ObjectClass.PRIVATE_KEY)
        (two,) = objects(session, uri, 2, ObjectClass.PRIVATE_KEY)
        one[Attribute.LABEL], two[Attribute.LABEL] = two[Attribute.LABEL], one[Attribute.LABEL]

    on_token(uri, swap)
    with pytest.raises(NotTrusted, match="meddled"):
        first.sign(b"message")


def test_nothing_signs_before_it_is_made(uri):
    for use in (open_signing(uri).signer, open_signing(uri).versions, open_signing(uri).rotate):
        with pytest.raises(Missing):
            use()


def test_a_hung_module_does_not_hang_the_signer(token, uri):
    signing = open_signing(uri, timeout=1.2)
    key = signing.create()
    with token.stuck(), pytest.raises(Unavailable, match="within"):
        key.sign(b"message")


def test_no_secret_in_representations(signing, keys, uri, token):
    for thing in (signing, keys, signing.signer(), keys.wrapper(), parse_uri(uri), module(MODULE)):
        assert token.pin not in repr(thing) + str(thing)
    assert keys.uri == uri
    with pytest.raises(Invalid):
        parse_uri(f"{uri}&pin-value={token.pin}")


def test_time_to_destroy_is_kept_in_the_token(uri):
    clock = Clock()
    keys = open_keys(uri, clock=clock)
    keys.create()
    keys.rotate()
    keys.disable(1)
    due = keys.destroy(1, grace_days=3).due
    assert open_keys(uri).versions()[0].due == due
    clock.ahead_ns = 3 * 86_400 * 10**9
    assert keys.destroy(1, grace_days=0).state == "destroyed"
