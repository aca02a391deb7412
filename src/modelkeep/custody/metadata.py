"""What the owner of a release says about it: the schema of ``card.toml``, and the statements of the catalogue.

Metadata stand in the releases log, which anyone may read; what only some may read goes into the model card, a Markdown text
that is sealed like the model, and of which the log has digests only.
"""

import re
import tomllib
from enum import StrEnum

import msgspec

from modelkeep.core.values import Digest, ReleaseRef, Resource, Statement
from modelkeep.custody.releases import SealedBody
from modelkeep.errors import Invalid
from modelkeep.ledger.predicates import Alias, CardBody, Hold, Metadata
from modelkeep.ledger.statements import make_statement

MAX_CARD, MAX_TEXT, MAX_ABOUT = 256 << 10, 4000, 64 << 10
"""Bytes of a model card, characters of a description or a reason, bytes of the metadata."""
CARD_SUBJECT = "model card"
MAX_LICENCE, MAX_NESTED = 500, 32
"""Characters of a licence expression, and parentheses opened in it."""
_TAG = re.compile(r"[a-z0-9][a-z0-9._:/=-]{0,63}\Z")
_SPDX = re.compile(r"\s*(\(|\)|AND(?=[\s(])|OR(?=[\s(])|WITH(?=\s)|(?:DocumentRef-[A-Za-z0-9.-]+:)?[A-Za-z0-9.-]+\+?)")


class Classification(StrEnum):
    """How far what the model knows may travel, from everyone to a named few."""

    PUBLIC = "public"
    INTERNAL = "internal"
    CONFIDENTIAL = "confidential"
    RESTRICTED = "restricted"


class About(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``card.toml``, read. ``licence``: an SPDX licence expression; ``card``: path of a Markdown file beside it, or empty."""

    owner: str
    classification: Classification
    licence: str = ""
    description: str = ""
    tags: tuple[str, ...] = ()
    card: str = ""


def parse_about(text: bytes) -> About:
    """Read metadata in TOML; unknown fields are refused. Raises Invalid."""
    if len(text) > MAX_ABOUT:
        raise Invalid(f"the metadata have {len(text):,} bytes, more than {MAX_ABOUT:,}: what is long goes into the model card")
    try:
        found = msgspec.convert(tomllib.loads(text.decode()), About)
    except (ValueError, RecursionError, msgspec.ValidationError) as cause:
        raise Invalid(f"the metadata are malformed: {cause}") from cause
    if not found.owner.strip() or len(found.owner) > 200 or not found.owner.isprintable():
        raise Invalid("the metadata name no owner: give a team or an address in one line of at most 200 characters")
    if len(found.description) > MAX_TEXT:
        raise Invalid(f"the description has {len(found.description):,} characters, more than {MAX_TEXT:,}: use the model card")
    if not all(each.isprintable() or each in "\n\t" for each in found.description):
        raise Invalid("the description holds a control character: it is plain text")
    for tag in found.tags:
        if not _TAG.match(tag):
            raise Invalid(f"{tag[:80]!r} is not a tag: use 1-64 of a-z 0-9 . _ : / = - and begin with a letter or digit")
    if len(found.tags) > 32 or len(set(found.tags)) != len(found.tags):
        raise Invalid("metadata have at most 32 tags, each once")
    if found.licence:
        check_licence(found.licence)
    return found


def check_licence(text: str) -> None:
    """Check that ``text`` has the form of an SPDX licence expression; whether a licence of that name exists is not asked.

    Source: SPDX 2.3, annex D. Raises Invalid.
    """
    if len(text) > MAX_LICENCE or not text.isprintable() or text.count("(") > MAX_NESTED:
        raise Invalid(f"{text[:80]!r} is no SPDX licence expression: too long, too deep or not one line")
    tokens, at = [], 0
    while at < len(text.rstrip()):
        token = _SPDX.match(text, at)
        if token is None:
            break
        tokens.append(token[1])
        at = token.end()
    if at < len(text.rstrip()) or _expression(tokens, 0) != len(tokens):
        raise Invalid(f"{text[:80]!r} is not an SPDX licence expression, such as Apache-2.0 or (MIT OR LicenseRef-acme)")


def _expression(tokens: list[str], at: int) -> int:
    """The place after the expression that begins at ``at``; -1 when none does."""
    while True:
        at = _term(tokens, at)
        if at < 0 or at == len(tokens) or tokens[at] not in ("AND", "OR"):
            return at
        at += 1


def _term(tokens: list[str], at: int) -> int:
    words = ("AND", "OR", "WITH", "(", ")")
    if at >= len(tokens):
        return -1
    if tokens[at] == "(":
        end = _expression(tokens, at + 1)
        return end + 1 if 0 <= end < len(tokens) and tokens[end] == ")" else -1
    if tokens[at] in words:
        return -1
    if at + 1 < len(tokens) and tokens[at + 1] == "WITH":
        return at + 3 if at + 2 < len(tokens) and tokens[at + 2] not in words else -1
    return at + 1


def check_card(text: bytes) -> bytes:
    """Check a model card: UTF-8 text of at most 256 KiB. Raises Invalid."""
    if len(text) > MAX_CARD:
        raise Invalid(f"the model card has {len(text):,} bytes, more than {MAX_CARD:,}")
    try:
        if "\0" in text.decode():
            raise Invalid("the model card is not text: it holds a zero byte")
    except UnicodeDecodeError:
        raise Invalid("the model card is not UTF-8 text: give a Markdown file") from None
    return text


def metadata_statement(
    model: Resource, ref: ReleaseRef, about: About, card: tuple[SealedBody, Digest] | None, *, actor: str, at: int, nonce: bytes
) -> Statement:
    """What ``about`` says of a release; ``card``: the sealed card and its plain digest."""
    body = CardBody(card[0].sealed, card[0].root, card[0].header, card[0].size) if card else None
    said = Metadata(
        actor=actor,
        at=at,
        release=str(ref),
        id=nonce.hex(),
        owner=about.owner,
        classification=str(about.classification),
        licence=about.licence,
        description=about.description,
        tags=about.tags,
        card=body,
    )
    return make_statement(said, model, *([Resource(CARD_SUBJECT, card[1])] if card else []))


def alias_statement(
    model: Resource, alias: tuple[str, str], version: int, replaces: int, *, actor: str, at: int, nonce: bytes
) -> Statement:
    """``alias``: (model name, alias) means ``version`` from now on, and ``replaces`` until now; 0 = nothing."""
    name, short = alias
    said = Alias(actor=actor, at=at, name=name, alias=short, version=version, replaces=replaces, id=nonce.hex())
    return make_statement(said, model)


def hold_statement(model: Resource, ref: ReleaseRef, verb: str, hold_id: str, *, actor: str, at: int, reason: str) -> Statement:
    """A hold is added or removed. Raises Invalid (no reason, or a very long one)."""
    if not reason.strip() or len(reason) > MAX_TEXT:
        raise Invalid(f"a hold is added and removed for a reason of at most {MAX_TEXT:,} characters")
    return make_statement(Hold(actor=actor, at=at, release=str(ref), verb=verb, id=hold_id, reason=reason), model)
