"""What is renewed, and how it is found that a delivery is another's: without a server."""

from __future__ import annotations

import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest

from celery_budgets.shared_state.system_thread import SystemThread
from celery_budgets.worker.transport.renewing.fleet import HEARD_AFTER, MINDED, PATIENCE, Fleet
from celery_budgets.worker.transport.renewing.in_hand import ARRIVED
from celery_budgets.worker.transport.renewing.renewal import Renewal
from celery_budgets.worker.transport.renewing.sweeping import EVERY, Sweeping

TIMEOUT = 30.0


class Bench:
    """A renewal, its clock, the index in Redis, and what the worker has in hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.index: dict[str, float] = {}
        self.in_hand: dict[str, object] = {}
        self.told: list[object] = []
        self.away: Exception | None = None
        self.lost_reply = False
        self.fetches_as: int | None = None
        #: By holder, tags whose delivery the worker has not read.
        self.unread: dict[int, list[str]] = {}
        self.renewal = Renewal(
            TIMEOUT, lambda: self.in_hand, self.told.append,
            fetches_as=lambda: self.fetches_as, clock=lambda: self.now,
        )  # fmt: skip
        self.renewal._index = self

    def scores(self, tags):
        if self.away is not None:
            raise self.away
        return [self.index.get(tag) for tag in tags]

    def renew(self, tags, score):
        self.index.update((tag, score) for tag in tags if tag in self.index)
        if self.lost_reply:
            raise TimeoutError("no reply")

    def held_by(self, holder, before):
        return [tag for tag in self.unread.get(holder, ()) if self.index[tag] <= before]

    def close(self):
        pass

    def deliver(self, tag):
        self.index[tag], self.in_hand[tag] = self.now, object()

    def pass_by(self, seconds=10.0):
        self.now += seconds
        return self.renewal.tick()


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.deliver("a")
    made.pass_by(1)
    return made


def test_all_in_hand_is_renewed_every_third_of_the_timeout(bench):
    bench.deliver("b")
    assert bench.pass_by() == TIMEOUT / 3
    assert bench.index == {"a": bench.now, "b": bench.now}


def test_what_is_fetched_and_not_read_is_renewed(bench):
    """Before it is as old as the timeout, and not what another worker has been sent."""
    bench.fetches_as, bench.unread = 7, {7: ["late"], 8: ["another's"]}
    bench.index |= {"late": bench.now, "another's": bench.now}
    began = bench.now
    for _ in range(10):
        bench.pass_by()
        assert bench.now - bench.index["late"] < TIMEOUT * 2 / 3
    assert bench.index["another's"] == began
    bench.fetches_as, bench.in_hand["late"] = None, object()
    bench.pass_by()
    bench.pass_by(0.2)
    assert bench.told == []


def test_a_long_timeout_is_renewed_often_all_the_same():
    """Another worker, which sweeps as well, may have a shorter one."""
    assert Renewal(3600, dict, lambda message: None).period == 20


def test_what_is_acknowledged_at_that_moment_is_not_told_of(bench):
    """Redis knows it before kombu says so."""
    del bench.index["a"]
    assert bench.pass_by() == 1.0  # looks again soon
    del bench.in_hand["a"]
    bench.pass_by(1)
    assert (bench.told, bench.index) == ([], {})


def test_what_was_handed_out_again_and_waits_is_told_of_once(bench):
    del bench.index["a"]
    for _ in range(4):
        bench.pass_by(1)
    assert bench.told == [bench.in_hand["a"]]
    assert bench.index == {}


def test_what_another_worker_has_taken_is_told_of_and_left_alone(bench):
    """The index has it, with a time that we have not written."""
    bench.index["a"] = bench.now + 40
    bench.pass_by(60)
    bench.pass_by(1)
    assert bench.told == [bench.in_hand["a"]]
    before = dict(bench.index)
    bench.pass_by()
    assert bench.index == before


def test_what_is_delivered_to_this_worker_anew_is_its_own(bench):
    """It came back here: by the lane's queue, under the tag that it had."""
    bench.now += 60
    bench.deliver("a")
    for _ in range(3):
        bench.pass_by(1)
    assert bench.told == []
    assert bench.index == {"a": bench.now}


