"""The ways to install: isolated or not, with a compiler or without, from the tree or from an sdist."""

import json
import os
import shutil
import site
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

CHECK = """
import json, sys, warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch, dlm_kernels, dlm_samplers, dlm_benches
    from dlm_benches.tiny import vocab
    from dlm_benches.tiny.load import load
    logits = torch.tensor([[0.0, 3.0, 1.0], [2.0, 0.0, 5.0]])
    tokens = [dlm_kernels.score_tokens(logits).token.tolist() for _ in range(2)]
    model = load("reasoning")
    out = dlm_samplers.LLaDASampler(model).generate([vocab.encode("Cabcdef=")], max_new_tokens=32)
    available, reason = dlm_kernels.cpu.available()
print(json.dumps({
    "where": dlm_kernels.__file__, "tokens": tokens, "cpu": available, "reason": reason,
    "answer": vocab.decode(out.completions[0]),
    "warnings": [str(w.message) for w in caught if "dlm" in str(w.message).lower()],
}))
"""


@pytest.fixture
def environment(tmp_path):
    """A fresh virtual environment that finds torch and the build tools of this one, but not this project."""
    venv = tmp_path / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
    # What came with the environment may be too old to build with; the outer one is found instead.
    pip = [str(venv / "bin" / "python"), "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools"]
    subprocess.run(pip, check=True, capture_output=True)
    packages = next(venv.glob("lib/python*/site-packages"))
    (packages / "outer.pth").write_text("\n".join(site.getsitepackages()))
    return venv / "bin" / "python"


def pip_install(python, *arguments, **env):
    """As a user does it, who has not set DLMK_BUILD whatever runs these tests has."""
    outer = {name: value for name, value in os.environ.items() if name != "DLMK_BUILD"}
    command = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *arguments]
    result = subprocess.run(command, env={**outer, **env}, capture_output=True, text=True, cwd=python.parent)
    assert result.returncode == 0, result.stdout + result.stderr


def check(python, tmp_path):
    result = subprocess.run([str(python), "-c", CHECK], capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout.splitlines()[-1])
    assert str(tmp_path) in report["where"], "the installed package is used, not the tree"
    assert report["tokens"] == [[1, 2], [1, 2]]
    assert report["answer"] == "abcdef"
    info = subprocess.run([str(python), "-m", "dlm_kernels.info"], capture_output=True, text=True, cwd=tmp_path)
    assert info.returncode == 0, info.stderr
    return report, info.stdout


def copy_of_tree(tmp_path):
    """The files under version control, as a fresh clone has them."""
    files = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    target = tmp_path / "tree"
    for name in filter(None, files.split("\0")):
        if (ROOT / name).exists():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, target / name)
    return target


@pytest.mark.slow
@pytest.mark.parametrize("compiler", [True, False], ids=["compiler", "no_compiler"])
@pytest.mark.parametrize("isolated", [True, False], ids=["isolated", "not_isolated"])
def test_pip_install(tmp_path, environment, isolated, compiler):
    tree = copy_of_tree(tmp_path)
    options = [] if isolated else ["--no-build-isolation"]
    env = {} if compiler else {"CXX": "/nonexistent/c++"}
    pip_install(environment, *options, str(tree), **env)
    report, info = check(environment, tmp_path)
    assert report["cpu"] is compiler
    if compiler:
        assert report["warnings"] == []
    else:
        assert len(report["warnings"]) == 1, report["warnings"]
        assert "numba" in report["warnings"][0]
        assert report["reason"]
        assert report["reason"] in info


def test_a_wheel_has_the_cuda_sources(tmp_path):
    tree = copy_of_tree(tmp_path)
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        str(tmp_path),
    ]
    result = subprocess.run(
        [*command, str(tree)], env={**os.environ, "DLMK_BUILD": "0"}, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout + result.stderr
    packed = zipfile.ZipFile(next(tmp_path.glob("*.whl")))
    sources = {
        path.relative_to(ROOT / "csrc") for part in ("common", "cuda") for path in (ROOT / "csrc" / part).iterdir()
    }
    assert len(sources) > 15
    for path in sources:
        assert packed.read(f"dlm_kernels/cuda/src/{path}") == (ROOT / "csrc" / path).read_bytes()
    packed.extractall(tmp_path / "unpacked")
    code = "from dlm_kernels.cuda import sources; print(sources.folder(), len(sources.kernel_source('commit')))"
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path / "unpacked", capture_output=True, text=True, check=True
    )
    assert str(tmp_path / "unpacked") in found.stdout


@pytest.mark.slow
def test_sdist_installs(tmp_path, environment):
    tree = copy_of_tree(tmp_path)
    subprocess.run(
        [sys.executable, "-m", "build", "--sdist", "--no-isolation", str(tree)], check=True, capture_output=True
    )
    sdist = next((tree / "dist").glob("*.tar.gz"))
    with tarfile.open(sdist) as archive:
        names = archive.getnames()
    assert any(name.endswith("csrc/common/philox.h") for name in names)
    pip_install(environment, "--no-build-isolation", str(sdist), DLMK_BUILD="require")
    report, _ = check(environment, tmp_path)
    assert report["cpu"]


@pytest.mark.slow
def test_a_required_build_fails_without_a_compiler(tmp_path, environment):
    result = subprocess.run(
        [str(environment), "-m", "pip", "install", "--no-build-isolation", str(copy_of_tree(tmp_path))],
        env={**os.environ, "CXX": "/nonexistent/c++", "DLMK_BUILD": "require"},
        capture_output=True,
        text=True,
    )
    assert result.returncode != 0
    assert "no working C++ compiler" in result.stdout + result.stderr
