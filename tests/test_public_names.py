"""The public names: one list for type checkers, one table that loads them on first use."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import ironbound
from ironbound import errors

SOURCE = Path(ironbound.__file__).parent.parent


def fresh(code: str) -> str:
    """Runs code in a new interpreter that finds the package under test first; returns what it prints."""
    program = f"import sys; sys.path.insert(0, {str(SOURCE)!r})\n{code}"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_names_are_sorted_and_complete() -> None:
    assert ironbound.__all__ == sorted({"__version__", *ironbound._PLACES, *ironbound._MODULES})
    assert dir(ironbound) == ironbound.__all__


@pytest.mark.parametrize("name", ironbound.__all__)
def test_every_name_resolves(name: str) -> None:
    # asked by `__getattr__` itself, since a name that another test has used no longer passes through it
    value = ironbound.__version__ if name == "__version__" else ironbound.__getattr__(name)
    assert value is getattr(ironbound, name)
    if name in ironbound._MODULES:
        assert value is sys.modules[f"ironbound.{name}"]
    elif name in ironbound._PLACES:
        assert value.__name__ == name
        assert not hasattr(value, "__path__")  # a function or class, not a submodule that shadows it


def test_importing_the_package_does_not_import_torch() -> None:
    assert fresh("import ironbound; print('torch' in sys.modules, ironbound.__version__)").startswith("False ")


def test_a_name_loads_on_first_use() -> None:
    code = "import ironbound; ironbound.LinfBall; print('torch' in sys.modules, 'LinfBall' in vars(ironbound))"
    assert fresh(code) == "True True"


def test_submodules_do_not_shadow_public_functions() -> None:
    code = "import ironbound; ironbound.certify, ironbound.bounds, ironbound.margins, ironbound.fgsm, ironbound.pgd\n"
    code += "import pkgutil, importlib\n"
    code += "names = [m.name for m in pkgutil.iter_modules(ironbound.__path__)]\n"
    code += "print(sorted(set(names) & set(ironbound._PLACES)))"
    assert fresh(code) == "[]"


def test_an_unknown_name_raises_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'certifyy'"):
        _ = ironbound.certifyy  # pyright: ignore[reportAttributeAccessIssue]
    assert not hasattr(ironbound, "_not_a_name")


def test_type_checkers_see_the_names_that_load_late() -> None:
    tree = ast.parse(inspect.getsource(ironbound))
    block = next(node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {name.asname or name.name for line in block.body if isinstance(line, ast.ImportFrom) for name in line.names}
    assert seen | {"__version__"} == set(ironbound.__all__)


def test_the_error_tree_in_the_docstring_is_the_tree_of_classes() -> None:
    lines = (errors.__doc__ or "").splitlines()
    indent = next(line.index("IronboundError") for line in lines if line.strip() == "IronboundError")
    above, drawn = ["IronboundError"], set()
    for line in lines:
        if (found := re.match(r"([ │]*)[├└]── (\w+)", line[indent:])) is not None:
            depth = 1 + len(found[1]) // 4
            above[depth:] = [found[2]]
            drawn.add((found[2], above[depth - 1]))
    classes = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    del classes["IronboundError"]
    assert drawn == {(name, value.__bases__[0].__name__) for name, value in classes.items()}


def test_the_version_is_that_of_the_project_file() -> None:
    project = Path(__file__).parents[1] / "pyproject.toml"
    assert f'version = "{ironbound.__version__}"' in project.read_text(encoding="utf-8")
