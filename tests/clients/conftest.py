"""A fake server, and both clients under one face."""

import asyncio
import inspect

import pytest
from clients.answers import ANSWERS, QUICK
from twofold import AsyncClient, Client
from twofold.testing import FakeServer


@pytest.fixture
def server():
    """Run a fake server."""
    with FakeServer(ANSWERS) as running:
        yield running


@pytest.fixture
def client(server):
    """Open a client of it."""
    with Client(server.target, retry=QUICK) as opened:
        yield opened


@pytest.fixture(params=["blocking", "asyncio"])
def call(request, server):
    """Call a method by name on either client; what iterates comes back as a list."""
    return _blocking(server) if request.param == "blocking" else _asynchronous(server)


def _blocking(server):
    def call(method, *args, **kwargs):
        with Client(server.target, retry=QUICK) as opened:
            found = getattr(opened, method)(*args, **kwargs)
            return list(found) if inspect.isgenerator(found) else found

    return call


def _asynchronous(server):
    async def run(method, args, kwargs):
        async with AsyncClient(server.target, retry=QUICK) as opened:
            found = getattr(opened, method)(*args, **kwargs)
            return [one async for one in found] if inspect.isasyncgen(found) else await found

    return lambda method, *args, **kwargs: asyncio.run(run(method, args, kwargs))
