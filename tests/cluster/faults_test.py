# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on a cluster, and what the run does about it.

  late             the data set comes after the pod: it waits, and says for what; nothing restarts
  hub              model and records from a hub, with a right, a wrong and no token
  mistakes         a column, a layer's name, a path: the Job fails once, and says why where `kubectl describe` shows it
  interrupted      a pod deleted, a node drained, a process killed for memory: the adapter of a run that was not, to the byte
  several          one of two pods killed
  full             no room on the volume: a clear failure, the checkpoint before it intact, and the run goes on with room
"""

import functools
import json
import sys
import time

import kube
from kube import ROOT, Namespace, kubectl, release, require, wait_until

sys.path.insert(0, str(ROOT / "tests/hub"))
import hub_server  # noqa: E402  # pylint: disable=wrong-import-position
import harness  # pylint: disable=wrong-import-order

RECORDS = ROOT / "examples/data/tinystories_valid_350.jsonl"
EXAMPLES = "/usr/local/share/fettle/examples/data"  # in the image
# Long enough to be interrupted, with checkpoints on the way.
LONG = {"config.max_steps": 120, "config.num_train_epochs": None, "config.save_steps": 10, "config.logging_steps": 5, "config.num_threads": 1,
        "storage.accessModes": ["ReadWriteMany"]}


def late(workplace, summary, _):
    """Uploaded 60 seconds late: the pod waits in its init container, with the command to upload."""
    with release(**{"config.train_file": "/data/dataset/train.jsonl", "config.max_steps": 10, "config.num_train_epochs": None}) as run_:
        run_.data_pod()
        time.sleep(60)
        pod = run_.namespace.pods()[0]
        require(pod["status"]["phase"] == "Pending", pod["status"])
        said = run_.log("wait-for-data")
        require("/data/dataset/train.jsonl is not there yet" in said and "kubectl cp" in said, said)
        place = workplace.new("late")
        (place / "train.jsonl").write_bytes(RECORDS.read_bytes())
        run_.copy("upload", place / "train.jsonl", "/data/dataset/train.jsonl")
        run_.wait()
        pods = run_.namespace.pods()
        restarts = [status["restartCount"] for status in pods[0]["status"]["initContainerStatuses"]]
        require(len(pods) == 1 and not any(restarts), f"{len(pods)} pods, restarts {restarts}")
        summary.count("60 s late: waited without a restart, then trained")


MISTAKES = {
    "wrong column": ({"config.train_file": f"{EXAMPLES}/medical_meadow_wikidoc_patient_2000.json", "config.instruction_column": "question"},
                     65, "question"),
    "typo in a layer's name": ({"config.lora_target_modules": ["q_proj", "vproj"]}, 78, "vproj"),
    "no such file in the image": ({"config.train_file": "/nowhere/train.jsonl"}, 66, "/nowhere/train.jsonl"),
}


def fails_once(run_, code, word):
    run_.wait("Failed")
    pods = run_.namespace.pods()
    require(len(pods) == 1, f"{len(pods)} pods: it was tried again")
    ended = [(name, said) for name, said in run_.message().items() if said[0] != 0]
    require(len(ended) == 1 and ended[0][1][0] == code and word in ended[0][1][2], f"{ended}")
    described = run_.namespace.kubectl("describe", "pod", pods[0]["metadata"]["name"])
    require(word in described, "kubectl describe does not show the reason")
    failed = [each for each in run_.job()["status"]["conditions"] if each["type"] == "Failed"][0]
    require(failed["reason"] == "PodFailurePolicy", failed)
    return ended[0][1][2]


def mistakes(_workplace, summary, _):
    """Mistakes of the user: one pod, the reason in the termination message, no second try."""
    for name, (values, code, word) in MISTAKES.items():
        with release(**values) as run_:
            print(f"  {name}: {fails_once(run_, code, word)}")
            summary.count(f"{name}: failed once, with the reason")


def hub_of_stories():
    """The tests' hub where pods reach it, on the host's end of the cluster's bridge: a private model, open records."""
    hub = hub_server.Hub(address=kube.HOST)
    model = {path.name: path.read_bytes() for path in sorted((ROOT / "examples/stories260K").iterdir())}
    hub.add("org/stories", model, private_to=["hf_right"])
    hub.add("org/tinystories", {"train.jsonl": RECORDS.read_bytes()}, kind="datasets")
    return hub


