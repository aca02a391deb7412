"""Verbs about dependencies: import and show an advisory snapshot, hold packages against it, again when it changes."""

import msgspec

from modelkeep.app.intelligence import (
    IMPORT,
    Snapshot,
    in_force,
    newest_in_force,
    put_in_force,
    remember_lock,
    remembered_lock,
    save_index,
    snapshot_in_force,
)
from modelkeep.app.intelresults import DependenciesChecked, SnapshotRow
from modelkeep.app.oversight import OversightVerbs
from modelkeep.app.verbs import verb
from modelkeep.core.values import ReleaseState, Resource
from modelkeep.custody.advisories import encode_index
from modelkeep.custody.cvss import CRITICAL
from modelkeep.custody.dependencies import (
    Checked,
    age_in_days,
    check_packages,
    remembered,
    vulnerabilities_statement,
)
from modelkeep.custody.dossier import Dossier
from modelkeep.custody.lockfiles import Packages, installed, parse_locks
from modelkeep.custody.osv import read_snapshot
from modelkeep.errors import Conflict, Missing

SOURCE = "OSV PyPI"
VULNERABILITY = "vulnerability"
NOTHING_KNOWN = (
    "nothing says which packages this model came from: record its training run, or give the lock files with --lock",
)
_ENDED = (ReleaseState.RETIRED, ReleaseState.COLLECTED)


