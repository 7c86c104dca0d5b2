"""The command line: what it writes, that run.json repeats it, and that bad input gets a sentence and damages nothing."""

import csv
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
import stubs
from PIL import Image

from vidseg_core import generated_clip
from vidseg_core.cli import main
from vidseg_core.io.masks import read_mask, write_mask
from vidseg_core.io.overlay import encode_video
from vidseg_core.io.resume import RunState, default_folder

CUP = str(Path(__file__).parents[1] / "data" / "clips" / "cup.mp4")
QUICK = ["--size", "128x96", "--segments", "4"]


def segment(clip, out, *more):
    return main(["segment", str(clip), "--out", str(out), *map(str, more or QUICK)])


@pytest.fixture
def stub(monkeypatch):
    """For tests whose subject is not the model."""
    stubs.install(monkeypatch.setattr)


@pytest.fixture(scope="module")
def frames():
    return generated_clip(num_frames=6, size=(96, 128)).frames


@pytest.fixture
def images(tmp_path, frames):
    folder = tmp_path / "images"
    folder.mkdir()
    for n, frame in enumerate(frames):
        Image.fromarray(frame).save(folder / f"frame{n}.png")
    return folder


@pytest.fixture
def earlier(tmp_path):
    """An earlier run's folder, and a check that nothing in it changed."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    (folder / "overlay.mp4").write_text("precious")
    yield folder
    assert (folder / "overlay.mp4").read_text() == "precious" and len(os.listdir(folder)) == 2
    assert not [name for name in os.listdir(tmp_path) if "partial" in name or "unfinished" in name]


def test_a_run_writes_all_it_promises(tmp_path, capsys):
    assert segment(CUP, tmp_path / "out", "--size", "64x48", "--segments", "4", "--frames", "10:20", "--stride", "2") == 0
    out = tmp_path / "out"
    assert sorted(os.listdir(out)) == ["contact_sheet.png", "frames.csv", "masks", "overlay.mp4", "run.json", "segments.csv"]
    assert str(out / "overlay.mp4") in capsys.readouterr().out
    with av.open(str(out / "overlay.mp4")) as video:
        stream = video.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt, stream.width, stream.height) == ("h264", "yuv420p", 320, 240)
        assert sum(1 for _ in video.decode(stream)) == 5
    masks = [read_mask(p) for p in sorted((out / "masks").iterdir())]
    assert len(masks) == 5 and masks[0].shape == (240, 320) and 2 <= len(np.unique(masks)) <= 4
    rows = list(csv.DictReader((out / "segments.csv").open()))
    assert {int(r["id"]) for r in rows} == set(np.unique(masks).tolist())
    assert sum(float(r["area"]) for r in rows) == pytest.approx(1, abs=1e-4)
    record = json.loads((out / "run.json").read_text())
    assert record["model"] == "tiny" and record["settings"]["seed"] == 0 and record["versions"]["torch"] and record["threads"]
    assert record["settings"]["upsample"]["timestep"] is not None, "settings are written as resolved"


def test_run_json_repeats_the_masks(stub, tmp_path, images):
    assert segment(images, tmp_path / "a", *QUICK, "--seed", 3, "--clusters", 9) == 0
    assert segment(images, tmp_path / "b", "--settings", tmp_path / "a" / "run.json") == 0
    assert segment(images, tmp_path / "c", *QUICK, "--seed", 4, "--clusters", 9) == 0
    masks = {run: [p.read_bytes() for p in sorted((tmp_path / run / "masks").iterdir())] for run in "abc"}
    assert masks["a"] == masks["b"] != masks["c"]
    settings = [json.loads((tmp_path / run / "run.json").read_text())["settings"] for run in "ab"]
    assert settings[0] == settings[1]


def test_first_mask_and_names(stub, tmp_path, images, frames):
    mask = np.zeros((96, 128), int)
    mask[:, 64:] = 7
    write_mask(tmp_path / "mask.png", mask)
    (tmp_path / "names.json").write_text('{"0": "left", "7": "right"}')
    more = ("--size", "128x96", "--first-mask", tmp_path / "mask.png", "--names", tmp_path / "names.json")
    assert segment(images, tmp_path / "out", *more) == 0
    rows = list(csv.DictReader((tmp_path / "out" / "segments.csv").open()))
    assert [(r["id"], r["name"]) for r in rows] == [("0", "left"), ("7", "right")]


def test_with_a_mask_the_segments_of_a_settings_file_are_left_out(stub, tmp_path, images):
    write_mask(tmp_path / "mask.png", np.zeros((96, 128), int))
    assert segment(images, tmp_path / "a", *QUICK) == 0
    assert (
        segment(images, tmp_path / "b", "--settings", tmp_path / "a" / "run.json", "--first-mask", tmp_path / "mask.png") == 0
    )
    numbers = [json.loads((tmp_path / run / "run.json").read_text())["settings"]["context"]["num_segments"] for run in "ab"]
    assert numbers == [4, "auto"]


def test_the_reference_can_be_asked_for(stub, tmp_path, images):
    assert segment(images, tmp_path / "out", "--reference", "--clusters", 3) == 0
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    assert settings["upsample"]["strategy"] == settings["refine"]["method"] == "reference"
    assert settings["context"]["num_clusters"] == 3, "what stands beside it prevails"


def test_it_says_its_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    said = capsys.readouterr().out
    assert end.value.code == 0 and said.startswith("vidseg ") and said.count("\n") == 1


def test_the_home_folder_in_every_option(stub, tmp_path, images, frames, monkeypatch):
    """A shell leaves the ~ in --out=~/x as it is."""
    home = tmp_path / "home"
    (home / "model").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    monkeypatch.chdir(tmp_path)
    images.rename(home / "images")
    write_mask(home / "mask.png", np.zeros((96, 128), int))
    (home / "names.txt").write_text("wall")
    more = ["--first-mask=~/mask.png", "--names=~/names.txt", "--size", "128x96"]
    assert main(["segment", "~/images", "--out=~/a", *more]) == 0
    assert main(["segment", "~/images/*.png", "--out=~/b", "--settings=~/a/run.json"]) == 0
    assert (home / "a" / "run.json").is_file() and (home / "b" / "run.json").is_file()
    assert main(["segment", "~/images", "--out=~/images", "--overwrite"]) == 2
    assert sorted(os.listdir(home)) == ["a", "b", "images", "mask.png", "model", "names.txt"]
    (home / "list.csv").write_text("images,mask.png\n")
    assert main(["segment", "--list=~/list.csv", "--out=~/many", "--size", "128x96"]) == 0
    assert main(["segment", "~/images", "~/a/overlay.mp4", "--out=~/two", "--size", "128x96"]) == 0
    assert (home / "many" / "images" / "run.json").is_file() and (home / "two" / "overlay" / "run.json").is_file()
    assert not (tmp_path / "~").exists()


def test_the_home_folder_of_model_root_and_nobody(stub, tmp_path, images, monkeypatch, capsys):
    (tmp_path / "model").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert segment(images, tmp_path / "out", "--model=~/model") == 2
    assert f"{tmp_path / 'model'} has no unet" in capsys.readouterr().err
    command = ["evaluate", "--dataset=folder", "--root=~/model", "--method=stub", "--out=~/scores"]
    assert main(command) == 2 and str(tmp_path / "model") in capsys.readouterr().err
    assert main([*command, "--root=~nobody.here"]) == 2 and "~nobody.here" in capsys.readouterr().err
    for options in (["~nobody.here/a.mp4"], [str(images), "--out=~nobody.here/out"]):
        status = main(["segment", *options, "--size", "128x96"])
        assert status == (2 if len(options) == 1 else 0)
    assert "~nobody.here/a.mp4 does not exist" in capsys.readouterr().err
    assert (tmp_path / "~nobody.here" / "out" / "run.json").is_file(), "a name like any other"


def test_a_settings_file_saved_by_an_editor_of_windows(stub, tmp_path, images):
    assert segment(images, tmp_path / "a", *QUICK, "--seed", 3) == 0
    text = (tmp_path / "a" / "run.json").read_text(encoding="utf-8")
    (tmp_path / "settings.json").write_text(text, encoding="utf-8-sig")
    assert segment(images, tmp_path / "b", "--settings", tmp_path / "settings.json") == 0
    assert json.loads((tmp_path / "b" / "run.json").read_text(encoding="utf-8"))["settings"]["seed"] == 3


@pytest.mark.parametrize("encoding", ["ascii", "cp932", "cp1252"])
def test_a_console_that_lacks_a_character_ends_no_run(monkeypatch, encoding):
    console = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("vidseg_core.models.weights.model_table", lambda: "a dash –, é, 杯")
    monkeypatch.setattr(sys, "stdout", console)
    assert main(["models"]) == 0
    console.flush()
    assert b"a dash " in console.buffer.getvalue()


@pytest.mark.skipif(os.name == "nt", reason="a closed pipe is another error there")
@pytest.mark.parametrize("closed", ["stdout", pytest.param("both", marks=pytest.mark.slow)])
def test_who_stops_reading_ends_no_run(tmp_path, images, closed):
    """As `segment ... | head -1` does."""
    (tmp_path / "stubbed.py").write_text(
        "import stubs, sys\nfrom vidseg_core import cli\nstubs.install()\nsys.exit(cli.main())\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    command = [sys.executable, "-m", "stubbed", "segment", str(images), "--out", "out"]
    read, write = os.pipe()
    os.close(read)
    streams = {"stdout": write, "stderr": write if closed == "both" else subprocess.PIPE}
    done = subprocess.run(command, cwd=tmp_path, env={**os.environ, "PYTHONPATH": path}, **streams, timeout=120, check=False)
    os.close(write)
    assert done.returncode == 0 and (tmp_path / "out" / "overlay.mp4").exists()
    if closed == "stdout":
        assert done.stderr.decode() == "segmented 6 of 6 frames\n"


def test_names_beyond_ascii_in_the_c_locale(tmp_path, frames):
    """The file system, the console and text files are ASCII there, as they are cp932 or cp1252 on some Windows."""
    encode_video(frames, 10, tmp_path / "größe.mp4")
    (tmp_path / "names.txt").write_text("Straße – 杯", encoding="utf-8")
    (tmp_path / "stubbed.py").write_text(
        "import stubs, sys\nfrom vidseg_core.cli import main\nstubs.install()\n"
        "sys.exit(main() or main([*sys.argv[1:-1], 'again', '--settings', sys.argv[-1] + '/run.json']))"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1]), *sys.path])
    c = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": path}
    command = [sys.executable, "-m", "stubbed", "segment", "größe.mp4", "--names", "names.txt", "--out", "größe"]
    done = subprocess.run(command, cwd=tmp_path, env=c, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr.decode()
    names = json.loads((tmp_path / "again" / "run.json").read_text(encoding="utf-8"))["names"]
    assert names["0"] == "Straße – 杯"


def test_a_file_name_that_is_not_utf8(stub, tmp_path, frames, capsys):
    clip, out = tmp_path / os.fsdecode(b"caf\xe9.mp4"), tmp_path / os.fsdecode(b"o\xfft")
    encode_video(frames, 10, tmp_path / "clip.mp4")
    try:
        (tmp_path / "clip.mp4").rename(clip)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert segment(clip, out) == 0
    assert json.loads((out / "run.json").read_text(encoding="utf-8"))["input"]["clip"] == str(clip)
    assert r"o\udcfft" in capsys.readouterr().out
    assert segment(clip, out) == 2 and "--overwrite" in capsys.readouterr().err


@pytest.mark.parametrize("mode", ["RGBA", "L", "P", "CMYK"])
def test_images_of_every_mode_work(stub, tmp_path, frames, mode):
    Image.fromarray(frames[0]).convert(mode).save(tmp_path / f"a.{'jpg' if mode == 'CMYK' else 'png'}")
    assert segment(next(tmp_path.glob("a.*")), tmp_path / "out") == 0


@pytest.mark.parametrize("size", [(16, 16), (1500, 2000)])
def test_one_frame_of_any_size_works(request, tmp_path, size):
    if size[0] > 1000:  # the model never sees so many pixels, all that writes does
        request.getfixturevalue("stub")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    assert segment(tmp_path / "a.png", tmp_path / "out") == 0
    assert read_mask(tmp_path / "out" / "masks" / "a.png").shape == size


def test_one_cluster_works(tmp_path, images):
    assert segment(images, tmp_path / "out", "--size", "64x48", "--clusters", 1, "--frames", "0:2") == 0
    assert not read_mask(tmp_path / "out" / "masks" / "frame0.png").any()


BAD_FOR_THE_MODEL = {
    "clusters above tokens": (["--size", "64x64", "--clusters", "250", "--frames", "0:1"], ["250", "144 tokens"]),
    "size no multiple": (["--size", "100x100"], ["multiples of 16"]),
    "device": (["--device", "abacus"], ["abacus", "cpu"]),
}
"""What is only known when the model is there; the other refusals have a table of their own."""


def assert_refused(status, captured, words):
    assert status == 2
    assert captured.err.startswith("vidseg: ") and captured.err.count("\n") == 1, captured.err
    assert "Traceback" not in captured.err and not captured.out
    assert all(word in captured.err for word in words), captured.err


@pytest.mark.parametrize("case", BAD_FOR_THE_MODEL)
def test_what_the_model_cannot_do_gets_a_sentence(tmp_path, images, earlier, capsys, case):
    options, words = BAD_FOR_THE_MODEL[case]
    assert_refused(segment(images, earlier, *options, "--overwrite"), capsys.readouterr(), words)


def test_an_existing_folder_is_refused_before_any_work(images, earlier, capsys, monkeypatch):
    monkeypatch.setattr("vidseg_core.models.loading.load_backbone", lambda *_: pytest.fail("the model was loaded"))
    assert_refused(segment(images, earlier, *QUICK), capsys.readouterr(), ["--overwrite", "out"])


def test_overwrite_replaces_an_earlier_run_and_nothing_else(stub, tmp_path, images, capsys):
    assert segment(images, tmp_path / "out") == 0
    assert segment(images, tmp_path / "out", *QUICK, "--overwrite") == 0
    (tmp_path / "out" / "notes.txt").write_text("mine")
    capsys.readouterr()
    refused = segment(images, tmp_path / "out", *QUICK, "--overwrite")
    assert_refused(refused, capsys.readouterr(), ["notes.txt", "Choose another --out"])
    assert (tmp_path / "out" / "notes.txt").exists() and (tmp_path / "out" / "overlay.mp4").exists()


DEFAULT_NAMES = {
    "frames": "frames", ".": "images", "./": "images", "..": "parent", "?.png": "images", "*.png": "images",
    "frames/[0-9].png": "frames", "*/0.png": "images", "clip.v1": "clip.v1", "clip.v1/*": "clip.v1", "0.png": "0",
    "a.b.png": "a.b", ".hidden": "hidden", "../images": "images",
}  # fmt: skip


@pytest.mark.parametrize("clip", DEFAULT_NAMES)
def test_a_result_is_called_like_what_it_is_made_of(tmp_path, monkeypatch, clip):
    (here := tmp_path / "parent" / "images").mkdir(parents=True)
    for name in ("frames", "clip.v1", ".hidden"):
        (here / name).mkdir()
    monkeypatch.chdir(here)
    assert default_folder(clip) == Path("outputs", DEFAULT_NAMES[clip])


def test_two_clips_never_share_a_default_folder(stub, tmp_path, images, monkeypatch, capsys):
    """Each of another content, and three times each: anew, refused as it is there, and replaced."""
    monkeypatch.chdir(images)
    clips = ["a/frames", "b/frames", "a/frames/?.png", "a/frames/0*", "b/0.png", "b/0.jpg", "clip.v1", "clip.v2", "."]
    for n, name in enumerate(("a/frames/0.png", "b/frames/0.png", "b/0.png", "b/0.jpg", "clip.v1/0.png", "clip.v2/0.png")):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 64), (40 * n, 0, 0)).save(name)
    for clip in clips:
        assert main(["segment", clip, "--frames", "0:1"]) == 0, clip
    results = {path.parent: path.read_text() for path in Path("outputs").glob("*/run.json")}
    assert sorted(json.loads(text)["input"]["clip"] for text in results.values()) == sorted(clips)
    capsys.readouterr()
    for clip in (*clips, str(images)):
        assert_refused(main(["segment", clip, "--frames", "0:1"]), capsys.readouterr(), ["exists", "--overwrite"])
        assert main(["segment", clip, "--frames", "0:1", "--overwrite"]) == 0
        capsys.readouterr()
    assert len(list(Path("outputs").glob("*/run.json"))) == len(clips) == len(os.listdir("outputs"))


def test_an_unfinished_run_keeps_its_default_folder(stub, tmp_path, images, monkeypatch):
    """The run of another clip of this name may stop: a new one goes elsewhere, and --resume finds each."""
    monkeypatch.chdir(tmp_path)
    first, second = default_folder(str(images)), default_folder(str(tmp_path / "other" / "images"))
    assert first == second == Path("outputs", "images")
    state = tmp_path / "outputs" / ".images.unfinished" / ".state.npz"
    state.parent.mkdir(parents=True)
    RunState(1, {"input": {"clip": str(images)}}, {}, {}).write(state)
    assert default_folder(str(images)) == first
    second = default_folder(str(tmp_path / "other" / "images"))
    assert second != first
    second.with_name(f".{second.name}.unfinished").mkdir()
    state.unlink()
    assert default_folder(str(tmp_path / "other" / "images")) == second


def test_the_working_directory_is_not_replaced(stub, tmp_path, images, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    for more in ([], ["--overwrite"]):
        assert_refused(segment(images, ".", *QUICK, *more), capsys.readouterr(), ["you are in", "--out"])
    assert Path.cwd().samefile(tmp_path / "empty")


def test_ctrl_c_amid_an_import_ends_with_the_same_status(tmp_path):
    """dataclass and namedtuple call exec() as modules are imported; `python -m` remembers an interrupt that passed one."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\nfrom vidseg_core import cli as command\n"
        "command.models.__code__ = (lambda options: exec('raise KeyboardInterrupt')).__code__\n"
        "sys.exit(command.main(['models']))\n"
    )
    command = [sys.executable, "-m", "interrupted"]
    done = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 130 and "stopped" in done.stderr


