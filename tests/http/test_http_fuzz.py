"""Damaged streams of bytes and damaged bodies: a short run of each; ``make bench BENCH=fuzz`` makes long ones."""

import random
from collections import Counter

import msgspec
import pytest
from body_fuzz import damaged
from gateway_support import live, make_keep
from http_fuzz import Fuzz

from modelkeep.crypto.notes import encode_vkey
from modelkeep.serving.audit import read_bodies


def test_damaged_streams_break_no_promise():
    fuzz = Fuzz(1)
    fuzz.run(2500)
    assert fuzz.requests > 1000 and fuzz.refusals > 500 and fuzz.agreed > 0.8 * fuzz.requests


@pytest.fixture(scope="module")
def keep(tmp_path_factory, trained):
    return make_keep(tmp_path_factory.mktemp("keeps") / "keep", trained)


# The cell of a row near the end of FP32 overflows on its way to the mark, and is one of the cells all the same.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value encountered:RuntimeWarning")
def test_damaged_bodies_are_answered_or_refused_and_each_has_its_record(keep, trained):
    """Who asks so much nonsense is taken for a thief sooner or later; then another account goes on."""
    keys = [keep.key_issue(account="alice", quota=100_000).token]
    for number in range(9):
        keep.user_add(name=f"more{number}", roles=("analyst",))
        keys.append(keep.key_issue(account=f"more{number}", quota=100_000).token)
    rng, statuses, rows = random.Random(2), Counter(), trained.fresh.tolist()
    with live(keep) as running:
        with running.client(None) as client:
            for _ in range(400):
                verb = rng.choice(("infer", "infer", "infer", "explain"))
                headers = {"authorization": f"Bearer {keys[-1]}"}
                answer = client.post(f"/v2/models/iris/{verb}", content=damaged(rng, rows), headers=headers)
                statuses[verb, answer.status_code] += 1
                if answer.status_code != 200:
                    problem = msgspec.json.decode(answer.content)
                    assert answer.status_code == problem["status"] in (400, 403, 413, 429), (answer.text, running.errors)
                    assert "Traceback" not in problem["detail"] and "\n" not in problem["detail"]
                if answer.status_code == 403:
                    assert problem["code"] == "review-required"
                    keys.pop()
            assert client.get("/v2/health/ready").status_code == 200
        running.service.audit.publish()
        here = keep.premises
        origin, files = here.audit_origin(running.instance), here.audit_files(running.instance)
        recorded = Counter(e.kind for _, e, _ in read_bodies(files, encode_vkey(origin, here.trust.audit_key), origin))
    assert running.errors == []
    assert recorded["predict"] == statuses["infer", 200] > 40 and recorded["explain"] == statuses["explain", 200] > 10
    refused = sum(count for (_, status), count in statuses.items() if status in (400, 403, 413))
    assert recorded["deny"] >= refused > 120
