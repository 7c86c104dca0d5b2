"""Cut the sample clips out of OpenCV's documentation package and rasterise the hand-drawn masks.

    python scripts/make_clips.py PATH_TO_EXTRACTED_PACKAGE    clips and masks
    python scripts/make_clips.py --masks-only                 masks from data/clips/*.polygons.json

The package is Debian's opencv-doc 4.6.0 (`apt-get download opencv-doc`, then `dpkg-deb -x opencv-doc_*.deb FOLDER`).
"""

import argparse
import gzip
import io
import json
import os
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image, ImageColor

CLIPS = Path(__file__).resolve().parents[1] / "data" / "clips"
START = {"cup": 40, "box": 236}  # first source frame: every class is in view there, and the object moves and turns after it
NUM_FRAMES = 60  # two seconds and a bit
SIZE = (320, 240)  # half the original's width and height
CRF = 10  # below visibility (46 dB in luma against the scaled source), and the files stay far below 1 MB
PALETTE = ["#303030", "#e6550d", "#3182bd", "#31a354"]


def read_clip(source: Path) -> tuple[list[av.VideoFrame], Fraction]:
    """The excerpt's decoded frames, and the frame rate."""
    start = START[source.name.split(".")[0]]
    with av.open(io.BytesIO(gzip.decompress(source.read_bytes()))) as container:
        stream = container.streams.video[0]
        rate = Fraction(stream.average_rate).limit_denominator(1001)
        frames = [frame for i, frame in enumerate(container.decode(stream)) if start <= i < start + NUM_FRAMES]
    if len(frames) < NUM_FRAMES:
        raise ValueError(f"{source} has fewer than {start + NUM_FRAMES} frames; is this opencv-doc 4.6.0?")
    return frames, rate


def write_clip(frames: list[av.VideoFrame], rate: Fraction, target: Path, crf: int = CRF) -> None:
    """Scale to SIZE and encode as H.264, with the index at the front so that a browser starts at once."""
    partial = target.with_suffix(".partial.mp4")
    with av.open(str(partial), "w", options={"movflags": "+faststart"}) as container:
        # x264's assembly gives other bytes on every run, its C code does not; for sixty small frames it is fast enough.
        options = {"crf": str(crf), "preset": "veryslow", "x264-params": "no-asm=1"}
        stream = container.add_stream("libx264", rate=rate, options=options)
        stream.width, stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        stream.codec_context.thread_count = 1  # the bytes must not depend on the machine's cores
        for i, frame in enumerate(frames):
            small = frame.reformat(*SIZE, format="yuv420p", interpolation="AREA")
            small.pts, small.time_base = i, 1 / rate
            small.pict_type = av.video.frame.PictureType.NONE  # let the encoder choose, not the source's I and P
            container.mux(stream.encode(small))
        container.mux(stream.encode())
    os.replace(partial, target)


def inside(polygon: list[list[float]], width: int, height: int) -> np.ndarray:
    """Bool [height, width]: which pixels' centres are inside the polygon (even-odd rule).

    Coordinates are (x, y) in pixels; pixel (0, 0) covers the square from (0, 0) to (1, 1), so its centre is (0.5, 0.5).
    """
    y, x = np.mgrid[:height, :width] + 0.5
    result = np.zeros((height, width), bool)
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if y0 != y1:
            crosses = (y0 <= y) != (y1 <= y)
            result ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return result


def rasterise(drawing: dict, frame: int) -> np.ndarray:
    """Uint8 [H, W] class numbers of one frame of a polygons file: its polygons in drawing order over class 0."""
    width, height = drawing["size"]
    number = {name: int(key) for key, name in drawing["names"].items()} | {"void": 255}
    mask = np.zeros((height, width), np.uint8)
    for name, polygon in drawing["frames"][str(frame)]:
        mask[inside(polygon, width, height)] = number[name]
    return mask


def write_masks(polygons: Path, target: Path) -> None:
    """Palette PNGs `masks/00000.png` and `names.json` in the folder `target`."""
    drawing = json.loads(polygons.read_text())
    (target / "masks").mkdir(parents=True, exist_ok=True)
    colours = [ImageColor.getrgb(PALETTE[i]) for i in range(len(drawing["names"]))]
    palette = np.zeros((256, 3), np.uint8)
    palette[: len(colours)] = colours
    palette[255] = 255  # void is white
    for frame in drawing["frames"]:
        image = Image.fromarray(rasterise(drawing, int(frame)), "P")
        image.putpalette(palette.tobytes())
        image.save(target / "masks" / f"{int(frame):05d}.png", optimize=True)
    (target / "names.json").write_text(json.dumps(drawing["names"], indent=2) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("package", type=Path, nargs="?", help="folder that opencv-doc was extracted to")
    parser.add_argument("--masks-only", action="store_true", help="only rasterise the polygons")
    arguments = parser.parse_args()
    if arguments.package is None and not arguments.masks_only:
        parser.error("name the folder that opencv-doc was extracted to, or give --masks-only")
    CLIPS.mkdir(parents=True, exist_ok=True)
    for name in START:
        if not arguments.masks_only:
            found = sorted(arguments.package.rglob(f"{name}.mp4.gz"))
            if not found:
                parser.error(f"no {name}.mp4.gz below {arguments.package}; extract opencv-doc there with dpkg-deb -x")
            write_clip(*read_clip(found[0]), CLIPS / f"{name}.mp4")
        polygons = CLIPS / f"{name}.polygons.json"
        if polygons.exists():
            write_masks(polygons, CLIPS / name)


if __name__ == "__main__":
    main()
