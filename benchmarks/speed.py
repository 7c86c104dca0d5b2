"""Seconds per stage and peak memory for 48 frames of the cup clip at 320x240: without a mask, and with three classes from one.

    python benchmarks/speed.py [--frames 48] [--dtype bfloat16]

Each is run with the default settings and, in turn, with what makes the default dearer or cheaper taken away: cells of the
working size, differences from -lambda, no edges, a segment for each of 20 clusters. Memory: of a process of its own, its
Python and torch included.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace

import torch

from vidseg_core import Settings, VidSeg, load_backbone, sample_clip

STAGES = ("features", "context", "refine", "upsample")


def plain() -> Settings:
    """As the first version of the project had its defaults, as far as settings say it."""
    s = Settings()
    return replace(
        s,
        features=replace(s.features, scales=(1.0,)),
        context=replace(s.context, num_segments=None, births=0),
        upsample=replace(s.upsample, difference="two-sided", edges=0.0),
    )


def measure(settings: Settings, frames: int, with_mask: bool, dtype: str) -> dict[str, float]:
    """Seconds of loading and of each stage, the number of segments, and MB at most."""
    clip, started = sample_clip("cup"), time.perf_counter()
    backbone = load_backbone("tiny", dtype=dtype)
    loaded = time.perf_counter() - started
    mask = clip.masks[0] if with_mask else None
    result = VidSeg(backbone, settings)(clip.frames[:frames], first_mask=mask, keep=())
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"load": loaded, **result.timings, "segments": len(result.names) - 1, "memory": memory}


def main() -> None:
    """Print a line a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--one", nargs=2, metavar=("SETTINGS", "MASK"), help=argparse.SUPPRESS)  # one run, for `main` itself
    options = parser.parse_args()
    if options.one:
        settings, with_mask = {"default": Settings(), "plain": plain()}[options.one[0]], options.one[1] == "mask"
        print(json.dumps(measure(settings, options.frames, with_mask, options.dtype)))
        return
    print(f"{options.frames} frames of cup, {options.dtype}, {torch.get_num_threads()} threads\n")
    print(f"| run | load | {' | '.join(STAGES)} | all | segments | peak memory |\n|{'---|' * (len(STAGES) + 5)}")
    for mask, words in (("none", "without a mask"), ("mask", "with the first mask")):
        for name in ("default", "plain"):
            command = [sys.executable, __file__, "--frames", str(options.frames), "--dtype", options.dtype, "--one", name, mask]
            found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            seconds = [found["load"], *(found[stage] for stage in STAGES), sum(found[stage] for stage in STAGES)]
            cells = [f"{words}, {name}", *(f"{s:.1f} s" for s in seconds)]
            print(f"| {' | '.join(cells)} | {found['segments']} | {found['memory'] / 1024:.1f} GB |", flush=True)


if __name__ == "__main__":
    main()
