"""What the gateway counts, in the Prometheus text format.

Source: Prometheus, "Exposition formats", text format 0.0.4. Our own few lines instead of a client library: three kinds of
series, updated on the hot path without locks (one thread writes each).
"""

from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence

from modelkeep.core.tallies import Series

LATENCY = (0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
"""Upper bounds of the latency buckets, seconds."""


class Histogram:
    """Counts of values by bucket, with their sum."""

    def __init__(self, name: str, words: str, bounds: tuple[float, ...] = LATENCY) -> None:
        self.name, self._words, self._bounds = name, words, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def series(self) -> Series:
        """What was counted so far."""
        rows, total = dict[str, float](), 0
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            rows[f'_bucket{{le="{_number(bound)}"}}'] = total
        return Series(self.name, self._words, "histogram", "sum", {**rows, "_sum": self._sum, "_count": total})


class Counter:
    """Counts by label values. Label values come from closed sets (outcome codes, served model names), so series are bounded."""

    def __init__(self, name: str, words: str, labels: tuple[str, ...]) -> None:
        self.name, self._words, self._labels = name, words, labels
        self._counts: dict[tuple[str, ...], int] = {}

    def add(self, *values: str) -> None:
        """Count one event."""
        self._counts[values] = self._counts.get(values, 0) + 1

    def series(self) -> Series:
        """What was counted so far."""
        rows = dict[str, float]()
        for values, count in sorted(self._counts.items()):
            pairs = ",".join(f'{label}="{_escape(value)}"' for label, value in zip(self._labels, values, strict=True))
            rows[f"{{{pairs}}}"] = count
        return Series(self.name, self._words, "counter", "sum", rows)


class Gauge:
    """A number that is read when it is asked for, left out when it cannot be (None). ``over``: how those of several processes
    become one (core/tallies)."""

    def __init__(self, name: str, words: str, read: Callable[[], float | None], kind: str = "gauge", over: str = "sum") -> None:
        self.name, self._words, self._read, self._kind, self._over = name, words, read, kind, over

    def series(self) -> Series:
        """The number of now."""
        value = self._read()
        return Series(self.name, self._words, self._kind, self._over, {} if value is None else {"": value})


class Readings:
    """Numbers by label values, read when they are asked for."""

    def __init__(  # one more than a gauge
        self,
        name: str,
        words: str,
        label: str,
        read: Callable[[], Iterable[tuple[str, float]]],
        kind: str,
        over: str = "sum",
    ) -> None:
        self.name, self._words, self._label, self._read, self._kind, self._over = name, words, label, read, kind, over

    def series(self) -> Series:
        """The numbers of now."""
        rows = {f'{{{self._label}="{_escape(value)}"}}': number for value, number in self._read()}
        return Series(self.name, self._words, self._kind, self._over, rows)


class Metrics:
    """The gateway's series."""

    def __init__(self) -> None:
        self.requests = Counter("modelkeep_requests_total", "Inference requests by model and outcome.", ("model", "outcome"))
        self.latency = Histogram("modelkeep_request_seconds", "Time from a whole request to its answer.")
        self.audit = Histogram("modelkeep_audit_commit_seconds", "Time until an audit record was durable.")
        self._series: list[Counter | Histogram | Gauge | Readings] = [self.requests, self.latency, self.audit]

    def gauge(
        self, name: str, words: str, read: Callable[[], float | None], *, counter: bool = False, over: str = "sum"
    ) -> None:
        """Add a number that is read when ``/metrics`` is. ``over``: how those of several workers become one."""
        self._series.append(Gauge(name, words, read, "counter" if counter else "gauge", over))

    def readings(  # one more than a gauge
        self,
        name: str,
        words: str,
        label: str,
        read: Callable[[], Iterable[tuple[str, float]]],
        *,
        counter: bool = False,
        over: str = "sum",
    ) -> None:
        """Add numbers by ``label`` that are read when ``/metrics`` is; the series is left out while there are none."""
        self._series.append(Readings(name, words, label, read, "counter" if counter else "gauge", over))

    def series(self) -> list[Series]:
        """Everything that this process counts, now."""
        found = [series.series() for series in self._series]
        return [series for series in found if series.rows or series.name == self.requests.name]

    def text(self) -> bytes:
        """The same in the text format."""
        return text(self.series())


def text(tally: Sequence[Series]) -> bytes:
    """Series in the text format."""
    lines = []
    for series in tally:
        lines += [f"# HELP {series.name} {series.words}", f"# TYPE {series.name} {series.kind}"]
        lines += [f"{series.name}{row} {_number(value)}" for row, value in series.rows.items()]
    return ("\n".join(lines) + "\n").encode()


def _number(value: float) -> str:
    if value == float("inf"):
        return "+Inf"
    return str(int(value)) if value == int(value) else repr(value)


def _escape(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
