"""Publishers and collectors in processes of their own, on one body: the publishers share what the collectors remove."""

import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
import test_publish_processes
from test_publish_processes import desk_of, desk_trust, go

from modelkeep.core.values import ReleaseState
from modelkeep.custody.releases import RECIPIENTS
from modelkeep.workflows.collect import collect
from modelkeep.workflows.publish import settle
from modelkeep.workflows.verify import verify_release

root = test_publish_processes.root
"""The fixture: a keep on the adapters of a real one."""

HEAD = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from test_publish_processes import desk_of
from workflow_house import safetensors
from modelkeep.core.values import ReleaseRef
from modelkeep.errors import Conflict
from modelkeep.workflows.collect import collect
from modelkeep.workflows.publish import ModelFile, publish
from modelkeep.workflows.registry import MODEL
from modelkeep.workflows.release_state import change_state
desk, count = desk_of(Path(sys.argv[2])), int(sys.argv[3])
object.__setattr__(desk, "lease", 0.0)
print("ready", flush=True)
sys.stdin.readline()
"""
PUBLISHER = """
for number in range(count):
    made = publish(desk, ModelFile(safetensors(7), "m.safetensors"), "credit", actor="ada")
    bytes(desk.registry.open_body(made.body, made.model, MODEL).read_source())  # it is there as long as it is not retired
    if number + 1 < count:
        change_state(desk, made.ref, "retire", actor="ada", reason="replaced")
    print(made.ref, made.body.sealed, flush=True)
"""
COLLECTOR = """
while sum(1 for each in desk.registry.refresh().releases()) < 2 * count:
    done = collect(desk, "keep.example", actor="ops", retired_for=0)
    print(*done.releases, flush=True)
"""
"""It may find the body in use at every look: that it removes one is not asked of it, for then it might never end."""


def start(root, script, count):
    command = [sys.executable, "-c", HEAD + script, str(Path(__file__).parent), str(root), str(count)]
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout.readline() == "ready\n"
    return child


def check(root):
    """Every release that was not collected opens, and once everything is settled there is nothing else."""
    desk = desk_of(root)
    with closing(desk.registry.records):
        settle(desk)
        collect(desk, "keep.example", actor="ops", retired_for=None)
        book = desk.registry.refresh()
        assert book.suspicious is None
        standing = [each for each in book.releases() if each.state is not ReleaseState.COLLECTED]
        for evidence in book.releases():
            verify_release(desk.registry, desk_trust(root), evidence.ref)
        bodies = {each.body.sealed for each in standing}
        assert bodies == set(desk.registry.blobs.all()) == {each.key for each in desk.registry.records.scan(RECIPIENTS)}
        return list(book.releases())


def test_two_publishers_and_a_collector_on_one_body(root):
    publishers, collector = [start(root, PUBLISHER, 9) for _ in range(2)], start(root, COLLECTOR, 9)
    for child in (*publishers, collector):
        go(child)
    printed = [line.split() for child in publishers for line in child.communicate(timeout=120)[0].splitlines()]
    collector.communicate(timeout=120)
    assert [child.returncode for child in (*publishers, collector)] == [0, 0, 0]
    found = check(root)
    assert sorted(ref for ref, _ in printed) == sorted(str(each.ref) for each in found)
    assert sorted(each.ref.version for each in found) == list(range(1, 19))


@pytest.mark.parametrize("milliseconds", [5, 20, 60])
def test_a_collector_killed_beside_a_publisher(root, milliseconds):
    publisher, collector = start(root, PUBLISHER, 5), start(root, COLLECTOR, 1000)
    for child in (publisher, collector):
        go(child)
    with pytest.raises(subprocess.TimeoutExpired):
        collector.wait(0.3 + milliseconds / 1000)
    collector.send_signal(signal.SIGKILL)
    collector.communicate()
    publisher.communicate(timeout=120)
    assert publisher.returncode == 0
    assert len(check(root)) == 5
