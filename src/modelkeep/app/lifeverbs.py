"""Verbs about the life of what is recorded: erase a person or a data set, archive and prune closed audit logs."""

import re
from collections.abc import Sequence
from pathlib import Path

from modelkeep.access.accounts import ACCOUNT, Account, parse_account
from modelkeep.access.externals import EXTERNAL, External, external_of, parse_external
from modelkeep.access.forgetting import Credentials, account_of, forget_account
from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.app.auditshelf import AuditShelf, ClosedLog, check_elsewhere
from modelkeep.app.backupfiles import take_snapshot, write_backup
from modelkeep.app.liferesults import ArchivedRow, BackedUp, ErasedNow, ErasureRow
from modelkeep.app.oversight import EXTRACTION, OversightVerbs
from modelkeep.app.stores import RECORDS_FILE
from modelkeep.app.verbs import verb
from modelkeep.container.recipients import Recipient, XWingRecipient
from modelkeep.custody.keys import MODEL_KEK
from modelkeep.custody.salting import parse_dataset
from modelkeep.errors import Conflict, Denied, Invalid, Missing
from modelkeep.operations.cases import KIND as CASE
from modelkeep.operations.cases import parse_case
from modelkeep.workflows.archive import Removed, Stub, copy_log, prune
from modelkeep.workflows.decisions import ARCHIVE, ERASE, ERASE_DATA, FORGET
from modelkeep.workflows.erasure import erase, sweep
from modelkeep.workflows.spendings import forget_spendings

LONGEST_REASON = 500
_PSEUDONYM = re.compile(r"sub_[0-9a-f]{16}\Z")


