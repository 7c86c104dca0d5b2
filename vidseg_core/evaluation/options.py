"""Options of `evaluate` that `segment` does not have."""

from collections.abc import Callable

from vidseg_core.evaluation.datasets import READERS, SAMPLES
from vidseg_core.evaluation.scoring import PROTOCOLS
from vidseg_core.io.options import add_workers


def add_options(add: Callable) -> None:
    """`add` is a parser's `add_argument`."""
    add("--dataset", required=True, metavar="NAME", help=f"{', '.join((*READERS, *SAMPLES))}")
    add("--root", metavar="DIR", help="folder of the set, in its owner's layout (the last three need none)")
    add("--split", metavar="NAME", help="which list of clips (default: val; SegNet's CamVid: test)")
    add("--clips", metavar="A,B", help="only these clips")
    add("--method", default="vidseg", metavar="NAME", help="vidseg or a baseline: bilinear, colour, cnn, kmeans, frames, "
        "propagation, cnn-propagation (default: vidseg)")  # fmt: skip
    add("--protocol", choices=PROTOCOLS, help="how clusters get names: first = the true mask of frame 0 is given (the "
        "paper's); named = by the first labelled frame, afterwards; matched = by all labels (Hungarian)")  # fmt: skip
    add("--restart", action="store_true", help="each window is a clip of its own, with its own first mask")
    add("--dtype", choices=("float32", "float16", "bfloat16"), help="precision (default: float16 on cuda, else float32)")
    add("--out", metavar="DIR", help="where to write and resume (default: outputs/evaluate-DATASET-METHOD)")
    add_workers(add)
