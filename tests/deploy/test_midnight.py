"""The Compose file of Midnight's proof server, beside settings, image and command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from gpuprover.cli.parser import build_parser
from gpuprover.config import load_engine_settings, load_service_settings
from gpuprover.settings import SETTINGS
from tests.deploy.test_deploy import IMAGES, composed, dockerfile, seconds
from tests.support.deployment import DEPLOY, ROOT, Document

FILE = DEPLOY / "compose.midnight.yaml"


@pytest.fixture(scope="module")
def server() -> Document:
    found: Document = composed((FILE,))["services"]["proof-server"]
    return found


def test_every_variable_is_a_setting_with_a_value_it_can_have(server: Document) -> None:
    given = {name: value or "" for name, value in server["environment"].items()}
    assert set(given) <= {setting.variable for setting in SETTINGS}
    engine = load_engine_settings({}, given)
    settings = load_service_settings({}, engine, given)
    assert (settings.host, settings.port) == ("0.0.0.0", 6300)
    assert str(settings.midnight_parameters) == "/zk-params"
    assert not settings.midnight_values
    assert engine.job_timeout <= engine.grace_period
    assert engine.grace_period + 20 <= seconds(server["stop_grace_period"])


def test_commands_are_there(server: Document) -> None:
    parser = build_parser()
    assert parser.parse_args(server["command"]).run == "midnight_serve:run"
    kind, program, *arguments = server["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "gpuprover")
    assert parser.parse_args(arguments).run == "midnight_serve:healthcheck"
    assert seconds(server["healthcheck"]["start_period"]) >= 600


def test_image_and_ports(server: Document) -> None:
    assert server["build"]["dockerfile"] == IMAGES[server["image"]]
    assert Path(server["build"]["context"]) == ROOT
    text = dockerfile(server["image"])
    (port,) = server["ports"]
    assert (port["host_ip"], port["target"], str(port["published"])) == ("127.0.0.1", 6300, "6300")
    assert "6300" in re.findall(r"^EXPOSE (\d+)", text, re.MULTILINE)


def test_preimages_stay_in_memory_and_the_container_small(server: Document) -> None:
    limits = server["deploy"]["resources"]["limits"]
    assert server["memswap_limit"] == limits["memory"]
    assert server["ulimits"]["core"] == {"soft": 0, "hard": 0}
    assert server["cap_drop"] == ["ALL"]
    assert server["security_opt"] == ["no-new-privileges:true"]
    assert server["read_only"]
    (parameters,) = [volume for volume in server["volumes"] if volume["target"] == "/zk-params"]
    assert parameters["read_only"]
    (temporary,) = server["tmpfs"]
    size = re.search(r"size=(\d+)m", temporary)
    assert size is not None
    assert int(server["environment"]["PROVER_MIDNIGHT_KEY_CACHE"]) < int(size[1])
