"""The dockerconfigjson rules, against re-parsers written from the three consumers' sources.

`kubelet`, `docker` and `containers_image` below follow ``pkg/credentialprovider`` (Kubernetes),
``cli/config`` (docker) and ``pkg/docker/config`` (containers/image), not our own parser.
"""

from __future__ import annotations

import base64
import binascii
import json
import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.core.dockerconfig import (
    HUB_KEY,
    Unusable,
    entries,
    holds,
    key_scope,
    merge,
    parse,
    registry_host,
    render,
)
from secretsvc.core.errors import InvalidInput
from secretsvc.core.model import Secret
from secretsvc.core.ports import AuthEntry

# --- The consumers, as their sources read ---------------------------------------------------------


class ConsumerError(Exception):
    """The consumer refuses the whole document."""


def kubelet(text: str) -> dict[str, tuple[str, str]]:
    """``DockerConfigEntry.UnmarshalJSON``: any bad entry refuses the document; padded or unpadded."""
    found = {}
    for key, value in (json.loads(text).get("auths") or {}).items():
        username, password = value.get("username", ""), value.get("password", "")
        if auth := value.get("auth", ""):
            data = _std_decode(auth if auth.strip().endswith("=") else auth + "=" * (-len(auth) % 4))
            parts = data.split(b":", 1)
            if len(parts) != 2:
                raise ConsumerError
            username, password = parts[0].decode(), parts[1].decode()
        bare = key.removeprefix("https://").removeprefix("http://")
        host, slash, path = bare.partition("/")
        path = slash + path
        if path.startswith(("/v1/", "/v2/")):
            path = path[3:]
        found[host if path in {"", "/"} else host + path] = (username, password)
    return found


def docker(text: str) -> dict[str, tuple[str, str]]:
    """``configfile.LoadFromReader``: padded only, an empty user refuses the document, NULs cut."""
    found = {}
    for key, value in (json.loads(text).get("auths") or {}).items():
        username, password = value.get("username", ""), value.get("password", "")
        if auth := value.get("auth", ""):
            user, colon, secret = _std_decode(auth).partition(b":")
            if not colon or not user:
                raise ConsumerError
            username, password = user.decode(), secret.strip(b"\0").decode()
        found[key] = (username, password)
    return found


def containers_image(text: str) -> dict[str, tuple[str, str]]:
    """``decodeDockerAuth``: `auth` alone, padded only; a bad entry is an error of its own lookup."""
    found = {}
    for key, value in (json.loads(text).get("auths") or {}).items():
        user, colon, secret = _std_decode(value.get("auth", "")).partition(b":")
        if colon:
            found[key] = (user.decode(), secret.strip(b"\0").decode())
    return found


def _std_decode(auth: str) -> bytes:
    try:
        return base64.b64decode(auth.replace("\n", "").replace("\r", ""), validate=True)
    except binascii.Error as exc:
        raise ConsumerError from exc


# --- Strategies -----------------------------------------------------------------------------------

characters = st.characters(exclude_categories=["Cs", "Cc"])
usernames = st.text(characters.filter(lambda c: c != ":"), min_size=1, max_size=20)
key_files = st.dictionaries(st.text(characters), st.text(characters)).map(lambda d: json.dumps(d, indent=1))
values = st.one_of(
    st.text(st.one_of(characters, st.sampled_from(":\"'\\$ ")), min_size=1, max_size=40), key_files
)
labels = st.text(string.ascii_lowercase + string.digits, min_size=1, max_size=8)
hosts = st.builds(
    lambda parts, port: ".".join(parts) + (f":{port}" if port else ""),
    st.lists(labels, min_size=1, max_size=3),
    st.one_of(st.none(), st.integers(1, 65535)),
)
keys = st.one_of(hosts, st.just(HUB_KEY))
logins = st.builds(AuthEntry, keys, usernames, st.builds(Secret, values))
login_lists = st.lists(logins, max_size=6, unique_by=lambda entry: entry.key)


def entry(key: str = "quay.io", username: str = "u", value: str = "p") -> AuthEntry:
    return AuthEntry(key, username, Secret(value))


