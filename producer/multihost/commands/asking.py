"""Questions to a broker, and to the worker of this host. Without click: ``multihost health`` has to be cheap."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

from multihost_common.errors import BrokerLostError, HandshakeError, JobError

if TYPE_CHECKING:
    from multihost_common.wire import Dealer

DEFAULT_BROKER = "tcp://127.0.0.1:5555"

#: Seconds a broker may take to answer.
TIMEOUT = 5.0

#: Seconds since a worker's last sign of life, which it gives every second.
STALE = 10.0


def check(
    address: str = "",
    worker: bool = False,
    token_file: str | None = None,
    keys: str | None = None,
    timeout: float = TIMEOUT,
) -> None:
    """Say ``ok`` if the broker (or the worker of this host) is well. Raises MultihostError if it is not."""
    if worker:
        _check_workers()
    else:
        ask(address or os.environ.get("MULTIHOST_BROKER") or DEFAULT_BROKER, "", token_file, keys, timeout)
    print("ok")


def _check_workers() -> None:
    from multihost_worker.privatedir import states

    found = states()
    if not found:
        raise BrokerLostError("no worker of this user runs on this host; start one with 'multihost worker'")
    for state in found:
        if time.monotonic() - state["at"] > STALE:
            raise BrokerLostError(f"the worker with pid {state.get('pid')} does not respond; restart it")
        if not state["registered"]:
            raise BrokerLostError(f"the worker with pid {state['pid']} is not registered with a broker")


def ask(
    address: str,
    what: str,
    token_file: str | None = None,
    keys: str | None = None,
    timeout: float = TIMEOUT,
    about: str = "",
) -> dict[str, Any]:
    """The broker's answer to ``what``, over its real socket; just its welcome if ``what`` is empty. ``about``: what an
    order is for.

    Raises JobError for an order that is not carried out, and otherwise MultihostError.
    """
    from multihost_common.keys import find_token
    from multihost_common.messages import ADMIN, PRODUCER, WORKER, Ask, Bye
    from multihost_common.wire import Dealer

    deadline = time.monotonic() + timeout
    # A worker's token opens no questions, but being welcomed at all is answer enough for some.
    roles = (ADMIN, PRODUCER) if what else (ADMIN, PRODUCER, WORKER)
    dealer = Dealer(address, find_token(*roles, token_file=token_file, keys=keys))
    try:
        dealer.handshake(_hello(), timeout)
        if not what:
            dealer.send(Bye())
            return {}
        dealer.send(Ask(what, about))
        return _answer(dealer, deadline)
    finally:
        dealer.close()


def _hello() -> Any:
    from multihost_common.messages import ADMIN, PROTOCOL_VERSION, Hello

    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return Hello(ADMIN, PROTOCOL_VERSION, python, 5, os.uname().nodename, os.getpid(), 0, "command line")


def _answer(dealer: Dealer, deadline: float) -> dict[str, Any]:
    from multihost_common.messages import Answer, Bye, Refused
    from multihost_common.waiter import milliseconds

    while dealer.socket.poll(milliseconds(deadline - time.monotonic())):
        for message in dealer.receive():
            if isinstance(message, Answer):
                import json

                answer: dict[str, Any] = json.loads(bytes(message.frames[0]))
                dealer.send(Bye())
                return answer
            if isinstance(message, Refused):
                # A token of another role, or a broker that does not know the question.
                unsuited = message.reason in ("E_ROLE", "E_HELLO", "E_VERSION")
                raise (HandshakeError if unsuited else JobError)(message.text)
    raise BrokerLostError(f"the broker at {dealer.address} does not answer; see its log")


def key_and_item(about: str) -> tuple[str, int | None]:
    """The beginning of a key, and an item of that job if there is one, from ``KEY`` or ``KEY:ITEM``. Raises JobError."""
    key, colon, item = about.lower().partition(":")
    if not 4 <= len(key) <= 32 or not set(key) <= set("0123456789abcdef") or (colon and not item.isdecimal()):
        raise JobError(
            f"{about!r} is no key of a job: write 4 to 32 hexadecimal digits, as 'multihost jobs' does"
        )
    return key, int(item) if item else None


def find_job(
    address: str, about: str, token_file: str | None = None, keys: str | None = None
) -> dict[str, Any]:
    """What the broker tells of the job whose key is, or begins with, ``about``. Raises JobError unless there is one."""
    key, item = key_and_item(about)
    if item is not None:
        raise JobError(f"{about!r} names an item; the key of the job is wanted")
    found: list[dict[str, Any]] = [
        job for job in ask(address, "jobs", token_file, keys)["jobs"] if job["key"].startswith(key)
    ]
    if len(found) != 1:
        what = "there is no job" if not found else f"{len(found)} jobs have a key"
        raise JobError(f"{what} that begins with {key}; 'multihost jobs' lists them all")
    return found[0]
