"""MONAI Label's datastores, with files that are complete or not there, and lists that follow each change.

Differs from MONAI Label in: a scan, a label or `datastore_v2.json` is written beside its place and then moved there, so
that a kill leaves the one from before; a change that another process made so is noticed; after a label is stored on a
DICOMweb server, the lists of series are asked for anew; such a server is asked for series as they are stored, because
Orthanc cannot transcode JPEG 2000 without its GDCM plugin, and Debian 12's crashes Orthanc.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import os
import shutil
import time
import uuid
from pathlib import Path
from typing import Any

from filelock import FileLock
from monailabel.datastore.dicom import DICOMWebDatastore
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.datastore.utils.dicom import dicom_web_download_series
from monailabel.interfaces.datastore import DefaultLabelTag
from monailabel.interfaces.exception import ImageNotFoundException

logger = logging.getLogger("samora_label")

UNFINISHED = ".unfinished"  # end of the name, which no list of scans or labels takes


class WholeFilesDatastore(LocalDatastore):  # type: ignore[misc]
    """A folder of scans."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self._auto_reload:
            self._handler.on_moved = self._on_moved

    def _on_moved(self, event: Any) -> None:
        if event.dest_path == self._datastore_config_path:
            self._init_from_datastore_file()  # does nothing after a change of this process

    def _list_files(self, path: str, patterns: Any) -> dict[str, str]:
        """As MONAI Label's, without hidden files and links out of the folder, which the guard refuses."""
        root, found = Path(self._datastore_path).resolve(), super()._list_files(path, patterns)
        outside = [name for name in found if not Path(path, name).resolve().is_relative_to(root)]
        if outside:
            logger.warning("left out %d links out of the folder of studies, as %r", len(outside), outside[0])
        return {name: file for name, file in found.items() if name not in outside and not name.startswith(".")}

    def _update_datastore_file(self, lock: bool = True) -> None:
        with FileLock(self._lock_file) if lock else contextlib.nullcontext():
            content = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
            with _moved_to(Path(self._datastore_config_path)) as unfinished:
                unfinished.write_text(content)
            self._config_ts = os.stat(self._datastore_config_path).st_mtime

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        name, suffix = self._to_id(os.path.basename(image_filename))
        image_id = image_id or name
        logger.info("adding image %r", image_id)
        with FileLock(self._lock_file):
            info = self._store(image_filename, self._datastore.image_path(), image_id, suffix, image_info)
            self._datastore.objects[image_id] = ImageLabelModel(image=DataModel(info=info, ext=suffix))
            self._update_datastore_file(lock=False)
        return str(image_id)

    def save_label(
        self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any], label_id: str = ""
    ) -> str:
        if image_id not in self._datastore.objects:
            raise ImageNotFoundException(
                f"no image {image_id!r} among the studies; GET /datastore/?output=all lists them"
            )
        logger.info("adding label %r of image %r", label_tag, image_id)
        _, suffix = self._to_id(os.path.basename(label_filename))
        with FileLock(self._lock_file):
            info = self._store(label_filename, self._datastore.label_path(label_tag), image_id, suffix, label_info)
            self._datastore.objects[image_id].labels[label_tag] = DataModel(info=info, ext=suffix)
            self._update_datastore_file(lock=False)
        return image_id

    def _store(self, file: str, folder: str, name: str, suffix: str, info: dict[str, Any] | None) -> dict[str, Any]:
        """Copy a file to its place in the folder, and return the notes on it."""
        place = Path(folder, self._filename(name, suffix))
        with _moved_to(place) as unfinished:
            shutil.copyfile(file, unfinished)
        return (info or {}) | {"ts": int(time.time()), "name": place.name}


class FreshDICOMWebDatastore(DICOMWebDatastore, WholeFilesDatastore):  # type: ignore[misc]
    """Series on a DICOMweb server, and copies of them in a folder."""

    def __init__(self, client: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(client, *args, **kwargs)
        client.retrieve_series = functools.partial(client.retrieve_series, media_types=(("application/dicom", "*"),))

    def get_image_uri(self, image_id: str) -> str:
        self._fetch(image_id, self._datastore.image_path())
        return str(super().get_image_uri(image_id))

    def get_label_uri(self, label_id: str, label_tag: str, image_id: str = "") -> str:
        if label_tag == DefaultLabelTag.FINAL and image_id:
            self._fetch(label_id, self._datastore.label_path(label_tag))
        return str(super().get_label_uri(label_id, label_tag, image_id))

    def _fetch(self, series: str, folder: str) -> None:
        """Download a series as a whole; MONAI Label takes whatever files are in its folder."""
        place = Path(folder, series)
        if place.is_dir() and any(place.iterdir()):
            return
        unfinished = place.with_name(f".{uuid.uuid4().hex}{UNFINISHED}")
        try:
            dicom_web_download_series(None, series, str(unfinished), self._client, self._fetch_by_frame)
            shutil.rmtree(place, ignore_errors=True)
            os.replace(unfinished, place)
        except IndexError as error:  # of the list of such series
            raise ImageNotFoundException(f"no series {series!r} on the DICOMweb server") from error
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)

    def save_label(self, *args: Any, **kwargs: Any) -> str:
        label_id = super().save_label(*args, **kwargs)
        self.forget_lists()
        return str(label_id)

    @staticmethod
    def forget_lists() -> None:
        """Ask the server for its series and segmentations when they are next needed."""
        for listed in (DICOMWebDatastore.list_images, DICOMWebDatastore.get_labeled_images):
            listed.cache_clear()


@contextlib.contextmanager
def _moved_to(place: Path) -> Any:
    """Yield a path beside `place`, and move the file to `place` if the body succeeds."""
    place.parent.mkdir(parents=True, exist_ok=True)
    unfinished = place.with_name(f".{uuid.uuid4().hex}{UNFINISHED}")
    try:
        yield unfinished
        os.replace(unfinished, place)
    finally:
        unfinished.unlink(missing_ok=True)
