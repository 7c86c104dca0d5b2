"""The README's moving picture: a clip and its overlay side by side, as a small animated WebP (`make figures` runs it).

python scripts/animate_overlay.py CLIP OVERLAY PICTURE
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from vidseg_core import read_frames
from vidseg_core.io.files import replacing

STRIDE = 3
"""Frames from one picture to the next: the file is a third as large, and the motion is still smooth enough."""
MILLISECONDS = 110
QUALITY = 55


def animate(clip: Path, overlay: Path, picture: Path) -> None:
    """Write `picture` from two videos of equal size and length."""
    pairs = zip(read_frames(clip, stride=STRIDE), read_frames(overlay, stride=STRIDE), strict=True)
    images = [Image.fromarray(np.concatenate(pair, axis=1)) for pair in pairs]
    how = {"save_all": True, "append_images": images[1:], "duration": MILLISECONDS, "loop": 0}
    with replacing(picture) as partial:
        images[0].save(partial, format="WEBP", quality=QUALITY, method=6, **how)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("clip", "overlay", "picture"):
        parser.add_argument(name, type=Path)
    animate(**vars(parser.parse_args()))
