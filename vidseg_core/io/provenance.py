"""What tells one set of weights from another: a run that goes on must compute with the same."""

import hashlib
import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, version
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from vidseg_core.models.backbone import Backbone
    from vidseg_core.settings import Settings

PACKAGES = ("vidseg-workbook", "torch", "diffusers", "transformers", "numpy", "pillow", "av")


def run_record(backbone: "Backbone", settings: "Settings") -> dict[str, Any]:
    """What it takes, beside clip and weights, to make the same labels again, bit for bit, on the same machine."""
    import torch

    return {
        "settings": settings.to_dict(), "model": backbone.model.name, "device": str(backbone.device),
        "dtype": str(backbone.unet.dtype).removeprefix("torch."), "threads": torch.get_num_threads(),
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}},
    }  # fmt: skip


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # a checkout that is not installed
        return "not installed"


def fingerprint(network) -> str:
    """Sixteen hex digits that change with the weights of a torch module: a hash of 64 numbers of each of its tensors."""
    return _hash(network.state_dict().items())


def fingerprint_parts(backbone: "Backbone") -> str:
    """The same for all that a backbone computes with: UNet, codec, image encoder and, from its files, the text encoder."""
    from vidseg_core.models.weights import on_disk, variant

    codec, image = backbone.codec, getattr(backbone, "image_encoder", None)
    tables = codec.vae.state_dict() if hasattr(codec, "vae") else {k: v for k, v in vars(codec).items() if hasattr(v, "dtype")}
    hashes = [fingerprint(backbone.unet), _hash(tables.items()), *([fingerprint(image.network)] if image else [])]
    folder, part = on_disk(backbone.model), "text_encoder"
    if folder and (folder / part).is_dir():
        half = variant(folder, part, backbone.unet.dtype.itemsize == 2) == "fp16"
        files = (f for f in sorted((folder / part).glob("*.safetensors")) if (".fp16." in f.name) == half)
        hashes += [_hash(_stored(path)) for path in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


def _hash(tensors: Iterable[tuple[str, "Tensor"]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=itemgetter(0)):
        values = tensor.flatten()
        digest.update(name.encode() + values[:: max(1, len(values) // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _stored(path: Path) -> Iterator[tuple[str, "Tensor"]]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
