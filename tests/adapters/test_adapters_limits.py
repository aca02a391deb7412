"""What a run may use: which control groups a run's own may be made below, and what counts as written."""

import pytest

from modelkeep.adapters import limits


@pytest.mark.parametrize(
    ("files", "limited"),
    [
        ({}, False),
        ({"memory.max": "max\n", "pids.max": "max\n", "cpu.max": "max 100000\n", "cpuset.cpus": "\n"}, False),
        ({"memory.max": "max\n", "memory.high": "1073741824\n"}, True),
        ({"pids.max": "100\n"}, True),
        ({"cpu.max": "50000 100000\n"}, True),
        ({"cpuset.cpus": "0-1\n"}, True),
    ],
)
def test_a_run_gets_no_group_outside_of_one_that_limits_something(tmp_path, files, limited):
    """It would have more than whoever started this process gave it."""
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert limits._limits_something(tmp_path) is limited


def test_what_is_written_is_what_it_takes_on_the_disk_and_links_lead_nowhere(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(b"x" * 100_000)
    (tmp_path / "a" / "up").symlink_to("/usr")
    with (tmp_path / "hole").open("wb") as hole:
        hole.truncate(1 << 40)
    assert 100_000 <= limits.space(tmp_path) < 200_000
    assert limits.space(tmp_path / "gone") == 0
