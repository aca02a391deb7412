"""``aws-kms:alias/NAME``: symmetric KMS keys of AWS, through boto3.

A version is a KMS key of its own, with the alias ``alias/NAME/<version>`` and tags that say the same; ``alias/NAME`` is the
primary. What is wrapped is KMS's ciphertext, bound to its context by the encryption context ``modelkeep = SHA-256(context)``.
Before each use the adapter itself asks for the key's state (``DescribeKey``, remembered for ``STATE_SECONDS``) and refuses what
is not enabled, so that a stand-in that forgets to does not open anything.
"""

import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

import boto3
from botocore import exceptions as aws
from botocore.config import Config

from modelkeep.adapters.keys.worker import Worker
from modelkeep.core.keystates import (
    CANCEL,
    DECRYPT_ONLY,
    DESTROYED,
    DISABLE,
    DISABLED,
    ENABLE,
    PENDING_DESTRUCTION,
    PRIMARY,
    SCHEDULE,
    destruction,
    next_wrapping_state,
    version_named,
)
from modelkeep.core.ports import Clock, KeyInfo
from modelkeep.crypto.wrap import KEY_SIZE
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted, Unavailable

T = TypeVar("T")

THREADS = 4
STATE_SECONDS = 1.0
"""How long a key's state is believed: as long as an admission lease."""
MIN_GRACE_DAYS, MAX_GRACE_DAYS = 7, 30
"""What ScheduleKeyDeletion allows. Source: AWS KMS API reference, PendingWindowInDays."""
MAX_WRAPPED = 6144
"""Largest CiphertextBlob. Source: AWS KMS API reference, Decrypt."""

_ALIAS = re.compile(r"aws-kms:(alias/(?!aws/)[A-Za-z0-9][A-Za-z0-9/_-]{0,199})\Z")
_ARN = re.compile(
    r"aws-kms:(arn:aws[a-z-]*:kms:([a-z0-9-]+):\d{12}:(key/[A-Za-z0-9-]{1,64}|alias/(?!aws/)[A-Za-z0-9/_-]{1,200}))\Z"
)
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_NAME_TAG, _VERSION_TAG = "modelkeep:key", "modelkeep:version"

_DENIED = (
    "AccessDeniedException",
    "AccessDenied",
    "UnrecognizedClientException",
    "InvalidClientTokenId",
    "ExpiredTokenException",
    "InvalidSignatureException",
    "MissingAuthenticationToken",
    "IncompleteSignature",
)
_STATE = ("DisabledException", "KMSInvalidStateException", "InvalidStateException")
_ALTERED = ("InvalidCiphertextException", "IncorrectKeyException", "InvalidCiphertext")


class _Key(NamedTuple):
    """What KMS says of one key: id, ARN, KeyState, and times in Unix nanoseconds."""

    key_id: str
    arn: str
    state: str
    created: int
    due: int


@dataclass(frozen=True)
class AwsKmsWrapper:
    """``Wrapper`` over one version, that is one KMS key."""

    keys: "AwsKmsKeys"
    key_id: str
    version: int

    def wrap(self, key: bytes, context: bytes) -> bytes:
        """Wrap a 32-byte key, bound to ``context``: KMS's ciphertext. Raises Denied (not the primary), Unavailable, Invalid."""
        if len(key) != KEY_SIZE:
            raise Invalid(f"a key to wrap has {KEY_SIZE} bytes, not {len(key)}")
        return self.keys.encrypt(self.version, key, context)

    def unwrap(self, wrapped: bytes, context: bytes) -> bytes:
        """Undo ``wrap``. Raises NotTrusted (altered, other key or context), Denied (its state), Unavailable."""
        if not 1 <= len(wrapped) <= MAX_WRAPPED:
            raise NotTrusted(f"what KMS wrapped has 1 to {MAX_WRAPPED} bytes, not {len(wrapped)}")
        return self.keys.decrypt(self.version, wrapped, context)


