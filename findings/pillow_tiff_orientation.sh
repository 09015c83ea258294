#!/usr/bin/env bash
# pillow 13.0.0: a turned, uncompressed TIFF has other pixels when it is opened by its
# name than when it is opened as a file.
#
# Pictures of cameras and scanners carry an orientation. For a TIFF whose orientation
# exchanges width and height, Pillow turns the pixels when it loads them. Files that are
# opened by their name, and are not compressed, are mapped into memory; the map has the
# width and height of after the turn, while the file has those of before. The lines are
# then cut at the wrong places, without an error or a warning: an image of a folder is
# garbled, and a detector takes it for a defect.
#
# Expected: Image.open(path) and Image.open(file) give the same pixels, whatever the
# orientation, and both are the array that was saved, turned.
#
# Seen: they agree with orientation 1 (as it is) and 3 (upside down), and with
# compression; with orientations 5 to 8, which exchange the sides, and without
# compression, the pixels of the one opened by name are wrong.
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet pillow==13.0.0 numpy==2.4.6
cd "$folder"
"$folder/venv/bin/python" - <<'PY'
import numpy as np
import PIL
from PIL import Image

ORIENTATION = 0x0112
pixels = np.arange(40 * 60, dtype=np.uint32).reshape(40, 60).astype(np.uint8)


def opened(orientation, compression):
    """Return the pixels of a picture opened by its name, and opened as a file."""
    name = f"{orientation}_{compression}.tif"
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    Image.fromarray(pixels).save(name, exif=exif, compression=compression)
    with Image.open(name) as picture:
        by_name = np.asarray(picture)
    with open(name, "rb") as file, Image.open(file) as picture:
        as_file = np.asarray(picture)
    return by_name, as_file


print("pillow", PIL.__version__)
seen = {}
for compression in (None, "tiff_lzw"):
    for orientation in range(1, 9):
        by_name, as_file = opened(orientation, compression)
        assert sorted(as_file.ravel()) == sorted(pixels.ravel())
        equal = by_name.shape == as_file.shape and (by_name == as_file).all()
        seen[compression, orientation] = bool(equal)
        print(f"{compression or 'uncompressed':13s} orientation {orientation}: "
              f"{'equal' if equal else 'not equal'}")
turned = {key for key in seen if key[0] is None and key[1] >= 5}
assert {key for key, equal in seen.items() if not equal} == turned
PY
# Output seen (Python 3.11, x86_64):
#   pillow 13.0.0
#   uncompressed  orientation 1: equal (and 2, 3, 4)
#   uncompressed  orientation 5: not equal (and 6, 7, 8)
#   tiff_lzw      orientation 1: equal (and all others)
