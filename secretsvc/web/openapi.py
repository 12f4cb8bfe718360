"""Routes that document themselves: the only door to flask-smorest, with what it lacks put right.

One decorator, `Resource.call`, says everything about a route: method, path, body, query, answer and the
headers it minds; OpenAPI and the parsing of requests are made of the same schemas. Put right here:
errors are documented as problems, bodies are strict JSON (`web.reading`), unknown query parameters are
errors, validation errors lose the copy of the input that marshmallow hangs on them, and nothing redirects.
"""

from __future__ import annotations

import http
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import flask_smorest  # type: ignore[import-untyped]
from apispec.ext.marshmallow import MarshmallowPlugin
from flask import Flask, Request, request
from marshmallow import RAISE, Schema, ValidationError
from webargs.flaskparser import FlaskParser
from werkzeug.exceptions import HTTPException, RequestEntityTooLarge
from werkzeug.routing import BaseConverter

from secretsvc.core.errors import FieldError, InvalidInput
from secretsvc.core.ident import is_name
from secretsvc.web.answers import ProblemAnswer
from secretsvc.web.problems import MEDIA_TYPE
from secretsvc.web.reading import Unreadable, read_object
from secretsvc.web.schemas import NAME_PATTERN, pointers

F = TypeVar("F", bound=Callable[..., Any])
PREFIX = "/api/v1"

_IF_MATCH = {
    "in": "header",
    "name": "If-Match",
    "description": "Act only if the record still has this ETag (412 otherwise).",
    "schema": {"type": "string"},
}
_IF_NONE_MATCH = {
    "in": "header",
    "name": "If-None-Match",
    "description": "Answer 304 when the wish still has this ETag, whatever was observed since.",
    "schema": {"type": "string"},
}
_PREFER = {
    "in": "header",
    "name": "Prefer",
    "description": "`wait=N`: hold the answer back until the work is done, for at most N (60) seconds.",
    "schema": {"type": "string"},
}
_ETAG = {"ETag": {"description": "The version of the caller's wish.", "schema": {"type": "string"}}}
_LOCATION = {"Location": {"description": "Where to look.", "schema": {"type": "string"}}}


class NameConverter(BaseConverter):
    """A name in a path. Any text is matched, and what is no name is told so (`web.app`)."""


class _Parser(FlaskParser):
    """Reads requests; errors are ours and hold nothing of the input."""

    DEFAULT_UNKNOWN_BY_LOCATION = {**FlaskParser.DEFAULT_UNKNOWN_BY_LOCATION, "query": RAISE}  # noqa: RUF012

    def load_json(self, req: Request, schema: Schema) -> Mapping[str, object]:
        """Return the body as an object; no body is an empty object, but a change must say what it changes."""
        del schema
        data = _body(req)
        if req.content_length is None and len(data) >= (req.max_content_length or 0):
            # A chunked body is cut off at the limit without a word.
            raise RequestEntityTooLarge
        return read_object(data) if data or req.method == "PATCH" else {}

    def handle_error(
        self,
        error: ValidationError,
        req: Request,
        schema: Schema,
        *,
        error_status_code: int | None,
        error_headers: Mapping[str, str] | None,
    ) -> NoReturn:
        """Raise `InvalidInput` with one row per fault."""
        del req, schema, error_status_code, error_headers
        rows: list[FieldError] = []
        messages = error.messages if isinstance(error.messages, dict) else {"json": error.messages}
        for location, tree in messages.items():
            for pointer, text in pointers(tree):
                place = pointer if location == "json" else "?" + pointer.removeprefix("/")
                rows.append(FieldError(place, text))
        raise InvalidInput("the request does not have the right form", *rows) from None


def _body(req: Request) -> bytes:
    """Return the body, or raise `Unreadable` when it is no HTTP, such as chunks without their lengths."""
    try:
        return req.get_data(cache=False)
    except HTTPException:
        raise
    except Exception:  # noqa: BLE001  # whatever the WSGI server has for it; its text quotes what was sent
        raise Unreadable("The body can not be read as HTTP, or ended early.") from None


