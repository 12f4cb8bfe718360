"""A value is in its targets and in the store's sealed data, and nowhere else (promises P1, P2 and P18).

Values of unusual characters go through everything the service does, right ones and wrong ones, on both
stores; then every place that the service writes, prints or answers to is searched for them.
"""

from __future__ import annotations

import base64
import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from secretsvc.cli.exits import Exit
from tests.acceptance.estate import USER, Estate, Heard, estate, wait_for
from tests.acceptance.searching import Canary, ProcessWatch, files, found_in, known
from tests.rig.kube import KubeCluster
from tests.rig.openbao import OpenBao

pytestmark = [pytest.mark.rig, pytest.mark.timeout(300)]

IMPORTED_USER = "robot$import"
SHAPES = {
    "first": 'c4n"ary/+ %é${}',
    "second": "{}\\<&>'`|?#=",
    "refused at registering": "{}+/=",
    "refused at replacing": "%41{}\\u0041",
    "kept unverified": "{}^[a-z]*$",
    "put while the registry is away": '"{}"',
    "imported": "{}:colon",
    "refused at importing": "{}",
    "foreign": "{}",
    "misplaced": "Glpat_{}",
}
FORMATS = ("table", "json", "yaml")


class Story:
    """One installation with the values that go through it."""

    def __init__(self, place: Estate, namespaces: list[str]) -> None:
        self.place = place
        self.namespaces = namespaces
        self.secret_name = f"canary-{namespaces[0]}"
        self.auth_file = place.folder / "auth.json"
        self.sources = (place.folder / "import.json", place.folder / "import-wrong.json")
        self.canaries = {
            name: Canary.make(name, IMPORTED_USER if "import" in name else USER, shape)
            for name, shape in SHAPES.items()
        }

    def value(self, name: str) -> str:
        return self.canaries[name].value

    def cli(self, *arguments: str, code: Exit = Exit.OK, value: str = "") -> None:
        done = self.place.cli(*arguments, value=value)
        assert done.returncode == code, (arguments, done.stdout, done.stderr)

    # --- what is done -----------------------------------------------------------------------------

    def register(self) -> None:
        place = self.place
        place.registry.set_password(USER, self.value("first"))
        self.cli("registry", "add", "reg1", place.registry.host, "--insecure", "--network", "127.0.0.0/8")
        self.cli("registry", "add", "down", "127.0.0.1:9", "--insecure", "--network", "127.0.0.0/8")
        add = ("credential", "add", "prod", "--registry", "reg1", "--username", USER, "--type", "token")
        self.cli(*add, code=Exit.BAD_ANSWER, value=self.value("refused at registering"))
        assert place.register("prod", self.value("refused at registering")).status == 422
        self.cli(*add, value=self.value("first") + "\n")
        kept = {"registry": "down", "allow_unverified": True}
        later = {"name": "later", "username": USER, "secret": self.value("kept unverified")}
        assert place.call("POST", "/credentials", {**later, "registry": "down"}).status == 503
        assert place.call("POST", "/credentials", later | kept).status == 201

    def deliver(self) -> None:
        foreign = base64.b64encode(f"u:{self.value('foreign')}".encode()).decode()
        self.auth_file.write_text(json.dumps({"auths": {"foreign.example.com": {"auth": foreign}}}))
        wanted = [part for name in self.namespaces for part in ("--namespace", name)]
        rule = ("pull-secret", "add", "apps", "--secret-name", self.secret_name, "--credential", "prod")
        self.cli(*rule, *wanted)
        write = ("authfile", "write", "--credential", "prod", "--path", str(self.auth_file), "--name", "file")
        self.cli(*write, "--dialect", "containers-auth")
        self.assert_delivered("first")

    def replace(self) -> None:
        place = self.place
        self.cli(
            *("credential", "rotate", "prod", "--manual"),
            code=Exit.BAD_ANSWER,
            value=self.value("refused at replacing"),
        )
        assert place.put("prod", self.value("refused at replacing")).status == 422
        place.registry.set_password(USER, self.value("second"))
        self.cli("credential", "rotate", "prod", "--manual", value=self.value("second"))
        self.assert_delivered("second")
        self.cli("credential", "rollback", "prod", code=Exit.BAD_ANSWER)
        place.registry.set_password(USER, self.value("first"))
        self.cli("credential", "rollback", "prod")
        self.assert_delivered("first")
        self.cli("credential", "validate", "prod")
        place.registry.stop()
        assert place.put("prod", self.value("put while the registry is away")).status == 503
        place.call("POST", "/credentials/prod/validate", wait=30)
        place.call("POST", "/registries/reg1/ping")
        place.registry.start()

    def bring_in(self) -> None:
        host, options = self.place.registry.host, ("--all", "--type", "token")
        self.place.registry.set_password(IMPORTED_USER, self.value("imported"))
        for path, name in zip(self.sources, ("imported", "refused at importing"), strict=True):
            auth = base64.b64encode(f"{IMPORTED_USER}:{self.value(name)}".encode()).decode()
            path.write_text(
                json.dumps({"auths": {host: {"auth": auth}, "broken.example.com": {"auth": "é"}}})
            )
        right, wrong = map(str, self.sources)
        self.cli("credential", "import", "--authfile", right)
        self.cli("credential", "import", "--authfile", wrong, *options, code=Exit.BAD_ANSWER)
        self.cli("credential", "import", "--authfile", right, "--select", host, *options[1:], "--name", "old")
        secret = f"{self.namespaces[0]}/by-hand"
        self.place.kube.create_secret(
            self.namespaces[0],
            "by-hand",
            {".dockerconfigjson": self.sources[0].read_text()},
            "kubernetes.io/dockerconfigjson",
        )
        self.cli("credential", "import", "--k8s-secret", secret)
        self.cli("credential", "import", "--k8s-secret", secret, *options, "--name", "old2")

    def look_around(self) -> None:
        commands = [
            ("credential", "list"),
            ("credential", "get", "prod"),
            ("credential", "get", "later"),
            ("credential", "history", "prod"),
            ("registry", "list"),
            ("registry", "get", "reg1"),
            ("pull-secret", "list"),
            ("pull-secret", "get", "apps"),
            ("authfile", "list"),
            ("authfile", "get", "file"),
            ("token", "list"),
            ("whoami",),
            ("status",),
            ("doctor",),
        ]
        places = {
            "SECRETSVC_DATA_DIR": str(self.place.service.folder / "data"),
            "SECRETSVC_KEY_FILE": str(self.place.service.folder / "kek"),
        }
        for number, command in enumerate(commands):
            wished = FORMATS if command[0] in ("status", "doctor") else (FORMATS[number % 3],)
            for form in wished:
                done = self.place.cli("-o", form, *command, **places)
                assert done.returncode in (Exit.OK, Exit.BAD_ANSWER), (command, done.stderr)
        self.cli("token", "create", "viewer", "--role", "viewer")
        for path in ("/metrics", "/openapi.json", "/readyz", "/livez"):
            assert self.place.call("GET", path, root=True).status == 200
        for heard in every_get(self.place):
            assert heard.status == 200, heard.content

    def misplace(self) -> None:
        """Put a value where none belongs, in requests and in commands."""
        odd = self.value("misplaced")
        for heard in misplaced_everywhere(self.place, odd):
            assert heard.status != 500, heard.content
        self.cli("credential", "get", odd, code=Exit.USAGE)
        add = ("credential", "add", "x", "--registry", "reg1", "--username", USER, "--type", "token")
        self.cli(*add, "--password", odd, code=Exit.USAGE)

    def remove(self) -> None:
        self.cli("pull-secret", "delete", "apps")
        self.cli("authfile", "delete", "file")
        for name in ("prod", "later", "old", "old2"):
            self.cli("credential", "delete", name)
        assert json.loads(self.auth_file.read_text())["auths"].keys() == {"foreign.example.com"}
        for namespace in self.namespaces:
            assert self.place.kube.get_secret(namespace, self.secret_name) is None

    def kept_in_vault(self) -> set[str]:
        """Return the values in any version of any document of Vault's key-value data."""
        place = self.place
        if place.bao is None or place.grant is None:
            return set()
        kept = read_vault(place.bao, place.grant.mount)
        assert kept
        return {name for name, one in self.canaries.items() if found_in(kept, [one])}

    # --- what is there ----------------------------------------------------------------------------

    def assert_delivered(self, name: str) -> None:
        """The value is in every target, and the search finds it there."""
        canary, place = self.canaries[name], self.place
        assert place.in_file(self.auth_file) == canary.value
        assert found_in(self.auth_file.read_bytes(), [canary])
        for namespace in self.namespaces:
            assert place.in_namespace(namespace, self.secret_name) == canary.value
            raw = place.kube.ask("GET", f"/api/v1/namespaces/{namespace}/secrets/{self.secret_name}").content
            assert found_in(raw, [canary])

    def sought(self) -> list[Canary]:
        """Return everything that must not be found: the values, and this installation's own secrets."""
        service = self.place.service
        own = [known("admin token", self.place.token)]
        if self.place.bao is None:
            own.append(known("key", (service.folder / "kek").read_text().strip()))
        else:
            own.append(known("root token", self.place.bao.root_token))
            own += [
                known("secret id", path.read_text().strip()) for path in self.own_files() if "id" in path.name
            ]
        return [*self.canaries.values(), *own]

    def own_files(self) -> set[Path]:
        """Return the files whose content is a secret of the installation."""
        given = self.place.grant.report.secret_id_files.values() if self.place.grant else ()
        service = self.place.service
        return {service.token_file, service.folder / "kek", *map(Path, given)}

    def assert_no_leaks(self, watch: ProcessWatch) -> None:
        """Search everything but the targets and the files that values were imported from."""
        allowed = {self.auth_file, *self.sources, *self.own_files()}
        sought = self.sought()
        leaks = [
            f"{path}: {what}"
            for path, data in files(self.place.folder)
            if path not in allowed
            for what in found_in(data, sought)
        ]
        leaks += [
            f"said: {what}: {data[:300]!r}" for data in self.place.said for what in found_in(data, sought)
        ]
        # The misplaced value was typed as an argument, to see that nothing repeats it.
        untyped = [canary for canary in sought if canary.name != "misplaced"]
        leaks += [f"process: {what}" for data in watch.seen for what in found_in(data, untyped)]
        assert not leaks, "\n".join(sorted(set(leaks)))


