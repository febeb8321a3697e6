"""Rules that no linter knows: which files import a framework, what importing does, what is never done, what the lock
holds. The layers of the packages are in pyproject.toml, for import-linter.
"""

from __future__ import annotations

import ast
import functools
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("vlmodel", "pipelines", "jobs")
LINTER = str(Path(sys.executable).with_name("lint-imports"))

# The files that may import a framework. A new one is a decision, so it is written down here.
ALLOWED_IMPORTS = {
    "ray": {
        "pipelines/workflows/cluster.py",
        "pipelines/data/stream/feature_build.py",
        "pipelines/data/index/shard_pass.py",
        "pipelines/data/stream/ray_private.py",
        "pipelines/data/stream/stream.py",
        "pipelines/embeddings/embed.py",
        "pipelines/evaluate/predict.py",
        "pipelines/knowledge/build.py",
        "pipelines/search/trial_controller.py",
        "pipelines/search/remote.py",
        "pipelines/search/tuning.py",
        "pipelines/serve/deployment/deploy.py",
        "pipelines/serve/deployment/ingress.py",
        "pipelines/serve/metrics.py",
        "pipelines/serve/deployment/replica.py",
        "pipelines/serve/challenger/deployment.py",
        "pipelines/serve/deployment/application.py",
        "pipelines/serve/deployment/locks.py",
        "pipelines/serve/ray_private.py",
        "pipelines/serve/deployment/readiness.py",
        "pipelines/train/entry.py",
        "pipelines/train/failure_lines.py",
        "pipelines/train/launch.py",
        "pipelines/train/progress.py",
        "pipelines/train/ray_private.py",
        "pipelines/train/run_spec.py",
        "pipelines/train/torch_backend.py",
        "pipelines/train/worker.py",
    },
    "mlflow": {
        "pipelines/registry/_smoke_program.py",
        "pipelines/registry/package.py",
        "pipelines/registry/package_store.py",
        "pipelines/registry/pyfunc.py",
        "pipelines/registry/registry.py",
        "pipelines/registry/versions.py",
        "pipelines/tracking/system_metrics.py",
        "pipelines/tracking/metric_writer.py",
        "pipelines/tracking/store.py",
        "pipelines/tracking/tracker.py",
    },
    "fastapi": {
        "pipelines/serve/http/app.py",
        "pipelines/serve/http/routes/about.py",
        "pipelines/serve/http/routes/base.py",
        "pipelines/serve/http/routes/chat.py",
        "pipelines/serve/http/routes/embeddings.py",
        "pipelines/serve/http/routes/facts.py",
        "pipelines/serve/http/routes/feedback.py",
        "pipelines/serve/http/routes/operations.py",
        "pipelines/serve/http/routes/page.py",
        "pipelines/serve/http/routes/search.py",
    },
}

# Calls that change the world around the module; `*.` stands for any object.
SIDE_EFFECTS = re.compile(
    r"(os\.(makedirs|mkdir|chdir|putenv|remove|environ\.\w+)"
    r"|logging\.(basicConfig|disable|captureWarnings|config\.\w+)"
    r"|warnings\.(filterwarnings|simplefilter)"
    r"|(random|numpy\.random|torch|torch\.random|torch\.cuda)\.(seed|manual_seed|manual_seed_all)"
    r"|torch\.set_\w+|torch\.backends\..*|torch\.multiprocessing\.set_\w+|multiprocessing\.set_start_method"
    r"|matplotlib\.use|matplotlib\.pyplot\..*"
    r"|(mlflow|ray|requests|httpx|socket|subprocess|urllib)(\.\w+)*\.[a-z]\w*"
    r"|open"
    r"|.*\.(mkdir|touch|write_text|write_bytes|unlink|setLevel|addHandler))"
)
# MLflow's models-from-code runs this file as a script, and the call is how the script names its model.
SIDE_EFFECTS_ALLOWED = {("pipelines/registry/pyfunc.py", "mlflow.models.set_model")}

UNPICKLING = re.compile(
    r"((pickle|_pickle|cloudpickle|dill|marshal)\.(load|loads|Unpickler)|joblib\.load|shelve\.open|pandas\.read_pickle)"
)


def files(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


SOURCES = [path for package in PACKAGES for path in files(package)]


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of all that a file imports, wherever it stands: ``from a import b`` gives a and a.b."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            yield node.lineno, module
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "__import__"):
            yield from ((node.lineno, str(arg.value)) for arg in node.args[:1] if isinstance(arg, ast.Constant))


def importing(path: Path, module: str) -> list[str]:
    return sorted({f"{name(path)}:{line}" for line, found in imports(path) if f"{found}.".startswith(f"{module}.")})


@functools.cache
def aliases(path: Path) -> dict[str, str]:
    """What the names that a file imports stand for: ``np`` -> numpy, ``load`` -> torch.load."""
    known: dict[str, str] = {}
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            known |= {alias.asname: alias.name for alias in node.names if alias.asname}
        elif isinstance(node, ast.ImportFrom) and node.module:
            known |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    return known


