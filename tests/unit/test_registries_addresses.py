"""Which addresses may be connected to, and which realms may be given a login: tables, no sockets."""

from __future__ import annotations

import ipaddress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.core.model import (
    RegistryKind,
    RegistrySpec,
)
from secretsvc.registries.addresses import address_verdict, parse_networks
from secretsvc.registries.realm import RealmJudge, RealmRefused

EVERYTHING = parse_networks(["0.0.0.0/0", "::/0"])
NEVER = [
    "169.254.169.254", "169.254.0.1", "168.63.129.16", "192.0.0.192", "100.100.100.200", "0.0.0.0", "0.1.2.3",
    "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255", "::", "ff02::1", "fe80::1", "fd00:ec2::254",
    "64:ff9b::a9fe:a9fe", "64:ff9b::7f00:1", "64:ff9b:1::1", "2002:a9fe:a9fe::", "2002:7f00:1::",
    "2001:0:4136:e378:8000:63bf:3fff:fdd2", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::127.0.0.1",
    "::a9fe:a9fe",
    "::ffff:0:169.254.169.254",
]  # fmt: skip
LISTED_ONLY = [
    "127.0.0.1", "127.9.9.9", "::1", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1",
    "198.18.0.1", "192.0.2.1", "203.0.113.1", "fd12:3456::1", "fec0::1", "2001:db8::1",
]  # fmt: skip
PUBLIC = ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "2001:4860:4860::8888"]


