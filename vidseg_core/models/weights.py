"""Where a model's weights are: in a folder, in the hub's cache, or on the hub. Every failure is one sentence.

safetensors only, no code from the hub, and nothing that a server says is printed, so that no token can be.
"""

import json
from dataclasses import replace
from pathlib import Path

from vidseg_core.common import InputError
from vidseg_core.models.registry import MODELS, Model, data_folder, find_model, model_of_folder

PARTS = {"image": ("unet", "vae", "text_encoder", "tokenizer", "scheduler"),
         "video": ("unet", "vae", "image_encoder", "feature_extractor", "scheduler")}  # fmt: skip
STEMS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model", "image_encoder": "model"}
VOCABULARIES = ("tokenizer.json", "vocab.json")
"""Where a tokenizer's words are, in newer and in older files."""
VARIANTS = (None, "fp16")
"""Names that diffusers gives to files in full and in half precision."""


def resolve(name_or_path: str | Path) -> Model:
    """The registry's entry for a name, a folder, or any hub id OWNER/NAME, whose configuration is fetched if need be.

    Raises InputError for what is unknown, unsupported or out of reach.
    """
    name = str(name_or_path)
    try:
        return find_model(name)
    except InputError:
        if Path(name).is_dir() or name.count("/") != 1 or name[0] in "/.~" or name.endswith("/"):
            raise
    folder = _cached(name) or _fetch(name, ["unet/config.json"])
    return replace(model_of_folder(name, folder), sources=(name,))


def locate(model: Model, half: bool = False) -> Path:
    """The folder with all parts of `model`, downloaded if no complete copy is on disk; `half` prefers fp16 files.

    Raises InputError that says why none could be had, and what to do.
    """
    if folder := on_disk(model):
        return folder
    reasons = []
    for source in model.sources:
        if (folder := _local(source)) is not None:
            raise InputError(
                f"the model in {folder} is incomplete ({missing(folder, model)}): download it again, as safetensors"
            )
        try:
            return _download(model, source, half)
        except InputError as error:
            reasons.append(str(error))
    raise InputError(f"{model.name!r} is not available: {'; '.join(dict.fromkeys(reasons))}; or use 'tiny', which is embedded")


def on_disk(model: Model) -> Path | None:
    """The folder of a complete copy of `model` on this machine, the hub's cache included; asks no network."""
    folders = (_local(source) or _cached(source) for source in model.sources)
    return next((f for f in folders if f is not None and not missing(f, model)), None)


def missing(folder: Path, model: Model) -> str:
    """What a folder in diffusers' layout lacks, in words; empty if it is complete."""
    index = folder / "model_index.json"
    listed = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    wanted = {"unet", "scheduler"} | {p for p in PARTS[model.family] if listed.get(p, [None])[0]}
    wanted |= set() if (folder / "codec.json").is_file() else {"vae"}
    wanted |= {"text_encoder", "tokenizer"} if model.family == "image" and (folder / "text_encoder").is_dir() else set()
    wanted |= {"image_encoder", "feature_extractor"} if model.family == "video" else set()
    for part in (p for p in PARTS[model.family] if p in wanted):
        if part == "tokenizer" and not any((folder / part / name).is_file() for name in VOCABULARIES):
            return "no tokenizer with its words"
        if not any((folder / part).glob("*.json")):
            return f"no {part}"
        if part in STEMS and all(_lacking(folder / part, STEMS[part], v) for v in VARIANTS):
            pickles = any((folder / part).glob("*.bin")) or any((folder / part).glob("*.ckpt"))
            return f"{part} has only pickled weights, which are never read" if pickles else f"{part} has no whole weights"
    return ""


def variant(folder: Path, part: str, half: bool) -> str | None:
    """Which of diffusers' variants of a part's weights to read: "fp16" or None, as is there and as is wanted."""
    there = [v for v in VARIANTS if not _lacking(folder / part, STEMS[part], v)]
    return "fp16" if "fp16" in there and (half or None not in there) else None


