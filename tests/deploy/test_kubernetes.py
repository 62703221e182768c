import re
from pathlib import Path

import yaml
from support.server_command import read_config
from twofold_server.config.schema import SETTINGS
from twofold_server.config.settings import Config

KUBERNETES = Path(__file__).parents[2] / "deploy" / "kubernetes"
OBJECTS = {item["kind"]: item for item in yaml.safe_load_all((KUBERNETES / "twofold.yaml").read_text())}
POD = OBJECTS["Deployment"]["spec"]["template"]
[SERVER] = POD["spec"]["containers"]


def settings() -> Config:
    """Return the settings of the container as the server reads them."""
    return read_config([], {item["name"]: item["value"] for item in SERVER["env"]})


def test_settings() -> None:
    """Every variable of the container is a setting, and the server accepts them together."""
    known = {setting.variable for setting in SETTINGS.values()}
    assert {item["name"] for item in SERVER["env"]} <= known
    assert settings().listener.plaintext


def test_ports() -> None:
    """Container, probes and service agree with the server's ports."""
    ports = {item["name"]: item["containerPort"] for item in SERVER["ports"]}
    config = settings()
    assert ports == {
        "grpc": int(config.listener.listen.rpartition(":")[2]),
        "metrics": int(config.listener.metrics_listen.rpartition(":")[2]),
    }
    for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
        assert SERVER[probe]["grpc"]["port"] == ports["grpc"]
    for port in OBJECTS["Service"]["spec"]["ports"]:
        assert (ports[port["targetPort"]], port["name"]) == (port["port"], port["targetPort"])


def test_stopping() -> None:
    """The pod's termination grace period is longer than the server's drain."""
    listener = settings().listener
    assert POD["spec"]["terminationGracePeriodSeconds"] >= listener.drain_delay + listener.drain_timeout + 5


def test_store() -> None:
    """The store is a persistent volume that one server at a time uses."""
    spec = OBJECTS["Deployment"]["spec"]
    assert (spec["replicas"], spec["strategy"]["type"]) == (1, "Recreate")
    mounts = {volumemount["name"]: volumemount["mountPath"] for volumemount in SERVER["volumeMounts"]}
    assert mounts["store"] == str(settings().store)
    [claim] = [
        volume["persistentVolumeClaim"]["claimName"] for volume in POD["spec"]["volumes"] if volume["name"] == "store"
    ]
    assert claim == OBJECTS["PersistentVolumeClaim"]["metadata"]["name"]


def test_user() -> None:
    """The pod runs as the image's user, with a read-only root."""
    [user] = re.findall(r"^USER (\d+):", (KUBERNETES.parents[1] / "Dockerfile").read_text(), re.MULTILINE)
    assert POD["spec"]["securityContext"]["runAsUser"] == int(user)
    assert SERVER["securityContext"]["readOnlyRootFilesystem"]


def test_monitor() -> None:
    """The optional monitor selects the service and its port, with the job name that the alerts expect."""
    monitor = yaml.safe_load((KUBERNETES / "servicemonitor.yaml").read_text())
    service = OBJECTS["Service"]
    assert service["metadata"]["name"] == "twofold"
    assert monitor["spec"]["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert {endpoint["port"] for endpoint in monitor["spec"]["endpoints"]} <= {
        port["name"] for port in service["spec"]["ports"]
    }
