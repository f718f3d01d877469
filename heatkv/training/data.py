"""The pictures and words the bundled model learns from: permissively licensed emoji art.

Four packages of the npm registry, fetched by name with ``npm pack``: three art styles and the CLDR
names and keywords. Skin tones, flags and components are left out.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

NAMES_PACKAGE = "emojibase-data@17.0.0"
STYLE_PACKAGES = {
    "fluent": ("@lobehub/fluent-emoji-3d@1.1.0", "package/assets/"),
    "noto": ("emoji-datasource-google@16.0.0", "package/img/google/64/"),
    "twemoji": ("emoji-datasource-twitter@16.0.0", "package/img/twitter/64/"),
}
STYLES = tuple(STYLE_PACKAGES)
GROUP_COMPONENT, GROUP_FLAGS = 2, 9
HELD_OUT_EMOJI = 80
# Shown in the sample sheets, so never held out.
ALWAYS_TRAINED = {"red apple", "cat face", "pizza", "rocket", "sunflower", "octopus", "house", "ghost", "rainbow"}


@dataclass(frozen=True)
class Emoji:
    """One picture: its CLDR label and keywords, its style (a key of ``STYLE_PACKAGES``), its code points."""

    label: str
    tags: tuple[str, ...]
    style: str
    hexcode: str


@dataclass(frozen=True)
class Dataset:
    """Pictures as uint8 ``[n, side, side, 3]`` on white, with what is known of each."""

    images: np.ndarray
    emoji: tuple[Emoji, ...]

    def split(self) -> tuple[np.ndarray, np.ndarray]:
        """Indices for training the tokenizer and of held-out emoji (all styles of an emoji together)."""
        codes = sorted({e.hexcode for e in self.emoji if e.label not in ALWAYS_TRAINED})
        held_out = set(np.random.default_rng(0).choice(codes, HELD_OUT_EMOJI, replace=False).tolist())
        is_held_out = np.array([e.hexcode in held_out for e in self.emoji])
        return np.flatnonzero(~is_held_out), np.flatnonzero(is_held_out)


def download(folder: Path) -> None:
    """Fetch the packages into ``folder`` with npm (skips those already there)."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in [NAMES_PACKAGE, *(name for name, _ in STYLE_PACKAGES.values())]:
        if archive_path(folder, package).exists():
            continue
        print(f"npm pack {package}", flush=True)
        try:
            subprocess.run(["npm", "pack", "--silent", package], cwd=folder, check=True, stdout=subprocess.DEVNULL)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(
                f"could not fetch {package} with npm pack ({error}); is npm installed and online?"
            ) from error


def archive_path(folder: Path, package: str) -> Path:
    name, version = package.rsplit("@", 1)
    return folder / f"{name.removeprefix('@').replace('/', '-')}-{version}.tgz"


def normal_hexcode(text: str) -> str:
    """Code points as the art packages name their files, without the variation selector."""
    return text.lower().replace("-fe0f", "")


def load_picture(data: bytes, side: int) -> np.ndarray:
    picture = Image.open(io.BytesIO(data)).convert("RGBA")
    page = Image.new("RGBA", picture.size, (255, 255, 255, 255))
    page.alpha_composite(picture)
    return np.asarray(page.convert("RGB").resize((side, side), Image.Resampling.LANCZOS))


def read_pictures(folder: Path, style: str, side: int) -> dict[str, np.ndarray]:
    package, prefix = STYLE_PACKAGES[style]
    pictures = {}
    with tarfile.open(archive_path(folder, package)) as archive:
        for member in archive:
            if member.name.startswith(prefix) and member.name.endswith((".webp", ".png")):
                handle = archive.extractfile(member)
                assert handle is not None
                code = normal_hexcode(Path(member.name).stem)
                if code.count("-1f3f") == 0:  # skin tones are left out; do not decode them
                    pictures[code] = load_picture(handle.read(), side)
    return pictures


def prepare(folder: Path, side: int = 64) -> Path:
    """Decode the packages into one ``emoji{side}.npz`` beside them and return its path."""
    with tarfile.open(archive_path(folder, NAMES_PACKAGE)) as archive:
        handle = archive.extractfile("package/en/data.json")
        assert handle is not None
        entries = json.load(handle)
    entries = [e for e in entries if e.get("group") not in (None, GROUP_COMPONENT, GROUP_FLAGS)]
    images, emoji = [], []
    for style in STYLES:
        pictures = read_pictures(folder, style, side)
        for entry in entries:
            code = normal_hexcode(entry["hexcode"])
            if code in pictures:
                images.append(pictures[code])
                emoji.append([entry["label"], entry.get("tags", []), style, code])
        print(f"{style}: {sum(e[2] == style for e in emoji)} pictures", flush=True)
    path = folder / f"emoji{side}.npz"
    np.savez(path, images=np.stack(images), emoji=np.array(json.dumps(emoji)))
    return path


def load(path: Path) -> Dataset:
    if not path.exists():
        raise FileNotFoundError(f"no data at {path}; run `python -m heatkv.training data --folder {path.parent}` first")
    with np.load(path) as file:
        entries = json.loads(str(file["emoji"]))
        return Dataset(
            file["images"], tuple(Emoji(label, tuple(tags), style, code) for label, tags, style, code in entries)
        )
