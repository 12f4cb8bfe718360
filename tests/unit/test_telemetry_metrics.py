"""Metrics: the state as of the scrape, counters, and labels nobody outside may choose."""

from __future__ import annotations

from datetime import UTC, datetime

from prometheus_client.parser import text_string_to_metric_families

from secretsvc.telemetry.metrics import CredentialFact, Metrics, Snapshot


class Source:
    """A snapshot that can be changed, and counts how often it is asked."""

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.asked = 0
        self.seconds = 0.0

    def __call__(self) -> Snapshot:
        self.asked += 1
        return self.snapshot

    def monotonic(self) -> float:
        return self.seconds


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    found = {}
    for family in text_string_to_metric_families(metrics.render().decode()):
        assert family.documentation
        for sample in family.samples:
            found[sample.name, tuple(sorted(sample.labels.items()))] = sample.value
    return found


def full() -> Snapshot:
    return Snapshot(
        store_up=True,
        credentials=(
            CredentialFact("a", "reg1", "active", datetime(2027, 1, 1, tzinfo=UTC)),
            CredentialFact("b", "reg1", "active", None),
            CredentialFact("c", "reg2", "invalid", None),
        ),
        deliveries={("pull-secret", "synced"): 5, ("auth-file", "failed"): 1},
        view_age=4.5,
    )


def test_the_state_is_exported() -> None:
    found = samples(Metrics("1.2.3", Source(full())))
    assert found["secretsvc_store_up", ()] == 1
    assert found["secretsvc_view_age_seconds", ()] == 4.5
    assert found["secretsvc_credentials", (("state", "active"),)] == 2
    assert found["secretsvc_credentials", (("state", "invalid"),)] == 1
    assert found["secretsvc_credentials", (("state", "stale"),)] == 0
    labels = (("credential", "a"), ("registry", "reg1"))
    assert found["secretsvc_credential_expiry_timestamp_seconds", labels] == 1798761600
    assert found["secretsvc_deliveries", (("kind", "pull-secret"), ("state", "synced"))] == 5
    versions = [dict(labels)["version"] for name, labels in found if name == "secretsvc_build_info"]
    assert versions == ["1.2.3"]


def test_without_a_store_there_is_no_old_state() -> None:
    names = {name for name, _ in samples(Metrics("1", Source(Snapshot(store_up=False))))}
    assert "secretsvc_store_up" in names
    assert not {name for name in names if name.startswith(("secretsvc_cred", "secretsvc_deliveries"))}


def test_a_snapshot_is_kept_for_5_seconds_and_what_is_gone_is_gone() -> None:
    source = Source(full())
    metrics = Metrics("1", source, source.monotonic)
    assert source.asked == 0
    samples(metrics)
    source.snapshot = Snapshot(store_up=True)
    source.seconds = 4.9
    assert samples(metrics)["secretsvc_credentials", (("state", "active"),)] == 2
    source.seconds = 5.0
    found = samples(metrics)
    assert source.asked == 2
    assert found["secretsvc_credentials", (("state", "active"),)] == 0
    assert not [name for name, _ in found if "expiry" in name]


def test_requests_and_validations_are_counted() -> None:
    metrics = Metrics("1", Source(full()))
    metrics.request("GET", "/api/v1/credentials", 200, 0.02)
    metrics.request("GET", "/api/v1/credentials", 200, 0.2)
    metrics.validation("VALID")
    found = samples(metrics)
    labels = (("method", "GET"), ("route", "/api/v1/credentials"), ("status", "200"))
    assert found["secretsvc_http_request_duration_seconds_count", labels] == 2
    assert found["secretsvc_http_request_duration_seconds_bucket", (("le", "0.025"), *labels)] == 1
    assert found["secretsvc_validations_total", (("outcome", "VALID"),)] == 1
    assert metrics.stopwatch()() >= 0


def test_two_programs_in_one_process_do_not_share_counts() -> None:
    one, other = Metrics("1", Source(full())), Metrics("2", Source(full()))
    one.validation("VALID")
    assert "VALID" not in other.render().decode()


def test_no_label_may_hold_a_namespace_or_username() -> None:
    metrics = Metrics("1", Source(full()))
    metrics.request("GET", "/", 200, 0.1)
    metrics.validation("VALID")
    labels = {label for _, pairs in samples(metrics) for label, _ in pairs}
    assert labels == {
        "credential",
        "registry",
        "state",
        "kind",
        "method",
        "route",
        "status",
        "le",
        "outcome",
        "version",
        "python",
    }