# --- Requests -------------------------------------------------------------------------------------


def routes(place: Estate) -> Iterator[tuple[str, str]]:
    """Return every method and path of the API's description."""
    for path, methods in place.ok("GET", "/openapi.json", root=True)["paths"].items():
        for method in methods:
            if method in ("get", "post", "put", "patch", "delete"):
                yield method.upper(), path


def every_get(place: Estate) -> Iterator[Heard]:
    names = {
        "registries": ["reg1", "down"],
        "credentials": ["prod", "later"],
        "pull-secrets": ["apps"],
        "auth-files": ["file"],
        "clusters": ["default"],
        "tokens": ["viewer"],
    }
    operations = [
        row["id"] for name in names["credentials"] for row in place.items(f"/credentials/{name}/history")
    ]
    assert operations
    for method, path in routes(place):
        if method != "GET":
            continue
        if "{operation}" in path:
            filled = [path.replace("{operation}", operation) for operation in operations]
        elif "{name}" in path:
            filled = [path.replace("{name}", name) for name in names[path.split("/")[3]]]
        else:
            filled = [path]
        for one in filled:
            yield place.call("GET", one, root=True)


def misplaced_everywhere(place: Estate, odd: str) -> Iterator[Heard]:
    """Send a value in the place of names, fields, parameters, headers, and broken bodies."""
    text = quote(odd, safe="")
    bodies: list[Any] = [
        {odd: odd, "labels": {odd: {odd: odd}}},
        dict.fromkeys(("name", "host", "username", "registry", "type", "kind", "path", "secret_name"), odd),
        [odd],
        f'{{"secret": "{odd}'.encode(),
        f'{{"{odd}": 1, "{odd}": 2}}'.encode(),
    ]
    for method, path in routes(place):
        for one in {
            path.replace("{name}", text).replace("{operation}", text),
            path.replace("{name}", "prod"),
        }:
            if "{" in one:
                continue
            if method in ("POST", "PUT", "PATCH"):
                for body in bodies:
                    yield place.call(method, one, body, root=True)
            elif method == "GET" or text in one:
                yield place.call(method, one, root=True)
            if method == "GET":
                for query in (f"{text}={text}", f"cursor={text}", f"limit={text}", f"label={text}"):
                    yield place.call(method, f"{one}?{query}", root=True)
    yield from misplaced_in_credential(place, odd)
    yield from misplaced_in_headers(place, odd)
    yield from misplaced_in_broken_http(place, odd)


