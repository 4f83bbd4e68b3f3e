"""How long a broker that is away is waited for, and what is said meanwhile."""

from __future__ import annotations

import os

from multihost.logs import log
from multihost_common.errors import BrokerLostError, ConfigError

#: Name of the variable with the seconds that a broker may be away; without it, it may for ever.
LOST_VARIABLE = "MULTIHOST_BROKER_LOST_AFTER"

#: Seconds without a broker after which the log says so again.
REMIND = 60.0

#: And before it does for the first time, where there was none to begin with.
FIRST = 5.0


class Patience:
    """Of one connection. Raises ConfigError if ``MULTIHOST_BROKER_LOST_AFTER`` is no number of seconds."""

    def __init__(self) -> None:
        self._lost_after = _lost_after()
        self._remind_at = 0.0
        self._away = False

    def parted(self, address: str, why: str, now: float) -> None:
        """The connection is lost."""
        self._away = True
        log().warning("lost the broker at %s (%s); trying again", address, why)
        self._remind_at = now + REMIND

    def welcomed(self, address: str) -> None:
        """It is there, and if it was away before, that is said."""
        if self._away:
            self._away = False
            log().warning("the broker at %s is back; going on", address)

    def check(self, address: str, since: float, now: float) -> None:
        """It has been away since then. Raises BrokerLostError once that is too long."""
        away = now - since
        if self._lost_after is not None and away > self._lost_after:
            raise BrokerLostError(
                f"lost the broker at {address} for more than {self._lost_after:g} s; run the work again"
            )
        if now >= max(self._remind_at, since + FIRST):
            self._remind_at = now + REMIND
            log().warning("no broker answers at %s for %.0f s; still trying", address, away)


def _lost_after() -> float | None:
    text = os.environ.get(LOST_VARIABLE, "")
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not seconds > 0:
        raise ConfigError(f"{LOST_VARIABLE} is {text!r}; set it to a positive number of seconds")
    return seconds
