"""Pull secrets in one cluster: the `Cluster` port over `KubeApi`.

Rules of this module:

- One Secret is written by server-side apply, so that one field manager owns all of it, and each apply carries
  a resourceVersion: the one whose metadata was judged, or for a creation one that no object ever has.
- Secrets are found by name over all namespaces, by metadata, which RBAC can grant for that name alone.
- Data is read only by `read_secret` and in the answer to our own apply.

It does not decide what may be written (`core.delivery`) and retries nothing that lost a race.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, Final, TypeVar

from secretsvc.core.delivery import SECRET_TYPE
from secretsvc.core.errors import TargetMissing, TargetUnreachable
from secretsvc.core.model import Secret
from secretsvc.core.ports import LiveSecret, SecretMetadata, WantedSecret
from secretsvc.delivery.kubeapi import KubeApi, segment

T = TypeVar("T")

FIELD_MANAGER = "secretsvc"
_DATA_KEY: Final = ".dockerconfigjson"
_APPLY: Final = "application/apply-patch+yaml"
_METADATA_LIST: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_PAGE_SIZE: Final = 500
_NEVER_A_VERSION: Final = "1"
"""etcd's first revision, before any write. An apply that carries it creates what is not there and conflicts
with anything that is: the only apply that never writes over what exists, our own included."""


class ClusterTarget:
    """The `Cluster` port, for one API server."""

    def __init__(self, api: KubeApi) -> None:
        self.name = api.name
        self._api = api

    @property
    def verifies_server(self) -> bool:
        """False when the kubeconfig says ``insecure-skip-tls-verify``."""
        return self._api.verifies_server

    async def identity(self) -> str:
        """Return the uid of the namespace kube-system."""
        return await self._api.identity()

    async def version(self) -> str:
        """Return the server's version, such as ``v1.36.3``."""
        _, answer = await self._api.request("GET", "/version", about="its version")
        return str(answer.get("gitVersion", ""))

    async def close(self) -> None:
        """Close connections."""
        await self._api.close()

    async def secrets_named(self, name: str) -> dict[str, SecretMetadata]:
        """Return the metadata of every Secret called ``name``, by namespace; pages of 500."""
        found: dict[str, SecretMetadata] = {}
        first = {"fieldSelector": f"metadata.name={name}", "limit": str(_PAGE_SIZE)}
        token = ""
        while True:
            query = first | ({"continue": token} if token else {})
            _, listed = await self._api.request(
                "GET",
                "/api/v1/secrets",
                about=f"secrets named {name} in all namespaces",
                query=query,
                accept=_METADATA_LIST,
            )
            items, token = self._understood(_page, listed)
            found.update((item.namespace, item) for item in items)
            if not token:
                return found

    async def read_secret(self, namespace: str, name: str) -> LiveSecret | None:
        """Return one Secret with its data, or None when it or its namespace does not exist."""
        try:
            _, secret = await self._api.request("GET", _path(namespace, name), about=_words(namespace, name))
        except TargetMissing:
            return None
        return self._understood(_live, secret)

    async def apply_secret(self, wanted: WantedSecret, found: SecretMetadata | None) -> LiveSecret:
        """Create (``found`` None) or update that very object and version; return what the server holds.

        An update carries the uid too: with a version alone, an apply creates anew what was deleted meanwhile.
        """
        if found is None:
            identity = {"resourceVersion": _NEVER_A_VERSION}
        else:
            identity = {"resourceVersion": found.resource_version, "uid": found.uid}
        _, secret = await self._api.request(
            "PATCH",
            _path(wanted.namespace, wanted.name),
            about=_words(wanted.namespace, wanted.name),
            query={"fieldManager": FIELD_MANAGER, "force": "false" if found is None else "true"},
            body=_applied(wanted, identity),
            content_type=_APPLY,
        )
        return self._understood(_live, secret)

    async def delete_secret(self, metadata: SecretMetadata) -> None:
        """Delete that very object (uid and resourceVersion); absent is success."""
        conditions = {"uid": metadata.uid, "resourceVersion": metadata.resource_version}
        options = {"apiVersion": "v1", "kind": "DeleteOptions", "preconditions": conditions}
        path, about = _path(metadata.namespace, metadata.name), _words(metadata.namespace, metadata.name)
        try:
            await self._api.request("DELETE", path, about=about, body=options)
        except TargetMissing:
            return

    def _understood(self, read: Callable[[Mapping[str, Any]], T], answer: Mapping[str, Any]) -> T:
        """Read an answer; one that is not shaped as Kubernetes shapes it comes from something else."""
        try:
            return read(answer)
        except (KeyError, TypeError, AttributeError):
            raise TargetUnreachable(
                f"cluster {self.name}: what answers there is not a Kubernetes API server",
                hint="check the server's URL, and any proxy or load balancer before it",
                code="NotKubernetes",
            ) from None


def _path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{segment(namespace)}/secrets/{segment(name)}"


def _words(namespace: str, name: str) -> str:
    return f"secret {name} in namespace {namespace}"


def _applied(wanted: WantedSecret, identity: Mapping[str, str]) -> dict[str, Any]:
    value = base64.b64encode(wanted.dockerconfigjson.reveal().encode()).decode()
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {
            "name": wanted.name,
            "namespace": wanted.namespace,
            "labels": dict(wanted.labels),
            "annotations": dict(wanted.annotations),
            **identity,
        },
        "type": SECRET_TYPE,
        "data": {_DATA_KEY: value},
    }


def _page(listed: Mapping[str, Any]) -> tuple[list[SecretMetadata], str]:
    """Return the items of one page and the token of the next; empty on the last."""
    if listed["kind"] != "PartialObjectMetadataList":
        raise TypeError
    items = [_metadata(item) for item in listed["items"] or ()]
    return items, str(listed["metadata"].get("continue") or "")


def _metadata(item: Mapping[str, Any]) -> SecretMetadata:
    metadata = item["metadata"]
    return SecretMetadata(
        metadata.get("namespace", ""),
        metadata["name"],
        metadata["uid"],
        metadata["resourceVersion"],
        metadata.get("labels") or {},
        metadata.get("annotations") or {},
    )


def _live(secret: Mapping[str, Any]) -> LiveSecret:
    encoded = (secret.get("data") or {}).get(_DATA_KEY)
    return LiveSecret(_metadata(secret), str(secret.get("type", "")), _decoded(encoded))


def _decoded(encoded: str | None) -> Secret | None:
    """Return the value as text; what is not UTF-8 is as good as absent, since no consumer reads it."""
    if encoded is None:
        return None
    try:
        return Secret(base64.b64decode(encoded, validate=True).decode())
    except (binascii.Error, UnicodeDecodeError):
        return None
