"""The challenge grammar: what real registries send, what the RFC allows, and anything at all."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.core.challenge import MAX_CHARACTERS, Challenge, ChallengeError, parse_challenges

DOCKER_HUB = (
    'Bearer realm="https://auth.docker.io/token",service="registry.docker.io",'
    'scope="repository:library/busybox:pull,push"'
)
GITEA = 'Bearer realm="https://codeberg.org/v2/token",service="container_registry",scope="*"'
GITEA_BASIC = 'Basic realm="Gitea Container Registry"'
SUSE = (
    'Bearer realm="https://registry.suse.com/auth",service="SUSE Linux Docker Registry",'
    'scope="registry:catalog:*",error="insufficient_scope"'
)


@pytest.mark.parametrize(
    ("line", "scheme", "params"),
    [
        (
            DOCKER_HUB,
            "bearer",
            {
                "realm": "https://auth.docker.io/token",
                "service": "registry.docker.io",
                "scope": "repository:library/busybox:pull,push",
            },
        ),
        (
            SUSE,
            "bearer",
            {
                "realm": "https://registry.suse.com/auth",
                "service": "SUSE Linux Docker Registry",
                "scope": "registry:catalog:*",
                "error": "insufficient_scope",
            },
        ),
        (
            'Basic realm=openshift,error="access denied"',
            "basic",
            {"realm": "openshift", "error": "access denied"},
        ),
        ("BASIC", "basic", {}),
        ('bearer realm="x"', "bearer", {"realm": "x"}),
        (
            'Bearer realm = "https://h/t" ,empty="",service=s, scope="a:b:pull,push"',
            "bearer",
            {"realm": "https://h/t", "empty": "", "service": "s", "scope": "a:b:pull,push"},
        ),
        (r'Bearer slashed="he\"\l\lo"', "bearer", {"slashed": 'he"llo'}),
        (
            "Bearer realm=https://h:5000/t?x=1,service=s",
            "bearer",
            {"realm": "https://h:5000/t?x=1", "service": "s"},
        ),
        ('Bearer REALM="a",,, Service="b" ,', "bearer", {"realm": "a", "service": "b"}),
        ('Bearer realm="a",\r\n service="b"', "bearer", {"realm": "a", "service": "b"}),
        ('Bearer scope="",realm="zot"', "bearer", {"scope": "", "realm": "zot"}),
    ],
)
def test_one_challenge(line: str, scheme: str, params: dict[str, str]) -> None:
    assert parse_challenges([line]) == (Challenge(scheme, params),)


def test_two_lines_and_the_same_joined_into_one_are_read_alike() -> None:
    apart = parse_challenges([GITEA, GITEA_BASIC])
    assert apart == parse_challenges([f"{GITEA}, {GITEA_BASIC}"])
    assert [each.scheme for each in apart] == ["bearer", "basic"]
    assert apart[0].params["realm"] == "https://codeberg.org/v2/token"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Negotiate abc==", [("negotiate", "abc==")]),
        ('Negotiate abc==, Basic realm="x"', [("negotiate", "abc=="), ("basic", "")]),
        ('Basic realm="x", Negotiate', [("basic", ""), ("negotiate", "")]),
        ("Negotiate, NTLM, Basic", [("negotiate", ""), ("ntlm", ""), ("basic", "")]),
        ('Basic realm="x", NTLM TlRMTVNTUAAC=', [("basic", ""), ("ntlm", "TlRMTVNTUAAC=")]),
    ],
)
def test_schemes_without_parameters_and_token68(line: str, expected: list[tuple[str, str]]) -> None:
    assert [(each.scheme, each.token68) for each in parse_challenges([line])] == expected


@pytest.mark.parametrize("lines", [[], [""], [" , ,"]])
def test_nothing_offered(lines: list[str]) -> None:
    assert parse_challenges(lines) == ()


@pytest.mark.parametrize(
    "line",
    [
        'Bearer realm="https://h/t',
        'Bearer realm="x" service="y"',
        'Bearer realm="a",realm="b"',
        "=x",
        '"quoted"',
        "Bearer \x00",
        'Bearer realm="a\x0bb"',
        "Negotiate abc== def",
        "x" * (MAX_CHARACTERS + 1),
    ],
)
def test_what_is_no_challenge_is_an_error_that_does_not_quote_it(line: str) -> None:
    with pytest.raises(ChallengeError) as caught:
        parse_challenges([line])
    assert line not in str(caught.value)


@given(st.lists(st.text(max_size=80), max_size=4))
def test_any_text_gives_challenges_or_the_one_error(lines: list[str]) -> None:
    try:
        found = parse_challenges(lines)
    except ChallengeError:
        return
    assert all(each.scheme and each.scheme == each.scheme.lower() for each in found)


@given(st.lists(st.text(alphabet='Baserlm="\\, \t=/:-x1', max_size=60), max_size=3))
def test_anything_made_of_the_grammars_own_characters(lines: list[str]) -> None:
    try:
        found = parse_challenges(lines)
    except ChallengeError:
        return
    assert sum(len(each.params) for each in found) <= sum(map(len, lines))


_TOKENS = st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=8)
_VALUES = st.text(alphabet=st.characters(min_codepoint=0x20, max_codepoint=0xFF, exclude_characters="\x7f"))
_WRITTEN = st.builds(Challenge, _TOKENS, st.dictionaries(_TOKENS, _VALUES, min_size=1, max_size=4))


def _write(challenge: Challenge) -> str:
    pairs = (
        '{}="{}"'.format(name, value.replace("\\", "\\\\").replace('"', '\\"'))
        for name, value in challenge.params.items()
    )
    return f"{challenge.scheme} {', '.join(pairs)}"


@given(st.lists(_WRITTEN, max_size=4))
def test_what_is_written_is_read_back_joined_or_not(challenges: list[Challenge]) -> None:
    lines = [_write(challenge) for challenge in challenges]
    assert parse_challenges(lines) == tuple(challenges)
    assert parse_challenges([", ".join(lines)]) == tuple(challenges)
