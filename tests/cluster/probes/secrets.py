"""Where on this node, as it runs, any spelling of a secret stands. Run as root.

Prints JSON: {"files": {path: [owner, mode, [secrets]]}, "journal": [secrets], "arguments": ..., "environments": ...}.
"""

import grp
import json
import os
import pwd
import stat
import subprocess
import tempfile

KERNEL = ("/proc", "/sys", "/dev")  # no files of ours; processes are looked at apart


def list_files():
    """Every regular file of the node: the tree and what is mounted in it."""
    for directory, names, files in os.walk("/"):
        names[:] = [name for name in names if os.path.join(directory, name) not in KERNEL]
        for name in files:
            path = os.path.join(directory, name)
            if stat.S_ISREG(os.lstat(path).st_mode):
                yield path
    for directory, _, files in os.walk("/dev/shm"):
        yield from (os.path.join(directory, name) for name in files)


def grep(spellings, argv, **more):
    """Runs grep for fixed byte strings, which it reads from a file without a name: no secret is an argument."""
    handle = os.memfd_create("spellings", 0)
    try:
        os.write(handle, "\n".join(spellings).encode() + b"\n")
        words = ["env", "LC_ALL=C", *argv[0], "grep", "--text", "--fixed-strings", f"--file=/proc/{os.getpid()}/fd/{handle}"]
        return subprocess.run([*words, *argv[1]], stdout=subprocess.PIPE, stderr=subprocess.PIPE, **more)
    finally:
        os.close(handle)


def find_names(path_or_data, secrets):
    data = path_or_data
    if isinstance(data, str):
        with open(data, "rb") as stream:
            data = stream.read()
    return sorted(name for name, spellings in secrets.items() if any(s.encode() in data for s in spellings))


def describe(path):
    found = os.stat(path)
    try:
        owner = f"{pwd.getpwuid(found.st_uid).pw_name}:{grp.getgrgid(found.st_gid).gr_name}"
    except KeyError:
        owner = f"{found.st_uid}:{found.st_gid}"
    return owner, f"{stat.S_IMODE(found.st_mode):04o}"


def read_processes(what, secrets):
    found = {}
    for pid in filter(str.isdigit, os.listdir("/proc")):
        if int(pid) == os.getpid():
            continue
        try:
            with open(f"/proc/{pid}/{what}", "rb") as stream:
                names = find_names(stream.read(), secrets)
            if names:
                with open(f"/proc/{pid}/comm") as stream:
                    found[f"{pid} {stream.read().strip()}"] = names
        except OSError:  # ended meanwhile
            continue
    return found


def main(secrets):
    everything = sorted({spelling for spellings in secrets.values() for spelling in spellings})
    with tempfile.TemporaryFile() as listed:  # it has no name, so it is not among the files
        count = 0
        for path in list_files():
            listed.write(os.fsencode(path) + b"\0")
            count += 1
        listed.seek(0)
        options = ["--files-with-matches", "--null", "--no-messages", "--"]
        done = grep(everything, (["xargs", "--null"], options), stdin=listed)
    files = {}
    for name in filter(None, done.stdout.split(b"\0")):
        path = os.fsdecode(name)
        if os.path.exists(path):
            files[path] = [*describe(path), find_names(path, secrets)]
    export = subprocess.Popen(["journalctl", "--all", "--output=export", "--no-pager"], stdout=subprocess.PIPE)
    journal = grep(everything, ([], ["--only-matching", "--no-filename", "-"]), stdin=export.stdout)
    export.wait()
    print(
        json.dumps(
            {
                "count": count,
                "files": files,
                "journal": find_names(journal.stdout, secrets),
                "arguments": read_processes("cmdline", secrets),
                "environments": read_processes("environ", secrets),
            }
        )
    )
