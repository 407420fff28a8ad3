"""What the initramfs runs: `python3 -m imagegen_deploy`.

It leaves the root file system's device in ROOT_DEVICE or, live, the root file system itself where the boot continues.
"""

from __future__ import annotations

import sys
from pathlib import Path

from imagegen_node.engine.files import write_atomically
from imagegen_node.engine.status import Status
from imagegen_node.engine.steps import Step, run_step

from imagegen_deploy.deploy import Deployment
from imagegen_deploy.live import LiveBoot
from imagegen_deploy.plan import Plan, read_plan

ROOT_DEVICE = Path("/run/imagegen/root-device")


def main() -> int:
    status = Status("this machine", "")
    plans: list[Plan] = []

    def read() -> str:
        plans.append(read_plan())
        status.node, status.role = plans[0].node, plans[0].role
        return plans[0].mode

    run_step(Step("plan", read), status)
    status.secrets = [plans[0].seed.rsplit("/", 1)[-1]] if plans[0].seed else []
    if plans[0].status:
        status.post_to(plans[0].status)
    if plans[0].mode == "live":
        LiveBoot(plans[0], status).run()
    else:
        write_atomically(ROOT_DEVICE, f"{Deployment(plans[0], status).run()}\n")
    status.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
