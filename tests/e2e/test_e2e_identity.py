"""A real gateway and control process, a real identity provider, real clients: tokens, proofs, certificates, blocks."""

import json
import os
import ssl
import subprocess

import httpx
import pytest
from certificates import Authority
from commandline import Cli, copy_keep
from e2e_house import INFER, RECEIPT, House, question, wait_for
from identity import PLACE, RESOURCE, DpopKey, Provider

from modelkeep.adapters.logfile import FolderLogFiles
from modelkeep.crypto.notes import encode_vkey
from modelkeep.custody.trust import TrustRoot
from modelkeep.serving.audit import read_bodies

SETTINGS = """
[gateway]
client_ca = "clients.pem"
[[issuers]]
alias = "corp"
issuer = "{issuer}"
audiences = ["{resource}"]
roles_claim = "groups"
roles = {{ scorers = "analyst" }}
allow_http = true
retry_seconds = 1.0
"""


@pytest.fixture(scope="module")
def provider():
    running = Provider()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def clients(tmp_path_factory):
    return Authority(tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="module")
def house(template, desk, tmp_path_factory, provider, clients, subject):
    folder = tmp_path_factory.mktemp("identity")
    cli = Cli(copy_keep(template, folder / "keep"), desk / "pass")
    with (cli.keep / "modelkeep.toml").open("a") as file:
        file.write(SETTINGS.format(issuer=provider.issuer, resource=RESOURCE))
    (cli.keep / "clients.pem").write_bytes(clients.pem)
    (cli.keep / "clients.pem").chmod(0o600)
    running = House(cli, folder, MODELKEEP_LIMITS_FAILURES_BURST="1000").start()
    elsewhere = provider.token(resource="https://else.example")
    wait_for(lambda: running.ask(elsewhere, subject.fresh[:1]).status_code == 401, 60)  # 503 until the keys were read
    yield running
    running.stop()
    running.check_output()


def recorded_subject(house, receipt):
    """The pseudonym in the audit record that a receipt names."""
    instance, index = receipt.split("/")
    trust = TrustRoot.parse((house.keep / "trust.toml").read_bytes())
    origin = f"{trust.origin}/audit/{instance}"
    files = FolderLogFiles(house.keep / "log" / "audit" / instance)
    vkey = encode_vkey(origin, trust.audit_key)
    subjects = lambda: {index: entry.subject for index, entry, _ in read_bodies(files, vkey, origin)}  # noqa: E731
    wait_for(lambda: int(index) in subjects(), 60)
    return subjects()[int(index)]


def user(house, name):
    return next(row for row in house.cli("user", "list", "--json", code=0).json if row["name"] == name)


def test_a_token_of_the_provider_is_answered_under_a_pseudonym_and_a_block_ends_it(house, provider, subject):
    token = provider.token()
    answer = house.ask(token, subject.fresh[:1])
    assert answer.status_code == 200, answer.text
    row = user(house, "scoring@corp")
    assert recorded_subject(house, answer.headers[RECEIPT]) == row["subject"] and row["subject"].startswith("sub_")

    house.cli("user", "disable", "scoring@corp", code=0)
    refused = house.ask(token, subject.fresh[:1])
    assert refused.status_code == 401 and 'error="invalid_token"' in refused.headers["www-authenticate"]
    assert house.ask(provider.token(), subject.fresh[:1]).status_code == 401  # nor does a new token help
    house.cli("user", "enable", "scoring@corp", code=0)
    wait_for(lambda: house.ask(token, subject.fresh[:1]).status_code == 200, 60)


def test_roles_come_from_the_mapping_alone(house, provider, subject):
    answer = house.ask(provider.token("stranger"), subject.fresh[:1])
    assert answer.status_code == 403 and "no role" in answer.json()["detail"]
    assert house.cli("user", "role", "stranger@corp", "--role", "admin").code == 2


