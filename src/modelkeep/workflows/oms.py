"""The OpenSSF signature of a release: made when it is published, kept in the log with the release statement, checked there."""

from modelkeep.core.values import Digest, digest_hex
from modelkeep.custody.evidence import ReleaseEvidence
from modelkeep.custody.oms import WHOLE, BundleKey, open_bundle
from modelkeep.custody.trust import TrustRoot
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.workflows.registry import Desk


def sign_model(desk: Desk, filename: str, model: Digest) -> str:
    """The text of a ``.sig`` over the one file ``filename``; "" for a desk that makes none.

    Raises Denied (the key has no primary: rotate it), Missing (a keep of an earlier version: upgrade it), Unavailable.
    """
    return desk.bundles().sign(filename, {WHOLE: model}).decode() if desk.bundles else ""


def check_bundle(trust: TrustRoot, evidence: ReleaseEvidence) -> str:
    """Check the OpenSSF signature of a release: by a key that may sign it, over the model's very bytes. What was checked.

    Raises NotTrusted.
    """
    keys = {BundleKey(key.public): key for key in trust.oms}
    try:
        signed = open_bundle(evidence.bundle.encode(), *keys)
    except (Invalid, NotTrusted) as cause:
        raise NotTrusted(f"the OpenSSF signature of {evidence.ref} does not hold: {cause}") from cause
    keys[signed.key].check_may_sign(evidence.ref.name, evidence.index)
    if signed.algorithm != "sha256" or signed.files != {WHOLE: digest_hex(evidence.model)}:
        raise NotTrusted(f"the OpenSSF signature of {evidence.ref} is over another model")
    return "the OpenSSF signature is over the model's very bytes"
