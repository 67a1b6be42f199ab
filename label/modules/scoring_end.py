"""End the background scoring with the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI
from monailabel.utils.async_tasks.utils import background_executors, stop_background_task


def stop_scoring_with(app: FastAPI) -> None:
    """Stop the scoring when `app` ends; otherwise Python waits for the scoring of all scans before it exits."""
    inner = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(server: FastAPI) -> AsyncIterator[None]:
        async with inner(server):
            yield
        if "scoring" in background_executors:
            background_executors["scoring"].shutdown(wait=False, cancel_futures=True)
            stop_background_task("scoring")

    app.router.lifespan_context = lifespan
