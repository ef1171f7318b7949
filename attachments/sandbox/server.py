"""Puts the vendor's API and the control API on one socket."""

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from aiohttp import web

from attachments.sandbox.account import Account
from attachments.sandbox.control import Control, explain_mistakes
from attachments.sandbox.vendor import Vendor

_LARGEST_ORDER = 1024**3
"""Bytes of one call to the control API."""

_SHUTDOWN_SECONDS = 0.2


@asynccontextmanager
async def serving(account: Account, host: str, port: int) -> AsyncIterator[str]:
    """Serves the account until the block ends; yields the address, as in `http://127.0.0.1:41234`.

    Port 0 lets the system choose one. Raises OSError when the port is taken.
    """
    listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    bound = listener.getsockname()[1]
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        app = web.Application(middlewares=[explain_mistakes], client_max_size=_LARGEST_ORDER)
        control = Control(account, session)
        app.add_routes(control.routes())
        app.add_routes([web.route("*", r"/api/{path:[\s\S]*}", Vendor(account).handle)])
        # A handler that holds a connection open ends when its client leaves, and soon when the server does.
        runner = web.AppRunner(app, access_log=None, handler_cancellation=True, shutdown_timeout=_SHUTDOWN_SECONDS)
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            yield f"http://{f'[{host}]' if ':' in host else host}:{bound}"
        finally:
            await control.close()
            await runner.cleanup()
            listener.close()
