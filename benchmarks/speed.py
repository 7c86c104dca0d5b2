"""Seconds per stage and peak memory for 48 frames of the cup clip at 320x240.

python benchmarks/speed.py [--frames 48] [--segments 8] [--first-mask] [--dtype bfloat16]
"""

import argparse
import resource
import time

import torch

from vidseg_core import ContextSettings, Settings, VidSeg, load_backbone, sample_clip


def main() -> None:
    """Print one line a stage."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=48)
    parser.add_argument("--segments", type=int, default=8)
    parser.add_argument("--first-mask", action="store_true", help="three classes from the first mask instead of segments")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args()
    clip, started = sample_clip("cup"), time.perf_counter()
    backbone = load_backbone("tiny", dtype=options.dtype)
    print(f"{'load':10} {time.perf_counter() - started:7.2f} s, imports of diffusers included")
    segments = None if options.first_mask else options.segments
    vidseg = VidSeg(backbone, Settings(context=ContextSettings(num_segments=segments)))
    result = vidseg(clip.frames[: options.frames], first_mask=clip.masks[0] if options.first_mask else None, keep=())
    for stage, seconds in result.timings.items():
        print(f"{stage:10} {seconds:7.2f} s")
    print(
        f"{'all':10} {sum(result.timings.values()):7.2f} s for {len(result.labels)} frames on {torch.get_num_threads()} threads"
    )
    print(
        f"{'memory':10} {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:7.0f} MB at most, Python and torch included"
    )


if __name__ == "__main__":
    main()
