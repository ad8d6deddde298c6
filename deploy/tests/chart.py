# SPDX-License-Identifier: Apache-2.0
"""What the tests of the chart share: Helm, rendering, and the pods in what was rendered."""

import functools
import itertools
import json
import os
import pathlib
import re
import subprocess

import yaml

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent.parent
CHART = REPOSITORY / "deploy/chart"
VALUES = sorted((REPOSITORY / "deploy/values").glob("*.yaml"))
FETTLE = os.environ.get("FETTLE", str(REPOSITORY / "build/release/fettle"))
CACHE = pathlib.Path(
    os.environ.get("CLUSTER_CACHE")
    or pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache") / "fettle-cluster"
)
HELMS = ("helm3", "helm4")
# What `helm template` renders for, as it asks no cluster.
KUBERNETES = "1.33.0"

# Every switch that makes the chart write more.
EVERYTHING = {
    "hub": {"token": " hf_secret_of_the_tests\n"},
    "networkPolicy": {"enabled": True, "metricsFrom": [{"podSelector": {}}]},
    "metrics": {"podMonitor": {"enabled": True, "labels": {"team": "ml"}}},
    "tensorboard": {"enabled": True},
    "proxy": {"httpsProxy": "http://proxy:3128", "noProxy": "localhost"},
    "waitForData": {"paths": ["/data/dataset/more"]},
    "queueName": "team",
    "activeDeadlineSeconds": 3600,
    "ttlSecondsAfterFinished": 0,
    "resources": {"hugepages2Mi": "64Mi", "extra": {"ephemeral-storage": "1Gi"}},
    "extraEnv": [{"name": "HOME", "value": "/data/home"}, {"name": "EXTRA", "value": "1"}],
    "extraEnvFrom": [{"configMapRef": {"name": "more", "optional": True}}],
    "extraVolumes": [{"name": "more", "emptyDir": {}}],
    "extraVolumeMounts": [{"name": "more", "mountPath": "/more"}],
    "nodeSelector": {"kind": "gpu"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {}},
    "topologySpreadConstraints": [
        {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway"}
    ],
    "priorityClassName": "high",
    "runtimeClassName": "special",
    "serviceAccountName": "trainer",
    "imagePullSecrets": [{"name": "registry"}],
    "podLabels": {"team": "ml"},
    "podAnnotations": {"note": "x"},
}
MODEL = {"config": {"model_name_or_path": "org/model", "train_file": "/data/dataset/train.jsonl"}}
KINDS, DEVICES, NODES = ("Job", "PyTorchJob", "TrainJob"), ("cpu", "cuda", "hpu"), (1, 2)


class Loader(yaml.SafeLoader):
    """Reads 3e-3 as a number, as Helm does; PyYAML wants a dot in it."""


Loader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9]+[eE][-+]?[0-9]+$"), list("-+0123456789"))


def load(path):
    return yaml.load(pathlib.Path(path).read_text(encoding="utf-8"), Loader)


def tool(name):
    path = CACHE / "bin" / name
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing: run tools/cluster/install.sh chart")
    return str(path)


def run(*command, **options):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options)


def merged(*maps):
    result = {}
    for each in maps:
        for key, value in each.items():
            both = isinstance(value, dict) and isinstance(result.get(key), dict)
            result[key] = merged(result[key], value) if both else value
    return result


def helm_template(values, helm="helm3", release="run", namespace="team-a", extra=()):
    """The process that renders the chart; `values`: a map, or the path of a file."""
    source = values if isinstance(values, dict) else load(values)
    command = [tool(helm), "template", release, str(CHART), "--namespace", namespace, "--kube-version", KUBERNETES, *extra]
    return run(*command, "--values", "-", input=json.dumps(source))


def render(values, **options):
    """The objects that the chart makes of the values."""
    printed = helm_template(values, **options)
    if printed.returncode != 0:
        raise AssertionError(printed.stdout)
    documents = [document for document in yaml.safe_load_all(printed.stdout) if document]
    return list(itertools.chain.from_iterable(d["items"] if d["kind"] == "List" else [d] for d in documents))


@functools.lru_cache(maxsize=None)
def renders():
    """(name, values, objects) of every values file, and of every combination, plain and with everything switched on."""
    result = [(path.name, load(path), render(path)) for path in VALUES]
    for kind, device, nodes in itertools.product(KINDS, DEVICES, NODES):
        for name, more in (("plain", {}), ("everything", EVERYTHING)):
            values = merged(MODEL, {"kind": kind, "device": device, "nodes": nodes, "accelerators": nodes}, more)
            result.append((f"{kind} {device} {nodes} {name}", values, render(values)))
    return result


def of_kind(objects, kind):
    return [each for each in objects if each["kind"] == kind]


def pod_templates(each):
    """The pod templates of one object."""
    kind, spec = each["kind"], each.get("spec", {})
    if kind == "Pod":
        return [each]
    if kind in ("Job", "StatefulSet", "Deployment"):
        return [spec["template"]]
    if kind == "PyTorchJob":
        return [replica["template"] for replica in spec["pytorchReplicaSpecs"].values()]
    if kind == "TrainingRuntime":
        return [job["template"]["spec"]["template"] for job in spec["template"]["spec"]["replicatedJobs"]]
    return []


def all_pods(objects):
    return list(itertools.chain.from_iterable(pod_templates(each) for each in objects))


def training_pods(objects):
    return [pod for pod in all_pods(objects) if pod["metadata"]["labels"].get("app.kubernetes.io/component") == "train"]


def containers(pod):
    return pod["spec"].get("initContainers", []) + pod["spec"]["containers"]


def environment(container):
    return {entry["name"]: entry.get("value") for entry in container.get("env", [])}


def config_of(objects):
    return json.loads(of_kind(objects, "ConfigMap")[0]["data"]["config.json"])
