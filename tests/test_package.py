"""What people install: the wheel's content, that it runs outside a checkout, and files that must agree."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest

import heatkv

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LARGEST = 100_000_000  # bytes; PyPI takes no larger file


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without network."""
    pytest.importorskip("hatchling", reason="no hatchling: pip install -r requirements-dev.txt")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(out)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return next(out.glob("*.whl"))


@pytest.fixture(scope="module")
def installed(wheel: Path) -> Path:
    """What ``pip install`` puts into site-packages; the wheel is pure Python, so that it only has to be unpacked."""
    site = wheel.parent / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run(site: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Python outside the checkout, with nothing of this program on its path but ``site``."""
    environment = {**os.environ, "PYTHONPATH": str(site), "PYTHONSAFEPATH": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=site.parent, env=environment, capture_output=True, text=True, timeout=300
    )


def metadata(site: Path) -> Message:
    return Parser().parsestr(next(site.glob("*.dist-info/METADATA")).read_text())


def tracked(folder: str) -> set[str]:
    listed = subprocess.run(["git", "ls-files", folder], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return {name for name in listed.stdout.splitlines() if (ROOT / name).is_file()}


def test_wheel_holds_the_library_the_app_and_the_models_and_nothing_else(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    # Sheets and figures are for readers of the repository; the app shows the strips.
    assets = {name for name in tracked("assets") if "/strips/" not in name}
    pictures = {
        name
        for name in assets
        if name.endswith((".png", ".webp"))
        or "/blind/" in name
        or name.startswith(("assets/figures/", "assets/training/"))
    }
    beside = {f"heatkv/bundle/{name}" for name in tracked("app") | tracked("assets") - pictures}
    assert tracked("heatkv") | beside <= names
    assert {name.split("/")[0] for name in names} == {"heatkv", f"heatkv-{heatkv.__version__}.dist-info"}
    assert not {f"heatkv/bundle/{name}" for name in pictures} & names
    assert not [name for name in names if name.endswith((".pyc", ".tmp", ".partial"))]
    assert wheel.stat().st_size < LARGEST


def test_metadata_version_extras_and_command(installed: Path) -> None:
    about = metadata(installed)
    assert about["Version"] == heatkv.__version__
    assert set(about.get_all("Provides-Extra", [])) == {"app", "models", "perceptual", "scale", "training"}
    plain = {re.split(r"[\s<>=!~;]", name)[0] for name in about.get_all("Requires-Dist", []) if "extra" not in name}
    assert plain == {"torch", "numpy", "pillow", "safetensors"}
    assert "heatkv = heatkv.cli:main" in next(installed.glob("*.dist-info/entry_points.txt")).read_text()
    licences = {path.name for path in installed.glob("*.dist-info/licenses/*")}
    assert licences == {"LICENSE", "THIRD_PARTY.md"}


def test_installed_command_draws_with_a_bundled_model(installed: Path) -> None:
    out = installed.parent / "apple.png"
    done = run(
        installed, "-m", "heatkv", "generate", "--prompt", "red apple", "--budget", "0.3", "--out", str(out), "--json"
    )
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["model"] == "pocket" and 0 < report["kv_bytes_peak"] <= 0.3 * report["kv_bytes_full"]
    assert out.read_bytes().startswith(b"\x89PNG")


def test_installed_command_finds_the_models_and_the_app(installed: Path) -> None:
    code = (
        "import json, sys, heatkv.cli, heatkv.files; from heatkv.models import bundled_folders;"
        "code = heatkv.cli.main(['app', '--help']); import app;"
        "print(json.dumps([code, heatkv.__file__, app.__file__, sorted(bundled_folders())]))"
    )
    done = run(installed, "-c", code)
    assert done.returncode == 0, done.stderr
    code_, *files, models = json.loads(done.stdout.splitlines()[-1])
    assert code_ == 0 and "--port" in done.stdout and done.stdout.startswith("usage: heatkv app ")
    assert all(Path(file).is_relative_to(installed) for file in files)
    assert run(installed, "-m", "heatkv", "--version").stdout == f"heatkv {heatkv.__version__}\n"
    assert models == sorted(path.parent.name for path in (ROOT / "assets" / "models").glob("*/config.json"))


def test_app_says_what_to_install_where_gradio_is_absent(installed: Path) -> None:
    code = "import sys, heatkv.cli as cli; cli.find_spec = lambda name: None; sys.exit(cli.main(['app']))"
    done = run(installed, "-c", code)
    assert done.returncode == 2
    assert done.stderr.splitlines() == ["error: the app needs gradio and plotly: pip install 'heatkv[app]'"]


def test_first_command_of_the_readme_installs_what_the_package_asks_for() -> None:
    from packaging.requirements import Requirement

    project = PYPROJECT["project"]
    asked = [Requirement(line) for line in project["dependencies"] + project["optional-dependencies"]["app"]]
    lines = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if not line.startswith("#")]
    listed = {found.name: found.specifier for found in map(Requirement, filter(None, lines))}
    assert set(listed) == {wanted.name for wanted in asked}
    for wanted in asked:
        for pin in (part.version for part in listed[wanted.name] if part.operator == "=="):
            assert pin in wanted.specifier, f"requirements.txt pins {wanted.name} {pin}, the package wants {wanted}"


def test_lock_pins_what_is_required_with_hashes_and_names_no_index() -> None:
    from packaging.requirements import Requirement

    text = (ROOT / "requirements.lock").read_text()
    entries = re.split(r"\n(?=[a-z0-9])", re.sub(r"^ *#.*\n", "", text, flags=re.MULTILINE).strip())
    pins = [Requirement(entry.split(" \\\n")[0]) for entry in entries]
    assert all("--hash=sha256:" in entry for entry in entries)
    assert all(re.fullmatch(r"==[\w.]+", str(pin.specifier)) for pin in pins), "no local builds, one version each"
    assert "--index-url" not in text and "--find-links" not in text and "://" not in text
    versions = {pin.name: str(pin.specifier)[2:] for pin in pins}
    for line in filter(None, (ROOT / "requirements.txt").read_text().splitlines()):
        if not line.startswith("#"):
            wanted = Requirement(line)
            assert wanted.specifier.contains(versions[wanted.name]), f"lock {wanted.name} again: see its first lines"


def test_citation_has_the_version_of_the_package() -> None:
    assert f"\nversion: {heatkv.__version__}\n" in (ROOT / "CITATION.cff").read_text()


def test_every_method_of_others_has_a_reference_and_its_authors_a_notice() -> None:
    from heatkv.policies import REGISTRY

    entries = dict(re.findall(r"@\w+\{([\w-]+),(.*?)\n\}", (ROOT / "assets" / "references.bib").read_text(), re.DOTALL))
    others = {name for name, policy in REGISTRY.items() if policy.provenance not in ("ours", "reference")}
    assert {*others, "var", "infinity", "llamagen", "tova"} <= set(entries)
    assert not {name for name, policy in REGISTRY.items() if policy.provenance == "ours"} & set(entries)
    for entry in entries.values():
        assert all(f"{field} " in entry for field in ("title", "author", "year", "url"))
    notice = (ROOT / "THIRD_PARTY.md").read_text()
    first_authors = {
        re.search(r"author\s*= \{([^}]*?)(?: and |\})", entry)[1].split()[-1] for entry in entries.values()
    }
    assert not [author for author in first_authors if author not in notice]


def test_notices_name_every_package_that_the_models_learned_from() -> None:
    from heatkv.training import data

    notice = (ROOT / "THIRD_PARTY.md").read_text()
    packages = [data.NAMES_PACKAGE, *data.STYLE_PACKAGES.values()]
    assert not [package for package in packages if package.rsplit("@", 1)[0] not in notice]
    named = set(re.findall(r"`(assets/[\w./-]+\.\w+)`", notice))
    assert named and all((ROOT / name).is_file() for name in named)
