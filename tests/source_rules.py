"""The house rules that a syntax tree shows: which way imports go, and how long things are. Each takes the package's folder."""

import ast
from collections.abc import Iterator
from pathlib import Path

LAYERS = (
    ("common",), ("settings", "validation"), ("models",), ("the method",), ("io", "cluster"), ("__init__",),
    ("evaluation",), ("workbook",), ("cli",), ("__main__",),
)  # fmt: skip
"""From below to above; a module imports from its own layer and from lower ones. `the method`: all other modules at the top."""

FREE_INSIDE_FUNCTIONS = ("cli", "__main__")
"""What these import when a command runs is no dependency of the package."""


def layer(module: tuple[str, ...]) -> int:
    """Place in LAYERS of a module, given by its path below the package: ("io", "video"), ("scene",); () is `__init__`."""
    name = module[0] if module else "__init__"
    named = [n for n, names in enumerate(LAYERS) if name in names]
    return named[0] if named else LAYERS.index(("the method",))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def runtime_nodes(node: ast.AST, functions: bool = True) -> Iterator[ast.AST]:
    """All nodes below one, but for `if TYPE_CHECKING:` bodies and, if told so, for the bodies of functions."""
    for child in ast.iter_child_nodes(node):
        if not functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).split(".")[-1] == "TYPE_CHECKING":
            for other in child.orelse:
                yield other
                yield from runtime_nodes(other, functions)
            continue
        yield child
        yield from runtime_nodes(child, functions)


def imported(node: ast.AST, package: str, where: tuple[str, ...]) -> list[tuple[str, ...]]:
    """What an import statement of the module in folder `where` takes from the package, as paths below it."""
    if isinstance(node, ast.Import):
        names = [tuple(alias.name.split(".")) for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
        above = (package, *where)[: len(where) + 2 - node.level] if node.level else ()
        names = [(*above, *(node.module or "").split("."), alias.name) for alias in node.names]
        names = [tuple(part for part in name if part) for name in names]
    else:
        return []
    return [name[1:] for name in names if name[0] == package]


def module_of(folder: Path, name: tuple[str, ...]) -> tuple[str, ...]:
    """The longest beginning of a dotted name that is a module: the rest is what the module defines."""
    for end in range(len(name), 0, -1):
        path = folder.joinpath(*name[:end])
        if path.is_dir() or path.with_suffix(".py").is_file():
            return name[:end]
    return ()


def imports_upwards(folder: Path) -> list[str]:
    """A sentence for each import that goes from a lower layer to a higher one."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        module = path.relative_to(folder).with_suffix("").parts
        here = module[:-1] if module[-1] == "__init__" else module
        nodes = runtime_nodes(parse(path), functions=module[0] not in FREE_INSIDE_FUNCTIONS)
        for node in nodes:
            for name in imported(node, folder.name, module[:-1]):
                other = module_of(folder, name)
                if layer(other) > layer(here):
                    found.append(f"{path.relative_to(folder)}:{node.lineno} imports {'.'.join(other) or '__init__'}")
    return list(dict.fromkeys(found))


def functions(tree: ast.AST) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, from `def` to its end, without those of its docstring."""
    first = function.body[0]
    documented = ast.get_docstring(function, clean=False) is not None
    return function.end_lineno - function.lineno + 1 - documented * (first.end_lineno - first.lineno + 1)


def num_parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Parameters of all kinds, without self and cls."""
    a = function.args
    names = [p.arg for p in (*a.posonlyargs, *a.args, *a.kwonlyargs, a.vararg, a.kwarg) if p]
    return len(names) - (names[:1] in (["self"], ["cls"]))


def too_large(folder: Path, files=18, lines=2400, module=250, function=40, parameters=6) -> list[str]:
    """A sentence for each limit that is exceeded: files, lines and parameters at the top of the package, which is the method;
    the size of a module, and of its functions, in all rooms."""
    top, rooms = sorted(folder.glob("*.py")), sorted(folder.glob("*/*.py"))
    sizes = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (*top, *rooms)}
    total = sum(sizes[path] for path in top)
    found = [f"{len(top)} files"] * (len(top) > files) + [f"{total} lines"] * (total > lines)
    for path, size in sizes.items():
        where = path.relative_to(folder).as_posix()
        found += [f"{where}: {size} lines"] * (size > module)
        for node in functions(parse(path)):
            name = f"{where}:{node.lineno} {node.name}"
            found += [f"{name}: {length(node)} lines"] * (length(node) > function)
            found += [f"{name}: {num_parameters(node)} parameters"] * (path in top and num_parameters(node) > parameters)
    return found


def text_without_encoding(folder: Path) -> list[str]:
    """A sentence for each call that reads or writes text in the encoding of the machine, which is not UTF-8 everywhere."""
    found = []
    for path in sorted(folder.rglob("*.py")):
        for call in (node for node in ast.walk(parse(path)) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            method = isinstance(call.func, ast.Attribute) and name in ("read_text", "write_text")
            text = method or (name == "open" and opens_text(call))
            if text and not {keyword.arg for keyword in call.keywords} & {"encoding", None}:
                found.append(f"{path.relative_to(folder)}:{call.lineno} {name}")
    return found


def opens_text(call: ast.Call) -> bool:
    """Whether a call of `open` opens a text file: `Image.open(path)` and the like do not; a path is given the mode alone."""
    mode = "".join(str(a.value) for a in call.args if isinstance(a, ast.Constant))
    if isinstance(call.func, ast.Name):
        return "b" not in mode
    return not call.args or (isinstance(call.args[0], ast.Constant) and "b" not in mode)
