"""Looking into a network and reaching into it, without touching its code.

Four context managers over torch's forward hooks: `tapped` reads outputs, `edited` changes them, `recorded` keeps everything a
pass computed up to a module, and `replayed` lets a later pass start from there. None of them knows which network it holds.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn


class _Enough(Exception):
    """What a pass was run for is there."""


@contextmanager
def tapped(network: nn.Module, paths: tuple[str, ...], enough: bool = False) -> Iterator[dict[str, Tensor]]:
    """Within the block, the latest output of each module in `paths` stands in the dict that is yielded. `enough`: once all are
    there the pass is broken off, and the block with it."""
    outputs: dict[str, Tensor] = {}

    def keep(path: str, module: nn.Module, args: Any, output: Any) -> None:
        outputs[path] = output
        if enough and len(outputs) == len(paths):
            raise _Enough

    with ExitStack() as stack:
        for path in paths:
            stack.callback(network.get_submodule(path).register_forward_hook(partial(keep, path)).remove)
        with suppress(_Enough):
            yield outputs


@contextmanager
def edited(network: nn.Module, edits: dict[str, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Within the block, the output of each module in `edits` is replaced by its function of it."""
    with ExitStack() as stack:
        for path, edit in edits.items():
            stack.callback(network.get_submodule(path).register_forward_hook(partial(_change, edit)).remove)
        yield


def _change(edit: Callable[[Tensor], Tensor], module: nn.Module, args: Any, output: Tensor) -> Tensor:
    return edit(output)


TWICE = object()
"""In the place of an output: this module ran more than once, and its parent has not finished yet."""


@dataclass
class Recording:
    """Outputs of the largest modules that had finished when module `until` did: all that the rest of a pass needs."""

    until: str
    outputs: dict[str, Any] = field(default_factory=dict)


@contextmanager
def recorded(network: nn.Module, until: str) -> Iterator[Recording]:
    """Record one forward pass of `network` up to and including the module at path `until`.

    Only the outermost finished modules are kept: once a block is done, its parts are forgotten. Raises RuntimeError if
    one of the modules that are kept runs twice in the pass, since a replay could not tell the two apart.
    """
    record, done = Recording(until), False

    def keep(path: str, module: nn.Module, args: Any, output: Any) -> None:
        nonlocal done
        if done:
            return
        for part in [p for p in record.outputs if p.startswith(path + ".")]:
            del record.outputs[part]
        record.outputs[path] = TWICE if path in record.outputs else output
        done = path == until

    with ExitStack() as stack:
        for path, module in network.named_modules():
            if path:
                stack.callback(module.register_forward_hook(partial(keep, path)).remove)
        yield record
    if twice := [path for path, output in record.outputs.items() if output is TWICE]:
        raise RuntimeError(f"{twice[0]} runs twice before {until}; its replay would be ambiguous")


@contextmanager
def replayed(network: nn.Module, record: Recording, select: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Within the block, every recorded module returns what it returned then, each tensor passed through `select`.

    `select` chooses or repeats batch rows so that they suit the pass inside the block. Modules are restored on leaving,
    whatever happens.
    """
    with ExitStack() as stack:
        for path, output in record.outputs.items():
            module = network.get_submodule(path)
            stack.callback(_restore, module, module.__dict__.get("forward"))
            module.forward = _constant(_mapped(output, select))
        yield


def _restore(module: nn.Module, forward: Callable | None) -> None:
    if forward is None:
        del module.forward
    else:  # something else, such as an offloading hook, had replaced it before us
        module.forward = forward


def _constant(value: Any) -> Callable:
    return lambda *args, **kwargs: value


def _mapped(value: Any, select: Callable[[Tensor], Tensor]) -> Any:
    if isinstance(value, tuple):
        return tuple(_mapped(v, select) for v in value)
    return select(value) if isinstance(value, Tensor) else value
