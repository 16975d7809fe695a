"""Key files: made private, read with suspicion, withdrawn in time (T5, T6, T7, T8)."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobflow_worker import keyfile
from jobflow_worker.keyfile import (
    DamagedKeyError,
    KeyFileError,
    mail_key_path,
    read_key_file,
    read_mail_key,
    worker_keys,
)
from jobflow_worker.messages import HAND
from jobflow_worker.sessionfiles import Beacon, SessionPaths
from jobflow_worker.transport.mailfile import Seal
from jobflowd.keys import KeyRing, open_mail_key

L1, L2 = "jf-abc-1", "jf-abc-2"


@pytest.fixture
def paths(tmp_path: Path) -> SessionPaths:
    made = SessionPaths(tmp_path / "session")
    made.make()
    return made


def ring(paths: SessionPaths, *launches: str, fresh: bool = False) -> KeyRing:
    made = KeyRing(paths, "t1")
    made.open(launches, fresh=fresh)
    return made


def names(paths: SessionPaths) -> set[str]:
    return {one.name for one in paths.keys.iterdir()}


def beacon_of(made: KeyRing | None) -> Beacon:
    public = made.server_public if made is not None else None
    return Beacon(1, "open", ("tcp://127.0.0.1:1",), public, "", 1.0, 1)


def client_of(paths: SessionPaths, holder: str) -> str:
    return read_key_file(paths.keys / f"{holder}.key").client_public


# --- making -----------------------------------------------------------------------------------


def test_every_key_file_is_private_whatever_the_umask(paths: SessionPaths) -> None:
    before = os.umask(0)
    try:
        ring(paths, L1)
    finally:
        os.umask(before)
    assert names(paths) == {"server.key", "hand.key", f"{L1}.key"}
    assert {stat.S_IMODE(one.stat().st_mode) for one in paths.keys.iterdir()} == {0o600}


def test_key_files_are_private_from_their_first_instant(
    paths: SessionPaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mode that is corrected later leaves a moment in which anybody may read."""
    modes: list[int] = []
    real = os.write

    def spy(fd: int, data: Any) -> int:
        modes.append(stat.S_IMODE(os.fstat(fd).st_mode))
        return real(fd, data)

    before = os.umask(0)
    monkeypatch.setattr(os, "write", spy)
    try:
        ring(paths, L1)
    finally:
        os.umask(before)
    assert set(modes) == {0o600}
    assert len(modes) == 3


def test_a_restart_keeps_the_keys_of_survivors(paths: SessionPaths) -> None:
    first = ring(paths, L1, L2)
    kept, gone = client_of(paths, L1), client_of(paths, L2)
    second = ring(paths, L1)
    assert second.server_public == first.server_public
    assert second.holder_of(kept) == L1
    assert second.holder_of(gone) is None
    assert names(paths) == {"server.key", "hand.key", f"{L1}.key"}


def test_a_fresh_session_knows_nobody_of_the_old_one(paths: SessionPaths) -> None:
    first = ring(paths, L1)
    old = client_of(paths, L1)
    second = ring(paths, L1, fresh=True)
    assert second.server_public != first.server_public
    assert second.holder_of(old) is None


def test_each_launch_has_a_key_of_its_own(paths: SessionPaths) -> None:
    made = ring(paths, L1, L2)
    publics = [client_of(paths, one) for one in (L1, L2, HAND)]
    assert [made.holder_of(one) for one in publics] == [L1, L2, HAND]
    assert made.holder_of(made.server_public) is None, "the manager's own key opens nothing"
    assert made.holder_of("") is None


def test_a_withdrawn_key_opens_nothing_and_has_no_file(paths: SessionPaths) -> None:
    made = ring(paths, L1)
    public = client_of(paths, L1)
    made.revoke(L1)
    made.revoke(L1)
    assert made.holder_of(public) is None
    assert names(paths) == {"server.key", "hand.key"}
    made.withdraw()
    assert names(paths) == {"server.key"}


def test_asking_again_makes_nothing_new(paths: SessionPaths) -> None:
    made = ring(paths)
    made.ensure_launch_key(L1)
    public = client_of(paths, L1)
    made.ensure_launch_key(L1)
    assert client_of(paths, L1) == public


