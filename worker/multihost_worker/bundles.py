"""Code bundles: a zip of the user's modules, unpacked once per host under its digest."""

from __future__ import annotations

import os
import sys

from multihost_common.blake2 import blake2b

TYPE_CHECKING = False
if TYPE_CHECKING:
    from multihost_common.blocks import Frame


def unpack(private_dir: str, code: Frame) -> str:
    """The directory that holds the bundle's modules. Unpacks it unless it is there."""
    target = os.path.join(private_dir, "code", blake2b(code, digest_size=32).hexdigest())
    if os.path.isdir(target):
        return target
    import io
    import shutil
    import tempfile
    import zipfile

    parent = os.path.dirname(target)
    os.makedirs(parent, mode=0o700, exist_ok=True)
    scratch = tempfile.mkdtemp(prefix=".new-", dir=parent)
    try:
        with zipfile.ZipFile(io.BytesIO(code)) as bundle:
            bundle.extractall(scratch)
        os.rename(scratch, target)
    except OSError:
        # Another child was first: rename onto a directory that is not empty fails.
        if not os.path.isdir(target):
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if "importlib" in sys.modules:
        sys.modules["importlib"].invalidate_caches()
    return target
