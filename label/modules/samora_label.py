"""MONAI Label's web app with errors that a person can read: `--uvicorn_app samora_label:app`.

MONAI Label answers everything that goes wrong with a bare "Internal Server Error" and a traceback of a hundred lines in
the log. Here the client gets `{"detail": "one sentence"}`, and the log the same sentence.
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
    """What the client can mend: an image, a label, a model or a setting; 400 with the reason."""
    image = request.query_params.get("image")
    if image and isinstance(error, MissingFileError):  # MONAI Label looks for an unknown image at the path ""
        return _answer(request, 404, f"no image {image!r} among the studies; GET /datastore/?output=all lists them")
    return _answer(request, 400, error.msg if isinstance(error, MONAILabelException) else str(error))


@app.exception_handler(Exception)
async def answer_failure(request: Request, error: Exception) -> JSONResponse:
    """All else: 500 with the reason; the traceback follows in the log."""
    reason = user_message(error) or (_damaged_model() if "/infer/" in request.url.path else None)
    return _answer(request, 500, reason or f"{type(error).__name__}: {one_line(error)}")


def _answer(request: Request, status: int, reason: str) -> JSONResponse:
    # not ERROR: in a process that has trained, such records are for programs that print the sentence themselves
    logger.warning("error: %s %s: %s", request.method, request.url.path, reason)
    return JSONResponse({"detail": reason}, status)


def _damaged_model() -> str | None:
    """torch's answer to a damaged file names neither the file nor the remedy, and it may be any kind of error."""
    for path in sorted(Path(settings.MONAI_LABEL_APP_DIR, "model").glob("*/models/*.pt")):
        try:
            read_checkpoint(path)
        except InputError as error:
            return str(error)
    return None
