"""Verbs about the catalogue: aliases, metadata and model cards, holds, collection."""

from modelkeep.app.acting import Acts
from modelkeep.app.results import AliasMoved, AliasRow, Collected, CollectedBody, HoldRow, MetadataRow
from modelkeep.app.rows import hold_row, metadata_row
from modelkeep.app.verbs import verb
from modelkeep.core.values import ReleaseRef, parse_name
from modelkeep.custody.catalogue import AliasMove
from modelkeep.custody.metadata import parse_about
from modelkeep.errors import Invalid
from modelkeep.workflows.aliases import remove_alias, set_alias
from modelkeep.workflows.collect import collect, plan_collection
from modelkeep.workflows.describe import add_hold, describe, read_card, remove_hold

SECOND = 1_000_000_000


class CatalogueVerbs(Acts):
    """alias set/remove/list/history, metadata set/show, hold add/remove/list, collect."""

    @verb("alias")
    def alias_set(self, *, name: str, alias: str, version: int, expect: int | None = None) -> AliasMoved:
        """Let ``name@alias`` mean a version; gateways answer with it once this returns, or as soon as it is loaded.

        ``expect``: the version that it must mean until now, 0 = none. Raises Invalid, Missing, Conflict (another, or retired).
        """
        ref = ReleaseRef.parse(f"{name}@{version}")
        moved = set_alias(self.premises.desk(), ref, alias, actor=self.actor.subject, expect=expect)
        return self._moved(name, alias, moved)

    @verb("alias")
    def alias_remove(self, *, name: str, alias: str, expect: int | None = None) -> AliasMoved:
        """Let ``name@alias`` mean nothing; its history stays. Raises Missing, Conflict (it means another than expected)."""
        moved = remove_alias(self.premises.desk(), name, alias, actor=self.actor.subject, expect=expect)
        return self._moved(name, alias, moved)

    @verb("list")
    def alias_list(self, *, name: str = "") -> tuple[AliasRow, ...]:
        """What every alias means now, of one model or of all."""
        catalogue, names = self.premises.registry().book.catalogue, self.names()
        found = []
        for (model, alias), version in sorted(catalogue.aliases().items()):
            if name in ("", model):
                last = catalogue.alias_history(model, alias)[-1]
                by = names.get(last.actor, last.actor)
                found.append(AliasRow(model, alias, f"{model}@{version}", last.at, by, last.index))
        return tuple(found)

    @verb("list")
    def alias_history(self, *, name: str, alias: str) -> tuple[AliasMoved, ...]:
        """Every move of an alias, oldest first. Raises Missing (there never was one)."""
        history = self.premises.registry().book.catalogue.alias_history(parse_name(name, "model name"), alias)
        return tuple(self._moved(name, alias, move) for move in history)

    @verb("metadata")
    def metadata_set(self, *, ref: str, metadata: bytes, card: bytes = b"") -> MetadataRow:
        """Say what a release is, in place of what was said before. ``metadata``: TOML; ``card``: Markdown, which is sealed.

        Raises Invalid (a field is unknown or malformed, or the card is not there), Missing.
        """
        described = describe(self.premises.desk(), self.ref(ref), parse_about(metadata), card, actor=self.actor.subject)
        return metadata_row(described, self.names())

    @verb("show")
    def metadata_show(self, *, ref: str) -> tuple[MetadataRow, ...]:
        """What was ever said about a release, oldest first; the last one is in force. Raises Missing (no such release)."""
        book, names = self.premises.registry().book, self.names()
        return tuple(metadata_row(found, names) for found in book.catalogue.metadata(book.release(self.ref(ref)).ref))

    @verb("card.read")
    def metadata_card(self, *, ref: str) -> bytes:
        """The model card of a release, opened and checked; logged. Raises Missing (there is none), NotTrusted."""
        desk, found = self.premises.desk(), self.ref(ref)
        text = read_card(desk.registry, found)
        self.act("card.read", str(found))
        return text

    @verb("hold")
    def hold_add(self, *, ref: str, reason: str) -> HoldRow:
        """Keep the bodies of a release until the hold is removed. Raises Missing, Conflict (collected already), Invalid."""
        return hold_row(add_hold(self.premises.desk(), self.ref(ref), actor=self.actor.subject, reason=reason), self.names())

    @verb("hold")
    def hold_remove(self, *, hold_id: str, reason: str) -> HoldRow:
        """Remove one hold; others on the same release stay. Raises Missing, Conflict (it was removed before), Invalid."""
        return hold_row(remove_hold(self.premises.desk(), hold_id, actor=self.actor.subject, reason=reason), self.names())

    @verb("list")
    def hold_list(self, *, removed: bool = False) -> tuple[HoldRow, ...]:
        """The holds that stand, oldest first; with ``removed``, those that were removed too."""
        names = self.names()
        rows = (hold_row(hold, names) for hold in self.premises.registry().book.catalogue.holds())
        return tuple(row for row in rows if removed or row.standing)

    @verb("collect")
    def collect(self, *, dry_run: bool = False, retired_for: int | None = None) -> Collected:
        """Remove every sealed body that no release and no hold refers to.

        ``retired_for``: seconds; releases that were retired at least so long ago give up their bodies first; None = none do.
        ``dry_run``: only say what would be done. Raises Invalid, NotTrusted (the log), Unavailable.
        """
        if retired_for is not None and retired_for < 0:
            raise Invalid("releases are collected a number of seconds after they were retired: it is not negative")
        age = None if retired_for is None else retired_for * SECOND
        desk, origin = self.premises.desk(), self.premises.trust.origin
        done = plan_collection(desk, age) if dry_run else collect(desk, origin, actor=self.actor.subject, retired_for=age)
        return Collected(
            dry_run,
            tuple(map(str, done.releases)),
            tuple(CollectedBody(body.sealed, body.size, body.why) for body in done.bodies),
            sum(body.size for body in done.bodies),
            {str(kept.ref): kept.why for kept in done.kept},
            done.underway,
        )

    def _moved(self, name: str, alias: str, move: AliasMove) -> AliasMoved:
        by = self.names().get(move.actor, move.actor)
        return AliasMoved(name, alias, move.version, move.replaced, move.at, by, move.index)
