"""Small copies of test images for a page that stands alone."""

import base64
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

from xrvlm.data import SPLIT_FIX, ImageSource
from xrvlm.errors import UserError
from xrvlm.files import read_json, sha256
from xrvlm.images import decode

SIDE = 128                               # pixels of a copy's longer side
MOST_BYTES = 5_000_000                   # of all copies of a page


class Album:
    """Reads the test images of runs through `source_of`, which finds the images of a run's folder.

    `source_of` may raise UserError where they are not to be had; None: no photos are wanted.
    """

    def __init__(self, source_of: Callable[[Path], ImageSource] | None, *, most_bytes: int = MOST_BYTES):
        self.source_of, self.left = source_of, most_bytes
        self._copies: dict[str, str] = {}                # by the hash of the image file
        self._folder: Path | None = None                 # whose source and hashes are at hand

    def photo(self, folder: Path, image: str) -> str:
        """The image as a data URI; UserError, which says why, where there is none."""
        if self.source_of is None:
            raise UserError("photos were not asked for")
        if folder != self._folder:
            self._source = self.source_of(folder)
            record = read_json(folder / "split.json", SPLIT_FIX)
            self._hashes = {entry["path"]: entry["sha256"] for entry in record["test"]}
            self._folder = folder
        if (expected := self._hashes.get(image)) is None:
            raise UserError(f"{image} is not among the test images of the run's split.json")
        if expected not in self._copies:
            data = self._source.read(image)
            if sha256(data) != expected:
                raise UserError(f"{image} is no longer the image that the run was tested on")
            self._copies[expected] = self._copy(data, image)
        return self._copies[expected]

    def _copy(self, data: bytes, image: str) -> str:
        photo, file = decode(data, image), BytesIO()
        photo.thumbnail((SIDE, SIDE))
        photo.save(file, "JPEG", quality=80)
        if (size := file.tell()) > self.left:
            raise UserError("the page holds as many photos as it may")
        self.left -= size
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