def misplaced_in_credential(place: Estate, odd: str) -> Iterator[Heard]:
    """One field after the other of a body that is right otherwise, but for its value."""
    right = {"name": "x", "registry": "reg1", "username": USER, "type": "token", "secret": "wrong"}
    for field in (*right, "labels", "expires_at", "allow_unverified"):
        if field != "secret":
            yield place.call("POST", "/credentials", right | {field: odd})
    yield place.call("POST", "/credentials", right | {"labels": {"note": odd}})
    yield place.call("POST", "/credentials", right | {"registry": f"{odd}.example.invalid"})
    yield place.call("POST", f"/{quote(odd)}", right)


def misplaced_in_headers(place: Estate, odd: str) -> Iterator[Heard]:
    basic = base64.b64encode(f"{USER}:{odd}".encode()).decode()
    for name, content in (
        ("Authorization", f"Bearer {odd}"),
        ("Authorization", f"Basic {basic}"),
        ("Authorization", odd),
        ("Cookie", f"session={odd}"),
        ("Content-Type", odd),
        ("If-Match", odd),
        ("If-None-Match", odd),
        ("Prefer", odd),
        ("Idempotency-Key", odd),
        ("Referer", f"https://x.example/{odd}"),
        ("User-Agent", odd),
        ("X-Request-ID", f"{odd}/"),  # one that looks like an id is taken and repeated: it is for that
        ("X-Forwarded-For", odd),
        ("Accept", odd),
    ):
        for method, path, body in (("GET", "/credentials/prod", None), ("PATCH", "/credentials/prod", {})):
            yield place.call(method, path, body, {name: content})


