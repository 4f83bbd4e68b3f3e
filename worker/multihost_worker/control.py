"""What an agent and its forkserver say to each other: records of five signed 64-bit words.

A request is ``(kind, child, word, 0, 0)`` with descriptors beside; the word is the signal, or with START
whether the child is a process of its own, whose lifeline is the last descriptor; a report
``(kind, child, pid, status, peak)``. They are here, and not with the forkserver, so that an agent does
not import what only children need.
"""

from __future__ import annotations

# Requests.
START, KILL, SIGNAL = 1, 2, 3

# Reports. ``status``: as of waitpid() with DIED, an errno with REFUSED. ``peak``: resident bytes.
FORKED, REFUSED, DIED = 1, 2, 3

#: Length of a record, bytes.
RECORD = 40

#: Descriptor of the control socket in the forkserver.
CONTROL = 3
