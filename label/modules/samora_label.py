"""MONAI Label's web app behind the guard, with readable errors: `--uvicorn_app samora_label:app`.

MONAI Label answers every error with "Internal Server Error" and logs a traceback of a hundred lines. Here the client
receives `{"detail": "one sentence"}`, and the log holds the same sentence.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path

import requests
import torch
from fastapi import HTTPException, Request
from fastapi.responses import JSONResponse
from monailabel.config import settings
from monailabel.endpoints.user.auth import get_current_user
from monailabel.interfaces.exception import ImageNotFoundException, MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from samora_guard import Guard, Hosts, Refusal
from samora_guard import Request as CheckedRequest
from samora_login import user_of_token
from samora_proxy import complete_proxy
from scoring_end import stop_scoring_with

from samora_monai.checkpoints.files import read_checkpoint
from samora_monai.errors import InputError, MissingFileError, one_line, user_message

__all__ = ["app"]

hosts = Hosts(os.environ.get("SAMORA_LABEL_HOSTS", "").split(","))
# not by the environment: MONAI Label 0.8.5 cannot print what it reads from there, and stops
settings.MONAI_LABEL_CORS_ORIGINS = [
    f"http://{name}:{settings.MONAI_LABEL_SERVER_PORT}" for name in sorted(hosts.names)
]
from monailabel.app import app as monailabel_app  # noqa: E402 - reads the origins when it is imported

logger = logging.getLogger("samora_label")
stop_scoring_with(monailabel_app)
complete_proxy()


@monailabel_app.exception_handler(InputError)
@monailabel_app.exception_handler(MONAILabelException)
async def answer_mistake(request: Request, error: Exception) -> JSONResponse:
    """Answer errors that the client can correct, in an image, label, model or setting: 400 with the reason."""
    image = request.query_params.get("image")
    if image and isinstance(error, MissingFileError):  # MONAI Label gives an unknown image the path ""
        return _answer(request, 404, f"no image {image!r} among the studies; GET /datastore/?output=all lists them")
    reason = error.msg if isinstance(error, MONAILabelException) else str(error)
    return _answer(request, 404 if isinstance(error, ImageNotFoundException) else 400, reason)


@monailabel_app.exception_handler(requests.HTTPError)
async def answer_other_server(request: Request, error: requests.HTTPError) -> JSONResponse:
    """Answer refusals of Keycloak, and of a DICOMweb server."""
    if request.url.path == "/auth/token":
        return _answer(request, 401, "the login is refused; are name and password right?")
    return _answer(request, 502, one_line(error))


@monailabel_app.exception_handler(Exception)
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


def before(request: CheckedRequest) -> None:
    """Complete or refuse what MONAI Label would accept and fail in later."""
    if request.method != "POST" or request.settings is None:
        return
    known = {"train": "trainers", "batch": "models"}.get(request.path.split("/")[1])
    name = request.path.split("/")[-1]
    if known and name and name not in app_instance().info()[known]:
        raise Refusal(404, f"no model {name!r} of the server; GET /info/ lists those that there are")
    if request.path.startswith("/batch/infer") and not torch.cuda.is_available():
        request.settings["multi_gpu"] = False  # true is MONAI Label's default, and divides by the number of GPUs
    if request.path.startswith("/train/"):
        nested = [value for value in request.settings.values() if isinstance(value, dict)]
        if any(float(given.get("val_split", 0.2)) <= 0 for given in (request.settings, *nested)):
            raise Refusal(400, "val_split is 0 or less; a training needs a part of the labelled scans to be validated")
        try:
            labelled = len(app_instance().datastore().get_labeled_images())
        except requests.RequestException as error:
            raise Refusal(502, f"the DICOMweb server does not answer: {one_line(error)}") from error
        if labelled < 2:
            raise Refusal(
                409,
                f"a training needs at least two scans with a label that is tagged 'final', one of them to validate; "
                f"there are {labelled}: label more scans, submit their labels, and start it again",
            )


def admit(headers: dict[str, list[str]]) -> None:
    """Refuse a body of someone without a login before it is read; MONAI Label would read it first."""
    scheme, _, token = headers.get("authorization", [""])[0].partition(" ")
    if scheme.casefold() != "bearer":
        raise Refusal(401, "a login is needed; get a token: POST /auth/token with username and password")
    try:
        user_of_token(token)
    except HTTPException as error:
        raise Refusal(401, str(error.detail)) from error


if settings.MONAI_LABEL_AUTH_ENABLE:
    monailabel_app.dependency_overrides[get_current_user] = user_of_token
app = Guard(
    monailabel_app,
    hosts,
    None if "://" in settings.MONAI_LABEL_STUDIES else Path(settings.MONAI_LABEL_STUDIES),
    int(float(os.environ.get("SAMORA_LABEL_MAX_UPLOAD_GB", "4")) * 1e9),
    hook=before,
    admit=admit if settings.MONAI_LABEL_AUTH_ENABLE else None,
)