def misplaced_in_broken_http(place: Estate, odd: str) -> Iterator[Heard]:
    """Requests that are no HTTP, which the application never sees."""
    post = "POST /api/v1/credentials HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    chunked = f"{post}Authorization: Bearer {place.token}\r\nTransfer-Encoding: chunked\r\n\r\n"
    for text in (
        f"GET /{odd}\r\n\r\n",
        f"{odd}\r\n\r\n",
        f"GET / {odd}\r\n\r\n",
        f"GE{{}}{odd} / HTTP/1.1\r\n\r\n",
        f"GET / HTTP/1.1\r\nAuthorization {odd}\r\n\r\n",
        f"GET / HTTP/1.1\r\nAuthorization : Bearer {odd}\r\n\r\n",
        f"GET / HTTP/1.1\r\n{odd} x: y\r\n\r\n",
        f"GET / HTTP/1.1\r\nHost: x\r\n folded {odd}\r\n\r\n",
        f"GET / HTTP/1.1\r\nX: {odd}\x01\0\r\n\r\n",
        f"GET / HTTP/1.1\r\nExpect: {odd}\r\n\r\n",
        f"GET / HTTP/1.1\r\nTransfer-Encoding: {odd}\r\n\r\n",
        f"GET /{odd * 200} HTTP/1.1\r\n\r\n",
        f"GET / HTTP/1.1\r\nX: {odd * 500}\r\n\r\n",
        f"{chunked}{odd}\r\n\r\n",
        f"{chunked}2\r\n{{}}{odd}\r\n0\r\n\r\n",
    ):
        yield place.send_raw(text.encode())


