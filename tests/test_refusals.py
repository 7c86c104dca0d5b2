"""Bad inputs at the door of the command line: each ends with status 2 and one sentence that says what is wrong and what to do,
before a model is loaded, and leaves every file as it was."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vidseg_core import generated_clip
from vidseg_core.cli import main
from vidseg_core.io.masks import write_mask
from vidseg_core.io.overlay import encode_video

SIZE = (48, 64)
NOISE = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


RAMP = np.repeat(np.array([0, 60, 130, 200, 255], np.uint8), [30, 1, 1, 1, 31])


def image(path, values=NOISE, **how):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.asarray(values)).save(path, **how)


def clips(here, frames):
    encode_video(np.repeat(frames, 8, axis=0), 25, here / "clip.mp4")
    content = (here / "clip.mp4").read_bytes()
    (here / "cut.mp4").write_bytes(content[: len(content) * 6 // 10])
    (here / "headless.mp4").write_bytes(content[:40] + content[-40:])
    for name in ("frames", "sizes", "broken", "deep", "label set/frames", "label set/labels"):
        for n, frame in enumerate(frames):
            image(here / name / f"{n}.png", frame if "labels" not in name else (frame[..., 0] > 99).astype(np.uint8))
    image(here / "sizes" / "3.png", frames[0][:40])
    (here / "broken" / "3.png").write_bytes((here / "frames" / "3.png").read_bytes()[:200])
    image(here / "deep" / "3.png", np.zeros(SIZE, np.float32), format="TIFF")
    (here / "empty").mkdir()
    (here / "texts").mkdir()
    (here / "texts" / "a.txt").write_text("no image")
    (here / "text.mp4").write_text("not a video")
    (here / "nothing.mp4").write_bytes(b"")
    first, *others = [Image.fromarray(frame) for frame in frames]
    first.save(here / "pages.tiff", save_all=True, append_images=others)


def masks(here):
    image(here / "colours.png")
    image(here / "high.png", np.full(SIZE, 300, np.uint16))
    image(here / "photo.jpg")
    image(here / "soft.png", np.tile(RAMP, (SIZE[0], 1)))
    write_mask(here / "lying.png", np.zeros(SIZE[::-1], int))
    write_mask(here / "small.png", np.arange(6).reshape(2, 3))
    inside = np.arange(SIZE[1]) < 9
    image(here / "layer.png", np.dstack([np.zeros(SIZE, np.uint8), np.tile(inside.astype(np.uint8) * 255, (SIZE[0], 1))]))
    Image.fromarray(np.tile(inside, (SIZE[0], 1))).save(here / "two.tiff", save_all=True, append_images=[Image.new("1", SIZE)])
    for name, palette in (("red", "000000ff0000"), ("black", "ff0000000000")):
        drawn = Image.fromarray(np.tile(inside.astype(np.uint8), (SIZE[0], 1)))
        drawn.putpalette(bytes.fromhex(palette))
        drawn.save(here / f"{name}.png")
    write_mask(here / "mask.png", np.arange(SIZE[0] * SIZE[1]).reshape(SIZE) % 3)


SQUARE = [[4, 2], [12, 2], [12, 9], [4, 9]]
LABELME = {"imageHeight": SIZE[0], "imageWidth": SIZE[1]}
COCO = {
    "images": [{"id": 1, "file_name": "0.jpg", "height": SIZE[0], "width": SIZE[1]}],
    "categories": [{"id": 1, "name": "a"}],
}


def shape(points, label="cup", kind="polygon"):
    return {**LABELME, "shapes": [{"label": label, "points": points, "shape_type": kind}]}


def annotation(segmentation):
    return {**COCO, "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "segmentation": segmentation}]}


OUTLINES = {
    "list": ([1], ["no outlines", "labelme"]),
    "deep": (None, ["cannot be read", "labelme"]),
    "map": ({"type": "FeatureCollection", "features": []}, ["no outlines", "labelme"]),
    "line": (shape(SQUARE, kind="line"), ["a line of 4 points", "polygons"]),
    "empty": ({**LABELME, "shapes": []}, ["draws nothing", "outline"]),
    "nowhere": (shape([[1, float("nan")], [5, 5], [5, 9]]), ["damaged", "nan"]),
    "outside": (shape([[99, 99], [105, 99], [105, 109]]), ["'cup'", "outside", "64x48"]),
    "unnamed": (shape(SQUARE, label=" "), ["without a label"]),
    "huge": ({**shape(SQUARE), "imageHeight": 10**9}, ["damaged", "1000000000"]),
    "small": ({**shape(SQUARE), "imageHeight": 24, "imageWidth": 32}, ["32x24", "64x48", "draw it on a frame"]),
    "boxes": (annotation([]), ["without an outline", "boxes"]),
    "flat": (annotation([4, 2, 12, 2, 12, 9]), ["damaged", "COCO"]),
    "short": (annotation([[4, 2, 12, 2]]), ["outline of 2 points"]),
    "runs": (annotation({"size": SIZE, "counts": [5, 9]}), ["damaged", "14 pixels"]),
    "twins": (
        {**COCO, "images": [{"id": n, "file_name": f"{n}/0.jpg"} for n in (1, 2)], "annotations": []},
        ["2 images named"],
    ),
}
NAMES = {
    "cut.json": '{"0": "wall"', "words.json": "wall\ncup", "objects.json": '[{"id": 0}]', "turned.json": '{"wall": 0}',
    "null.json": '{"0": null}', "minus.json": '{"-1": "wall"}', "twice.json": '{"0": "wall", "0": "cup"}',
    "list.txt": "0: wall\n1: cup", "table.csv": "id,name\n0,wall\n1,cup",
}  # fmt: skip
SETTINGS = {
    "list": [1], "number": 3, "stage": {"context": 5}, "field": {"context": {"neighbors": 4}}, "top": {"windows": 3},
    "seed": {"seed": -1}, "window": {"window": 0}, "share": {"upsample": {"peak": 2}},
    "scales": {"features": {"scales": []}}, "step": {"paper": {"start_step": 99}}, "memory": {"context": {"max_context": 10}},
    "temperature": {"refine": {"temperature": 0}}, "kind": {"seed": 1.0}, "words": {"features": {"blocks": "up"}},
}  # fmt: skip


def folders(here):
    (here / "file").write_text("years")
    for name in ("run", "notes", "theirs", "evaluation", "damaged", ".taken.unfinished"):
        (here / name).mkdir()
    for name in ("run", "notes"):
        (here / name / "run.json").write_text("{}")
        (here / name / "overlay.mp4").write_text("precious")
    for name in ("notes", "theirs", ".taken.unfinished"):
        (here / name / "thesis.tex").write_text("years")
    (here / "evaluation" / "run.json").write_text('{"dataset": "another"}')
    (here / "damaged" / "run.json").write_text('{"dataset": ')
    image(here / "run" / "masks" / "00000.png", np.zeros(SIZE, np.uint8))
    image(here / "run" / "contact_sheet.png")
    (here / "circle").symlink_to("ring")
    (here / "ring").symlink_to("circle")
    (here / ".half.unfinished").mkdir()
    (here / ".half.unfinished" / ".state.npz").write_bytes(b"half a file")


def tables(here):
    for name, text in LISTS.items():
        (here / f"{name}.csv").write_text(text)
    header = "clip,folder,frames,size,segments,seconds,status,error"
    image(here / "tables" / "here" / "frames" / "0.png")
    (here / "tables" / "here" / "index.csv").write_text(f"{header}\n/a.mp4,a,,,,,open,\n/b.mp4,b,,,,,open,\n")
    (here / "tables" / "other").mkdir()
    (here / "tables" / "other" / "index.csv").write_text("name,price\ncup,3\n")


def sets(here):
    for name in ("unlabelled", "alone", "named", "jpeg"):
        image(here / name / "frames" / "0.png")
        (here / name / "labels").mkdir()
    image(here / "alone" / "labels" / "1.png", np.zeros(SIZE, np.uint8))
    image(here / "named" / "labels" / "0.png", np.zeros(SIZE, np.uint8))
    (here / "named" / "names.json").write_text("wall\ncup")
    for name in ("void", "soft", "two frames", "two labels"):
        image(here / name / "frames" / "0.png")
        image(here / name / "labels" / "0.png", np.full(SIZE, 255, np.uint8))
    image(here / "soft" / "labels" / "0.png", np.tile(RAMP, (SIZE[0], 1)))
    image(here / "two frames" / "frames" / "0.jpg")
    image(here / "two labels" / "labels" / "0.bmp", np.zeros(SIZE, np.uint8))
    image(here / "jpeg" / "labels" / "0.jpg", np.zeros(SIZE, np.uint8))
    (here / "vspw").mkdir()
    (here / "vspw" / "val.txt").write_text("zebra\n")
    (here / "colourless" / "701_StillsRaw_full").mkdir(parents=True)
    (here / "colourless" / "label_colors.txt").write_text("64 128 64\n")
    image(here / "colourless" / "701_StillsRaw_full" / "0001TP_1.png")
    image(here / "colourless" / "LabeledApproved_full" / "0001TP_1_L.png")
    image(here / "city" / "gtFine" / "val" / "ulm" / "ulm_000000_000019_gtFine_labelIds.png", np.zeros(SIZE, np.uint8))


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """A folder with all that the rows of the table name."""
    here = tmp_path_factory.mktemp("refusals") / "here"
    here.mkdir()
    clips(here, generated_clip(num_frames=6, size=SIZE).frames)
    masks(here)
    folders(here)
    sets(here)
    tables(here)
    for name, (data, _) in OUTLINES.items():
        (here / f"outlines-{name}.json").write_text(json.dumps(data) if data else "[" * 10**6)
    for name, text in NAMES.items():
        (here / f"names-{name}").write_text(text)
    (here / "names.txt").write_bytes("Tässe".encode("latin-1"))
    for name, settings in SETTINGS.items():
        (here / f"settings-{name}.json").write_text(json.dumps(settings))
    (here / "settings-cut.json").write_text('{"seed": ')
    return here


SEGMENT = {
    # clips
    "gone.mp4": ["gone.mp4", "does not exist"],
    "clip.mp5": ["Did you mean clip.mp4"],
    "gone/0.png": ["does not exist"],
    "'gone/*.png'": ["gone/*.png matches no file"],
    "empty": ["empty", "holds no images"],
    "texts": ["a.txt", "png"],
    "sizes": ["3.png", "64x40", "64x48", "resize"],
    "broken": ["3.png", "Replace it"],
    "deep": ["3.png", "32 bits", "8 or 16"],
    "pages.tiff": ["6 images", "file of its own"],
    "text.mp4": ["text.mp4", "Expected mp4"],
    "nothing.mp4": ["nothing.mp4", "Expected mp4"],
    "texts/a.txt": ["a.txt", "Expected mp4"],
    "cut.mp4": ["cut.mp4", "of 48", "--frames"],
    "headless.mp4": ["headless.mp4", "Expected mp4"],
    "''": ["CLIP is empty"],
    "circle": ["circle leads to itself", "another CLIP"],
    "run": ["run is what a run left", "not a clip"],
    "run/masks": ["run/masks is what a run left", "not a clip"],
    "'run/*/*.png'": ["what a run left", "not a clip"],
    # which frames
    "frames --frames 5": ["'5'", "START:STOP"],
    "frames --frames a:b": ["'a:b'", "START:STOP"],
    "frames --frames=-3:": ["'-3:'", "START:STOP"],
    "frames --frames 1:2:3": ["'1:2:3'", "START:STOP"],
    "frames --frames 50:60": ["50:60", "6 frames", "0:6"],
    f"frames --frames {10**30}:": ["selects nothing", "6 frames"],
    f"clip.mp4 --frames 60:{10**30}": ["60:", "48 frames", "0:48"],
    "frames --frames 3:3": ["3:3", "6 frames"],
    "frames --frames 4:2": ["4:2", "6 frames"],
    "frames --stride 0": ["stride=0", "from 1"],
    "frames --stride=-2": ["stride=-2", "from 1"],
    # options
    "frames --size big": ["'big'", "WIDTHxHEIGHT"],
    "frames --size 320": ["'320'", "WIDTHxHEIGHT"],
    "frames --size=-64x64": ["'-64x64'", "WIDTHxHEIGHT"],
    "frames --clusters 0": ["num_clusters is 0", "1 or more"],
    "frames --clusters 300": ["300", "255"],
    "frames --segments 0": ["num_segments is 0", "1 or more"],
    "frames --segments 30": ["30", "20", "fewer"],
    "frames --window 0": ["window is 0", "1 or more"],
    "frames --seed=-1": ["seed is -1", "2**63"],
    "frames --seed 99999999999999999999": ["seed", "2**63"],
    "frames --model sd3": ["sd3", "tiny", "sd21-base"],
    "frames --model empty": ["empty"],
    "frames --reference --settings run/run.json": ["give one of them"],
    "frames --model ''": ["--model is empty"],
    "frames --settings ''": ["--settings is empty"],
    "frames --out ' '": ["--out is empty"],
    # masks
    "frames --first-mask ''": ["--first-mask is empty"],
    "frames --first-mask gone.png": ["gone.png", "palette or grey PNG"],
    "frames --first-mask file": ["file", "palette or grey PNG"],
    "frames --first-mask frames": ["frames", "palette or grey PNG"],
    "frames --first-mask colours.png": ["colours.png", "as colours", "palette or grey PNG"],
    "frames --first-mask high.png": ["300", "0 to 254"],
    "frames --first-mask photo.jpg": ["JPEG", "palette or grey PNG"],
    "frames --first-mask soft.png": ["soft edges", "0, 60, 130, 200, 255", "smoothing"],
    "frames --first-mask small.png": ["small.png is 3x2", "64x48", "resize"],
    "frames --first-mask lying.png": ["lying.png is 48x64", "64x48", "turn it"],
    "frames --mask 5=small.png": ["small.png is 3x2", "64x48", "resize"],
    "frames --first-mask layer.png": ["layer.png", "transparency", "palette or grey PNG"],
    "frames --first-mask two.tiff": ["two.tiff holds 2 images", "file of its own"],
    "frames --first-mask red.png --mask 3=black.png": ["#ff0000 is class 1", "red.png", "black.png", "one palette"],
    "frames --mask 6=mask.png": ["--mask 6=mask.png", "6 frames", "0 to 5"],
    "frames --mask mask.png": ["'mask.png'", "FRAME=FILE"],
    "frames --mask=-1=mask.png": ["'-1=mask.png'", "FRAME=FILE"],
    "frames --mask 3=mask.png --mask 03=red.png": ["second mask of frame 3", "give one"],
    "frames --first-mask mask.png --mask 0=red.png": ["second mask of frame 0", "--first-mask", "give one"],
    "frames --mask 3=": ["'3='", "FRAME=FILE"],
    # outlines
    **{f"frames --first-mask outlines-{name}.json": [f"outlines-{name}.json", *said] for name, (_, said) in OUTLINES.items()},
    # names
    "frames --names gone.txt": ["gone.txt", "a name a line"],
    "frames --names frames": ["frames", "a name a line"],
    "frames --names names.txt": ["names.txt", "a name a line"],
    "frames --names photo.jpg": ["photo.jpg", "a name a line"],
    **{f"frames --names names-{name}": [f"names-{name}", "Expected JSON"] for name in NAMES},
    # settings
    "frames --settings gone.json": ["gone.json", "run.json"],
    "frames --settings settings-cut.json": ["settings-cut.json", "run.json"],
    "frames --settings settings-list.json": ["Settings", "object"],
    "frames --settings settings-number.json": ["Settings", "object"],
    "frames --settings settings-stage.json": ["ContextSettings", "5"],
    "frames --settings settings-field.json": ["neighbors", "neighbours"],
    "frames --settings settings-top.json": ["windows", "window"],
    "frames --settings settings-seed.json": ["seed is -1", "0 or more"],
    "frames --settings settings-window.json": ["window is 0", "1 or more"],
    "frames --settings settings-share.json": ["upsample.peak is 2", "between 0 and 1"],
    "frames --settings settings-scales.json": ["features.scales", "such as"],
    "frames --settings settings-step.json": ["start_step is 99", "0..24"],
    "frames --settings settings-memory.json": ["max_context is 10", "must fit"],
    "frames --settings settings-temperature.json": ["temperature is 0", "more than 0"],
    "frames --settings settings-kind.json": ["seed is 1.0", "whole number"],
    "frames --settings settings-words.json": ["features.blocks is 'up'", "list of texts"],
    # where to
    "frames --out run": ["run exists", "--overwrite"],
    "frames --out file": ["file is a file", "--out"],
    "frames --out file/below": ["--out"],
    "frames --out theirs": ["theirs", "no run.json", "--out"],
    "frames --out theirs --overwrite": ["theirs", "no run.json", "--out"],
    "frames --out notes --overwrite": ["thesis.tex", "no run wrote", "--out"],
    "frames --out evaluation": ["evaluation exists", "--out"],
    "frames --out . --overwrite": ["--out"],
    "frames --out .. --overwrite": ["--out"],
    "frames --out / --overwrite": ["--out"],
    "frames --out circle": ["circle leads to itself", "another --out"],
    f"frames --out {'n' * 240}": ["too long a name", "--out"],
    f"frames --out {'n' * 300}": ["too long a name", "--out"],
    "frames --out taken": [".taken.unfinished", "in the way"],
    "frames --out half --resume": [".half.unfinished", "start anew"],
    "frames --out half": [".half.unfinished", "start anew"],
    "run/masks --out run --overwrite": ["lies in run", "another --out"],
    "frames --out run --overwrite --first-mask run/masks/00000.png": ["lies in run", "another --out"],
    "frames --out run --overwrite --settings run/run.json": ["lies in run", "another --out"],
}
MANY = {
    "": ["what to segment", "CLIP", "--list FILE"],
    "frames --list list.csv": ["what to segment", "--list FILE"],
    "frames run/masks": ["2 clips need a folder", "--out DIR"],
    "frames/0.png frames/1.png --out new": ["images of one folder", "in quotes: 'frames/*.png'", "--list"],
    "--list gone.csv": ["gone.csv", "a clip a line"],
    "--list file --frames 5": ["'5'", "START:STOP"],
    "--list names.txt": ["names.txt", "UTF-8"],
    "--list list-columns.csv": ["list-columns.csv", "'mask'", "first_mask"],
    "--list list-twice.csv": ["line 3", "line 2", "once"],
    "--list list-long.csv": ["line 1", "4 values", "double quotes"],
    "--list list-quote.csv": ["line 2", "no CSV"],
    "--list list-empty.csv": ["list-empty.csv", "lists no clip"],
    "--list list.csv --first-mask mask.png": ["--first-mask", "--list"],
    "--list list.csv --mask 3=mask.png": ["--mask", "--list"],
    "--list list.csv --model sd3": ["sd3", "tiny"],
    "--list list.csv --clusters 300": ["300", "255"],
    "--list list.csv --workers=-1": ["-1 workers", "1 or more"],
    "--list list.csv --workers 2 --scheduler tcp://here:1": ["--workers and --scheduler", "one of them"],
    "--list list.csv --threads 0": ["--threads 0", "1 or more"],
    "frames empty --out run": ["run is not empty", "another --out"],
    "frames empty --out file": ["file is a file", "another --out"],
    "frames empty --out file/below": ["file/below", "another --out"],
    "frames empty --out tables/here": ["2 clips", "--resume", "--overwrite", "another --out"],
    "frames empty --out tables/other --resume": ["index.csv", "no table of clips", "another --out"],
    "tables/here/frames empty --out tables/here --overwrite": ["lies in", "another --out"],
}
"""Several clips."""
LISTS = {
    "list": "clip\nframes\ncut.mp4\n", "list-columns": "clip,mask\nframes,mask.png\n", "list-twice": "clip\nframes\n./frames\n",
    "list-long": "frames,1,2,3\n", "list-quote": 'frames\n"cut.mp4\n', "list-empty": "clip,names\n",
}  # fmt: skip
EVALUATE = {
    "kitti": ["'kitti'", "camvid", "generated"],
    "folder": ["Give its folder as --root"],
    "folder --root gone": ["gone is not a folder", "Get it"],
    "folder --root file": ["file is not a folder", "Get it"],
    "folder --root empty": ["no clips of folder", "frames/ and labels/"],
    "folder --root unlabelled": ["no labels for any of its 1 frames"],
    "folder --root alone": ["1.png is a label without a frame", "equal names"],
    "folder --root jpeg": ["0.jpg is a JPEG", "palette or grey PNG"],
    "folder --root named": ["names.json", "Expected JSON"],
    "folder --root void": ["labels in void", "255", "0, 1, 2"],
    "folder --root soft": ["soft/labels/0.png", "soft edges"],
    "folder --root 'two frames'": ["frames holds both 0.jpg and 0.png", "keep one"],
    "folder --root 'two labels'": ["labels holds both 0.bmp and 0.png", "keep one"],
    "folder --root ''": ["--root is empty"],
    "folder --root 'label set' --clips ''": ["no clip ''", "label set"],
    "vspw --root empty": ["val.txt is missing", "Get it"],
    "vspw --root vspw": ["zebra", "is missing"],
    "davis --root empty": ["val.txt is missing", "Get it"],
    "camvid32 --root empty": ["label_colors.txt", "Get it"],
    "camvid --root colourless": ["label_colors.txt", "three numbers and a name"],
    "cityscapes --root city": ["30 of the 30 frames", "ulm_000000_000019"],
    "folder --root 'label set' --clips zebra": ["'zebra'", "label set"],
    "folder --root 'label set' --method magic": ["'magic'", "vidseg"],
    "folder --root 'label set' --model sd3": ["sd3", "tiny"],
    "folder --root 'label set' --segments 30": ["30", "20"],
    "folder --root 'label set' --clusters 0": ["num_clusters is 0"],
    "folder --root 'label set' --settings settings-list.json": ["Settings", "object"],
    "folder --root 'label set' --out theirs": ["theirs is not empty", "another --out"],
    "folder --root 'label set' --out file": ["file", "--out"],
    "folder --root 'label set' --out evaluation": ["another evaluation", "another --out"],
    "folder --root 'label set' --out damaged": ["damaged", "another --out"],
    "folder --root 'label set' --out run": ["another evaluation", "another --out"],
}  # fmt: skip
TABLE = {f"segment {words}": said for words, said in (SEGMENT | MANY).items()}
TABLE |= {f"evaluate --dataset {words}": said for words, said in EVALUATE.items()}


def contents(folder: Path) -> dict[str, bytes | None]:
    """All that is in a folder, and beside it."""
    return {str(path): path.read_bytes() if path.is_file() else None for path in folder.parent.rglob("*")}


def test_the_table_is_long_enough():
    assert len(TABLE) >= 100


@pytest.mark.parametrize("command", TABLE)
def test_bad_input_gets_a_sentence(here, monkeypatch, capsys, command):
    monkeypatch.chdir(here)
    monkeypatch.setattr("vidseg_core.models.loading.load_backbone", lambda *_: pytest.fail("the model was loaded"))
    before = contents(here)
    status, captured = main(shlex.split(command)), capsys.readouterr()
    assert status == 2 and not captured.out
    assert captured.err.startswith("vidseg: ") and captured.err.count("\n") == 1 and captured.err.endswith("\n"), captured.err
    assert "Traceback" not in captured.err and "Error" not in captured.err.replace("InputError", "?"), captured.err
    assert all(word in captured.err for word in TABLE[command]), captured.err
    assert contents(here) == before
