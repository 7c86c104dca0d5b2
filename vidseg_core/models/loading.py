"""From a name to a `Backbone`: read the parts of a diffusers folder, put each where it runs and in the precision it needs."""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from jaxtyping import Float
from safetensors import SafetensorError
from torch import Tensor, nn

from vidseg_core.common import InputError
from vidseg_core.models.backbone import Backbone
from vidseg_core.models.codec import AutoencoderCodec, BlockDCT, Codec
from vidseg_core.models.elsewhere import Recipe
from vidseg_core.models.memory import check_memory, keep_freed_memory, out_of_memory
from vidseg_core.models.registry import MODELS, Model
from vidseg_core.models.video_backbone import ImageEncoder, VideoBackbone, quiet
from vidseg_core.models.weights import locate, resolve, variant


def load_backbone(
    name_or_path: str | Path,
    device: str | None = None,
    dtype: torch.dtype | str | None = None,
    offload: bool = False,
) -> Backbone:
    """A pre-trained model: "tiny" (embedded, offline), "sd21-base", "sd21", "sd15", "svd", a folder that diffusers saved, or a
    hub id OWNER/NAME of one of these families.

    `device` None: cuda, then mps, then cpu. `dtype` (float32, float16, bfloat16) None: float16 on cuda, float32 elsewhere.
    `offload`: weights stay in main memory, and the part that runs is on `device`. Reads safetensors only and runs no code that
    comes with the weights. Raises InputError for a name that is unknown or weights that cannot be had or do not fit.
    """
    model = resolve(name_or_path)
    where = _device(device)
    dtype = _dtype(dtype) or (torch.float16 if where.type == "cuda" else torch.float32)
    folder = locate(model, half=dtype.itemsize == 2)
    if where.type == "cpu":
        keep_freed_memory()
    check_conditions(folder, model)
    if not offload:
        check_memory(folder, model, where, dtype)
    try:
        backbone = _Parts(folder, where, dtype, offload).backbone(model)
        backbone.recipe = _recipe(str(name_or_path), where, dtype, offload)
        return backbone
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"the model in {folder} is damaged or incomplete ({_short(error)}): download it again, as safetensors"
        ) from error
    except RuntimeError as error:
        if not out_of_memory(error):
            raise InputError(f"the weights in {folder} do not fit their configuration ({_short(error)})") from error
        raise InputError(
            f"{where} has too little memory for {model.name}: take --offload, --dtype float16 or 'tiny'"
        ) from error


def _recipe(name: str, device: torch.device, dtype: torch.dtype, offload: bool) -> Recipe:
    """For any directory of work; the number of the device is for each process to know."""
    source = str(Path(name).resolve()) if name not in MODELS and Path(name).is_dir() else name
    return Recipe(load_backbone, (source, device.type, str(dtype).removeprefix("torch."), offload))


UNSUPPORTED = {"class_embed_type": (None,), "num_class_embeds": (None,), "addition_embed_type": (None, "text"),
               "encoder_hid_dim_type": (None, "text_proj")}  # fmt: skip
"""What an image UNet may be given beside its text, and the values with which it needs nothing of that."""


def check_conditions(folder: Path, model: Model) -> None:
    """Raises InputError if the UNet needs a condition that the supported families do not have, such as class numbers."""
    config = _config(folder / "unet" / "config.json")
    if model.family == "video":
        numbers, given = (
            config.get("projection_class_embeddings_input_dim", 768),
            3 * config.get("addition_time_embed_dim", 256),
        )
        if numbers != given:
            raise InputError(
                f"the UNet in {folder} has projection_class_embeddings_input_dim = {numbers}; expected {given}, for the three "
                "numbers that Stable Video Diffusion is told: take a model of that family"
            )
        return
    for key, free in UNSUPPORTED.items():
        if config.get(key) not in free:
            raise InputError(
                f"the UNet in {folder} has {key} = {config[key]!r}, so it wants more than a text; expected "
                f"{' or '.join(map(repr, free))}: take a model of Stable Diffusion 1 or 2"
            )
    width, text = config.get("cross_attention_dim"), folder / "text_encoder" / "config.json"
    made = _config(text).get("hidden_size") if text.is_file() else None
    if made and isinstance(width, int) and not config.get("encoder_hid_dim") and made != width:
        raise InputError(
            f"the UNet in {folder} takes {width} numbers a token, and its text_encoder makes {made}: they are parts of two "
            "different models of Stable Diffusion; take both from one"
        )


