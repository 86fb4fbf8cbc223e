"""Build script: maps the folders to import packages, compiles the CPU kernels with nothing but a C++ compiler, and packs the
CUDA sources, which are compiled where they run.

DLMK_BUILD=auto (default): compile if a compiler is there, otherwise install pure Python (numba carries the ops).
DLMK_BUILD=require: fail when the kernels cannot be built.   DLMK_BUILD=0: never compile.
CXX chooses the compiler.
"""

import importlib.util
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import setuptools
from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

try:
    from setuptools.command.bdist_wheel import bdist_wheel
except ImportError:  # without build isolation pip does not fetch what pyproject.toml asks for
    sys.exit(
        f"dlm-kernels needs setuptools >= 77 to build, found {setuptools.__version__}: "
        "pip install --upgrade setuptools, or install without --no-build-isolation."
    )

ROOT = Path(__file__).parent.resolve()
FOLDERS = {"dlm_kernels": "dlm_kernels", "dlm_samplers": "samplers", "dlm_benches": "benches"}
MODE = os.environ.get("DLMK_BUILD", "auto").lower()


def load_build_config():
    """`dlm_kernels/cpu/build_config.py`, loaded by path so that torch is not imported."""
    spec = importlib.util.spec_from_file_location("build_config", ROOT / "dlm_kernels/cpu/build_config.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONFIG = load_build_config()


def find_compiler() -> list[str] | None:
    """The C++ compiler as an argument list, or None when there is none that works."""
    if MODE in ("0", "off", "no"):
        return None
    for candidate in filter(None, [os.environ.get("CXX"), "c++", "g++", "clang++"]):
        command = shlex.split(candidate)
        if shutil.which(command[0]):
            with tempfile.TemporaryDirectory() as tmp:
                source = Path(tmp, "probe.cpp")
                source.write_text('#include <cstdint>\nextern "C" int dlmk_probe() { return 1; }\n')
                probe = [*command, "-std=c++17", "-shared", "-fPIC", str(source), "-o", str(Path(tmp, "probe.so"))]
                if subprocess.run(probe, capture_output=True).returncode == 0:
                    return command
        if candidate == os.environ.get("CXX"):
            return None  # the user named a compiler: no silent second choice
    return None


COMPILER = find_compiler()
if COMPILER is None and MODE == "require":
    sys.exit("dlm-kernels: DLMK_BUILD=require, but no working C++ compiler was found (set CXX).")


class BuildKernels(build_ext):
    """Compiles `csrc/cpu` into one shared library that knows neither Python nor torch."""

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")) + Path(CONFIG.OUTPUT).suffix

    def build_extension(self, ext):
        output = Path(self.get_ext_fullpath(ext.name)).resolve()
        output.parent.mkdir(parents=True, exist_ok=True)
        objects = []
        build = Path(self.build_temp).resolve()
        build.mkdir(parents=True, exist_ok=True)
        try:
            for source in ext.sources:
                target = build / (source.replace("/", "_") + ".o")
                flags = [*CONFIG.FLAGS, *getattr(CONFIG, "FLAGS_OF", {}).get(source, [])]
                subprocess.run(
                    [*COMPILER, *flags, "-c", str(ROOT / source), "-I", str(ROOT / "csrc"), "-o", str(target)],
                    check=True,
                )
                objects.append(str(target))
            unfinished = output.with_suffix(".tmp")
            subprocess.run([*COMPILER, "-shared", *objects, "-o", str(unfinished)], check=True)
            os.replace(unfinished, output)
        except subprocess.CalledProcessError as error:
            if MODE == "require":
                raise
            output.unlink(missing_ok=True)  # an older build would not match the Python side
            print(
                f"WARNING: dlm-kernels: the C++ kernels did not compile ({error}); installing without them. "
                "The numba backend carries the ops, several times slower.",
                file=sys.stderr,
            )

    def get_outputs(self):
        return [path for path in super().get_outputs() if Path(path).exists()]


class BuildPython(build_py):
    """Adds the sources that a GPU's user compiles at first use. An editable install reads them in the tree."""

    def _gpu_sources(self):
        target = Path(self.build_lib, "dlm_kernels/cuda/src")
        files = [path for part in ("common", "cuda") for path in sorted((ROOT / "csrc" / part).iterdir())]
        return {path: target / path.relative_to(ROOT / "csrc") for path in files}

    def run(self):
        super().run()
        if not self.editable_mode:
            for source, target in self._gpu_sources().items():
                target.parent.mkdir(parents=True, exist_ok=True)
                self.copy_file(str(source), str(target))

    def get_outputs(self, include_bytecode=1):
        copied = [] if self.editable_mode else map(str, self._gpu_sources().values())
        return [*super().get_outputs(include_bytecode), *copied]


class PlatformWheel(bdist_wheel):
    """The library has no Python ABI: one wheel serves every Python 3 of the platform."""

    def get_tag(self):
        _, _, platform = super().get_tag()
        return "py3", "none", platform if COMPILER else "any"


packages, package_dir = [], {}
for package, folder in FOLDERS.items():
    package_dir[package] = folder
    packages.append(package)
    packages += [f"{package}.{name}" for name in find_packages(where=str(ROOT / folder))]

setup(
    packages=packages,
    package_dir=package_dir,
    package_data={
        "dlm_kernels": ["py.typed"],
        "dlm_samplers": ["py.typed", "integrations/transformers/custom_generate/*"],
        "dlm_benches": ["models/*/*", "templates/*"],
    },
    include_package_data=False,
    ext_modules=[Extension("dlm_kernels.cpu._dlmk_cpu", sources=list(CONFIG.SOURCES), optional=MODE != "require")]
    if COMPILER
    else [],
    cmdclass={"build_ext": BuildKernels, "build_py": BuildPython, "bdist_wheel": PlatformWheel},
    zip_safe=False,
)
