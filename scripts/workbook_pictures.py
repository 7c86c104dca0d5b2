"""Pictures of the workbook for docs/, taken in a real JupyterLab (needs chromium; `make figures` runs it).

python scripts/workbook_pictures.py FOLDER
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # the browser's handling is that of the tests
from e2e.lab import Notebook, running_browser, running_lab

from vidseg_core.io.files import replacing

PICTURES = {
    "workbook_features": ("01_features", 1),
    "workbook_naming": ("02_context_model", 2),
    "workbook_modulation": ("04_upsampling", 0),
}
"""File name: (notebook, which of its explorers, counted from 0)."""
TALL = {"width": 1280, "height": 1600}
"""A window in which a whole explorer is seen: a screenshot cuts off the rest."""


def take(folder: Path) -> None:
    """Run each notebook, and save its explorer with what is around it."""
    with tempfile.TemporaryDirectory() as state, running_lab(Path(state)) as lab, running_browser() as new_page:
        for name, (notebook, number) in PICTURES.items():
            page = new_page()
            opened = Notebook(lab, page, f"{notebook}.ipynb")
            opened.start()
            opened.finish()
            explorer = opened.explorer(number)
            explorer.scroll_into_view_if_needed()
            page.set_viewport_size(TALL)
            explorer.scroll_into_view_if_needed()
            page.wait_for_timeout(1000)
            shot = Image.open(io.BytesIO(explorer.screenshot())).convert("RGB")
            shot = shot.quantize(256, Image.Quantize.MAXCOVERAGE, kmeans=3)  # a palette: a third of the bytes
            with replacing(folder / f"{name}.png") as partial:
                shot.save(partial, format="PNG", optimize=True)
            opened.close()
            print(folder / f"{name}.png")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where to write")
    take(parser.parse_args().folder)
