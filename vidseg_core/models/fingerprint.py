"""Which weights these are: a few numbers of each tensor, hashed."""

import hashlib
from collections.abc import Iterable, Iterator
from operator import itemgetter
from pathlib import Path

from safetensors import safe_open
from torch import Tensor, nn

from vidseg_core.models.backbone import Backbone
from vidseg_core.models.weights import on_disk, variant


def fingerprint(network: nn.Module) -> str:
    """Sixteen hex digits that change with the weights of a torch module: a hash of 64 numbers of each of its tensors."""
    return _hash(network.state_dict().items())


def fingerprint_parts(backbone: Backbone) -> str:
    """The same for all that a backbone computes with: UNet, codec, image encoder and, from its files, the text encoder."""
    codec, image = backbone.codec, getattr(backbone, "image_encoder", None)
    tables = codec.vae.state_dict() if hasattr(codec, "vae") else {k: v for k, v in vars(codec).items() if hasattr(v, "dtype")}
    hashes = [fingerprint(backbone.unet), _hash(tables.items()), *([fingerprint(image.network)] if image else [])]
    folder, part = on_disk(backbone.model), "text_encoder"
    if folder and (folder / part).is_dir():
        half = variant(folder, part, backbone.unet.dtype.itemsize == 2) == "fp16"
        files = (f for f in sorted((folder / part).glob("*.safetensors")) if (".fp16." in f.name) == half)
        hashes += [_hash(_stored(path)) for path in files]
    return hashlib.sha256("".join(hashes).encode()).hexdigest()[:16]


def _hash(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=itemgetter(0)):
        values = tensor.flatten()
        digest.update(name.encode() + values[:: max(1, len(values) // 64)].float().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


def _stored(path: Path) -> Iterator[tuple[str, Tensor]]:
    with safe_open(path, "pt") as file:
        yield from ((name, file.get_tensor(name)) for name in file.keys())  # noqa: SIM118
