"""A bound on what all private runs on a data set cost together holds on a live gateway, also for what was admitted before."""

import pytest
from gateway_support import make_keep, make_service

from modelkeep.core.values import ReleaseRef, digest_of
from modelkeep.errors import NotAdmitted, Unavailable
from modelkeep.policy.admission import profile_text
from modelkeep.training.accountant import epsilon_of
from modelkeep.training.budgets import plan_run

PLAN = plan_run(5000, epsilon=1.0, delta=1e-5)
BOTH = epsilon_of([PLAN.spend, PLAN.spend], PLAN.delta)
RULE = """
@id("data-set-not-used-up")
@says("all private runs on its data set may have cost epsilon {most:.4f} together")
@mend("")
@needs("privacy")
forbid (principal, action == Action::"serve", resource)
unless {{ resource.dataset_epsilon.lessThanOrEqual(decimal("{most:.4f}")) }};
"""


def reserve(keep, dataset="people@2"):
    return keep.privacy_reserve(dataset=dataset, digest=digest_of(dataset.encode()), plan=PLAN).run


def test_a_release_is_served_until_later_runs_on_its_data_pass_the_bound(trained, tmp_path):
    keep = make_keep(tmp_path / "keep", trained)
    ref = "iris@1"
    model = keep.premises.registry().release(ReleaseRef.parse(ref)).model
    assert keep.show(ref=ref).admission == "admitted by the standard policy"
    assert keep.premises._spent is None  # no policy asks: nobody reads all ledgers for it, which takes seconds of a long log
    rule = profile_text("open") + RULE.format(most=(1.0 + BOTH) / 2)
    keep.policy_set(kind="admission", text=rule.encode(), reason="a bound")
    service = make_service(keep)
    follower = service.follower
    try:
        follower.settle(60)
        assert looked(service) is NotAdmitted  # nobody said that it is private
        keep.privacy_record(run=reserve(keep, "people@1"), filename="m.onnx", digest=model)
        assert looked(service) == ref
        assert float(keep.policy_explain(ref=ref).facts["dataset_epsilon"]) == pytest.approx(1.0, abs=2e-4)
        reserve(keep, "wages")  # other data
        assert looked(service) == ref
        run = reserve(keep)  # another version of the same data: counts once it is reserved
        assert looked(service) is NotAdmitted
        judged = keep.policy_explain(ref=ref)
        assert not judged.admitted and float(judged.facts["dataset_epsilon"]) == pytest.approx(BOTH, abs=2e-4)
        assert "may have cost epsilon" in keep.show(ref=ref).admission
        keep.privacy_settle(run=run, steps=0)
        assert looked(service) == ref
        keep.keys_rotate(family="statement-signing")  # what the former identity said still counts
        assert float(keep.policy_explain(ref=ref).facts["dataset_epsilon"]) == pytest.approx(1.0, abs=2e-4)
        assert looked(service) == ref
        reserve(keep)
        assert looked(service) is NotAdmitted
    finally:
        follower.stop()


def looked(service):
    """What looks say of iris@1 once it is neither loaded nor counted any more: the release that is served, or why none is."""
    for _ in range(2000):
        service.follower.look()
        try:
            return service.gateway.admitted.find("iris", 1, 0.0).text
        except Unavailable:
            service.clock.sleep(0.02)
        except NotAdmitted as reason:
            return type(reason)
    raise AssertionError("it was neither served nor refused")
