# SPDX-License-Identifier: Apache-2.0
"""The chart on a real cluster, with the image that deploy/Dockerfile makes.

  image            its size, its user, what it must not hold, its bill of materials
  example          installed by Helm 3 and 4: trained, tested, copied out, loaded by PEFT; the time to the first step
  nodes            two pods (Indexed Job), and the same by PyTorchJob under the training-operator: the same bytes
  admitted         every values file, kind and number of nodes, by the API server with the operators' own definitions, under
                   the "restricted" level
  gaudi            eight cards, from the device plugin
  stand_in         two cards, with a stand-in of the vendor's bridge (tests/hpu) on the volume: trained to the end
  copied           a folder of 1 GB to the volume and back, each with a cut in between
"""

import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import yaml

import kube
from kube import CACHE, CHART, ROOT, VALUES, Namespace, kubectl, release, require, run, settings, wait_until

import harness  # pylint: disable=wrong-import-order  # kube has told where it is

PYTHON = ROOT / ".venv-test/bin/python"
RUN = {"config.max_steps": 20, "config.num_train_epochs": None}  # in place of the example's one epoch
TWO_NODES = RUN | {"nodes": 2, "storage.accessModes": ["ReadWriteMany"], "resources.cpu": "300m"}
LOAD = """
import sys, torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
base = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
ids = torch.arange(1, 40)[None]
before = base(ids).logits
after = PeftModel.from_pretrained(base, sys.argv[2])(ids).logits
assert torch.isfinite(after).all() and (after - before).abs().max() > 1e-3, "the adapter changes nothing"
"""


def image(_workplace, summary, _):
    """At most 600 MB; a numeric user, a read-only root; no compiler, no pip; a bill of materials that is SPDX."""
    with release(**RUN) as run_:
        def shell(script):
            return run_.in_volume("sh", "-c", script).strip()
        require(shell("id -u; id -g").split() == ["10001", "10001"], "the user")
        require(shell("touch /here 2>&1 || true").endswith("Read-only file system"), "the root can be written to")
        tools = shell("for tool in cc gcc g++ ld make cargo pip pip3 python3; do command -v $tool || true; done")
        require(tools == "", f"the image holds {tools}")
        size = int(shell("du --bytes --summarize --one-file-system / 2>/dev/null || true").split()[0])
        require(size < 600e6, f"the image takes {size} bytes")
        materials = json.loads(shell("cat /usr/local/share/doc/fettle/sbom.spdx.json"))
        require(materials["spdxVersion"] == "SPDX-2.3" and materials["relationships"], materials["name"])
        names = [package["name"] for package in materials["packages"]]
        require({"fettle", "torch", "tokenizers", "libc6", "libcurl4"} <= set(names), names)
        identifiers = [package["SPDXID"] for package in materials["packages"]]
        require(len(set(identifiers)) == len(identifiers), "an SPDXID is there twice")
        summary.count(f"image: {size / 1e6:.0f} MB, {len(names)} packages in its bill of materials")


def peft_loads(adapter):
    run(PYTHON, "-c", LOAD, ROOT / "examples/stories260K", adapter, environment={"HF_HUB_OFFLINE": "1"})


def example(workplace, summary, _):
    """helm install, trained, helm test, copied out with equal hashes, loaded by PEFT; the volume survives."""
    for helm in (3, 4):
        with Namespace() as namespace:
            run_ = kube.Release(namespace, helm=helm, **RUN)
            run_.wait_for_step(1)
            seconds = time.monotonic() - run_.installed
            output = run_.result(workplace.new("example"))
            code, _reason, message = run_.message()["train"]
            require(code == 0 and message.startswith("complete: the adapter is in /data/output; steps 20, train_loss "),
                    f"the termination message is {message!r}")
            require("kubectl" in run_.notes and run_.namespace.name in run_.notes, f"NOTES:\n{run_.notes}")
            tested = run_.helm("test", run_.name, "--logs")
            require("all as written" in tested and "Once upon a time" not in tested.splitlines()[-1], tested)
            peft_loads(output)
            run_.helm("uninstall", run_.name)
            claims = namespace.get("pvc")["items"]
            require(len(claims) == 1 and claims[0]["status"]["phase"] == "Bound", "the volume went with the release")
            for command in re.findall(r"kubectl .*(delete (?:pod|pvc) .*?)(?:  +#.*)?$", run_.notes, re.MULTILINE):
                namespace.kubectl(*command.split())
            wait_until(lambda: not namespace.get("pvc")["items"], "the claim to go", 60)  # pylint: disable=cell-var-from-loop
        summary.count(f"Helm {helm}: trained, tested, copied, loaded")
        summary.count(f"Helm {helm}: {seconds:.1f} s from helm install to the first step")