def auth(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def plain(found: tuple[AuthEntry, ...]) -> dict[str, tuple[str, str]]:
    return {e.key: (e.username, e.secret.reveal()) for e in found}


# --- Writing --------------------------------------------------------------------------------------


@given(login_lists)
def test_every_consumer_reads_the_same_logins_from_what_we_render(wanted: list[AuthEntry]) -> None:
    text = render(wanted).reveal()
    expected = plain(tuple(wanted))
    assert docker(text) == expected
    assert containers_image(text) == expected
    assert plain(entries(parse(text))[0]) == expected
    by_host = {"index.docker.io" if key == HUB_KEY else key: login for key, login in expected.items()}
    assert kubelet(text) == by_host


@given(
    st.permutations(
        [entry("b.io"), entry("a.io", value="ü€:\"'"), entry("c.io:5000"), entry("a.io", value="ü€:\"'")]
    )
)
def test_rendering_is_the_same_for_the_same_logins_in_any_order_and_number(wanted: list[AuthEntry]) -> None:
    expected = (
        '{"auths":{"a.io":{"auth":"dTrDvOKCrDoiJw=="},"b.io":{"auth":"dTpw"},"c.io:5000":{"auth":"dTpw"}}}'
    )
    assert render(wanted).reveal() == expected


def test_two_different_logins_for_one_key_are_refused() -> None:
    with pytest.raises(InvalidInput, match=r"quay\.io is wanted with two different logins"):
        render([entry(), entry(value="other")])


def test_nothing_renders_to_no_logins() -> None:
    assert render([]).reveal() == '{"auths":{}}'


@pytest.mark.parametrize(
    ("key", "username", "value"),
    [
        ("quay.io", "", "p"),
        ("quay.io", "a:b", "p"),
        ("quay.io", "a\nb", "p"),
        ("quay.io", "u", ""),
        ("quay.io", "u", "hunter2\n"),
        ("quay.io", "u", "hunter2\0"),
        ("quay.io", "u", "hunter2\nhunter3"),
        ("quay.io", "u", '{"hunter2":\n'),
        ("quay.io", "u", '{"a":\n"hunter2\0"}'),
        ("quay.io", "u", "hunter2\ud800"),
        ("https://quay.io", "u", "p"),
        ("QUAY.io", "u", "p"),
        ("quay.io/", "u", "p"),
        ("*.quay.io", "u", "p"),
        ("user@quay.io", "u", "p"),
        ("", "u", "p"),
        ("docker.io", "u", "p"),
        ("registry-1.docker.io", "u", "p"),
    ],
)
def test_what_a_consumer_would_misread_is_refused(key: str, username: str, value: str) -> None:
    with pytest.raises(InvalidInput) as caught:
        render([entry(key, username, value)])
    assert "hunter2" not in f"{caught.value!r} {caught.value.hint}"


def test_a_document_over_a_secrets_limit_is_refused() -> None:
    with pytest.raises(InvalidInput, match="1 MiB"):
        render([entry(value="x" * 1024 * 1024)])


# --- Reading --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (b"", "an object must stand here"),
        (b"null", "an object must stand here"),
        (b"[]", "an object must stand here"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (b'{"a":"\xff"}', r"not UTF-8 \(byte 6\)"),
        (b"\xff\xfe{\0}\0", "not UTF-8"),
        (b"{} x", r"something follows the object \(line 1, column 4\)"),
        (b'{"auths":{}}{}', "something follows"),
        (b'{"auths":{},\n"auths":{}}', r"stands in its object twice \(line 2, column 1\)"),
        (b'{"auths":{"a":{},"a":{}}}', "twice|two equal keys"),
        (b'{"auths":{"a":{"auth":"x","auth":"y"}}}', "two equal keys"),
        (b'{"x":{"a":1,"a":2}}', "two equal keys"),
        (b'{"AUTHS":{}}', "like `auths` in other letters"),
        ('{"auth\u017f":{}}'.encode(), "like `auths` in other letters"),
        (b'{"credhelpers":{}}', "like `credHelpers`"),
        (b'{"CredsStore":""}', "like `credsStore`"),
        (b'{"auths":[]}', r"an object must stand here \(line 1, column 10\)"),
        (b'{"auths":null}', "an object must stand here"),
        (b'{"auths":"x"}', "an object must stand here"),
        (b'{"auths":{},}', "missing"),
        (b'{"auths":{"a":{"auth":"x}}}', "not JSON"),
        (b'{"auths":{} "x":1}', "','"),
        (b'{"a":NaN}', "not JSON"),
        (b'{"a":' + b"[" * 100_000, "nested too deep|not JSON"),
        (b"{'auths':{}}", "missing"),
    ],
)
def test_what_readers_could_understand_differently_is_refused(text: bytes, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as caught:
        parse(text)
    assert caught.value.code == "Unparseable"


def test_a_refusal_does_not_quote_the_document_nor_carry_it_along() -> None:
    with pytest.raises(InvalidInput) as caught:
        parse('{"auths":{"quay.io":{"auth":"aHVudGVyMg=="},}}')
    error: BaseException | None = caught.value
    while error is not None:
        assert "aHVudGVyMg" not in repr(vars(error)) + repr(error.args)
        error = error.__context__


def test_a_document_does_not_show_its_values() -> None:
    assert "hunter2" not in repr(parse('{"auths":{"a.io":{"password":"hunter2"}},"x":"hunter2"}'))


@pytest.mark.parametrize("number", ["1", "-0.0", "1e999", "9" * 5000])
def test_any_number_is_left_alone(number: str) -> None:
    text = f'{{"x": {number}}}'
    assert parse(text).text == text


@pytest.mark.parametrize(
    ("value", "login"),
    [
        ({"auth": auth("u:p")}, ("u", "p")),
        ({"auth": auth("u:p:q")}, ("u", "p:q")),
        ({"auth": auth("u:pp").rstrip("=")}, ("u", "pp")),
        ({"auth": "dT\npw"}, ("u", "p")),
        ({"auth": auth("u:p"), "username": "other", "password": "other", "email": "x"}, ("u", "p")),
        ({"auth": auth("ü:€ \n")}, ("ü", "€ \n")),
        ({"username": "u", "password": "p"}, ("u", "p")),
        ({"auth": auth("u:p"), "identitytoken": ""}, ("u", "p")),
    ],
)
def test_logins_are_taken_as_the_most_tolerant_reader_sees_them(
    value: object, login: tuple[str, str]
) -> None:
    found, unusable = entries(parse(json.dumps({"auths": {"https://quay.io": value}})))
    assert plain(found) == {"https://quay.io": login}
    assert unusable == ()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({}, "Empty"),
        ("x", "Malformed"),
        (None, "Malformed"),
        ({"auth": 5}, "Malformed"),
        ({"auth": False}, "Malformed"),
        ({"Auth": auth("u:p")}, "Ambiguous"),
        ({"auth": auth("u:p") + " "}, "NotBase64"),
        ({"auth": "dTpwcA="}, "NotBase64"),
        ({"auth": "dTpwcHA-_"}, "NotBase64"),
        ({"auth": "x"}, "NotBase64"),
        ({"auth": auth("nocolon")}, "NoColon"),
        ({"auth": auth(":p")}, "BadUsername"),
        ({"auth": auth("u:")}, "BadValue"),
        ({"auth": auth("u:p\0")}, "BadValue"),
        ({"auth": base64.b64encode(b"u:\xff").decode()}, "NotUtf8"),
        ({"username": "a:b", "password": "p"}, "BadUsername"),
        ({"username": "u", "password": "\ud800"}, "NotUtf8"),
        ({"auth": auth("0000:"), "identitytoken": "t"}, "IdentityToken"),
        ({"registrytoken": "t"}, "IdentityToken"),
    ],
)
def test_what_can_not_be_taken_is_listed_with_its_reason(value: object, reason: str) -> None:
    found, unusable = entries(parse(json.dumps({"auths": {"a.io": value}})))
    assert found == ()
    assert [(u.key, u.reason) for u in unusable] == [("a.io", reason)]


