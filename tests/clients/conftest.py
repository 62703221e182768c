"""A fake server, and both clients behind one function."""

import asyncio
import inspect

import pytest
from clients.samples import FAST_RETRY, PREDICTIONS
from twofold import AsyncClient, Client
from twofold.testing import FakeServer


@pytest.fixture
def server():
    """Run a fake server."""
    with FakeServer(PREDICTIONS) as running:
        yield running


@pytest.fixture
def client(server):
    """Open a client of the fake server."""
    with Client(server.target, retry=FAST_RETRY) as opened:
        yield opened


@pytest.fixture(params=["blocking", "asyncio"])
def call(request, server):
    """Return a function that calls a method of either client by name; an iterator is returned as a list."""
    return _blocking_call(server) if request.param == "blocking" else _async_call(server)


def _blocking_call(server):
    def call(method, *args, **kwargs):
        with Client(server.target, retry=FAST_RETRY) as opened:
            result = getattr(opened, method)(*args, **kwargs)
            return list(result) if inspect.isgenerator(result) else result

    return call


def _async_call(server):
    async def run(method, args, kwargs):
        async with AsyncClient(server.target, retry=FAST_RETRY) as opened:
            result = getattr(opened, method)(*args, **kwargs)
            return [value async for value in result] if inspect.isasyncgen(result) else await result

    return lambda method, *args, **kwargs: asyncio.run(run(method, args, kwargs))