def files(folder: Path, part: str, half: bool) -> list[Path]:
    """The files that the weights of a part are read from, in the variant that is taken."""
    return _files(folder / part, STEMS[part], variant(folder, part, half))


def model_table() -> str:
    """The models of the registry, what they take, and which are on this machine."""
    row = "{:10} {:6} {:10} {:9} {:13} {:10} {:8} {:9} {:33} {}"
    columns = ("family", "trained at", "predicts", "download, GB", "memory, GB", "on disk", "stage 4", "licence", "source")
    lines = [row.format("model", *columns)]
    for model in MODELS.values():
        size = "embedded" if model.embedded else " / ".join(f"{model.download_gb(half):.1f}" for half in (False, True))
        native, there = f"{model.native[1]}x{model.native[0]}", "yes" if on_disk(model) else "no"
        memory = " / ".join(map(str, model.memory_gb)) if model.memory_gb else "-"
        note = f" ({model.note})" if model.note else ""
        lines.append(row.format(model.name, model.family, native, model.prediction[:9], size, memory, there, model.strategy,
                                model.licence, model.sources[0] + note))  # fmt: skip
    about = "Download: in full / half precision. Memory: on a GPU, float16, 14 frames of 512x512, stage 4 direct / guided."
    return "\n".join([*lines, "", about])


def _local(source: str) -> Path | None:
    return next((f for f in (data_folder() / source, Path(source)) if (f / "unet").is_dir()), None)


def _cached(source: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    if source.count("/") != 1 or Path(source).is_absolute():
        return None
    config = try_to_load_from_cache(source, "unet/config.json")
    return Path(config).parents[1] if isinstance(config, str) else None


def _files(folder: Path, stem: str, name: str | None) -> list[Path]:
    """The files of one variant of the weights: the shards that an index lists, or one."""
    infix = f".{name}" if name else ""
    index = folder / f"{stem}.safetensors.index{infix}.json"
    if index.is_file():
        return [folder / f for f in sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))]
    return [folder / f"{stem}{infix}.safetensors"]


def _lacking(folder: Path, stem: str, name: str | None) -> bool:
    """Whether the weights of one variant are not all there."""
    return not all(f.is_file() for f in _files(folder, stem, name))


def _download(model: Model, source: str, half: bool) -> Path:
    light = ["model_index.json", *(f"{part}/*.{kind}" for part in PARTS[model.family] for kind in ("json", "txt"))]
    folder = None
    for name in ("fp16", None) if half else (None,):  # not every source has half-precision files
        infix = f".{name}" if name else ""
        weights = [f"{p}/{STEMS[p]}{part}" for p in PARTS[model.family] if p in STEMS
                   for part in (f"{infix}.safetensors", f"{infix}-*.safetensors", f"-*{infix}.safetensors")]  # fmt: skip
        folder = _fetch(source, light + weights)
        if not missing(folder, model):
            return folder
    raise InputError(f"{source} on the hub lacks something ({missing(folder, model)}): take another source, as safetensors")


def _fetch(source: str, patterns: list[str]) -> Path:
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=patterns))
    except errors.GatedRepoError as error:
        raise InputError(
            f"{source} is gated: accept its licence on https://huggingface.co/{source}, then run `hf auth login`"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        partial = getattr(errors, "IncompleteSnapshotError", ())  # older versions of huggingface_hub lack it
        if isinstance(error, partial) or _cached(source):
            raise InputError(
                f"{source} was downloaded in part and the hub cannot be reached: with a network, run the same command again"
            ) from error
        raise InputError(
            f"{source} is not on this machine and the hub cannot be reached: run `hf download {source}` where there is a "
            "network and give the folder as --model"
        ) from error
    except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
        raise InputError(f"the hub has no model {source!r} that is open to you: check the name, or take a mirror") from error
    except Exception as error:  # a broken connection is an error of requests, httpx or httpx2, as the hub's client has it
        reason = "the disk is full" if getattr(error, "errno", None) == 28 else type(error).__name__
        raise InputError(f"{source} could not be downloaded ({reason}): run the same command again, it resumes") from error