def test_credential_helpers_are_listed_as_unusable() -> None:
    found, unusable = entries(parse('{"credHelpers":{"gcr.io":"gcloud"}}'))
    assert found == ()
    assert unusable == (Unusable("gcr.io", "CredentialHelper", unusable[0].detail),)


@pytest.mark.parametrize(
    ("key", "host", "path"),
    [
        ("quay.io", "quay.io", ""),
        ("QUAY.io:5000", "quay.io:5000", ""),
        ("https://quay.io", "quay.io", ""),
        ("http://quay.io/", "quay.io", ""),
        ("https://quay.io/v1/", "quay.io", ""),
        ("https://quay.io/v2/", "quay.io", ""),
        ("https://quay.io/v2", "quay.io", ""),
        ("quay.io/team/app", "quay.io", "team/app"),
        ("https://quay.io/v2/team", "quay.io", "team"),
        ("quay.io/v2x", "quay.io", "v2x"),
        ("[::1]:5000/a", "[::1]:5000", "a"),
        (HUB_KEY, "docker.io", ""),
        ("docker.io/library", "docker.io", "library"),
        ("registry-1.docker.io", "docker.io", ""),
        ("host:443", "host:443", ""),
    ],
)
def test_keys_are_reduced_to_registry_and_path(key: str, host: str, path: str) -> None:
    assert (key_scope(key).host, key_scope(key).path) == (host, path)
    assert registry_host(key) == host


