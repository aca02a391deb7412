"""Where data come from and what became of them: source → steps → data set → run → model → release, as one graph."""

from collections.abc import Iterable, Mapping

from msgspec import Struct

DATA, RUN, MODEL, RELEASE, SOURCE = "dataset", "run", "model", "release", "source"


class Node(Struct, frozen=True):
    """``id``: its kind, a colon and a name of its own; ``entry``: log index of the statement that says so, -1 = none does."""

    id: str
    kind: str
    label: str
    entry: int = -1


class Edge(Struct, frozen=True):
    """``before`` went into ``after``. ``how``: in words, "" = nothing; ``exact``: by digest, and not by name alone."""

    before: str
    after: str
    how: str = ""
    exact: bool = True


class Lineage(Struct, frozen=True):
    """Nodes and edges, in the order that they were found."""

    nodes: tuple[Node, ...]
    edges: tuple[Edge, ...]

    def node(self, name: str) -> Node:
        """The node with that id, or a bare one where an edge names what no statement describes."""
        found = next((node for node in self.nodes if node.id == name), None)
        return found or Node(name, name.partition(":")[0], name.partition(":")[2])


def reachable(whole: Lineage, start: str) -> Lineage:
    """What ``start`` was made of, however far back, and what was made of it."""
    kept = {start} | _closure(start, _index(whole.edges, back=True)) | _closure(start, _index(whole.edges, back=False))
    return Lineage(
        tuple(node for node in whole.nodes if node.id in kept),
        tuple(edge for edge in whole.edges if edge.before in kept and edge.after in kept),
    )


def tree(found: Lineage, start: str) -> str:
    """As lines: what ``start`` was made of, indented under it, then what went on from it. Each node is told once in full."""
    lines = [found.node(start).label]
    before, after = _index(found.edges, back=True), _index(found.edges, back=False)
    if start in before:
        lines += ["made of", *_branches(found, start, before, {start}, back=True)]
    if start in after:
        lines += ["went into", *_branches(found, start, after, {start}, back=False)]
    return "\n".join(lines)


def _branches(
    found: Lineage, start: str, links: Mapping[str, list[Edge]], told: set[str], *, back: bool, depth: int = 1
) -> list[str]:
    lines = []
    for edge in links.get(start, ()):
        name = edge.before if back else edge.after
        how = "".join((f", by {edge.how}" if edge.how else "", "" if edge.exact else " (by name alone)"))
        again = name in told
        lines.append(f"{'  ' * depth}{found.node(name).label}{how}{' (see above)' if again else ''}")
        if not again:
            told.add(name)
            lines += _branches(found, name, links, told, back=back, depth=depth + 1)
    return lines


def _index(edges: Iterable[Edge], *, back: bool) -> dict[str, list[Edge]]:
    found: dict[str, list[Edge]] = {}
    for edge in edges:
        found.setdefault(edge.after if back else edge.before, []).append(edge)
    return found


def _closure(start: str, links: Mapping[str, list[Edge]]) -> set[str]:
    found: set[str] = set()
    todo = [start]
    while todo:
        for edge in links.get(todo.pop(), ()):
            for name in (edge.before, edge.after):
                if name not in found:
                    found.add(name)
                    todo.append(name)
    return found
