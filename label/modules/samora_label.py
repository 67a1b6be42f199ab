"""MONAI Label's web app with readable errors: `--uvicorn_app samora_label:app`.

MONAI Label answers every error with "Internal Server Error" and logs a traceback of a hundred lines. Here the client
receives `{"detail": "one sentence"}`, and the log holds the same sentence.
"""

from __future__ import annotations

import logging
from pathlib import Path

from fastapi import Request
from fastapi.responses import JSONResponse
from monailabel.app import app
from monailabel.config import settings
from monailabel.interfaces.exception import MONAILabelException

from samora_monai.checkpoints.files import read_checkpoint
from samora_monai.errors import InputError, MissingFileError, one_line, user_message

__all__ = ["app"]

logger = logging.getLogger("samora_label")


@app.exception_handler(InputError)
@app.exception_handler(MONAILabelException)
async def answer_mistake(request: Request, error: Exception) -> JSONResponse:
    """Answer errors that the client can correct, in an image, label, model or setting: 400 with the reason."""
    image = request.query_params.get("image")
    if image and isinstance(error, MissingFileError):  # MONAI Label gives an unknown image the path ""
        return _answer(request, 404, f"no image {image!r} among the studies; GET /datastore/?output=all lists them")
    return _answer(request, 400, error.msg if isinstance(error, MONAILabelException) else str(error))


@app.exception_handler(Exception)
async def answer_failure(request: Request, error: Exception) -> JSONResponse:
    """Answer all other errors: 500 with the reason; the traceback follows in the log."""
    reason = user_message(error) or (_damaged_model() if "/infer/" in request.url.path else None)
    return _answer(request, 500, reason or f"{type(error).__name__}: {one_line(error)}")


def _answer(request: Request, status: int, reason: str) -> JSONResponse:
    logger.warning("error: %s %s: %s", request.method, request.url.path, reason)
    return JSONResponse({"detail": reason}, status)


def _damaged_model() -> str | None:
    """The reason if a served model is damaged; torch raises errors of many types, without the file and the remedy."""
    for path in sorted(Path(settings.MONAI_LABEL_APP_DIR, "model").glob("*/models/*.pt")):
        try:
            read_checkpoint(path)
        except InputError as error:
            return str(error)
    return None
