"""MONAI Label's proxy, by which OHIF reaches the DICOMweb server, with what it leaves out of a request.

Differs from MONAI Label in: a search keeps its terms, without which OHIF lists the studies of all patients beside the
one that is open; slices are asked for as they are stored, because OHIF decodes them, and Orthanc cannot transcode JPEG
2000 without its GDCM plugin (Debian 12's crashes Orthanc).
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import monailabel.endpoints.proxy
import requests
from fastapi import Request, Response

AS_STORED = 'multipart/related; type="application/octet-stream"; transfer-syntax=*'


def complete_proxy() -> None:
    """Replace what MONAI Label's proxy calls by these names."""
    without_terms = monailabel.endpoints.proxy.proxy_dicom

    async def proxy_dicom(request: Request, op: str, path: str) -> Response:
        terms = request.url.query
        search = request.method == "GET" and op == "qido" and not path.endswith("metadata")
        return await without_terms(request, op, f"{path}?{terms}" if search and terms else path)

    def get(url: str, headers: dict[str, str], **kwargs: Any) -> requests.Response:
        return requests.get(url, headers=headers | ({"Accept": AS_STORED} if "/frames/" in url else {}), **kwargs)

    monailabel.endpoints.proxy.proxy_dicom = proxy_dicom
    monailabel.endpoints.proxy.requests = SimpleNamespace(get=get, post=requests.post)