def test_a_client_of_others_with_a_bound_token(house, provider, subject):
    body = json.dumps(question(subject.fresh[:1]))
    environment = os.environ | {"NODE_EXTRA_CA_CERTS": str(house.keep / "tls" / "ca.pem")}
    command = ["node", "client.mjs", provider.issuer, RESOURCE, house.url + INFER, body]
    done = subprocess.run(command, cwd=PLACE, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["type"] == "dpop" and said["bearer"] == 401
    assert said["statuses"][-2:] == [401, 200]  # first without our nonce, then with it
    assert len(said["answer"]["outputs"][0]["data"]) >= 1


def test_a_proof_is_good_once_and_for_one_request(house, provider, subject):
    key = DpopKey()
    token = provider.token("bound", key=key)
    url, body = house.url + INFER, question(subject.fresh[:1])

    def ask(proof, scheme="DPoP"):
        with house.client(None) as client:
            return client.post(INFER, json=body, headers={"authorization": f"{scheme} {token}", "dpop": proof})

    def refused(proof, fault, scheme="DPoP"):
        answer = ask(proof, scheme)
        return answer.status_code == 401 and f'error="{fault}"' in answer.headers["www-authenticate"]

    challenge = ask(key.proof("POST", url, token))
    assert 'error="use_dpop_nonce"' in challenge.headers["www-authenticate"]
    nonce = challenge.headers["dpop-nonce"]
    proof = key.proof("POST", url, token, nonce=nonce)
    assert ask(proof).status_code == 200
    assert refused(proof, "invalid_dpop_proof")
    assert refused(key.proof("POST", url, token, nonce=nonce), "invalid_token", "Bearer")
    assert refused(key.proof("GET", url, token, nonce=nonce), "invalid_dpop_proof")
    assert refused(key.proof("POST", url + "x", token, nonce=nonce), "invalid_dpop_proof")
    assert refused(DpopKey().proof("POST", url, token, nonce=nonce), "invalid_dpop_proof")
    assert ask(key.proof("POST", url.upper().replace(INFER.upper(), INFER), token, nonce=nonce)).status_code == 200


def test_certificates_speak_for_accounts_and_hold_tokens(house, provider, clients, subject):
    mine, other = clients.issue(uri="spiffe://acme.eu/scoring"), clients.issue(uri="spiffe://acme.eu/other")

    def ask(certificate, token=None):
        context = ssl.create_default_context(cafile=str(house.keep / "tls" / "ca.pem"))
        if certificate:
            context.load_cert_chain(certificate.chain, certificate.key)
        headers = {"authorization": f"Bearer {token}"} if token else {}
        with httpx.Client(base_url=house.url, verify=context, headers=headers, trust_env=False, timeout=20) as client:
            return client.post(INFER, json=question(subject.fresh[:1]))

    assert ask(mine).status_code == 401 and ask(None).status_code == 401
    house.cli("cert", "add", "alice", "uri:spiffe://acme.eu/scoring", code=0)
    wait_for(lambda: ask(mine).status_code == 200, 60)
    assert ask(other).status_code == 401
    house.cli("cert", "remove", "uri:spiffe://acme.eu/scoring", code=0)
    assert ask(mine).status_code == 401
    house.cli("cert", "add", "alice", str(other.chain), code=0)
    wait_for(lambda: ask(other).status_code == 200, 60)

    token = provider.token("shown", certificate=mine.certificate)
    assert ask(mine, token).status_code == 200
    assert ask(other, token).status_code == 401 and ask(None, token).status_code == 401

    key = house.cli("key", "issue", "alice", "--certificate", str(mine.chain), "--json", code=0).json["token"]
    wait_for(lambda: ask(mine, key).status_code == 200, 60)
    assert ask(other, key).status_code == 401 and ask(None, key).status_code == 401

    strangers = Authority(clients.folder / "strangers")
    with pytest.raises(httpx.HTTPError):  # not under client_ca: there is no connection
        ask(strangers.issue(uri="spiffe://acme.eu/scoring"))


def test_the_provider_rotates_its_keys(house, provider, subject):
    old = provider.token()
    assert house.ask(old, subject.fresh[:1]).status_code == 200
    provider.rotate("second")
    fresh = provider.token()
    wait_for(lambda: house.ask(fresh, subject.fresh[:1]).status_code == 200, 60, house.text)
    wait_for(lambda: house.ask(old, subject.fresh[:1]).status_code == 401, 60)  # its key is published no more
    assert "of corp was refused" in house.text() and old not in house.text() and fresh not in house.text()


def test_an_administrator_of_another_issuer_is_known_to_control_and_judged_by_the_policy(house, provider):
    token = provider.token()
    with httpx.Client(base_url=house.control, verify=house.trust, trust_env=False, timeout=20) as client:
        ask = lambda verb: client.post(f"/admin/v1/{verb}", content=b"\x80", headers={"authorization": f"Bearer {token}"})  # noqa: E731
        wait_for(lambda: ask("releases").status_code != 401, 60, house.text)
        assert ask("releases").status_code == 200
        assert ask("user_list").status_code == 403


def test_control_takes_proofs_for_its_own_address(house, provider):
    key = DpopKey()
    token, url = provider.token("bound", key=key), f"{house.control}/admin/v1/releases"
    with httpx.Client(verify=house.trust, trust_env=False, timeout=20) as client:

        def ask(proof, scheme="DPoP"):
            return client.post(url, content=b"\x80", headers={"authorization": f"{scheme} {token}", "dpop": proof})

        wait_for(lambda: "dpop-nonce" in ask(key.proof("POST", url, token)).headers, 60, house.text)
        nonce = ask(key.proof("POST", url, token)).headers["dpop-nonce"]
        assert ask(key.proof("POST", url, token, nonce=nonce)).status_code == 200
        gateways = key.proof("POST", house.url + "/admin/v1/releases", token, nonce=nonce)
        assert ask(gateways).status_code == 401
        assert ask(key.proof("POST", url, token, nonce=nonce), "Bearer").status_code == 401


def test_erasing_somebody_of_another_issuer_forgets_the_name(house, provider, subject):
    token = provider.token()
    assert house.ask(token, subject.fresh[:1]).status_code == 200
    before = user(house, "scoring@corp")["subject"]
    house.cli("log", "erase", "--subject", "scoring@corp", "--forget-account", code=0)
    assert not [row for row in house.cli("user", "list", "--json", code=0).json if row["name"] == "scoring@corp"]
    assert house.ask(token, subject.fresh[:1]).status_code == 200  # and comes back as somebody new
    assert user(house, "scoring@corp")["subject"] != before
