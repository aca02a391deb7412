"""Write ``custody/scanning/sklearn_names.py``: what the pickles of fitted scikit-learn estimators name, and how they use it.

Every estimator of the installed scikit-learn is fitted on small data, pickled, and read by our own reader; nothing is guessed.
Run it again with a newer scikit-learn: ``python tools/sklearn_names.py > src/modelkeep/custody/scanning/sklearn_names.py``.
"""

import contextlib
import pickle
import sys
import warnings
from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np
import sklearn
from sklearn.linear_model import LogisticRegression
from sklearn.utils import all_estimators

from modelkeep.formats.pickle import Machine

HOLDS_CODE = {"FunctionTransformer", "KDTree", "BallTree", "newObj"}
"""Left out: it holds a function of the user's, or its C code trusts index arrays that nobody checked."""


class _Name(NamedTuple):
    module: str
    name: str


class _Seen:
    """A judge that allows everything and remembers what was used how."""

    def __init__(self) -> None:
        self.uses: dict[_Name, set[str]] = defaultdict(set)

    def find(self, module: str, name: str, at: int) -> Any:
        return [_Name(module, name), self.uses[_Name(module, name)]]

    def call(self, target: Any, args: Any, new: bool, at: int) -> Any:
        self.uses[target[0]].add("class" if new else "call")
        return target

    def build(self, target: Any, state: Any, at: int) -> int:
        return at

    def fill(self, target: Any, keyed: bool, items: Any, at: int) -> None: ...

    def persistent(self, pid: Any, at: int) -> Any: ...

    def odd(self, rule: str, at: int, why: str) -> None:
        raise SystemExit(why)


def _fit(cls: Any) -> Any:
    """A fitted instance where the estimator can be fitted without knowing more about it; else an unfitted one, or None."""
    rng = np.random.RandomState(0)
    x = np.abs(rng.randn(60, 4))
    label, value = (x[:, 0] > x[:, 1]).astype(int), x[:, 0] * 2 + x[:, 1]
    texts = ["a b", "b c", "c d d"] * 5
    data = [(x, label), (x, value), (texts,), (x, np.c_[label, label]), ([{"a": 1}, {"b": 2}],), (value,), ([[1], [2]],)]
    made = None
    for args in ((), (LogisticRegression(),), ([("a", LogisticRegression()), ("b", LogisticRegression())],)):
        for each in data:
            with contextlib.suppress(Exception):
                made = cls(*args)
                return made.fit(*each)
    return made


def main() -> None:
    warnings.simplefilter("ignore")
    seen = _Seen()
    for name, cls in all_estimators():
        seen.uses[_Name(cls.__module__, name)].add("class")
        with contextlib.suppress(pickle.PicklingError, AttributeError, TypeError):
            made = _fit(cls)
            if made is not None:
                Machine(memoryview(pickle.dumps(made)), seen, [0]).run(0)
    kinds: dict[str, dict[str, set[str]]] = {kind: defaultdict(set) for kind in ("classes", "calls", "values")}
    for (module, name), uses in seen.uses.items():
        if module.startswith("sklearn.") and name not in HOLDS_CODE:
            kind = "classes" if "class" in uses else "calls" if "call" in uses else "values"
            kinds[kind][module].add(name)
    out = sys.stdout
    out.write(
        f'"""What pickles of scikit-learn {sklearn.__version__} name. Made by ``tools/sklearn_names.py``: do not edit."""\n'
    )
    for kind, modules in kinds.items():
        out.write(f'\n{kind.upper()} = """\n')
        for module in sorted(modules):
            line = f"{module.removeprefix('sklearn.')}:"
            for name in sorted(modules[module]):
                if len(line) + len(name) > 120:
                    out.write(line + "\n")
                    line = f"{module.removeprefix('sklearn.')}:"
                line += f" {name}"
            out.write(line + "\n")
        out.write('"""\n')


if __name__ == "__main__":
    main()
