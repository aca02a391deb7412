"""Verbs about data sets: add, list, show, grant, revoke, open, lineage; and who may read what, for what purpose.

Who reads says what for. It takes a grant to the account or one of its roles for that purpose, or to have added the version; and
the version must have been added for that purpose, or for none in particular. Both are rules of the access policy
(policy/default.cedar); the grants are acts in the releases log. Every reading is an act in the log before a byte is handed out,
and so is every reading that was denied.
"""

import functools
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec

from modelkeep.access.authorize import authorize
from modelkeep.adapters.confine import DEFAULT_LIMITS, Limits
from modelkeep.adapters.stepping import run_step
from modelkeep.adapters.tables import NPZ, Source, kind_of_name
from modelkeep.app.acting import Acts
from modelkeep.app.dataresults import (
    DataAdded,
    DataFetched,
    DataRemoved,
    DatasetRow,
    DatasetShown,
    GrantRow,
    LineageShown,
    Replayed,
    StepRow,
)
from modelkeep.app.datasets import SealedDataset, opened_source
from modelkeep.app.verbs import verb
from modelkeep.container.reader import BytesReader
from modelkeep.core.values import digest_hex, digest_of, parse_role
from modelkeep.custody.datasets import (
    ADDING,
    MAX_TEXT,
    NOTHING_SAID,
    About,
    DatasetRecord,
    fits,
    is_granted,
    parse_data_name,
    parse_data_ref,
    parse_purpose,
)
from modelkeep.custody.keys import AUDIT_SUBJECT, DATA_KEK
from modelkeep.errors import Conflict, Denied, Invalid, Missing, NotTrusted
from modelkeep.ledger.attestations import Dataset, Hardening, Privacy, TrainingRun
from modelkeep.policy.engine import dataset as target_of
from modelkeep.training import lineage
from modelkeep.training.croissant import Described, croissant
from modelkeep.training.lineage import DATA, MODEL, RELEASE, RUN, SOURCE, Edge, Lineage, Node
from modelkeep.workflows.datasets import (
    Content,
    add_dataset,
    all_datasets,
    find_dataset,
    first_adder,
    last_said,
    last_version,
    open_dataset,
    remove_dataset,
)
from modelkeep.workflows.decisions import GRANT, REVOKE
from modelkeep.workflows.decisions import REMOVE_DATA as REMOVE

ADD, EXTEND, READ = "data.add", "data.extend", "data.read"
OPEN, DENIED, REPLAY = "data.open", "data.denied", "data.replay"
"""Acts: somebody read a version for a purpose; was not let; ran its steps again and found the same."""
_ROLE = "role:"
_TRAINED: tuple[tuple[type[Hardening] | type[Privacy], str], ...] = ((Hardening, "harden"), (Privacy, "privacy train"))
"""Statements about a model that say which data it learnt from, without a recorded run."""


