"""What decides a result: weights and clips have hashes, and what differs is said in words."""

import json
import shutil

import numpy as np
from families import small
from PIL import Image
from safetensors.torch import load_file, save_file

from vidseg_core import load_backbone, open_clip
from vidseg_core.io.provenance import clip_hash, differences, mask_hash
from vidseg_core.models.fingerprint import fingerprint, fingerprint_parts
from vidseg_core.models.registry import data_folder


def test_weights_have_a_fingerprint(backbone):
    before = fingerprint(backbone.unet)
    assert before == fingerprint(backbone.unet) and len(before) == 16
    weight = backbone.unet.conv_out.weight
    weight[0, 0, 0, 0] += 1e-3
    after = fingerprint(backbone.unet)
    weight[0, 0, 0, 0] -= 1e-3
    assert after != before


def test_all_that_computes_is_in_the_fingerprint(tmp_path):
    copy = shutil.copytree(data_folder() / "models" / "tiny", tmp_path / "tiny")
    before = fingerprint_parts(load_backbone(copy))
    assert before == fingerprint_parts(load_backbone("tiny"))
    codec = json.loads((copy / "codec.json").read_text())
    codec["std"][0] *= 1.01
    (copy / "codec.json").write_text(json.dumps(codec))
    assert fingerprint_parts(load_backbone(copy)) != before
    for family, parts in (("sd21", ("vae", "text_encoder")), ("svd", ("vae", "image_encoder"))):
        folder = small(family, tmp_path / family)
        seen = {fingerprint_parts(load_backbone(folder))}
        for n, part in enumerate(parts, 2):
            (path,) = (folder / part).glob("*.safetensors")
            tensors = load_file(path)
            next(tensor for name, tensor in sorted(tensors.items()) if name.endswith("bias")).add_(0.1)
            save_file(tensors, path, {"format": "pt"})
            seen.add(fingerprint_parts(load_backbone(folder)))
            assert len(seen) == n, f"{part} of {family}"


def test_a_clip_is_told_by_the_frames_that_are_taken(tmp_path):
    for n in range(4):
        Image.fromarray(np.full((8, 8, 3), n, np.uint8)).save(tmp_path / f"{n}.png")
    whole, part = clip_hash(open_clip(tmp_path)), clip_hash(open_clip(tmp_path, 0, 2))
    assert whole != part and clip_hash(open_clip(tmp_path)) == whole
    Image.fromarray(np.full((8, 8, 3), 9, np.uint8)).save(tmp_path / "3.png")
    assert clip_hash(open_clip(tmp_path)) != whole and clip_hash(open_clip(tmp_path, 0, 2)) == part


def test_masks_of_the_same_values_differ_by_their_shape():
    mask = np.arange(6).reshape(2, 3)
    assert mask_hash(mask) == mask_hash(mask.copy()) != mask_hash(mask.reshape(3, 2))


def test_differences_are_said_by_their_path():
    known = {"a": {"b": {"c": 1, "d": 2}}, "clip_sha256": "x", "weights": "0", "more": 1}
    assert differences(known, {"a": known["a"], "clip_sha256": "x"}) == "", "what is not asked for may be anything"
    assert differences(known, {"a": {"b": {"c": 1, "d": 3}}}) == "a.b.d = 2, not 3"
    assert differences(known, {"clip_sha256": "y", "weights": "1"}) == "another clip or other frames of it; other weights"
    assert differences({}, {"frames": [0, 9, 1]}) == "frames = null, not [0, 9, 1]"
    assert differences({"a": "x" * 99}, {"a": "y"}).endswith('xxx..., not "y"')