FROM_HUB = {"config.model_name_or_path": "org/stories", "config.dataset_name": "org/tinystories", "config.train_file": None,
            "config.max_steps": 10, "config.num_train_epochs": None}


def hub(_workplace, summary, _):
    """A private model and its records from a hub: once for two pods; a wrong token fails once, and is never shown."""
    with hub_of_stories() as there:
        values = FROM_HUB | {"hub.endpoint": there.endpoint, "hub.token": "hf_right\n", "nodes": 2, "resources.cpu": "300m",
                             "storage.accessModes": ["ReadWriteMany"]}
        with release(**values) as run_:
            run_.wait()
            weights = (ROOT / "examples/stories260K/model.safetensors").stat().st_size
            sent = there.sent_bytes("model.safetensors")
            require(sent == weights, f"{sent} bytes of weights were sent for {weights}")
            summary.count("hub: two pods, downloaded once, trained")
        for token, word in (("hf_wrong\n", "token"), ("", "token")):
            with release(**FROM_HUB | {"hub.endpoint": there.endpoint, "hub.token": token}) as run_:
                said = fails_once(run_, 77, word)
                shown = run_.namespace.kubectl("get", "configmaps,pods,jobs,statefulsets", "--output=yaml")
                require("hf_wrong" not in shown + run_.describe() + run_.notes, "the token is shown")
                print(f"  token {token!r}: {said}")
                summary.count("hub: wrong or no token: failed once, with the reason")


def delete(run_):
    """As an administrator does."""
    pod = run_.namespace.pods()[0]["metadata"]["name"]
    run_.namespace.kubectl("delete", "pod", pod, "--wait=false")


def drain(run_):
    """As an upgrade of the nodes does."""
    pod = run_.namespace.pods()[0]
    node = pod["spec"]["nodeName"]
    kubectl("drain", node, f"--pod-selector=app.kubernetes.io/component=train", "--ignore-daemonsets", "--force", "--timeout=120s",
            "--delete-emptydir-data")
    return lambda: kubectl("uncordon", node)


def fill_memory(run_):
    """The kernel ends the largest process when /dev/shm has used up the container's memory."""
    pod = run_.namespace.pods()[0]["metadata"]["name"]
    run_.namespace.kubectl("exec", pod, "--container=train", "--", "sh", "-c",
                           "dd if=/dev/zero of=/dev/shm/fill bs=1M count=2000 || true", expect=None)


@functools.cache
def reference(workplace):
    """The result of a run that nothing interrupted."""
    with release(**LONG) as run_:
        return run_.result(workplace.new("reference"), seconds=400)


def interrupted(workplace, summary, _):
    """Deleted, drained or killed for memory in the middle: resumed, and equal to the byte."""
    expected = reference(workplace)
    for interrupt, reason in ((delete, None), (drain, None), (fill_memory, "OOMKilled")):
        with release(**LONG | {"shmSize": "2Gi"}) as run_:
            run_.wait_for_step(35)
            first = run_.namespace.pods()[0]["metadata"]["name"]
            undo = interrupt(run_)
            if reason:
                wait_until(lambda: reason in str(run_.message(first)), f"the reason {reason}", 60, run_.describe)
            output = run_.result(workplace.new("interrupted"), seconds=400)
            log = run_.log()
            if undo:
                undo()
            require("resuming from" in log, f"it did not resume\n{log[-2000:]}")
            difference = harness.differences(expected, output)
            require(not difference, f"{interrupt.__name__}: the result differs: {difference}")
            summary.count(f"{interrupt.__name__.replace('_', ' ')}: resumed, the same bytes")


