"""The dossier from a real log: those that count, said by somebody who may, about this model, each once."""

import msgspec
import pytest
from trust_house import FIRST, OTHER, Office, log_raw

from modelkeep.core.values import Resource, digest_of
from modelkeep.crypto.signatures import StatementSigner
from modelkeep.custody.trust import Rights
from modelkeep.errors import Missing
from modelkeep.ledger import attestations as a
from modelkeep.ledger.statements import make_statement, sign_statement
from modelkeep.workflows.publish import publish
from modelkeep.workflows.trust_changes import add_identity

STRANGER = StatementSigner("stranger", bytes([5]) * 32, bytes([6]) * 32)
DATA = a.Salted("loans@3", digest_of(b"salted"))


@pytest.fixture
def office(tmp_path, model):
    made = Office(tmp_path)
    publish(made.house.desk(), model, "credit", actor="ada")
    return made


def privacy(epsilon, at=1):
    return a.Privacy(actor="ada", at=at, epsilon=epsilon, delta=1e-6, accountant="prv")


def about(office):
    known = office.house.registry().release(FIRST)
    return Resource(known.filename, known.model)


def log(office, said, *subjects, signer=None):
    statement = make_statement(said, *(subjects or (about(office),)))
    log_raw(office, sign_statement(statement, signer or office.house.ring.statement_signer()))


def found(office, **until):
    return office.house.registry().refresh().dossier(FIRST, **until)


def test_the_last_word_of_those_who_may_speak(office):
    assert found(office).privacy is None and found(office).scan.said.clean
    log(office, privacy(3.0))
    log(office, privacy(5.0, at=2))
    assert found(office).privacy.said.epsilon == 5.0
    log(office, privacy(3.0))  # a copy of the first does not make it the last
    assert found(office).privacy.said.epsilon == 5.0
    log(office, privacy(0.1, at=3), signer=STRANGER)
    log(office, privacy(0.2, at=4), Resource("other", digest_of(b"another model")))
    assert found(office).privacy.said.epsilon == 5.0
    assert found(office).privacy.index == 4
    assert found(office, until=4).privacy.said.epsilon == 3.0 and found(office, until=3).privacy is None
    with pytest.raises(Missing):
        found(office, until=2)


@pytest.mark.parametrize(
    ("rights", "counts"),
    [
        (Rights(), True),
        (Rights(("privacy",), ("cred*",)), True),
        (Rights(("privacy",), ("fraud",)), False),
        (Rights(("scan",)), False),
    ],
)
def test_an_identity_speaks_only_of_what_it_may(office, rights, counts):
    add_identity(office.house.desk(), office.amend, OTHER.public, rights, actor="ada")
    log(office, privacy(1.0), signer=OTHER)
    assert (found(office).privacy is not None) is counts


def test_data_sets_are_found_by_the_statements_that_name_them(office):
    said = a.Dataset(actor="ada", at=1, name="loans@3", format="csv", size=9)
    log(office, said, Resource("loans@3", DATA.digest))
    log(office, msgspec.structs.replace(said, name="other"), Resource("other", digest_of(b"other")))
    assert found(office).datasets == {}  # nobody says that this model came from them
    measured = {"accuracy": a.Measure(0.9, 0.8, 1.0, 10)}
    log(office, a.Evaluation(actor="ada", at=1, suite="s", metrics=measured, dataset=DATA))
    assert [told.said.name for told in found(office).datasets.values()] == ["loans@3"]


def test_recorded_bills_are_found(office):
    digest = digest_of(b"document")
    said = a.Bom(actor="ada", at=1, release="credit@1", format="CycloneDX 1.7", components=1, serial="urn:uuid:x")
    log(office, said, about(office), Resource("bom.json", digest))
    log(office, msgspec.structs.replace(said, release="credit@2"), about(office), Resource("bom.json", digest))
    log(office, msgspec.structs.replace(said, at=2), about(office), Resource("bom.json", digest_of(b"another")))
    log(office, msgspec.structs.replace(said, at=3), about(office), Resource("b", digest), signer=STRANGER)
    bills = found(office).bills
    assert [(one.index, one.second == digest) for one in bills] == [(3, True), (5, False)]
    assert found(office).everything()[-1].index == 2  # it says nothing new about the model
