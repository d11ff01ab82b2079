"""Schemas of the manifests: the fields of KubeRay 1.7 that they use, with the rules between fields that its operator checks."""

from typing import Any

Schema = dict[str, Any]
NUMBER: Schema = {"type": "integer", "minimum": 0}
TEXT: Schema = {"type": "string", "minLength": 1}
TEXTS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}


def only(required: list[str], **properties: Schema) -> Schema:
    """Return the schema of an object that has no other fields."""
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def items(schema: Schema, least: int = 1) -> Schema:
    return {"type": "array", "items": schema, "minItems": least}


CONTAINER = only(
    ["name", "image", "resources"],
    name=TEXT,
    image=TEXT,
    ports=items(only(["containerPort", "name"], containerPort=NUMBER, name=TEXT)),
    resources=only(["requests", "limits"], requests=TEXTS, limits=TEXTS),
    volumeMounts=items(only(["name", "mountPath"], name=TEXT, mountPath=TEXT)),
)
VOLUME = only(
    ["name"],
    name=TEXT,
    persistentVolumeClaim=only(["claimName"], claimName=TEXT),
    configMap=only(["name"], name=TEXT),
    emptyDir=only([], medium={"const": "Memory"}, sizeLimit=TEXT),
)
POD = only(
    ["containers"],
    restartPolicy={"enum": ["Always", "OnFailure", "Never"]},
    terminationGracePeriodSeconds=NUMBER,
    containers=items(CONTAINER),
    volumes=items(VOLUME),
    tolerations=items(
        only(
            ["key", "operator"],
            key=TEXT,
            operator={"enum": ["Exists", "Equal"]},
            value=TEXT,
            effect={"enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"]},
        )
    ),
)
TEMPLATE = only(["spec"], spec=POD)
WORKERS = only(
    ["groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"],
    groupName=TEXT,
    replicas=NUMBER,
    minReplicas=NUMBER,
    maxReplicas=NUMBER,
    priority=NUMBER,
    idleTimeoutSeconds=NUMBER,
    labels=TEXTS,
    resources=TEXTS,
    rayStartParams=TEXTS,
    template=TEMPLATE,
)
STORAGE: Schema = {
    **only(
        [],
        claimName=TEXT,
        size=TEXT,
        storageClassName=TEXT,
        subPath=TEXT,
        deletionPolicy={"enum": ["DeleteWithCluster", "Retain"]},
    ),
    "not": {"required": ["claimName", "size"]},
}
FAULT_TOLERANCE: Schema = {
    **only(["backend"], backend={"enum": ["redis", "rocksdb"]}, redisAddress=TEXT, storage=STORAGE),
    "if": {"properties": {"backend": {"const": "redis"}}},
    "then": {"required": ["redisAddress"], "not": {"required": ["storage"]}},
    "else": {"not": {"required": ["redisAddress"]}},
}
CLUSTER = only(
    ["rayVersion", "headGroupSpec", "workerGroupSpecs", "authOptions"],
    rayVersion=TEXT,
    enableInTreeAutoscaling={"type": "boolean"},
    autoscalerOptions=only(["version"], version={"enum": ["v1", "v2"]}, idleTimeoutSeconds=NUMBER),
    authOptions=only(
        ["mode"], mode={"enum": ["token", "disabled"]}, secretName=TEXT, enableK8sTokenAuth={"type": "boolean"}
    ),
    gcsFaultToleranceOptions=FAULT_TOLERANCE,
    headGroupSpec=only(
        ["rayStartParams", "template"], rayStartParams=TEXTS, resources=TEXTS, labels=TEXTS, template=TEMPLATE
    ),
    workerGroupSpecs=items(WORKERS),
)
CONDITION: Schema = {
    **only(
        [],
        jobStatus={"enum": ["SUCCEEDED", "FAILED"]},
        jobDeploymentStatus={"const": "Failed"},
        ttlSeconds=NUMBER,
    ),
    "oneOf": [{"required": ["jobStatus"]}, {"required": ["jobDeploymentStatus"]}],
}
RULE = only(
    ["policy", "condition"],
    policy={"enum": ["DeleteCluster", "DeleteWorkers", "DeleteSelf", "DeleteNone"]},
    condition=CONDITION,
)
IN_SIDECAR: Schema = {"properties": {"submissionMode": {"const": "SidecarMode"}}, "required": ["submissionMode"]}
NEVER_RESTARTED: Schema = {
    "properties": {
        "rayClusterSpec": {
            "properties": {
                "headGroupSpec": {
                    "properties": {
                        "template": {
                            "properties": {
                                "spec": {
                                    "properties": {"restartPolicy": {"const": "Never"}},
                                    "required": ["restartPolicy"],
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}
JOB: Schema = {
    **only(
        ["entrypoint", "rayClusterSpec"],
        entrypoint=TEXT,
        submissionMode={"enum": ["K8sJobMode", "HTTPMode", "InteractiveMode", "SidecarMode"]},
        preRunningDeadlineSeconds={"type": "integer", "minimum": 1},
        activeDeadlineSeconds={"type": "integer", "minimum": 1},
        backoffLimit=NUMBER,
        shutdownAfterJobFinishes={"type": "boolean"},
        ttlSecondsAfterFinished=NUMBER,
        submitterPodTemplate=TEMPLATE,
        deletionStrategy=only(["deletionRules"], deletionRules=items(RULE)),
        rayClusterSpec=CLUSTER,
    ),
    "allOf": [
        {
            "if": {"required": ["deletionStrategy"]},
            "then": {
                "not": {
                    "anyOf": [{"required": ["shutdownAfterJobFinishes"]}, {"required": ["ttlSecondsAfterFinished"]}]
                }
            },
        },
        {"if": {"required": ["ttlSecondsAfterFinished"]}, "then": {"required": ["shutdownAfterJobFinishes"]}},
        {"if": IN_SIDECAR, "then": {"not": {"required": ["submitterPodTemplate"]}, **NEVER_RESTARTED}},
    ],
}
CRON = only(["schedule", "jobTemplate"], schedule=TEXT, timeZone=TEXT, suspend={"type": "boolean"}, jobTemplate=JOB)


def manifest(kind: str, spec: Schema) -> Schema:
    metadata = only(["name"], name=TEXT, labels=TEXTS)
    api: Schema = {"const": "ray.io/v1"}
    return only(
        ["apiVersion", "kind", "metadata", "spec"], apiVersion=api, kind={"const": kind}, metadata=metadata, spec=spec
    )


KINDS = {
    "RayJob": manifest("RayJob", JOB),
    "RayCluster": manifest("RayCluster", CLUSTER),
    "RayCronJob": manifest("RayCronJob", CRON),
}
