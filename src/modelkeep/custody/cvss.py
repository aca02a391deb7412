"""CVSS base scores, from vectors: versions 3.0, 3.1 and 4.0.

Only the base metrics are scored (CVSS-B): threat and environment metrics say what somebody knows about *their* case, and a
lower score for another house is no reason to rest here. Sources: FIRST, "CVSS v3.1: Specification Document", sections 7.1, 7.4
and appendix A; "CVSS v4.0: Specification Document", sections 2.3 and 8.2.
"""

from collections.abc import Mapping
from itertools import product

from modelkeep.errors import Invalid

LONGEST = 400
CRITICAL, HIGH, MEDIUM, LOW, UNKNOWN = "critical", "high", "medium", "low", "unknown"
SEVERITIES = (UNKNOWN, LOW, MEDIUM, HIGH, CRITICAL)
"""From the least known to the worst."""

_BASE_3 = {"AV": "NALP", "AC": "LH", "PR": "NLH", "UI": "NR", "S": "UC", "C": "HLN", "I": "HLN", "A": "HLN"}
_BASE_4 = {"AV": "NALP", "AC": "LH", "AT": "NP", "PR": "NLH", "UI": "NPA"} | dict.fromkeys(
    ("VC", "VI", "VA", "SC", "SI", "SA"), "HLN"
)
_WEIGHTS_3 = {
    "AV": {"N": 0.85, "A": 0.62, "L": 0.55, "P": 0.2},
    "AC": {"L": 0.77, "H": 0.44},
    "UI": {"N": 0.85, "R": 0.62},
    "CIA": {"H": 0.56, "L": 0.22, "N": 0.0},
}
_PRIVILEGES_3 = {"U": {"N": 0.85, "L": 0.62, "H": 0.27}, "C": {"N": 0.85, "L": 0.68, "H": 0.5}}


def rank(severity: str) -> int:
    """How bad a word for a severity is, from 0; a word that is none of ``SEVERITIES`` is as unknown as ``unknown``."""
    return SEVERITIES.index(severity) if severity in SEVERITIES else SEVERITIES.index(UNKNOWN)


def severity_of(score: float) -> str:
    """The word for a base score of 0 to 10; a score of 0 is ``low``. Source: CVSS v3.1, section 5, and v4.0, section 6."""
    for least, word in ((9.0, CRITICAL), (7.0, HIGH), (4.0, MEDIUM)):
        if score >= least:
            return word
    return LOW


def base_score(vector: str) -> float:
    """The base score of a vector such as ``CVSS:3.1/AV:N/...``, 0.0 to 10.0 with one decimal. Raises Invalid."""
    if len(vector) > LONGEST:
        raise Invalid(f"a CVSS vector has at most {LONGEST} characters")
    version, *rest = vector.split("/")
    if version in ("CVSS:3.0", "CVSS:3.1"):
        return _score_3(_metrics(rest, _BASE_3))
    if version == "CVSS:4.0":
        return _score_4(_metrics(rest, _BASE_4))
    raise Invalid(f"{vector[:20]!r} is no CVSS vector of a version known here: 3.0, 3.1 or 4.0")


