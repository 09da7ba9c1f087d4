"""Machines made of namespaces on this one: own network, processes, /tmp, /dev/shm, home and name, and an sshd to reach them by."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
NEEDED = {
    "unshare": "util-linux",
    "ip": "iproute2",
    "ssh": "openssh-client",
    "sshd": "openssh-server",
    "rsync": "rsync",
}
SBIN = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
# Process 1 of a machine: a shell, which buries orphans as an init does and ends, and all with it, when nobody holds its input.
INIT = """
set -eu
name=$1 etc=$2; shift 2
hostname "$name"
ip link set lo up
mount -t tmpfs tmpfs /dev/shm
i=0; for kept in "$@"; do mkdir /dev/shm/$i; mount --rbind "$kept" /dev/shm/$i; i=$((i+1)); done
mount -t tmpfs tmpfs /tmp && chmod 1777 /tmp
i=0; for kept in "$@"; do mkdir -p "$kept"; mount --move /dev/shm/$i "$kept"; rmdir /dev/shm/$i; i=$((i+1)); done
for file in passwd shadow hosts; do mount --bind "$etc/$file" /etc/$file; done
mount --bind "$etc/online" /sys/devices/system/cpu/online
if test -f "$etc/sshd_config"; then mkdir -p /run/sshd; $(command -v sshd) -f "$etc/sshd_config"; fi
echo ready
read -r _ || true
"""


def missing() -> str | None:
    """Why this machine cannot make such machines, None if it can."""
    if not sys.platform.startswith("linux"):
        return "network namespaces need Linux"
    if os.geteuid() != 0:
        return "network namespaces need root"
    lacking = [f"{command} ({package})" for command, package in NEEDED.items() if not shutil.which(command, path=SBIN)]
    if lacking:
        return f"not installed: {', '.join(lacking)}"
    if not (Path(sys.prefix) / "bin" / "activate").is_file():
        return f"{sys.prefix} is no virtual environment, and the cluster file activates one"
    tried = subprocess.run(
        [*UNSHARE, "sh", "-ec", "ip link add rf0 type veth peer name rf1; ip link add rf2 type bridge; mount -t tmpfs t /tmp"],
        env={**os.environ, "PATH": SBIN}, capture_output=True, text=True,
    )  # fmt: skip
    return f"no namespaces may be made here: {tried.stderr.strip()}" if tried.returncode else None


UNSHARE = ["unshare", "--fork", "--kill-child", "--net", "--pid", "--mount", "--uts", "--ipc", "--mount-proc"]


class Machine:
    """One machine with `cpus` CPUs. Its home is a folder of `where`; its user is root, who is let in with `key`, if by SSH at all."""

    def __init__(self, where: Path, name: str, addresses: dict[str, str], *, key: Path | None = None, cpus: int = 1):
        self.name, self.address, self.home = name, addresses[name], where / name / "home"
        etc = where / name / "etc"
        for folder in (etc, self.home):
            folder.mkdir(parents=True, exist_ok=True)
        if not (self.home / "venv").exists():
            (self.home / "venv").symlink_to(sys.prefix)
        others = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("root:")]
        (etc / "passwd").write_text("\n".join([f"root:x:0:0:root:{self.home}:/bin/bash", *others, ""]))
        (etc / "shadow").write_text("root:*:20000:0:99999:7:::\n")
        (etc / "hosts").write_text("".join(f"{a} {n}\n" for n, a in {"localhost": "127.0.0.1", **addresses}.items()))
        (etc / "online").write_text("0\n" if cpus == 1 else f"0-{cpus - 1}\n")
        if key is not None:
            settings = {
                "HostKey": key, "AuthorizedKeysFile": f"{key}.pub", "PermitRootLogin": "prohibit-password", "PidFile": "none",
                "PasswordAuthentication": "no", "UsePAM": "no", "StrictModes": "no", "MaxStartups": 50,
                "SetEnv": "RAY_USE_MULTIPROCESSING_CPU_COUNT=1",  # not a container's quota
            }  # fmt: skip
            (etc / "sshd_config").write_text("".join(f"{k} {v}\n" for k, v in settings.items()))
        seen = sorted({str(Path(p).resolve()) for p in (sys.prefix, sys.base_prefix, ROOT, where)})
        kept = [p for p in seen if p.startswith("/tmp/")]
        self.env = {k: v for k, v in os.environ.items() if not k.startswith(("RAY", "SSH", "TMP", "PYTHON"))}
        self.env |= {"PATH": f"{Path(sys.prefix) / 'bin'}:{SBIN}", "HOME": str(self.home), "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            [*UNSHARE, "bash", "-c", INIT, "init", name, str(etc), *kept],
            env=self.env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            cwd=self.home, start_new_session=True,
        )  # fmt: skip
        assert self.process.stdout is not None and self.process.stderr is not None
        if self.process.stdout.readline() != "ready\n":
            self.process.kill()
            raise RuntimeError(f"machine {name}: {self.process.stderr.read()}")
        (self.init,) = psutil.Process(self.process.pid).children()

    def within(self, *command: str, only: str = "npmui") -> list[str]:
        """`command` as this machine's: `only` names the namespaces."""
        return ["nsenter", "-t", str(self.init.pid), *(f"-{n}" for n in only), "--", *command]

    def start(self, command: str, **env: str) -> subprocess.Popen[str]:
        """A shell command in this machine's home."""
        there = f"cd {self.home}; {command}"
        return subprocess.Popen(
            self.within("bash", "-c", there), env={**self.env, **env}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
        )  # fmt: skip

    def call(self, command: str, timeout: float = 300, **env: str) -> tuple[int, str]:
        """Exit code and output of a shell command in this machine's home."""
        process = self.start(command, **env)
        out, _ = process.communicate(timeout=timeout)
        return process.returncode, out

    def processes(self) -> list[str]:
        """Command lines of what runs on this machine, without its init and sshd."""
        mine, found = os.readlink(f"/proc/{self.init.pid}/ns/pid"), []
        for p in psutil.process_iter(["pid", "cmdline"]):
            try:
                if os.readlink(f"/proc/{p.pid}/ns/pid") == mine and p.pid != self.init.pid:
                    found.append(" ".join(p.info["cmdline"] or ()))
            except OSError:
                continue
        return [line for line in found if line and not line.startswith("sshd")]

    def end(self) -> None:
        """Power off: the kernel ends all that runs here with process 1, and the network with the last of it."""
        if self.process.poll() is None:
            self.init.send_signal(signal.SIGKILL)
            self.process.wait(30)


