"""Publishing, retiring, holding, naming, describing, collecting in any order, cut off anywhere: what is needed never goes."""

import contextlib
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, rule, run_state_machine_as_test
from workflow_house import ORIGIN, Cut, House, safetensors

from modelkeep.core.values import ReleaseState
from modelkeep.custody.metadata import About, Classification
from modelkeep.custody.releases import RECIPIENTS
from modelkeep.errors import Conflict, Unavailable
from modelkeep.workflows.aliases import set_alias
from modelkeep.workflows.collect import collect
from modelkeep.workflows.describe import add_hold, describe, read_card, remove_hold
from modelkeep.workflows.publish import ModelFile, publish, settle
from modelkeep.workflows.registry import MODEL
from modelkeep.workflows.release_state import change_state

CARDED = About("risk", Classification.INTERNAL, card="card.md")
FILES = [safetensors(seed) for seed in range(3)]
FAULT = st.one_of(st.none(), st.tuples(st.integers(1, 14), st.booleans(), st.sampled_from([Cut, Unavailable])))


def machine(ring):
    class Collecting(RuleBasedStateMachine):
        """What must be there is kept in ``needed``: refs that were published and not let go of by a collection."""

        refs, holds = Bundle("refs"), Bundle("holds")

        @initialize()
        def begin(self):
            self.folder = tempfile.TemporaryDirectory()
            self.house = House(Path(self.folder.name), ring)
            self.versions = 0

        def teardown(self):
            self.folder.cleanup()

        @contextlib.contextmanager
        def maybe_cut(self, fault):
            if fault is not None:
                at, after, error = fault
                self.house.faults.arm(at, after=after, error=error)
            try:
                with contextlib.suppress(Cut, Unavailable, Conflict):
                    yield
            finally:
                self.house.faults.arm(0)

        @rule(target=refs, seed=st.integers(0, 2), fault=FAULT)
        def publish(self, seed, fault):
            before = {each.ref for each in self.house.registry().refresh().releases()}
            with self.maybe_cut(fault):
                publish(self.house.desk(), ModelFile(FILES[seed], "m.safetensors"), "credit", actor="ada")
            settle(self.house.desk())
            new = {each.ref for each in self.house.registry().refresh().releases()} - before
            assert len(new) <= 1 and all(ref.version > self.versions for ref in new)
            self.versions = max([self.versions, *(ref.version for ref in new)])
            return next(iter(new), None)

        @rule(ref=refs, fault=FAULT)
        def retire_and_collect(self, ref, fault):
            self.change(ref, "retire")
            self.collect(fault, 0)

        @rule(ref=refs, verb=st.sampled_from(["retire", "promote", "quarantine", "reinstate"]))
        def change_it(self, ref, verb):
            self.change(ref, verb)

        def change(self, ref, verb):
            if ref is not None:
                with contextlib.suppress(Conflict):
                    change_state(self.house.desk(), ref, verb, actor="ada", reason="r")

        @rule(target=holds, ref=refs, fault=FAULT)
        def retire_held_and_collect(self, ref, fault):
            if ref is None:
                return None
            hold = self.hold(ref)
            self.change(ref, "retire")
            self.collect(fault, 0)
            return hold

        @rule(target=holds, ref=refs)
        def hold_it(self, ref):
            return self.hold(ref)

        def hold(self, ref):
            if ref is not None:
                with contextlib.suppress(Conflict):
                    return add_hold(self.house.desk(), ref, actor="legal", reason="case").id
            return None

        @rule(hold=consumes(holds))
        def unhold(self, hold):
            if hold is not None:
                remove_hold(self.house.desk(), hold, actor="legal", reason="closed")

        @rule(ref=refs)
        def name(self, ref):
            if ref is not None:
                with contextlib.suppress(Conflict):
                    set_alias(self.house.desk(), ref, "champion", actor="ada")

        @rule(ref=refs, text=st.sampled_from([b"# one", b"# two"]), fault=FAULT)
        def describe(self, ref, text, fault):
            if ref is not None:
                with self.maybe_cut(fault):
                    describe(self.house.desk(), ref, CARDED, text, actor="ada")

        @rule(fault=FAULT, retired_for=st.sampled_from([None, 0, 10 * 10**9]))
        def collect_it(self, fault, retired_for):
            self.collect(fault, retired_for)

        def collect(self, fault, retired_for):
            keep = [each.ref for each in self.standing() if not self.may_go(each)]
            with self.maybe_cut(fault):
                collect(self.house.desk(), ORIGIN, actor="ops", retired_for=retired_for)
            after = {each.ref for each in self.standing()}
            assert set(keep) <= after
            if retired_for is None:
                assert self.collected_before == self.collected()

        @rule()
        def settle(self):
            settle(self.house.desk())

        def may_go(self, evidence):
            catalogue = self.house.registry().refresh().catalogue
            free = not catalogue.holds_on(evidence.ref) and not catalogue.aliases_of(evidence.ref)
            return evidence.state is ReleaseState.RETIRED and free

        def standing(self):
            found = list(self.house.registry().refresh().releases())
            self.collected_before = {each.ref for each in found if each.state is ReleaseState.COLLECTED}
            return [each for each in found if each.state is not ReleaseState.COLLECTED]

        def collected(self):
            found = self.house.registry().refresh().releases()
            return {each.ref for each in found if each.state is ReleaseState.COLLECTED}

        @invariant()
        def what_stands_opens(self):
            if not hasattr(self, "house"):
                return
            registry = self.house.registry()
            for evidence in self.standing():
                opened = registry.open_body(evidence.body, evidence.model, MODEL)
                assert bytes(opened.read_source()) in FILES
                described = registry.refresh().catalogue.described(evidence.ref)
                if described is not None:
                    assert read_card(registry, evidence.ref) in (b"# one", b"# two")
            assert registry.book.suspicious is None

        def check_the_end(self):
            settle(self.house.desk())
            collect(self.house.desk(), ORIGIN, actor="ops", retired_for=None)
            book = self.house.registry().refresh()
            needed = {each.body.sealed for each in self.standing()} | {card.sealed for card in book.catalogue.cards()}
            assert set(self.house.blobs.all()) == needed == {each.key for each in self.house.records.scan(RECIPIENTS)}

        @rule()
        def everything_else_goes(self):
            self.check_the_end()

    return Collecting


def test_collection_in_any_order(ring):
    run_state_machine_as_test(
        machine(ring),
        settings=settings(
            max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True
        ),
    )
