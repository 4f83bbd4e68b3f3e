"""``multihost version``"""

from __future__ import annotations

import json
import platform
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as installed

import click

from multihost.commands.shared import json_option
from multihost_common import __version__


@click.command()
@json_option
def command(as_json: bool) -> None:
    """Show the versions of multihost, its protocol, Python and the libraries."""
    import zmq

    from multihost_common.messages import PROTOCOL_VERSION

    versions = {
        "multihost": __version__,
        "protocol": PROTOCOL_VERSION,
        "python": platform.python_version(),
        **{name: _installed(name) for name in ("pyzmq", "msgpack", "cloudpickle", "psutil", "click")},
        "libzmq": zmq.zmq_version(),
    }
    click.echo(json.dumps(versions) if as_json else "\n".join(f"{k} {v}" for k, v in versions.items()))


def _installed(name: str) -> str:
    try:
        return installed(name)
    except PackageNotFoundError:
        return "not installed"
