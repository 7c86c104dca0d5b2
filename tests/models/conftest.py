"""Folders of small models of the real families, as diffusers saves them: made once, copied by who changes them."""

import shutil

import pytest
from families import small

from vidseg_core import load_backbone


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    return small("sd21-base", tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="session")
def svd_folder(tmp_path_factory):
    return small("svd", tmp_path_factory.mktemp("svd"))


@pytest.fixture(scope="session")
def svd(svd_folder):
    return load_backbone(svd_folder, device="cpu")


@pytest.fixture
def copy(sd_folder, tmp_path):
    return shutil.copytree(sd_folder, tmp_path / "copy")