class DataVerbs(Acts):
    """data: sealed data sets."""

    def authorize(self, action: str, arguments: dict[str, Any]) -> None:
        """As of every verb; for reading and granting a data set, by what the log grants. A denied reading is logged.

        Grants are of all versions, so they are given by whoever added the first one: else a new version would open the others.
        """
        if action == ADD:
            self._authorize_adding(arguments)
        elif action == GRANT:
            name, about = self._governed(arguments["dataset"])
            self._judge_access(action, name, about, arguments, first_adder(self.premises.registry(), name))
        elif action in {READ, REMOVE}:
            found = self._dataset(arguments["dataset"])
            if action == READ and str(found.ref) in self.premises.decisions().removed:
                raise Missing(f"the data set {found.ref} was removed: what is left of it came back from elsewhere")
            try:
                self._judge_access(action, found.ref.name, found.about, arguments, found.actor)
            except Denied:
                if action == READ:
                    self.act(DENIED, str(found.ref), purpose=arguments.get("purpose", "")[:64])
                raise
        else:
            super().authorize(action, arguments)

    def _judge_access(self, action: str, name: str, about: About | Dataset, arguments: dict[str, Any], owner: str) -> None:
        """Raise Denied unless the policy lets the actor do ``action`` to data of which ``about`` was said."""
        purpose = arguments.get("purpose", "")
        if purpose:
            parse_purpose(purpose)
        grants = self.premises.decisions().grants.get(name, {})
        known = {
            "purpose": purpose,
            "fits": fits(about.purposes, purpose),
            "granted": is_granted(grants, self.actor.subject, self.actor.roles, purpose),
            "owner": owner == self.actor.subject,
            "personal": about.personal,
        }
        authorize(self.engine, self.actor, action, target_of(name), self.address, known)

    def _authorize_adding(self, arguments: dict[str, Any]) -> None:
        """By the role; to a name that somebody else began, by what the log grants, too. A denied addition to one is logged."""
        super().authorize(ADD, arguments)
        name = arguments["name"]
        if first_adder(self.premises.registry(), name) in ("", self.actor.subject):
            return
        grants = self.premises.decisions().grants.get(name, {})
        known = {"granted": is_granted(grants, self.actor.subject, self.actor.roles, ADDING)}
        try:
            authorize(self.engine, self.actor, EXTEND, target_of(name), self.address, known)
        except Denied as cause:
            self.act(DENIED, name, how="add")
            let = f"'modelkeep data grant {name} {self.actor.account} --add'"
            raise Denied(f"{cause}: somebody else began {name}, so use another name, or ask for {let}") from None

    @verb(ADD)
    def data_add(self, *, name: str, filename: str, data: bytes, about: About | None = None, kind: str = "") -> DataAdded:
        """Seal ``data`` as the next version of the data set ``name``. ``kind``: by the ending of ``filename`` unless given.

        Pictures are a tar archive of their folder. Raises Invalid (not what it says), Missing (a parent), NotTrusted, Conflict,
        Unavailable.
        """
        return self._add(name, Source(kind or kind_of_name(filename), BytesReader(data)), filename, about or NOTHING_SAID)

    def data_add_from(
        self, path: str | Path, name: str, about: About = NOTHING_SAID, *, columns: Sequence[str] = ()
    ) -> DataAdded:
        """The same for a file or a folder of pictures here, which is read in pieces. Raises as ``data_add``, Missing.

        ``columns``: a line with these names is put before the rows of a CSV file that has none.
        """
        self.authorize(ADD, {"name": name})
        with opened_source(path, columns) as (source, filename, check):
            return self._add(name, source, filename, about, check)

    @verb("data.list")
    def data_list(self) -> tuple[DatasetRow, ...]:
        """Every version of every data set."""
        names = self.names()
        return tuple(_row(each, names) for each in all_datasets(self.premises.registry()))

    @verb("data.list")
    def data_show(self, *, dataset: str) -> DatasetShown:
        """One version, ``name@version`` or the newest of ``name``, and who may read it. Raises Missing."""
        found, names = self._dataset(dataset), self.names()
        assert found.digest is not None
        assert found.body is not None
        granted = self.premises.decisions().grants.get(found.ref.name, {})
        return DatasetShown(
            row=_row(found, names),
            columns=dict(found.kinds),
            licence=found.about.licence,
            source=found.about.source,
            description=found.about.description,
            digest=found.digest,
            sealed=found.body.sealed,
            log_index=found.entry,
            parents=tuple(parent.name for parent in found.parents),
            steps=tuple(StepRow(step.name, step.code, step.parameters) for step in found.about.steps),
            grants=tuple(_grant_row(found.ref.name, names.get(to, to), why, index) for (to, why), index in granted.items()),
        )

    @verb(GRANT)
    def data_grant(self, *, dataset: str, to: str, purpose: str = "", add: bool = False) -> GrantRow:
        """Let an account, or ``role:NAME``, read all versions of a data set for a purpose, or ``add`` versions.

        Raises Missing, Invalid (neither or both, or a purpose that no version has).
        """
        return self._change_grant(GRANT, dataset, to, _right(purpose, add=add))

    @verb(GRANT)
    def data_revoke(self, *, dataset: str, to: str, purpose: str = "", add: bool = False) -> GrantRow:
        """Take a grant back: the next reading, or addition, is denied. Raises Missing (no such grant), Invalid."""
        return self._change_grant(REVOKE, dataset, to, _right(purpose, add=add))

    @verb(REMOVE)
    def data_remove(self, *, dataset: str, reason: str) -> DataRemoved:
        """Remove one version for good: its key, its body and its record. What the log says of it stays.

        Raises Missing, Invalid (no version, or no reason), Unavailable.
        """
        found = find_dataset(self.premises.registry(), parse_data_ref(dataset))
        if not 0 < len(reason) <= MAX_TEXT:
            raise Invalid(f"say why, in at most {MAX_TEXT:,} characters")
        said = functools.partial(
            self.act, REMOVE, str(found.ref), reason=reason, sealed=found.body.sealed if found.body else ""
        )
        return DataRemoved(str(found.ref), remove_dataset(self.premises.desk(), found, said))

    @verb(READ)
    def data_fetch(self, *, dataset: str, purpose: str = "") -> DataFetched:
        """The very bytes of a version, for ``purpose``. Raises Denied (and logs it), Missing, NotTrusted, Unavailable."""
        found = self._read(dataset, purpose, "fetch")
        record = found.record
        data = bytes(found.sealed.read_source())
        return DataFetched(found.ref, record.kind, record.filename, data, found.log_index, found.columns)

    def data(self, dataset: str, *, purpose: str = "") -> SealedDataset:
        """A version opened here: batches of rows, decrypted in memory as they are asked for.

        Raises Denied (and logs it), Missing, NotTrusted, Unavailable.
        """
        self.authorize(READ, {"dataset": dataset, "purpose": purpose})
        return self._read(dataset, purpose, "stream")

    @verb("data.list")
    def data_lineage(self, *, dataset: str) -> LineageShown:
        """What a version was made of, and the runs, models and releases that it went into, as the log has it."""
        found = self._dataset(dataset)
        start = f"{DATA}:{found.ref}"
        part = lineage.reachable(self._lineage(), start)
        return LineageShown(str(found.ref), part, lineage.tree(part, start))

    @verb(READ)
    def data_describe(self, *, dataset: str, purpose: str = "") -> bytes:
        """Metadata of a version as Croissant 1.0, JSON-LD. It has the plain digest of the data, so it counts as reading them.

        Raises Denied (and logs it), Missing, NotTrusted, Unavailable.
        """
        found = self._read(dataset, purpose, "describe")
        record, about = found.record, found.record.about
        said = Described(
            name=record.ref.name,
            version=record.ref.version,
            kind=record.kind,
            filename=record.filename,
            size=record.size,
            sha256=digest_hex(found.sealed.model_digest),
            columns=found.columns,
            creator=self.names().get(record.actor, record.actor),
            published=datetime.fromtimestamp(record.created / 1e9, UTC).isoformat(timespec="seconds"),
            url=f"urn:x-modelkeep:data:{self.premises.trust.origin}:{record.ref}",
            licence=about.licence,
            source=about.source,
            description=about.description,
            personal=about.personal,
            parents=tuple(parent.name for parent in record.parents),
        )
        return msgspec.json.format(msgspec.json.encode(croissant(said)), indent=2) + b"\n"

    def data_replay(
        self,
        dataset: str,
        codes: Sequence[bytes],
        *,
        purpose: str = "",
        limits: Limits = DEFAULT_LIMITS,
        confined: bool = True,
    ) -> Replayed:
        """Run the declared steps of a version on its parent again, in memory, and compare what comes out; logged.

        ``codes``: the code of each step, in order. Raises Conflict (something else came out), NotTrusted (other code than was
        declared), Invalid (no steps, several parents, a step failed), Denied, Missing, Unavailable.
        """
        found = self._dataset(dataset)
        steps = found.about.steps
        if not steps or len(found.parents) != 1:
            raise Invalid(f"{found.ref} declares no steps on one parent: there is nothing to run again")
        if [digest_of(code) for code in codes] != [step.code for step in steps]:
            raise NotTrusted(f"this is not the code that {found.ref} declares: {', '.join(step.name for step in steps)}")
        parent, result = found.parents[0].name, self.data(str(found.ref), purpose=purpose)
        data = self.data(parent, purpose=purpose).sealed.read_source()
        for step, code in zip(steps, codes, strict=True):
            data = memoryview(run_step(code, step.name, step.parameters, data, limits, confined=confined))
        if digest_of(data) != result.sealed.model_digest:
            raise Conflict(f"the steps of {found.ref} were run on {parent} again, and gave other bytes: it was not made so")
        index = self.act(REPLAY, str(found.ref), parent=parent, confined=str(confined).lower(), purpose=purpose)
        return Replayed(str(found.ref), parent, tuple(step.name for step in steps), data.nbytes, confined, index)

    def _add(
        self, name: str, source: Source, filename: str, about: About, check: Callable[[], None] = lambda: None
    ) -> DataAdded:
        parse_data_name(name)
        about.check()
        here, rows = self.premises, source.rows()
        if not rows.rows and source.kind != NPZ:  # whose arrays may be of different lengths
            raise Invalid(f"{filename} has no rows: there is nothing to keep")
        here.keyring([DATA_KEK, AUDIT_SUBJECT])  # at hand now, and not only once everything is sealed
        content = Content(source.reader, source.kind, filename, rows.rows, tuple(rows.kinds.items()), check)
        done = add_dataset(
            here.desk(),
            here.wrapping(DATA_KEK),
            here.data_salts(),
            content,
            name,
            about,
            actor=self.actor.subject,
            may=functools.partial(self.authorize, ADD, {"name": name}),
        )
        assert done.digest is not None
        assert done.body is not None
        return DataAdded(str(done.ref), done.kind, done.rows, done.size, done.digest, done.body.sealed, done.entry)

    def _read(self, dataset: str, purpose: str, how: str) -> SealedDataset:
        here, found = self.premises, self._dataset(dataset)
        if "@" not in dataset:  # a newer one may have come since, and nobody asked whether he may read that
            self.authorize(READ, {"dataset": str(found.ref), "purpose": purpose})
        index = self.act(OPEN, str(found.ref), purpose=purpose, how=how)
        try:
            salt = here.data_salts().existing(str(found.ref))
        except Missing:  # it was erased: the log's root still says which body it is
            salt = None
        return SealedDataset(found, open_dataset(here.registry(), here.data_openers(), found, salt), index)

    def _dataset(self, dataset: str) -> DatasetRecord:
        registry = self.premises.registry()
        return find_dataset(registry, parse_data_ref(dataset)) if "@" in dataset else last_version(registry, dataset)

    def _governed(self, dataset: str) -> tuple[str, About | Dataset]:
        """The name that a grant is of, and what was said of its newest version: grants outlive versions that were removed."""
        try:
            found = self._dataset(dataset)
        except Missing:
            if "@" in dataset:
                raise
            return dataset, last_said(self.premises.registry(), dataset)
        return found.ref.name, found.about

    def _change_grant(self, act: str, dataset: str, to: str, right: str) -> GrantRow:
        """``right``: a purpose, or ``ADDING``."""
        name, whom = self._governed(dataset)[0], self._whom(to)
        if act == REVOKE and (whom, right) not in self.premises.decisions().grants.get(name, {}):
            raise Missing(f"{name} is not granted to {to} {_for(right)}")
        versions = (each.about for each in all_datasets(self.premises.registry()) if each.ref.name == name)
        if act == GRANT and right != ADDING and not any(fits(each.purposes, right) for each in versions):
            raise Invalid(f"no version of {name} may be read for {right}: it was added for other purposes")
        return _grant_row(name, to, right, self.act(act, name, to=whom, purpose=right))

    def _whom(self, to: str) -> str:
        if to.startswith(_ROLE):
            return _ROLE + parse_role(to.removeprefix(_ROLE))
        return to if to == self.actor.account and to.endswith("@local") else self.owner(to).subject

    def _lineage(self) -> Lineage:
        book, names = self.premises.registry().book, self.names()
        nodes, edges = dict[str, Node](), list[Edge]()
        known: dict[str, str] = {}
        for told in book.attestations.every(Dataset):
            said, name = told.said, f"{DATA}:{told.said.name}"
            if said.body is None or name in nodes:
                continue
            known[told.about] = name
            label = f"{said.name}  {said.format}, {said.rows:,} rows, added by {names.get(said.actor, said.actor)}"
            nodes[name] = Node(name, DATA, label, told.index)
            if said.source:
                nodes[f"{SOURCE}:{said.source}"] = Node(f"{SOURCE}:{said.source}", SOURCE, said.source)
                edges.append(Edge(f"{SOURCE}:{said.source}", name))
            how = ", ".join(f"{step.name} ({step.code[7:19]})" for step in said.steps)
            edges += [Edge(f"{DATA}:{parent.name}", name, how) for parent in said.parents]
        for run in book.attestations.every(TrainingRun):
            name = f"{RUN}:{run.said.run}"
            model = next((each for each, digest in run.said.outputs.items() if digest == run.about), "model")
            nodes.setdefault(name, Node(name, RUN, f"run {run.said.run[:12]}  {' '.join(run.said.command)[:80]}", run.index))
            nodes[f"{MODEL}:{run.about}"] = Node(f"{MODEL}:{run.about}", MODEL, f"{model}  {run.about[:19]}", run.index)
            for one in run.said.inputs:
                exact = known.get(one.digest)
                before = exact or f"{DATA}:{one.name.partition('/')[0]}"
                edge = Edge(before, name, "", exact is not None)
                if (exact or before in nodes) and edge not in edges:
                    edges.append(edge)
            edges.append(Edge(name, f"{MODEL}:{run.about}"))
        for kind, how in _TRAINED:
            for made in book.attestations.every(kind):
                learnt, name = made.said.dataset, f"{MODEL}:{made.about}"
                if learnt is None or (learnt.digest not in known and f"{DATA}:{learnt.name}" not in nodes):
                    continue
                nodes.setdefault(name, Node(name, MODEL, f"model  {made.about[:19]}", made.index))
                exact = known.get(learnt.digest)
                edges.append(Edge(exact or f"{DATA}:{learnt.name}", name, how, exact is not None))
        for evidence in book.releases():
            if f"{MODEL}:{evidence.model}" in nodes:
                name = f"{RELEASE}:{evidence.ref}"
                nodes[name] = Node(name, RELEASE, f"{evidence.ref} ({evidence.state})", evidence.index)
                edges.append(Edge(f"{MODEL}:{evidence.model}", name))
        return Lineage(tuple(nodes.values()), tuple(edges))


def _row(found: DatasetRecord, names: dict[str, str]) -> DatasetRow:
    owner, about = names.get(found.actor, found.actor), found.about
    return DatasetRow(str(found.ref), found.kind, found.rows, found.size, about.purposes, about.personal, owner, found.created)


def _right(purpose: str, *, add: bool) -> str:
    """What a grant is for: a purpose, or ``ADDING``. Raises Invalid."""
    if add == bool(purpose):
        raise Invalid("a grant is for a purpose, or for adding versions: say one of --purpose and --add")
    return ADDING if add else parse_purpose(purpose)


def _for(right: str) -> str:
    return "to add versions" if right == ADDING else f"for {right}"


def _grant_row(name: str, to: str, right: str, index: int) -> GrantRow:
    add = right == ADDING
    return GrantRow(name, to, "" if add else right, index, add)
