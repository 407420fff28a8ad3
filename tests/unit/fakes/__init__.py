"""A make-believe node and cluster for the agent: what it talks to, in memory, with the real return codes and faults.

Importing this package makes `imagegen_node` and `imagegen_deploy` importable and puts stand-ins in the place of the
drivers that only a node has (pymysql, amqp, openstack, keystoneauth1, nova, oslo_db).
"""

from __future__ import annotations

import sys

from repository import AGENT, NETWORK_BOOT

from fakes import amqp, keystoneauth1, nova, openstack, oslo_db, pymysql

for directory in (AGENT, NETWORK_BOOT):
    if str(directory) not in sys.path:
        sys.path.insert(0, str(directory))
for module in (amqp, keystoneauth1, nova, openstack, oslo_db, pymysql):
    sys.modules[module.__name__.removeprefix("fakes.")] = module
sys.modules["keystoneauth1.identity"] = keystoneauth1.identity  # `from keystoneauth1.identity import v3`
