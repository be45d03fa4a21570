"""/v1/models and /admin/aliases: list the served models, and switch an alias in one step."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any

import grpc

from modelwright.core.api.errors import AliasConflictError
from modelwright.core.api.registry import ALIAS_NAME
from modelwright.grpc_server.errors import RequestError
from modelwright.grpc_server.gateway.body import Fields
from modelwright.grpc_server.gateway.errors import HttpError, http_error, wrong
from modelwright.grpc_server.gateway.responses import full_address
from modelwright.grpc_server.models.loaded import LoadedModel, Route
from modelwright.grpc_server.models.switching import ModelTable


def list_models(table: ModelTable) -> dict[str, Any]:
    """List the aliases, then the models, for clients that offer a choice to their users."""
    routes = [_described(table, f"@{route.alias}", route.model) for route in table.routes()]
    models = [_described(table, model.address, model) for model in table.models() if table.wants(model)]
    return {"object": "list", "data": routes + models}


def get_model(table: ModelTable, address: str) -> dict[str, Any]:
    """Describe the model at an address.

    Raises:
        HttpError: the path is not an address (404).
        RequestError: this server does not serve it (NOT_FOUND).
    """
    try:
        return _described(table, address, table.find(full_address(table, address)).model)
    except RequestError as error:
        if error.code is not grpc.StatusCode.INVALID_ARGUMENT:
            raise
        raise HttpError(404, "model_not_found", error.message, param="model") from error


def _described(table: ModelTable, address: str, model: LoadedModel) -> dict[str, Any]:
    version = model.version
    return {
        "id": address,
        "object": "model",
        "created": int(version.created.timestamp()),
        "owned_by": "modelwright",
        "modelwright": {
            "name": version.name,
            "version": version.version,
            "digest": version.digest,
            "aliases": [route.alias for route in table.routes() if route.model is model],
            "engine": model.spec.name,
            "abilities": sorted(model.spec.abilities),
            "context_length": model.context_length,
            "active_requests": model.active,
        },
    }


_ETAG = re.compile(r'"([\x21\x23-\x7e]*)"')


def list_aliases(table: ModelTable) -> dict[str, Any]:
    """List every alias that this server routes."""
    return {"object": "list", "data": [described(route) for route in table.routes()]}


def get_alias(table: ModelTable, alias: str) -> Route:
    """Describe an alias that this server routes.

    Raises:
        HttpError: it does not route this alias (404).
    """
    route = _route(table, alias)
    if route is None:
        known = ", ".join(route.alias for route in table.routes()) or "none"
        raise HttpError(404, "alias_not_found", f"this server has no alias {alias!r} (it has: {known})")
    return route


def described(route: Route) -> dict[str, Any]:
    """An alias as JSON."""
    version = route.model.version
    return {
        "object": "alias",
        "alias": route.alias,
        "name": version.name,
        "version": version.version,
        "digest": version.digest,
        "generation": route.generation,
        "etag": route.etag,
    }


def quoted_etag(route: Route) -> str:
    """The value of the header ETag."""
    return f'"{route.etag}"'


async def set_alias(
    table: ModelTable, alias: str, body: Mapping[str, Any], headers: Mapping[str, str]
) -> tuple[Route, dict[str, Any]]:
    """Switch an alias; returns the current route, and the answer.

    The expected etag is in If-Match or in the body. `If-None-Match: *` demands that the alias is new.

    Raises:
        HttpError: the body or a header is wrong (400), or the alias has another etag (412).
        RequestError: as `ModelTable.switch`.
        ModelwrightError: the registry refused or failed.
    """
    if not ALIAS_NAME.fullmatch(alias):
        raise wrong("alias", f"is wrong: {alias[:60]!r} is not a valid alias name")
    fields = Fields(body)
    target = fields.required_text("target", "expected the address of a model")
    if not target:
        raise wrong("target", "is empty: expected the address of a model")
    persist = fields.boolean("persist")
    etag = _expected(table, alias, fields.text("etag"), headers)
    fields.finish()
    try:
        switched = await table.switch(alias, target, etag=etag, persist=persist)
    except (RequestError, AliasConflictError) as error:
        refusal = http_error(error)
        now = _route(table, alias)
        if refusal.status == 412 and now is not None:
            refusal.headers["ETag"] = quoted_etag(now)
        raise refusal from error
    return switched.route, {
        **described(switched.route),
        "changed": switched.changed,
        "persisted": switched.persisted,
    }


def _route(table: ModelTable, alias: str) -> Route | None:
    return next((route for route in table.routes() if route.alias == alias), None)


def _expected(table: ModelTable, alias: str, etag: str | None, headers: Mapping[str, str]) -> str | None:
    """The etag that the alias must have; empty if it must not exist, None for any."""
    match, none_match = headers.get("if-match"), headers.get("if-none-match")
    said = [value for value in (etag, match, none_match) if value is not None]
    if len(said) > 1:
        raise wrong("etag", "is given more than once: use one of If-Match, If-None-Match and the body")
    if none_match is not None:
        if none_match.strip() != "*":
            raise wrong("If-None-Match", f"is {none_match!r}: expected *, which requires that the alias is new")
        return ""
    if match is None:
        return etag
    if match.strip() == "*":
        there = _route(table, alias)
        if there is None:
            message = f"If-Match is *, but this server has no alias {alias!r}: leave the header out to create it"
            raise HttpError(412, "alias_conflict", message)
        return there.etag
    read = _ETAG.fullmatch(match.strip())
    if read is None:
        raise wrong(
            "If-Match", f'is {match!r}: expected one etag in double quotes, as in the header ETag, such as "3-0f1e"'
        )
    return read[1]


def check_open_door(host: str | None) -> None:
    """Check a call without a token, which is allowed if only programs on this machine can reach the server.

    A web page can make a browser on this machine call the server, but under the page's host name. So the name is
    checked.

    Raises:
        HttpError: the call is for another host name (403).
    """
    name = (host or "").strip()
    name = name[1:].partition("]")[0] if name.startswith("[") else name.partition(":")[0]
    try:
        loopback = ipaddress.ip_address(name).is_loopback
    except ValueError:
        loopback = name.lower() == "localhost"
    if not loopback:
        message = (
            f"this call changes the server, which has no token: its Host header must name this machine, not "
            f"{name[:60]!r}; start the server with --admin-token-file to allow others"
        )
        raise HttpError(403, "permission_denied", message)
