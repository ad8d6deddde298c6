# SPDX-License-Identifier: Apache-2.0
"""Two machines on one machine: network namespaces, and a wire between them that this process carries packet by packet.

The namespaces have no names and belong to open files of this process: whatever ends it, nothing of them is left. The
kernel's own bad wire (tc netem) is a module that many kernels lack; a TUN device is in nearly all.
"""

import ctypes
import fcntl
import heapq
import os
import random
import select
import shutil
import struct
import subprocess
import sys
import threading
import time

INSIDE = "FETTLE_FAULTS_NODES"
DEVICE, MTU = "wire0", 1500
CLONE_NEWNET = 0x40000000
TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x400454CA, 0x0001, 0x1000  # linux/if_tun.h


def enter_namespace():
    """Starts this test again in a user namespace if this user may not make network namespaces otherwise. Returns why
    that cannot be, or an empty string."""
    reasons = []
    for outer in ([], ["unshare", "-Urm"]):
        tried = subprocess.run([*outer, "unshare", "-n", "test", "-w", "/dev/net/tun"], capture_output=True, text=True, check=False)
        if tried.returncode == 0:
            if outer and INSIDE not in os.environ:
                os.execvpe(outer[0], [*outer, sys.executable, *sys.argv], {**os.environ, INSIDE: "1"})
            return ""
        reasons.append(tried.stderr.strip() or "/dev/net/tun cannot be opened")
    return "; ".join(reasons)


def missing_tools():
    """Those that no distribution lacks, unless left out."""
    return [tool for tool in ("ip", "nsenter", "unshare", "mount") if not shutil.which(tool)]


class Node:
    """A machine: a network namespace with an address, and its own /etc/hosts and /etc/resolv.conf."""

    def __init__(self, address, folder):
        """`folder`: for the two files, which may be written again while programs run."""
        folder.mkdir(parents=True)
        self.address = address
        self.hosts = folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n")
        self.resolver = folder / "resolv.conf"
        self.resolver.write_text("nameserver 127.0.0.1\n")  # where nobody listens: the answer is no, at once
        failures = []
        thread = threading.Thread(target=self._make, args=(failures,))  # a namespace is a thread's
        thread.start()
        thread.join()
        if failures:
            raise failures[0]
        self.command("ip", "link", "set", "lo", "up")
        self.command("ip", "address", "add", f"{address}/24", "dev", DEVICE)
        self.link("up")

    def _make(self, failures):
        try:
            library = ctypes.CDLL(None, use_errno=True)
            if library.unshare(CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "cannot make a network namespace")
            self._namespace = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            self.device = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
            fcntl.ioctl(self.device, TUNSETIFF, struct.pack("16sH22x", DEVICE.encode(), IFF_TUN | IFF_NO_PI))
        except OSError as error:
            failures.append(error)

    @property
    def prefix(self):
        """Before a command line: it runs on this machine, as the same process."""
        cover = 'mount --bind "$0/hosts" /etc/hosts && mount --bind "$0/resolv.conf" /etc/resolv.conf && exec "$@"'
        return ["nsenter", f"--net=/proc/{os.getpid()}/fd/{self._namespace}", "unshare", "-m", "sh", "-c", cover,
                str(self.hosts.parent)]

    def command(self, *line):
        done = subprocess.run([*self.prefix[:2], *line], capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise OSError(f"{' '.join(line)}: {done.stderr.strip()}")

    def link(self, state):
        """"up" or "down": as by a cable of this machine."""
        self.command("ip", "link", "set", DEVICE, state)

    def close(self):
        os.close(self.device)
        os.close(self._namespace)


class Wire:
    """Carries packets between two nodes; leaving the `with` ends both."""

    def __init__(self, nodes, loss=0.0, delay=0.0, seed=0):
        """`loss`: share of packets that are lost, each way; `delay`: seconds, each way."""
        self.loss = loss
        self.delay = delay
        self.carried = self.lost = 0
        self._nodes = nodes
        self._random = random.Random(seed)
        self._stop = False
        self._thread = threading.Thread(target=self._carry, daemon=True)
        self._thread.start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stop = True
        self._thread.join()
        for node in self._nodes:
            node.close()

    def _carry(self):
        first, second = (node.device for node in self._nodes)
        other = {first: second, second: first}
        waiting = []  # (when it arrives, a number, where, the packet)
        while not self._stop:
            pause = min(0.05, max(0.0, waiting[0][0] - time.monotonic())) if waiting else 0.05
            for device in select.select([first, second], [], [], pause)[0]:
                try:
                    packet = os.read(device, MTU + 100)
                except OSError:  # the interface is down
                    continue
                if self._random.random() < self.loss:
                    self.lost += 1
                    continue
                self.carried += 1
                heapq.heappush(waiting, (time.monotonic() + self.delay, self.carried, other[device], packet))
            while waiting and waiting[0][0] <= time.monotonic():
                _, _, device, packet = heapq.heappop(waiting)
                try:
                    os.write(device, packet)
                except OSError:  # the interface is down
                    self.lost += 1