def called(path: Path, call: ast.Call) -> str:
    """The full dotted name of what is called."""
    first, dot, rest = ast.unparse(call.func).partition(".")
    return aliases(path).get(first, first) + dot + rest


def calls(path: Path) -> Iterator[tuple[ast.Call, str]]:
    return ((node, called(path, node)) for node in ast.walk(tree(path)) if isinstance(node, ast.Call))


def keyword(call: ast.Call, key: str) -> object:
    return next((k.value.value for k in call.keywords if k.arg == key and isinstance(k.value, ast.Constant)), None)


def run_on_import(nodes: list[ast.stmt]) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: no bodies of functions, no decorators, no ``__main__`` block."""
    pending: list[ast.AST] = list(nodes)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
            continue
        yield node
        pending += node.body if isinstance(node, ast.ClassDef) else list(ast.iter_child_nodes(node))


def test_imports_run_along_the_layers() -> None:
    done = subprocess.run([LINTER], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.parametrize("framework", ALLOWED_IMPORTS)
def test_frameworks_stay_in_few_files(framework: str) -> None:
    users = {name(path): places for path in SOURCES if (places := importing(path, framework))}
    new = [place for user in sorted(users.keys() - ALLOWED_IMPORTS[framework]) for place in users[user]]
    assert not new, f"{framework} imported outside its files: {', '.join(new)}; use what those files offer instead"
    gone = sorted(ALLOWED_IMPORTS[framework] - users.keys())
    assert not gone, f"these no longer import {framework}, take them off the list: {', '.join(gone)}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_importing_a_module_does_nothing(path: Path) -> None:
    found = []
    for node in run_on_import(tree(path).body):
        if isinstance(node, ast.Call) and SIDE_EFFECTS.fullmatch(call := called(path, node)):
            if (name(path), call) not in SIDE_EFFECTS_ALLOWED:
                found.append(f"{name(path)}:{node.lineno} {call}")
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.Delete):
            targets = [node.target] if isinstance(node, ast.AugAssign) else node.targets
            found += [
                f"{name(path)}:{node.lineno} {ast.unparse(target)}"
                for target in targets
                if re.match(r"os\.environ|sys\.path|torch\.backends|matplotlib\.rcParams", ast.unparse(target))
            ]
    assert not found, f"runs on import: {', '.join(found)}; move it into a function that a job calls"


IMPORT_ALL = """
import importlib, logging, os, pkgutil, sys
import numpy, torch

def state():
    return {
        "handlers of the root logger": list(logging.root.handlers),
        "level of the root logger": logging.root.level,
        "threads of torch": torch.get_num_threads(),
        "default dtype of torch": torch.get_default_dtype(),
        "gradient mode": torch.is_grad_enabled(),
        "random state of torch": torch.initial_seed(),
        "random state of numpy": numpy.random.get_state()[1].tobytes(),
        "working directory": os.getcwd(),
    }

before = state()
problems = []
for package_name in ("vlmodel", "pipelines", "jobs"):
    package = importlib.import_module(package_name)
    for module in pkgutil.walk_packages(package.__path__, f"{package_name}."):
        if module.name != "pipelines.registry.pyfunc":  # a script of MLflow's, see above
            importlib.import_module(module.name)
    if package_name == "vlmodel":
        above = ("ray", "mlflow", "fastapi", "pipelines")
        problems += [f"vlmodel imports {name}" for name in above if name in sys.modules]
