"""Verbs about weight marks: put one in before a release, and claim a suspect by it."""

from collections.abc import Sequence

import msgspec

from modelkeep.app.acting import Acts
from modelkeep.app.markresults import MarkEmbedded, MarkVerified
from modelkeep.app.premises import DESK_FAMILIES
from modelkeep.app.verbs import verb
from modelkeep.app.weightmarks import mark_model, model_layout, read_mark
from modelkeep.core.values import digest_of, parse_name
from modelkeep.custody.keys import MODEL_KEK, WATERMARK
from modelkeep.training.weightmark import Layout, against, commitment, plan_of
from modelkeep.workflows.attest import subject_of
from modelkeep.workflows.registry import MODEL
from modelkeep.workflows.weightmarks import (
    SALT,
    check_order,
    commit_mark,
    committed_mark,
    mark_key,
    owner_of,
    sighting,
)


class MarkVerbs(Acts):
    """watermark: marks in the weights themselves, whose keys the log commits to."""

    @verb("publish")
    def watermark_embed(self, *, name: str, filename: str, model: bytes, reference: bytes = b"") -> MarkEmbedded:
        """Put a mark in the weights of an ONNX model that is to be released as ``name``, and commit to its key in the log.

        ``reference``: an npz file of rows whose answers count. Raises Invalid, NotTrusted, TooLarge, Unavailable.
        """
        parse_name(name, "model name")
        desk, salt = self.premises.desk(), self.premises.entropy.token(SALT)
        master = self.premises.keyring([WATERMARK, *DESK_FAMILIES]).secret(WATERMARK)
        done = mark_model(model, mark_key(master, name, salt), owner_of(self.premises.trust.origin, name), reference)
        subject = subject_of(filename, digest_of(done.model))
        index = commit_mark(desk, subject, salt, bytes.fromhex(done.commitment), actor=self.actor.subject)
        return msgspec.structs.replace(done, log_index=index)

    @verb("trace")
    def watermark_verify(
        self, *, ref: str, suspect: bytes, independent: Sequence[bytes] = (), seen: int = 0, open_key: bool = False
    ) -> MarkVerified:
        """Read the mark of a release in the weights of ``suspect`` (ONNX). Only who the log committed to before may claim.

        ``independent``: models of the same architecture that others made; ``seen``: when the suspect was seen, Unix
        nanoseconds, 0 = as the log says, else now; ``open_key``: tell the key of this mark, for somebody who is to read it
        himself. Raises Invalid (another architecture), Missing, NotTrusted (the
        commitment is younger than the suspect), Unavailable.
        """
        here, parsed = self.premises, self.ref(ref)
        master = here.keyring([MODEL_KEK, WATERMARK]).secret(WATERMARK)
        registry = here.registry(here.openers())
        evidence = registry.release(parsed)
        model = bytes(registry.open_body(evidence.body, evidence.model, MODEL).read_source())
        layout, owner = model_layout(model, str(parsed)), owner_of(here.trust.origin, parsed.name)
        committed = committed_mark(registry, evidence.model, parsed.name, master, owner, layout)
        digest = digest_of(suspect)
        first = sighting(registry, digest, seen, here.clock.now_ns())
        check_order(committed, first)
        found = read_suspect(suspect, committed.key, owner, layout, independent, marks=committed.marks)
        said = {"matched": f"{found.matched}/{found.bits}", "p": f"{found.p:.3g}", "key": "opened" if open_key else "kept"}
        self.act("watermark.verify", str(parsed), suspect=digest, **said)
        return msgspec.structs.replace(
            found,
            release=str(parsed),
            log_index=committed.entry,
            committed=committed.at,
            seen=first.at,
            seen_by=first.how,
            key=committed.key.hex() if open_key else "",
        )


def read_suspect(
    suspect: bytes, key: bytes, owner: str, layout: Layout, independent: Sequence[bytes] = (), *, marks: int = 1
) -> MarkVerified:
    """Read a mark, and in independent models too; the larger p-value counts. Raises Invalid."""
    plan = plan_of(key, owner, layout)
    found = read_mark(suspect, plan, "the suspect")
    others = [read_mark(one, plan, f"the independent model {number}") for number, one in enumerate(independent, 1)]
    by_key = min(1.0, found.p * marks)
    by_models = against(found, others) if others else 1.0
    return MarkVerified(
        suspect=digest_of(suspect),
        commitment=commitment(key, owner, layout).hex(),
        matched=found.matched,
        bits=found.bits,
        p=max(by_key, by_models) if others else by_key,
        p_key=by_key,
        marks=marks,
        independent=len(others),
        p_models=by_models,
        owner=owner,
    )