@pytest.mark.parametrize("name", ["server", "mail", "../x", "a/b", "", ".hidden", "x" * 65, "a\n"])
def test_no_launch_writes_elsewhere_or_over_the_managers_key(
    paths: SessionPaths, name: str
) -> None:
    made = ring(paths)
    before = {one: one.read_bytes() for one in paths.keys.iterdir()}
    with pytest.raises(ValueError, match="not a launch id"):
        made.ensure_launch_key(name)
    assert {one: one.read_bytes() for one in paths.keys.iterdir()} == before


def test_half_written_files_of_a_crash_are_removed(paths: SessionPaths) -> None:
    (paths.keys / f".{L1}.key.abcdef").write_text("half")
    ring(paths)
    assert names(paths) == {"server.key", "hand.key"}


@pytest.mark.parametrize("name", ["server.key", "hand.key", f"{L1}.key"])
def test_damaged_keys_are_made_anew_and_said(paths: SessionPaths, name: str) -> None:
    old = ring(paths, L1)
    before = client_of(paths, L1)
    target = paths.keys / name
    target.unlink()
    fd = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    os.write(fd, b'{"v": 1, "session"')
    os.close(fd)
    made = ring(paths, L1)
    assert any(name in note for note in made.notes)
    if name == "server.key":
        assert made.server_public != old.server_public
        found = read_key_file(paths.keys / f"{L1}.key")
        assert (found.client_public, found.server_public) == (before, made.server_public)
    else:
        assert made.holder_of(client_of(paths, name.removesuffix(".key"))) is not None


def mail_secret(paths: SessionPaths) -> str:
    return read_mail_key(mail_key_path(paths)).mail_secret


def test_the_mail_key_is_kept_made_anew_and_never_shown(paths: SessionPaths) -> None:
    """T15: it seals mailboxes in every mode, and outlives launches as their spools do."""
    assert open_mail_key(paths, "s1", fresh=False) == []
    path, first = mail_key_path(paths), mail_secret(paths)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    made = ring(paths, L1)
    made.withdraw()
    assert open_mail_key(paths, "s1", fresh=False) == []
    assert mail_secret(paths) == first
    found = read_mail_key(path)
    seal = Seal(first.encode())
    assert not [text for text in (repr(found), str(found), repr(seal)) if first in text]
    assert open_mail_key(paths, "s1", fresh=True) == []
    assert mail_secret(paths) != first
    second = mail_secret(paths)
    (note,) = open_mail_key(paths, "copy", fresh=False)
    assert "another session" in note
    assert mail_secret(paths) != second
    path.write_bytes(b"{}")
    (note,) = open_mail_key(paths, "s1", fresh=False)
    assert "a new one is made" in note
    path.chmod(0o644)
    with pytest.raises(KeyFileError, match="open to others"):
        open_mail_key(paths, "s1", fresh=False)


def test_a_key_file_under_another_name_is_not_believed(paths: SessionPaths) -> None:
    ring(paths, L1)
    os.rename(paths.keys / f"{L1}.key", paths.keys / f"{L2}.key")
    moved = client_of(paths, L2)
    made = ring(paths, L2)
    assert made.holder_of(moved) is None
    assert "was made for" in made.notes[0]


def test_nothing_shows_a_secret(paths: SessionPaths) -> None:
    made = ring(paths, L1)
    secrets = [
        json.loads(one.read_text()).get(word)
        for one in paths.keys.iterdir()
        for word in ("client_secret", "server_secret")
    ]
    keys = read_key_file(paths.keys / f"{L1}.key")
    texts = [repr(keys), str(keys), repr(keys.curve()), repr(made.curve()), repr(made)]
    assert not [one for one in filter(None, secrets) for text in texts if one in text]