# --- Vault ----------------------------------------------------------------------------------------


def read_vault(bao: OpenBao, mount: str, path: str = "") -> bytes:
    """Return every version of every document of the mount, as the root token reads them."""
    _, listed = bao.call("LIST", f"{mount}/metadata/{path}")
    kept = b""
    for name in listed.get("data", {}).get("keys", []):
        if name.endswith("/"):
            kept += read_vault(bao, mount, path + name)
            continue
        metadata = bao.must("GET", f"{mount}/metadata/{path}{name}")
        for version in metadata["data"]["versions"]:
            kept += json.dumps(bao.call("GET", f"{mount}/data/{path}{name}?version={version}")[1]).encode()
    return kept


# --- The tests ------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", ["local", "vault"])
def test_a_value_is_in_its_targets_and_nowhere_else(tmp_path: Path, kube: KubeCluster, store: str) -> None:
    namespaces = [kube.create_namespace(f"canary-{store}-{number}") for number in range(2)]
    audit = tmp_path / "estate" / "audit.log"
    with ProcessWatch() as watch, estate(tmp_path / "estate", kube, store, audit=audit) as place:
        story = Story(place, namespaces)
        story.register()
        story.deliver()
        story.replace()
        story.bring_in()
        story.look_around()
        story.misplace()
        story.assert_no_leaks(watch)
        if store == "vault":
            assert story.kept_in_vault() == {"first", "second", "kept unverified", "imported"}
        story.remove()
        wait_for("the values to be gone", lambda: not story.kept_in_vault())
        place.service.stop()
        story.assert_no_leaks(watch)
        assert_searched(story, watch, audit)


def assert_searched(story: Story, watch: ProcessWatch, audit: Path) -> None:
    """What was searched is what it is meant to be, and files of ours are private."""
    service, log = story.place.service, story.place.service.log()
    assert '"level": "debug"' in log
    assert '"action": "credential.promote"' in log
    assert any(b"credential\0rotate" in data for data in watch.seen)
    assert any(b"SECRETSVC_DATA_DIR=" in data for data in watch.seen)
    if story.place.bao is not None:
        assert b"hmac-sha256:" in audit.read_bytes()
    else:
        assert (service.folder / "data" / "secretsvc.db").stat().st_size > 0
    own = [path for path, _ in files(service.folder) if path.name != "service.log"]
    assert [path for path in (*own, story.auth_file) if stat.S_IMODE(path.stat().st_mode) & 0o077] == []


@pytest.mark.parametrize("shape", SHAPES.values())
def test_the_search_finds_what_is_planted(tmp_path: Path, shape: str) -> None:
    canary, other = Canary.make("planted", USER, shape), Canary.make("other", USER, shape)
    value, pair = canary.value, f"{USER}:{canary.value}"
    document = json.dumps({"auths": {"h": {"auth": base64.b64encode(pair.encode()).decode()}}})
    plants = {
        "raw": value,
        "json": json.dumps({"secret": value}),
        "log line": json.dumps({"body": json.dumps({"secret": value})}),
        "url": f"/x?secret={quote(value, safe='')}",
        "reversed": value[::-1],
        "hex": value.encode().hex(),
        "basic": "Basic " + base64.b64encode(pair.encode()).decode(),
        "urlsafe": base64.urlsafe_b64encode(value.encode()).decode(),
        "document": document,
        "secret": base64.b64encode(document.encode()).decode(),
        "latin": value.encode("utf-8").decode("latin-1"),
        "part": f"... {canary.core} ...",
    }
    for name, text in plants.items():
        (tmp_path / name).write_text(text)
    hits = {path.name for path, data in files(tmp_path) if found_in(data, [canary])}
    assert hits == set(plants)
    assert not any(found_in(data, [other]) for _, data in files(tmp_path))
