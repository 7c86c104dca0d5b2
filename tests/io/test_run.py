"""Runs that stop and go on: what SIGKILL, Ctrl-C and errors leave, and that the rest is made as if nothing had been."""

import json
import os
import random
import shutil
import signal
from fractions import Fraction

import av
import numpy as np
import pytest
import stubs
import torch
from PIL import Image
from processes import ended, started, wait_for

from vidseg_core import generated_clip
from vidseg_core.cli import main
from vidseg_core.io import overlay, run
from vidseg_core.io.files import InputError, UnfinishedFolder
from vidseg_core.io.masks import write_mask
from vidseg_core.io.overlay import encode_video
from vidseg_core.io.resume import RunState
from vidseg_core.io.video import open_clip

SIZE = (48, 64)
QUICK = ("--size", "64x64", "--clusters", "5", "--window", "3")


class Stop(BaseException):
    """What no handler of errors catches."""


def words(video, out, *more):
    return ["segment", str(video), "--out", str(out), *QUICK, *map(str, more)]


def segment(video, out, *more):
    return main(words(video, out, *more))


@pytest.fixture(scope="module", autouse=True)
def stub():
    """All but one test is about files: their pipeline computes next to nothing."""
    with pytest.MonkeyPatch.context() as patch:
        stubs.install(patch.setattr)
        yield


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """12 frames: four windows."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    encode_video(generated_clip(num_frames=12, size=SIZE).frames, 10, path)
    return path


def result(out):
    """All that must be the same: masks, tables and the overlay to the byte, and the record but for the time it took."""
    record = json.loads((out / "run.json").read_text())
    record.pop("seconds")
    files = [*sorted((out / "masks").iterdir()), *(out / name for name in ("frames.csv", "segments.csv", "overlay.mp4"))]
    return {path.name: path.read_bytes() for path in files}, record


@pytest.fixture(scope="module")
def whole(video, tmp_path_factory):
    """The result of a run that nobody disturbed."""
    out = tmp_path_factory.mktemp("whole") / "out"
    assert segment(video, out) == 0
    masks, record = result(out)
    assert len(masks) == 15 and os.listdir(out.parent) == ["out"]
    return masks, record


def assert_done(out, whole):
    assert result(out) == whole
    assert os.listdir(out.parent) == ["out"], "nothing hidden is left"
    assert sorted(os.listdir(out)) == ["contact_sheet.png", "frames.csv", "masks", "overlay.mp4", "run.json", "segments.csv"]


def state_of(out):
    return out.with_name(f".{out.name}.unfinished") / ".state.npz"


def frames_done(out):
    path = state_of(out)
    return RunState.read(path).frames if path.exists() else 0


# ---- processes that are killed


@pytest.fixture
def out(tmp_path):
    (tmp_path / "here").mkdir()
    return tmp_path / "here" / "out"


def test_killed_at_three_random_moments(video, whole, out):
    seed, killed = random.randrange(10**6), 0
    moments = random.Random(seed)
    for third in range(3):
        again = out.parent / f"{third}" / "out"
        again.parent.mkdir()
        process = started(words(video, again), again.parent, pause=0.01)
        masks = int((third + moments.random()) / 3 * 13)
        wait_for(process, lambda again=again, masks=masks: len(list(state_of(again).parent.glob("masks/0*"))) >= masks)
        process.join(0.05 * moments.random())
        killed += process.is_alive()
        process.kill()
        process.join()
        kept = {path: path.stat().st_mtime_ns for path in sorted(state_of(again).parent.glob("masks/0*"))[: frames_done(again)]}
        assert segment(video, again, "--resume") == 0, f"seed {seed}"
        assert_done(again, whole)
        after = [again / "masks" / path.name for path in kept]
        assert [path.stat().st_mtime_ns for path in after] == list(kept.values()), "whole windows are not made again"
    assert killed >= 2, f"seed {seed}: only {killed} processes were alive to be killed"


def test_killed_before_any_kind_of_step(video, whole, out):
    """SIGKILL between any two changes on disk that differ in kind, over an earlier run that is replaced at the end."""
    kept, log = out.parent.with_suffix(".kept"), out.parent.with_suffix(".log")
    assert segment(video, kept, "--seed", 5) == 0
    earlier = result(kept)
    shutil.copytree(kept, out)
    assert ended(started(words(video, out, "--overwrite"), out.parent), out.parent)
    assert_done(out, whole)
    steps = log.read_text().splitlines()
    kinds = ["mkdir .out.unfinished", "mkdir masks", "replace 00004.png", "replace 00005.png", "replace .state.npz",
             "replace overlay.mp4", "replace segments.csv", "replace run.json", "rename .out.unfinished-old", "rename out",
             "rmdir masks", "unlink .state.npz"]  # fmt: skip
    for kind in kinds:
        place = {"replace .state.npz": 1}.get(kind, -1 if kind.startswith("unlink") else 0)
        fatal = [n for n, step in enumerate(steps) if step == kind][place]
        shutil.rmtree(out)
        shutil.copytree(kept, out)
        ended(started(words(video, out, "--overwrite"), out.parent, fatal=fatal), out.parent, -signal.SIGKILL)
        assert out.exists() != (kind == "rename out") and (not out.exists() or result(out) in (earlier, whole)), kind
        assert segment(video, out, "--overwrite", "--resume") == 0, kind
        assert_done(out, whole)


def test_ctrl_c_says_what_is_kept(video, whole, out, capsys):
    process = started(words(video, out), out.parent, pause=0.01)
    wait_for(process, lambda: frames_done(out) >= 6)
    os.kill(process.pid, signal.SIGINT)
    said = ended(process, out.parent, 130)
    done, last = frames_done(out), said.strip().splitlines()[-1]
    assert 6 <= done <= 12
    assert last == f"vidseg: stopped; {done} of 12 frames are done and kept: the same command with --resume continues"
    assert "Traceback" not in said and not out.exists()
    assert segment(video, out, "--resume") == 0
    assert f"{done} frames are done: continuing" in capsys.readouterr().err
    assert_done(out, whole)


def test_ctrl_c_before_a_window_is_finished_leaves_all_as_it_was(video, out, tmp_path):
    out.mkdir()
    (out / "run.json").write_text("{}")
    (out / "overlay.mp4").write_text("precious")
    process = started(words(video, out, "--overwrite"), out.parent, pause=0.2)
    wait_for(process, (state_of(out).parent / "masks").exists)
    os.kill(process.pid, signal.SIGINT)
    said = ended(process, out.parent, 130)
    assert said.strip().splitlines()[-1] == "vidseg: stopped; nothing was written, and what was there is unchanged"
    assert (out / "overlay.mp4").read_text() == "precious" and len(os.listdir(out)) == 2 and os.listdir(out.parent) == ["out"]


# ---- runs that stop


@pytest.fixture
def stopped(video, out, monkeypatch):
    """A run of which two of four windows are finished, and half of the third is on disk."""
    stop(video, out, monkeypatch, Stop())
    assert frames_done(out) == 6
    (state_of(out).parent / "masks" / ".00008.0123abcd.partial.png").write_bytes(b"half")
    return out


def stop(video, out, monkeypatch, error, *more, done=6):
    write = run.write_masks

    def writing(folder, start, labels):
        write(folder, start, labels[:2])
        if start >= done:
            raise error
        write(folder, start + 2, labels[2:])

    monkeypatch.setattr(run, "write_masks", writing)
    try:
        return segment(video, out, *more)
    except Stop:
        return None
    finally:
        monkeypatch.setattr(run, "write_masks", write)


def refused(capsys, *arguments):
    assert segment(*arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("vidseg: ") and said.count("\n") == 1
    return said


def test_it_goes_on_behind_the_last_whole_window(video, whole, stopped, monkeypatch, capsys):
    first = RunState.read(state_of(stopped)).seconds
    torch.set_num_threads((threads := torch.get_num_threads()) + 1)  # the run goes on with as many as it began with
    begun = []
    stream = stubs.StubVidSeg.stream
    monkeypatch.setattr(stubs.StubVidSeg, "stream", lambda self, *args: begun.append(args[0].indices[0]) or stream(self, *args))
    assert segment(video, stopped, "--resume") == 0
    assert begun == [6] and torch.get_num_threads() == threads
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "6 frames are done: continuing from there"
    assert all(int(line.split()[1]) > 6 for line in said[1:]), "progress counts what was done before"
    assert_done(stopped, whole)
    record = json.loads((stopped / "run.json").read_text())
    assert set(first) == set(record["seconds"]) == {"features", "context", "refine", "upsample"}
    assert all(record["seconds"][stage] > seconds > 0 for stage, seconds in first.items()), "timings are summed"


def test_masks_and_names_are_gone_on_with(video, out, tmp_path, monkeypatch):
    mask = np.zeros(SIZE, int)
    mask[:, 32:] = 7
    write_mask(tmp_path / "mask.png", mask)
    (tmp_path / "names.txt").write_text("left\n")
    more = ("--first-mask", tmp_path / "mask.png", "--names", tmp_path / "names.txt")
    assert segment(video, out, *more) == 0
    expected = result(out)
    assert stop(video, out, monkeypatch, Stop(), "--overwrite", *more) is None
    assert segment(video, out, "--resume", "--overwrite", *more) == 0
    assert_done(out, expected)
    assert "left" in (out / "segments.csv").read_text() and expected[1]["given_names"] == {"0": "left"}


def test_an_unfinished_run_is_neither_forgotten_nor_gone_on_with_unasked(video, whole, stopped, capsys):
    said = refused(capsys, video, stopped)
    assert "6 frames are done" in said and "--resume" in said and "--overwrite" in said
    said = refused(capsys, video, stopped, "--overwrite", "--clusters", "250")  # found out when the first window is clustered
    assert "kept" not in said, "what is there is of another run"
    assert frames_done(stopped) == 6, "the old one goes when the new one has a window"
    assert segment(video, stopped, "--overwrite") == 0
    assert_done(stopped, whole)


def test_another_run_is_not_gone_on_with(video, stopped, tmp_path, capsys, monkeypatch):
    other = tmp_path / "clip.mp4"
    encode_video(generated_clip(num_frames=12, size=SIZE, seed=1).frames, 10, other)
    write_mask(tmp_path / "mask.png", np.zeros(SIZE, int))
    (tmp_path / "names.txt").write_text("this")
    cases = {
        "another clip": (other,),
        "frames = [0, 11, 1], not [0, 9, 1]": (video, "--frames", "0:10"),
        "frames = [0, 11, 1], not [0, 10, 2]": (video, "--stride", "2"),
        "another first mask": (video, "--first-mask", tmp_path / "mask.png"),
        'given_names = null, not {"0": "this"}': (video, "--names", tmp_path / "names.txt"),
        "settings.window = 3, not 2": (video, "--window", "2"),
        "settings.seed = 0, not 1": (video, "--seed", "1"),
        'model = "tiny", not "sd15"': (video, "--model", "sd15"),
        'dtype = "float32", not "bfloat16"': (video, "--dtype", "bfloat16"),
    }
    before = state_of(stopped).read_bytes()
    for expected, (clip, *more) in cases.items():
        said = refused(capsys, clip, stopped, "--resume", *more)
        assert expected in said and "without --resume to start anew" in said, said
    monkeypatch.setattr("vidseg_core.models.fingerprint.fingerprint_parts", lambda backbone: "0123")
    assert "has other weights." in refused(capsys, video, stopped, "--resume")
    assert state_of(stopped).read_bytes() == before


def test_damage_is_said(video, stopped, capsys):
    masks = state_of(stopped).parent / "masks"
    (masks / "00002.png").unlink()
    assert "lacks the mask of frame 2" in refused(capsys, video, stopped, "--resume")
    state_of(stopped).write_bytes(state_of(stopped).read_bytes()[:1000])
    said = refused(capsys, video, stopped, "--resume")
    assert "is damaged" in said and "to start anew" in said


def test_nothing_to_resume(video, whole, out, capsys):
    assert segment(video, out, "--resume") == 0
    assert "nothing to resume" in capsys.readouterr().err
    assert_done(out, whole)


def test_a_finished_run_is_complete(video, whole, out, capsys, monkeypatch):
    assert segment(video, out) == 0
    capsys.readouterr()
    monkeypatch.setattr("vidseg_core.models.loading.load_backbone", lambda *_: pytest.fail("the model was loaded"))
    for more in ((), ("--overwrite",)):
        assert segment(video, out, "--resume", *more) == 0
        assert "is complete" in capsys.readouterr().out
    assert "is finished, with settings.seed = 0, not 1" in refused(capsys, video, out, "--resume", "--seed", "1")
    monkeypatch.undo()
    assert_done(out, whole)
    assert segment(video, out, "--resume", "--overwrite", "--seed", "1") == 0
    assert result(out)[1]["settings"]["seed"] == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(28, "No space left on device"), InputError("what?")])
def test_errors_say_what_is_kept(video, whole, out, capsys, monkeypatch, error):
    status = stop(video, out, monkeypatch, error)
    said = capsys.readouterr().err.splitlines()[-1]
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 2)
    assert str(error) in said and "6 of 12 frames are done and kept: the same command with --resume continues" in said
    assert segment(video, out, "--resume") == 0
    assert_done(out, whole)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), InputError("what?")])
def test_without_a_whole_window_nothing_is_left(video, out, capsys, monkeypatch, error):
    status = stop(video, out, monkeypatch, error, done=0)
    said = capsys.readouterr().err
    assert status == (130 if isinstance(error, KeyboardInterrupt) else 2) and "--resume" not in said
    assert ("nothing was written" if status == 130 else "what?") in said and os.listdir(out.parent) == []
    refused(capsys, video, out, "--clusters", "250")
    assert os.listdir(out.parent) == []


def test_encoding_that_was_interrupted_is_done_again(video, whole, out, capsys, monkeypatch):
    encode = overlay._encode

    def interrupted(frames, fps, path, aspect):
        if path.parent != state_of(out).parent:  # the rehearsal
            return encode(frames, fps, path, aspect)
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(overlay, "_encode", interrupted)
    assert segment(video, out) == 130
    assert "12 of 12 frames are done and kept" in capsys.readouterr().err and not out.exists()
    masks = {path.name: path.stat().st_mtime_ns for path in (state_of(out).parent / "masks").iterdir()}
    monkeypatch.setattr(overlay, "_encode", encode)
    (state_of(out).parent / ".overlay.0123.partial.mp4").write_bytes(b"what SIGKILL leaves")
    monkeypatch.setattr(stubs.StubVidSeg, "stream", lambda *_: pytest.fail("nothing is left to be segmented"))
    assert segment(video, out, "--resume") == 0
    assert masks == {path.name: path.stat().st_mtime_ns for path in (out / "masks").iterdir()}
    assert_done(out, whole)


# ---- what the end needs


def test_a_high_speed_clip_is_segmented(tmp_path, out):
    encode_video(generated_clip(num_frames=3, size=SIZE).frames, 1200, tmp_path / "fast.mp4")
    assert segment(tmp_path / "fast.mp4", out) == 0


@pytest.mark.parametrize(("turn", "aspect"), [(0, Fraction(2)), (90, Fraction(1, 2))])
def test_the_overlay_is_shown_as_wide_as_the_clip(tmp_path, out, turn, aspect):
    """Pixels twice as wide as high, as television and some cameras have them; the masks are those of the pixels."""
    with av.open(str(tmp_path / "wide.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.sample_aspect_ratio = stream.codec_context.sample_aspect_ratio = Fraction(2)
        if turn:
            stream.set_display_rotation(turn)
        for frame in generated_clip(num_frames=3, size=SIZE).frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert segment(tmp_path / "wide.mp4", out) == 0
    with av.open(str(out / "overlay.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == aspect
    assert open_clip(out / "overlay.mp4").size == open_clip(tmp_path / "wide.mp4").size == (SIZE[::-1] if turn else SIZE)


@pytest.mark.parametrize(
    ("options", "word"), [({"trc": 16}, "HDR (PQ)"), ({"trc": 18}, "HDR (HLG)"), ({"x264-params": "tff=1"}, "interlaced")]
)
def test_what_is_not_as_usual_is_said(tmp_path, out, capsys, options, word):
    with av.open(str(tmp_path / "odd.mp4"), "w") as container:
        codec = {name: value for name, value in options.items() if name != "trc"}
        stream = container.add_stream("libx264", rate=10, options=codec)
        stream.height, stream.width, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.color_trc = options.get("trc", 1)
        for frame in generated_clip(num_frames=3, size=SIZE).frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    assert segment(tmp_path / "odd.mp4", out) == 0
    (said,) = [line for line in capsys.readouterr().err.splitlines() if "odd.mp4" in line]
    assert said.startswith(f"{tmp_path / 'odd.mp4'} is {word}: ")


@pytest.mark.parametrize(("more", "frame"), [(["--frames", "2:"], 6), (["--stride", "2"], 8), (["--frames", ":9"], None)])
def test_which_frame_a_mask_is_of_is_told_where_frames_are_left_out(video, out, tmp_path, capsys, more, frame):
    """Numbers are those of the frames that are taken, which may not be what was meant."""
    write_mask(tmp_path / "mask.png", np.arange(SIZE[1])[None].repeat(SIZE[0], 0) // 40)
    assert segment(video, out, "--first-mask", tmp_path / "mask.png", "--mask", f"4={tmp_path / 'mask.png'}", *more) == 0
    said = [line for line in capsys.readouterr().err.splitlines() if "of the clip" in line]
    assert said == [f"mask 4 is of frame {frame} of the clip: masks count the frames that are taken"] * (frame is not None)


def test_a_clip_of_one_class_is_told(video, out, tmp_path, capsys):
    write_mask(tmp_path / "one.png", np.full(SIZE, 3))
    write_mask(tmp_path / "two.png", np.where(np.arange(SIZE[1]) < 9, 3, 255)[None].repeat(SIZE[0], 0))
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    for n, more in enumerate((["--first-mask", two], ["--mask", f"1={one}"], ["--first-mask", one, "--mask", f"1={two}"])):
        assert segment(video, out.with_name(f"{n}"), *more) == 0 and "everywhere" not in capsys.readouterr().err
    assert segment(video, out, "--first-mask", one, "--mask", f"1={one}") == 0
    assert "the mask has class 3 everywhere" in capsys.readouterr().err


def test_what_the_end_needs_is_checked_at_the_beginning(tmp_path, video, stopped, capsys, monkeypatch):
    monkeypatch.setattr("vidseg_core.models.loading.load_backbone", lambda *_: pytest.fail("the model was loaded"))
    (wide := tmp_path / "wide").mkdir()
    Image.new("RGB", (16500, 16)).save(wide / "0.png")
    assert "16384 pixels a side" in refused(capsys, wide, tmp_path / "other")
    assert "another --stride" in refused(capsys, video, tmp_path / "other", "--stride", 10**7)
    assert frames_done(stopped) == 6

    def full(frames, fps, path, aspect):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(overlay, "_encode", full)
    assert "No space left" in refused(capsys, video, stopped, "--resume")
    assert frames_done(stopped) == 6 and not (tmp_path / "other").exists()


def test_a_disk_that_is_full_in_the_first_window_is_a_sentence(video, out, capsys, monkeypatch):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    state = stubs.StubScene.state  # of a real run, it is some megabytes
    noise = np.random.default_rng(0).bytes(600_000)
    monkeypatch.setattr(stubs.StubScene, "state", lambda scene: {**state(scene), "noise": np.frombuffer(noise, np.uint8)})
    resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, before[1]))
    try:
        assert segment(video, out) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith("vidseg: ") and "File too large" in said and os.listdir(out.parent) == []


# ---- the folder


def test_two_processes_do_not_write_one_folder(video, whole, stopped, capsys):
    pytest.importorskip("fcntl")
    with UnfinishedFolder(stopped):
        for more in (["--resume"], ["--overwrite"], []):
            assert "Another process is writing" in refused(capsys, video, stopped, *more)
    assert frames_done(stopped) == 6
    assert segment(video, stopped, "--resume") == 0
    assert_done(stopped, whole)


def test_a_folder_of_somebody_else_is_not_taken(video, out, capsys):
    (hidden := out.with_name(".out.unfinished")).mkdir()
    (hidden / "thesis.tex").write_text("years")
    for more in ([], ["--overwrite"], ["--resume"]):
        assert "in the way" in refused(capsys, video, out, *more)
    assert (hidden / "thesis.tex").read_text() == "years"
    (hidden / "thesis.tex").rename(out)
    for more in ([], ["--overwrite"], ["--resume"]):
        assert "is a file" in refused(capsys, video, out, *more)
    assert out.read_text() == "years"


def test_what_is_not_ours_is_not_replaced_on_resuming(video, stopped, capsys):
    stopped.mkdir()
    (stopped / "thesis.tex").write_text("years")
    for more in (["--resume"], ["--resume", "--overwrite"]):
        assert "holds no run.json" in refused(capsys, video, stopped, *more)
    (stopped / "run.json").write_text("{}")
    assert "thesis.tex, which no run wrote" in refused(capsys, video, stopped, "--resume", "--overwrite")
    (stopped / "thesis.tex").rename(stopped / "segments.csv")
    assert "Add --overwrite" in refused(capsys, video, stopped, "--resume")
    assert (stopped / "segments.csv").read_text() == "years" and frames_done(stopped) == 6


# ---- masks of later frames


@pytest.fixture
def masks(tmp_path):
    """Files of masks of frame 0 and of frame 7, in the third of four windows."""
    write_mask(tmp_path / "first.png", np.arange(64)[None].repeat(48, 0) // 32)
    write_mask(tmp_path / "later.png", np.arange(64)[None].repeat(48, 0) // 22)
    return tmp_path / "first.png", tmp_path / "later.png"


def test_a_mask_of_frame_0_is_the_first_mask(video, out, masks):
    first, _ = masks
    assert segment(video, out, "--first-mask", first) == 0
    record = json.loads((out / "run.json").read_text())
    assert segment(video, out.with_name("again"), "--mask", f"0={first}") == 0
    again = json.loads((out.with_name("again") / "run.json").read_text())
    assert again["first_mask_sha256"] == record["first_mask_sha256"] and again["later_masks_sha256"] is None
    assert again["input"]["first_mask"] == str(first)


def test_later_masks_are_recorded_and_told_apart(video, out, masks, capsys, monkeypatch):
    first, later = masks
    assert stop(video, out, monkeypatch, Stop(), "--first-mask", first, "--mask", f"7={later}") is None
    capsys.readouterr()
    for other in ([], ["--mask", f"8={later}"], ["--mask", f"7={first}"]):
        assert "other later masks" in refused(capsys, video, out, "--resume", "--first-mask", first, *other)
    assert segment(video, out, "--resume", "--first-mask", first, "--mask", f"7={later}") == 0
    record = json.loads((out / "run.json").read_text())
    assert list(record["later_masks_sha256"]) == ["7"] and record["input"]["mask"] == [f"7={later}"]
    capsys.readouterr()
    assert "other later masks" in refused(capsys, video, out, "--resume", "--first-mask", first)


def test_a_finished_run_of_before_had_no_later_masks(video, out, masks, capsys):
    first, later = masks
    assert segment(video, out, "--first-mask", first) == 0
    record = json.loads((out / "run.json").read_text())
    del record["later_masks_sha256"]
    (out / "run.json").write_text(json.dumps(record))
    assert segment(video, out, "--resume", "--first-mask", first) == 0 and "is complete" in capsys.readouterr().out
    assert "other later masks" in refused(capsys, video, out, "--resume", "--first-mask", first, "--mask", f"7={later}")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--mask", "later.png"], ["'later.png'", "FRAME=FILE"]),
        (["--mask", "x=later.png"], ["'x=later.png'", "FRAME=FILE"]),
        (["--mask=-1=later.png"], ["FRAME=FILE"]),
        (["--mask", "7="], ["FRAME=FILE"]),
        (["--mask", "7={later}", "--mask", "07={later}"], ["second mask of frame 7"]),
        (["--first-mask", "{later}", "--mask", "0={later}"], ["second mask of frame 0", "--first-mask"]),
        (["--mask", "12={later}"], ["frame 12", "12 frames are taken, 0 to 11"]),
        (["--frames", "0:6", "--mask", "7={later}"], ["frame 7", "6 frames are taken, 0 to 5"]),
        (["--mask", "7=gone.png"], ["gone.png"]),
    ],
)
def test_bad_masks_are_refused_before_any_work(video, out, masks, capsys, monkeypatch, words, expected):
    monkeypatch.setattr("vidseg_core.models.loading.load_backbone", lambda *_: pytest.fail("the model was loaded"))
    said = refused(capsys, video, out, *(word.format(later=masks[1]) for word in words))
    assert all(word in said for word in expected) and os.listdir(out.parent) == [], said