class AwsKmsKeys:
    """``WrappingKeys`` in AWS KMS. Safe for threads and forks; every request ends within ``timeout`` seconds."""

    def __init__(self, uri: str, *, timeout: float, clock: Clock) -> None:
        """Raises Invalid: malformed, no region, or an endpoint without TLS that is not this machine."""
        self.uri = uri
        self._name, self._region, self._single = _parse_uri(uri)
        self._timeout, self._clock = timeout, clock
        self._client: tuple[int, Any] = (0, None)
        self._worker = Worker("AWS KMS", THREADS)
        self._making = threading.Lock()
        self._believed: dict[int | None, tuple[float, _Key]] = {}
        self._kms()

    def __repr__(self) -> str:
        return f"AwsKmsKeys({self.uri!r})"

    def create(self) -> AwsKmsWrapper:
        """Make version 1 and its aliases. Raises Conflict (it exists, or a key's ARN was named), Denied, Unavailable."""
        if self._single or self._found(None) is not None:
            raise Conflict(f"{self.uri} exists already, or names one key by its ARN: nothing was made")
        return self._publish(1)

    def versions(self) -> tuple[KeyInfo, ...]:
        """Every version, oldest first. Raises Missing, NotTrusted (alias and tags disagree), Denied, Unavailable."""
        latest, primary = self._latest()
        return tuple(self._info(version, primary, self._found(version)) for version in range(1, latest + 1))

    def wrapper(self, version: int | None = None) -> AwsKmsWrapper:
        """One version to wrap and unwrap with; None = the primary. Raises Missing, NotTrusted, Denied, Unavailable."""
        latest, _ = self._latest()
        number = latest if version is None else version
        if not 1 <= number <= latest:
            raise Missing(f"{self.uri} has no version {number}")
        return self._wrapper(number)

    def opens(self, key_id: str) -> AwsKmsWrapper | None:
        """The version that ``key_id`` names, None when it is another key's. Raises Missing, Denied, Unavailable."""
        version = version_named(key_id, self.uri)
        return None if version is None else self.wrapper(version)

    def rotate(self) -> AwsKmsWrapper:
        """Make a fresh KMS key and move the alias to it; finishes a rotation that was cut off. Raises Missing, Conflict."""
        if self._single:
            raise Conflict(f"{self.uri} is one key by its ARN: name an alias, aws-kms:alias/NAME, to rotate")
        latest, _ = self._latest()
        return self._publish(latest + 1)

    def disable(self, version: int) -> KeyInfo:
        """DisableKey. Raises Missing, Conflict (its state), Denied, Unavailable."""
        return self._event(version, DISABLE, lambda kms, key_id: kms.disable_key(KeyId=key_id))

    def enable(self, version: int) -> KeyInfo:
        """EnableKey. Raises Missing, Conflict (its state), Denied, Unavailable."""
        return self._event(version, ENABLE, lambda kms, key_id: kms.enable_key(KeyId=key_id))

    def cancel(self, version: int) -> KeyInfo:
        """CancelKeyDeletion: the version is disabled again. Raises Missing, Conflict (its state), Denied, Unavailable."""
        return self._event(version, CANCEL, lambda kms, key_id: kms.cancel_key_deletion(KeyId=key_id))

    def destroy(self, version: int, *, grace_days: int) -> KeyInfo:
        """ScheduleKeyDeletion: AWS destroys it by itself, after at least 7 days (also for 0) and at most 30.

        Once it is due, asking again changes nothing, however long AWS takes.
        Raises Missing, Conflict (its state, or not due yet), Invalid (more than 30 days), Denied, Unavailable.
        """
        if not 0 <= grace_days <= MAX_GRACE_DAYS:
            raise Invalid(f"AWS destroys a key after {MIN_GRACE_DAYS} to {MAX_GRACE_DAYS} days, not {grace_days}")
        days = max(MIN_GRACE_DAYS, grace_days)
        info = self._at(version)
        if info.state == PENDING_DESTRUCTION:
            destruction(info, self._clock.now_ns(), days)
            return info
        return self._event(
            version, SCHEDULE, lambda kms, key_id: kms.schedule_key_deletion(KeyId=key_id, PendingWindowInDays=days)
        )

    def encrypt(self, version: int, key: bytes, context: bytes) -> bytes:
        """Have KMS wrap ``key``. Raises Denied (not the primary, or not enabled), Unavailable."""
        found = self._usable(version, "wrap anything new")
        if self._believe(None).arn != found.arn:
            raise Denied(f"{self.uri}/{version} is not the primary: it may not wrap anything new")
        said = self._call(lambda kms: kms.encrypt(KeyId=found.arn, Plaintext=key, EncryptionContext=_bound(context)))
        return self._from(said, found, "CiphertextBlob")

    def decrypt(self, version: int, wrapped: bytes, context: bytes) -> bytes:
        """Have KMS undo ``encrypt``. Raises NotTrusted, Denied, Unavailable."""
        found = self._usable(version, "unwrap anything")
        said = self._call(lambda kms: kms.decrypt(KeyId=found.arn, CiphertextBlob=wrapped, EncryptionContext=_bound(context)))
        key = self._from(said, found, "Plaintext")
        if len(key) != KEY_SIZE:
            raise NotTrusted(f"what was wrapped under {self.uri}/{version} is not a key of {KEY_SIZE} bytes")
        return key

    # -- what KMS says of the keys --

    def _target(self, version: int | None) -> str:
        return self._name if version is None or self._single else f"{self._name}/{version}"

    def _wrapper(self, version: int) -> AwsKmsWrapper:
        return AwsKmsWrapper(self, f"{self.uri}/{version}", version)

    def _found(self, version: int | None) -> _Key | None:
        """The key behind a version's alias, or behind the primary's (None); None when there is none."""
        try:
            said = self._call(lambda kms: kms.describe_key(KeyId=self._target(version)))
        except Missing:
            return None
        return _parse_key(said, self.uri)

    def _believe(self, version: int | None) -> _Key:
        """As ``_found``, at most STATE_SECONDS old; an older answer is never used. Raises Missing, Denied, Unavailable."""
        until, found = self._believed.get(version, (0.0, None))
        if found is None or time.monotonic() >= until:
            asked = time.monotonic()
            found = self._found(version)
            if found is None:
                self._believed.pop(version, None)
                raise Missing(f"there is no {self._target(version)} in KMS: it was never made, or is destroyed")
            self._believed[version] = asked + STATE_SECONDS, found
        return found

    def _usable(self, version: int, use: str) -> _Key:
        try:
            found = self._believe(version)
        except Missing:
            raise Denied(f"{self.uri}/{version} is destroyed: it may not {use}") from None
        if found.state != "Enabled":
            raise Denied(f"{self.uri}/{version} is {found.state} in KMS: it may not {use}")
        return found

    def _latest(self) -> tuple[int, _Key]:
        """The number of the primary, by its tags, and its key. Raises Missing, NotTrusted (its tags or aliases disagree)."""
        primary = self._found(None)
        if primary is None:
            raise Missing(f"there is no {self.uri}: create it first")
        if self._single:
            return 1, primary
        return self._tagged(primary), primary

    def _tagged(self, key: _Key) -> int:
        """The version that a key's tags say. Raises NotTrusted: they name another key, or none."""
        said = self._call(lambda kms: kms.list_resource_tags(KeyId=key.key_id))
        tags = {tag["TagKey"]: tag["TagValue"] for tag in said.get("Tags", [])}
        version = tags.get(_VERSION_TAG, "")
        if tags.get(_NAME_TAG) != self._name or not re.fullmatch(r"[1-9]\d{0,8}", version):
            raise NotTrusted(f"the key behind {self.uri} does not carry its tags: another key was put in its place")
        return int(version)

    def _info(self, version: int, primary: _Key, found: _Key | None) -> KeyInfo:
        key_id = f"{self.uri}/{version}"
        if found is None:
            return KeyInfo(key_id, version, DESTROYED, 0, 0)
        if found.state == "PendingDeletion":
            return KeyInfo(key_id, version, PENDING_DESTRUCTION, found.created, found.due)
        if found.state != "Enabled":
            return KeyInfo(key_id, version, DISABLED, found.created, 0)
        return KeyInfo(key_id, version, PRIMARY if found.arn == primary.arn else DECRYPT_ONLY, found.created, 0)

    def _at(self, version: int) -> KeyInfo:
        latest, primary = self._latest()
        if not 1 <= version <= latest:
            raise Missing(f"{self.uri} has no version {version}")
        return self._info(version, primary, self._found(version))

    def _event(self, version: int, event: str, act: Callable[[Any, str], object]) -> KeyInfo:
        info = self._at(version)
        next_wrapping_state(info.key_id, info.state, event)
        found = self._found(version)
        if found is None:
            raise Missing(f"there is no key in KMS any more for {info.key_id}")
        self._call(lambda kms: act(kms, found.key_id))
        self._believed.clear()
        return self._at(version)

    def _publish(self, version: int) -> AwsKmsWrapper:
        """Make ``version`` the primary: a key, its own alias, then the alias of the whole. Each step may be repeated."""
        made = self._found(version)
        if made is not None and self._tagged(made) != version:
            raise NotTrusted(f"the alias of {self.uri}/{version} leads to another key: remove it")
        if made is None:
            tags = [{"TagKey": _NAME_TAG, "TagValue": self._name}, {"TagKey": _VERSION_TAG, "TagValue": str(version)}]
            said = self._call(
                lambda kms: kms.create_key(
                    Description=f"modelkeep {self._name} version {version}", KeyUsage="ENCRYPT_DECRYPT", Tags=tags
                )
            )
            made = _parse_key(said, self.uri)
            self._alias(self._target(version), made.key_id)
        if self._found(None) is None:
            self._alias(self._name, made.key_id)
        else:
            self._call(lambda kms: kms.update_alias(AliasName=self._name, TargetKeyId=made.key_id))
        self._believed.clear()
        return self._wrapper(version)

    def _alias(self, alias: str, key_id: str) -> None:
        self._call(lambda kms: kms.create_alias(AliasName=alias, TargetKeyId=key_id))

    def _from(self, said: dict[str, Any], found: _Key, field: str) -> bytes:
        if said.get("KeyId") != found.arn:
            raise NotTrusted(f"KMS used another key than the one behind {self.uri}: what was wrapped is another key's")
        return bytes(said[field])

    # -- the wire --

    def _call(self, ask: Callable[[Any], T]) -> T:
        """One request. Raises Denied, Missing, Conflict, NotTrusted, Invalid, Unavailable."""
        try:
            return self._worker.call(lambda: ask(self._kms()), self._timeout)
        except aws.ClientError as cause:
            error = cause.response.get("Error", {})
            status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 500)
            raise self._refused(str(error.get("Code")), str(error.get("Message")), status) from None
        except (aws.NoCredentialsError, aws.PartialCredentialsError, aws.CredentialRetrievalError):
            raise Invalid("no credentials for AWS: set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY") from None
        except (aws.ConnectTimeoutError, aws.ReadTimeoutError):
            raise Unavailable(f"AWS KMS did not answer within {self._timeout:g} seconds") from None
        except aws.BotoCoreError as cause:
            raise Unavailable(f"AWS KMS cannot be asked: {type(cause).__name__}") from None

    def _refused(self, code: str, message: str, status: int) -> Exception:
        # of a ciphertext whose key it cannot find KMS says "access denied", but not that somebody is not authorized
        if code in _ALTERED or (code == "AccessDeniedException" and "authorized" not in message):
            return NotTrusted(f"what was wrapped under {self.uri} was altered, or is for another key or purpose")
        if code in _STATE:
            return Denied(f"KMS refuses a key of {self.uri}: it is not enabled")
        if code in _DENIED:
            return Denied(f"KMS refuses the caller for {self.uri} ({code}): look at its credentials and policies")
        if code == "NotFoundException":
            return Missing(f"KMS knows no {self.uri}: create it first, and is the region right?")
        if code == "AlreadyExistsException":
            return Conflict(f"an alias of {self.uri} exists already: another process made it meanwhile")
        if 400 <= status < 500 and code == "ValidationException":
            return Invalid(f"KMS does not take a request for {self.uri} ({code}): is its name allowed?")
        return Unavailable(f"AWS KMS fails ({code}, HTTP {status}): try again")

    def _kms(self) -> Any:
        """A client of this process; a forked child gets its own."""
        with self._making:
            pid, client = self._client
            if pid != os.getpid():
                client = _connect(self._region, self._timeout)
                self._client = os.getpid(), client
            return client


