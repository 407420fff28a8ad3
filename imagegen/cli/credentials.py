"""imagegen credentials."""

from __future__ import annotations

import click

from imagegen.base.errors import BadUsage
from imagegen.base.outdir import work_in
from imagegen.base.tree import write_file
from imagegen.cli.inputs import load_inputs
from imagegen.cli.options import Settings, common_options
from imagegen.cli.output import Outcome, print_paths, say
from imagegen.outputs.credentials import Credentials, credentials_tree

ADMINISTRATOR = "admin"  # whom keystone-manage bootstrap makes, with a project of that name


@click.command()
@click.option("--user", metavar="NAME", help=f"Default: {ADMINISTRATOR}, whose password is in secrets.yaml.")
@click.option("--project", metavar="NAME", help=f"Default: {ADMINISTRATOR}.")
@common_options
@click.pass_obj
def credentials(settings: Settings, user: str | None, project: str | None) -> Outcome:
    """Write clouds.yaml and openrc (0600), for OpenStack's clients and SDKs.

    The cloud in clouds.yaml bears the cluster's name. For a user other than the administrator there is no password in
    the files: clients ask for it.

    \b
    Examples:
      imagegen credentials && export OS_CLIENT_CONFIG_FILE=out/clouds.yaml
      openstack --os-cloud demo server list
      imagegen credentials --user alice --project web && . out/openrc
    """
    cluster, secrets = load_inputs(settings)
    ours = cluster.services.identity.node is not None
    if not ours and user is None:
        raise BadUsage(
            "Keystone is outside this cluster, so its administrator's password is not in secrets.yaml",
            "name a user: imagegen credentials --user NAME --project NAME",
        )
    name = user or ADMINISTRATOR
    password = secrets["identity_admin"] if ours and name == ADMINISTRATOR else None
    tree = credentials_tree(cluster, Credentials(name, project or ADMINISTRATOR, password))
    with work_in(settings.out, list(tree), "credentials", lambda line: say(settings, line)):
        for path, file in tree.items():
            write_file(settings.out / path, file)
    say(
        settings,
        f"export OS_CLIENT_CONFIG_FILE={settings.out / 'clouds.yaml'}; openstack --os-cloud {cluster.name} ...",
    )
    return print_paths(*(settings.out / path for path in tree))
