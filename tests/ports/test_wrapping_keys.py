"""One contract suite for every ``WrappingKeys``: ring file, PKCS #11 (SoftHSM2, live), Vault (a fake), AWS (moto), a keep."""

import threading
import time
import traceback
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from key_providers import DAY_NS, PROVIDERS, SHORT

from modelkeep.container.recipients import Binding, KmsRecipient, encode_recipients, unlock
from modelkeep.core.values import digest_of
from modelkeep.errors import Conflict, Denied, Invalid, Missing, ModelkeepError, NotTrusted, Unavailable

KEY, CONTEXT = bytes(range(32)), b"a context of one file"


def those(what):
    """The providers of which ``what`` is true."""
    return pytest.mark.parametrize("started", [name for name, each in PROVIDERS.items() if getattr(each, what)], indirect=True)


@pytest.fixture(scope="module", params=PROVIDERS)
def started(request, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        made = PROVIDERS[request.param](tmp_path_factory.mktemp("keys"), patch)
        yield made
        made.close()


@pytest.fixture
def provider(started):
    started.begin()
    return started


@pytest.fixture
def keys(provider):
    found = provider.open()
    if provider.creates:
        found.create()
    return found


def states(keys):
    return [info.state for info in keys.versions()]


def retired(keys, version=1):
    """The key with ``version`` disabled and a newer primary."""
    keys.rotate()
    keys.disable(version)
    return keys


# -- what is wrapped opens, under its version, for its context --


def test_what_is_wrapped_opens(keys):
    wrapper = keys.wrapper()
    wrapped = wrapper.wrap(KEY, CONTEXT)
    assert wrapper.unwrap(wrapped, CONTEXT) == KEY
    assert KEY not in wrapped
    assert wrapper.wrap(KEY, CONTEXT) != wrapped


def test_another_handle_opens_it_by_its_key_id(keys, provider):
    wrapper = keys.wrapper()
    wrapped = wrapper.wrap(KEY, CONTEXT)
    found = provider.open().opens(wrapper.key_id)
    assert found is not None
    assert found.key_id == wrapper.key_id
    assert found.unwrap(wrapped, CONTEXT) == KEY


def test_a_key_id_is_the_uri_without_query_and_the_version(keys, provider):
    key_id = keys.wrapper().key_id
    assert key_id.endswith("/1")
    assert "?" not in key_id
    if provider.name in ("vault", "aws", "keep"):
        assert key_id == f"{keys.uri}/1"
    if provider.name == "pkcs11":
        assert key_id == keys.uri.partition("?")[0] + "/1"


def test_key_ids_of_others_are_not_ours(keys):
    others = ("file:other/1", "vault:transit/other/1", "aws-kms:alias/other/1", "pkcs11:token=x;object=kek-1/1")
    for key_id in ("", "/1", "kek", *others):
        assert keys.opens(key_id) is None


def test_key_ids_that_only_resemble_ours_are_not_ours(keys):
    ours = keys.wrapper().key_id
    for key_id in (ours + "x", ours[:-1], ours[:-2], ours[:-1] + "01", ours[:-1] + "0", ours[:-1] + "9" * 5000, ours + "/1"):
        assert keys.opens(key_id) is None
    with pytest.raises(Missing):
        keys.opens(ours[:-1] + "7")


def test_another_context_does_not_open_it(keys):
    wrapper = keys.wrapper()
    wrapped = wrapper.wrap(KEY, CONTEXT)
    for context in (b"", b"a context of one filf", CONTEXT + b"\0", CONTEXT[:-1], bytes(1000)):
        with pytest.raises(NotTrusted):
            wrapper.unwrap(wrapped, context)


def test_an_empty_context_is_a_context(keys):
    wrapped = keys.wrapper().wrap(KEY, b"")
    assert keys.wrapper().unwrap(wrapped, b"") == KEY
    with pytest.raises(NotTrusted):
        keys.wrapper().unwrap(wrapped, b"\0")


def test_only_keys_of_32_bytes_are_wrapped(keys):
    wrapper = keys.wrapper()
    for size in (0, 16, 31, 33, 64):
        with pytest.raises(Invalid, match="32"):
            wrapper.wrap(bytes(size), CONTEXT)


def test_what_was_never_wrapped_does_not_open(keys):
    wrapper = keys.wrapper()
    for wrapped in (b"", b"x", bytes(60), bytes(112), bytes(100_000), b"vault:v1:AAAA", "vault:v1:ä".encode()):
        with pytest.raises(NotTrusted):
            wrapper.unwrap(wrapped, CONTEXT)


def test_altered_bytes_do_not_open(keys):
    wrapper = keys.wrapper()
    wrapped = wrapper.wrap(KEY, CONTEXT)

    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def attack(data):
        altered = bytearray(wrapped)
        for _ in range(data.draw(st.integers(1, 3))):
            altered[data.draw(st.integers(0, len(wrapped) - 1))] ^= data.draw(st.integers(1, 255))
        cut = bytes(altered)[: data.draw(st.sampled_from([None, None, -1, 8]))]
        if cut != wrapped:
            with pytest.raises(NotTrusted):
                wrapper.unwrap(cut, CONTEXT)

    attack()
    with pytest.raises(NotTrusted):
        wrapper.unwrap(wrapped + b"\0", CONTEXT)


def test_a_key_of_another_name_does_not_open_it(keys, provider):
    other = provider.open("other")
    if provider.creates:
        other.create()
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    with pytest.raises(NotTrusted):
        other.wrapper().unwrap(wrapped, CONTEXT)
    assert other.opens(keys.wrapper().key_id) is None


def test_it_serves_as_a_recipient_of_a_sealed_file(keys):
    binding = Binding(bytes(32), digest_of(b"source"), "test")
    block = encode_recipients([KmsRecipient(keys.wrapper()).stanza(KEY, binding.context())], KEY, binding)
    keys.rotate()
    old = keys.wrapper(1)
    assert unlock(block, bytes(32), [KmsRecipient(keys.wrapper()), KmsRecipient(old)], purpose="test") == KEY


# -- versions and their states --


@those("creates")
def test_nothing_is_there_before_it_is_created(provider):
    keys = provider.open()
    for use in (keys.versions, keys.wrapper, keys.rotate, lambda: keys.disable(1), lambda: keys.destroy(1, grace_days=0)):
        with pytest.raises(Missing):
            use()
    made = keys.create()
    assert keys.wrapper().key_id == made.key_id
    with pytest.raises(Conflict):
        provider.open().create()
    assert states(keys) == ["primary"]


def test_a_version_says_when_it_was_made(keys, provider):
    (info,) = keys.versions()
    assert info.version == 1
    assert info.due == 0
    if provider.creates:
        assert abs(time.time_ns() - info.created) < 120 * 10**9


def test_rotation_keeps_the_old_version_for_opening_only(keys, provider):
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    new = keys.rotate()
    assert states(keys) == ["decrypt-only", "primary"]
    assert keys.wrapper().key_id == new.key_id
    assert new.key_id.endswith("/2")
    assert keys.wrapper(1).unwrap(wrapped, CONTEXT) == KEY
    with pytest.raises(Denied):
        keys.wrapper(1).wrap(KEY, CONTEXT)
    with pytest.raises(NotTrusted):
        new.unwrap(wrapped, CONTEXT)
    with pytest.raises(NotTrusted):
        keys.wrapper(1).unwrap(new.wrap(KEY, CONTEXT), CONTEXT)


@those("live")
def test_a_wrapper_in_hand_wraps_no_more_once_another_handle_rotated(keys, provider):
    held = keys.wrapper()
    held.wrap(KEY, CONTEXT)
    provider.open().rotate()
    time.sleep(provider.lag)
    with pytest.raises(Denied):
        held.wrap(KEY, CONTEXT)


def test_a_disabled_version_opens_nothing_until_it_is_enabled(keys):
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    info = retired(keys).versions()[0]
    assert (info.version, info.state) == (1, "disabled")
    with pytest.raises(Denied):
        keys.wrapper(1).unwrap(wrapped, CONTEXT)
    assert keys.enable(1).state == "decrypt-only"
    assert keys.wrapper(1).unwrap(wrapped, CONTEXT) == KEY


@those("live")
def test_a_wrapper_in_hand_opens_nothing_once_another_handle_disabled_it(keys, provider):
    held = keys.wrapper()
    wrapped = held.wrap(KEY, CONTEXT)
    retired(provider.open())
    time.sleep(provider.lag)
    with pytest.raises(Denied):
        held.unwrap(wrapped, CONTEXT)


def test_a_pending_destruction_opens_nothing_and_can_be_taken_back(keys):
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    retired(keys)
    before = time.time_ns()
    info = keys.destroy(1, grace_days=20)
    assert info.state == "pending-destruction"
    assert info == keys.versions()[0]
    assert abs(info.due - before - 20 * DAY_NS) < 120 * 10**9
    with pytest.raises(Denied):
        keys.wrapper(1).unwrap(wrapped, CONTEXT)
    with pytest.raises(Conflict):
        keys.enable(1)
    with pytest.raises(Conflict):
        keys.destroy(1, grace_days=20)
    assert keys.cancel(1).state == "disabled"
    assert keys.versions()[0].due == 0
    keys.enable(1)
    assert keys.wrapper(1).unwrap(wrapped, CONTEXT) == KEY


def test_a_version_is_destroyed_when_it_is_due(keys, provider):
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    retired(keys).destroy(1, grace_days=7)
    provider.when_due(7)
    if provider.name == "aws":  # it does so by itself
        time.sleep(provider.lag)
    else:
        assert states(keys)[0] == "pending-destruction"
        assert keys.destroy(1, grace_days=7).state == "destroyed"
    gone_for_good(keys, provider, wrapped)


def test_a_version_is_destroyed_at_once_where_the_provider_can(keys, provider):
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    info = retired(keys).destroy(1, grace_days=0)
    if provider.shortest_days:
        assert info.state == "pending-destruction"
        assert abs(info.due - time.time_ns() - provider.shortest_days * DAY_NS) < 120 * 10**9
    else:
        assert info.state == "destroyed"
        gone_for_good(keys, provider, wrapped)


def test_a_pending_destruction_is_not_waited_for_when_no_grace_is_asked_for(keys, provider):
    wrapped = keys.wrapper().wrap(KEY, CONTEXT)
    retired(keys).destroy(1, grace_days=20)
    if provider.shortest_days:
        with pytest.raises(Conflict):
            keys.destroy(1, grace_days=0)
    else:
        assert keys.destroy(1, grace_days=0).state == "destroyed"
        gone_for_good(keys, provider, wrapped)


def gone_for_good(keys, provider, wrapped):
    assert states(keys) == ["destroyed", "primary"]
    for handle in (keys, provider.open()):
        with pytest.raises(Denied):
            handle.wrapper(1).unwrap(wrapped, CONTEXT)
        with pytest.raises(Denied):
            handle.wrapper(1).wrap(KEY, CONTEXT)
    for use in (keys.disable, keys.enable, keys.cancel):
        with pytest.raises(Conflict):
            use(1)
    assert keys.rotate().key_id.endswith("/3")
    assert states(keys) == ["destroyed", "decrypt-only", "primary"]


def test_moves_that_the_table_does_not_have(keys):
    for use in (keys.disable, keys.enable, keys.cancel, lambda version: keys.destroy(version, grace_days=7)):
        with pytest.raises(Conflict):
            use(1)  # the primary
        with pytest.raises(Missing):
            use(9)
    with pytest.raises(Missing):
        keys.wrapper(9)
    keys.rotate()
    for use in (keys.enable, keys.cancel, lambda version: keys.destroy(version, grace_days=7)):
        with pytest.raises(Conflict):
            use(1)  # decrypt-only
    assert states(keys) == ["decrypt-only", "primary"]


def test_grace_out_of_bounds(keys):
    retired(keys)
    for days in (-1, 10**6):
        with pytest.raises(Invalid):
            keys.destroy(1, grace_days=days)
    assert states(keys)[0] == "disabled"


# -- when the provider fails --


def test_a_provider_that_is_away_is_unavailable_and_comes_back(keys, provider):
    wrapper = keys.wrapper()
    wrapped = wrapper.wrap(KEY, CONTEXT)
    with provider.away():
        if provider.live:
            for use in (lambda: wrapper.unwrap(wrapped, CONTEXT), lambda: wrapper.wrap(KEY, CONTEXT)):
                with pytest.raises(Unavailable):
                    use()
        with pytest.raises((Unavailable, Missing) if provider.name in ("ring", "keep") else Unavailable):
            keys.rotate()
    assert keys.wrapper(1).unwrap(wrapped, CONTEXT) == KEY
    assert states(keys) == ["primary"]


@those("slow")
def test_a_provider_that_hangs_is_unavailable_in_the_time_it_has(keys, provider):
    hasty = provider.open(timeout=SHORT)
    wrapper = hasty.wrapper()
    wrapped = wrapper.wrap(KEY, CONTEXT)
    with provider.hanging():
        for use in (hasty.rotate, *([] if provider.name == "ring" else [lambda: wrapper.unwrap(wrapped, CONTEXT)])):
            with pytest.raises(Unavailable, match=r"within|for over"):
                use()
    for _ in range(600):  # what hung may still have to end
        try:
            assert wrapper.unwrap(wrapped, CONTEXT) == KEY
            break
        except Unavailable:
            time.sleep(0.05)
    else:
        pytest.fail("it did not come back")


def test_threads_share_one_handle(keys):
    wrapper = keys.wrapper()
    start = threading.Barrier(4)

    def work(number):
        start.wait()
        for turn in range(5):
            key = bytes([number, turn]) * 16
            context = b"%d/%d" % (number, turn)
            assert wrapper.unwrap(wrapper.wrap(key, context), context) == key

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))