def _metrics(parts: list[str], base: Mapping[str, str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in parts:
        name, colon, value = part.partition(":")
        if not colon or not value or name in found:
            raise Invalid(f"{part[:20]!r} does not belong in a CVSS vector, or stands there twice")
        found[name] = value
    for name, values in base.items():
        if len(found.get(name, "")) != 1 or found[name] not in values:
            raise Invalid(f"this CVSS vector has no good value for {name}")
    return found


def _roundup(value: float) -> float:
    """The smallest number with one decimal that is at least ``value``. Source: CVSS v3.1, appendix A."""
    scaled = round(value * 100_000)
    return scaled / 100_000 if scaled % 10_000 == 0 else (scaled // 10_000 + 1) / 10


def _score_3(said: Mapping[str, str]) -> float:
    changed = said["S"] == "C"
    weights = _WEIGHTS_3["CIA"]
    iss = 1 - (1 - weights[said["C"]]) * (1 - weights[said["I"]]) * (1 - weights[said["A"]])
    impact = 7.52 * (iss - 0.029) - 3.25 * (iss - 0.02) ** 15 if changed else 6.42 * iss
    if impact <= 0:
        return 0.0
    ease = 8.22 * _WEIGHTS_3["AV"][said["AV"]] * _WEIGHTS_3["AC"][said["AC"]] * _WEIGHTS_3["UI"][said["UI"]]
    ease *= _PRIVILEGES_3[said["S"]][said["PR"]]
    return _roundup(min((impact + ease) * (1.08 if changed else 1.0), 10.0))


# CVSS 4.0: scores of the MacroVectors that base metrics alone lead to, and of those next below them. Without threat and
# environment metrics the exploit maturity is A (EQ5 = 0), the requirements are high (EQ6 = 0 unless EQ3 = 2), and nothing
# concerns safety (EQ4 is not 0). Rows: EQ1 and EQ2; columns: EQ3 with EQ6, then EQ4. Source: the specification's lookup table.
_COLUMNS = [(*pair, eq4) for pair in ((0, 0), (0, 1), (1, 0), (1, 1), (2, 1)) for eq4 in (1, 2)]
_ROWS = {
    (0, 0): (10, 9.3, 9.6, 9, 9.3, 8.8, 9.2, 8, 7.9, 6.9),
    (0, 1): (9.5, 9.2, 9.1, 8.1, 9.2, 8.4, 8.2, 7, 7.1, 6.3),
    (1, 0): (9.4, 8.7, 8.9, 7.5, 8.6, 7.2, 7.6, 5.7, 6.5, 5.3),
    (1, 1): (9, 7.7, 7.7, 6.6, 7.4, 6.1, 5.9, 5.2, 5.8, 2.3),
    (2, 0): (8.6, 7, 7.4, 5.4, 7.2, 5.3, 5.7, 3.6, 4.7, 2.4),
    (2, 1): (7.3, 5.4, 5.5, 4.3, 6.1, 4.6, 5.1, 1.8, 2.4, 1),
}
_SCORES_4 = {
    (*first, eq3, eq4, eq6): float(score)
    for first, row in _ROWS.items()
    for (eq3, eq6, eq4), score in zip(_COLUMNS, row, strict=True)
}
_LEVELS = {name: {value: level for level, value in enumerate(values)} for name, values in _BASE_4.items()}
_HIGHEST = {  # the vectors of the highest severity in each level of an equivalence set, and the depth of the level
    "EQ1": ((("NNN",), 1), (("ANN", "NLN", "NNP"), 4), (("PNN", "ALP"), 5)),
    "EQ2": ((("LN",), 1), (("HN", "LP"), 2)),
    "EQ3": ((("HHH",), 7), (("LHH", "HLH"), 8), (("LLL",), 10)),
    "EQ4": (((), 0), (("HHH",), 5), (("LLL",), 4)),
}
_SETS = {"EQ1": ("AV", "PR", "UI"), "EQ2": ("AC", "AT"), "EQ3": ("VC", "VI", "VA"), "EQ4": ("SC", "SI", "SA")}


def _score_4(said: Mapping[str, str]) -> float:
    """Source: CVSS v4.0, section 8.2: the MacroVector's score less the mean of the way to the ones below it."""
    if all(said[name] == "N" for name in (*_SETS["EQ3"], *_SETS["EQ4"])):
        return 0.0
    eq1, eq2, eq3, eq4 = levels = _macro_vector(said)
    eq6 = int(eq3 == 2)
    value = _SCORES_4[eq1, eq2, eq3, eq4, eq6]
    below = (
        _SCORES_4.get((eq1 + 1, eq2, eq3, eq4, eq6)),
        _SCORES_4.get((eq1, eq2 + 1, eq3, eq4, eq6)),
        _next_eq3(eq1, eq2, eq3, eq4),
        _SCORES_4.get((eq1, eq2, eq3, eq4 + 1, eq6)),
    )
    ways = _ways(said, levels)
    steps = [(value - lower) * way for lower, way in zip(below, ways, strict=True) if lower is not None]
    mean = sum(steps) / (len(steps) + 1)  # EQ5 has one below, too, and base metrics are never on the way to it
    return int((min(max(value - mean, 0.0), 10.0) + 1e-6) * 10 + 0.5) / 10


def _macro_vector(said: Mapping[str, str]) -> tuple[int, int, int, int]:
    """Source: CVSS v4.0, section 8.2, tables 24 to 27."""
    easy = [said["AV"] == "N", said["PR"] == "N", said["UI"] == "N"]
    eq1 = 0 if all(easy) else 1 if any(easy) and said["AV"] != "P" else 2
    eq2 = 0 if said["AC"] + said["AT"] == "LN" else 1
    eq3 = 0 if said["VC"] + said["VI"] == "HH" else 1 if "H" in (said["VC"], said["VI"], said["VA"]) else 2
    return eq1, eq2, eq3, 1 if "H" in (said["SC"], said["SI"], said["SA"]) else 2


def _next_eq3(eq1: int, eq2: int, eq3: int, eq4: int) -> float | None:
    """Score of the MacroVector below in EQ3 and EQ6, which go together; of two ways down the one with the higher score."""
    if eq3 == 0:
        return max(_SCORES_4[eq1, eq2, 0, eq4, 1], _SCORES_4[eq1, eq2, 1, eq4, 0])
    return _SCORES_4[eq1, eq2, 1, eq4, 1] if eq3 == 1 else None


def _ways(said: Mapping[str, str], levels: tuple[int, ...]) -> list[float]:
    """How far the vector is on its way through each level of its MacroVector, 0 to 1, from the first highest one above it."""
    per_set = [_distances(said, name, level) for name, level in zip(_SETS, levels, strict=True)]
    first = next(chosen for chosen in product(*per_set) if all(distance >= 0 for distance, _ in chosen))
    return [distance / depth for distance, depth in first]


def _distances(said: Mapping[str, str], name: str, level: int) -> list[tuple[int, int]]:
    """For every highest vector of the level: steps from it down to this vector (-1: it is not above it), and the depth."""
    highest, depth = _HIGHEST[name][level]
    found = []
    for one in highest:
        steps = [_LEVELS[m][said[m]] - _LEVELS[m][value] for m, value in zip(_SETS[name], one, strict=True)]
        found.append((sum(steps) if min(steps) >= 0 else -1, depth))
    return found
