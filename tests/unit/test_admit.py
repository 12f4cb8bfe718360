"""Who may call: tokens that end, end for good, and end although something else is damaged."""

from __future__ import annotations

from datetime import timedelta

import pytest

from secretsvc.core.access import Principal, Role
from secretsvc.core.errors import Conflict, Forbidden, NotFound, RecordDamaged, Unauthenticated
from secretsvc.core.model import Secret
from secretsvc.core.tokens import make_token, token_digest, token_id
from secretsvc.workflows.admit import Gatekeeper
from secretsvc.workflows.records import Desk
from tests.fakes import CountingEntropy, ListAudit, MemoryStore, SettableClock


class Door:
    def __init__(self) -> None:
        self.store = MemoryStore()
        self.clock = SettableClock()
        self.audit = ListAudit()
        self.entropy = CountingEntropy()
        self.keeper = Gatekeeper(Desk(self.store, self.clock, self.entropy, lambda: None), self.audit)

    def issue(self, name: str, role: Role = Role.ADMIN, days: int | None = 90) -> Secret:
        return self.keeper.issue(name, role, timedelta(days=days) if days else None, "ann")[1]

    def enters(self, token: Secret) -> bool:
        try:
            self.keeper.authenticate(token)
        except Unauthenticated:
            return False
        return True


@pytest.fixture
def door() -> Door:
    return Door()


def test_a_token_enters_until_it_expires_or_is_revoked(door: Door) -> None:
    one, other = door.issue("one", days=1), door.issue("other", days=None)
    assert door.enters(one)
    door.clock.advance(days=1)
    assert not door.enters(one)
    assert door.enters(other)
    door.keeper.revoke("other", "ann")
    assert not door.enters(other)
    with pytest.raises(NotFound):
        door.keeper.revoke("other", "ann")


@pytest.mark.parametrize("token", [None, Secret(""), Secret("ssvc_x"), make_token(b"\7" * 32)])
def test_nobody_else_enters(door: Door, token: Secret | None) -> None:
    door.issue("one")
    with pytest.raises(Unauthenticated):
        door.keeper.authenticate(token)


def test_the_token_itself_is_not_stored(door: Door) -> None:
    token = door.issue("one")
    stored = door.store.get(Principal, token_id(token_digest(token)))
    assert stored is not None
    assert token.reveal() not in repr(stored)
    assert stored.record.digest == token_digest(token)


def test_a_viewer_only_reads(door: Door) -> None:
    viewer = door.keeper.authenticate(door.issue("eve", Role.VIEWER))
    door.keeper.authorize(viewer, "read", writes=False)
    with pytest.raises(Forbidden):
        door.keeper.authorize(viewer, "write", writes=True)
    assert [act.outcome for act in door.audit.acts if act.action == "access.denied"] == ["denied"]


def test_a_name_is_given_once_and_the_first_admin_once(door: Door) -> None:
    door.issue("one")
    with pytest.raises(Conflict):
        door.issue("one")
    assert door.keeper.ensure_admin("local") is None


def test_revoking_ends_every_token_of_the_name(door: Door) -> None:
    """Two issues in the same moment can both succeed: the name is no key of the store."""
    first = door.issue("ci")
    twin = make_token(b"\1" * 32)
    found = door.store.get(Principal, token_id(token_digest(first)))
    assert found is not None
    digest = token_digest(twin)
    fields = {name: getattr(found.record, name) for name in ("name", "role", "created_at", "created_by")}
    door.store.put(token_id(digest), Principal(id=token_id(digest), digest=digest, **fields), 0)
    assert door.enters(twin)
    door.keeper.revoke("ci", "ann")
    assert not door.enters(first)
    assert not door.enters(twin)


def test_a_damaged_record_keeps_no_token_alive(door: Door) -> None:
    token, admin = door.issue("leaked"), door.issue("admin", days=None)
    broken = token_id(token_digest(door.issue("broken")))
    real = door.store.get

    def get(kind: type, name: str) -> object:
        if name == broken:
            raise RecordDamaged("does not decrypt")
        return real(kind, name)

    door.store.get = get  # type: ignore[method-assign,assignment]  # as a flipped bit would make it
    door.keeper.revoke("leaked", "ann")
    assert not door.enters(token)
    fresh = door.keeper.reset_admin("local")
    assert not door.enters(admin)
    assert door.enters(fresh)
    assert [principal.name for principal in door.keeper.tokens()] == ["admin"]
