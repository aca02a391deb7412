"""Opacus as its README has it, and dp-accounting, beside which private training is measured."""

import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from opacus import PrivacyEngine
from opacus.accountants import PRVAccountant
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

CLIP = 1.0
README_LR, README_BATCH, README_EPOCHS = 0.05, 64, 20


def beside() -> None:
    """Put the peers' own environment on the path."""
    for folder in (Path(sys.prefix) / "rivals" / "lib").glob("python3*/site-packages"):
        sys.path.append(str(folder))


def opacus_epochs(
    module: nn.Module, x: np.ndarray, y: np.ndarray, batch: int, noise: float, *, mode: str, lr: float = README_LR
):
    """A function that trains one epoch. ``mode``: ``hooks``, ``ghost`` or ``plain`` (no privacy, the same loader)."""
    rows = TensorDataset(torch.from_numpy(x).float(), torch.from_numpy(y).long())
    loader = DataLoader(rows, batch_size=batch, shuffle=True)
    optimiser: object = torch.optim.SGD(module.parameters(), lr=lr)
    criterion: object = nn.CrossEntropyLoss()
    if mode != "plain":
        how = {"criterion": criterion, "grad_sample_mode": "ghost"} if mode == "ghost" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = PrivacyEngine(accountant="prv").make_private(
                module=module, optimizer=optimiser, data_loader=loader, noise_multiplier=noise, max_grad_norm=CLIP, **how
            )
        module, optimiser, *more, loader = made
        criterion = more[0] if more else criterion

    def epoch() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for a, b in loader:
                optimiser.zero_grad()
                criterion(module(a), b).backward()
                optimiser.step()

    return epoch


def opacus_untuned(module: nn.Module, x: np.ndarray, y: np.ndarray, epsilon: float, delta: float) -> nn.Module:
    """Trained as Opacus's README does: SGD 0.05, batches of 64, clip 1."""
    rows = TensorDataset(torch.from_numpy(x).float(), torch.from_numpy(y).long())
    loader = DataLoader(rows, batch_size=README_BATCH)
    optimiser = torch.optim.SGD(module.parameters(), lr=README_LR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module, optimiser, loader = PrivacyEngine(accountant="prv").make_private_with_epsilon(
            module=module, optimizer=optimiser, data_loader=loader, target_epsilon=epsilon, target_delta=delta,
            epochs=README_EPOCHS, max_grad_norm=CLIP,
        )  # fmt: skip
        for _ in range(README_EPOCHS):
            for a, b in loader:
                optimiser.zero_grad()
                functional.cross_entropy(module(a), b).backward()
                optimiser.step()
    return module._module


def opacus_prv(noise: float, rate: float, steps: int, delta: float) -> float:
    """Epsilon by Opacus's PRV accountant."""
    accountant = PRVAccountant()
    accountant.history = [(noise, rate, steps)]
    return float(accountant.get_epsilon(delta))


def google_pld(noise: float, rate: float, steps: int, delta: float, interval: float) -> float:
    """Epsilon by dp-accounting's PLD accountant, on a grid of this ``interval``."""
    import dp_accounting
    from dp_accounting.pld import pld_privacy_accountant

    relation = dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE
    accountant = pld_privacy_accountant.PLDAccountant(relation, value_discretization_interval=interval)
    event = dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise))
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, steps))
    return float(accountant.get_epsilon(delta))
