"""Archive and prune closed audit logs: proven whole elsewhere, told by the releases log, and never mistaken for damage."""

import itertools
import shutil
from base64 import b64decode

import pytest
from commandline import PASSPHRASE, Cli, copy_keep

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.app.audits import new_audit, recover_all
from modelkeep.app.keep import Keep
from modelkeep.app.offline import verify_source
from modelkeep.crypto.notes import Checkpoint, encode_vkey
from modelkeep.custody.keys import AUDIT_LOG
from modelkeep.errors import Conflict, Invalid, Missing, NotTrusted
from modelkeep.serving.audit import AuditEntry
from modelkeep.workflows import archive
from modelkeep.workflows.acts import log_audit_checkpoint
from modelkeep.workflows.breakglass import Glass

DAY = 86_400 * 10**9


@pytest.fixture
def keep(template, tmp_path):
    return Keep.open(copy_keep(template, tmp_path / "keep"), PASSPHRASE.encode())


def begin(keep, entries):
    """A live audit log with bodies of ``(release, body)``."""
    here = keep.premises
    instance, log = new_audit(here, here.keyring([AUDIT_LOG]), "gateway", Glass(None, here.clock.now_ns))
    for release, body in entries:
        log.submit(AuditEntry("predict", subject="sub_1", release=release, outcome="ok"), body, lambda _: None)
    return instance, log


def say(keep, instance, note, phase):
    lines = note.decode().split("\n")
    found = Checkpoint(keep.premises.audit_origin(instance), int(lines[1]), b64decode(lines[2]))
    log_audit_checkpoint(keep.premises.desk(), note, found, actor="control@local", phase=phase)


def closed(keep, entries=(("old@1", b"sealed" * 9),) * 300):
    instance, log = begin(keep, entries)
    say(keep, instance, log.stop(), "final")
    return instance


def folder_of(keep, instance):
    return keep.premises.directory / "log" / "audit" / instance


@pytest.mark.parametrize("removed", ["bodies", "everything"])
def test_a_keep_starts_again_after_its_logs_were_pruned(keep, tmp_path, removed):
    instance, told = closed(keep), []
    keep.log_archive(instances=[instance], to=str(tmp_path / "shelf"), prune=removed)
    before = keep.premises.audit_files(instance).paths()
    assert recover_all(keep.premises, keep.premises.keyring([AUDIT_LOG]), told.append) == []
    assert keep.premises.audit_files(instance).paths() == before and told == []


def test_a_closed_log_goes_to_the_archive_and_every_check_says_so(keep, tmp_path):
    one, other, shelf = closed(keep), closed(keep), tmp_path / "shelf"
    (row,) = keep.log_archive(instances=[one], to=str(shelf))
    assert (row.records, row.removed, row.checked) == (302, "nothing", "300 bodies")
    assert (folder_of(keep, one) / "journal").is_dir()
    (row,) = keep.log_archive(instances=[one], to=str(shelf), prune="bodies")
    assert "300 archived by entry" in next(c.detail for c in keep.log_verify() if c.origin.endswith(one))
    rows = keep.log_archive(before=keep.premises.clock.now_ns() + DAY, to=str(shelf), prune="everything")
    assert [row.instance for row in rows] == [one, other]
    assert keep.premises.audit_files(one).paths() == ["archived", "checkpoint"]
    shutil.rmtree(folder_of(keep, other))  # even the checkpoint is in the releases log
    details = [checked.detail for checked in keep.log_verify()[1:]]
    assert all("archived by entry" in detail and "not here" in detail for detail in details) and len(details) == 2
    assert verify_source(str(keep.premises.directory))[1:] == keep.log_verify()[1:]
    assert ["300 bodies" in row.checked for row in keep.log_archived(at=str(shelf))] == [True, True]
    assert [row.to for row in keep.log_archived()] == [str(shelf), ""]
    assert keep.log_archive(before=keep.premises.clock.now_ns() + DAY, to=str(shelf), prune="everything") == ()


