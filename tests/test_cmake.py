"""The C++ runtime as others use it: installed, found by CMake, linked from C++ and from C.

Skipped, with the reason, where the runtime cannot be built (tests/test_runtime.py).
"""

import re
import shutil
import subprocess

import pytest
from conftest import ENVIRONMENT, ROOT, SITE, build, have, tool

README = ROOT / "runtime" / "README.md"


def run(*command, **options):
    done = subprocess.run(
        [*map(str, command)], capture_output=True, text=True, env=ENVIRONMENT, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def example(kind):
    """The README's first program or CMakeLists.txt, on the tiny model's task and tokens."""
    code = re.search(rf"^```{kind}\n(.*?)^```", README.read_text("utf-8"), re.M | re.S)[1]
    if kind != "cmake":
        for own, ours in (('"summary"', '"one"'), ("504, 2365", "5, 6")):
            assert own in code
            code = code.replace(own, ours)
    return code


@pytest.fixture(scope="module")
def installed(native, tmp_path_factory):
    folder = tmp_path_factory.mktemp("installed")
    run(tool("cmake"), "--install", native, "--prefix", folder)
    return folder


def consumer(folder, installed):
    """A project beside its build; what it printed while it was configured and built."""
    configure = [
        tool("cmake"), "-S", folder, "-B", folder / "build", "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={shutil.which(tool('ninja'))}",
        f"-DCMAKE_PREFIX_PATH={installed}",
        f"-Dexecutorch_DIR={SITE / 'executorch' / 'share' / 'cmake'}",
    ]  # fmt: skip
    return run(*configure) + run(tool("cmake"), "--build", folder / "build")


def test_consumers_in_cpp_and_c(installed, tiny, tmp_path):
    """The README's CMakeLists.txt and programs, as they stand there."""
    (tmp_path / "CMakeLists.txt").write_text(example("cmake"))
    (tmp_path / "app.cpp").write_text(example("cpp"))
    (tmp_path / "app.c").write_text(example("c"))
    said = consumer(tmp_path, installed)
    assert "warning" not in said.lower()
    answer = run(tmp_path / "build" / "app", cwd=tiny[2]).splitlines()
    assert answer[-1] in ("stop", "length") and len(answer) > 1
    answer = run(tmp_path / "build" / "app-c", cwd=tiny[2])
    assert re.fullmatch(r"[1-9]\d* tokens, (stop|length|context)\n", answer)


def test_a_project_without_cpp(installed, tiny, tmp_path):
    (tmp_path / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.28)\nproject(app LANGUAGES C)\n"
        "find_package(hydrapack REQUIRED)\nadd_executable(app app.c)\n"
        "target_link_libraries(app PRIVATE hydrapack::c)\n"
    )
    (tmp_path / "app.c").write_text(example("c"))
    consumer(tmp_path, installed)
    assert " tokens, " in run(tmp_path / "build" / "app", cwd=tiny[2])


def test_the_installed_command_runs(installed, tiny):
    assert "Usage: hydrapack-run" in run(installed / "bin" / "hydrapack-run", "--help")


def test_the_c_library_shows_the_c_interface_only(installed):
    if not have("nm"):
        pytest.skip("needs nm (binutils on Debian)")
    (library,) = installed.glob("lib*/**/libhydrapack_c.so")
    names = {line.split()[-1] for line in run("nm", "-D", "--defined-only", library).splitlines()}
    header = (ROOT / "runtime" / "include" / "hydrapack.h").read_text()
    declared = set(re.findall(r"^HYDRAPACK_API [^;]*?\b(hydrapack_\w+)\(", header, re.M))
    assert len(declared) > 20 and names == declared


def test_what_is_missing_is_named(tmp_path):
    """Without nlohmann/json: what to install, in one line."""
    with pytest.raises(pytest.skip.Exception, match="nlohmann-json3-dev"):
        build(tmp_path / "skipped", "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON")
    done = subprocess.run(
        [tool("cmake"), "-S", ROOT / "runtime", "-B", tmp_path / "b", "-G", "Ninja",
         f"-DCMAKE_MAKE_PROGRAM={shutil.which(tool('ninja'))}",
         "-DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON"],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
    )  # fmt: skip
    assert done.returncode != 0
    said = " ".join(done.stderr.split())
    for words in (
        "json is missing.",
        "apt install nlohmann-json3-dev",
        "brew install nlohmann-json",
    ):
        assert words in said
