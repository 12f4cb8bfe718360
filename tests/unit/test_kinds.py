"""Spelling of hosts, guesses of kinds, auth keys and usernames."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.core import kinds
from secretsvc.core.errors import InvalidInput
from secretsvc.core.model import (
    RegistryKind,
    RegistrySpec,
)


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("quay.io", "quay.io"),
        ("Quay.IO", "quay.io"),
        ("quay.io.", "quay.io"),
        ("quay.io:443", "quay.io"),
        ("registry.example.com:5000", "registry.example.com:5000"),
        ("localhost:5000", "localhost:5000"),
        ("127.0.0.1:5000", "127.0.0.1:5000"),
        ("[::1]:5000", "[::1]:5000"),
        ("[2001:DB8:0:0::1]", "[2001:db8::1]"),
        ("index.docker.io", "docker.io"),
        ("registry-1.docker.io", "docker.io"),
        ("bücher.example", "xn--bcher-kva.example"),
    ],
)
def test_a_host_has_one_spelling(text: str, host: str) -> None:
    assert kinds.normalise_host(text) == host
    assert kinds.normalise_host(host) == host


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "https://quay.io",
        "quay.io/",
        "quay.io/org",
        "user@quay.io",
        "quay.io?x",
        "quay.io#x",
        "quay.io:",
        "quay.io:0",
        "quay.io:65536",
        "quay.io:\u0665",
        "quay io",
        " quay.io",
        "quay..io",
        "-quay.io",
        "quay_io",
        "::1",
        "::1:5000",
        "[::1",
        "[nonsense]:5000",
        "[fe80::1%eth0]",
        "127.1",
        "0x7f000001",
        "2130706433",
        "0177.0.0.1",
        "①②⑦.0.0.1",
        "straße.example",
        "quay\n.io",
        "a" * 64 + ".io",
    ],
)
def test_what_is_no_host_is_refused_with_the_field(text: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        kinds.normalise_host(text)
    assert [each.pointer for each in caught.value.fields] == ["/host"]
    assert caught.value.hint


@given(st.text(max_size=40))
def test_any_text_is_a_stable_host_or_refused(text: str) -> None:
    try:
        host = kinds.normalise_host(text)
    except InvalidInput:
        return
    assert kinds.normalise_host(host) == host
    assert host.isascii()
    assert not set(host) & set("/@?# \n")


@pytest.mark.parametrize(
    ("host", "kind"),
    [
        ("registry.redhat.io", RegistryKind.REDHAT),
        ("registry.connect.redhat.com", RegistryKind.REDHAT),
        ("quay.io", RegistryKind.QUAY),
        ("quay.corp.example", RegistryKind.QUAY),
        ("docker.io", RegistryKind.DOCKERHUB),
        ("ghcr.io", RegistryKind.GHCR),
        ("123456789012.dkr.ecr.eu-west-1.amazonaws.com", RegistryKind.ECR),
        ("eu.gcr.io", RegistryKind.GAR),
        ("europe-west1-docker.pkg.dev", RegistryKind.GAR),
        ("contoso.azurecr.io", RegistryKind.ACR),
        ("harbor.corp.example:8443", RegistryKind.HARBOR),
        ("registry.gitlab.com", RegistryKind.GITLAB),
        ("image-registry.openshift-image-registry.svc:5000", RegistryKind.OPENSHIFT),
        ("notquay.io", RegistryKind.GENERIC),
        ("quay.io.evil.example", RegistryKind.QUAY),  # called after the product; only a guess
        ("127.0.0.1:5000", RegistryKind.GENERIC),
    ],
)
def test_guess_kind(host: str, kind: RegistryKind) -> None:
    assert kinds.guess_kind(host) is kind


def _spec(host: str) -> RegistrySpec:
    return RegistrySpec("u", "n", host, kinds.guess_kind(host), datetime(2026, 1, 1, tzinfo=UTC), "t")


def test_auth_keys() -> None:
    assert kinds.auth_key(_spec("docker.io")) == "https://index.docker.io/v1/"
    assert kinds.auth_key(_spec("registry.example.com:5000")) == "registry.example.com:5000"
    assert kinds.api_host("docker.io") == "registry-1.docker.io"
    assert kinds.api_host("quay.io") == "quay.io"


@pytest.mark.parametrize(
    ("kind", "good", "odd"),
    [
        (RegistryKind.REDHAT, "12345678|ceph", "jane"),
        (RegistryKind.QUAY, "org+robot", "jane"),
        (RegistryKind.HARBOR, "robot$p+x", "jane"),
        (RegistryKind.ECR, "AWS", "aws"),
        (RegistryKind.GAR, "_json_key", "jane"),
    ],
)
def test_usernames_that_do_not_fit_are_remarked_on(kind: RegistryKind, good: str, odd: str) -> None:
    assert kinds.username_warning(kind, good) == ""
    assert kinds.username_warning(kind, odd)
    assert kinds.username_warning(RegistryKind.GENERIC, odd) == ""


def test_production_requires_token_for_red_hat_only() -> None:
    assert kinds.production_requires_token("registry.redhat.io")
    assert kinds.production_requires_token("registry.connect.redhat.com")
    assert not kinds.production_requires_token("registry.access.redhat.com")
    assert not kinds.production_requires_token("quay.io")
