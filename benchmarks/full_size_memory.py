"""GPU memory of a window with Stable Diffusion and Stable Video Diffusion at full size, counted on torch's meta device.

    python benchmarks/full_size_memory.py [--size 512x512] [--frames 14]

The stages' own passes run on tensors without data; every storage that is alive is counted after each operation, in float16
(autoencoders in float32). Attention counts as fused (its inputs and output, no matrix), as on a GPU. What is not counted:
the CUDA context and cuDNN's workspaces (about 1 GB together), and what the allocator loses to fragments.
"""

import argparse
from collections.abc import Callable

import torch
from architectures import true_backbone
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from vidseg_core import ConditionSettings, Settings
from vidseg_core.features import extract_features
from vidseg_core.models import hooks
from vidseg_core.models.registry import MODELS
from vidseg_core.paper import GuidedPasses


class Alive(TorchDispatchMode):
    """Bytes of all storages that operations inside the block made and that are still referenced; `peak` is the most."""

    def __init__(self):
        super().__init__()
        self.storages, self.total, self.peak = {}, 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Run the operation, then look."""
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, (tuple, list)) else [output]:
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.total += storage.nbytes() - self.storages.get(storage._cdata, (None, 0))[1]
                self.storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        if self.total > self.peak:  # with the dead ones: where it is less, there is no need to look for them
            self.forget_the_dead()
            self.peak = max(self.peak, self.total)
        return output

    def forget_the_dead(self) -> None:
        """Keep the storages that are still referenced, and count them anew."""
        self.storages = {key: (ref, size) for key, (ref, size) in self.storages.items() if not ref.expired()}
        self.total = sum(size for _, size in self.storages.values())


def peak(work: Callable[[], object]) -> float:
    """GB at the most while `work` runs."""
    with torch.inference_mode(), Alive() as alive:
        work()
    return alive.peak / 1e9


def measure(name: str, frames: int, size: tuple[int, int]) -> dict[str, float]:
    """GB of weights, and at the most beside them in each kind of pass over a window."""
    backbone = true_backbone(name, "meta", torch.float16)
    networks = [backbone.unet, backbone.codec.vae, *([backbone.image_encoder.network] if backbone.coupled else [])]
    weights = sum(p.numel() * p.element_size() for n in networks for p in n.parameters()) / 1e9
    backbone.noise = lambda like, seed, shared: torch.empty_like(like[:1] if shared else like)
    settings = Settings(working_size=size).resolve(backbone.model)
    s, images = settings.upsample, torch.empty(frames, 3, *size, device="meta")
    x = torch.empty(frames, 4, size[0] // 8, size[1] // 8, device="meta")
    cells = torch.empty(frames, size[0] // 16, size[1] // 16, device="meta", dtype=torch.bool)
    condition = backbone.condition(images, ConditionSettings(), 0)

    def direct() -> None:
        with backbone.record(s.block) as record:
            backbone.denoise(x, s.timestep, condition=condition)
        count = frames if backbone.coupled else s.chunk // 2
        shift = torch.empty(2 * count, *cells.shape[1:], device="meta")
        copies = 2 if backbone.coupled else s.chunk
        select = lambda v: (v if backbone.coupled else v[:1]).repeat(copies, *[1] * (v.dim() - 1))  # noqa: E731
        with hooks.replayed(backbone.unet, record, select), backbone.edit(backbone.modulation(s.block, shift, frames)):
            backbone.denoise(torch.empty(2 * count, *x.shape[1:], device="meta"), s.timestep, condition=condition)

    def guided() -> None:
        passes = GuidedPasses(backbone, x, condition, s, settings.paper).run_plain()
        passes.predict(cells, torch.arange(frames), 1)

    return {
        "weights": weights,
        "features": peak(lambda: extract_features(backbone, images, settings)),
        "direct": peak(direct),
        "guided": peak(guided),
        "decode": peak(lambda: backbone.decode(x[:1])),
    }


def main() -> None:
    """Print one markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="512x512", help="WIDTHxHEIGHT")
    parser.add_argument("--frames", type=int, default=14)
    options = parser.parse_args()
    width, height = (int(side) for side in options.size.split("x"))
    columns = ("weights", "features", "direct", "guided", "decode")
    print(f"| model | {' | '.join(columns)} | with direct | with guided |\n|---|{'---|' * (len(columns) + 2)}")
    for name in (n for n in MODELS if n in ("sd15", "sd21-base", "svd")):
        gb = measure(name, options.frames, (height, width))
        sums = [gb["weights"] + max(gb[k] for k in ("features", "decode", how)) for how in ("direct", "guided")]
        print(f"| {name} | {' | '.join(f'{gb[c]:.1f}' for c in columns)} | {sums[0]:.0f} GB | {sums[1]:.0f} GB |", flush=True)


if __name__ == "__main__":
    main()