# --- Editing --------------------------------------------------------------------------------------

LAYOUTS = {
    "tabs": (
        '{\n\t"auths": {\n\t\t"a.io": {\n\t\t\t"auth": "eDp5"\n\t\t}\n\t},\n\t"HttpHeaders": {"X": "y"}\n}'
    ),
    "four spaces, newline at the end": (
        '{\n    "psFormat": "x",\n    "auths": {\n        "a.io": {\n            "auth": "eDp5",\n'
        '            "email": "\\u00fc"\n        }\n    }\n}\n'
    ),
    "two spaces, entries on a line": '{\n  "auths": {\n    "a.io": {"auth": "eDp5"}\n  }\n}\n',
    "carriage returns": '{\r\n  "auths": {\r\n    "a.io": {\r\n      "auth": "eDp5"\r\n    }\r\n  }\r\n}\r\n',
    "compact": '{"auths":{"a.io":{"auth":"eDp5"}},"x":1.50}',
    "one line": '{"auths": {"a.io": {"auth": "eDp5"}}, "z": [1,2 ]}',
    "odd": ' {"z":1 ,"auths" :{ "a.io":{"auth":"eDp5" } , "b.io" : {} } }\n\n',
}
ADDED = {
    "tabs": (
        '{\n\t"auths": {\n\t\t"a.io": {\n\t\t\t"auth": "eDp5"\n\t\t},\n\t\t"quay.io": {\n'
        '\t\t\t"auth": "dTpw"\n\t\t}\n\t},\n\t"HttpHeaders": {"X": "y"}\n}'
    ),
    "four spaces, newline at the end": (
        '{\n    "psFormat": "x",\n    "auths": {\n        "a.io": {\n            "auth": "eDp5",\n'
        '            "email": "\\u00fc"\n        },\n        "quay.io": {\n            "auth": "dTpw"\n'
        "        }\n    }\n}\n"
    ),
    "two spaces, entries on a line": (
        '{\n  "auths": {\n    "a.io": {"auth": "eDp5"},\n    "quay.io": {"auth": "dTpw"}\n  }\n}\n'
    ),
    "carriage returns": (
        '{\r\n  "auths": {\r\n    "a.io": {\r\n      "auth": "eDp5"\r\n    },\r\n    "quay.io": {\r\n'
        '      "auth": "dTpw"\r\n    }\r\n  }\r\n}\r\n'
    ),
    "compact": '{"auths":{"a.io":{"auth":"eDp5"},"quay.io":{"auth":"dTpw"}},"x":1.50}',
    "one line": '{"auths": {"a.io": {"auth": "eDp5"}, "quay.io": {"auth": "dTpw"}}, "z": [1,2 ]}',
    "odd": ' {"z":1 ,"auths" :{ "a.io":{"auth":"eDp5" } , "b.io" : {}, "quay.io" : {"auth":"dTpw" } } }\n\n',
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_added_entry_looks_like_its_neighbours_and_goes_without_a_trace(layout: str) -> None:
    before = LAYOUTS[layout]
    after = merge(parse(before), [entry()])
    assert after == ADDED[layout]
    assert merge(parse(after), [], ["quay.io"]) == before


@pytest.mark.parametrize("text", [*LAYOUTS.values(), "{}", ' { "auths": { } } '])
def test_nothing_to_do_returns_the_very_same_text(text: str) -> None:
    document = parse(text)
    assert merge(document, [], ["absent.io"]) is document.text
    there = parse(merge(document, [entry()]))
    assert merge(there, [entry()]) is there.text


def test_a_new_document_is_written_as_podman_and_docker_write_it() -> None:
    both = merge(None, [entry("a.io"), entry("b.io")])
    document = {"auths": {"a.io": {"auth": "dTpw"}, "b.io": {"auth": "dTpw"}}}
    assert both == json.dumps(document, indent="\t")


def test_auths_is_added_behind_other_fields() -> None:
    text = merge(parse('{\n  "credsStore": "x"\n}\n'), [entry()])
    assert (
        text
        == '{\n  "credsStore": "x",\n  "auths": {\n    "quay.io": {\n      "auth": "dTpw"\n    }\n  }\n}\n'
    )


def test_the_last_entry_leaves_an_empty_object() -> None:
    assert merge(parse(merge(None, [entry()])), [], ["quay.io"]) == '{\n\t"auths": {}\n}'


def test_replacing_drops_other_logins_of_the_entry_and_keeps_unknown_fields() -> None:
    text = '{"auths":{"quay.io":{"note":1,"username":"u","auth":"x","password":"old","email":"e"},"z":{}}}'
    assert (
        merge(parse(text), [entry()]) == '{"auths":{"quay.io":{"note":1,"auth":"dTpw","email":"e"},"z":{}}}'
    )


def test_an_entry_that_only_some_readers_understand_is_not_held() -> None:
    assert holds({"auth": "dTpw"}, entry())
    assert not holds({"username": "u", "password": "p"}, entry())
    assert not holds({"auth": "dTpw", "password": "stale"}, entry())
    assert not holds({"auth": "dTpwcA"}, entry(value="pp"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(string.ascii_letters, max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)
other_fields = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=6).filter(
        lambda name: name.casefold() != "auths"
    ),
    json_values,
    max_size=3,
)
documents = st.builds(
    lambda fields, auths, indent, ascii_only, separators: json.dumps(
        {**fields, "auths": auths}, indent=indent, ensure_ascii=ascii_only, separators=separators
    ),
    other_fields,
    st.dictionaries(st.one_of(hosts, st.text(max_size=4, alphabet='ab/:."ü')), json_values, max_size=4),
    st.sampled_from([None, 1, 4, "\t"]),
    st.booleans(),
    st.sampled_from([(", ", ": "), (",", ":"), (" ,", " : ")]),
)


@given(documents, login_lists)
def test_foreign_parts_survive_any_edit(text: str, wanted: list[AuthEntry]) -> None:
    before = parse(text)
    after = parse(merge(before, wanted))
    mine = {e.key for e in wanted}
    assert plain(entries(after)[0]).items() >= plain(tuple(wanted)).items()
    assert [(k, v) for k, v in after.auths.items() if k not in mine] == [
        (k, v) for k, v in before.auths.items() if k not in mine
    ]
    assert list(after.others.items()) == list(before.others.items())
    assert docker(merge(None, wanted)) == containers_image(merge(None, wanted)) == plain(tuple(wanted))


@given(documents, login_lists)
def test_adding_and_removing_restores_every_character(text: str, wanted: list[AuthEntry]) -> None:
    before = parse(text)
    new = [e for e in wanted if e.key not in before.auths]
    restored = merge(parse(merge(before, new)), [], [e.key for e in new])
    assert re.sub(r"\{\s+\}", "{}", restored) == re.sub(r"\{\s+\}", "{}", text)


@given(st.text(max_size=60) | st.binary(max_size=60))
def test_any_text_is_a_document_or_refused(source: str | bytes) -> None:
    try:
        document = parse(source)
    except InvalidInput:
        return
    assert isinstance(json.loads(document.text), dict)
