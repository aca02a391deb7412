"""Verbs about training runs: what the keep thinks of the code before one begins, and the statement once it has ended."""

import functools
from pathlib import Path

from modelkeep.adapters.commit_signatures import GOOD, NONE, CommitSignatures
from modelkeep.app.acting import Acts
from modelkeep.app.runresults import CodeChecked, RunModel, RunRecorded
from modelkeep.app.verbs import verb
from modelkeep.core.values import Digest
from modelkeep.custody.provenance import CodeReport, DataReport, RunReport, Verified, run_statements
from modelkeep.custody.salting import salted
from modelkeep.errors import Invalid, NotTrusted
from modelkeep.ledger.attestations import TrainingRun
from modelkeep.ledger.statements import predicate_of

_AHEAD = 3600 * 10**9
"""Nanoseconds by which the clock of whoever reports may be ahead of this keep's."""


class ProvenanceVerbs(Acts):
    """run: the training runs that models came out of."""

    @verb("run.record")
    def run_check(self, *, code: CodeReport, isolated: bool = False) -> CodeChecked:
        """Whether a run of this code could be recorded, before it begins; how its commit is signed. ``isolated``: it is going
        to be, without network.

        Raises NotTrusted (``provenance.require_signed_code``, ``require_isolated``), Invalid, Missing (a key), Unavailable.
        """
        self._check_isolated(isolated)
        self.premises.desk()  # what the statement will take is at hand now, not only after hours of training
        found = self._verified(code)
        return CodeChecked(found.signature, found.signer)

    @verb("run.record")
    def run_record(self, *, report: RunReport) -> RunRecorded:
        """Sign and log what was reported of a training run: one statement about each model that came out of it.

        The commit's signature is checked here, and digests of data are salted here. Raises NotTrusted
        (``provenance.require_signed_code``, ``require_isolated``), Invalid, TooLarge, Missing, Unavailable.
        """
        self._check_isolated(report.isolation is not None and report.isolation.network == "none")
        now = self.premises.clock.now_ns()
        if report.ended > now + _AHEAD:
            raise Invalid("the run ended in the future: set the clock of the machine that ran it")
        desk, found = self.premises.desk(), self._verified(report.code)
        salt, run = functools.cache(self.premises.data_salts().salt), self.premises.entropy.token(16)

        def hide(data: DataReport) -> Digest:
            return salted(salt(data.dataset), data.digest)

        statements = run_statements(report, found, hide, run=run, actor=self.actor.subject, at=now)
        indexes = desk.log_statements(statements)
        view = self.premises.view()
        models = tuple(
            RunModel(one.subject[0].name, one.subject[0].digest, index, view.entries(index, index + 1)[0])
            for one, index in zip(statements, indexes, strict=True)
        )
        said = predicate_of(statements[0], TrainingRun)
        code, inputs = said.code, tuple(one.name for one in said.inputs)
        return RunRecorded(
            said.run, said.command, code.repository, code.commit, code.dirty, code.signature, code.signer, inputs, models
        )

    def _check_isolated(self, isolated: bool) -> None:
        if self.premises.settings.provenance.require_isolated and not isolated:
            raise NotTrusted("this keep records only runs that were isolated and had no network: say --isolate")

    def _verified(self, code: CodeReport) -> Verified:
        settings = self.premises.settings.provenance
        signers, home = self._file(settings.allowed_signers), self._file(settings.gnupg_home)
        verdict = CommitSignatures(signers, home).check(code.commit, code.raw) if code.commit else (NONE, "")
        if settings.require_signed_code and (verdict[0] != GOOD or code.changes):
            why = "it has changes that are not committed" if verdict[0] == GOOD else _NOT_GOOD[verdict[0]]
            raise NotTrusted(f"this keep records only runs of signed code, and {why}")
        return Verified(*verdict)

    def _file(self, named: str) -> Path | None:
        return self.premises.directory / named if named else None


_NOT_GOOD = {
    "bad": "the signature on this commit does not hold",
    "unknown": "this commit is signed by nobody whose key [provenance] of modelkeep.toml names",
    "none": "this code is not a signed commit",
}
