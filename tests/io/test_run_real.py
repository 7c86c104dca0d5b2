"""A run with the real pipeline: what is gone on with is the same to the byte, and memory stays bounded."""

import os
import subprocess
import sys
import weakref
from pathlib import Path

import numpy as np
import pytest

from vidseg_core import ContextSettings, Settings, VidSeg, generated_clip
from vidseg_core.cli import main
from vidseg_core.io import run
from vidseg_core.io.masks import write_mask
from vidseg_core.io.overlay import encode_video

SIZE = (48, 64)


class Stop(BaseException):
    """What no handler of errors catches."""


@pytest.mark.slow
@pytest.mark.parametrize("masked", [True, False, "later"])
def test_a_resumed_run_gives_the_same_bytes(tmp_path, monkeypatch, masked):
    video = tmp_path / "clip.mp4"
    encode_video(generated_clip(num_frames=4, size=SIZE).frames, 10, video)
    write_mask(tmp_path / "mask.png", np.arange(64)[None].repeat(48, 0) // 32)
    (tmp_path / "names.txt").write_text("left\nright")
    write_mask(tmp_path / "later.png", np.arange(64)[None].repeat(48, 0) // 22 + 5)
    first = ("--first-mask", tmp_path / "mask.png", "--names", tmp_path / "names.txt")
    how = {True: first, False: ("--segments", "3"), "later": ("--segments", "3", "--mask", f"3={tmp_path / 'later.png'}")}[
        masked
    ]
    options = ["--size", "64x64", "--clusters", "5", "--window", "2", *map(str, how)]
    assert main(["segment", str(video), "--out", str(tmp_path / "whole"), *options]) == 0
    write = run.write_masks

    def stop(folder, start, labels):
        if start:
            raise Stop
        write(folder, start, labels)

    monkeypatch.setattr(run, "write_masks", stop)
    with pytest.raises(Stop):
        main(["segment", str(video), "--out", str(tmp_path / "parts"), *options])
    monkeypatch.setattr(run, "write_masks", write)
    assert main(["segment", str(video), "--out", str(tmp_path / "parts"), *options, "--resume"]) == 0
    files = [(f"masks/{n:05}.png") for n in range(4)] + ["segments.csv"]
    whole, parts = ([(tmp_path / out / name).read_bytes() for name in files] for out in ("whole", "parts"))
    assert whole == parts
    assert {True: b"left" in whole[-1] and b"right" in whole[-1], "later": b"class 5" in whole[-1]}.get(masked, True)


def test_a_stream_holds_one_window(backbone):
    """Frames that are made as they are asked for: no window that is done is held while the next is made."""
    settings, alive = Settings(context=ContextSettings(num_clusters=3), working_size=(64, 64), window=3), set()

    def frames():
        for n in range(9):
            assert len(alive) <= 3 and len(held) <= 1, f"at frame {n}: frames {alive}, {len(held)} windows"
            frame = np.random.default_rng(n).integers(0, 256, (*SIZE, 3), dtype=np.uint8)
            alive.add(n)
            weakref.finalize(frame, alive.discard, n)
            yield frame
            del frame

    held: dict[int, weakref.ref] = {}
    for window in VidSeg(backbone, settings).stream(frames()):
        assert len(alive) <= 3
        held[window.start] = weakref.ref(window.frames, lambda _, start=window.start: held.pop(start))
        start = window.start
        del window
    assert start == 6


PEAK = """
import sys
from pathlib import Path
import numpy as np
from vidseg_core.cli import main
from vidseg_core.io.resume import RunState
from vidseg_core.io.overlay import encode_video

count, folder = int(sys.argv[1]), Path(sys.argv[2])
ground = np.random.default_rng(0).integers(0, 256, (120, 400, 3), dtype=np.uint8)
encode_video((ground[:, n % 200 : n % 200 + 160] for n in range(count)), 25, folder / f"{count}.mp4")
status = main(["segment", str(folder / f"{count}.mp4"), "--out", str(folder / f"out{count}"), "--size", "64x64",
               "--clusters", "1"])
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(status, peak.split()[1])
"""


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of a process's memory is read from /proc")
def test_memory_does_not_grow_with_the_clip(tmp_path):
    """The allocator's pools are as large as they get after some 800 frames. Of 1500 frames more that were held, the frames
    alone would be 86 MB, their labels 58 MB or more."""
    peaks = {}
    for count in (1000, 2500):
        done = subprocess.run([sys.executable, "-c", PEAK, str(count), str(tmp_path)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        status, peak = done.stdout.splitlines()[-1].split()
        assert status == "0" and len(os.listdir(tmp_path / f"out{count}" / "masks")) == count
        peaks[count] = int(peak)
    print(f"peak memory of 1000 and 2500 frames: {peaks[1000] / 1000:.0f} and {peaks[2500] / 1000:.0f} MB")
    assert peaks[2500] < 1.05 * peaks[1000], peaks
