"""What an evaluation of robustness found."""

from msgspec import Struct

from modelkeep.training.robustness import Alarm, Share


class AttackRow(Struct, frozen=True):
    """Accuracy after an attack and those before it: the ``broken`` rows of this one are those that the others left.

    ``knowledge``: ``white-box`` or ``black-box``; ``steps``: of gradient attacks, queries of each row of others.
    """

    name: str
    knowledge: str
    accuracy: Share
    broken: int
    steps: int


class Radius(Struct, frozen=True):
    """Accuracy under a short attack in a ball of another radius."""

    epsilon: float
    accuracy: Share


class Certified(Struct, frozen=True):
    """Rows that no attack in the ball turns. ``method``: ``interval-bounds``, of the model itself, or ``smoothing``, of the
    model that answers with the majority over Gaussian noise of ``sigma``."""

    method: str
    norm: str
    epsilon: float
    accuracy: Share
    sigma: float = 0.0


class Corrupted(Struct, frozen=True):
    """Accuracy on rows that a corruption of a severity changed; ``lost``: beside the clean accuracy of the same rows, with the
    ends of its interval (paired)."""

    name: str
    severity: int
    accuracy: Share
    lost: tuple[float, float, float]


class Evaluated(Struct, frozen=True):
    """``model``, ``digest``: the file; ``data``, ``data_digest``: of the test rows; ``box``: lowest and highest input;
    ``difference``: between the file's answers and the module that gave gradients; ``black_box``: why there were none, "" when
    there were; ``robust``: accuracy after all attacks; ``seconds``: of the attacks."""

    model: str
    digest: str
    data: str
    data_digest: str
    norm: str
    epsilon: float
    box: tuple[float, float]
    seed: int
    clean: Share
    attacks: tuple[AttackRow, ...]
    robust: Share
    alarms: tuple[Alarm, ...]
    black_box: str
    difference: float
    curve: tuple[Radius, ...] = ()
    certified: tuple[Certified, ...] = ()
    corrupted: tuple[Corrupted, ...] = ()
    seconds: float = 0.0
    evaluator: str = ""
    logged: tuple[int, ...] = ()