def test_what_no_act_covers_is_damage(keep, tmp_path):
    one, other, third = closed(keep), closed(keep), closed(keep)
    keep.log_archive(instances=[one, third], to=str(tmp_path / "shelf"), prune="bodies")
    saved = tmp_path / "saved"
    shutil.copytree(keep.premises.directory / "log", saved)

    def again():
        shutil.rmtree(keep.premises.directory / "log")
        shutil.copytree(saved, keep.premises.directory / "log")

    shutil.rmtree(folder_of(keep, other) / "journal")
    with pytest.raises(NotTrusted, match="no entry of the releases log says why"):
        keep.log_verify()
    assert " 0 bodies," in verify_source(str(keep.premises.directory))[2].detail  # what an auditor may have
    again()
    shutil.rmtree(folder_of(keep, one) / "tile")  # the act covers the bodies only
    with pytest.raises(NotTrusted):
        keep.log_verify()
    again()
    shutil.rmtree(folder_of(keep, one))
    with pytest.raises(NotTrusted, match="is gone"):
        keep.log_verify()
    again()
    keep.log_archive(instances=[one], to=str(tmp_path / "shelf"), prune="everything")
    (folder_of(keep, one) / "checkpoint").write_bytes((folder_of(keep, other) / "checkpoint").read_bytes())
    with pytest.raises(NotTrusted):
        keep.log_verify()


def test_a_log_that_lives_or_is_needed_is_not_touched(keep, tmp_path):
    shelf = str(tmp_path / "shelf")
    instance, log = begin(keep, [("risk@1", b"sealed")] * 3)
    say(keep, instance, log.publish(), "running")
    with pytest.raises(Conflict, match="not closed"):
        keep.log_archive(instances=[instance], to=shelf, prune="everything")
    assert keep.log_archive(before=keep.premises.clock.now_ns() + DAY, to=shelf) == ()
    say(keep, instance, log.stop(), "final")
    with pytest.raises(Conflict, match="extraction evidence on risk@1"):
        keep.log_archive(instances=[instance], to=shelf, prune="bodies")
    with FolderLogFiles(folder_of(keep, instance)).lock(wait=False), pytest.raises(Conflict):
        keep.log_archive(instances=[instance], to=shelf, prune="bodies", evidence=True)
    cursor = keep.premises.directory / "sinks" / "0123" / instance
    cursor.mkdir(parents=True)
    (cursor / "accepted").write_text("4")
    with pytest.raises(Conflict, match="accepted 4 of the 5 records"):
        keep.log_archive(instances=[instance], to=shelf, prune="bodies", evidence=True)
    (cursor / "accepted").write_text("5")
    assert len(list((folder_of(keep, instance) / "journal").iterdir())) == 1
    assert keep.log_archive(instances=[instance], to=shelf, prune="bodies", evidence=True)[0].records == 5
    with pytest.raises(Missing):
        keep.log_archive(instances=["nothing"], to=shelf)
    for wrong in ({}, {"instances": [instance], "before": 5}):
        with pytest.raises(Invalid):
            keep.log_archive(to=shelf, **wrong)


def test_a_copy_that_is_not_whole_lets_nothing_go(keep, tmp_path):
    instance, shelf = closed(keep), tmp_path / "shelf"
    keep.log_archive(instances=[instance], to=str(shelf))
    other = closed(keep)
    shutil.move(shelf / instance, shelf / other)
    with pytest.raises(Conflict, match="another log in this place"):
        keep.log_archive(instances=[other], to=str(shelf), prune="everything")
    shutil.rmtree(shelf)
    shutil.rmtree(folder_of(keep, instance) / "journal")
    with pytest.raises(NotTrusted, match="lacks 300 of its bodies"):
        keep.log_archive(instances=[instance], to=str(shelf), prune="everything")
    assert (folder_of(keep, instance) / "tile").is_dir()
    assert keep.log_archived() == ()


