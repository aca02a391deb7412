"""Two real models with their data, and the profiles fitted for them, once per session."""

import warnings
from dataclasses import dataclass

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from modelkeep.extraction.fitting import fit_profile
from modelkeep.extraction.profile import Profile


@dataclass(frozen=True)
class Case:
    """A model, rows its owner holds (``reference``), rows that clients hold (``unseen``), and its profile."""

    name: str
    predict: object
    train: np.ndarray
    reference: np.ndarray
    unseen: np.ndarray
    profile: Profile


def _case(name, data, hidden, train, reference):
    order = np.random.default_rng(5).permutation(len(data.data))
    x, y = data.data[order].astype(np.float32).astype(np.float64), data.target[order]
    model = make_pipeline(StandardScaler(), MLPClassifier(hidden, alpha=0.3, max_iter=300, random_state=7))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x[:train], y[:train])
    held = x[train : train + reference]
    return Case(
        name, model.predict_proba, x[:train], held, x[train + reference :], fit_profile(held, model.predict_proba, seed=1)
    )


@pytest.fixture(scope="session")
def tumour():
    return _case("tumour", load_breast_cancer(), (32,), 200, 200)


@pytest.fixture(scope="session")
def digits():
    return _case("digits", load_digits(), (64,), 400, 540)