@pytest.mark.parametrize("text", NEVER)
def test_never_even_when_everything_is_listed(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert address_verdict(address, EVERYTHING)
    assert address_verdict(address, ())


@pytest.mark.parametrize("text", LISTED_ONLY)
def test_only_when_listed(text: str) -> None:
    address = ipaddress.ip_address(text)
    assert address_verdict(address, ())
    assert address_verdict(address, parse_networks(["10.99.0.0/16", "fd99::/32"]))
    assert not address_verdict(address, parse_networks([text]))


@pytest.mark.parametrize("text", PUBLIC)
def test_public_addresses_need_no_listing(text: str) -> None:
    assert not address_verdict(ipaddress.ip_address(text), ())


@given(st.integers(0, 2**32 - 1))
def test_an_ipv4_address_hidden_in_ipv6_is_never_a_way_in(number: int) -> None:
    v4 = ipaddress.IPv4Address(number)
    for hidden in (
        f"::ffff:{v4}",
        f"64:ff9b::{v4}",
        str(ipaddress.IPv6Address(0x2002 << 112 | number << 80)),
    ):
        assert address_verdict(ipaddress.ip_address(hidden), EVERYTHING)


JUDGE = RealmJudge()
SERVICE = "image-registry.openshift-image-registry.svc"


def spec(host: str, **more: object) -> RegistrySpec:
    base = RegistrySpec("u", "n", host, RegistryKind.GENERIC, datetime(2026, 1, 1, tzinfo=UTC), "t")
    return replace(base, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("registry", "realm", "authority"),
    [
        (spec("quay.io"), "https://quay.io/v2/auth", "quay.io"),
        (spec("r.example.com:5000"), "https://r.example.com:5000/t?a=b", "r.example.com:5000"),
        (spec("r.example.com:5000"), "https://r.example.com/t", "r.example.com"),
        (spec("registry.example.com"), "https://auth.example.com/t", "auth.example.com"),
        (spec("registry.example.co.uk"), "https://auth.example.co.uk/t", "auth.example.co.uk"),
        (spec("docker.io", kind=RegistryKind.DOCKERHUB), "https://auth.docker.io/token", "auth.docker.io"),
        (spec("registry.redhat.io", kind=RegistryKind.REDHAT), "https://sso.redhat.com/auth",
         "sso.redhat.com"),
        (spec("registry.gitlab.com"), "https://gitlab.com/jwt/auth", "gitlab.com"),
        (spec("r.example.com"), "/token", "r.example.com"),
        (spec("mine.azurecr.io"), "https://mine.azurecr.io/oauth2/token", "mine.azurecr.io"),
        (spec("mine.jfrog.io:8443"), "https://mine.jfrog.io/t", "mine.jfrog.io"),
        (spec(f"{SERVICE}:5000"), f"https://{SERVICE}:5000/openshift/token", f"{SERVICE}:5000"),
        (spec("r.corp.local"), "https://r.corp.local/t", "r.corp.local"),
        (spec("r.corp.local", realms=("https://auth.corp.local/",)), "https://auth.corp.local/t",
         "auth.corp.local"),
        (spec("r.example.com"), "HTTPS://R.Example.COM/token", "r.example.com"),
        (spec("127.0.0.1:5000", insecure=True), "http://127.0.0.1:5000/token", "127.0.0.1:5000"),
        (spec("[::1]:5000"), "https://[::1]:5000/token", "[::1]:5000"),
        (spec("r.example.com", realms=("https://auth.corp.test:8443/t",)), "https://auth.corp.test:8443/t/x",
         "auth.corp.test:8443"),
    ],
)  # fmt: skip
def test_realms_that_belong_to_the_registry(registry: RegistrySpec, realm: str, authority: str) -> None:
    assert JUDGE.judge(realm, registry).authority == authority


LISTED = spec("r.example.com", realms=("https://auth.corp.test/t", "http://plain.corp.test/"))
REFUSED = [
    (spec("r.example.com"), "https://evil.test/t"),
    (spec("r.example.com"), "https://r.example.com.evil.test/t"),
    (spec("r.example.com"), "https://evil-example.com/t"),
    (spec("r.example.com"), "http://r.example.com/t"),
    (spec("r.example.com"), "https://u@r.example.com/t"),
    (spec("r.example.com"), "https://u:p@r.example.com/t"),
    (spec("r.example.com"), "https://r.example.com@evil.test/t"),
    (spec("r.example.com"), "https://evil.test#@r.example.com/t"),
    (spec("r.example.com"), "https://r.example.com/t#x"),
    (spec("r.example.com"), "https://r.example.com:8443/t"),
    (spec("r.example.com"), "//evil.test/t"),
    (spec("r.example.com"), "https:evil.test"),
    (spec("r.example.com"), "https:///t"),
    (spec("r.example.com"), "https://r.example.com\\@evil.test/t"),
    (spec("r.example.com"), "https://r.example.com\t.evil.test/t"),
    (spec("r.example.com"), "https://r.example.com/../t"),
    (spec("r.example.com"), "https://r.example.com/%2e%2e/t"),
    (spec("r.example.com"), "/a/../../t"),
    (spec("r.example.com"), "ftp://r.example.com/t"),
    (spec("r.example.com"), "file:///etc/passwd"),
    (spec("r.example.com"), "r.example.com/t"),
    (spec("r.example.com"), "127.0.0.1:8080"),
    (spec("r.example.com"), ""),
    (spec("r.example.com"), "https://169.254.169.254/t"),
    (spec("r.example.com"), "https://[::]/t"),
    (spec("r.example.com"), "https://10.0.0.1/t"),
    (spec("r.example.com"), "https://2130706433/t"),
    (spec("r.example.com"), "https://r.ex\u0430mple.com/t"),
    (spec("r.example.com"), "https://r.example.com:99999/t"),
    (spec("r.example.com"), "https://[::1/t"),
    (spec("a.github.io"), "https://b.github.io/t"),
    (spec("a.azurecr.io"), "https://com/t"),
    (spec("registry.co.uk"), "https://other.co.uk/t"),
    (spec(f"{SERVICE}.cluster.local:5000"), "https://evil.attacker.svc.cluster.local:5000/t"),
    (spec(f"{SERVICE}:5000"), "https://evil.openshift-image-registry.svc:5000/t"),
    (spec(f"{SERVICE}:5000"), "https://evil.attacker.svc:5000/t"),
    (spec("r.corp.local"), "https://evil.corp.local/t"),
    (spec("r.corp.internal"), "https://evil.corp.internal/t"),
    (spec("mine.azurecr.io"), "https://evil.azurecr.io/t"),
    (spec("mine.azurecr.cn", kind=RegistryKind.ACR), "https://evil.azurecr.cn/t"),
    (spec("mine.jfrog.io"), "https://evil.jfrog.io/t"),
    (spec("1.dkr.ecr.eu-west-1.amazonaws.com"), "https://x.dkr.ecr.eu-west-1.amazonaws.com/t"),
    (spec("vpce-1.dkr.ecr.us-east-1.vpce.amazonaws.com"), "https://evil.us-east-1.vpce.amazonaws.com/t"),
    (spec("r.apps.a.p1.openshiftapps.com"), "https://evil.apps.b.p1.openshiftapps.com/t"),
    (spec("10.0.0.1"), "https://10.0.0.2/t"),
    (spec("10.0.0.1"), "https://192.168.0.1/t"),
    (spec("127.0.0.1:5000", insecure=True), "http://127.0.0.1:5001/t"),
    (spec("localhost:5000", insecure=True), "http://localhost:5001/t"),
    (spec("r.example.com", kind=RegistryKind.GENERIC), "https://sso.redhat.com/auth"),
    (LISTED, "https://auth.corp.test/token"),
    (LISTED, "https://auth.corp.test/t/../x"),
    (LISTED, "https://auth.corp.test:8443/t"),
    (LISTED, "https://auth.corp.test.evil.test/t"),
    (LISTED, "http://plain.corp.test/t"),
]


@pytest.mark.parametrize(("registry", "realm"), REFUSED)
def test_realms_that_get_nothing(registry: RegistrySpec, realm: str) -> None:
    with pytest.raises(RealmRefused) as caught:
        JUDGE.judge(realm, registry)
    assert "@" not in caught.value.shown
    assert caught.value.shown.isprintable()


@given(st.text(max_size=60))
def test_any_realm_is_a_place_of_the_registry_or_refused(realm: str) -> None:
    for prefix in ("", "https://", "https://r.example.com", "/"):
        try:
            url = JUDGE.judge(prefix + realm, spec("r.example.com"))
        except RealmRefused:
            continue
        assert url.scheme == "https"
        assert url.host == "example.com" or url.host.endswith(".example.com")
        assert url.port == 443
        assert url.request_target.isascii()