# --- reading with suspicion -------------------------------------------------------------------


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o610, 0o644, 0o666, 0o602])
def test_a_key_that_others_could_use_is_refused(paths: SessionPaths, mode: int) -> None:
    made = ring(paths, L1)
    for name in (f"{L1}.key", "server.key"):
        (paths.keys / name).chmod(mode)
        with pytest.raises(KeyFileError, match="open to others") as caught:
            ring(paths, L1)
        assert caught.value.exit_code == 77
        (paths.keys / name).chmod(0o600)
    (paths.keys / f"{L1}.key").chmod(mode)
    with pytest.raises(KeyFileError, match="open to others"):
        worker_keys(paths, beacon_of(made), L1, None)


def planted(path: Path, how: str) -> None:
    path.unlink()
    elsewhere = path.parent.parent / "elsewhere"
    elsewhere.write_text("{}")
    elsewhere.chmod(0o600)
    if how == "symlink":
        path.symlink_to(elsewhere)
    elif how == "hardlink":
        os.link(elsewhere, path)
    elif how == "fifo":
        os.mkfifo(path, 0o600)
    elif how == "directory":
        path.mkdir(mode=0o700)
    else:
        os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
        os.truncate(path, 1 << 30)


@pytest.mark.parametrize("how", ["symlink", "hardlink", "fifo", "directory", "large"])
def test_what_is_not_a_key_file_is_refused(paths: SessionPaths, how: str) -> None:
    made = ring(paths, L1)
    planted(paths.keys / f"{L1}.key", how)
    with pytest.raises(KeyFileError):
        worker_keys(paths, beacon_of(made), L1, None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_a_key_of_another_user_is_refused(paths: SessionPaths) -> None:
    made = ring(paths, L1)
    os.chown(paths.keys / f"{L1}.key", 65534, 65534)
    with pytest.raises(KeyFileError, match="belongs to user 65534"):
        worker_keys(paths, beacon_of(made), L1, None)


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_content_is_judged(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "any.key"
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o600)
    os.write(fd, data)
    os.close(fd)
    with pytest.raises(DamagedKeyError):
        read_key_file(path)


# --- which keys a worker takes ----------------------------------------------------------------


def test_a_worker_takes_its_launchs_key(paths: SessionPaths) -> None:
    made = ring(paths, L1)
    found = worker_keys(paths, beacon_of(made), L1, None)
    assert found is not None
    assert found.public.decode() == client_of(paths, L1)
    assert found.server_public.decode() == made.server_public


def test_a_worker_by_hand_takes_the_key_for_hands(paths: SessionPaths) -> None:
    made = ring(paths)
    for launch_id in (None, "my-own-name"):
        found = worker_keys(paths, beacon_of(made), launch_id, None)
        assert found is not None
        assert found.public.decode() == client_of(paths, HAND)


def test_a_launch_that_is_over_gets_no_other_key(paths: SessionPaths) -> None:
    made = ring(paths, L1)
    paths.launch_dir(L1).mkdir(parents=True)
    made.revoke(L1)
    with pytest.raises(KeyFileError, match="this launch is over") as caught:
        worker_keys(paths, beacon_of(made), L1, None)
    assert caught.value.exit_code == 77


def test_a_worker_pins_what_the_beacon_says(paths: SessionPaths, tmp_path: Path) -> None:
    """Keys of another session, or of an older manager, talk to nobody."""
    other = SessionPaths(tmp_path / "other")
    other.make()
    stranger = ring(other)
    made = ring(paths)
    with pytest.raises(KeyFileError, match="another manager"):
        worker_keys(paths, beacon_of(stranger), None, None)
    with pytest.raises(KeyFileError, match="another manager"):
        worker_keys(paths, beacon_of(made), None, keyfile.key_path(other, HAND))


def test_plaintext_only_if_the_beacon_says_so(paths: SessionPaths) -> None:
    ring(paths)
    assert worker_keys(paths, beacon_of(None), None, None) is None


def test_without_a_session_directory_a_key_file_is_needed(paths: SessionPaths) -> None:
    ring(paths)
    unknown = Beacon(0, "open", ("tcp://h:1",), None, "", 1.0, 0)
    with pytest.raises(KeyFileError, match="--key-file"):
        worker_keys(None, unknown, None, None)
    assert worker_keys(None, unknown, None, keyfile.key_path(paths, HAND)) is not None
