import numpy as np

from modelkeep.app.recorded import _flips, _joined, _Part
from modelkeep.workflows.decisions import Review


def part(t, number, *, share=0.0, flips=0.0, network=b""):
    return _Part(t, f"gw/{t}", np.full((1, 2), number), np.full((1, 3), number), share, flips, network)


def test_what_two_gateways_recorded_is_in_the_order_of_time():
    """The first question in a region counts: out of order, a later one could be that, and it may depend on the first."""
    found = _joined(
        [part(5, 5.0, flips=0.01, network=b"12345678"), part(9, 9.0, share=0.3), part(2, 2.0), part(7, 7.0, flips=0.02)]
    )
    assert found.x[:, 0].tolist() == found.served[:, 0].tolist() == [2.0, 5.0, 7.0, 9.0] and found.first == "gw/2"
    assert (found.share, found.deceived[:, 0].tolist()) == (0.3, [9.0])
    assert (found.flips, found.flipped[:, 0].tolist()) == (0.02, [7.0]), "those of the last share"
    assert found.shared == {"net-3132333435363738"}
    none = _joined([part(1, 1.0)])
    assert (none.flips, none.flipped.shape, none.deceived.shape) == (0.0, (0, 2), (0, 2))


def test_the_share_of_flipped_labels_is_that_of_the_review_in_force():
    reviews = [
        Review(1, "cleared", ""),
        Review(3, "deceived", "", 0.005),
        Review(6, "deceived", "", 0.02),
        Review(8, "cleared", ""),
    ]
    assert [_flips(reviews, t) for t in (2, 3, 5, 6, 9)] == [0.005, 0.005, 0.005, 0.02, 0.02]
    assert _flips([], 5) == 0.0