def test_a_delivery_from_just_before_the_worker_stood_still(bench):
    """Never renewed yet: its time cannot be ours where nothing of this process ran then."""
    bench.deliver("mine")
    bench.deliver("theirs")
    bench.index["theirs"] = bench.now + 50  # another has taken it while we stood still
    bench.now += 100
    bench.deliver("fresh")
    bench.pass_by(0.1)
    bench.pass_by(1)
    assert bench.told == [bench.in_hand["theirs"]]


def test_what_has_arrived_and_was_not_handed_to_the_worker_yet(bench):
    """It is renewed, and told of only once it is a message: then it is known what it is."""
    bench.in_hand["b"], bench.index["b"] = ARRIVED, bench.now
    bench.pass_by()
    assert bench.index["b"] == bench.now
    bench.index["b"] += 40
    for _ in range(3):
        bench.pass_by(60)
    assert bench.told == []
    bench.in_hand["b"] = object()
    bench.pass_by(1)
    bench.pass_by(1)
    assert bench.told == [bench.in_hand["b"]]


def test_a_reply_that_is_lost_is_no_theft(bench):
    """The server may have taken the renewal whose answer never came."""
    bench.lost_reply = True
    bench.pass_by()
    bench.lost_reply = False
    for _ in range(3):
        bench.pass_by(1)
    assert bench.told == []


def test_an_outage_is_logged_once_and_survived(bench, caplog):
    caplog.set_level("INFO", logger="celery_budgets")
    bench.away = ConnectionError("refused")
    assert [bench.pass_by(1) for _ in range(3)] == [1.0, 1.0, 1.0]
    assert not bench.renewal.is_steady()
    bench.away = None
    bench.pass_by(1)
    said = [record.getMessage().split(":")[0] for record in caplog.records]
    assert said == ["budgets.renewal_failed", "budgets.renewal_back"]
    assert not bench.renewal.is_steady(), "others may not have renewed yet"
    bench.pass_by(11)
    assert bench.renewal.is_steady()


def test_a_server_that_always_refuses_does_not_keep_messages_for_ever(bench):
    """Then it is as without renewals: what is old is handed out again."""
    bench.away = PermissionError("NOPERM")
    bench.pass_by(1)
    assert not bench.renewal.is_steady()
    bench.pass_by(TIMEOUT + 1)
    assert bench.renewal.is_steady()


def test_the_thread_stops_when_it_is_told():
    """At once, and also where it was told before it began."""
    began, ended = threading.Event(), threading.Event()

    def run(thread):
        began.set()
        assert thread.wait(60)
        ended.set()

    thread = SystemThread(run)
    thread.start()
    assert began.wait(10)
    thread.stop()
    thread.stop()
    assert ended.wait(10)


PROGRAM = """
import time
from celery_budgets.shared_state.system_thread import SystemThread

def run(thread):
    thread.wait(60)
    time.sleep(0.3)
    print("over", flush=True)

SystemThread(run).start()
"""