def operator():
    """training-operator of the same release as its manifests, with the init image that is in the cluster."""
    ready = kubectl("--namespace=kubeflow", "get", "deployment", "training-operator", "--output=jsonpath={.status.readyReplicas}",
                    expect=None)
    if ready.stdout == "1":
        return
    manifests = kubectl("kustomize", CACHE / "manifests/training-operator/overlays/standalone")
    manifests, images = re.subn(r"image: kubeflow/training-operator:.*", "image: localhost/training-operator:test", manifests)
    require(images == 1, f"{images} images in the operator's manifests")
    kubectl("apply", "--server-side", "--force-conflicts", "--filename=-", text=manifests)
    kubectl("--namespace=kubeflow", "patch", "deployment", "training-operator", "--type=json", "--patch", json.dumps([
        {"op": "add", "path": "/spec/template/spec/containers/0/args",
         "value": ["--pytorch-init-container-image=localhost/training-operator-init:test"]}]))
    kubectl("--namespace=kubeflow", "rollout", "status", "deployment/training-operator", "--timeout=120s")


def succeeded(run_, pods):
    def phases():
        return [pod["status"]["phase"] for pod in run_.namespace.pods()]
    wait_until(lambda: phases() == ["Succeeded"] * pods, f"{pods} pods to succeed", 300,
               lambda: f"{phases()}\n{run_.describe()}\n{run_.log('pytorch')}")


def nodes(workplace, summary, _):
    """Two pods, by an Indexed Job and by PyTorchJob: the same adapter, whose loss is the plain run's."""
    with release(**TWO_NODES) as run_:
        output = run_.result(workplace.new("indexed"), seconds=400)
        require(len(run_.namespace.pods()) == 2, "an Indexed Job of two pods has made others")
        require("2 processes (Indexed Job)" in run_.log(), run_.log())
        peft_loads(output)
        summary.count("Indexed Job, 2 pods: trained over the pod network")
    operator()
    with Namespace() as namespace:
        def installed():
            try:
                return kube.Release(namespace, kind="PyTorchJob", **TWO_NODES)
            except AssertionError as error:  # the operator's webhook answers some seconds after it is ready
                require("failed calling webhook" in str(error), error)
                namespace.kubectl("delete", "pvc,secret,configmap,statefulset", "--all")
                return None
        run_ = wait_until(installed, "the operator's webhook", 60)
        succeeded(run_, 2)
        copy = workplace.new("pytorchjob") / "output"
        run_.copy("download", copy, "/data/output")
        state = namespace.get("pytorchjobs")["items"][0]["status"]["conditions"][-1]
        require(state["type"] == "Succeeded", state)
        difference = harness.differences(output, copy)
        require(not difference, f"PyTorchJob's result differs from the Indexed Job's: {difference}")
        summary.count("PyTorchJob, master and worker succeeded: the same bytes")


def trainer():
    """The definitions of Kubeflow Trainer. Its controller needs JobSet, which cannot be had here: TrainJobs do not run."""
    crds = CACHE / "manifests/trainer/base/crds"
    kubectl("apply", "--server-side", *(f"--filename={file}" for file in sorted(crds.glob("trainer*.yaml"))))


def pod_templates(value):
    """Every pod template in a manifest, however deep."""
    if isinstance(value, dict):
        spec = value.get("template", {}).get("spec", {}) if isinstance(value.get("template"), dict) else {}
        if "containers" in spec:
            yield value["template"]
        for inner in value.values():
            yield from pod_templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from pod_templates(inner)


def admitted(_workplace, summary, _):
    """Strictly validated; the "restricted" level takes every pod but one with several Gaudi cards (hostIPC)."""
    operator()
    trainer()
    with Namespace() as restricted, Namespace("privileged") as privileged:
        for file, kind, count in itertools.product(sorted(VALUES.glob("*.yaml")), ("Job", "PyTorchJob", "TrainJob"), (1, 2)):
            namespace = privileged if file.name == "gaudi-medical-8.yaml" else restricted
            values = {"kind": kind, "nodes": count, "storage.accessModes": ["ReadWriteMany"]}
            text = run(CACHE / "bin/helm4", "template", "run", CHART, "--namespace", namespace.name, "--values", file,
                       *settings(values))
            done = namespace.kubectl("apply", "--dry-run=server", "--filename=-", text=text, expect=None)
            require(done.returncode == 0 and "PodSecurity" not in done.stderr, f"{file.name} {kind} {count}: {done.stderr}")
            require(f"{kind.lower()}." in done.stdout, f"{file.name} {kind} {count}: {done.stdout}")
            # Of an operator's kinds the API server does not look at the pods: they are shown to it themselves.
            for number, pod in enumerate(pod_templates(list(yaml.safe_load_all(text)))):
                pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": f"pod-{number}"}, "spec": pod["spec"]}
                pod["spec"].setdefault("restartPolicy", "Never")
                namespace.kubectl("create", "--dry-run=server", "--filename=-", text=json.dumps(pod))
            summary.count(f"{kind}: values files × nodes accepted")


