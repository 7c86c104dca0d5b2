"""A labelled clip on disk, and what the values in the label files of each data set mean."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int64, UInt8
from PIL import ExifTags, Image

from vidseg_core.common import VOID, InputError
from vidseg_core.io.files import read_text
from vidseg_core.io.masks import read_mask
from vidseg_core.io.video import IMAGE_FPS, Clip, open_clip

STRAY = -1
"""Class of a value that the set does not define."""

# SegNet's grouping of CamVid's 32 classes, in the order of its numbers; what is in none of them is void.
CAMVID_11 = {
    "sky": ("Sky",),
    "building": ("Archway", "Bridge", "Building", "Tunnel", "Wall"),
    "pole": ("Column_Pole", "TrafficCone"),
    "road": ("Road", "LaneMkgsDriv", "LaneMkgsNonDriv"),
    "pavement": ("Sidewalk", "ParkingBlock", "RoadShoulder"),
    "tree": ("Tree", "VegetationMisc"),
    "sign": ("SignSymbol", "Misc_Text", "TrafficLight"),
    "fence": ("Fence",),
    "car": ("Car", "SUVPickupTruck", "Truck_Bus", "Train", "OtherMoving"),
    "pedestrian": ("Pedestrian", "Child", "CartLuggagePram", "Animal"),
    "bicyclist": ("Bicyclist", "MotorcycleScooter"),
}

# labelIds of the 19 classes that are evaluated, in the order of their trainIds
CITYSCAPES_IDS = {
    "road": 7, "sidewalk": 8, "building": 11, "wall": 12, "fence": 13, "pole": 17, "traffic light": 19, "traffic sign": 20,
    "vegetation": 21, "terrain": 22, "sky": 23, "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31,
    "motorcycle": 32, "bicycle": 33,
}  # fmt: skip


@dataclass(frozen=True)
class Codes:
    """`table` [n]: the class of each value or, with `colours` [n, RGB], of each colour; 255 is void, -1 a stray value."""

    names: tuple[str, ...]
    table: tuple[int, ...] = field(repr=False)
    colours: tuple[tuple[int, int, int], ...] = field(default=(), repr=False)

    def decode(self, pixels: np.ndarray) -> tuple[Int64[np.ndarray, "H W"], tuple[str, ...]]:
        """Class numbers of what a label file holds, [H, W] values or [H, W, 3] colours; and the strays, taken for void."""
        table = np.array(self.table)
        if self.colours:
            numbers, known = _packed(pixels), _packed(np.array(self.colours))
            order = known.argsort()
            place = order[np.minimum(np.searchsorted(known, numbers, sorter=order), len(known) - 1)]
            labels = np.where(known[place] == numbers, table[place], STRAY)
            strays = tuple(f"#{n:06x}" for n in np.unique(numbers[labels == STRAY]))
        else:
            labels = table[pixels]
            strays = tuple(str(n) for n in np.unique(pixels[labels == STRAY]))
        return np.where(labels == STRAY, VOID, labels).astype(np.int64), strays


@dataclass(frozen=True)
class LabelledClip:
    """A clip of image files; `labels` maps frame numbers, from 0, to label files, and need not have every frame.

    `codes` says what the values in the label files mean. `ends` False: the first and the last frame are not scored (DAVIS).
    """

    name: str
    files: tuple[Path, ...] = field(repr=False)
    labels: dict[int, Path] = field(repr=False)
    codes: Codes = field(repr=False)
    ends: bool = True

    @property
    def num_frames(self) -> int:
        """How many frames there are."""
        return len(self.files)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the first frame, which the others must have."""
        return open_clip(self.files[0]).size

    @property
    def frames(self) -> Clip:
        """The frames, read one at a time."""
        return self.read(0)

    def read(self, start: int) -> Clip:
        """The frames from number `start` on."""
        return Clip(self.files[0].parent, self.size, IMAGE_FPS, range(start, len(self.files)), self.files)

    def read_labels(self, number: int) -> tuple[Int64[np.ndarray, "H W"], tuple[str, ...]]:
        """Class numbers of a frame (255 = void), and the values that mean nothing in this set: they are taken for void.

        Raises InputError if the file is damaged or not of the frame's size, KeyError if the frame has no labels.
        """
        path = self.labels[number]
        labels, strays = self.codes.decode(_pixels(path) if self.codes.colours else read_mask(path))
        with Image.open(self.files[number]) as frame:
            size = frame.size
            if frame.getexif().get(ExifTags.Base.Orientation, 1) > 4:  # lies on its side; frames are read upright
                size = size[::-1]
        if labels.shape[::-1] != size:
            raise InputError(
                f"{path} is {labels.shape[1]}x{labels.shape[0]} pixels, but its frame {self.files[number].name} is "
                f"{size[0]}x{size[1]}. Labels must have their frame's size: take both from the same download"
            )
        return labels, strays

    def truth(self, number: int) -> Int64[np.ndarray, "H W"] | None:
        """Class numbers of a frame, None if it has no labels."""
        return self.read_labels(number)[0] if number in self.labels else None

    def scored(self, number: int) -> bool:
        """Whether a frame's labels count."""
        return self.ends or 0 < number < len(self.files) - 1

    def motion(self, number: int) -> tuple[None, None]:
        """Unknown: see `LabelledArrays.motion`."""
        return None, None

    def part(self, start: int, stop: int) -> "LabelledClip":
        """Frames start..stop-1 as a clip of their own, called NAME@START."""
        labels = {n - start: path for n, path in self.labels.items() if start <= n < stop}
        return replace(self, name=f"{self.name}@{start}", files=self.files[start:stop], labels=labels)


