"""The report of an evaluation as one page of HTML."""

from collections.abc import Iterator

from modelkeep.app.robustnessresults import Evaluated
from modelkeep.core.page import Bar, bars, facts, heading, lines, page, paragraph, table
from modelkeep.training.robustness import Share

_NORMS = {"linf": "L∞", "l2": "L2"}


def report(found: Evaluated) -> bytes:
    """The page, UTF-8."""
    return page(f"Robustness of {found.model}", _blocks(found))


def _blocks(found: Evaluated) -> Iterator[str]:
    where = f"{_NORMS[found.norm]}, epsilon {found.epsilon:g}"
    last = found.attacks[-1].name if found.attacks else "no attack"
    yield paragraph(
        f"Of {found.clean.examples} rows the model answers {_words(found.clean)} rightly, and {_words(found.robust)} under "
        f"every attack up to {last} ({where}). Intervals hold with 95 % confidence (Clopper and Pearson)."
    )
    if found.black_box:
        yield paragraph(
            f"The model was attacked as a black box only: {found.black_box}. An attacker who has its gradients, or more "
            "time, may break more."
        )
    yield heading("Alarms")
    if found.alarms:
        yield paragraph("The numbers above are not to be trusted: an attack failed where the model need not have withstood it.")
        yield table(["alarm", "why"], [(one.name, one.why) for one in found.alarms])
    else:
        checked = "black-box attacks could be compared with nothing" if found.black_box else "no sign of masked gradients"
        yield paragraph(f"None rang: {checked}. An attack that is not known yet may still do better.", soft=True)
    yield heading("Attacks")
    rows = [Bar("clean", found.clean.value, found.clean.low, found.clean.high)]
    rows += [Bar(f"+ {one.name}", one.accuracy.value, one.accuracy.low, one.accuracy.high) for one in found.attacks]
    yield bars(rows, caption=f"Accuracy after each attack in turn, each on the rows that are left; {where}.")
    head = ["attack", "knows", "steps or queries", "rows broken", "accuracy then", "low", "high"]
    told = [(one.name, one.knowledge, one.steps, one.broken, *_ends(one.accuracy)) for one in found.attacks]
    yield table(head, told)
    if found.curve:
        yield heading("Radius")
        yield lines(
            {
                "accuracy": [(one.epsilon, one.accuracy.value) for one in found.curve],
                "low": [(one.epsilon, one.accuracy.low) for one in found.curve],
                "high": [(one.epsilon, one.accuracy.high) for one in found.curve],
            },
            x=f"epsilon ({_NORMS[found.norm]})",
            y="accuracy",
            caption=f"Accuracy under a short APGD, on {found.curve[0].accuracy.examples} rows, by radius.",
        )
    yield from _more(found)
    yield heading("What was measured")
    yield facts(
        {
            "model": found.model, "SHA-256": found.digest, "data": f"{found.data} ({found.data_digest})",
            "box": f"every input between {found.box[0]:g} and {found.box[1]:g}", "seed": found.seed,
            "module and file": f"differ by {found.difference:.2g} at most" if not found.black_box and found.difference else "-",
            "took": f"{found.seconds:.1f} s", "by": found.evaluator,
            "log entries": ", ".join(map(str, found.logged)) or "not logged",
        }
    )  # fmt: skip


def _more(found: Evaluated) -> Iterator[str]:
    if found.certified:
        yield heading("Certified")
        yield paragraph(
            "Rows that no attack in the ball can turn. Interval bounds speak of the model itself; smoothing of the one that "
            "answers with the majority over noise, and each of its certificates holds with probability 99.9 %."
        )
        head = ["method", "norm", "epsilon", "accuracy", "low", "high"]
        yield table(
            head,
            [(_method(one.method, one.sigma), _NORMS[one.norm], one.epsilon, *_ends(one.accuracy)) for one in found.certified],
        )
    if found.corrupted:
        yield heading("Corruption and noise")
        head = ["corruption", "severity", "accuracy", "low", "high", "lost (paired)", "low", "high"]
        yield table(head, [(one.name, one.severity, *_ends(one.accuracy), *one.lost) for one in found.corrupted])


def _method(method: str, sigma: float) -> str:
    return f"{method}, sigma {sigma:g}" if sigma else method


def _ends(one: Share) -> tuple[float, float, float]:
    return one.value, one.low, one.high


def _words(one: Share) -> str:
    return f"{one.value:.1%} ({one.low:.1%} to {one.high:.1%})"
