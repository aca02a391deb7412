"""What only AWS KMS can do wrong, on moto's server: disabled keys that moto opens, moved aliases, cut-off rotations."""

import hashlib
import json

import pytest
from key_providers import Aws

from modelkeep.adapters.keys import aws_kms
from modelkeep.adapters.keys.uri import open_keys
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Unavailable

KEY, CONTEXT = bytes(range(32)), b"context"
USAGE = "ENCRYPT_DECRYPT"


@pytest.fixture(scope="module")
def started(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        made = Aws(tmp_path_factory.mktemp("aws"), patch)
        yield made
        made.close()


@pytest.fixture
def aws(started):
    started.begin()
    return started


@pytest.fixture
def keys(aws):
    found = aws.open()
    found.create()
    return found


@pytest.fixture
def kms(aws):
    """A bare client: what another administrator could do."""
    return aws_kms._connect(None, 10)


def alias(aws, version=None):
    name = f"alias/kek-{aws.number}"
    return name if version is None else f"{name}/{version}"


def test_the_context_is_kms_encryption_context_as_a_hash(keys, kms, aws):
    """Independent check: bare KMS opens it with the documented context, and with no other."""
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    bound = {"modelkeep": hashlib.sha256(CONTEXT).hexdigest()}
    assert kms.decrypt(KeyId=alias(aws, 1), CiphertextBlob=wrapped, EncryptionContext=bound)["Plaintext"] == KEY
    with pytest.raises(kms.exceptions.InvalidCiphertextException):
        kms.decrypt(KeyId=alias(aws, 1), CiphertextBlob=wrapped)


def test_each_version_is_a_key_of_its_own_with_alias_and_tags(keys, kms, aws):
    keys.rotate()
    arns = [kms.describe_key(KeyId=alias(aws, n))["KeyMetadata"]["KeyId"] for n in (1, 2)]
    assert len(set(arns)) == 2
    assert kms.describe_key(KeyId=alias(aws))["KeyMetadata"]["KeyId"] == arns[1]
    for version, arn in enumerate(arns, 1):
        tags = {tag["TagKey"]: tag["TagValue"] for tag in kms.list_resource_tags(KeyId=arn)["Tags"]}
        assert tags == {"modelkeep:key": alias(aws), "modelkeep:version": str(version)}


def test_a_disabled_key_opens_nothing_though_moto_would(keys, kms, aws):
    """Negative test of our own: the stand-in decrypts with disabled keys, the adapter does not ask it to."""
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    keys.rotate()
    keys.disable(1)
    bound = {"modelkeep": hashlib.sha256(CONTEXT).hexdigest()}
    assert kms.decrypt(KeyId=alias(aws, 1), CiphertextBlob=wrapped, EncryptionContext=bound)["Plaintext"] == KEY
    with pytest.raises(Denied, match="Disabled"):
        keys.wrapper(1).unwrap(wrapped, CONTEXT)
    keys.destroy(1, grace_days=7)
    with pytest.raises(Denied, match="PendingDeletion"):
        keys.wrapper(1).unwrap(wrapped, CONTEXT)


def test_a_key_disabled_by_others_holds_within_a_second(keys, kms, aws, monkeypatch):
    held = keys.wrapper()
    wrapped = held.wrap(KEY, CONTEXT)
    monkeypatch.setattr(aws_kms, "STATE_SECONDS", 0.0)
    kms.disable_key(KeyId=kms.describe_key(KeyId=alias(aws))["KeyMetadata"]["KeyId"])
    keys._believed.clear()
    for use in (lambda: held.unwrap(wrapped, CONTEXT), lambda: held.wrap(KEY, CONTEXT)):
        with pytest.raises(Denied):
            use()
    assert [info.state for info in keys.versions()] == ["disabled"]


def test_a_state_that_cannot_be_asked_for_is_not_guessed(keys, aws, monkeypatch):
    held = aws.open(timeout=2.0).wrapper()
    wrapped = held.wrap(KEY, CONTEXT)
    monkeypatch.setattr(aws_kms, "STATE_SECONDS", 0.0)
    held.keys._believed.clear()
    with aws.gate.shut(), pytest.raises(Unavailable):
        held.unwrap(wrapped, CONTEXT)
    assert held.unwrap(wrapped, CONTEXT) == KEY


def test_an_alias_that_was_moved_to_another_key_is_not_trusted(keys, kms, aws):
    other = kms.create_key(KeyUsage=USAGE)["KeyMetadata"]["KeyId"]
    kms.update_alias(AliasName=alias(aws), TargetKeyId=other)
    for use in (keys.versions, keys.wrapper, keys.rotate):
        with pytest.raises(NotTrusted, match="tags"):
            use()


def test_an_alias_of_a_version_that_was_moved_opens_nothing(keys, kms, aws):
    held = keys.wrapper()
    wrapped = held.wrap(KEY, CONTEXT)
    kms.update_alias(AliasName=alias(aws, 1), TargetKeyId=kms.create_key(KeyUsage=USAGE)["KeyMetadata"]["KeyId"])
    keys._believed.clear()
    with pytest.raises(NotTrusted):
        held.unwrap(wrapped, CONTEXT)
    with pytest.raises(Denied, match="not the primary"):
        held.wrap(KEY, CONTEXT)


@pytest.mark.parametrize("stage", ["key", "alias"])
def test_a_rotation_that_was_cut_off_is_finished_by_the_next(keys, kms, aws, stage):
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    tags = [{"TagKey": "modelkeep:key", "TagValue": alias(aws)}, {"TagKey": "modelkeep:version", "TagValue": "2"}]
    made = kms.create_key(KeyUsage=USAGE, Tags=tags)["KeyMetadata"]["KeyId"]
    if stage == "alias":
        kms.create_alias(AliasName=alias(aws, 2), TargetKeyId=made)
    assert [info.state for info in keys.versions()] == ["primary"]
    assert keys.rotate().key_id.endswith("/2")
    assert [info.state for info in keys.versions()] == ["decrypt-only", "primary"]
    assert (kms.describe_key(KeyId=alias(aws))["KeyMetadata"]["KeyId"] == made) == (stage == "alias")
    assert keys.wrapper(1).unwrap(wrapped, CONTEXT) == KEY


def test_a_planted_alias_is_not_taken_for_a_rotation_that_was_cut_off(keys, kms, aws):
    kms.create_alias(AliasName=alias(aws, 2), TargetKeyId=kms.create_key(KeyUsage=USAGE)["KeyMetadata"]["KeyId"])
    with pytest.raises(NotTrusted, match="tags"):
        keys.rotate()
    assert keys.wrapper().key_id.endswith("/1")


def test_a_creation_that_was_cut_off_is_finished(aws, kms):
    tags = [{"TagKey": "modelkeep:key", "TagValue": alias(aws)}, {"TagKey": "modelkeep:version", "TagValue": "1"}]
    made = kms.create_key(KeyUsage=USAGE, Tags=tags)["KeyMetadata"]["KeyId"]
    kms.create_alias(AliasName=alias(aws, 1), TargetKeyId=made)
    keys = aws.open()
    with pytest.raises(Missing):
        keys.versions()
    keys.create()
    assert kms.describe_key(KeyId=alias(aws))["KeyMetadata"]["KeyId"] == made


@pytest.mark.parametrize(("asked", "given"), [(0, 7), (1, 7), (7, 7), (30, 30)])
def test_the_waiting_time_is_what_aws_allows(keys, asked, given):
    keys.rotate()
    keys.disable(1)
    import time

    due = keys.destroy(1, grace_days=asked).due
    assert abs(due - time.time_ns() - given * 86_400 * 10**9) < 120 * 10**9
    with pytest.raises(Conflict):
        keys.destroy(1, grace_days=asked)


def test_aws_destroys_by_itself_and_may_be_late(keys, aws):
    keys.rotate()
    keys.disable(1)
    info = keys.destroy(1, grace_days=7)
    aws.clock.ahead_ns = 8 * 86_400 * 10**9
    assert keys.destroy(1, grace_days=7) == info
    aws.clock.ahead_ns = 0
    with pytest.raises(Conflict):
        keys.destroy(1, grace_days=0)


def test_more_than_aws_can_wait_is_invalid(keys):
    keys.rotate()
    keys.disable(1)
    with pytest.raises(Invalid, match="7 to 30"):
        keys.destroy(1, grace_days=31)


def test_a_key_by_its_arn_wraps_and_does_not_rotate(keys, kms, aws):
    arn = kms.describe_key(KeyId=alias(aws))["KeyMetadata"]["Arn"]
    single = open_keys(f"aws-kms:{arn}")
    wrapper = single.wrapper()
    assert wrapper.key_id == f"aws-kms:{arn}/1"
    assert wrapper.unwrap(wrapper.wrap(KEY, CONTEXT), CONTEXT) == KEY
    assert [info.state for info in single.versions()] == ["primary"]
    for use in (single.rotate, single.create):
        with pytest.raises(Conflict, match="ARN"):
            use()


def test_an_alias_by_its_arn_carries_the_region(keys, kms, aws):
    found = open_keys(f"aws-kms:arn:aws:kms:{aws.region}:{aws.account}:{alias(aws)}")
    assert [info.state for info in found.versions()] == ["primary"]
    elsewhere = open_keys(f"aws-kms:arn:aws:kms:us-west-2:{aws.account}:{alias(aws)}")
    with pytest.raises(Missing):
        elsewhere.versions()
    stranger = open_keys(f"aws-kms:arn:aws:kms:{aws.region}:999999999999:{alias(aws)}")
    with pytest.raises(Denied, match="another account"):
        stranger.wrapper()


def test_a_key_that_does_not_encrypt_is_not_trusted(kms):
    signing = kms.create_key(KeyUsage="SIGN_VERIFY", KeySpec="ECC_NIST_P256")["KeyMetadata"]["Arn"]
    with pytest.raises(NotTrusted, match="symmetric"):
        open_keys(f"aws-kms:{signing}").wrapper()


def test_no_credentials(aws, monkeypatch):
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(variable)
    with pytest.raises(Invalid, match="credentials"):
        aws.open().versions()


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("AccessDeniedException", Denied),
        ("UnrecognizedClientException", Denied),
        ("DisabledException", Denied),
        ("KMSInvalidStateException", Denied),
        ("IncorrectKeyException", NotTrusted),
        ("InvalidCiphertextException", NotTrusted),
        ("NotFoundException", Missing),
        ("AlreadyExistsException", Conflict),
        ("ValidationException", Invalid),
        ("ThrottlingException", Unavailable),
        ("KMSInternalException", Unavailable),
        ("LimitExceededException", Unavailable),
    ],
)
def test_what_kms_refuses(keys, code, error):
    message = "User: arn:aws:iam::1:user/x is not authorized to perform: kms:Decrypt"
    assert type(keys._refused(code, message, 400)) is error
    assert "arn:aws:iam" not in str(keys._refused(code, message, 400))


def test_no_policy_of_the_wire_is_logged(keys, aws, caplog):
    caplog.set_level("DEBUG", logger="modelkeep")
    keys.wrapper().wrap(KEY, CONTEXT)
    assert aws.secrets[0] not in json.dumps([record.getMessage() for record in caplog.records if record.name == "modelkeep"])
