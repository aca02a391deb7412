"""A zip archive with its faults reported: what the rules for PyTorch, Keras and numpy archives have in common."""

from dataclasses import dataclass

from modelkeep.custody.scanning.rules import Report
from modelkeep.formats.zip import Archive, BadMember, Member, read_zip


@dataclass(frozen=True)
class Opened:
    """An archive that reports what is wrong with a member where it is met."""

    archive: Archive
    report: Report

    @property
    def members(self) -> tuple[Member, ...]:
        """In the order of their bytes."""
        return self.archive.members

    def unpack(self, member: Member, keep: int) -> bytes | None:
        """The first ``keep`` bytes; None, and a finding, when the member is not what its headers say."""
        try:
            return self.archive.unpack(member, keep)
        except BadMember as cause:
            self.report.add(f"zip-{cause.kind}", member.name, str(cause))
            return None


def open_archive(data: memoryview, report: Report) -> Opened:
    """The members of an archive; its faults are findings. Raises Invalid (it cannot be read at all), TooLarge."""
    archive = read_zip(data)
    for fault in archive.faults:
        report.add(f"zip-{fault.kind}", fault.where, fault.why)
    if not archive.members:
        report.add("zip-member", "archive", "the archive is empty")
    return Opened(archive, report)
