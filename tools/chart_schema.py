#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Writes the chart's values.schema.json: the schema below, with the options of `fettle config --schema` under `config`.

    chart_schema.py [--check] [FETTLE]

--check writes nothing, and fails if the file is not what it would write. FETTLE: the program (build/release/fettle).
"""

import json
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
SCHEMA = REPOSITORY / "deploy/chart/values.schema.json"
QUANTITY = r"^[0-9]+(\.[0-9]+)?([EPTGMk]i?|Ki|m)?$"


def struct(**properties):
    return {"type": "object", "additionalProperties": False, "properties": properties}


def text(pattern=None):
    return {"type": "string", "pattern": pattern} if pattern else {"type": "string"}


def choice(*values):
    return {"type": "string", "enum": list(values)}


def whole(minimum=0, nullable=False):
    return {"type": ["integer", "null"] if nullable else "integer", "minimum": minimum}


def switch():
    return {"type": "boolean"}


def quantity(empty=False):
    """An amount of a resource; YAML reads `cpu: 4` as a number."""
    pattern = f"^$|{QUANTITY}" if empty else QUANTITY
    return {"type": ["string", "number"], "pattern": pattern, "exclusiveMinimum": 0}


def list_of(items):
    return {"type": "array", "items": items}


# Parts that are Kubernetes' own; the API server checks what is in them.
MAP = {"type": "object"}
NULLABLE_MAP = {"type": ["object", "null"]}
STRINGS = {"type": "object", "additionalProperties": {"type": "string"}}
MAPS = list_of(MAP)
PORT = {"type": "integer", "minimum": 1, "maximum": 65535}
IMAGE_PULL = choice("Always", "IfNotPresent", "Never")
SMALL_RESOURCES = struct(cpu=quantity(), memory=quantity())
ABSOLUTE = r"^/.*[^/]$"


VALUES = struct(
    kind=choice("Job", "PyTorchJob", "TrainJob"),
    device=choice("cpu", "cuda", "hpu"),
    accelerators=whole(1),
    nodes=whole(1),
    run=text(),
    suspend=switch(),
    config=MAP,  # the options take its place
    image=struct(
        repository={"type": "string", "minLength": 1},
        tag=text(r"^[A-Za-z0-9_.-]*$"),
        digest=text(r"^(sha256:[0-9a-f]{64})?$"),
        pullPolicy=IMAGE_PULL,
    ),
    imagePullSecrets=MAPS,
    resources=struct(
        cpu=quantity(),
        memory=quantity(),
        hugepages2Mi=quantity(empty=True),
        accelerator=text(),
        extra={"type": "object", "additionalProperties": quantity()},
    ),
    storage=struct(
        existingClaim=text(),
        size=quantity(),
        storageClassName=text(),
        accessModes={
            **list_of(choice("ReadWriteOnce", "ReadWriteMany", "ReadWriteOncePod")),
            "minItems": 1,
        },
        keep=switch(),
        mountPath=text(ABSOLUTE),
    ),
    shmSize=quantity(),
    scratchSize=quantity(),
    waitForData=struct(
        enabled=switch(), paths=list_of(text(ABSOLUTE)), timeoutSeconds=whole()
    ),
    download=struct(enabled={"type": ["boolean", "null"]}),
    check=struct(enabled=switch()),
    hub=struct(
        endpoint=text(r"^(https?://.+)?$"),
        offline=switch(),
        token=text(),
        existingSecret=struct(name=text(), key={"type": "string", "minLength": 1}),
    ),
    proxy=struct(httpProxy=text(), httpsProxy=text(), noProxy=text()),
    dataAccess=struct(enabled=switch(), resources=SMALL_RESOURCES),
    backoffLimit=whole(),
    activeDeadlineSeconds=whole(1, nullable=True),
    ttlSecondsAfterFinished=whole(nullable=True),
    terminationGracePeriodSeconds=whole(1),
    pytorchJob=struct(restartPolicy=choice("Never", "OnFailure", "ExitCode")),
    queueName=text(),
    jobLabels=STRINGS,
    podLabels=STRINGS,
    podAnnotations=STRINGS,
    nodeSelector=STRINGS,
    tolerations=MAPS,
    affinity=MAP,
    topologySpreadConstraints=MAPS,
    priorityClassName=text(),
    runtimeClassName=text(),
    serviceAccountName=text(),
    podSecurityContext=MAP,
    containerSecurityContext=MAP,
    networkPolicy=struct(
        enabled=switch(), metricsFrom=MAPS, hubPorts=list_of(PORT), extraEgress=MAPS
    ),
    metrics=struct(
        enabled=switch(),
        port=PORT,
        podMonitor=struct(enabled=switch(), labels=STRINGS, interval=text(r"^[0-9]+(ms|s|m|h)$")),
    ),
    startupProbe=NULLABLE_MAP,
    livenessProbe=NULLABLE_MAP,
    tensorboard=struct(
        enabled=switch(),
        image=struct(repository=text(), tag=text(), pullPolicy=IMAGE_PULL),
        resources=SMALL_RESOURCES,
    ),
    test=struct(
        prompt=text(),
        maxNewTokens=whole(1),
        resources=struct(cpu=quantity(), memory=quantity(empty=True)),
    ),
    extraEnv=list_of({**MAP, "required": ["name"]}),
    extraEnvFrom=MAPS,
    extraVolumes=list_of({**MAP, "required": ["name"]}),
    extraVolumeMounts=list_of({**MAP, "required": ["name", "mountPath"]}),
    extraInitContainers=list_of({**MAP, "required": ["name", "image"]}),
    nameOverride=text(r"^[a-z0-9]?[a-z0-9-]*$"),
    fullnameOverride=text(r"^[a-z0-9]?[a-z0-9-]*$"),
    # What Helm itself adds for a chart that is a dependency.
    **{"global": MAP},
)


def render(fettle):
    printed = subprocess.run([fettle, "config", "--schema"], check=True, stdout=subprocess.PIPE, text=True)
    config = json.loads(printed.stdout)
    # The chart's schema has a version that Helm before 3.18 knows too; the options use nothing newer.
    del config["$schema"]
    schema = {"$schema": "http://json-schema.org/draft-07/schema#", "title": "Values of the Fettle chart"}
    schema |= VALUES
    schema["properties"] = VALUES["properties"] | {"config": config}
    return json.dumps(schema, indent=1) + "\n"


def main():
    arguments = sys.argv[1:]
    check = "--check" in arguments
    programs = [argument for argument in arguments if argument != "--check"]
    current = render(programs[0] if programs else str(REPOSITORY / "build/release/fettle"))
    if not check:
        SCHEMA.write_text(current, encoding="utf-8")
    elif not SCHEMA.exists() or SCHEMA.read_text(encoding="utf-8") != current:
        sys.exit(f"{SCHEMA} is not current: run tools/chart_schema.py")


if __name__ == "__main__":
    main()
