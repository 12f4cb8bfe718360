from __future__ import annotations

import base64
import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secretsvc.core.errors import ConfigurationError
from secretsvc.store.envelope import (
    DataKey,
    KeyEncryptionKey,
    Place,
    SealBroken,
    create_key_file,
    load_key_file,
)

PLACE = Place("store", "state", "name", 7)
KEK = bytes(range(32))


def data_key() -> DataKey:
    return KeyEncryptionKey(KEK).new_data_key("store", 1)[0]


@given(st.text())
def test_what_is_sealed_opens(text: str) -> None:
    key = data_key()
    assert key.open(PLACE, key.seal(PLACE, text)) == text


def test_two_seals_of_one_text_differ() -> None:
    key = data_key()
    assert len({key.seal(PLACE, "same")[:12] for _ in range(500)}) == 500


def test_every_flipped_bit_is_refused() -> None:
    key = data_key()
    sealed = key.seal(PLACE, "value")
    for position in range(len(sealed)):
        for bit in range(8):
            changed = bytearray(sealed)
            changed[position] ^= 1 << bit
            with pytest.raises(SealBroken):
                key.open(PLACE, bytes(changed))


def test_every_truncation_is_refused() -> None:
    key = data_key()
    sealed = key.seal(PLACE, "value")
    for length in range(len(sealed)):
        with pytest.raises(SealBroken):
            key.open(PLACE, sealed[:length])


@pytest.mark.parametrize(
    "elsewhere",
    [
        Place("other", "state", "name", 7),
        Place("store", "history", "name", 7),
        Place("store", "state", "nam", 7),
        Place("store", "state", "name", 8),
        Place("store", "staten", "ame", 7),
        Place("stores", "tate", "name", 7),
    ],
)
def test_it_opens_in_its_own_place_only(elsewhere: Place) -> None:
    key = data_key()
    with pytest.raises(SealBroken):
        key.open(elsewhere, key.seal(PLACE, "value"))


def test_a_data_key_is_bound_to_store_and_number() -> None:
    kek = KeyEncryptionKey(KEK)
    key, sealed = kek.new_data_key("store", 1)
    assert kek.open_data_key("store", 1, sealed).open(PLACE, key.seal(PLACE, "value")) == "value"
    for store, number in (("other", 1), ("store", 2)):
        with pytest.raises(SealBroken):
            kek.open_data_key(store, number, sealed)
    with pytest.raises(SealBroken):
        KeyEncryptionKey(bytes(32)).open_data_key("store", 1, sealed)


def test_keys_show_nothing() -> None:
    kek = KeyEncryptionKey(KEK)
    key, _ = kek.new_data_key("store", 1)
    for shown in (repr(kek), repr(key), kek.fingerprint):
        assert KEK.hex()[:8] not in shown
        assert "\\x00\\x01" not in shown
    assert kek.fingerprint != KeyEncryptionKey(bytes(32)).fingerprint


# --- The key file ---


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    (tmp_path / "data").mkdir(mode=0o700)
    return tmp_path / "data"


@pytest.fixture
def key_file(tmp_path: Path, data_dir: Path) -> Path:
    path = tmp_path / "keys" / "kek"
    assert create_key_file(path, data_dir)
    return path


def test_a_key_file_is_ours_alone_and_has_32_random_bytes(key_file: Path, data_dir: Path) -> None:
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert stat.S_IMODE(key_file.parent.stat().st_mode) == 0o700
    assert len(base64.b64decode(key_file.read_bytes())) == 32
    assert [path.name for path in key_file.parent.iterdir()] == ["kek"]
    again = key_file.parent / "other"
    create_key_file(again, data_dir)
    assert again.read_bytes() != key_file.read_bytes()
    assert load_key_file(again, data_dir).fingerprint != load_key_file(key_file, data_dir).fingerprint


def test_an_existing_key_file_is_left_alone(key_file: Path, data_dir: Path) -> None:
    before = key_file.read_bytes()
    assert not create_key_file(key_file, data_dir)
    assert key_file.read_bytes() == before
    assert [path.name for path in key_file.parent.iterdir()] == ["kek"]


def test_an_open_umask_does_not_open_the_file(tmp_path: Path, data_dir: Path) -> None:
    before = os.umask(0)
    try:
        create_key_file(tmp_path / "wide" / "kek", data_dir)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "wide" / "kek").stat().st_mode) == 0o600


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601, 0o644, 0o666])
def test_others_must_have_no_right(key_file: Path, data_dir: Path, mode: int) -> None:
    key_file.chmod(mode)
    with pytest.raises(ConfigurationError, match=f"{mode:04o}") as caught:
        load_key_file(key_file, data_dir)
    assert "chmod 600" in caught.value.hint


def test_a_symbolic_link_is_refused(key_file: Path, data_dir: Path, tmp_path: Path) -> None:
    link = tmp_path / "link"
    link.symlink_to(key_file)
    with pytest.raises(ConfigurationError, match="symbolic link"):
        load_key_file(link, data_dir)
    assert not create_key_file(link, data_dir)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_another_users_file_is_refused(key_file: Path, data_dir: Path) -> None:
    os.chown(key_file, 12345, 12345)
    with pytest.raises(ConfigurationError, match="another user"):
        load_key_file(key_file, data_dir)


WRONG_CONTENT = [
    b"",
    b"\n",
    b"x",
    base64.b64encode(bytes(31)),
    base64.b64encode(bytes(33)),
    base64.b64encode(bytes(32)) * 2,
    bytes(32),
    b"\xff" * 44,
]


@pytest.mark.parametrize("content", WRONG_CONTENT)
def test_a_wrong_size_is_refused(key_file: Path, data_dir: Path, content: bytes) -> None:
    key_file.write_bytes(content)
    with pytest.raises(ConfigurationError, match="does not hold 32 bytes") as caught:
        load_key_file(key_file, data_dir)
    assert "backup" in caught.value.hint


def test_no_key_file_is_an_error_with_a_hint(tmp_path: Path, data_dir: Path) -> None:
    with pytest.raises(ConfigurationError, match="no key file") as caught:
        load_key_file(tmp_path / "none", data_dir)
    assert "Restore it" in caught.value.hint


def test_a_folder_or_a_pipe_is_refused(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("folder", "pipe"):
        with pytest.raises(ConfigurationError, match="regular file"):
            load_key_file(tmp_path / name, data_dir)


@pytest.mark.parametrize("inside", ["kek", "deep/kek", "../data/kek", "../link/kek"])
def test_the_data_directory_must_not_hold_the_key(data_dir: Path, inside: str) -> None:
    (data_dir.parent / "link").symlink_to(data_dir)
    path = data_dir / inside
    for act in (create_key_file, load_key_file):
        with pytest.raises(ConfigurationError, match="inside the data directory"):
            act(path, data_dir)


def test_a_folder_that_can_not_be_made_is_an_error(tmp_path: Path, data_dir: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="can not be made"):
        create_key_file(tmp_path / "file" / "kek", data_dir)
