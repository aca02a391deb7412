"""A mark that is learnt while a module is trained is the one that ``weightmark`` reads."""

import numpy as np
import torch

from modelkeep.torch import mark_penalty
from modelkeep.training.weightmark import BITS, layout_of, plan_of, read

KEY, OWNER = bytes(range(32)), "Acme Ltd"


def test_the_penalty_teaches_the_mark_and_the_module_its_data():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(40, 54), torch.nn.ReLU(), torch.nn.Linear(54, 4))
    x = torch.randn(200, 40)
    y = (x @ torch.randn(40, 4)).argmax(dim=1)
    penalty, adam = mark_penalty(module, KEY, OWNER), torch.optim.Adam(module.parameters(), lr=1e-2)
    first = penalty().item()
    for _ in range(80):
        adam.zero_grad()
        (torch.nn.functional.cross_entropy(module(x), y) + penalty()).backward()
        adam.step()
    matrices = [module[at].weight.detach().numpy().astype(np.float64) for at in (0, 2)]
    plan = plan_of(KEY, OWNER, layout_of(matrices))
    pruned = [np.where(np.abs(w) >= np.quantile(np.abs(w), 0.8), w, 0.0) for w in matrices]
    assert read(matrices, plan).matched == BITS
    assert read(pruned, plan).matched >= 60
    assert penalty().item() < first / 5
    assert (module(x).argmax(dim=1) == y).double().mean() > 0.95