def several(workplace, summary, _):
    """One of two pods is killed without a warning: both come again, from the same checkpoint, to the same bytes."""
    two = LONG | {"nodes": 2, "resources.cpu": "300m", "config.max_steps": 60, "config.peer_timeout": 5}
    with release(**two) as run_:
        expected = run_.result(workplace.new("two"), seconds=400)
    with release(**two) as run_:
        run_.wait_for_step(25)
        victim = [pod for pod in run_.namespace.pods() if pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"] == "1"]
        run_.namespace.kubectl("delete", "pod", victim[0]["metadata"]["name"], "--grace-period=0", "--force")
        output = run_.result(workplace.new("two"), seconds=400)
        require("resuming from" in run_.log(), f"it did not resume\n{run_.log()[-2000:]}")
        difference = harness.differences(expected, output)
        require(not difference, f"the result differs: {difference}")
        summary.count("one of two pods killed: resumed, the same bytes")


def full(workplace, summary, _):
    """A volume of a few megabytes: exit code 74, earlier checkpoints whole; with room, the same run goes on."""
    expected = reference(workplace)
    with Namespace() as namespace:
        volume = small_volume(namespace)
        run_ = kube.Release(namespace, **LONG | {"storage.existingClaim": volume, "backoffLimit": 0,
                                         "config.output_dir": "/data/output"})
        run_.wait_for_step(15)
        run_.in_volume("sh", "-c", "head -c 1G /dev/zero > /data/filler || true", expect=0)
        run_.wait("Failed")
        code, _reason, message = run_.message()["train"]
        require(code == 74 and "No space left" in message, f"{code}: {message}")
        print(f"  full: {message}")
        run_.in_volume("rm", "/data/filler")
        place = workplace.new("full")
        run_.copy("download", place / "output", "/data/output")
        require(harness.whole_checkpoints(place / "output"), "no whole checkpoint is left")
        run_.helm("upgrade", "run", kube.CHART, "--reuse-values", "--set-string=run=again")
        wait_until(lambda: "complete" in str(run_.message().get("train")), "the second try", 300, run_.describe)
        run_.copy("download", place / "again", "/data/output")
        difference = harness.differences(expected, place / "again")
        require(not difference, f"the result differs: {difference}")
        summary.count("volume full: a clear failure, then the same bytes")


def small_volume(namespace):
    """A claim on a file system of 12 MB, in one node."""
    path = "/run/fettle-small"
    node = run_in_node("node1", "sh", "-c", f"mkdir -p {path} && mountpoint -q {path} || mount -t tmpfs -o size=12m,mode=1777 tmpfs {path}")
    require(node == "", node)
    run_in_node("node1", "sh", "-c", f"rm -rf {path}/*")
    terms = [{"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": ["node1"]}]}]
    spec = {"capacity": {"storage": "12Mi"}, "accessModes": ["ReadWriteMany"], "storageClassName": "small",
            "hostPath": {"path": path}, "nodeAffinity": {"required": {"nodeSelectorTerms": terms}}}
    volume = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"small-{namespace.name}"}, "spec": spec}
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "small"},
             "spec": {"accessModes": ["ReadWriteMany"], "storageClassName": "small", "volumeName": f"small-{namespace.name}",
                      "resources": {"requests": {"storage": "12Mi"}}}}
    kubectl("apply", "--filename=-", text=json.dumps(volume))
    namespace.kubectl("apply", "--filename=-", text=json.dumps(claim))
    return "small"


def run_in_node(node, *command):
    return kube.run(ROOT / "tools/cluster/cluster.sh", "in-node", node.removeprefix("node"), *command)


if __name__ == "__main__":
    sys.exit(harness.main("cluster faults", [late, mistakes, hub, interrupted, several, full]))
