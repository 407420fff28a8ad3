"""Values that must stay where they were put: planted in what a build and a boot are given, then searched for."""

from __future__ import annotations

# In the cluster file, as the name of a flavor, which only controllers need, and as the comment of a key.
CLUSTER_FILE = "canary-of-the-cluster-file"
KEY_COMMENT = "canary-of-a-key@example.org"

# What tools read, what a dib element could read, and what imagegen itself hands on to dib.
ENVIRONMENT = "canary/of+the:environment=@?"
ENVIRONMENT_VARIABLES = {
    "OS_PASSWORD": ENVIRONMENT,
    "DIB_CANARY": ENVIRONMENT,
    "DIB_CLOUD_INIT_PASSWORD": ENVIRONMENT,
    "no_proxy": "canary-of-the-environment.example.org",
}

PLANTED = {
    "cluster file": CLUSTER_FILE,
    "comment of a key": KEY_COMMENT,
    "environment": ENVIRONMENT,
    "no_proxy": ENVIRONMENT_VARIABLES["no_proxy"],
}
# What must stay in closed files on nodes as well: a flavor's name is for everybody to see.
CLOSED = {name: value for name, value in PLANTED.items() if name != "cluster file"}
