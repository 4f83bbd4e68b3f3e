"""What scripts do to themselves by numbers and addresses of their own host, done by a process on another one."""

from __future__ import annotations

from pathlib import Path

import pytest
from test_hosts import Cluster, bed, cluster

__all__ = ["bed", "cluster"]

CASES = Path(__file__).with_name("far_cases.py")
SERVING = CASES.with_name("far_serving.py")

pytestmark = [pytest.mark.hosts, pytest.mark.timeout(150)]


def test_a_process_signals_its_parent_on_another_host_and_nobody_else(cluster: Cluster) -> None:
    with cluster.producer(CASES, "signals") as shell:
        assert shell.wait(60) == 0, str(shell)


def test_what_a_script_serves_on_its_loopback_is_there_for_its_processes_on_other_hosts(
    cluster: Cluster,
) -> None:
    with cluster.producer("-m", "multihost", "run", SERVING) as shell:
        assert shell.wait(60) == 0, str(shell)
        assert not shell.stderr
