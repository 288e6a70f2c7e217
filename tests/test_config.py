"""Settings: which source wins, what is refused, and what follows from the container's limits."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path

import pytest

from gpuprover import config, settings
from gpuprover.config import (
    EngineSettings,
    default_threads,
    gpu_memory_limit,
    load_engine_settings,
    load_settings,
    markdown_table,
)
from gpuprover.cpu import path
from gpuprover.errors import InvalidInput
from gpuprover.machine import (
    available_cpus,
)
from gpuprover.settings import SETTINGS, WORKER_BYTES, seconds
from tests.support.paths import ROOT
from tests.support.running import Run


def test_arguments_win_over_the_environment_which_wins_over_the_machine() -> None:
    environment = {"PROVER_DEVICE": "CPU", "PROVER_THREADS": " 3 ", "PROVER_MEMORY_LIMIT": ""}
    settings = load_settings({"device": "Cuda", "threads": None}, environment)
    assert (settings.device, settings.threads, settings.memory_limit) == ("cuda", 3, None)
    assert dict(settings.sources) == {
        "device": "argument",
        "threads": "PROVER_THREADS",
        "memory_limit": "machine",
    }


def test_the_machine_gives_what_nobody_sets() -> None:
    settings = load_settings({}, {})
    assert (settings.device, settings.threads, settings.memory_limit) == ("auto", available_cpus(), None)


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "", "two", "4097", "９", "1e3", "1" * 30])
def test_bad_threads_are_refused_by_the_name_of_their_source(text: str) -> None:
    with pytest.raises(InvalidInput, match=r"^--threads: expected a whole number from 1 to 4096"):
        load_settings({"threads": text}, {})
    if text:  # an empty variable is as good as none
        with pytest.raises(InvalidInput, match=r"^PROVER_THREADS: expected"):
            load_settings({}, {"PROVER_THREADS": text})


def test_other_bad_values_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"^--memory-limit: expected a whole number from 1 to"):
        load_settings({"memory_limit": "0"}, {})
    with pytest.raises(InvalidInput, match=r"^--device: "):
        load_settings({"device": " "}, {})
    for text in ("0", "-1", "nan", "inf", "soon"):
        with pytest.raises(InvalidInput, match=r"^--timeout: expected a positive number of seconds"):
            seconds(text, "--timeout")
    assert seconds("0.25", "--timeout") == 0.25


def test_default_threads_reads_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVER_THREADS", "7")
    assert default_threads() == 7


def test_the_limit_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PROVER_GPU_MEMORY_LIMIT", raising=False)
    assert gpu_memory_limit() is None
    monkeypatch.setenv("PROVER_GPU_MEMORY_LIMIT", "512")
    assert gpu_memory_limit() == 512 << 20
    monkeypatch.setenv("PROVER_GPU_MEMORY_LIMIT", "much")
    with pytest.raises(InvalidInput, match="PROVER_GPU_MEMORY_LIMIT"):
        gpu_memory_limit()


# A prover's settings ---------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """16 CPUs and 32 GiB, of which a container grants 8 GiB."""
    monkeypatch.setattr(settings, "available_cpus", lambda: 16)
    monkeypatch.setattr(settings, "cgroup_memory_limit", lambda: 8 << 30)
    monkeypatch.setattr(settings, "machine_memory", lambda: (32 << 30, 30 << 30))


def test_fields_are_the_rows_of_the_table() -> None:
    own = [setting.name for setting in SETTINGS if setting.own]
    assert sorted([*own, "sources"]) == sorted(f.name for f in fields(EngineSettings))
    assert len({setting.variable for setting in SETTINGS}) == len(SETTINGS)
    assert all(setting.values and setting.meaning and setting.meaning[-1] != "." for setting in SETTINGS)


def test_the_engines_defaults_follow_the_container(machine: None) -> None:
    settings = load_engine_settings({}, {})
    assert settings.memory_limit == 6144
    assert (settings.threads, settings.min_workers, settings.max_workers) == (16, 1, 8)
    assert (settings.max_proofs_per_worker, settings.memory_watermark, settings.leak_alarm) == (
        500,
        0.73,
        100,
    )
    assert (settings.admission_wait, settings.retry_delay) == (5, 2)
    assert (settings.proof_cache, settings.verification_cache) == (0, 0)
    assert settings.policy == "lazy"
    assert settings.sources["memory_limit"] == "machine"
    assert settings.sources["queue_limit"] == "default"


def test_workers_do_not_fill_a_small_limit(machine: None) -> None:
    assert load_engine_settings({"memory_limit": 16 * WORKER_BYTES >> 20}, {}).max_workers == 4
    assert load_engine_settings({"memory_limit": 100}, {}).max_workers == 1
    assert load_engine_settings({"memory_limit": 2048, "min_workers": 5}, {}).max_workers == 5
    inline = load_engine_settings({"max_workers": 0}, {})
    assert (inline.min_workers, inline.max_workers) == (0, 0)


def test_a_machine_that_does_not_know_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "cgroup_memory_limit", lambda: None)
    monkeypatch.setattr(settings, "machine_memory", lambda: (None, None))
    assert load_engine_settings({}, {}).memory_limit == 3072


def test_an_engines_arguments_are_values_or_text() -> None:
    values = load_engine_settings(
        {
            "memory_limit": 8192,
            "threads": 4,
            "preload_circuits": ["transfer", "mint", "transfer"],
            "circuit_keys_path": Path("keys"),
            "job_timeout": 60,
            "device": None,
        },
        {},
    )
    text = load_engine_settings(
        {"memory_limit": "8192", "threads": " 4 ", "preload_circuits": "transfer, mint,,"},
        {"PROVER_CIRCUIT_KEYS_PATH": "keys", "PROVER_JOB_TIMEOUT": "60", "PROVER_THREADS": "9"},
    )
    assert values.as_dict() == text.as_dict()
    assert values.preload_circuits == ("transfer", "mint")
    assert values.policy == "eager"
    assert values.job_timeout == 60.0
    assert values.sources["job_timeout"] == "argument"
    assert text.sources["job_timeout"] == "PROVER_JOB_TIMEOUT"
    assert json.loads(json.dumps(text.as_dict()))["circuit_keys_path"] == "keys"


def test_every_variable_is_read() -> None:
    texts = {"policy": "OFF", "verifier": "inline", "device": "cuda:1", "preload_circuits": "a"}
    texts |= {"circuit_keys_path": "/keys", "memory_watermark": "0.5"}
    own = [setting for setting in SETTINGS if setting.own]
    environment = {setting.variable: texts.get(setting.name, "17") for setting in own}
    settings = load_engine_settings({}, environment)
    assert dict(settings.sources) == {setting.name: setting.variable for setting in own}
    expected = texts | {"policy": "off", "preload_circuits": ["a"], "memory_watermark": 0.5}
    assert settings.as_dict() == {setting.name: expected.get(setting.name, 17) for setting in own}


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("threads", 0, "threads: expected a whole number from 1 to 4096, found '0'"),
        ("threads", True, "threads: expected a whole number"),
        ("threads", 2.0, "threads: expected a whole number"),
        ("threads", [2], "threads: expected a whole number"),
        ("memory_limit", -5, "memory_limit: expected a whole number"),
        ("memory_watermark", 1.5, "memory_watermark: expected a number from 0.1 to 1, found '1.5'"),
        ("memory_watermark", True, "memory_watermark: expected a number"),
        ("job_timeout", 0, "job_timeout: expected a number above 0 and up to 1e+09, found '0'"),
        ("job_timeout", float("nan"), "job_timeout: expected a number"),
        ("job_timeout", "soon", "job_timeout: expected a number"),
        ("job_timeout", 10**400, "job_timeout: expected a number"),
        ("policy", "always", "policy: expected eager, lazy or off, found 'always'"),
        ("verifier", 1, "verifier: expected process or inline, found '1'"),
        ("device", 3, "device: expected auto, cpu or cuda, found 3"),
        ("preload_circuits", [3], "preload_circuits: expected names, found 3"),
        ("preload_circuits", 3, "preload_circuits: expected names, found 3"),
        ("preload_circuits", b"a", "preload_circuits: expected names"),
        ("circuit_keys_path", "", "circuit_keys_path: expected a path"),
        ("circuit_keys_path", 3, "circuit_keys_path: expected a path, found 3"),
        ("min_workers", 4097, "min_workers: expected a whole number from 0 to 4096"),
        ("thread", 3, "thread: no such setting; is threads meant?"),
        ("gpu_memory_limit", 3, "gpu_memory_limit: no such setting"),
    ],
)
def test_an_engines_bad_values_are_refused(name: str, value: object, says: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        load_engine_settings({name: value}, {})
    assert caught.value.message.startswith(says)


def test_fewer_workers_than_the_fewest_are_refused() -> None:
    with pytest.raises(InvalidInput, match="min_workers: expected at most max_workers, which is 2, found 3"):
        load_engine_settings({"min_workers": 3, "max_workers": 2}, {})


def test_messages_name_option_or_variable() -> None:
    with pytest.raises(InvalidInput, match=r"^--memory-limit: "):
        load_engine_settings({"memory_limit": "x"}, {}, options=True)
    with pytest.raises(InvalidInput, match=r"^PROVER_MAX_PROOFS_PER_WORKER: "):
        load_engine_settings({}, {"PROVER_MAX_PROOFS_PER_WORKER": "many"})


def test_variables_that_are_no_settings_are_pointed_out() -> None:
    environment = {"PROVER_THREDS": "3", "PROVER_THREADS": "3", "PROVER_X": "", "OTHER": "1"}
    assert config.unknown_variables(environment) == {
        "PROVER_THREDS": "PROVER_THREDS: no such setting; is PROVER_THREADS meant?",
        "PROVER_X": "PROVER_X: no such setting",
    }


def test_the_table_knows_what_other_modules_read() -> None:
    parse = {setting.variable: setting.parse for setting in SETTINGS}[path.VARIABLE]
    assert [parse(name, "") for name in path.PATHS] == list(path.PATHS)


def test_the_documents_have_the_table() -> None:
    text = (ROOT / "docs/configuration.md").read_text()
    assert markdown_table() in text, "docs/configuration.md: put in what `gpuprover config --markdown` prints"


def test_config_shows_values_and_sources(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVER_QUEUE_LIMIT", "7")
    monkeypatch.setenv("PROVER_GPU_MEMORY_LIMIT", "512")
    monkeypatch.setenv("PROVER_THREDS", "3")
    ran = run("config", "--threads", "3", "--json")
    assert ran.code == 0
    settings = ran.answer["settings"]
    assert list(settings) == [setting.name for setting in SETTINGS]
    assert (settings["threads"]["value"], settings["threads"]["source"]) == (3, "argument")
    assert (settings["queue_limit"]["value"], settings["queue_limit"]["source"]) == (7, "PROVER_QUEUE_LIMIT")
    assert settings["gpu_memory_limit"]["value"] == 512
    assert settings["gpu_memory_limit"]["source"] == "PROVER_GPU_MEMORY_LIMIT"
    assert settings["memory_limit"]["unit"] == "MiB"
    assert ran.answer["unknown"] == ["PROVER_THREDS"]
    assert json.loads(ran.err) == {"warning": "PROVER_THREDS: no such setting; is PROVER_THREADS meant?"}

    plain = run("config", "--threads", "3")
    assert re.search(r"^PROVER_THREADS +3 +argument$", plain.out, re.MULTILINE)
    assert re.search(r"^PROVER_GPU_MEMORY_LIMIT +512 MiB +PROVER_GPU_MEMORY_LIMIT$", plain.out, re.MULTILINE)
    assert run("config", "--markdown").out == markdown_table()

    monkeypatch.setenv("PROVER_POLICY", "always")
    refused = run("config")
    assert refused.code == 2
    assert refused.err.startswith("error: InvalidInput: PROVER_POLICY: expected eager, lazy or off")