after = state()
problems += [f"{what}: {before[what]!r} -> {after[what]!r}" for what in before if before[what] != after[what]]
problems += ["Ray was started"] if sys.modules["ray"].is_initialized() else []
problems += [f"{name} was made" for name in os.listdir()]
sys.exit("; ".join(problems) or 0)
"""


def test_importing_every_module_changes_nothing(tmp_path: Path) -> None:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{IMPORT_ALL}"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def settings_class(node: ast.AST) -> bool:
    bases = ("Section", "Part", "PartConfig")
    return isinstance(node, ast.ClassDef) and any(ast.unparse(base).endswith(bases) for base in node.bases)


@pytest.mark.parametrize("path", files("vlmodel") + files("pipelines"), ids=name)
def test_all_that_is_public_has_a_docstring(path: Path) -> None:
    missing = []
    if not path.stem.startswith("_") or path.stem == "__init__":
        missing += [f"{name(path)}:1"] if not ast.get_docstring(tree(path)) else []
        for node in tree(path).body:
            if not isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            # The fields of a settings class explain it; the next test sees to them.
            if not node.name.startswith("_") and not settings_class(node) and not ast.get_docstring(node):
                missing.append(f"{name(path)}:{node.lineno} {node.name}")
    assert not missing, f"no docstring: {', '.join(missing)}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_every_setting_is_documented(path: Path) -> None:
    missing = []
    for node in filter(settings_class, ast.walk(tree(path))):
        assert isinstance(node, ast.ClassDef)
        for field, after in zip(node.body, [*node.body[1:], None], strict=True):
            if not isinstance(field, ast.AnnAssign) or not isinstance(field.target, ast.Name):
                continue
            # `kind` and a nested section explain themselves.
            plain = field.target.id != "kind" and not re.search(r"Config\b|\bpart\(", ast.unparse(field.annotation))
            text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            if plain and not field.target.id.startswith("_") and "ClassVar" not in ast.unparse(field) and not text:
                missing.append(f"{name(path)}:{field.lineno} {node.name}.{field.target.id}")
    assert not missing, f"settings without the string under them that --help shows: {', '.join(missing)}"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_is_unpickled(path: Path) -> None:
    found = [f"{name(path)}:{call.lineno} {what}" for call, what in calls(path) if UNPICKLING.fullmatch(what)]
    found += [
        f"{name(path)}:{call.lineno} torch.load without weights_only=True"
        for call, what in calls(path)
        if what == "torch.load" and keyword(call, "weights_only") is not True
    ]
    found += [
        f"{name(path)}:{call.lineno} {key}=True"
        for call, _ in calls(path)
        for key in ("allow_pickle", "trust_remote_code")
        if keyword(call, key) is True
    ]
    text = path.read_text(encoding="utf-8")
    found += [f"{name(path)} unsafe WebDataset decoding"] if "ALLOW_UNSAFE_DESERIALIZATION" in text else []
    assert not found, f"would run code out of a file: {', '.join(found)}; use safetensors, JSON or Parquet"


@pytest.mark.parametrize("path", SOURCES, ids=name)
def test_nothing_listens_to_the_world_by_itself(path: Path) -> None:
    # Recognising such an address, as a key or in a comparison, is not using it.
    recognised = {
        id(part)
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Dict | ast.Compare)
        for part in (node.keys if isinstance(node, ast.Dict) else ast.walk(node))
    }
    found = [
        f"{name(path)}:{node.lineno}"
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Constant) and node.value in ("0.0.0.0", "::") and id(node) not in recognised
    ]
    assert not found, f"binds all addresses: {', '.join(found)}; the default is 127.0.0.1, more is the user's choice"


@pytest.fixture(scope="module")
def lock() -> dict[str, list[tuple[Requirement, list[str]]]]:
    """Package -> its pins (several where versions depend on the platform), each with its hashes."""
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8").replace("\\\n", " ")
    pins: dict[str, list[tuple[Requirement, list[str]]]] = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        requirement, *hashes = line.split("--hash=")
        pin = Requirement(requirement)
        pins.setdefault(canonicalize_name(pin.name), []).append((pin, [h.strip() for h in hashes]))
    return pins


def project() -> dict[str, list[str]]:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = table["project"]["optional-dependencies"]
    return {"build": table["build-system"]["requires"], "main": table["project"]["dependencies"], **extras}


def test_the_lock_holds_exact_versions_with_hashes(lock: dict[str, list[tuple[Requirement, list[str]]]]) -> None:
    for pin, hashes in (entry for entries in lock.values() for entry in entries):
        assert re.fullmatch(r"==[^*,]+", str(pin.specifier)), f"{pin} is not an exact version; run make lock"
        assert hashes, f"{pin} has no hash; run make lock"
        for value in hashes:
            assert re.fullmatch(r"sha256:[0-9a-f]{64}", value), f"{pin} has the hash {value!r}, which is no sha256"


def test_the_lock_names_no_address() -> None:
    text = (ROOT / "requirements.lock").read_text(encoding="utf-8")
    found = re.findall(r".*(?:://| @ |--(?:extra-)?index-url|--find-links|file:).*", text)
    assert not found, f"requirements.lock must not say where packages come from: {found[:3]}"


@pytest.mark.parametrize(("group", "wanted"), [(g, w) for g, all_wanted in project().items() for w in all_wanted])
def test_the_lock_has_every_dependency(
    group: str, wanted: str, lock: dict[str, list[tuple[Requirement, list[str]]]]
) -> None:
    requirement = Requirement(wanted)
    pins = lock.get(canonicalize_name(requirement.name))
    assert pins, f"{wanted} ({group}) is in pyproject.toml and not in requirements.lock; run make lock"
    for pin, _ in pins:
        version = str(pin.specifier).removeprefix("==")
        assert requirement.specifier.contains(version), f"the lock has {pin}, not {wanted}; run make lock"


def test_pytest_and_mypy_see_every_package() -> None:
    table = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(PACKAGES) <= set(table["tool"]["mypy"]["files"])
    assert {f"{package}*" for package in PACKAGES} == set(table["tool"]["setuptools"]["packages"]["find"]["include"])


def test_what_every_process_of_ray_imports_needs_no_torch() -> None:
    """Each starts a Python, and torch takes seconds of it: the controller of a training, the tasks that make texts."""
    modules = ("pipelines.train.entry", "pipelines.train.failure_lines", "pipelines.data.stream.stream")
    program = f"import sys\nfor name in {modules}: __import__(name)\nsys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