class LifeVerbs(OversightVerbs):
    """log erase, log erasures, log archive, log archived, backup create."""

    @verb("audit.erase")
    def log_erase(self, *, subject: str = "", dataset: str = "", forget: bool = False, reason: str = "") -> ErasedNow:
        """Drop the audit key of an account (its name or pseudonym), or the salt of a data set. Rerun to resume.

        ``forget``: delete the account as well, so that nothing here maps the pseudonym to a person. ``reason``: logged in
        public. Raises Missing, Invalid, Conflict (an accusation waits for a review; the last admin), Denied (oneself).
        """
        if bool(subject) == bool(dataset) or (forget and dataset):
            raise Invalid("say either --subject, with or without --forget-account, or --dataset")
        if len(reason) > LONGEST_REASON:
            raise Invalid(f"a reason has at most {LONGEST_REASON} characters")
        if dataset:
            return self._erase_dataset(parse_dataset(dataset), reason)
        pseudonym, account = self._whose(subject)
        self._check_erasable(pseudonym, account, forget, reason)
        index = self._log(ERASE, pseudonym, reason)
        forgotten = forget and account is not None
        if forgotten:
            self._log(FORGET, pseudonym, "")
        self._carry_out()
        forget_spendings(self.premises.records, pseudonym)
        if forgotten and account_of(self.premises.records.scan(ACCOUNT), pseudonym) is not None:
            raise Conflict(f"{subject} is the last enabled admin by now and still there: make another, and run this again")
        return ErasedNow("subject", pseudonym, index, forgotten, self._copies())

    @verb("log.read")
    def log_erasures(self) -> tuple[ErasureRow, ...]:
        """Every erasure so far, oldest first."""
        words = {ERASE: "subject", FORGET: "account", ERASE_DATA: "dataset"}
        return tuple(
            ErasureRow(words[act.verb], act.about, index, act.at, act.actor)
            for index, act in self.premises.decisions().erasures
        )

    def log_archive(
        self, *, instances: Sequence[str] = (), before: int = 0, to: str, prune: str = "", evidence: bool = False
    ) -> tuple[ArchivedRow, ...]:
        """Copy closed audit logs to the folder ``to``, proven whole, and prune them here. Rerun to resume.

        ``instances``: which; or ``before``: all that were closed before this Unix nanosecond. ``prune``: ``bodies``,
        ``everything``, or "" to copy only; ``evidence``: even bodies that the extraction evidence on a promoted release is
        rebuilt from. Raises Missing, Conflict (not closed, or needed), Invalid (``to`` is in here), NotTrusted, Unavailable.
        """
        self.authorize("log.archive", {})
        if bool(instances) == bool(before):
            raise Invalid("say either which audit logs to archive, or --closed-before and a day")
        shelf = AuditShelf(self.premises)
        wanted = [shelf.closed(name) for name in instances] if instances else shelf.closed_before(before)
        check_elsewhere(self.premises.directory, to, wanted)
        removed = Removed(prune) if prune else None
        if removed is not None:
            shelf.check_delivered(wanted)
        if removed is not None and not evidence:
            shelf.check_not_needed(wanted)
        return tuple(self._archive(one, to, removed) for one in wanted)

    def log_archived(self, *, at: str = "") -> tuple[ArchivedRow, ...]:
        """Every audit log that was pruned; ``at``: the folder they were archived to, where each is checked whole.

        Raises NotTrusted, Missing (one is not there), Unavailable.
        """
        self.authorize("log.archive", {})
        return AuditShelf(self.premises).archived(at)

    def _archive(self, log: ClosedLog, to: str, removed: Removed | None) -> ArchivedRow:
        final = log.final
        report = copy_log(log.files, FolderLogFiles(Path(to) / log.instance), log.vkey, final)
        checked = f"{report.bodies} bodies"
        if removed is None:
            return ArchivedRow(log.instance, final.size, "nothing", -1, to, checked)
        said = self.premises.decisions().archived.get(final.origin)
        index = said.index if said is not None and said.removed in (removed, Removed.EVERYTHING) else -1
        if index < 0:
            index = self.act(ARCHIVE, final.origin, size=str(final.size), root=final.root.hex(), removed=removed)
        prune(log.files, Stub(final.origin, final.size, final.root.hex(), removed, str(Path(to).absolute()), index))
        return ArchivedRow(log.instance, final.size, removed, index, to, checked)

    def backup_create(self, *, out: str) -> BackedUp:
        """Back this keep up to the new file ``out``, sealed for its passphrase and its recovery identity. Servers may run.

        Raises Conflict (``out`` exists, or a file went meanwhile), Missing, NotTrusted, Unavailable.
        """
        self.authorize("backup", {})
        here = self.premises
        recipients: list[Recipient] = [here.unlocked, XWingRecipient(here.keyring([MODEL_KEK]).recovery)]
        made = write_backup(take_snapshot(here), out, recipients)
        self.act("backup", here.trust.origin, entries=str(made.log_size))
        return made

    def sweep_erased(self) -> int:
        """Finish erasures that were cut off, and delete again what came back; how many records were there."""
        found = sweep(self.premises.desk(), self.premises.settle_lease, wipe=False)
        if found:
            detail = f"{found} records that the log says were erased were still there or there again; they were deleted"
            self.raise_incident("erasure", "records", detail)
        return found

    def _erase_dataset(self, name: str, reason: str) -> ErasedNow:
        index = self._log(ERASE_DATA, name, reason)
        self._carry_out()
        return ErasedNow("dataset", name, index, False, self._copies())

    def _log(self, act: str, name: str, reason: str) -> int:
        here = self.premises
        return erase(here.desk(), here.trust.origin, act, name, actor=self.actor.subject, reason=reason)

    def _carry_out(self) -> None:
        self.premises.settle_lease()  # from here on no gateway makes or uses a key of before
        sweep(self.premises.desk(), self.premises.settle_lease, wipe=True)

    def _whose(self, subject: str) -> tuple[str, Account | External | None]:
        """The pseudonym, and the account if there still is one."""
        accounts, externals = (self.premises.records.scan(kind) for kind in (ACCOUNT, EXTERNAL))
        if _PSEUDONYM.match(subject):
            return subject, account_of(accounts, subject) or external_of(externals, subject)
        known: list[Account | External] = [*map(parse_account, accounts), *map(parse_external, externals)]
        for found in known:
            if found.name == subject:
                return found.subject, found
        raise Missing(f"there is no account {subject[:64]!r}: if it was forgotten already, give its pseudonym")

    def _check_erasable(self, pseudonym: str, account: Account | External | None, forget: bool, reason: str) -> None:
        waiting = [one for one in self._open_incidents() if one.kind == EXTRACTION and one.about.split(" ")[0] == pseudonym]
        if waiting:
            raise Conflict(f"{pseudonym} is accused of copying a model: 'modelkeep review' first, since the evidence goes, too")
        cases = [one.id for one in map(parse_case, self.premises.records.scan(CASE)) if one.accuses(pseudonym)]
        if cases:
            raise Conflict(f"{pseudonym} is in an open case: 'modelkeep case {cases[0]}' first, since the evidence goes, too")
        if account is None:
            return
        if re.search(rf"(?<![a-z0-9]){re.escape(account.name.lower())}(?![a-z0-9])", reason.lower()):
            raise Invalid("the reason is logged in public: leave the account's name out of it")
        if forget and account.name == self.actor.account:
            raise Denied("nobody forgets the account that he acts with: ask another administrator")
        if forget and isinstance(account, Account):  # before anything is logged
            forget_account(self.premises.records.scan(ACCOUNT), Credentials(), account.name)

    def _copies(self) -> tuple[str, ...]:
        found = sorted(self.premises.directory.glob(f"{RECORDS_FILE}.v*.bak*"))
        return tuple(Path(path).name for path in found)