def test_the_thread_ends_before_its_process_does():
    """Also where nobody has told it to, such as on a way out that Celery's steps do not see."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout == "over\n"


class Sweeps:
    def __init__(self, **options) -> None:
        self.now, self.may, self.looks = 0.0, True, []
        sweeping = Sweeping(lambda: self.may, options, clock=lambda: self.now)
        self.channel = SimpleNamespace()
        self.qos = SimpleNamespace(
            channel=self.channel, restore_visible=lambda **how: self.looks.append(how)
        )
        sweeping.join(self.qos)

    def look(self, at):
        self.now = at
        self.qos.restore_visible(num=None, interval=10)


def test_a_worker_sweeps_at_its_start_and_every_ten_seconds():
    sweeps = Sweeps()
    for at in (0, 1, 5, EVERY, EVERY + 1, 2 * EVERY - 0.01):
        sweeps.look(at)
    assert sweeps.looks == [{"num": None, "interval": 1}] * 3
    assert sweeps.channel.unacked_mutex_expire == 30


def test_a_program_says_itself_how_often_it_sweeps():
    sweeps = Sweeps(unacked_restore_throttle=3, unacked_mutex_expire=60)
    for at in (0, 1):
        sweeps.look(at)
    assert sweeps.looks == [{"num": None, "interval": 10}] * 2
    assert not hasattr(sweeps.channel, "unacked_mutex_expire")


def test_a_worker_does_not_sweep_where_others_do_not_renew():
    sweeps = Sweeps()
    sweeps.may = False
    sweeps.look(0)
    assert sweeps.looks == []
    sweeps.may = True
    sweeps.look(1)
    assert len(sweeps.looks) == 1


@pytest.fixture
def fleet(monkeypatch):
    made = Fleet("me@h", clock=lambda: made.now)
    made.now = 0.0
    return made


def named(name):
    return SimpleNamespace(hostname=name)


def test_a_worker_that_does_not_say_that_it_renews_is_noticed(fleet, caplog):
    caplog.set_level("INFO", logger="celery_budgets")
    fleet.join(named("old@h"))
    fleet.join(named("new@h"))
    fleet._compare({"new@h"}, PATIENCE)
    assert fleet.others == ()
    fleet._compare({"new@h"}, PATIENCE + 1)
    fleet._compare({"new@h"}, PATIENCE + 2)
    assert fleet.others == ("old@h",)
    fleet.leave(named("old@h"))
    fleet._compare({"new@h"}, PATIENCE + 3)
    assert fleet.others == ()
    said = [record.getMessage().split(":")[0] for record in caplog.records]
    assert said == ["budgets.not_renewing workers=old@h", "budgets.all_renew"]


def test_one_that_is_lost_without_a_word_is_minded_for_an_hour(fleet):
    """It may be busy, and its calls are its own for as long as its visibility timeout."""
    fleet.join(named("old@h"))
    fleet.lose(named("old@h"))
    fleet._compare((), MINDED)
    assert fleet.others == ("old@h",)
    fleet._compare((), MINDED + 1)
    assert fleet.others == ()


class Index:
    """A server that has heard of nobody."""

    prefix = ""

    def __init__(self) -> None:
        self.client = self

    def pipeline(self, transaction):
        raise PermissionError("NOPERM")


def test_who_is_there_is_known_after_a_while(fleet):
    """Before, nothing is handed out: a worker that does not renew may have it."""
    assert fleet.is_known, "nobody would tell"
    joined = SimpleNamespace(node_join=set(), node_leave=set(), node_lost=set())
    fleet.listen(SimpleNamespace(enabled=False, on=joined))
    assert fleet.is_known
    fleet.listen(SimpleNamespace(enabled=True, on=joined))
    assert not fleet.is_known
    for fleet.now, known in ((HEARD_AFTER - 1, False), (HEARD_AFTER, True)):
        with pytest.raises(PermissionError):
            fleet.look(Index())
        assert fleet.is_known is known
    fleet.listen(SimpleNamespace(enabled=True, on=joined))  # after a reconnect
    assert fleet.is_known


def test_one_that_renewed_and_died_is_not_minded(fleet):
    """Its calls are to start elsewhere, although it says no more that it renews."""
    fleet.join(named("w@h"))
    fleet._compare({"w@h"}, 1)
    fleet.lose(named("w@h"))
    fleet._compare((), PATIENCE + 100)
    assert fleet.others == ()
    fleet.now = 200
    fleet.join(named("w@h"))  # and is there again, as a plain one
    fleet._compare((), 200 + PATIENCE + 1)
    assert fleet.others == ("w@h",)


def test_one_that_is_replaced_under_its_name_is_minded_no_more(fleet):
    fleet.join(named("w@h"))
    fleet._compare((), PATIENCE + 1)
    assert fleet.others == ("w@h",)
    fleet._compare({"w@h"}, PATIENCE + 2)
    assert fleet.others == ()
