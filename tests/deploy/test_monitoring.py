"""Metrics as documented, the dashboard and the alerts that use them, by Prometheus's own checks too."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from tests.support.deployment import (
    ALERTS,
    DASHBOARD,
    DEPLOY,
    EXAMPLE,
    METRICS_PAGE,
    ROW,
    TARGET_LABELS,
    Document,
    Refused,
    check_query,
    metrics,
    run,
    tool,
)
from tests.support.paths import TESTS

ALERT_TESTS = TESTS / "deploy" / "alerts.test.yaml"


def alerts() -> dict[str, Document]:
    (group,) = yaml.safe_load(ALERTS.read_text())["groups"]
    return {rule["alert"]: rule for rule in group["rules"]}


def panels() -> list[Document]:
    return json.loads(DASHBOARD.read_text())["panels"]


def dashboard_queries() -> list[str]:
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def test_the_metrics_have_the_names_that_users_expect() -> None:
    known = metrics()
    assert known["proof_generation_duration_seconds_bucket"].labels == {"circuit_id", "le"}
    assert known["proofs_generated_total"].labels == {"circuit_id", "status"}
    for name in ("prover_memory_usage_bytes", "prover_active_workers", "prover_queued_tasks"):
        assert known[name].kind == "gauge"
    assert known["prover_worker_restarts_total"].kind == "counter"
    assert all(
        name.endswith("_total") == (m.kind == "counter") for name, m in known.items() if m.kind != "histogram"
    )
    rows = METRICS_PAGE.read_text()
    assert len(ROW.findall(rows)) == len(re.findall(r"^\|[^|]*\| (?:counter|gauge|histogram) \|", rows, re.M))
    buckets = dict(re.findall(r"^\| `(\w+)` \| ([0-9., ]+) \|$", rows, re.M))
    assert {f"{name}_bucket" for name in buckets} == {name for name in known if name.endswith("_bucket")}
    for text in buckets.values():
        bounds = [float(bound) for bound in text.split(",")]
        assert bounds == sorted(set(bounds))
    wanted = {1, 5, 10, 15, 30, 60}
    assert wanted <= {float(bound) for bound in buckets["proof_generation_duration_seconds"].split(",")}


def test_dashboard_and_alerts_use_metrics_that_exist() -> None:
    shown = set().union(*(check_query(query) for query in dashboard_queries()))
    watched = set().union(*(check_query(rule["expr"]) for rule in alerts().values()))
    assert [check_query(query) for query in re.findall(r"```\n(.+?)```", METRICS_PAGE.read_text(), re.S)]
    unseen = {name for name in metrics() if not name.endswith(("_bucket", "_sum", "_count", "up"))} - shown
    assert not unseen, "every metric has its place on the dashboard"
    assert {"up", "prover_queued_tasks", "proofs_generated_total"} <= watched


@pytest.mark.parametrize(
    "query",
    [
        "prover_queue_tasks",
        'rate(proofs_generated_total{state="success"}[5m])',
        "sum by (device) (prover_queued_tasks)",
        'sum(proof_generation_duration_seconds{circuit_id="c"})',
        "prover_ready / on (job, device) prover_queue_limit",
        "1 + 1",
    ],
)
def test_a_query_of_what_does_not_exist_is_refused(query: str) -> None:
    with pytest.raises(Refused):
        check_query(query)


def exposition() -> str:
    """What /metrics would show of every metric at the start."""
    lines = []
    for name, kind, labels, text in ROW.findall(METRICS_PAGE.read_text()):
        names = re.findall(r"`(\w+)`", labels)
        inner = ",".join(f'{label}="x"' for label in names)
        lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
        if kind == "histogram":
            bound = ",".join([*([inner] if inner else []), 'le="+Inf"'])
            lines += [
                f"{name}_bucket{{{bound}}} 0",
                f"{name}_sum{{{inner}}} 0",
                f"{name}_count{{{inner}}} 0",
            ]
        else:
            lines.append(f"{name}{{{inner}}} 0" if inner else f"{name} 0")
    return "\n".join(lines) + "\n"


def test_promtool_finds_nothing_to_say_of_the_metrics() -> None:
    command = [tool("promtool"), "check", "metrics"]
    done = subprocess.run(
        command, input=exposition(), capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    bad = exposition().replace("prover_fallbacks_total", "proverFallbacks")
    done = subprocess.run(command, input=bad, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode != 0


def promtool(*arguments: str | Path) -> None:
    """Its checks; ``SUCCESS`` lines aside it has to be silent."""
    run("promtool", *arguments)


def test_alerts_and_configuration_are_valid(tmp_path: Path) -> None:
    lint = ("--lint=all", "--lint-fatal")
    promtool("check", "rules", *lint, ALERTS)
    for path in (EXAMPLE / "prometheus.yml", ALERTS):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    promtool("check", "config", *lint, tmp_path / "prometheus.yml")
    (tmp_path / "prometheus.yml").write_text(
        (EXAMPLE / "prometheus.yml").read_text() + "scrape_timeout: 1s\n"
    )
    with pytest.raises(Refused):
        promtool("check", "config", *lint, tmp_path / "prometheus.yml")


def test_the_scrape_job_for_kubernetes_is_valid(tmp_path: Path) -> None:
    text = (DEPLOY / "prometheus" / "scrape-kubernetes.yaml").read_text()
    (tmp_path / "scrape.yaml").write_text(text)
    (tmp_path / "prometheus.yml").write_text("scrape_config_files: [scrape.yaml]\n")
    promtool("check", "config", "--lint-fatal", tmp_path / "prometheus.yml")
    set_labels = set(re.findall(r"target_label: (\w+)", text))
    assert set_labels | {"job"} == TARGET_LABELS
    (tmp_path / "scrape.yaml").write_text(text.replace("role: pod", "role: pods"))
    with pytest.raises(Refused):
        promtool("check", "config", "--lint-fatal", tmp_path / "prometheus.yml")


def test_the_dashboards_queries_are_promql(tmp_path: Path) -> None:
    queries = [re.sub(r"\$\w+", "5m", query) for query in dashboard_queries()]

    def rules(found: list[str]) -> Path:
        entries = [{"record": f"dashboard:query:{i}", "expr": query} for i, query in enumerate(found)]
        path = tmp_path / "rules.yaml"
        path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": entries}]}))
        return path

    promtool("check", "rules", rules(queries))
    with pytest.raises(Refused):
        promtool("check", "rules", rules([*queries, "sum by (le (prover_ready)"]))


def test_every_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    promtool("test", "rules", ALERT_TESTS)
    cases = [
        case for test in yaml.safe_load(ALERT_TESTS.read_text())["tests"] for case in test["alert_rule_test"]
    ]
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == set(alerts())
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == set(alerts())
    (tmp_path / "tests.yaml").write_text(ALERT_TESTS.read_text().replace("../../deploy/prometheus/", ""))
    text = ALERTS.read_text()
    # An alert that fires too early, one that never fires, one that means another outcome.
    for before, after in (("> 0.8", "> 0.5"), ("> 0.05", "> 0.5"), ('fault="service"', 'fault="client"')):
        assert before in text
        (tmp_path / "alerts.yaml").write_text(text.replace(before, after))
        with pytest.raises(Refused):
            promtool("test", "rules", tmp_path / "tests.yaml")


def test_every_alert_is_explained() -> None:
    explained = re.findall(r"^\| `(Prover\w+)` \|", METRICS_PAGE.read_text(), re.M)
    assert explained == list(alerts())
    for rule in alerts().values():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary"}


def test_the_dashboard_is_laid_out() -> None:
    board = json.loads(DASHBOARD.read_text())
    variables = {entry["name"] for entry in board["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", DASHBOARD.read_text())) - {"__rate_interval", "__all"}
    assert used == variables
    assert len({panel["id"] for panel in panels()}) == len(panels())
    taken: set[tuple[int, int]] = set()
    for panel in panels():
        place = panel["gridPos"]
        cells = {(place["x"] + dx, place["y"] + dy) for dx in range(place["w"]) for dy in range(place["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert panel["title"]
        assert panel["description"]
        assert panel["fieldConfig"]["defaults"]["unit"]
        for target in panel["targets"]:
            assert (
                target["datasource"] == panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
            )
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= {
                *TARGET_LABELS,
                *(label for name in check_query(target["expr"]) for label in metrics()[name].labels),
            }
    for entry in board["templating"]["list"]:
        if entry["type"] == "query":
            (query, label) = re.fullmatch(r"label_values\((.*), (\w+)\)", entry["definition"]).groups()  # type: ignore[union-attr]
            assert label in TARGET_LABELS | set().union(
                *(metrics()[name].labels for name in check_query(query))
            )
