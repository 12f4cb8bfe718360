"""Settings: precedence, every fault at once, and no reading of what was not asked for."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest

from secretsvc import settings
from secretsvc.core.errors import ConfigurationError
from secretsvc.settings import Listen, LogLevel, StoreKind, load, load_client

VAULT = {
    "SECRETSVC_STORE": "vault",
    "SECRETSVC_VAULT_ADDR": "https://vault.example.com:8200/",
    "SECRETSVC_VAULT_ROLE_ID": "role",
    "SECRETSVC_VAULT_SECRET_ID_FILE": "/run/secret-id",
}


def test_defaults_are_the_documented_ones() -> None:
    found = load({})
    assert found.data_dir == Path("/var/lib/secretsvc")
    assert found.key_file == Path("/etc/secretsvc/kek")
    assert found.listen == Listen("127.0.0.1", 8080)
    assert found.store is StoreKind.LOCAL
    assert found.vault is None
    assert found.log_level is LogLevel.INFO
    assert found.log_format is None
    assert found.url == "http://127.0.0.1:8080"
    assert found.admin_token_file == Path("/var/lib/secretsvc/admin.token")


def test_flag_beats_environment_beats_file(tmp_path: Path) -> None:
    file = tmp_path / "secretsvc.toml"
    file.write_text(
        'listen = "127.0.0.1:1001"\nlog_level = "error"\nbehind_tls = true\nlog_format = "json"\n'
    )
    environ = {
        "SECRETSVC_CONFIG": str(file),
        "SECRETSVC_LISTEN": "127.0.0.1:1002",
        "SECRETSVC_LOG_LEVEL": "debug",
    }
    found = load(environ, {"LISTEN": "127.0.0.1:1003"})
    assert (found.listen.port, found.log_level, found.behind_tls) == (1003, LogLevel.DEBUG, True)
    assert found.log_format is settings.LogFormat.JSON


def test_an_empty_variable_is_not_set() -> None:
    assert load({"SECRETSVC_LISTEN": "", "SECRETSVC_VAULT_ADDR": ""}).listen.port == 8080


def test_relative_paths_become_absolute() -> None:
    found = load({"SECRETSVC_DATA_DIR": ".run/data", "SECRETSVC_KEY_FILE": "./kek"})
    assert found.data_dir == Path.cwd() / ".run/data"
    assert found.key_file.is_absolute()


def test_kubeconfig_falls_back_to_its_own_variable() -> None:
    assert load({"KUBECONFIG": "/a:/b"}).kubeconfig == "/a:/b"
    assert load({"KUBECONFIG": "/a", "SECRETSVC_KUBECONFIG": "/c"}).kubeconfig == "/c"
    assert load({}).kubeconfig == ""


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"SECRETSVC_LISTEN": "8080"}, "host:port"),
        ({"SECRETSVC_LISTEN": "127.0.0.1:0"}, "host:port"),
        ({"SECRETSVC_LISTEN": "127.0.0.1:65536"}, "host:port"),
        ({"SECRETSVC_LISTEN": "0.0.0.0:8080"}, "SECRETSVC_BEHIND_TLS=1"),
        ({"SECRETSVC_LISTEN": "[::]:8080"}, "SECRETSVC_TLS_CERT"),
        ({"SECRETSVC_LISTEN": "registry.example.com:8080"}, "other machines"),
        ({"SECRETSVC_STORE": "redis"}, "local, vault"),
        ({"SECRETSVC_LOG_LEVEL": "chatty"}, "debug, info"),
        ({"SECRETSVC_LOG_FORMAT": "xml"}, "console, json"),
        ({"SECRETSVC_BEHIND_TLS": "perhaps"}, "SECRETSVC_BEHIND_TLS"),
        ({"SECRETSVC_DOORBELL_FD": "x"}, "SECRETSVC_DOORBELL_FD"),
        ({"SECRETSVC_TLS_CERT": "/nowhere/cert"}, "SECRETSVC_TLS_KEY"),
        ({"SECRETSVC_TLS_CERT": "/nowhere/c", "SECRETSVC_TLS_KEY": "/nowhere/k"}, "no file /nowhere/k"),
        ({"SECRETSVC_CONFIG": "/nowhere/secretsvc.toml"}, "no file /nowhere"),
        (VAULT | {"SECRETSVC_VAULT_ADDR": ""}, "SECRETSVC_VAULT_ADDR"),
        (VAULT | {"SECRETSVC_VAULT_ADDR": "vault:8200"}, "http:// or https://"),
        (VAULT | {"SECRETSVC_VAULT_ADDR": "https://u:hunter2@vault"}, "must hold no user"),
        (VAULT | {"SECRETSVC_VAULT_ROLE_ID": ""}, "SECRETSVC_VAULT_ROLE_ID"),
        (VAULT | {"SECRETSVC_VAULT_SECRET_ID_FILE": ""}, "SECRETSVC_VAULT_SECRET_ID_FILE"),
        (VAULT | {"SECRETSVC_VAULT_TOKEN_FILE": "/run/t"}, "only one of them"),
        (VAULT | {"SECRETSVC_VAULT_CACERT": "/nowhere/ca"}, "SECRETSVC_VAULT_CACERT"),
    ],
)
def test_a_fault_names_the_variable_and_the_way_out(environ: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(environ)
    assert says in caught.value.message
    assert "hunter2" not in str(caught.value)


def test_all_faults_are_reported_at_once() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load({"SECRETSVC_LISTEN": "x", "SECRETSVC_STORE": "y", "SECRETSVC_BEHIND_TLS": "z"})
    for name in ("LISTEN", "STORE", "BEHIND_TLS"):
        assert f"SECRETSVC_{name}:" in caught.value.message


@pytest.mark.parametrize("listen", ["127.0.0.1:80", "[::1]:80", "localhost:80", "127.9.9.9:80"])
def test_loopback_needs_no_tls(listen: str) -> None:
    assert str(load({"SECRETSVC_LISTEN": listen}).listen) == listen


def test_a_public_address_is_allowed_with_tls_or_a_proxy(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert", tmp_path / "key"
    cert.touch()
    key.touch(0o600)
    public = {"SECRETSVC_LISTEN": "0.0.0.0:8443"}
    found = load(public | {"SECRETSVC_TLS_CERT": str(cert), "SECRETSVC_TLS_KEY": str(key)})
    assert found.tls == settings.TlsFiles(cert, key)
    assert found.url == "https://127.0.0.1:8443"
    assert load(public | {"SECRETSVC_BEHIND_TLS": "1"}).behind_tls


MODES = [(0o600, 0, True), (0o400, 0, True), (0o640, 0, True), (0o440, 0, True)]
MODES += [(0o660, 0, False), (0o644, 0, False), (0o604, 0, False), (0o602, 0, False), (0o650, 0, False)]
MODES += [(0o600, 1000, False), (0o640, 1000, False)]


@pytest.mark.parametrize(("mode", "owner", "fits"), MODES)
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away, and sees its own here")
def test_a_key_for_tls_is_refused_when_others_can_get_at_it(
    tmp_path: Path, mode: int, owner: int, fits: bool
) -> None:
    cert, key, link = tmp_path / "cert", tmp_path / "key", tmp_path / "link"
    cert.touch()
    key.touch()
    link.symlink_to(key)  # as Kubernetes mounts secrets
    os.chown(key, owner, -1)
    key.chmod(mode)
    environ = {"SECRETSVC_TLS_CERT": str(cert), "SECRETSVC_TLS_KEY": str(link)}
    if fits:
        assert load(environ).tls == settings.TlsFiles(cert, link)
        return
    with pytest.raises(ConfigurationError) as caught:
        load(environ)
    assert f"SECRETSVC_TLS_KEY: {link}" in caught.value.message


@pytest.mark.parametrize(("mode", "fits"), [(0o600, True), (0o604, False), (0o620, False)])
def test_a_key_for_tls_of_our_own_is_ours_alone(tmp_path: Path, mode: int, fits: bool) -> None:
    cert, key = tmp_path / "cert", tmp_path / "key"
    cert.touch()
    key.touch()
    key.chmod(mode)
    environ = {"SECRETSVC_TLS_CERT": str(cert), "SECRETSVC_TLS_KEY": str(key)}
    if fits:
        assert load(environ).tls
    else:
        with pytest.raises(ConfigurationError, match=f"has mode {mode:04o}"):
            load(environ)


def test_vault_settings() -> None:
    found = load(VAULT).vault
    assert found is not None
    assert (found.address, found.mount) == ("https://vault.example.com:8200", "secretsvc")
    token = load(
        {
            "SECRETSVC_STORE": "vault",
            "SECRETSVC_VAULT_ADDR": "https://v",
            "SECRETSVC_VAULT_TOKEN_FILE": "/run/t",
        }
    )
    assert token.vault is not None
    assert token.vault.token_file == Path("/run/t")


def test_clear_text_to_vault_is_for_this_machine_alone() -> None:
    assert load(VAULT | {"SECRETSVC_VAULT_ADDR": "http://127.0.0.1:8200"}).vault is not None
    with pytest.raises(ConfigurationError, match="in clear"):
        load(VAULT | {"SECRETSVC_VAULT_ADDR": "http://vault:8200"})


def test_a_cluster_comes_from_a_kubeconfig_or_from_the_pod() -> None:
    assert not load({}).has_cluster
    assert load({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}).has_cluster
    assert load({"KUBECONFIG": "/k"}).has_cluster


def test_unknown_variables_are_warned_about_with_the_likely_name() -> None:
    warned = load({"SECRETSVC_LISTN": "127.0.0.1:1", "SECRETSVC_QQQ": "1", "OTHER": "x"}).warnings
    assert len(warned) == 2
    assert "did you mean SECRETSVC_LISTEN?" in warned[0]
    assert "did you mean" not in warned[1]


def test_the_file_is_strict(tmp_path: Path) -> None:
    file = tmp_path / "secretsvc.toml"
    file.write_text('listne = "127.0.0.1:1"\nstore = ["a"]\n')
    with pytest.raises(ConfigurationError) as caught:
        load({"SECRETSVC_CONFIG": str(file)})
    assert "did you mean listen?" in caught.value.message
    assert "store must be text" in caught.value.message
    file.write_text("listen = \n")
    with pytest.raises(ConfigurationError, match="not TOML"):
        load({"SECRETSVC_CONFIG": str(file)})


def test_the_client_ignores_the_services_faults(tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("t")
    found = load_client({"SECRETSVC_LISTEN": "nonsense", "SECRETSVC_DATA_DIR": str(tmp_path)})
    assert found.url == "http://127.0.0.1:8080"
    assert found.token_file == tmp_path / "admin.token"


def test_a_named_token_file_beats_the_local_one(tmp_path: Path) -> None:
    (tmp_path / "admin.token").write_text("t")
    environ = {"SECRETSVC_DATA_DIR": str(tmp_path), "SECRETSVC_TOKEN_FILE": "/else/where"}
    assert load_client(environ).token_file == Path("/else/where")
    assert load_client(environ, {"TOKEN_FILE": "/by/flag"}).token_file == Path("/by/flag")
    assert load_client({"SECRETSVC_DATA_DIR": str(tmp_path / "none")}).token_file is None


def test_every_setting_has_a_variable() -> None:
    derived = {"vault", "tls", "warnings", "in_cluster"}
    fields = {field.name.upper() for field in dataclasses.fields(settings.Settings)} - {
        name.upper() for name in derived
    }
    assert fields <= set(settings._MEANINGS)
