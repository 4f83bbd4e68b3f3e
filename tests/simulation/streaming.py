"""Clients whose numbered messages arrive once and in order, as :mod:`multihost_common.session` has it."""

from __future__ import annotations

from collections import deque
from typing import Any

from multihost_common import messages as m
from multihost_common.stream import STREAMED, Stream

from .parties import Client
from .world import World


class Streaming(Client):
    """See the module. ``registered``: the broker has welcomed it over the present connection."""

    def __init__(self, world: World, name: str, latency: float) -> None:
        super().__init__(world, name, latency)
        self.registered = False
        self.stream = Stream()
        self.epoch = 0
        #: What it has said that is numbered, since the broker knows it.
        self.spoken: list[m.Message] = []

    def read(self, backlog: deque[Any]) -> deque[Any]:
        """What has become of its connections it may read before what came over them."""
        if self.world.scene is None or self.world.random.random() < 0.5:
            return backlog
        signals = [each for each in backlog if each[0] in (self.connected, self.ended)]
        return deque([*signals, *[each for each in backlog if each not in signals]])

    def hello(self, slots: int) -> m.Hello:
        """As any client's, and how far the broker was heard."""
        hello = super().hello(slots)
        hello.heard = self.stream.heard
        return hello

    def say(self, message: m.Message) -> None:
        """Say this now, or what is numbered once there is a session."""
        if type(message) in STREAMED:
            self.stream.stamp(message)
            self.spoken.append(message)
        if self.registered:
            self.send(message)

    def is_news(self, message: m.Message) -> bool:
        """Was it not here before, and is it of this session?"""
        if type(message) is m.Heard:
            self.stream.acknowledged(message.seq)
            return False
        return self.registered and (type(message) not in STREAMED or self.stream.take(message))

    def acknowledge(self, now: bool = False) -> None:
        """Tell the broker how far it was heard, if that is due."""
        if self.registered and self.stream.due(now):
            self.send(m.Heard(self.stream.heard))

    def crosses(self, welcome: m.Welcome) -> bool:
        """Was the last one for an earlier Hello?"""
        return self.registered and welcome.era != self.told_era

    def welcomes(self, welcome: m.Welcome) -> bool:
        """The session is up. True: the broker knows nothing of it."""
        self.registered, self.session, self.told_era = True, welcome.session, welcome.era
        fresh = welcome.fresh or welcome.epoch != self.epoch
        if fresh:
            self.epoch = welcome.epoch
            self.stream.reset()
            self.spoken = []
        for message in self.stream.again(welcome.heard):
            self.world.counts["said again"] += 1
            self.send(message)
        return fresh
