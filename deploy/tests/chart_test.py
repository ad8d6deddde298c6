#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The chart without a cluster: both Helms, schemas, and what must hold in every pod of every combination of values.

`make test-chart` runs it. Needs PyYAML, and the tools of `tools/cluster/install.sh chart`.
"""

import base64
import copy
import json
import pathlib
import re
import shutil
import subprocess
import sys
import tempfile
import unittest

import yaml

import chart
from chart import CHART, FETTLE, HELMS, MODEL, REPOSITORY, VALUES, merged, render, renders

FAIL, IGNORE = {64, 65, 66, 76, 77, 78}, {75}


class Helm(unittest.TestCase):
    def test_lint(self):
        for helm in HELMS:
            for values in [None, *VALUES]:
                with self.subTest(helm=helm, values=values):
                    files = ["--values", str(values)] if values else []
                    lint = [chart.tool(helm), "lint", "--strict", str(CHART), "--kube-version", chart.KUBERNETES]
                    printed = chart.run(*lint, *files)
                    self.assertEqual(printed.returncode, 0, printed.stdout)

    def test_helm_4_renders_what_helm_3_does(self):
        for name, values, objects in renders():
            with self.subTest(name):
                self.assertCountEqual(render(values, helm="helm4"), objects)

    def test_a_typo_in_config_is_refused_by_name(self):
        for helm in HELMS:
            for option, value in (("lerning_rate", 1e-4), ("lora_target_module", "q_proj")):
                with self.subTest(helm=helm, option=option):
                    printed = chart.helm_template(merged(MODEL, {"config": {option: value}}), helm=helm)
                    self.assertNotEqual(printed.returncode, 0)
                    self.assertIn(f"'{option}' not allowed", printed.stdout)

    def test_names_of_other_systems_are_accepted(self):
        config = chart.config_of(render(merged(MODEL, {"config": {"lora_rank": 8, "evaluation_strategy": "epoch"}})))
        self.assertEqual((config["lora_rank"], config["evaluation_strategy"]), (8, "epoch"))

    def test_other_names_of_what_the_chart_looks_at_are_refused(self):
        text = "".join(path.read_text(encoding="utf-8") for path in (CHART / "templates").rglob("*.*"))
        options = chart.load(CHART / "values.schema.json")["properties"]["config"]["properties"]
        refused = set()
        for name, schema in options.items():
            option = schema.get("description", "").removeprefix("Another name of ").rstrip(".")
            if option not in options or not re.search(rf'"{option}"|config\.{option}\b', text):
                continue
            with self.subTest(name):
                printed = chart.helm_template(merged(MODEL, {"config": {name: "x"}}), extra=["--skip-schema-validation"])
                real = "set the value device" if option == "device" else f"write config.{option}, its name here"
                self.assertIn(f"config.{name}: {real}", printed.stdout)
                refused.add(name)
        self.assertLessEqual({"model", "dataset", "eval_dataset", "use_lora", "no_cuda", "use_habana"}, refused)

    def test_unit_suites(self):
        printed = chart.run(chart.tool("untt"), "--strict", str(CHART))
        self.assertEqual(printed.returncode, 0, printed.stdout)

    def test_every_template_and_values_file_has_a_suite(self):
        suites = [chart.load(path) for path in (CHART / "tests").glob("*_test.yaml")]
        tested = {template for suite in suites for template in suite.get("templates", [])}
        templates = {str(path.relative_to(CHART / "templates")) for path in (CHART / "templates").rglob("*.*")}
        self.assertEqual({name for name in templates if not name.endswith(".tpl")}, tested)
        used = {
            pathlib.Path(file).name
            for suite in suites
            for part in [suite, *suite["tests"]]
            for file in part.get("values", [])
        }
        self.assertEqual({path.name for path in VALUES}, used)


class MadeFiles(unittest.TestCase):
    def check(self, *command):
        printed = chart.run(sys.executable, *command, "--check")
        self.assertEqual(printed.returncode, 0, printed.stdout)

    def test_readme_is_current(self):
        self.check(str(REPOSITORY / "tools/chart_readme.py"))

    def test_schema_is_current(self):
        self.check(str(REPOSITORY / "tools/chart_schema.py"), FETTLE)

    def test_versions_agree(self):
        described = chart.load(CHART / "Chart.yaml")
        version = re.search(r"project\(fettle VERSION (\S+)", (REPOSITORY / "CMakeLists.txt").read_text(encoding="utf-8"))
        self.assertEqual(described["appVersion"], version.group(1))

    def test_make_tags_the_image_that_the_chart_asks_for(self):
        for device in chart.DEVICES:
            printed = chart.run("make", "--dry-run", "image", f"TARGET={device}", cwd=REPOSITORY)
            pod = chart.training_pods(render(merged(MODEL, {"device": device, "image": {"repository": "localhost/fettle"}})))[0]
            self.assertIn(f"image.sh {device} {pod['spec']['containers'][0]['image']}\n", printed.stdout)


class Kubeconform(unittest.TestCase):
    """Against the schemas of the Kubernetes version that tools/cluster runs."""

    @classmethod
    def setUpClass(cls):
        cls.folder = pathlib.Path(tempfile.mkdtemp())
        cluster = REPOSITORY / "tools/cluster"
        module = re.search(r"k8s\.io/kubernetes (v\S+)", (cluster / "kube/go.mod").read_text(encoding="utf-8")).group(1)
        printed = subprocess.run(
            ["go", "mod", "download", "-json", f"k8s.io/kubernetes@{module}"], check=True, stdout=subprocess.PIPE
        )
        swagger = pathlib.Path(json.loads(printed.stdout)["Dir"]) / "api/openapi-spec/swagger.json"
        subprocess.run([sys.executable, str(cluster / "schemas.py"), str(swagger), str(cls.folder)], check=True)
        cls.skipped = {"PodMonitor"}
        for kind in ("PyTorchJob", "TrainJob", "TrainingRuntime"):
            if not cls.add_crd(cluster, kind):
                cls.skipped.add(kind)
        print(f"kubeconform: no schema here, so not checked: {', '.join(sorted(cls.skipped))}")

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    @classmethod
    def add_crd(cls, cluster, kind):
        """Whether the operators' manifests (`install.sh operators`) hold the kind; writes its schema."""
        sys.path.insert(0, str(cluster))
        import schemas

        for file in (chart.CACHE / "manifests").rglob("*.yaml"):
            text = file.read_text(encoding="utf-8")
            if "kind: CustomResourceDefinition" not in text or f"kind: {kind}\n" not in text:
                continue
            for crd in yaml.safe_load_all(text):
                group, version = crd["spec"]["group"].split(".")[0], crd["spec"]["versions"][0]
                schema = schemas.inline(version["schema"]["openAPIV3Schema"], {}, frozenset())
                path = cls.folder / f"{kind.lower()}-{group}-{version['name']}.json"
                path.write_text(json.dumps(schema), encoding="utf-8")
                return True
        return False

    def conform(self, objects):
        command = [chart.tool("kubeconform"), "-strict", "-skip", ",".join(self.skipped)]
        location = str(self.folder / "{{.ResourceKind}}{{.KindSuffix}}.json")
        return chart.run(*command, "-schema-location", location, "-", input=yaml.safe_dump_all(objects))

    def test_every_render(self):
        for name, _, objects in renders():
            with self.subTest(name):
                printed = self.conform(objects)
                self.assertEqual(printed.returncode, 0, printed.stdout)

    def test_a_misspelt_field_is_found(self):
        objects = copy.deepcopy(render(MODEL))
        chart.of_kind(objects, "Job")[0]["spec"]["backofLimit"] = 1
        self.assertNotEqual(self.conform(objects).returncode, 0)


