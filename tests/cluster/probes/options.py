"""The options that daemons have in effect: each one's own configuration code under its real arguments. Run as its user.

Prints JSON: daemon -> {"argv", "seed" (options that the seed's drop-in names), "options", "logins", "absent"}.
"""

import json
import os
import re
import subprocess
import sys
import traceback
from pathlib import Path

DROP_IN = "/etc/{0}/{0}.conf.d/50-imagegen.conf"
# What no seed may bring back, and what a compute must not have.
ALSO = ("DEFAULT.use_neutron", "DEFAULT.firewall_driver", "DEFAULT.state_path", "api_database.connection")
ALSO += ("database.connection", "libvirt.virt_type", "conductor.workers", "scheduler.workers")


def find_process(unit, environment):
    """(arguments, environment) of the unit's main process; its environment is a file that only root can read.

    uwsgi writes other words over its arguments, so that its own come from systemd, which started it.
    """
    words = ["systemctl", "show", unit, "--property=MainPID", "--value"]
    pid = subprocess.run(words, check=True, capture_output=True, text=True).stdout.strip()
    process = Path("/proc", pid)
    environment = dict(item.split("=", 1) for item in environment.split("\0") if "=" in item)
    argv = (process / "cmdline").read_text().rstrip("\0").split("\0")
    if "uWSGI" in argv[0]:
        words = ["systemctl", "show", unit, "--property=ExecStart", "--value"]
        started = subprocess.run(words, check=True, capture_output=True, text=True).stdout
        argv = re.search(r"argv\[\]=(.*?) ;", started)[1].split()
    return argv, environment


def read_module(argv):
    """The Python module that uwsgi serves, None for another daemon."""
    if "--ini" not in argv:
        return None
    return re.search(r"^module *= *(\S+?):", Path(argv[argv.index("--ini") + 1]).read_text(), re.M)[1]


def configure(project, argv, environment):
    """The daemon's ConfigOpts, made by the code that the daemon itself runs at its start."""
    module = read_module(argv)
    # oslo.config looks for files that bear the program's name; inside uwsgi Python's argv has no more than that.
    sys.argv = ["uwsgi"] if module else argv[1:]
    if project == "nova":
        from nova import config

        files = None
        if module:
            assert module in ("nova.wsgi.osapi_compute", "nova.wsgi.metadata"), module
            from nova.api.openstack import wsgi_app

            files = wsgi_app._get_config_files(environment)
        config.parse_args(sys.argv, default_config_files=files, configure_db=False, init_rpc=False)
        return config.CONF
    if project == "keystone":
        assert module == "keystone.wsgi.api", module
        import keystone.conf
        from keystone.common import sql
        from keystone.server.flask import core

        keystone.conf.configure()
        sql.initialize()
        keystone.conf.set_config_defaults()
        keystone.conf.CONF(project="keystone", default_config_files=core._get_config_files(environment))
        return keystone.conf.CONF
    assert module == "placement.wsgi.api", module
    from oslo_config import cfg
    from placement import conf, wsgi

    made = cfg.ConfigOpts()
    conf.register_opts(made)
    wsgi._parse_args(made, [], default_config_files=wsgi._get_config_files(environment))
    return made


def register_late(conf):
    """Options that a library registers when a daemon first uses them."""
    from keystoneauth1 import loading
    from oslo_config import cfg

    try:
        from keystonemiddleware.auth_token import _opts

        for group, options in _opts.list_opts():
            conf.register_opts(options, group=group)
    except (ImportError, cfg.DuplicateOptError):
        pass
    if conf.project == "nova":
        from oslo_messaging import TransportURL

        TransportURL.parse(conf)
    for group in ("keystone_authtoken", "service_user", "placement"):
        if group in conf:
            loading.register_auth_conf_options(conf, group)


def read_login(conf, group):
    """What keystoneauth would log in with, made from that group as a daemon makes it."""
    from keystoneauth1 import loading

    plugin = loading.load_auth_from_conf_options(conf, group)
    names = ("username", "password", "user_domain_name", "project_name", "project_domain_name")
    return {"auth_url": plugin.auth_url, **{name: getattr(plugin, "_" + name) for name in names}}


def read_seed(project):
    """`section.option` of every line in the seed's drop-in."""
    section, names = "DEFAULT", []
    for line in Path(DROP_IN.format(project)).read_text().splitlines():
        if found := re.match(r"\[(.+)\]\s*$", line):
            section = found[1]
        elif found := re.match(r"(\w+) *=", line):
            names.append(f"{section}.{found[1]}")
    return names


def describe(project, unit, environment):
    """What one daemon has in effect. Once a process: a ConfigOpts that has read its files takes no other daemon."""
    from oslo_config import cfg

    argv, environment = find_process(unit, environment)
    conf = configure(project, argv, environment)
    register_late(conf)
    seed, options, absent = read_seed(project), {}, []
    groups = [name.split(".")[0] for name in seed if name.endswith(".password")]
    logins = {group: read_login(conf, group) for group in groups}  # registers the options of these groups as well
    for name in dict.fromkeys((*seed, *ALSO)):
        section, option = name.split(".")
        try:
            options[name] = conf[option] if section == "DEFAULT" else conf[section][option]
        except (cfg.NoSuchOptError, cfg.NoSuchGroupError):
            absent.append(name)
    return {"argv": argv, "seed": seed, "options": options, "logins": logins, "absent": absent}


def main(project, units):
    """`units`: unit -> what its main process has as environment."""
    __import__(f"{project}.conf")  # the slow part, once for all
    answer = {}
    for unit, environment in units.items():
        reader, writer = os.pipe()
        if os.fork() == 0:
            code = 1
            try:
                os.write(writer, json.dumps(describe(project, unit, environment), default=str).encode())
                code = 0
            except BaseException:
                traceback.print_exc()
            os._exit(code)
        os.close(writer)
        with os.fdopen(reader) as stream:
            text = stream.read()
        if os.waitstatus_to_exitcode(os.wait()[1]):
            sys.exit(f"the options of {unit} cannot be read")
        answer[unit] = json.loads(text)
    print(json.dumps(answer))
