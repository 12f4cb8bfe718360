"""Proving a login against any registry that speaks the distribution protocol.

The order of the questions:

1. ``GET /v2/`` without a login. Only *this* answer's challenges count: one that follows a refused login can
   name another scheme or realm.
2. Basic: ``/v2/`` with the login. Bearer: the token server without a scope (some give a scoped token to
   anybody), then ``/v2/`` with the token.
3. A yes is doubted: what does the same request get without a login (the *anonymous control*), and, where
   that decides nothing or the kind is known to take anything, with a made-up one (the *calibration*, never
   the real username with a wrong secret, which could lock it). Both belong to the host and last a day.
4. With a probe repository: its manifest with and without the login.

Rules: one deadline of 10 s; at most three requests carry the login or its token, the probe's two apart;
nothing is repeated after a 401 or 403; one check at a time per host and username; redirects are not followed.
What the answers mean is `core.verdict`'s; where a login may go is `realm`'s and `addresses`'.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

from secretsvc.core import verdict as rules
from secretsvc.core.challenge import Challenge, ChallengeError, parse_challenges
from secretsvc.core.kinds import profile
from secretsvc.core.model import (
    Login,
    Outcome,
    RegistrySpec,
    Secret,
    Step,
    Verdict,
)
from secretsvc.core.ports import Clock, Entropy
from secretsvc.registries.hostfacts import HostFacts, Turns
from secretsvc.registries.realm import RealmJudge, RealmRefused, registry_url
from secretsvc.registries.transport import (
    Deadline,
    Fault,
    Request,
    Response,
    TransportFailure,
    Trust,
    Url,
    basic_authorization,
    bearer_authorization,
)

CHECK_SECONDS = 10.0
_CLIENT_ID = "secretsvc"
_OURS = frozenset({"service", "scope", "client_id", "account"})
_MANIFESTS = (
    "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, "
    "application/vnd.docker.distribution.manifest.list.v2+json, "
    "application/vnd.docker.distribution.manifest.v2+json"
)
_REPOSITORY = re.compile(r"([a-z0-9]+(?:[._/-]+[a-z0-9]+)*)(?::([\w][\w.-]{0,127}))?\Z", re.ASCII)
_LONGEST_PATH = 200


class Sends(Protocol):
    """What a check needs of `registries.transport.Transport`."""

    def deadline(self, seconds: float) -> Deadline:
        """Start a deadline."""
        ...

    def send(self, request: Request, trust: Trust, deadline: Deadline) -> Response:
        """Return the answer or raise `TransportFailure`."""
        ...


@dataclass(frozen=True, slots=True)
class _Basic:
    """The login goes to ``/v2/`` itself."""


@dataclass(frozen=True, slots=True)
class _Bearer:
    """The login goes to a token server."""

    realm: Url
    service: str
    scope: str = ""
    """Asked for; empty for a plain login."""


_Way = _Basic | _Bearer


class _Settled(Exception):
    """The check ends here."""

    def __init__(self, decision: rules.Decision) -> None:
        super().__init__(decision.reason)
        self.decision = decision


def _settle(decision: rules.Decision | None) -> None:
    if decision is not None:
        raise _Settled(decision)


class Prover:
    """Proves logins; implements `core.ports.RegistryProver`. Safe to share between threads."""

    def __init__(self, transport: Sends, clock: Clock, entropy: Entropy) -> None:
        self._transport = transport
        self._clock = clock
        self._entropy = entropy
        self._realms = RealmJudge()
        self._facts: HostFacts[bool] = HostFacts(clock)
        self._turns = Turns()

    def prove(self, registry: RegistrySpec, login: Login) -> Verdict:
        """Find out whether ``login`` is right; see the module's text for how."""
        early = rules.check_login(login, self._clock())
        if early is not None:
            return self._verdict(early, (), login)
        check = _Check(registry, self._transport, self._clock)
        with self._turns.take((registry.host, login.username), CHECK_SECONDS) as came:
            decision = self._settled(check, login) if came else _busy(registry.host)
        return self._verdict(decision, tuple(check.steps), login)

    def ping(self, registry: RegistrySpec) -> Verdict:
        """Ask without a login whether a registry is there."""
        check = _Check(registry, self._transport, self._clock)
        try:
            response, answer = check.ask(check.base, None, "anonymous")
            _settle(rules.on_ping(registry.host, answer))
            if not answer.ok and self._way(check, response) is None:
                _settle(rules.unusable_challenge(registry.host))
            decision = rules.on_ping_only(registry.host, answer)
        except _Settled as settled:
            decision = settled.decision
        return self._verdict(decision, tuple(check.steps), None)

    def _verdict(self, decision: rules.Decision, steps: tuple[Step, ...], login: Login | None) -> Verdict:
        return Verdict(
            decision.outcome,
            decision.reason,
            decision.message,
            self._clock(),
            steps=steps,
            expires_at=rules.secret_expiry(login.secret) if login is not None else None,
            retry_at=decision.retry_at,
        )

    def _settled(self, check: _Check, login: Login) -> rules.Decision:
        try:
            return self._decide(check, login)
        except _Settled as settled:
            return settled.decision

    def _decide(self, check: _Check, login: Login) -> rules.Decision:
        response, answer = check.ask(check.base, None, "anonymous")
        _settle(rules.on_ping(check.host, answer))
        way: _Way = _Basic()
        if answer.ok:
            decision = self._try_open(check, login)
        elif not response.headers.get("www-authenticate"):
            decision = self._try_unasked(check, login)
        else:
            offered = self._way(check, response)
            if offered is None:
                return rules.unusable_challenge(check.host)
            way, decision = self._try(check, login, offered)
        return self._probe(check, login, way, decision)

    # --- Ways in ----------------------------------------------------------------------------------

    def _way(self, check: _Check, response: Response) -> _Way | None:
        """Choose from the challenges: Bearer, whose refusals are clearer, before Basic."""
        offered = _challenges(response)
        bearer = next(
            (each for each in offered if each.scheme == "bearer" and each.params.get("realm")), None
        )
        if bearer is None:
            return _Basic() if any(each.scheme == "basic" for each in offered) else None
        try:
            realm = self._realms.judge(bearer.params["realm"], check.spec)
        except RealmRefused as exc:
            raise _Settled(_realm_refused(check.host, exc)) from None
        return _Bearer(realm, bearer.params.get("service", ""), bearer.params.get("scope", ""))

    def _try_open(self, check: _Check, login: Login) -> rules.Decision:
        """Send Basic to a registry that serves anybody: a no is a no, a yes proves nothing."""
        response, answer = check.ask(check.base, _basic(login), "login")
        offered = {each.scheme for each in _challenges(response)}
        if answer.status == 401 and "bearer" in offered and "basic" not in offered:  # noqa: PLR2004
            return rules.login_not_looked_at(check.host)
        _settle(rules.on_login(check.host, answer))
        return rules.open_registry(check.host)

    def _try_unasked(self, check: _Check, login: Login) -> rules.Decision:
        """Send Basic to a registry that said 401 but not how: only a yes says something."""
        _response, answer = check.ask(check.base, _basic(login), "login")
        if answer.refuses:
            return rules.unusable_challenge(check.host)
        _settle(rules.on_login(check.host, answer))
        return rules.on_yes(check.host, self._doubts(check, _Basic()))

    def _try(self, check: _Check, login: Login, way: _Way) -> tuple[_Way, rules.Decision]:
        """Send the login the way the registry asked for; return the way that was taken in the end."""
        if isinstance(way, _Bearer):
            way = self._buy_and_use_token(check, login, way)
        else:
            _response, answer = check.ask(check.base, _basic(login), "login")
            _settle(rules.on_login(check.host, answer))
        return way, rules.on_yes(check.host, self._doubts(check, way))

    def _buy_and_use_token(self, check: _Check, login: Login, offered: _Bearer) -> _Bearer:
        kind = profile(check.spec.kind)
        way = _Bearer(offered.realm, offered.service)
        response, answer = check.ask_token(way, login, "login")
        if answer.status == 400 and offered.scope and self._anybody_may_ask(check, offered):  # noqa: PLR2004
            way = offered
            response, answer = check.ask_token(way, login, "login with scope")
        jwt_fault = kind.jwt_faults and rules.looks_like_jwt(login.secret)
        _settle(rules.on_login(way.realm.authority, answer, jwt_fault=jwt_fault))
        token = _token(response)
        if token is None:
            raise _Settled(rules.no_token(way.realm.authority))
        response, answer = check.ask(check.base, bearer_authorization(token), "token")
        if not _only_lacks_scope(response):
            _settle(rules.on_bearer_ping(check.host, answer, is_proof=kind.token_ping_is_proof))
        return way

    def _anybody_may_ask(self, check: _Check, way: _Bearer) -> bool:
        """Whether the challenge's own scope is fine with the token server, so that it may be sent again."""
        _response, answer = check.ask_token(way, None, "anonymous with scope")
        return answer.ok

    # --- Doubting a yes ---------------------------------------------------------------------------

    def _doubts(self, check: _Check, way: _Way) -> rules.Doubts:
        key = (check.spec.binding(), way)
        with self._turns.take(key, CHECK_SECONDS):
            anonymous = False
            if isinstance(way, _Bearer):
                anonymous = self._fact(check, way, ("anonymous", *key), None) is not False
            made_up: bool | None = None
            if anonymous or profile(check.spec.kind).accepts_anything:
                made_up = self._fact(check, way, ("made-up", *key), self._made_up())
        return rules.Doubts(not anonymous, None if made_up is None else not made_up)

    def _made_up(self) -> tuple[str, Secret]:
        """Return a login that nobody has; its name tells the registry's admin where it came from."""
        return f"secretsvc-check-{self._entropy(8).hex()}", Secret(self._entropy(24).hex())

    def _fact(
        self, check: _Check, way: _Way, key: tuple[object, ...], login: tuple[str, Secret] | None
    ) -> bool | None:
        """Return whether that login (or nobody) gets in, remembered for a day; None when it is not clear."""
        known = self._facts.get(key)
        if known is not None:
            return known
        try:
            fact = self._gets_in(check, way, login)
        except _Settled:
            return None
        if fact is not None:
            self._facts.keep(key, fact)
        return fact

    def _gets_in(self, check: _Check, way: _Way, login: tuple[str, Secret] | None) -> bool | None:
        note = "anonymous control" if login is None else "made-up login"
        if isinstance(way, _Basic):
            authorization = None if login is None else basic_authorization(*login)
            return _clear(check.ask(check.base, authorization, note)[1])
        response, answer = check.ask_token_as(way, login, note)
        token = _token(response)
        if not answer.ok or token is None:
            return None if answer.ok else _clear(answer)
        return _clear(check.ask(check.base, bearer_authorization(token), f"{note}, token")[1])

    # --- The probe repository ---------------------------------------------------------------------

    def _probe(self, check: _Check, login: Login, way: _Way, base: rules.Decision) -> rules.Decision:
        """Ask for a manifest with and without the login; whatever goes wrong here leaves ``base``."""
        found = _REPOSITORY.match(check.spec.probe_repository)
        if found is None or base.outcome not in {Outcome.VALID, Outcome.UNVERIFIABLE}:
            return base
        repository, tag = found.group(1), found.group(2) or "latest"
        url = registry_url(check.spec, f"/v2/{repository}/manifests/{tag}")
        try:
            granted = self._manifest(check, url, way, repository, login)
            anonymous = self._manifest(check, url, way, repository, None) if granted.ok else None
        except _Settled:
            return base
        return rules.on_probe(check.host, base, granted, anonymous)

    def _manifest(
        self, check: _Check, url: Url, way: _Way, repository: str, login: Login | None
    ) -> rules.Answer:
        note = "probe" if login is not None else "probe, anonymous"
        authorization = _basic(login) if login is not None else None
        if isinstance(way, _Bearer):
            scoped = _Bearer(way.realm, way.service, f"repository:{repository}:pull")
            response, answer = check.ask_token(scoped, login, note)
            token = _token(response) if answer.ok else None
            if token is None:
                return answer
            authorization = bearer_authorization(token)
        return check.ask(url, authorization, note, method="HEAD", accept=_MANIFESTS)[1]


