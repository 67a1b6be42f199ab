"""Reading NIfTI files to their end, so that damage is noticed."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
from monai.data import NibabelReader

from samora_monai.errors import InputError, one_line

_CHUNK = 1 << 20  # bytes


class NiftiReader(NibabelReader):
    """`NibabelReader` that checks the CRC of a gzip file and refuses complex values.

    nibabel stops reading after the last voxel, before the CRC at the end of the file. This reader continues to the end
    of the stream, where gzip compares the CRC that it has computed anyway.
    """

    def _get_array_data(self, img, filename):
        """Return the voxels; raise an `InputError` if the file is damaged or its values are complex numbers."""
        if str(filename).lower().endswith(".gz"):
            try:
                with gzip.open(filename) as stream:
                    array = np.asanyarray(type(img).from_stream(stream).dataobj)
                    while stream.read(_CHUNK):
                        pass
            except (gzip.BadGzipFile, zlib.error, EOFError) as error:
                raise InputError(
                    f"cannot read '{filename}': the file is damaged ({one_line(error)}); copy it again"
                ) from error
        else:
            array = super()._get_array_data(img, filename)
        if np.iscomplexobj(array):
            raise InputError(
                f"'{filename}' holds values of type {array.dtype}, expected real numbers; save the magnitude"
            )
        return array
