"""What is written where nobody reads."""

import subprocess
import sys

import pytest


@pytest.mark.skipif(sys.platform == "win32", reason="a POSIX shell")
def test_a_command_whose_streams_are_closed_does_its_work():
    command = f"'{sys.executable}' -m vidseg_core segment no-such.mp4 --out out"
    told = subprocess.run(f"{command} >&-", shell=True, capture_output=True, text=True, check=False)
    assert (told.returncode, told.stderr) == (2, "vidseg: no-such.mp4 does not exist. Check the path.\n")
    assert subprocess.run(f"{command} >&- 2>&-", shell=True, check=False).returncode == 2
