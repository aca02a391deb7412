"""Policies in force, as several threads of one process see them."""

import threading

from modelkeep.core.values import Principal, Role
from modelkeep.ledger.predicates import Policy
from modelkeep.policy.engine import Engine
from modelkeep.workflows.policies import AccessInForce, AdmissionInForce

ANNA = Principal("anna", "sub_1", (Role.ADMIN,), "key:1")


class Book:
    """What the log says is in force; whoever looks can be stopped after he has seen it."""

    def __init__(self, name, text="", kind="access"):
        self.policies = self
        self.said = Policy(actor="a", at=1, kind=kind, name=name, text=text, replaces=-1, id=name)
        self.index = 0

    def in_force(self, _kind):
        return self


class SlowEngine(Engine):
    """An engine whose first load waits until somebody else has loaded, or a moment."""

    def __init__(self):
        super().__init__()
        self.loading, self.loaded = threading.Event(), threading.Event()

    def load(self, policies):
        if not self.loading.is_set():
            self.loading.set()
            self.loaded.wait(0.3)
        super().load(policies)
        self.loaded.set()


def test_a_slow_thread_does_not_put_an_older_policy_in_force():
    policies = AccessInForce(SlowEngine())
    older = Book("custom", '@id("all") permit (principal, action, resource);')
    newer = Book("extended", '@id("none") forbid (principal, action, resource);')
    slow = threading.Thread(target=policies.follow, args=(older,))
    slow.start()
    policies.engine.loading.wait()
    policies.follow(newer)
    slow.join()
    assert not policies.engine.decide(ANNA, "list").allowed


def test_each_look_gets_the_policy_of_its_own_book():
    policies, strict = AdmissionInForce("standard"), Book("strict", kind="admission")
    assert policies.of(strict).name == "strict"
    assert policies.of(Book("open", kind="admission")).name == "open"
    assert policies.of(strict).name == "strict"
