"""Content by digest: functions, pool set-ups, bundles of modules. Bytes, never looked into."""

from __future__ import annotations

from collections import OrderedDict

from multihost_common.blake2 import blake2b
from multihost_common.blocks import Frame
from multihost_common.schema import DIGEST

#: Bytes of blobs kept that no open pool or job refers to, for the next one that does.
UNUSED_BYTES = 64 << 20
#: And how many of them: each script that comes and goes leaves some of its own.
UNUSED = 256


def digest_of(content: Frame) -> bytes:
    """The digest by which content is known."""
    return blake2b(content, digest_size=DIGEST).digest()


class Blobs:
    """Blobs with a count of who uses them; unused ones are kept for a while, oldest dropped first."""

    def __init__(self, unused_bytes: int = UNUSED_BYTES) -> None:
        self._limit = unused_bytes
        self._content: dict[bytes, Frame] = {}
        self._uses: dict[bytes, int] = {}
        self._unused: OrderedDict[bytes, int] = OrderedDict()
        self._unused_bytes = 0

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._content

    def __len__(self) -> int:
        return len(self._content)

    def get(self, digest: bytes) -> Frame | None:
        """The content, or None."""
        return self._content.get(digest)

    def put(self, digest: bytes, content: Frame) -> None:
        """Keep this content."""
        if digest in self._content:
            return
        self._content[digest] = content
        if not self._uses.get(digest):
            self._rest(digest)

    def use(self, digest: bytes) -> None:
        """Somebody refers to this content, here already or not."""
        if not digest:
            return
        self._uses[digest] = self._uses.get(digest, 0) + 1
        self._unused_bytes -= self._unused.pop(digest, 0)

    def release(self, digest: bytes) -> None:
        """Somebody no longer refers to it."""
        if not digest:
            return
        left = self._uses.get(digest, 0) - 1
        if left > 0:
            self._uses[digest] = left
            return
        self._uses.pop(digest, None)
        if digest in self._content:
            self._rest(digest)

    def _rest(self, digest: bytes) -> None:
        size = len(self._content[digest])
        self._unused[digest] = size
        self._unused_bytes += size
        # The newest stays, however large: whoever put it there is about to use it.
        while (self._unused_bytes > self._limit or len(self._unused) > UNUSED) and len(self._unused) > 1:
            oldest, size = self._unused.popitem(last=False)
            self._unused_bytes -= size
            del self._content[oldest]
