# SPDX-License-Identifier: Apache-2.0
"""A real cluster for the tests: kubectl and Helm, namespaces that enforce Pod Security, releases of the chart.

tools/cluster/test.sh brings the cluster up, loads the image and sets the environment: KUBECONFIG, and CLUSTER_CACHE for
the programs. Everything that a test makes lies in a namespace of its own, which goes with it.
"""

import contextlib
import json
import os
import pathlib
import re
import subprocess
import sys
import threading
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests/faults"))
from harness import require  # noqa: E402  # pylint: disable=wrong-import-position

CACHE = pathlib.Path(os.environ.get("CLUSTER_CACHE") or pathlib.Path.home() / ".cache/fettle-cluster")
CHART = ROOT / "deploy/chart"
VALUES = ROOT / "deploy/values"
COPY = ROOT / "deploy/copy.sh"
IMAGE = {"image.repository": "localhost/fettle", "image.tag": "test"}
HOST = os.environ.get("CLUSTER_NET", "10.241") + ".0.254"  # this machine, as pods see it: the end of the cluster's bridge
POLL = 0.3


def run(*command, timeout=300, expect=0, text=None, environment=None):
    """The output of a command. expect: the exit code required; None: any, and the CompletedProcess is returned."""
    done = subprocess.run([*map(str, command)], capture_output=True, timeout=timeout, check=False, input=text,
                          encoding="utf-8", errors="replace", env={**os.environ, **(environment or {})})
    if expect is None:
        return done
    require(done.returncode == expect, f"exit code {done.returncode}, not {expect}: {' '.join(map(str, command))}\n"
            f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}")
    return done.stdout


def kubectl(*arguments, **options):
    return run(CACHE / "bin/kubectl", *arguments, **options)


def wait_until(condition, what, seconds=180, show=None):
    """Polls; the condition's value once it is true. show: what to print if it never is."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        require(time.monotonic() < deadline, f"{what}: not within {seconds} s\n{show() if show else ''}")
        time.sleep(POLL)
    return found


def settings(values):
    """Helm's --set arguments. Strings stay strings."""
    found = []
    for name, value in values.items():
        if isinstance(value, (dict, list)):
            found += ["--set-json", f"{name}={json.dumps(value)}"]
        elif isinstance(value, str):
            found += ["--set-string", f"{name}={value}"]
        else:
            found += ["--set", f"{name}={json.dumps(value)}"]
    return found


class Namespace:
    """Enforces a Pod Security level; everything in it is deleted when the `with` ends."""

    _numbers = iter(range(1, 1000))
    _lock = threading.Lock()

    def __init__(self, level="restricted"):
        with self._lock:
            self.name = f"fettle-{os.getpid()}-{next(self._numbers)}"
        self._level = level

    def __enter__(self):
        kubectl("create", "namespace", self.name)
        labels = [f"pod-security.kubernetes.io/{mode}={self._level}" for mode in ("enforce", "warn")]
        kubectl("label", "namespace", self.name, *labels)
        return self

    def __exit__(self, *_):
        kubectl("delete", "namespace", self.name, "--wait=false", expect=None)

    def kubectl(self, *arguments, **options):
        return kubectl("--namespace", self.name, *arguments, **options)

    def get(self, *arguments):
        return json.loads(self.kubectl("get", *arguments, "--output=json"))

    def pods(self, component="train"):
        return self.get("pods", f"--selector=app.kubernetes.io/component={component}")["items"]


class Release:
    """One installation of the chart. helm: 3 or 4."""

    def __init__(self, namespace, values_file="example", helm=4, **values):
        self.namespace, self.helm_version = namespace, helm
        self.name = "run"
        self.installed = time.monotonic()
        self.notes = self.helm("install", self.name, CHART, "--values", VALUES / f"{values_file}.yaml",
                               *settings(IMAGE | values))

    def helm(self, *arguments, **options):
        return run(CACHE / f"bin/helm{self.helm_version}", "--namespace", self.namespace.name, *arguments, **options)

    def job(self):
        jobs = self.namespace.get("jobs", f"--selector=app.kubernetes.io/instance={self.name}")["items"]
        return jobs[0] if jobs else None

    def condition(self):
        """"Complete", "Failed", or None while it runs."""
        for condition in (self.job() or {}).get("status", {}).get("conditions", []):
            if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
                return condition["type"]
        return None

    def wait(self, wanted="Complete", seconds=240):
        found = wait_until(self.condition, f"the Job to end as {wanted}", seconds, self.describe)
        require(found == wanted, f"the Job ended as {found}, not {wanted}\n{self.describe()}")

    def log(self, container="train"):
        """Of all pods of the run that are there."""
        return "\n".join(self.namespace.kubectl("logs", pod["metadata"]["name"], "--container", container, expect=None).stdout
                         for pod in self.namespace.pods())

    def wait_for_step(self, step, seconds=180):
        def reached():
            require(self.condition() != "Failed", f"the Job failed before step {step}\n{self.describe()}")
            return any(int(found) >= step for found in re.findall(r"step (\d+)/", self.log()))
        wait_until(reached, f"step {step}", seconds, self.describe)

    def message(self, name=None):
        """What the containers that ended said last: {container: (exit code, reason, message)}, of one pod or the only one."""
        pods = [pod for pod in self.namespace.pods() if name in (None, pod["metadata"]["name"])]
        said = {}
        for pod in pods:
            for status in pod["status"].get("initContainerStatuses", []) + pod["status"].get("containerStatuses", []):
                if ended := status["state"].get("terminated"):
                    said[status["name"]] = (ended["exitCode"], ended.get("reason", ""), ended.get("message", "").strip())
        return said

    def describe(self):
        return "\n".join([self.namespace.kubectl("get", "pods", "--output=wide", expect=None).stdout,
                          self.namespace.kubectl("get", "events", "--sort-by=.lastTimestamp", expect=None).stdout[-2500:],
                          json.dumps(self.message(), indent=1), self.log()[-3000:]])

    def data_pod(self):
        name = f"{self.namespace.get('statefulsets')['items'][0]['metadata']['name']}-0"
        self.namespace.kubectl("wait", "--for=condition=Ready", f"pod/{name}", "--timeout=120s")
        return name

    def copy_command(self, direction, here, there):
        """deploy/copy.sh, and the environment that it needs."""
        command = ["bash", COPY, direction, "--namespace", self.namespace.name, "--pod", self.data_pod(), here, there]
        return [*map(str, command)], {"KUBECTL": str(CACHE / "bin/kubectl")}

    def copy(self, direction, here, there, timeout=300):
        command, environment = self.copy_command(direction, here, there)
        return run(*command, timeout=timeout, environment=environment)

    def in_volume(self, *command, expect=0):
        return self.namespace.kubectl("exec", self.data_pod(), "--", *command, expect=expect)

    def result(self, place, seconds=240):
        """The output folder, copied out of a run that is complete, its hashes compared on both sides."""
        self.wait(seconds=seconds)
        place.mkdir(parents=True, exist_ok=True)
        self.copy("download", place / "output", "/data/output")
        run("sh", "-c", f"cd '{place}/output' && sha256sum --strict --quiet --check manifest.sha256")
        return place / "output"


@contextlib.contextmanager
def release(values_file="example", level="restricted", **values):
    """A release in a namespace of its own."""
    with Namespace(level) as namespace:
        yield Release(namespace, values_file, **values)