def _config(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is not JSON ({error}): the model is damaged, download it again") from error


class _Parts:
    """Loads the parts of one folder; `offload` leaves them in main memory with a hook that brings them over in turn."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype, offload: bool):
        self.folder, self.device, self.dtype, self.offload = folder, device, dtype, offload
        self.turns = _Turns(device)

    def backbone(self, model: Model) -> Backbone:
        """All parts together."""
        from diffusers import UNet2DConditionModel, UNetSpatioTemporalConditionModel

        video = model.family == "video"
        unet = self.network(UNetSpatioTemporalConditionModel if video else UNet2DConditionModel, "unet")
        scheduler = json.loads((self.folder / "scheduler" / "scheduler_config.json").read_text(encoding="utf-8"))
        parts = (model, unet, self.codec(video), scheduler, self.prompt(unet), self.device)
        return VideoBackbone(*parts, image_encoder=self.image_encoder()) if video else Backbone(*parts)

    def network(self, kind: type, part: str, dtype: torch.dtype | None = None) -> nn.Module:
        """A network of the given class from its subfolder, frozen, on the device."""
        name = variant(self.folder, part, self.dtype.itemsize == 2)
        network = kind.from_pretrained(
            self.folder / part, torch_dtype=dtype or self.dtype, use_safetensors=True, local_files_only=True, variant=name
        )
        network = network.eval().requires_grad_(False)
        if not self.offload:
            return network.to(self.device)
        return add_hook_to_module(network, self.turns)

    def codec(self, video: bool) -> Codec:
        """Autoencoders run in float32, as in the paper's code: stage 4 takes the difference of two decoded pictures, which is
        little more than half precision's rounding where a mask responds weakly; and SVD's encoder overflows."""
        if (self.folder / "codec.json").is_file():
            return BlockDCT.load(self.folder / "codec.json").to(self.device, torch.float32)
        from diffusers import AutoencoderKL, AutoencoderKLTemporalDecoder

        kind = AutoencoderKLTemporalDecoder if video else AutoencoderKL
        return AutoencoderCodec(self.network(kind, "vae", torch.float32), self.device)

    def prompt(self, unet: nn.Module) -> Any:
        """The function that embeds a text. The text encoder is read when it is asked and let go afterwards."""
        if not (self.folder / "text_encoder").is_dir():  # no text in this model: one zero token
            width = unet.config.cross_attention_dim
            return lambda text: torch.zeros(1, 1, width)
        return lru_cache(maxsize=8)(self.embed)

    @torch.inference_mode()
    def embed(self, text: str) -> Float[Tensor, "1 n d"]:
        """A prompt through CLIP's text tower, padded to its full length, as the models were trained; float32, on the CPU."""
        from transformers import CLIPTextModel, CLIPTokenizer

        name, options = variant(self.folder, "text_encoder", self.dtype.itemsize == 2), {"local_files_only": True}
        try:
            tokenizer = CLIPTokenizer.from_pretrained(self.folder / "tokenizer", **options)
            encoder = CLIPTextModel.from_pretrained(
                self.folder / "text_encoder", use_safetensors=True, variant=name, dtype=torch.float32, **options
            )
            tokens = tokenizer(
                text, padding="max_length", truncation=True, max_length=tokenizer.model_max_length, return_tensors="pt"
            )
            return encoder.eval()(tokens.input_ids)[0]
        except Exception as error:  # of the files' content transformers raises anything; an interrupt is no Exception
            raise InputError(
                f"the text encoder or tokenizer in {self.folder} is damaged or incomplete ({_short(error)}): download it again"
            ) from error

    def image_encoder(self) -> ImageEncoder:
        """CLIP's vision tower with the preprocessing that is saved beside it."""
        with quiet():
            from transformers import CLIPVisionModelWithProjection

        how = json.loads((self.folder / "feature_extractor" / "preprocessor_config.json").read_text(encoding="utf-8"))
        with quiet():
            network = self.network(CLIPVisionModelWithProjection, "image_encoder")
        return ImageEncoder(network, network.config.image_size, tuple(how["image_mean"]), tuple(how["image_std"]))


class _Turns(ModelHook):
    """One hook that several networks share: before one of them runs, the one that ran before goes back to main memory.

    accelerate's own `CpuOffload` sends back one given predecessor, and only if there is one: but here the codec, the UNet and
    the image encoder run in any order, window after window. diffusers calls `pre_forward` before encode and decode, too.
    """

    def __init__(self, execution_device: torch.device):
        self.execution_device, self.there = execution_device, None

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple, dict]:
        """Bring `module` over, unless it ran last; the arguments are on the device already."""
        if self.there is not module:
            if self.there is not None:
                self.there.to("cpu")
            self.there = None  # should memory run out now, a further attempt moves the rest
            module.to(self.execution_device)
            self.there = module
        return args, kwargs


def _device(name: str | None) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(1, device=name).device
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise InputError(f"device {name!r} is not to be had here: take cpu, or leave it out for the best there is") from error


def _dtype(name: torch.dtype | str | None) -> torch.dtype | None:
    known = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if name is None or name in known.values():
        return name
    if str(name) not in known:
        raise InputError(f"dtype {name!r} is not one of {', '.join(known)}")
    return known[str(name)]


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