@dataclass(frozen=True)
class LabelledArrays:
    """The same for a clip in memory: uint8 RGB [f, H, W, 3], `labels` [H, W] of some frames; `flow` [f - 1, H, W, 2] in pixels
    and `visible` as in `samples.GeneratedClip`, where the motion is known. `given_only`: frame 0 is not scored."""

    name: str
    images: UInt8[np.ndarray, "f H W 3"] = field(repr=False)
    labels: dict[int, Int64[np.ndarray, "H W"]] = field(repr=False)
    flow: Float32[np.ndarray, "g H W 2"] | None = field(default=None, repr=False)
    visible: Bool[np.ndarray, "g H W"] | None = field(default=None, repr=False)
    given_only: bool = False

    @property
    def num_frames(self) -> int:
        """How many frames there are."""
        return len(self.images)

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the frames."""
        return self.images.shape[1:3]

    def read(self, start: int) -> UInt8[np.ndarray, "_ H W 3"]:
        """The frames from number `start` on."""
        return self.images[start:]

    def read_labels(self, number: int) -> tuple[Int64[np.ndarray, "H W"], tuple[str, ...]]:
        """Class numbers of a frame (255 = void), and no strays."""
        return self.labels[number], ()

    def scored(self, number: int) -> bool:
        """Whether a frame's labels count."""
        return number > 0 or not self.given_only

    def motion(self, number: int) -> tuple[np.ndarray | None, np.ndarray | None]:
        """(flow, visible) from the frame before `number` to it; None where nothing is known or nothing moves."""
        return (None, None) if self.flow is None or not number else (self.flow[number - 1], self.visible[number - 1])

    def part(self, start: int, stop: int) -> "LabelledArrays":
        """Frames start..stop-1 as a clip of their own, called NAME@START."""
        labels = {n - start: mask for n, mask in self.labels.items() if start <= n < stop}
        known = [None if a is None else a[start : stop - 1] for a in (self.flow, self.visible)]
        return LabelledArrays(f"{self.name}@{start}", self.images[start:stop], labels, *known, self.given_only)


AnyClip = LabelledClip | LabelledArrays


@dataclass(frozen=True)
class Dataset:
    """Clips with the same classes. `official_vc`: mVC as VSPW's evaluator computes it. `protocol`: how clusters get names
    unless one asks for another way (`scoring.PROTOCOLS`). `objects`: J and F as DAVIS has them, of each clip's classes 1 and
    on."""

    name: str
    classes: tuple[str, ...]
    clips: tuple[AnyClip, ...] = field(repr=False)
    official_vc: bool = False
    protocol: str = "first"
    objects: bool = False

    def select(self, names: list[str]) -> "Dataset":
        """The clips of these names. Raises InputError for a name that no clip has."""
        known = [clip.name for clip in self.clips]
        if unknown := sorted(set(names) - set(known)):
            raise InputError(f"no clip {unknown[0]!r}; there are {', '.join(known)}")
        return replace(self, clips=tuple(clip for clip in self.clips if clip.name in names))

    def restart(self, window: int) -> "Dataset":
        """Every `window` frames as a clip of its own."""
        parts = [clip.part(n, n + window) for clip in self.clips for n in range(0, clip.num_frames, window)]
        return replace(self, clips=tuple(p for p in parts if p.labels))


def _pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def _packed(colours: np.ndarray) -> np.ndarray:
    return (colours.astype(np.int64) * (65536, 256, 1)).sum(-1)


def _codes(names: tuple[str, ...], values: dict[int, int]) -> Codes:
    """From the values that are defined; the others are stray."""
    return Codes(names, tuple(values.get(v, STRAY) for v in range(256)))


def identity_codes(count: int, names: dict[int, str] | None = None) -> Codes:
    """Values are class numbers 0..count-1; 255 is void."""
    called = tuple((names or {}).get(n, f"class {n}") for n in range(count))
    return _codes(called, {**{n: n for n in range(count)}, VOID: VOID})


def object_codes(count: int) -> Codes:
    """DAVIS 2017: 0 is the ground, 1..count are objects, 255 is void."""
    return identity_codes(count + 1, {0: "ground", **{n: f"object {n}" for n in range(1, count + 1)}})


def camvid_codes(path: Path, classes: int) -> tuple[Codes, tuple[str, ...]]:
    """CamVid's label_colors.txt, lines of R G B and a name: codes for SegNet's 11 classes or all 32, in the file's order."""
    rows = [line.split() for line in read_text(path).splitlines() if line.strip()]
    if any(len(row) != 4 for row in rows):
        raise InputError(f"{path} is not CamVid's: expected lines of three numbers and a name, such as '64 128 64 Animal'")
    colours, names = tuple(tuple(int(v) for v in row[:3]) for row in rows), tuple(row[3] for row in rows)
    if classes == len(names):
        table = tuple(VOID if name == "Void" else n for n, name in enumerate(names))
        return Codes(names, table, colours), names
    owner = {member: n for n, members in enumerate(CAMVID_11.values()) for member in members}
    return Codes(tuple(CAMVID_11), tuple(owner.get(name, VOID) for name in names), colours), tuple(CAMVID_11)


SEGNET = _codes(tuple(CAMVID_11), {**{n: n for n in range(11)}, 11: VOID, VOID: VOID})
CITYSCAPES = _codes(
    tuple(CITYSCAPES_IDS),
    {**dict.fromkeys([*range(34), VOID], VOID), **{value: n for n, value in enumerate(CITYSCAPES_IDS.values())}},
)
VSPW = _codes(tuple(f"class {n}" for n in range(1, 125)), {0: VOID, VOID: VOID, **{n: n - 1 for n in range(1, 125)}})
DAVIS = _codes(("ground", "object"), {0: 0, **dict.fromkeys(range(1, 256), 1)})
