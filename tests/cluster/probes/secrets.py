"""Where on this node, as it runs, any spelling of a secret stands. Run as root.

Prints JSON: {"files seen" and "files read": counts, "files": {path: [owner, mode, names]}, "journal": names,
"arguments" and "environments": {process: names}}, where names are those of secrets.
"""

import grp
import json
import os
import pwd
import stat
import subprocess
import tempfile
from pathlib import Path

KERNEL = {"/proc", "/sys", "/dev"}  # no files of ours; processes are looked at apart
SEED = Path("/var/lib/cloud/seed/nocloud/user-data")
NODE = Path("/etc/imagegen/node.json")  # of the seed, written at the first boot
MARGIN = 600 * 10**9  # nanoseconds between the first thing that a boot writes and this


def list_files():
    """Every regular file of the node: the tree and what is mounted in it."""
    for top in ("/", "/dev/shm"):
        for directory, names, files in os.walk(top):
            names[:] = [name for name in names if str(Path(directory, name)) not in KERNEL]
            for name in files:
                path = Path(directory, name)
                if path.is_file() and not path.is_symlink():
                    yield path


def seed_time():
    """Before the seed came, in nanoseconds since the epoch, by the earliest clock that this machine has had."""
    if SEED.exists():
        return SEED.stat().st_ctime_ns
    boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    return min(int(boot.split()[1]) * 10**9, NODE.stat().st_ctime_ns) - MARGIN


def run_grep(spellings, before, after, stdin):
    """grep's stdout for fixed byte strings, which it reads from a file without a name: no secret is an argument."""
    handle = os.memfd_create("spellings", 0)
    try:
        os.write(handle, "\n".join(spellings).encode() + b"\n")
        grep = ["grep", "--text", "--fixed-strings", f"--file=/proc/{os.getpid()}/fd/{handle}"]
        words = ["env", "LC_ALL=C", *before, *grep, *after]
        return subprocess.run(words, stdin=stdin, capture_output=True).stdout
    finally:
        os.close(handle)


def find_names(data, secrets):
    return sorted(name for name, spellings in secrets.items() if any(s.encode() in data for s in spellings))


def describe(path, secrets):
    """[owner, mode, names] of a file in which something was found."""
    found = path.stat()
    owner = f"{pwd.getpwuid(found.st_uid).pw_name}:{grp.getgrgid(found.st_gid).gr_name}"
    return [owner, f"{stat.S_IMODE(found.st_mode):04o}", find_names(path.read_bytes(), secrets)]


def change_time(path):
    """Of the inode, in nanoseconds since the epoch; 0 for a file that is gone by now, as a session's are."""
    try:
        return path.stat().st_ctime_ns
    except FileNotFoundError:
        return 0


def search_files(everything, secrets):
    """Counts of files, and path -> description of those that hold a secret."""
    # A file whose inode has not changed since before the seed came cannot hold what the seed brought.
    since = seed_time()
    paths = list(list_files())
    changed = [os.fsencode(path) for path in paths if change_time(path) >= since]
    with tempfile.TemporaryFile() as listed:  # it has no name, so it is not among the files
        listed.write(b"\0".join(changed))
        listed.seek(0)
        options = ["--files-with-matches", "--null", "--no-messages", "--"]
        said = run_grep(everything, ["xargs", "--null"], options, listed)
    found = [Path(os.fsdecode(name)) for name in said.split(b"\0") if name]
    files = {str(path): describe(path, secrets) for path in found if path.exists()}
    return {"files seen": len(paths), "files read": len(changed), "files": files}


def search_journal(everything, secrets):
    """The secrets in the journal, whose files may be compressed."""
    words = ["journalctl", "--all", "--output=export", "--no-pager"]
    with subprocess.Popen(words, stdout=subprocess.PIPE) as export:
        return find_names(run_grep(everything, [], ["--no-filename", "-"], export.stdout), secrets)


def search_processes(what, secrets):
    """`PID NAME` -> the secrets in /proc/PID/WHAT."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            names = find_names((process / what).read_bytes(), secrets)
            if names:
                found[f"{process.name} {(process / 'comm').read_text().strip()}"] = names
        except OSError:  # ended meanwhile
            continue
    return found


def main(secrets):
    everything = sorted({spelling for spellings in secrets.values() for spelling in spellings})
    answer = search_files(everything, secrets)
    answer["journal"] = search_journal(everything, secrets)
    answer["arguments"] = search_processes("cmdline", secrets)
    answer["environments"] = search_processes("environ", secrets)
    print(json.dumps(answer))