def _parse_uri(uri: str) -> tuple[str, str | None, bool]:
    """Alias or ARN of the key, region if the URI says one, and whether it is a single key. Raises Invalid."""
    if alias := _ALIAS.match(uri):
        return alias[1].rstrip("/"), None, False
    if arn := _ARN.match(uri):
        single = arn[3].startswith("key/")
        return (arn[1] if single else arn[3]), arn[2], single
    raise Invalid("an AWS key is named aws-kms:alias/NAME, or aws-kms: and the ARN of a key or an alias")


def _connect(region: str | None, timeout: float) -> Any:
    config = Config(
        connect_timeout=timeout,
        read_timeout=timeout,
        retries={"mode": "standard", "total_max_attempts": 2},
        max_pool_connections=THREADS,
    )
    try:
        # boto3 itself reads AWS_DEFAULT_REGION and the profile, but not the name that every other SDK of AWS knows
        client = boto3.session.Session().client("kms", region_name=region or os.environ.get("AWS_REGION"), config=config)
    except aws.NoRegionError:
        raise Invalid("no AWS region: set AWS_REGION, or name the key by an ARN") from None
    except (aws.BotoCoreError, ValueError) as cause:
        raise Invalid(f"AWS KMS cannot be set up: {type(cause).__name__}: look at the AWS configuration") from None
    parts = urlsplit(client.meta.endpoint_url)
    if parts.scheme != "https" and parts.hostname not in _LOOPBACK:
        raise Invalid("the AWS endpoint must begin with https://: keys go over this wire (http:// only to this machine)")
    return client


def _parse_key(said: Any, uri: str) -> _Key:
    """What DescribeKey and CreateKey answer. Raises NotTrusted: no symmetric key for encryption."""
    found = said["KeyMetadata"]
    if found.get("KeySpec", "SYMMETRIC_DEFAULT") != "SYMMETRIC_DEFAULT" or found.get("KeyUsage") != "ENCRYPT_DECRYPT":
        raise NotTrusted(f"the key behind {uri} is not a symmetric one for encryption: another key was put in its place")
    if (arn := _ARN.match(uri)) and not found["Arn"].startswith(arn[1].removesuffix(arn[3])):
        raise Denied(f"these AWS credentials lead to another account than {uri} names: use those of its account")
    due = found.get("DeletionDate")
    return _Key(found["KeyId"], found["Arn"], found["KeyState"], _nanoseconds(found.get("CreationDate")), _nanoseconds(due))


def _nanoseconds(moment: Any) -> int:
    return round(moment.timestamp() * 1e6) * 1000 if moment is not None else 0


def _bound(context: bytes) -> dict[str, str]:
    """The encryption context. CloudTrail shows it, so it is a hash."""
    return {"modelkeep": hashlib.sha256(context).hexdigest()}
