# SPDX-License-Identifier: Apache-2.0
"""Runs `fettle` against a hub of tests/hub/hub_server.py, with a home of its own and short timeouts."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest
from conftest import REPOSITORY, find_program

sys.path.insert(0, str(REPOSITORY / "tests/hub"))

import hub_server  # noqa: E402

TOKEN = "hf_ThisIsTheSecretTokenOfTheTests"
INHERITED = ("PATH", "LD_LIBRARY_PATH", "TMPDIR", "LANG")  # not the user's HF_… and proxies


class Client:
    """`client("download", "--model=org/model")`: a process with the environment of a user of that hub."""

    def __init__(self, hub, home):
        self.hub = hub
        self.home = pathlib.Path(home)
        self.cache = self.home / "hf/hub"
        self.environment = {name: os.environ[name] for name in INHERITED if name in os.environ} | {
            "HOME": str(self.home),
            "XDG_CACHE_HOME": str(self.home / "cache"),
            "HF_HOME": str(self.home / "hf"),
            "HF_ENDPOINT": hub.endpoint,
            "HF_HUB_DOWNLOAD_TIMEOUT": "2",
            "HF_HUB_ETAG_TIMEOUT": "2",
            "FETTLE_HUB_RETRY_DELAY": "0.02",
            "OMP_NUM_THREADS": "1",
        }

    def start(self, *arguments, **environment):
        line = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
        return subprocess.Popen([*line, find_program("fettle"), *map(str, arguments)], stdout=subprocess.PIPE,
                                stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, text=True, encoding="utf-8",
                                errors="backslashreplace", env=self.environment | environment)

    def finish(self, process, expect=0, timeout=120):
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            pytest.fail(f"it did not end within {timeout} s:\n{process.communicate()[1]}")
        assert TOKEN not in out + err
        if expect is not None and process.returncode != expect:
            pytest.fail(f"exit code {process.returncode}, not {expect}\n{out}\n{err}")
        process.out, process.err = out, err
        process.error = next((line for line in err.splitlines() if line.startswith("error: ")), "")
        return process

    def __call__(self, *arguments, expect=0, timeout=120, **environment):
        return self.finish(self.start(*arguments, **environment), expect, timeout)

    def repository(self, name, kind="models"):
        return self.cache / f"{kind}--{name.replace('/', '--')}"

    def snapshot(self, name, kind="models", branch="main"):
        folder = self.repository(name, kind)
        return folder / "snapshots" / (folder / "refs" / branch).read_text()


@pytest.fixture
def hub():
    with hub_server.Hub() as server:
        yield server


@pytest.fixture
def client(hub, tmp_path):
    return Client(hub, tmp_path)


def folder_files(folder):
    """{path: content} of a folder, for Hub.add."""
    folder = pathlib.Path(folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
