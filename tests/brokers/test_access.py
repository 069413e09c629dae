"""On Redis, a user with no more rights than the documentation names."""

from __future__ import annotations

import re

import psutil
from redis import Redis

from tests.support.apps import Servers
from tests.support.places import ROOT
from tests.support.servers import Server
from tests.support.waiting import values_of, wait_until

APP = "tests.brokers.together_app"
PAGE = ROOT / "docs/concepts/at-least-once.md"


def rights():
    """The rules of the user in the page's ACL SETUSER."""
    (rules,) = re.findall(r"ACL SETUSER celery on >PASSWORD (.*?)```", PAGE.read_text(), re.S)
    return rules.replace("\\\n", " ").split()


def denied(redis):
    return [(entry["object"], entry["client-info"]) for entry in redis.acl_log()]


def hang_up(redis):
    """Close the connections of all processes but this one."""
    own = {str(connection.laddr.port) for connection in psutil.Process().net_connections()}
    for client in redis.client_list():
        if client["addr"].rpartition(":")[2] not in own:
            redis.client_kill_filter(_id=client["id"])


def test_the_rights_in_the_documentation_are_enough(tmp_path, load_app, worker):
    """Calls, priorities, ETA, keys, results, remote control, a reconnect and a stop."""
    server = Server(tmp_path)
    redis = Redis(port=server.port, decode_responses=True)
    redis.execute_command("ACL", "SETUSER", "celery", "on", ">secret", *rights())
    url = server.url.replace("redis://", "redis://celery:secret@")
    servers = Servers(broker=url, backend=url)
    environment = {"PRIORITIES": "1", "AGING": "0.5", "VISIBLE": "10"}
    module = load_app(APP, **servers.environment, **environment)
    running = worker(APP, "-c", "8", servers=servers, env=environment)

    occupy, app = module.occupy, module.app
    sent = [
        occupy.apply_async((0.1,), queue="critic", priority=priority)
        for priority in ("low", "normal", "high") * 4
    ]
    sent += [occupy.apply_async((0.0,), countdown=1) for _ in range(4)]
    sent += [occupy.apply_async((0.5,), idempotency_key="same") for _ in range(2)]
    values_of(sent, timeout=30, detail=running.tail)
    assert app.control.ping(timeout=5, limit=1)
    assert module.budgets.memory(timeout=2)
    assert module.budgets.why(sent[0].id).cause == "ended"
    long = occupy.delay(3)
    running.wait_active(1)
    hang_up(redis)
    long.get(timeout=30)
    wait_until(lambda: app.control.ping(timeout=1, limit=1), "it answers again", timeout=30)
    late = occupy.apply_async((0.0,), countdown=60)
    wait_until(lambda: redis.hlen("unacked") == 1, "it has what is not due")
    app.control.revoke(late.id)
    assert running.stop() == 0
    assert not denied(redis)
    assert "refused" not in running.log
    redis.close()
    server.end()
