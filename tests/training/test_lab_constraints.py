"""The neighbours of a row: in the ball, in the ranges, and whatever the columns have to be."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from modelkeep.errors import Invalid
from modelkeep.training.lab.constraints import Threat

COLUMNS = 9
"""0 frozen · 1 an integer · 2 may only grow · 3 may only shrink · 4 free · 5-6 and 7-8 one-hot groups."""
GROUPS = ((5, 6), (7, 8))


def only(*columns: int) -> Tensor:
    mask = torch.zeros(COLUMNS, dtype=torch.bool)
    mask[list(columns)] = True
    return mask


def threat(norm: str, epsilon: float) -> Threat:
    return Threat(
        norm,
        epsilon,
        low=-4.0,
        high=4.0,
        frozen=only(0),
        whole=only(1),
        rising=only(2),
        falling=only(3),
        groups=GROUPS,
    )


@st.composite
def rows(draw: st.DrawFn) -> Tensor:
    """Rows that keep every rule but the range, which the first column may break."""
    count = draw(st.integers(1, 4))
    number = st.floats(-4, 4, width=32)
    made = torch.tensor([[draw(number) for _ in range(COLUMNS)] for _ in range(count)])
    made[:, 0] = draw(st.sampled_from([0.5, 7.0]))
    made[:, 1] = made[:, 1].round()
    for group in GROUPS:
        hot = draw(st.integers(0, 1))
        made[:, group[0]], made[:, group[1]] = float(hot), float(1 - hot)
    return made


ASKED = {"norm": st.sampled_from(["linf", "l2"]), "epsilon": st.sampled_from([0.0, 0.3, 1.0, 2.5]), "x": rows()}


@settings(deadline=None, max_examples=80)
@given(**ASKED, seed=st.integers(0, 1000))
def test_a_settled_row_keeps_every_rule(norm, epsilon, x, seed):
    torch.manual_seed(seed)
    reach = threat(norm, epsilon).around(x)
    far = reach.relax(x + 6 * torch.randn_like(x))
    found = reach.settle(reach.step(far, torch.randn_like(x), 0.7))
    shift = found - x
    length = shift.abs().amax(dim=1) if norm == "linf" else shift.norm(dim=1)
    assert (length <= epsilon * (1 + 1e-5) + 1e-6).all()
    assert (shift[:, 0] == 0).all()
    assert (found[:, 1] == found[:, 1].round()).all()
    assert (shift[:, 2] >= 0).all() and (shift[:, 3] <= 0).all()
    assert (found[:, 1:] >= -4).all() and (found[:, 1:] <= 4).all()
    for group in GROUPS:
        assert (found[:, list(group)].sort(dim=1).values == torch.tensor([0.0, 1.0])).all()
    assert torch.allclose(reach.settle(found), found, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(**ASKED)
def test_a_row_is_its_own_neighbour_and_every_start_is_one(norm, epsilon, x):
    reach = threat(norm, epsilon).around(x)
    assert torch.equal(reach.settle(reach.relax(x)), x)
    start = reach.start()
    assert torch.allclose(reach.relax(start), start, atol=1e-6)


def test_steps_project_as_by_hand():
    x = torch.tensor([[0.95, 0.5]])
    gradient = torch.tensor([[2.0, -0.1]])
    inf = Threat("linf", 0.1, 0.0, 1.0).around(x)
    assert torch.allclose(inf.step(x, gradient, 0.5), torch.tensor([[1.0, 0.45]]))
    assert torch.allclose(inf.step(x, gradient, 9.0), torch.tensor([[1.0, 0.4]]))
    two = Threat("l2", 0.5).around(torch.zeros(1, 2))
    assert torch.allclose(two.step(torch.zeros(1, 2), torch.tensor([[3.0, 4.0]]), 0.4), torch.tensor([[0.12, 0.16]]))
    assert torch.allclose(two.relax(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.3, 0.4]]))


def test_each_column_may_have_its_own_radius():
    x = torch.zeros(3, 2)
    wide = Threat("linf", torch.tensor([0.1, 2.0])).around(x)
    assert torch.allclose(wide.relax(torch.full((3, 2), 9.0)), torch.tensor([[0.1, 2.0]]).expand(3, 2))
    oval = Threat("l2", torch.tensor([1.0, 3.0])).around(x)
    assert torch.allclose(oval.relax(torch.tensor([[0.0, 9.0]] * 3)), torch.tensor([[0.0, 3.0]]).expand(3, 2))


def test_a_radius_of_a_whole_unit_lets_a_group_change():
    x = torch.tensor([[1.0, 0.0, 0.0]])
    reach = Threat("linf", 1.0, groups=((0, 1, 2),)).around(x)
    assert reach.settle(torch.tensor([[0.2, 0.9, 0.1]])).tolist() == [[0.0, 1.0, 0.0]]
    narrow = Threat("linf", 0.9, groups=((0, 1, 2),)).around(x)
    assert narrow.settle(torch.tensor([[0.2, 0.9, 0.1]])).tolist() == [[1.0, 0.0, 0.0]]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"norm": "l7", "epsilon": 0.1}, "no norm"),
        ({"norm": "l2", "epsilon": -0.1}, "radius"),
        ({"norm": "l2", "epsilon": math.inf}, "radius"),
        ({"norm": "linf", "epsilon": 0.1, "low": 1.0, "high": 0.0}, "range"),
        ({"norm": "linf", "epsilon": 0.1, "groups": ((0, 1), (1, 2))}, "one-hot"),
        ({"norm": "linf", "epsilon": 0.1, "groups": ((0,),)}, "one-hot"),
    ],
)
def test_what_no_threat_is(given, said):
    with pytest.raises(Invalid, match=said):
        Threat(**given)


def test_groups_must_be_columns_of_the_rows():
    with pytest.raises(Invalid, match="columns that these rows do not have"):
        Threat("linf", 1.0, groups=((0, 9),)).around(torch.zeros(2, 3))