class IntelVerbs(OversightVerbs):
    """intel import/show/check."""

    @verb("intel.import")
    def intel_import(self, *, snapshot: bytes, older: bool = False) -> SnapshotRow:
        """Read an advisory snapshot (the ``all.zip`` of OSV's ecosystem PyPI) and put it in force; logged.

        ``older``: also one that is older than the one in force. Raises Invalid, TooLarge, Conflict (it is older), Unavailable.
        """
        index = read_snapshot(snapshot, source=SOURCE, now_ns=self.premises.clock.now_ns())
        if index.newest < newest_in_force(self.premises) and not older:
            raise Conflict("this snapshot is older than the one in force: give --older to go back to it all the same")
        digest = save_index(self.premises, encode_index(index))
        said = {"index": str(digest), "newest": str(index.newest), "advisories": str(index.records)}
        put_in_force(self.premises, digest, self.act(IMPORT, index.snapshot, **said))
        return self._snapshot_row(self._snapshot())

    @verb("intel.read")
    def intel_show(self) -> SnapshotRow:
        """The advisory snapshot in force, and how old it is. Raises Missing (none was imported), NotTrusted."""
        return self._snapshot_row(self._snapshot())

    @verb("intel.read")
    def intel_audit(self, *, locks: dict[str, bytes]) -> DependenciesChecked:
        """Hold the packages of lock files against the snapshot, and log nothing. Raises Invalid, TooLarge, NotTrusted."""
        packages, found = parse_locks(locks), snapshot_in_force(self.premises)
        return _told("", packages, found, self._check_packages(packages, found))

    @verb("intel.check")
    def intel_check(self, *, ref: str, locks: dict[str, bytes] | None = None) -> DependenciesChecked:
        """Hold the packages of a release against the snapshot, and log what was found as a statement about its model.

        ``locks``: lock files by name, beside the packages of its training run; without them those of the run, or of the last
        check. Without a snapshot, or without packages, nothing is logged. Raises Missing (no such release), Invalid, TooLarge,
        NotTrusted.
        """
        parsed = self.ref(ref)
        known = self.premises.registry().book.dossier(parsed)
        packages = _with_trained(parse_locks(locks), known) if locks else _trained(known) or self._looked_up(known)
        return self._hold_against(known, packages, snapshot_in_force(self.premises))

    @verb("intel.check")
    def intel_check_all(self) -> tuple[DependenciesChecked, ...]:
        """Check every release that is neither retired nor collected, with the packages that it was checked with last.

        A release that was never checked, or trained since: with those of its training run. Raises NotTrusted, Unavailable.
        """
        found = snapshot_in_force(self.premises)
        return tuple(self._hold_against(known, self._looked_up(known), found) for known in self._standing())

    def intel_due(self, done: str) -> str:
        """Check releases again that were checked against another snapshot than the one in force, unless that is ``done``.

        What to pass as ``done`` the next time: the index in force, "" without one. Raises what fails.
        """
        self.authorize("intel.check", {})
        current = in_force(self.premises) or ""
        if current == done or (found := snapshot_in_force(self.premises)) is None:
            return current
        for known in self._standing():
            last, packages = known.vulnerabilities, self._looked_up(known)
            if packages is not None and (last is None or last.said.snapshot != found.index.snapshot):
                self._hold_against(known, packages, found)
        return current

    def _standing(self) -> list[Dossier]:
        book = self.premises.registry().book
        return [book.dossier(known.ref) for known in book.releases() if known.state not in _ENDED]

    def _looked_up(self, known: Dossier) -> Packages | None:
        """The packages that a release was last held against, or those of a training run that came later; None when unknown.

        A lock file may say more than the training run, so a new snapshot must not be asked about less.
        """
        last, run = known.vulnerabilities, known.run
        if last is None or (run is not None and run.index > last.index):
            return _trained(known)
        try:  # first, for a lock file with the run's own pins may have told of what it cannot pin
            return remembered(remembered_lock(self.premises, last.said.lock), last.said)
        except Missing:
            trained = _trained(known)
            return trained if trained is not None and trained.lock == last.said.lock else None

    def _check_packages(self, packages: Packages, found: Snapshot | None) -> Checked:
        index, allowed = found.index if found else None, self.premises.settings.intel.max_age_days
        return check_packages(packages, index, now_ns=self.premises.clock.now_ns(), max_age_days=allowed)

    def _hold_against(self, known: Dossier, packages: Packages | None, found: Snapshot | None) -> DependenciesChecked:
        """Check, log, and open an incident for every critical vulnerability that no earlier check had found."""
        if packages is None or not (packages.pins or packages.beyond):
            return DependenciesChecked(str(known.ref), False, NOTHING_KNOWN, "", -1, 0, 0, (), ())
        checked = self._check_packages(packages, found)
        told = _told(str(known.ref), packages, found, checked)
        if found is None:
            return told
        desk, model = self.premises.desk(), Resource(known.release.said.filename, known.release.about)
        at, actor = self.premises.clock.now_ns(), self.actor.subject
        statement = vulnerabilities_statement(model, packages, checked, found.index, actor=actor, at=at)
        if packages.said is None:
            remember_lock(self.premises, packages.lock, packages.pins)
        (index,) = desk.log_statements([statement])
        before = {one.id for one in known.vulnerabilities.said.advisories} if known.vulnerabilities else set()
        fresh = [one for one in checked.advisories if one.severity == CRITICAL and one.id not in before]
        for one in fresh:
            detail = f"{one.package} {one.version}, which {known.ref} came from, has the critical vulnerability {one.id}"
            self.raise_incident(VULNERABILITY, f"{known.ref}:{one.id}", detail, again=False)
        return msgspec.structs.replace(told, log_index=index, new_critical=tuple(one.id for one in fresh))

    def _snapshot(self) -> Snapshot:
        found = snapshot_in_force(self.premises)
        if found is None:
            raise Missing("no advisory snapshot was imported: 'modelkeep intel import' reads one")
        return found

    def _snapshot_row(self, found: Snapshot) -> SnapshotRow:
        index = found.index
        age = age_in_days(index, self.premises.clock.now_ns())
        return SnapshotRow(
            source=index.source,
            snapshot=index.snapshot,
            newest=index.newest,
            imported=found.imported,
            age_days=age,
            stale=age > self.premises.settings.intel.max_age_days,
            advisories=index.records,
            withdrawn=index.withdrawn,
            others=index.others,
            packages=len(index.packages),
            log_index=found.log_index,
        )


def _trained(known: Dossier) -> Packages | None:
    """The packages of the training run, when there is one."""
    return installed(known.run.said.environment.packages) if known.run else None


def _with_trained(packages: Packages, known: Dossier) -> Packages:
    """``packages`` and those of the training run: a lock file adds to what a model is known to come from, and hides nothing."""
    trained = _trained(known)
    if trained is None:
        return packages
    pins, beyond = {*packages.pins, *trained.pins}, {*packages.beyond, *trained.beyond}
    return Packages(tuple(sorted(pins)), tuple(sorted(beyond)))


def _told(ref: str, packages: Packages, found: Snapshot | None, checked: Checked) -> DependenciesChecked:
    return DependenciesChecked(
        ref=ref,
        clean=checked.clean,
        reasons=checked.reasons,
        snapshot=found.index.snapshot if found else "",
        age_days=checked.age,
        packages=len(packages.pins) + len(packages.beyond),
        audited=checked.audited,
        unaudited=checked.unaudited,
        advisories=checked.advisories,
    )