class _Check:
    """One check under way: its deadline, and the steps it took."""

    def __init__(self, spec: RegistrySpec, transport: Sends, clock: Clock) -> None:
        self.spec = spec
        self.host = spec.host
        self.base = registry_url(spec, "/v2/")
        self.steps: list[Step] = []
        self._transport = transport
        self._clock = clock
        self._trust = Trust(spec.ca, spec.networks)
        self._deadline = transport.deadline(CHECK_SECONDS)

    def ask(
        self,
        url: Url,
        authorization: Secret | None,
        note: str,
        *,
        method: str = "GET",
        accept: str = "application/json",
    ) -> tuple[Response, rules.Answer]:
        """Send one request and note it; no answer settles the check."""
        request = Request(method, url, authorization, accept)
        try:
            response = self._transport.send(request, self._trust, self._deadline)
        except TransportFailure as failure:
            self._note(request, None, f"{note}: {failure.fault}")
            at_realm = (url.host, url.port) != (self.base.host, self.base.port)
            raise _Settled(_on_failure(failure, url.authority, at_realm=at_realm)) from None
        self._note(request, response.status, note)
        content_type, retry_after = response.header("content-type"), response.header("retry-after")
        answer = rules.summarise(response.status, content_type, retry_after, response.body, self._clock())
        return response, answer

    def ask_token(self, way: _Bearer, login: Login | None, note: str) -> tuple[Response, rules.Answer]:
        """Ask the token server as the login's owner, or as nobody."""
        return self.ask_token_as(way, (login.username, login.secret) if login is not None else None, note)

    def ask_token_as(
        self, way: _Bearer, login: tuple[str, Secret] | None, note: str
    ) -> tuple[Response, rules.Answer]:
        """Ask the token server as anybody. Parameters that the realm brings are kept unless they are ours."""
        query = [pair for pair in way.realm.query if pair[0] not in _OURS]
        query += [("service", way.service)] if way.service else []
        query += [("client_id", _CLIENT_ID)]
        query += [("account", login[0])] if login is not None else []
        query += [("scope", scope) for scope in way.scope.split()]
        realm = way.realm
        url = Url(realm.scheme, realm.host, realm.port, realm.path, tuple(query))
        return self.ask(url, basic_authorization(*login) if login is not None else None, note)

    def _note(self, request: Request, status: int | None, note: str) -> None:
        url = request.url
        self.steps.append(Step(request.method, url.authority, url.path[:_LONGEST_PATH], status, note))


