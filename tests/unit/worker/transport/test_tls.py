"""Our channel, and what renews its deliveries, by TLS with a certificate of the program's own."""

from __future__ import annotations

from urllib.parse import urlsplit

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from celery_budgets.worker.transport.renewing.unacked_index import UnackedIndex
from tests.support.tls import behind_tls, certificate
from tests.unit.worker.transport.test_fetching import consuming, send


@pytest.fixture
def secured(redis_url, tmp_path):
    """The address by TLS, without the file that vouches for it, and that file."""
    made, key = certificate(tmp_path)
    parts = urlsplit(redis_url)
    with behind_tls(parts.port, made, key) as port:
        address = f"rediss://{parts.netloc.rpartition('@')[0]}@127.0.0.1:{port}{parts.path}"
        yield address + "?ssl_cert_reqs=CERT_REQUIRED", made


def test_messages_come_are_renewed_and_settled_by_tls(secured, redis_url):
    address, made = secured
    with (
        consuming(f"{address}&ssl_ca_certs={made}", prefetch=2) as consumed,
        Redis.from_url(redis_url) as redis,
    ):
        consumed.drain()
        for number in range(3):
            send(redis_url, [number])
            consumed.wait_for(1)
            (message,) = consumed.messages
            assert message.payload == number
            index = UnackedIndex(consumed.channel, 5)
            index.renew([message.delivery_tag], 12.0)
            assert redis.zscore("unacked_index", message.delivery_tag) == 12.0
            index.renew([message.delivery_tag], consumed.leftovers.holder.time())
            index.close()
            consumed.messages.pop().ack()
        assert not redis.exists("unacked", "unacked_index", "lane")


def test_a_server_that_nobody_vouches_for_is_not_trusted(secured):
    with (
        pytest.raises(RedisConnectionError, match="CERTIFICATE_VERIFY_FAILED"),
        consuming(secured[0]),
    ):
        pass