@pytest.mark.parametrize("module", ["vidseg_core.cli", "vidseg_core.evaluation.options"])
def test_ctrl_c_before_the_command_is_known(tmp_path, module):
    """While the command line itself is imported."""
    (tmp_path / "interrupted.py").write_text(
        "import runpy, sys\nclass Finder:\n    def find_spec(self, name, *_):\n"
        f"        if name == {module!r}: raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Finder())\nsys.argv = ['vidseg', 'models']\n"
        "runpy.run_module('vidseg_core', run_name='__main__')\n"
    )
    path = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    command = [sys.executable, str(tmp_path / "interrupted.py")]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True, timeout=120)
    assert done.returncode == 130 and "Traceback" not in done.stderr, done.stderr


def test_an_interrupt_that_python_wraps_is_an_interrupt(monkeypatch, capsys):
    """Python 3.11 makes a RuntimeError of what is raised while a class is made; another RuntimeError is a fault and passes."""

    def interrupted(cause):
        def table():
            raise RuntimeError("Error calling __set_name__") from cause

        monkeypatch.setattr("vidseg_core.models.weights.model_table", table)
        return main(["models"])

    assert interrupted(KeyboardInterrupt()) == 130 and "stopped" in capsys.readouterr().err
    with pytest.raises(RuntimeError):
        interrupted(ValueError())


def test_a_result_never_replaces_its_own_input(stub, tmp_path, images, capsys):
    assert segment(images, tmp_path / "out") == 0
    mask = tmp_path / "out" / "masks" / "frame0.png"
    for clip, more in ((tmp_path / "out" / "overlay.mp4", ()), (images, ("--first-mask", mask))):
        capsys.readouterr()
        assert_refused(
            segment(clip, tmp_path / "out", *more, "--overwrite"), capsys.readouterr(), ["out", "choose another --out"]
        )
    assert mask.exists()


def test_models_are_listed(capsys):
    assert main(["models"]) == 0
    listed = capsys.readouterr().out
    assert "tiny" in listed and "sd21-base" in listed
