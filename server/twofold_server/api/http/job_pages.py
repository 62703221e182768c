"""The pages GET /jobs and GET /jobs/JOB/report (.html or .json) of the HTTP port, with access control."""

from __future__ import annotations

import asyncio
import concurrent.futures
import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qs
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

import grpc

from twofold_server.config.settings import is_loopback
from twofold_server.errors import INTERNAL_ERROR, ServerError, status_of
from twofold_server.jobs.repository import JobRepository
from twofold_server.report.index import render_index
from twofold_server.report.rendering import POLICY
from twofold_server.report.reporter import Reporter
from twofold_server.security.authorization import Authorizer

log = logging.getLogger(__name__)

_REPORT = re.compile(r"/jobs/([A-Za-z0-9-]{1,100})/report(?:\.(html|json))?")
_PAGE_SIZE = 50
"""Jobs listed on one page."""
_TIMEOUT_SECONDS = 30.0
_HEADERS = (
    ("Content-Security-Policy", f"{POLICY}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
)
_STATUS = {
    grpc.StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION: HTTPStatus.NOT_FOUND,
    grpc.StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    grpc.StatusCode.PERMISSION_DENIED: HTTPStatus.FORBIDDEN,
    grpc.StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    grpc.StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
}


@dataclass(frozen=True, slots=True)
class _Response:
    """An HTTP response."""

    content: bytes
    media_type: str = "text/html; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK


class JobPages:
    """Serve the pages below /jobs. Reports contain texts, so they need more access than metrics do.

    If tokens are configured, a token with the scope `adapt` or `admin` is needed, as over gRPC. Otherwise only clients on this
    machine get access, and only by its own name, because a foreign web page in a local browser could use another name. Over a
    network, neither tokens nor reports are sent in plaintext unless *plaintext* is set.
    """

    def __init__(self, jobs: JobRepository, reporter: Reporter, access: Authorizer | None, *, plaintext: bool) -> None:
        self._jobs = jobs
        self._reporter = reporter
        self._access = access
        self._plaintext = plaintext
        self._loop = asyncio.get_running_loop()

    def wrap(self, metrics: WSGIApplication) -> WSGIApplication:
        """Return an application that answers requests below /jobs and passes the others to *metrics*."""

        def application(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path != "/jobs" and not path.startswith("/jobs/"):
                return metrics(environ, start)
            response = self._wait_for(environ)
            size = ("Content-Length", str(len(response.content)))
            challenge = [("WWW-Authenticate", "Bearer")] if response.status is HTTPStatus.UNAUTHORIZED else []
            start(
                f"{response.status.value} {response.status.phrase}",
                [("Content-Type", response.media_type), size, *_HEADERS, *challenge],
            )
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [response.content]

        return application

    def _wait_for(self, environ: WSGIEnvironment) -> _Response:
        """Answer on the event loop, from a thread of the HTTP server."""
        answer = asyncio.run_coroutine_threadsafe(self._answer(environ), self._loop)
        try:
            return answer.result(_TIMEOUT_SECONDS)
        except concurrent.futures.TimeoutError:
            answer.cancel()
            return _error(HTTPStatus.SERVICE_UNAVAILABLE, "the server is overloaded or shutting down; retry later")

    async def _answer(self, environ: dict[str, Any]) -> _Response:
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return _error(HTTPStatus.METHOD_NOT_ALLOWED, "these pages are read-only; submit and cancel jobs over gRPC")
        if self._access is None and not _addresses_this_machine(environ):
            message = (
                "without --tokens, only clients on the server's machine may see jobs, at http://127.0.0.1 and the port"
            )
            return _error(HTTPStatus.FORBIDDEN, message)
        if environ["wsgi.url_scheme"] != "https" and not self._plaintext and not _is_local(environ):
            message = "reports are not sent in plaintext; open this page on the server's machine, or start the server with --metrics-tls"
            return _error(HTTPStatus.FORBIDDEN, message)
        try:
            if self._access:
                self._access.authorize(("adapt", "admin"), (("authorization", environ.get("HTTP_AUTHORIZATION", "")),))
            return await self._show(environ["PATH_INFO"], environ.get("QUERY_STRING", ""))
        except ServerError as error:
            status = _STATUS.get(status_of(error)[0], HTTPStatus.INTERNAL_SERVER_ERROR)
            return _error(
                status, str(error) if status_of(error) != INTERNAL_ERROR else "internal error; see the server's log"
            )
        except Exception:
            log.exception("could not render a page")
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; see the server's log")

    async def _show(self, path: str, query: str) -> _Response:
        if path in {"/jobs", "/jobs/"}:
            cursor = parse_qs(query).get("before", [""])[0]
            jobs, older = await self._jobs.page(_PAGE_SIZE, int(cursor) if re.fullmatch(r"\d{1,18}", cursor) else None)
            page = await asyncio.to_thread(render_index, jobs, older)
            return _Response(page.encode())
        if match := _REPORT.fullmatch(path):
            if match[2] == "json":
                return _Response(await self._reporter.read(match[1], "json"), "application/json")
            return _Response(await self._reporter.read(match[1], "html"))
        message = "there is no such page; /jobs lists the jobs, /jobs/JOB/report is a job's report, and /jobs/JOB/report.json is its data"
        return _error(HTTPStatus.NOT_FOUND, message)


def _addresses_this_machine(environ: dict[str, Any]) -> bool:
    """Return whether the client is on this machine and addresses it by its own name."""
    host = environ.get("HTTP_HOST", "")
    named = host if re.search(r":\d+$", host) else f"{host}:80"
    return _is_local(environ) and is_loopback(named)


def _is_local(environ: dict[str, Any]) -> bool:
    """Return whether the client is on this machine."""
    return is_loopback(f"[{environ['REMOTE_ADDR']}]:0")


def _error(status: HTTPStatus, text: str) -> _Response:
    return _Response(f"{text}\n".encode(), "text/plain; charset=utf-8", status)
