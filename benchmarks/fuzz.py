"""The fuzzers of the tests for as long as one likes: damaged streams into the HTTP protocol, damaged bodies into the parser.

``python -m benchmarks fuzz [-- SECONDS [SEED]]``: 60 seconds from seed 0 by default. A broken promise ends the run with the
stream that broke it. Beside it, in the same run: how many of the requests that were seen h11 reads, too.
"""

import random
import sys
import time
from collections import Counter
from pathlib import Path

from benchmarks import Row, report
from modelkeep.core.values import ModelSignature, TensorSpec
from modelkeep.errors import Invalid
from modelkeep.serving.explain import asked_of
from modelkeep.serving.oip import decode_request
from modelkeep.serving.runtime import OutputPlan
from modelkeep.serving.validate import InputPlan

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "http"))
ROWS = [[0.5, -1.0, 0.25, 2.0, 0.0, -0.125], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]] * 3
OUT = (TensorSpec("label", "INT64", (-1,)), TensorSpec("probabilities", "FP32", (-1, 3)))


def _streams(seconds: float, seed: int) -> Row:
    from http_fuzz import Fuzz

    totals: Counter[str] = Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        fuzz = Fuzz(seed + totals["seeds"])
        fuzz.run(2000)
        totals.update(seeds=1, streams=fuzz.streams, requests=fuzz.requests, refusals=fuzz.refusals, agreed=fuzz.agreed)
    return {
        "bench": "fuzz",
        "case": "byte streams",
        "inputs": totals["streams"],
        "requests_seen": totals["requests"],
        "of_these_by_h11": totals["agreed"],
        "refused": totals["refusals"],
        "broken": 0,
    }


def _bodies(seconds: float, seed: int) -> Row:
    from body_fuzz import damaged

    rng, plan = random.Random(seed), InputPlan(ModelSignature((TensorSpec("X", "FP32", (-1, 6)),), OUT))
    count = refused = 0
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        body = damaged(rng, ROWS)
        count += 1
        try:
            request = decode_request(body)
            asked_of(request, OutputPlan(OUT, "probabilities", "label"))
            plan.check(request)
        except Invalid:
            refused += 1
        except Exception as cause:
            raise AssertionError(f"{cause!r} from {body!r}") from cause
    return {"bench": "fuzz", "case": "bodies", "inputs": count, "refused": refused, "broken": 0}


def run(args: list[str]) -> None:
    """Fuzz, and print how much."""
    seconds, seed = float(args[0]) if args else 60.0, int(args[1]) if len(args) > 1 else 0
    report(f"damaged input, {seconds:g} s", [_streams(0.75 * seconds, seed), _bodies(0.25 * seconds, seed)])


if __name__ == "__main__":
    run([])
