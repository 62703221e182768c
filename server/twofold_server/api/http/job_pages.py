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
_PAGE = 50
"""Jobs listed on one page."""
_PATIENCE = 30.0
"""Time limit of a page, in seconds."""
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
class _Page:
    """A response."""

    content: bytes
    media_type: str = "text/html; charset=utf-8"
    status: HTTPStatus = HTTPStatus.OK


class JobPages:
    """Serve the pages below /jobs. Reports contain texts, so they need more access than metrics do.

    If tokens are configured, a token with the scope `adapt` or `admin` is needed, as over gRPC. Otherwise only clients on this
    machine get access, and only by its own name, because a foreign web page in a local browser could use another name. Over a
    network neither tokens nor reports are sent in plaintext
    unless *plaintext* is set.
    """

    def __init__(self, jobs: JobRepository, reporter: Reporter, access: Authorizer | None, *, plaintext: bool) -> None:
        self._jobs = jobs
        self._reporter = reporter
        self._access = access
        self._plaintext = plaintext
        self._loop = asyncio.get_running_loop()

    def before(self, metrics: WSGIApplication) -> WSGIApplication:
        """Wrap the metrics app with these pages."""

        def application(environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
            path = environ["PATH_INFO"]
            if path != "/jobs" and not path.startswith("/jobs/"):
                return metrics(environ, start)
            page = self._wait_for(environ)
            size = ("Content-Length", str(len(page.content)))
            asks = [("WWW-Authenticate", "Bearer")] if page.status is HTTPStatus.UNAUTHORIZED else []
            start(
                f"{page.status.value} {page.status.phrase}",
                [("Content-Type", page.media_type), size, *_HEADERS, *asks],
            )
            return [] if environ["REQUEST_METHOD"] == "HEAD" else [page.content]

        return application

    def _wait_for(self, environ: WSGIEnvironment) -> _Page:
        """Answer on the event loop, from a thread of the HTTP server."""
        answer = asyncio.run_coroutine_threadsafe(self._answer(environ), self._loop)
        try:
            return answer.result(_PATIENCE)
        except concurrent.futures.TimeoutError:
            answer.cancel()
            return _error_page(
                HTTPStatus.SERVICE_UNAVAILABLE, "the server has too much to do, or is going away; ask again"
            )

    async def _answer(self, environ: dict[str, Any]) -> _Page:
        if environ["REQUEST_METHOD"] not in {"GET", "HEAD"}:
            return _error_page(
                HTTPStatus.METHOD_NOT_ALLOWED, "jobs are made and cancelled over gRPC; here they are shown"
            )
        if self._access is None and not _asks_here(environ):
            message = (
                "without --tokens only who is on the server's machine may see jobs, at http://127.0.0.1 and its port"
            )
            return _error_page(HTTPStatus.FORBIDDEN, message)
        if environ["wsgi.url_scheme"] != "https" and not self._plaintext and not _is_here(environ):
            message = "reports do not travel in plaintext; ask on the server's machine, or start the server with --metrics-tls"
            return _error_page(HTTPStatus.FORBIDDEN, message)
        try:
            if self._access:
                self._access.authorize(("adapt", "admin"), (("authorization", environ.get("HTTP_AUTHORIZATION", "")),))
            return await self._show(environ["PATH_INFO"], environ.get("QUERY_STRING", ""))
        except ServerError as error:
            status = _STATUS.get(status_of(error)[0], HTTPStatus.INTERNAL_SERVER_ERROR)
            return _error_page(
                status, str(error) if status_of(error) != INTERNAL_ERROR else "the server's log says more"
            )
        except Exception:
            log.exception("a page cannot be shown")
            return _error_page(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error; the server's log says more")

    async def _show(self, path: str, query: str) -> _Page:
        if path in {"/jobs", "/jobs/"}:
            before = parse_qs(query).get("before", [""])[0]
            jobs, older = await self._jobs.page(_PAGE, int(before) if re.fullmatch(r"\d{1,18}", before) else None)
            return _Page(render_index(jobs, older).encode())
        if match := _REPORT.fullmatch(path):
            if match[2] == "json":
                return _Page(await self._reporter.read(match[1], "json"), "application/json")
            return _Page(await self._reporter.read(match[1], "html"))
        message = "there is no such page; /jobs lists the jobs, /jobs/JOB/report is a job's report, and .json the same as data"
        return _error_page(HTTPStatus.NOT_FOUND, message)


def _asks_here(environ: dict[str, Any]) -> bool:
    """Return whether the client is on this machine and addresses it by its own name."""
    host = environ.get("HTTP_HOST", "")
    named = host if re.search(r":\d+$", host) else f"{host}:80"
    return _is_here(environ) and is_loopback(named)


def _is_here(environ: dict[str, Any]) -> bool:
    """Return whether the client is on this machine."""
    return is_loopback(f"[{environ['REMOTE_ADDR']}]:0")


def _error_page(status: HTTPStatus, text: str) -> _Page:
    return _Page(f"{text}\n".encode(), "text/plain; charset=utf-8", status)