class Machines:
    """A `laptop` and `hosts` on one network, which nothing outside sees: no name or address can clash with another test's."""

    def __init__(self, where: Path, *hosts: str):
        self.where = where
        self.key = where / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.key)], check=True)
        self.addresses = {n: f"10.77.0.{i}" for i, n in enumerate(("laptop", *hosts), 1)}
        self.there: dict[str, Machine] = {}
        try:
            self.laptop = self.add("laptop")
            for name in hosts:
                self.add(name)
        except BaseException:
            self.close()
            raise

    def add(self, name: str) -> Machine:
        """Switch a machine on; again, if it had been ended."""
        made = Machine(self.where, name, self.addresses, key=None if name == "laptop" else self.key)
        self.there[name] = made
        if name == "laptop":
            self.network(
                made, f"ip link add br0 type bridge; ip addr add {made.address}/24 dev br0; ip link set br0 up"
            )
            return made
        port = f"to-{name}"
        self.network(
            self.laptop,
            f"ip link del {port} 2>/dev/null || true; ip link add {port} type veth peer name eth0 netns {made.init.pid}; "
            f"ip link set {port} master br0 up",
        )
        self.network(made, f"ip addr add {made.address}/24 dev eth0; ip link set eth0 up")
        return made

    @staticmethod
    def network(machine: Machine, commands: str) -> None:
        # Only the network's namespace: process ids are this machine's.
        done = subprocess.run(
            machine.within("sh", "-ec", commands, only="n"), env=machine.env, capture_output=True, text=True
        )
        assert not done.returncode, done.stderr

    def __getitem__(self, name: str) -> Machine:
        return self.there[name]

    def close(self) -> None:
        for machine in self.there.values():
            machine.end()

    def __enter__(self) -> Machines:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