def test_unwrapping_goes_on_while_the_key_is_rotated(keys):
    wrapper = keys.wrapper()
    wrapped = wrapper.wrap(KEY, CONTEXT)
    done = threading.Event()

    def read():
        count = 0
        while not done.is_set() or count < 3:
            assert keys.wrapper(1).unwrap(wrapped, CONTEXT) == KEY
            count += 1

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        for _ in range(2):
            keys.rotate()
        done.set()
        for reader in readers:
            reader.result()
    assert states(keys) == ["decrypt-only", "decrypt-only", "primary"]


def test_no_secret_is_ever_shown(keys, provider):
    wrapper = keys.wrapper()
    wrapped = wrapper.wrap(KEY, CONTEXT)
    shown = [show(thing) for thing in (keys, wrapper, keys.versions()) for show in (repr, str)]
    failures = [
        lambda: wrapper.unwrap(wrapped, b"other"),
        lambda: wrapper.unwrap(bytes(60), CONTEXT),
        lambda: wrapper.wrap(KEY[:31], CONTEXT),
        lambda: keys.disable(1),
        lambda: keys.wrapper(9),
        keys.create,
    ]
    shown += [failure(fail) for fail in failures]
    with provider.away():
        shown.append(failure(keys.rotate))
    for secret in (*provider.secrets, KEY.hex(), repr(KEY)[2:-1], wrapped.hex()):
        assert not any(secret in text for text in shown)


def failure(use):
    with pytest.raises(ModelkeepError) as raised:
        use()
    return "".join(traceback.format_exception(raised.value)) + repr(raised.value)
