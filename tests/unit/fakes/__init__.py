"""A make-believe node and cluster for the agent: what it talks to, in memory, with the real return codes and faults.

Importing this package makes `imagegen_node` importable and puts stand-ins in the place of the drivers that only a
node has (pymysql, amqp, openstack, keystoneauth1, nova, oslo_db).
"""

from __future__ import annotations

import sys

from repository import AGENT

from fakes import amqp, keystoneauth1, nova, openstack, oslo_db, pymysql

if str(AGENT) not in sys.path:
    sys.path.insert(0, str(AGENT))
for module in (amqp, keystoneauth1, nova, openstack, oslo_db, pymysql):
    sys.modules[module.__name__.removeprefix("fakes.")] = module
sys.modules["keystoneauth1.identity"] = keystoneauth1.identity  # `from keystoneauth1.identity import v3`