def gaudi(_workplace, summary, _):
    """gaudi-medical-8 asks for eight cards, and the device plugin gives them; a program without a driver says so."""
    values = {"resources.hugepages2Mi": "", "resources.cpu": "300m", "resources.memory": "1Gi", "hub.existingSecret.name": "",
              "shmSize": "128Mi", "check.enabled": False, "download.enabled": False, "storage.size": "1Gi"}
    with release("gaudi-medical-8", level="privileged", **values) as run_:
        run_.wait("Failed")
        pod = run_.namespace.pods()[0]
        container = pod["spec"]["containers"][0]
        require(container["resources"]["limits"]["habana.ai/gaudi"] == "8", container["resources"])
        require(pod["spec"].get("nodeName"), "it was not scheduled")
        require(pod["spec"].get("hostIPC") is True, "eight cards exchange data through System V shared memory")
        require("privileged" not in json.dumps(pod["spec"]), "it is privileged")
        code, _reason, message = run_.message()["train"]
        require(code in (64, 69, 78) and "hpu" in message, f"{code}: {message}")
        summary.count("8 cards: scheduled, without privileges")


def stand_in(workplace, summary, _):
    """Two Gaudi cards, computing by the stand-in: both processes train, and the result is one that PEFT loads."""
    folder = "/data/bridge"
    environment = {"FETTLE_HPU_BRIDGE": f"{folder}/habana_frameworks/torch", "LD_LIBRARY_PATH": f"{folder}/habanalabs",
                   "GC_KERNEL_PATH": f"{folder}/habanalabs/libtpc_kernels.so", "FETTLE_STAND_IN_CARDS": "8",
                   "FETTLE_STAND_IN_FOLDER": "/tmp"}
    values = {"config.max_steps": 4, "config.num_train_epochs": None, "device": "hpu", "accelerators": 2, "suspend": True,
              "config.max_seq_length": 128, "resources.cpu": "500m", "resources.memory": "3Gi",
              "extraEnv": [{"name": name, "value": value} for name, value in environment.items()]}
    with release(level="privileged", **values) as run_:
        run_.copy("upload", harness.BUILD / "tests/hpu/site", folder)
        run_.helm("upgrade", run_.name, CHART, "--reuse-values", "--set", "suspend=false")
        output = run_.result(workplace.new("stand-in"), seconds=500)
        log = run_.log()
        require(log.count("stand-in: this is not a Gaudi card") == 2 and "hpu:0" in log, log)
        lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
        require(any(line.get("compiled_graphs", 0) > 0 for line in lines), lines)
        peft_loads(output)
        summary.count("2 cards, stand-in: trained to the end, loaded by PEFT")


def copied(workplace, summary, _):
    """Cut in the middle, the same command goes on where it was; the hashes are equal on both sides."""
    place = workplace.new("copied")
    (place / "data").mkdir()
    with open(place / "data/large file.bin", "wb") as large:
        for _ in range(250):
            large.write(os.urandom(4 << 20))
    (place / "data/small.txt").write_text("small\n")
    with release(**RUN) as run_:
        for direction, here in (("upload", place / "data"), ("download", place / "back")):
            command, environment = run_.copy_command(direction, here, "/data/dataset")
            process = subprocess.Popen(command, env={**os.environ, **environment}, start_new_session=True,
                                       stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

            def part():
                if direction == "download":
                    found = here / "large file.bin.part"
                    return found.stat().st_size if found.exists() else 0
                done = run_.in_volume("stat", "--format=%s", "/data/dataset/large file.bin.part", expect=None)
                return int(done.stdout) if done.returncode == 0 else 0
            wait_until(lambda: part() > 100 << 20, "a tenth of the file", 120)  # pylint: disable=cell-var-from-loop
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            kept = part()
            require(kept < 1000 << 20, "it was over before the cut")
            began = time.monotonic()
            said = run_.copy(direction, here, "/data/dataset", timeout=600)
            summary.count(f"{direction}: cut, resumed, equal")
            print(f"  {direction}: {kept >> 20} MiB were kept, the rest took {time.monotonic() - began:.0f} s\n  {said.strip()[-200:]}")
        for name in ("large file.bin", "small.txt"):
            require(harness.sha256(place / "data" / name) == harness.sha256(place / "back" / name), name)
        shutil.rmtree(place)


if __name__ == "__main__":
    sys.exit(harness.main("cluster", [image, example, nodes, admitted, gaudi, stand_in, copied]))