def _challenges(response: Response) -> tuple[Challenge, ...]:
    """Return the answer's challenges; an unreadable header offers none."""
    try:
        return parse_challenges(response.headers.get("www-authenticate", ()))
    except ChallengeError:
        return ()


def _only_lacks_scope(response: Response) -> bool:
    """Whether the registry took the token but finds no right in it (RFC 6750), as some do with 401."""
    return any(each.params.get("error") == "insufficient_scope" for each in _challenges(response))


def _token(response: Response) -> Secret | None:
    return None if response.truncated else rules.bearer_token(response.body)


def _clear(answer: rules.Answer) -> bool | None:
    """Read a control's answer: it got in, it was refused, or it says neither."""
    if answer.ok:
        return True
    return False if answer.refuses else None


def _basic(login: Login) -> Secret:
    return basic_authorization(login.username, login.secret)


def _busy(host: str) -> rules.Decision:
    return rules.Decision(
        Outcome.UNAVAILABLE,
        "CheckInProgress",
        f"Another check of this username at {host} is still under way.",
    )


def _realm_refused(host: str, refused: RealmRefused) -> rules.Decision:
    return rules.Decision(
        Outcome.REALM_REJECTED,
        "RealmNotAllowed",
        f"{host} wants the login sent to {refused.shown}, which is not allowed: {refused.reason}. Nothing "
        "was sent there. If it is right, list it in the registry's realms.",
    )