class Resource(flask_smorest.Blueprint):  # type: ignore[misc]  # the library is not typed
    """The routes of one resource, under `PREFIX`."""

    ARGUMENTS_PARSER = _Parser()

    def __init__(self, name: str, description: str) -> None:
        super().__init__(name, __name__, url_prefix=PREFIX, description=description)

    def call(
        self,
        method: str,
        path: str,
        *,
        body: type[Schema] | None = None,
        query: type[Schema] | None = None,
        answer: type[Schema] | None = None,
        status: int = 200,
        tagged: bool = False,
        waits: bool = False,
    ) -> Callable[[F], F]:
        """Register a view.

        Args:
            method: ``GET``, ``POST`` ...
            path: below `PREFIX`; names are ``<name:name>``.
            body: schema of the JSON body; the view gets what it loads as its first argument.
            query: the same of the query parameters.
            answer: schema that dumps what the view returns.
            status: of a good answer.
            tagged: the record has an ETag; ``If-Match`` or ``If-None-Match`` are honoured.
            waits: ``Prefer: wait=N`` is honoured.
        """

        def decorate(view: F) -> F:
            wrapped = self.response(status, answer, headers=_headers(status, tagged=tagged))(view)
            if waits and status == http.HTTPStatus.ACCEPTED:
                wrapped = self.alt_response(200, schema=answer, description="Done within the wait")(wrapped)
            if tagged and method == "GET":
                wrapped = self.alt_response(304, description="Not modified")(wrapped)
            if body is not None:
                wrapped = self.arguments(body, location="json")(wrapped)
            if query is not None:
                wrapped = self.arguments(query, location="query")(wrapped)
            parameters = _parameters(method, tagged=tagged, waits=waits)
            wrapped = self.doc(operationId=f"{self.name}_{view.__name__}", parameters=parameters)(wrapped)
            self.route(path, methods=[method], endpoint=view.__name__)(wrapped)
            return view

        return decorate

    def _prepare_arguments_doc(self, doc: dict[str, Any], doc_info: dict[str, Any], **context: Any) -> Any:  # noqa: ANN401
        """Keep the header parameters: the library would let one list of parameters replace the other."""
        manual = doc_info.get("manual_doc", {})
        extra = manual.pop("parameters", [])
        doc = super()._prepare_arguments_doc(doc, doc_info, **context)
        if extra:
            doc["parameters"] = [*doc.get("parameters", []), *extra]
        return doc


class _Api(flask_smorest.Api):  # type: ignore[misc]
    """The API's description."""

    ERROR_SCHEMA = ProblemAnswer

    def _register_error_handlers(self) -> None:
        """Leave errors to `web.problems`."""

    def _register_responses(self) -> None:
        statuses = {
            status.name: status.phrase for status in http.HTTPStatus if status >= http.HTTPStatus.BAD_REQUEST
        }
        for name, phrase in {**statuses, "DEFAULT_ERROR": "Any error, as an RFC 9457 problem"}.items():
            response = {"description": phrase, "content": {MEDIA_TYPE: {"schema": self.ERROR_SCHEMA}}}
            self.spec.components.response(name, response, lazy=True)


def document(app: Flask, version: str, resources: tuple[Resource, ...]) -> None:
    """Register the resources with the application and serve their description at ``/openapi.json``."""
    app.url_map.converters["name"] = NameConverter
    app.url_map.merge_slashes = False
    app.url_map.redirect_defaults = False
    app.config.update(
        API_TITLE="secretsvc",
        API_VERSION=version,
        OPENAPI_VERSION="3.1.0",
        OPENAPI_URL_PREFIX="/",
    )
    plugin = MarshmallowPlugin(schema_name_resolver=_component_name)
    api = _Api(app, spec_kwargs={"marshmallow_plugin": plugin, "security": [{"token": []}]})
    api.spec.components.security_scheme(
        "token", {"type": "http", "scheme": "bearer", "description": "An API token of secretsvc"}
    )
    api.register_converter(NameConverter, lambda _: {"type": "string", "pattern": NAME_PATTERN})
    for resource in resources:
        api.register_blueprint(resource)


def ensure_names() -> None:
    """Raise `InvalidInput` when something in the path stands for a name and is none."""
    for argument, text in (request.view_args or {}).items():
        if argument == "name" and not is_name(text):
            fault = FieldError("/name", "not a name")
            raise InvalidInput(
                "the path does not name a record: a name is 1 to 40 of a-z, 0-9 and '-'", fault
            )


def _component_name(schema: Schema | type[Schema]) -> str:
    kind = schema if isinstance(schema, type) else type(schema)
    return kind.__name__


def _headers(status: int, *, tagged: bool) -> dict[str, Any]:
    headers: dict[str, Any] = dict(_ETAG) if tagged and status != http.HTTPStatus.NO_CONTENT else {}
    if status in (http.HTTPStatus.CREATED, http.HTTPStatus.ACCEPTED):
        headers |= _LOCATION
    return headers


def _parameters(method: str, *, tagged: bool, waits: bool) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    if tagged and method == "GET":
        found.append(_IF_NONE_MATCH)
    if tagged and method in ("PUT", "PATCH", "DELETE"):
        found.append(_IF_MATCH)
    if waits:
        found.append(_PREFER)
    return found