class Cut(BaseException):
    """The process ends here."""


class CutFiles(FolderLogFiles):
    """Files of a process that ends before its ``left``-th change."""

    left = 0

    def write(self, path, data):
        self._step()
        super().write(path, data)

    def delete(self, path):
        self._step()
        super().delete(path)

    def _step(self):
        CutFiles.left -= 1
        if CutFiles.left == 0:
            raise Cut


def test_a_log_is_never_its_own_archive(keep, tmp_path):
    one, audit, link = closed(keep), keep.premises.directory / "log" / "audit", tmp_path / "shelf"
    link.symlink_to(audit)
    by_instance = tmp_path / "other"
    by_instance.mkdir()
    (by_instance / one).symlink_to(audit / one)
    before = keep.premises.audit_files(one).paths()
    for place in (audit, link, by_instance, keep.premises.directory / "new", keep.premises.directory / "log" / ".." / "x"):
        for removed in ("", "bodies", "everything"):
            with pytest.raises(Invalid, match="in the keep itself"):
                keep.log_archive(instances=[one], to=str(place), prune=removed)
    assert keep.premises.audit_files(one).paths() == before and not keep.log_archived()


def test_cut_off_anywhere_nothing_is_lost_and_the_next_run_finishes(keep, tmp_path):
    instance, shelf = closed(keep), tmp_path / "shelf"
    here = keep.premises
    origin = here.audit_origin(instance)
    vkey = encode_vkey(origin, here.trust.audit_key)
    files, target = CutFiles(folder_of(keep, instance)), CutFiles(shelf / instance)
    final = archive.final_of(files, vkey, origin, here.registry().book.audits()[origin])
    for step in itertools.count(1):
        CutFiles.left = step
        try:
            archive.copy_log(files, target, vkey, final)
        except Cut:
            continue
        break
    assert step > 3
    index = keep.act("log.archive", origin, size=str(final.size), root=final.root.hex(), removed="everything")
    stub = archive.Stub(origin, final.size, final.root.hex(), archive.Removed.EVERYTHING, str(shelf), index)
    for step in itertools.count(1):
        CutFiles.left = min(step, 3)  # before the stub, before the first file, and then after one more file each time
        try:
            archive.prune(files, stub)
        except Cut:
            assert len(keep.log_verify()) == 2
            continue
        break
    assert step > 2
    assert files.paths() == ["archived", "checkpoint"]
    (row,) = keep.log_archive(instances=[instance], to=str(shelf), prune="everything")
    assert row.log_index == index
    assert keep.log_archived(at=str(shelf))[0].to == str(shelf)


def test_the_command_line_archives_lists_and_erases(keep, desk, tmp_path):
    instance, shelf = closed(keep, [("old@1", b"sealed")] * 3), str(tmp_path / "shelf")
    cli = Cli(keep.premises.directory, desk / "pass")
    day = "2999-01-31"
    (row,) = cli("--json", "log", "archive", "--closed-before", day, "--to", shelf, "--prune", "everything", code=0).json
    assert (row["records"], row["removed"], row["checked"]) == (5, "everything", "3 bodies")
    assert cli("--json", "log", "archived", "--at", shelf, code=0).json[0]["instance"] == instance
    assert cli("log", "archive", "--to", shelf, code=2).line().startswith("modelkeep: error: say either which")
    assert cli("log", "archive", "nothing", "--to", shelf).code == 2
    assert "archived by entry" in cli("log", "verify", code=0).out
    assert cli("--json", "log", "erase", "--subject", "alice", code=0).json["what"] == "subject"
    assert [row["what"] for row in cli("--json", "log", "erasures", code=0).json] == ["subject"]
    assert "no data set 'loans'" in cli("log", "erase", "--dataset", "loans", code=2).line()
    keep.premises.data_salts().salt("loans")
    assert "made before" in cli("log", "erase", "--dataset", "loans", code=0).out
    assert cli("--server", "https://localhost:1", "log", "archived").code == 2