_FAULTS: dict[Fault, tuple[Outcome, str]] = {
    Fault.ADDRESS: (Outcome.UNAVAILABLE, "may not be connected to"),
    Fault.NAME: (Outcome.UNAVAILABLE, "has no address; check the name and the name service"),
    Fault.CONNECT: (Outcome.UNAVAILABLE, "does not take connections"),
    Fault.TIMEOUT: (Outcome.UNAVAILABLE, "did not answer in time"),
    Fault.RESET: (Outcome.UNAVAILABLE, "closed the connection before it had answered"),
    Fault.CERTIFICATE: (
        Outcome.TLS_ERROR,
        "shows a certificate that is not trusted; give the registry its CA bundle",
    ),
    Fault.CERTIFICATE_NAME: (Outcome.TLS_ERROR, "shows a certificate for another name"),
    Fault.CA: (Outcome.TLS_ERROR, "can not be verified: the registry's CA bundle is not readable PEM"),
    Fault.TLS: (
        Outcome.TLS_ERROR,
        "does not speak TLS as expected; plain HTTP needs the registry marked insecure",
    ),
    Fault.ANSWER: (Outcome.PROTOCOL_ERROR, "sent what is not a usable HTTP answer"),
}


def _on_failure(failure: TransportFailure, host: str, *, at_realm: bool) -> rules.Decision:
    outcome, what = _FAULTS[failure.fault]
    if failure.fault is Fault.ADDRESS and at_realm:
        outcome = Outcome.REALM_REJECTED
    detail = f" ({failure.detail})" if failure.detail else ""
    return rules.Decision(outcome, failure.fault.value, f"{host} {what}{detail}.")
