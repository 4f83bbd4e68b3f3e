"""Content by digest: what is in use stays, of the rest the newest."""

from __future__ import annotations

from multihost_common.blobs import UNUSED, Blobs, digest_of


def entered(blobs: Blobs, content: bytes) -> bytes:
    digest = digest_of(content)
    blobs.put(digest, content)
    return digest


def test_what_is_in_use_stays_whatever_comes() -> None:
    blobs = Blobs(unused_bytes=100)
    used = entered(blobs, b"used")
    blobs.use(used)
    for number in range(2 * UNUSED):
        entered(blobs, b"%060d" % number)
    assert blobs.get(used) == b"used"


def test_of_what_nobody_uses_the_newest_stay_within_so_many_bytes() -> None:
    blobs = Blobs(unused_bytes=100)
    digests = [entered(blobs, b"%030d" % number) for number in range(5)]
    assert [digest in blobs for digest in digests] == [False, False, True, True, True]


def test_a_single_one_stays_however_large() -> None:
    blobs = Blobs(unused_bytes=100)
    assert entered(blobs, bytes(1000)) in blobs


def test_scripts_that_come_and_go_do_not_leave_theirs_for_ever() -> None:
    blobs = Blobs()
    for number in range(10 * UNUSED):
        digest = entered(blobs, b"set-up of script %d" % number)
        blobs.use(digest)
        blobs.release(digest)
    assert len(blobs) == UNUSED
