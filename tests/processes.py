"""The command with stubs in a process of its own, to be killed."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path

import stubs

from vidseg_core.cli import main

FORKSERVER = multiprocessing.get_context("forkserver")
# All that is slow to import, once for all processes; the server does not see the folder of tests, and says nothing of that.
PACKAGE = ("io.run", "io.results", "models.loading", "pipeline")
PACKAGE += ("evaluation.evaluate", "evaluation.baselines", "evaluation.datasets")
FORKSERVER.set_forkserver_preload([f"vidseg_core.{name}" for name in PACKAGE])


def started(arguments, root, fatal=None, pause=0.0):
    """`vidseg ARGUMENTS`, which writes below `root`, and beside it what it says (.said) and each change on disk (.log). It
    survives `fatal` changes, and waits `pause` seconds before each."""
    how = (list(map(str, arguments)), root.with_suffix(".said"), root.with_suffix(".log"), str(root), fatal, pause)
    process = FORKSERVER.Process(target=_command, args=how)
    process.start()
    return process


def wait_for(process, happened):
    """Until something has happened, or the process is through."""
    until = time.monotonic() + 120
    while not happened() and process.is_alive() and time.monotonic() < until:
        time.sleep(0.005)


def ended(process, root, status=0):
    """What it said; the exit status must be right."""
    process.join(120)
    said = root.with_suffix(".said").read_text()
    assert process.exitcode == status, said
    return said


def _command(arguments, said, log, root, fatal, pause):
    sys.stdout = sys.stderr = open(said, "w", buffering=1)  # noqa: SIM115
    stubs.install()
    _mark_changes(log, root, fatal, pause)
    status = main(arguments)
    sys.stderr.flush()
    os._exit(status)


def _mark_changes(log, root, fatal, pause):
    """Count each change of a name on disk before it is made, and die, without a chance to clean up, before number `fatal`."""
    changes = []

    def marked(function, name):
        def changing(path, *more, **how):
            if str(path).startswith(root) or how.get("dir_fd") is not None:
                changes.append(f"{name} {Path(more[0] if more and isinstance(more[0], str | Path) else path).name}")
                if len(changes) - 1 == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
                Path(log).write_text("\n".join(changes))
                time.sleep(pause)
            return function(path, *more, **how)

        return changing

    for name in ("replace", "rename", "unlink", "mkdir", "rmdir"):
        setattr(os, name, marked(getattr(os, name), name))
