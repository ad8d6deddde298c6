# SPDX-License-Identifier: Apache-2.0
"""Small volumes of a test's own, in a mount namespace that goes away with the test: nothing can stay mounted."""

import os
import pathlib
import shutil
import subprocess
import sys
import tempfile

INSIDE = "FETTLE_FAULTS_NAMESPACE"
PATH = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"


def enter_namespace():
    """Starts this test again where it may mount: as root, else in a user namespace. Returns why that cannot be, or ''."""
    if INSIDE in os.environ:
        return ""
    reasons = []
    for flags in (["-m"], ["-Urm"]):
        tried = subprocess.run(["unshare", *flags, "mount", "-t", "tmpfs", "none", tempfile.gettempdir()], capture_output=True, text=True,
                               check=False) if shutil.which("unshare") else None
        if tried is None:
            return "there is no unshare(1)"
        if tried.returncode == 0:
            os.execvpe("unshare", ["unshare", *flags, sys.executable, *sys.argv], {**os.environ, INSIDE: flags[0]})
        reasons.append(f"unshare {' '.join(flags)}: {tried.stderr.strip()}")
    return "this user may not mount: " + "; ".join(reasons)


def why_no_disks():
    """Why a file cannot be mounted as a disk of its own here, or an empty string."""
    if os.environ.get(INSIDE) != "-m":
        return "only root can mount a loop device"
    missing = [tool for tool in ("mkfs.ext4", "fsck.ext4", "losetup") if not shutil.which(tool, path=PATH)]
    if missing:
        return f"there is no {', '.join(missing)}"
    found = subprocess.run(["losetup", "-f"], env={**os.environ, "PATH": PATH}, capture_output=True, text=True, check=False)
    return "" if found.returncode == 0 else f"there is no loop device: {found.stderr.strip()}"


def command(*line):
    done = subprocess.run(line, env={**os.environ, "PATH": PATH}, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise OSError(f"{' '.join(map(str, line))}: {done.stderr.strip()}")


class Volume:
    """A mounted file system; `point` is its folder. Filled to the brim by a file beside whatever else is on it."""

    def __init__(self, point):
        self.point = pathlib.Path(point)
        self.point.mkdir(parents=True, exist_ok=True)
        self._filler = self.point / "filler"

    def free_bytes(self):
        status = os.statvfs(self.point)
        return status.f_bavail * status.f_frsize

    def leave_free(self, size):
        """Takes all but `size` bytes."""
        with open(self._filler, "ab") as filler:
            while (excess := self.free_bytes() - size) > 0:
                block = os.statvfs(self.point).f_frsize
                try:
                    filler.write(bytes(min(max(excess, block), 1 << 20)))
                    filler.flush()
                    os.fsync(filler.fileno())
                except OSError:
                    break

    def make_room(self):
        self._filler.unlink()

    def unmount(self):
        command("umount", "-l", self.point)


class MemoryVolume(Volume):
    """A tmpfs of so many bytes."""

    def __init__(self, point, size):
        super().__init__(point)
        command("mount", "-t", "tmpfs", "-o", f"size={size // 1024}k", "none", self.point)

    def become_read_only(self, folder):
        """For everyone who comes by the folder's path; returns what undoes it."""
        command("mount", "--bind", folder, folder)
        command("mount", "-o", "remount,bind,ro", folder)
        return lambda: command("umount", "-l", folder)


class Disk(Volume):
    """An ext4 file system in a file. Its journal is written out when something is fsynced, and otherwise not for minutes."""

    def __init__(self, point, image, size=0):
        """`size` 0: the image holds a file system already."""
        super().__init__(point)
        self.image = pathlib.Path(image)
        if size:
            with open(self.image, "wb") as file:
                file.truncate(size)
            command("mkfs.ext4", "-q", "-F", "-m", "0", self.image)
        command("mount", "-o", "loop,commit=300", self.image, self.point)

    def become_read_only(self, _):
        """As after an error of the disk; returns what repairs it."""
        command("mount", "-o", "remount,abort", self.point)

        def repair():
            command("umount", self.point)
            subprocess.run(["fsck.ext4", "-y", self.image], env={**os.environ, "PATH": PATH}, capture_output=True, check=False)
            command("mount", "-o", "loop", self.image, self.point)
        return repair

    def cut_power(self, image):
        """What would be found on the disk if the power failed now, as another image."""
        shutil.copyfile(self.image, image)


def show_also_at(folder, place):
    """The same folder under a second path."""
    pathlib.Path(place).mkdir(parents=True, exist_ok=True)
    command("mount", "--bind", folder, place)