def restricted(pod):
    """Yields what in a pod breaks the Pod Security Standard "restricted"."""
    spec = pod["spec"]
    for field in ("hostNetwork", "hostPID", "hostIPC"):
        if spec.get(field):
            yield field
    allowed = {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
    for volume in spec["volumes"]:
        if not set(volume) - {"name"} <= allowed:
            yield f"volume {volume}"
    whole = spec.get("securityContext", {})
    for container in chart.containers(pod):
        name, own = container["name"], container["securityContext"]
        context = {**whole, **own}
        if own.get("privileged"):
            yield f"{name}: privileged"
        if own.get("allowPrivilegeEscalation") is not False:
            yield f"{name}: allowPrivilegeEscalation"
        if context.get("runAsNonRoot") is not True or context.get("runAsUser", 1) == 0:
            yield f"{name}: may be root"
        if context.get("seccompProfile", {}).get("type") not in ("RuntimeDefault", "Localhost"):
            yield f"{name}: seccompProfile"
        capabilities = own.get("capabilities", {})
        if "ALL" not in capabilities.get("drop", []):
            yield f"{name}: capabilities are not dropped"
        if set(capabilities.get("add", [])) - {"NET_BIND_SERVICE"}:
            yield f"{name}: adds {capabilities['add']}"
        if any("hostPort" in port for port in container.get("ports", [])):
            yield f"{name}: hostPort"


class EveryPod(unittest.TestCase):
    def each(self):
        for name, values, objects in renders():
            for pod in chart.all_pods(objects):
                with self.subTest(f"{name}: {pod['spec']['containers'][0]['name']}"):
                    yield values, pod

    def test_the_checker_finds_what_it_should(self):
        pod = copy.deepcopy(chart.training_pods(render(MODEL))[0])
        self.assertEqual(list(restricted(pod)), [])
        pod["spec"]["hostIPC"] = True
        pod["spec"]["volumes"].append({"name": "x", "hostPath": {"path": "/"}})
        pod["spec"]["securityContext"] = {}
        own = pod["spec"]["containers"][0]["securityContext"] = {"privileged": True}
        own["capabilities"] = {"add": ["SYS_ADMIN"]}
        wrong = " ".join(restricted(pod))
        for part in ("hostIPC", "hostPath", "privileged", "Escalation", "root", "seccomp", "not dropped", "SYS_ADMIN"):
            self.assertIn(part, wrong)

    def test_security(self):
        for values, pod in self.each():
            uses_cards = pod["metadata"]["labels"]["app.kubernetes.io/component"] in ("train", "test")
            hpu = values.get("device") == "hpu" and uses_cards
            shares = hpu and values.get("accelerators", 1) > 1 and "hostIPC" in pod["spec"]
            expected = ["hostIPC"] if shares else []
            self.assertEqual(list(restricted(pod)), expected)
            self.assertEqual(pod["spec"]["automountServiceAccountToken"], False)
            self.assertEqual(pod["spec"]["enableServiceLinks"], False)
            self.assertEqual(pod["spec"]["securityContext"]["fsGroup"], 10001)
            for container in chart.containers(pod):
                self.assertEqual(container["securityContext"]["readOnlyRootFilesystem"], True)

    def test_only_several_gaudi_cards_share_the_hosts_memory(self):
        for name, values, objects in renders():
            several = values.get("device") == "hpu" and values.get("accelerators", 1) > 1
            for pod in chart.training_pods(objects):
                self.assertEqual(pod["spec"].get("hostIPC", False), several, name)

    def test_environment_is_unique(self):
        for _, pod in self.each():
            for container in chart.containers(pod):
                names = [entry["name"] for entry in container.get("env", [])]
                self.assertEqual(len(names), len(set(names)), names)

    def test_mounts_name_volumes_and_are_unique(self):
        for _, pod in self.each():
            volumes = {volume["name"] for volume in pod["spec"]["volumes"]}
            for container in chart.containers(pod):
                paths = [mount["mountPath"] for mount in container["volumeMounts"]]
                self.assertEqual(len(paths), len(set(paths)))
                self.assertLessEqual({mount["name"] for mount in container["volumeMounts"]}, volumes)
                self.assertIn("/tmp", paths)

    def test_requests_are_limits(self):
        for _, pod in self.each():
            for container in chart.containers(pod):
                resources = container["resources"]
                self.assertEqual(resources["requests"], resources["limits"])
                self.assertLessEqual({"cpu", "memory"}, set(resources["limits"]))

    def test_cards(self):
        resource = {"cuda": "nvidia.com/gpu", "hpu": "habana.ai/gaudi"}
        for name, values, objects in renders():
            device, cards = values.get("device", "cpu"), values.get("accelerators", 1)
            for pod in chart.training_pods(objects):
                for container in chart.containers(pod):
                    limits = container["resources"]["limits"]
                    has = {key: limits[key] for key in resource.values() if key in limits}
                    wants = device != "cpu" and container["name"] not in ("wait-for-data", "download")
                    self.assertEqual(has, {resource[device]: cards} if wants else {}, f"{name} {container['name']}")

    def test_selectors_find_pods(self):
        for name, _, objects in renders():
            labels = [pod["metadata"]["labels"] for pod in chart.all_pods(objects)]
            selectors = [each["spec"]["selector"] for each in chart.of_kind(objects, "Service")]
            selectors += [each["spec"]["selector"]["matchLabels"] for each in chart.of_kind(objects, "PodMonitor")]
            for selector in selectors:
                self.assertTrue(any(selector.items() <= each.items() for each in labels), f"{name}: {selector}")


class Secrets(unittest.TestCase):
    token = "hf_secret_of_the_tests"

    def test_the_token_is_in_the_secret_alone_and_trimmed(self):
        for name, _, objects in renders():
            if not name.endswith("everything"):
                continue
            secrets = chart.of_kind(objects, "Secret")
            self.assertEqual([secret["stringData"] for secret in secrets], [{"token": self.token}], name)
            others = json.dumps([each for each in objects if each["kind"] != "Secret"])
            self.assertNotIn(self.token, others)
            self.assertNotIn(base64.b64encode(self.token.encode()).decode(), others)

    def test_only_the_download_sees_it(self):
        for name, _, objects in renders():
            for pod in chart.all_pods(objects):
                for container in chart.containers(pod):
                    mounts = [mount["mountPath"] for mount in container["volumeMounts"] if mount["name"] == "hub-token"]
                    sees = "HF_TOKEN_PATH" in chart.environment(container)
                    self.assertEqual(bool(mounts), sees, name)
                    self.assertTrue(not mounts or container["name"] == "download", f"{name}: {container['name']}")

    def test_a_secret_in_config_is_refused_without_showing_it(self):
        printed = chart.helm_template(
            merged(MODEL, {"config": {"hub_token": self.token}}), extra=["--skip-schema-validation"]
        )
        self.assertIn("config.hub_token: a ConfigMap is no place for a secret", printed.stdout)
        self.assertNotIn(self.token, printed.stdout)


class Failures(unittest.TestCase):
    def policies(self):
        for name, values, objects in renders():
            jobs = [(each, each["spec"]) for each in chart.of_kind(objects, "Job")]
            for runtime in chart.of_kind(objects, "TrainingRuntime"):
                jobs += [(runtime, job["template"]["spec"]) for job in runtime["spec"]["template"]["spec"]["replicatedJobs"]]
            for _, spec in jobs:
                yield name, values, spec

    def test_exit_codes(self):
        for name, _, spec in self.policies():
            actions = {"FailJob": set(), "Ignore": set()}
            for rule in spec["podFailurePolicy"]["rules"]:
                codes = rule.get("onExitCodes", {})
                if "containerName" not in codes:
                    actions[rule["action"]] |= set(codes.get("values", []))
            self.assertEqual(actions, {"FailJob": FAIL, "Ignore": IGNORE}, name)
            self.assertEqual(spec["template"]["spec"]["restartPolicy"], "Never")
            self.assertEqual(spec["podReplacementPolicy"], "Failed")

    def test_the_codes_are_the_programs(self):
        header = (REPOSITORY / "src/base/error.h").read_text(encoding="utf-8")
        codes = {int(code) for code in re.findall(r"^  k\w+ = (\d+),", header, re.MULTILINE)}
        self.assertEqual(codes - {0} - FAIL - IGNORE, {69, 70, 71, 74})

    def test_several_pods_count_failures_each(self):
        for name, values, spec in self.policies():
            nodes = values.get("nodes", 1)
            if nodes == 1 and values.get("kind") != "TrainJob":
                self.assertEqual(spec["backoffLimit"], 6, name)
                self.assertNotIn("completionMode", spec)
                continue
            self.assertEqual(spec["completionMode"], "Indexed", name)
            self.assertEqual((spec["completions"], spec["parallelism"]), (nodes, nodes), name)
            self.assertEqual((spec["backoffLimitPerIndex"], spec["maxFailedIndexes"]), (6, 0))
            self.assertNotIn("backoffLimit", spec)

    def test_ranks_find_each_other(self):
        for name, values, objects in renders():
            several = values.get("kind", "Job") == "Job" and values.get("nodes", 1) > 1
            for pod in chart.training_pods(objects):
                variables = chart.environment(pod["spec"]["containers"][0])
                self.assertEqual("WORLD_SIZE" in variables, several, name)
                if not several:
                    continue
                job, service = chart.of_kind(objects, "Job")[0], chart.of_kind(objects, "Service")
                headless = [each["metadata"]["name"] for each in service if each["spec"].get("clusterIP") == "None"]
                self.assertEqual(headless, [pod["spec"]["subdomain"]])
                self.assertEqual(variables["MASTER_ADDR"], f"{job['metadata']['name']}-0.{headless[0]}")
                self.assertEqual(variables["WORLD_SIZE"], str(values["nodes"]))


class Names(unittest.TestCase):
    def test_hosts_and_objects(self):
        label = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
        for release in ("r", "7b.llama-2", "a-release-name-of-fifty-three-characters-is-the-most1"):
            for kind in chart.KINDS:
                objects = render(merged(MODEL, {"kind": kind, "nodes": 2, "tensorboard": {"enabled": True}}), release=release)
                for each in objects:
                    name = each["metadata"]["name"]
                    self.assertTrue(label.fullmatch(name), name)
                    self.assertLessEqual(len(f"{name}-worker-999"), 63, name)
                    if each["kind"] == "TrainJob":  # JobSet refuses what may make a longer pod's name
                        self.assertLessEqual(len(f"{name}-node-0-999-xxxxx"), 63, name)
                    self.assertEqual(each["metadata"]["namespace"], "team-a")

    def test_releases_have_names_of_their_own(self):
        long = "a-release-name-of-fifty-three-characters-is-the-most"
        releases = ("7b.llama", "7b-llama", "r7b.llama", "r7b-llama", f"{long}1", f"{long}2")
        claims = [chart.of_kind(render(MODEL, release=release), "PersistentVolumeClaim")[0] for release in releases]
        names = [claim["metadata"]["name"] for claim in claims]
        self.assertEqual(len(set(names)), len(releases), names)
        self.assertEqual(names[3], "r7b-llama-fettle")  # which needs no change

    def job_name(self, values, **options):
        return chart.of_kind(render(values, **options), "Job")[0]["metadata"]["name"]

    def test_a_new_job_only_for_what_a_job_cannot_change(self):
        base = self.job_name(MODEL)
        same = [
            {"suspend": True},
            {"activeDeadlineSeconds": 60},
            {"ttlSecondsAfterFinished": 60},
            {"tensorboard": {"image": {"tag": "x"}}},
            {"dataAccess": {"resources": {"cpu": "1"}}},
            {"storage": {"keep": False}},
        ]
        for values in same:
            self.assertEqual(self.job_name(merged(MODEL, values)), base, values)
        others = [
            {"run": "2"},
            {"config": {"learning_rate": 1e-4}},
            {"image": {"tag": "next"}},
            {"nodes": 2},
            {"backoffLimit": 1},
            {"resources": {"memory": "32Gi"}},
        ]
        names = [self.job_name(merged(MODEL, values)) for values in others]
        self.assertEqual(len({base, *names}), len(others) + 1)


class Program(unittest.TestCase):
    """The configurations of the values files are ones that the program takes."""

    def check(self, config, folder):
        path = pathlib.Path(folder) / "config.json"
        path.write_text(json.dumps({**config, "output_dir": f"{folder}/output"}), encoding="utf-8")
        return chart.run(FETTLE, "check", str(path))

    def test_options(self):
        for path in VALUES:
            with self.subTest(path.name), tempfile.TemporaryDirectory() as folder:
                config = chart.config_of(render(path))
                self.assertEqual(config["device"], chart.load(path).get("device", "cpu"))
                if not shutil.which("nvidia-smi"):
                    config["device"] = "cpu"  # this machine's
                printed = self.check(config, folder)
                self.assertNotIn(printed.returncode, (64, 70, 78), printed.stdout)

    def test_the_example_can_run(self):
        text = json.dumps(chart.config_of(render(REPOSITORY / "deploy/values/example.yaml")))
        config = json.loads(text.replace("/usr/local/share/fettle/examples", str(REPOSITORY / "examples")))
        with tempfile.TemporaryDirectory() as folder:
            printed = self.check(config, folder)
        self.assertEqual(printed.returncode, 0, printed.stdout)


if __name__ == "__main__":
    unittest.main()
