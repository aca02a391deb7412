"""Key URIs: which provider, what is malformed, which extra is missing; and no message that repeats a secret."""

import subprocess
import sys
import traceback

import pytest

from modelkeep.adapters.keys.uri import SCHEMES, is_key_uri, open_keys, open_signing
from modelkeep.errors import Invalid, Unavailable

PIN = "13579-the-pin"
VARIABLES = (
    "PKCS11_MODULE_PATH",
    "PKCS11_PIN",
    "PKCS11_PIN_FILE",
    "VAULT_ADDR",
    "VAULT_TOKEN",
    "VAULT_TOKEN_FILE",
    "VAULT_NAMESPACE",
    "VAULT_CACERT",
    "AWS_ENDPOINT_URL",
    "AWS_REGION",
    "AWS_DEFAULT_REGION",
    "AWS_PROFILE",
)


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch, tmp_path):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.parametrize("text", ["file:x", "pkcs11:token=a;object=b", "vault:transit/x", "aws-kms:alias/x"])
def test_key_uris_are_told_from_other_text(text):
    assert is_key_uri(text)


@pytest.mark.parametrize("text", ["", "file", "keep1xyz", "File:x", "s3://x", " file:x", "https://vault:8200", "/tmp/file:x"])
def test_other_text_is_no_key_uri(text):
    assert not is_key_uri(text)
    with pytest.raises(Invalid, match="not a key URI") as raised:
        open_keys(text + PIN)
    assert PIN not in str(raised.value)


@pytest.mark.parametrize(
    "uri",
    [
        *(f"{scheme}:" for scheme in SCHEMES),
        "file://host/path",
        "file:ring.keep",  # no passphrase at hand
        "pkcs11:object=x",
        "pkcs11:token=x",
        "pkcs11:token=x;object=a/b",
        "pkcs11:token=x;object=..",
        "pkcs11:token=x;token=y;object=z",
        "pkcs11:token=x;object=z;colour=red",
        "pkcs11:token=x;object=z?module-path=/x&colour=red",
        "pkcs11:token=x;object=z",  # no module
        f"pkcs11:token=x;object=z?module-path=/x&pin-value={PIN}",
        f"pkcs11:token=x;object=z?module-path=/x&PIN-VALUE={PIN}",
        f"pkcs11:token=x;object=z;pin-value={PIN}?module-path=/x",
        f"pkcs11:token=x;object=z?module-path=/x&pin-source=|echo {PIN}",
        "vault:name",
        "vault:/name",
        "vault:transit/",
        "vault:transit/../sys/name",
        "vault:transit/na.me",
        "vault:transit/x",  # no address
        "aws-kms:name",
        "aws-kms:alias/aws/s3",
        "aws-kms:alias/",
        "aws-kms:arn:aws:s3:::bucket",
        "aws-kms:alias/x",  # no region
    ],
)
def test_what_is_malformed_or_lacks_something_says_so_and_repeats_no_secret(uri):
    with pytest.raises(Invalid) as raised:
        open_keys(uri)
    assert PIN not in "".join(traceback.format_exception(raised.value))
    assert "\n" not in str(raised.value)


def test_a_timeout_must_be_positive():
    with pytest.raises(Invalid, match="timeout"):
        open_keys("vault:transit/x", timeout=0)


@pytest.mark.parametrize(
    "address", ["http://vault.example:8200", "ftp://127.0.0.1", "vault.example", "http://127.0.0.1.evil.example"]
)
def test_keys_do_not_travel_in_the_clear(monkeypatch, address):
    monkeypatch.setenv("VAULT_ADDR", address)
    monkeypatch.setenv("VAULT_TOKEN", PIN)
    with pytest.raises(Invalid, match="https") as raised:
        open_keys("vault:transit/x")
    assert PIN not in str(raised.value)
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://kms.example:8000")
    with pytest.raises(Invalid, match="https"):
        open_keys("aws-kms:alias/x")


def test_an_address_with_a_password_is_refused(monkeypatch):
    monkeypatch.setenv("VAULT_ADDR", f"https://user:{PIN}@vault.example")
    with pytest.raises(Invalid) as raised:
        open_keys("vault:transit/x")
    assert PIN not in str(raised.value)


@pytest.mark.parametrize("token", ["", "  ", "a\nb", "t\x00", "t\x7f"])
def test_vault_needs_a_token_that_is_one(monkeypatch, tmp_path, token):
    monkeypatch.setenv("VAULT_ADDR", "https://vault.example")
    (tmp_path / "token").write_text(token)
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(tmp_path / "token"))
    with pytest.raises(Invalid, match="VAULT_TOKEN_FILE"):
        open_keys("vault:transit/x")
    monkeypatch.setenv("VAULT_TOKEN_FILE", str(tmp_path / "absent"))
    with pytest.raises(Unavailable):
        open_keys("vault:transit/x")


def test_an_authority_file_that_is_not_there(monkeypatch, tmp_path):
    monkeypatch.setenv("VAULT_ADDR", "https://vault.example")
    monkeypatch.setenv("VAULT_TOKEN", PIN)
    monkeypatch.setenv("VAULT_CACERT", str(tmp_path / "none.pem"))
    with pytest.raises(Invalid, match="VAULT_CACERT"):
        open_keys("vault:transit/x")


def test_a_module_that_is_not_there(tmp_path):
    (tmp_path / "pin").write_text(PIN)
    keys = open_keys(f"pkcs11:token=x;object=y?module-path={tmp_path}/none.so&pin-source={tmp_path}/pin")
    with pytest.raises(Unavailable) as raised:
        keys.versions()
    assert PIN not in str(raised.value)


def test_only_a_token_has_signing_keys():
    for uri in ("file:x", "vault:transit/x", PIN):
        with pytest.raises(Invalid) as raised:
            open_signing(uri)
        assert PIN not in str(raised.value)


@pytest.mark.parametrize(
    ("sdk", "uri", "extra"),
    [
        ("pkcs11", "pkcs11:token=x;object=y?module-path=/x", "hsm"),
        ("hvac", "vault:transit/x", "vault"),
        ("boto3", "aws-kms:alias/x", "aws"),
    ],
)
def test_a_missing_extra_is_one_clear_line(sdk, uri, extra):
    program = f"""
import sys
sys.modules[{sdk!r}] = None
from modelkeep.adapters.keys.uri import open_keys, open_signing
from modelkeep.errors import Invalid
for use in (open_keys, *([open_signing] if {sdk!r} == "pkcs11" else [])):
    try:
        use({uri!r})
    except Invalid as error:
        print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.splitlines()
    scheme = uri.partition(":")[0]
    assert said
    assert set(said) == {f"a key at {scheme}: needs 'pip install modelkeep[{extra}]'"}


def test_the_table_alone_imports_no_sdk():
    program = "import sys, modelkeep.adapters.keys.uri; print({'pkcs11', 'hvac', 'boto3', 'requests'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout == "set()\n"
