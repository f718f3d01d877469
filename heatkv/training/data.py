"""The pictures and words the bundled models learn from: permissively licensed emoji art.

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
from typing import IO, Any

import numpy as np
from PIL import Image

NAMES_PACKAGE = "emojibase-data@17.0.0"
# Fluent is pictures of 256 pixels (MIT); the others are vector drawings (Noto Apache-2.0, Twemoji CC-BY-4.0).
STYLE_PACKAGES = {
    "fluent": "@lobehub/fluent-emoji-3d@1.1.0",
    "noto": "@iconify-json/noto@1.2.9",
    "twemoji": "@iconify-json/twemoji@1.2.5",
}
STYLES = tuple(STYLE_PACKAGES)
# Groups of CLDR, as emojibase-data numbers them.
GROUP_PEOPLE, GROUP_COMPONENT, GROUP_SYMBOLS, GROUP_FLAGS = 1, 2, 8, 9
# Colour words that pictures are repainted for, with their hue (0 to 1).
HUES = {"red": 0.98, "orange": 0.07, "yellow": 0.135, "green": 0.36, "blue": 0.59, "purple": 0.76, "pink": 0.91}
LAST_EMOJI = 16  # version of Unicode's emoji that the art goes up to
# Many pictures that are much alike.
VARIANT_GROUPS = (GROUP_PEOPLE, GROUP_SYMBOLS)


@dataclass(frozen=True)
class Emoji:
    """One picture: its CLDR label and keywords, style (a key of ``STYLE_PACKAGES``), code points and CLDR group."""

    label: str
    tags: tuple[str, ...]
    style: str
    hexcode: str
    group: int


@dataclass(frozen=True)
class Dataset:
    """Pictures as uint8 ``[n, side, side, 4]`` (red, green, blue times opacity, opacity), and what is known of each."""

    images: np.ndarray
    emoji: tuple[Emoji, ...]

    def thinned(self, step: int) -> Dataset:
        """Every so many pictures, for a dry run."""
        return Dataset(self.images[::step], self.emoji[::step])


def download(folder: Path) -> None:
    """Fetch the packages into ``folder`` with npm (skips those already there)."""
    folder.mkdir(parents=True, exist_ok=True)
    for package in [NAMES_PACKAGE, *STYLE_PACKAGES.values()]:
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


def pictures_path(folder: Path, side: int) -> Path:
    return folder / f"emoji{side}.npz"


def normal_hexcode(text: str) -> str:
    """Code points as the art packages name their files, without the variation selector."""
    return text.lower().replace("-fe0f", "")


def premultiplied(picture: Image.Image, side: int) -> np.ndarray:
    """uint8 ``[side, side, 4]``; resized with the colours weighted by their opacity, so that edges do not fringe."""
    small = picture.convert("RGBA").convert("RGBa").resize((side, side), Image.Resampling.LANCZOS)
    return np.frombuffer(small.tobytes(), np.uint8).reshape(side, side, 4)


def on_white(pictures: np.ndarray) -> np.ndarray:
    """Pictures uint8 ``[..., 4]`` on a white page, ``[..., 3]``."""
    opacity = pictures[..., 3:]
    return np.minimum(pictures[..., :3], opacity) + (255 - opacity)  # resizing leaves colours above their opacity


def read_pictures(folder: Path, style: str, side: int) -> dict[str, np.ndarray]:
    """Pictures of a style by code points, skin tones left out."""
    with tarfile.open(archive_path(folder, STYLE_PACKAGES[style])) as archive:
        if style == "fluent":
            files = {normal_hexcode(Path(e.name).stem): e.name for e in archive if e.name.endswith((".webp", ".png"))}
            read = {code: member(archive, name).read() for code, name in files.items() if "-1f3f" not in code}
            return {code: premultiplied(Image.open(io.BytesIO(data)), side) for code, data in read.items()}
        icons = json.load(member(archive, "package/icons.json"))
        names: dict[str, str] = json.load(member(archive, "package/chars.json"))
    wanted = {normal_hexcode(code): name for code, name in names.items() if "-1f3f" not in code}
    return {code: premultiplied(draw_icon(icons, name, side), side) for code, name in wanted.items()}


def draw_icon(icons: dict[str, Any], name: str, side: int) -> Image.Image:
    """An icon of an Iconify collection as a picture. Needs the package ``resvg_py``."""
    import resvg_py  # type: ignore[import-not-found,import-untyped,unused-ignore]

    icon = icons["icons"][icons.get("aliases", {}).get(name, {}).get("parent", name)]
    width, height = (icon.get(edge, icons[edge]) for edge in ("width", "height"))
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}">{icon["body"]}</svg>'
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=2 * side, height=2 * side))))


def member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    handle = archive.extractfile(name)
    assert handle is not None
    return handle


def read_names(folder: Path) -> list[dict[str, Any]]:
    """Label, keywords, code points and group of every emoji but flags and components, from the names package."""
    path = archive_path(folder, NAMES_PACKAGE)
    if not path.exists():
        raise FileNotFoundError(f"{path} is missing; run `python -m heatkv.training data --folder {folder}` first")
    with tarfile.open(path) as archive:
        entries: list[dict[str, Any]] = json.load(member(archive, "package/en/data.json"))
    wanted = [e for e in entries if e.get("group") not in (None, GROUP_COMPONENT, GROUP_FLAGS)]
    return [e for e in wanted if e.get("version", 0) <= LAST_EMOJI]


def prepare(folder: Path, side: int = 128) -> Path:
    """Decode the packages into one ``emoji{side}.npz`` beside them and return its path."""
    entries = read_names(folder)
    images, emoji = [], []
    for style in STYLES:
        pictures = read_pictures(folder, style, side)
        for entry in entries:
            code = normal_hexcode(entry["hexcode"])
            if code in pictures:
                images.append(pictures[code])
                emoji.append([entry["label"], entry.get("tags", []), style, code, entry["group"]])
        print(f"{style}: {sum(e[2] == style for e in emoji)} pictures", flush=True)
    path = pictures_path(folder, side)
    np.savez_compressed(path, images=np.stack(images), emoji=np.array(json.dumps(emoji)))
    return path


def load(path: Path) -> Dataset:
    if not path.exists():
        side = path.stem.removeprefix("emoji")
        command = f"python -m heatkv.training data --folder {path.parent} --side {side}"
        raise FileNotFoundError(f"no data at {path}; run `{command}` first")
    with np.load(path) as file:
        entries = json.loads(str(file["emoji"]))
        return Dataset(file["images"], tuple(Emoji(label, tuple(tags), *rest) for label, tags, *rest in entries))


def repainted_label(label: str, colour: str, known: frozenset[str]) -> str | None:
    """The name of a picture in another colour ("blue apple" for "red apple"), None where that is a picture already."""
    words = label.split()
    if not words or any(w in HUES for w in words[1:]):
        return None
    name = " ".join([colour, *(words[1:] if words[0] in HUES else words)])
    return None if name in known or name == label else name


@dataclass(frozen=True, eq=False)
class Colours:
    """Pictures ``[n, side, side]`` taken apart: ``turn`` is the hue of a pixel as a unit complex number (red 1)."""

    value: np.ndarray
    chroma: np.ndarray
    turn: np.ndarray

    @property
    def main(self) -> np.ndarray:
        """Main hue of every picture, ``[n]`` in radians: the mean direction of its pixels, coloured ones counting."""
        return np.angle((self.turn * self.chroma).sum((1, 2)))


def colours(pictures: np.ndarray) -> Colours:
    """Take pictures uint8 ``[n, side, side, 3]`` apart into value, chroma and hue (as in HSV)."""
    rgb = pictures.astype(np.float32) / 255
    value = rgb.max(-1)
    chroma = value - rgb.min(-1)
    red, green, blue = np.moveaxis(rgb, -1, 0)
    safe = np.maximum(chroma, 1e-6)
    sector = np.select(
        [value == red, value == green], [(green - blue) / safe % 6, (blue - red) / safe + 2], (red - green) / safe + 4
    )
    return Colours(value, chroma, np.exp(1j * np.pi / 3 * sector))


def nearest_colour(pictures: np.ndarray) -> list[str]:
    """The word of ``HUES`` that the main hue of every picture is nearest to."""
    turns = np.exp(2j * np.pi * np.array(list(HUES.values())))
    distance = np.abs(np.angle(np.exp(1j * colours(pictures).main)[:, None] / turns))
    return [list(HUES)[i] for i in distance.argmin(1)]


def repaint(pictures: np.ndarray, hue: float) -> np.ndarray:
    """Pictures uint8 ``[n, side, side, 3]`` with every colour moved to (nearly) one hue; white and black stay.

    A quarter of the difference to a picture's own main hue is kept, so that parts can still be told apart.
    """
    found = colours(pictures)
    value, turn = found.value, found.turn
    saturation = found.chroma / np.maximum(value, 1e-6)
    main = found.main[:, None, None]
    new_sector = (hue + 0.25 * np.angle(turn * np.exp(-1j * main)) / (2 * np.pi)) % 1 * 6
    # Grey parts take on colour too, except near white (the page, highlights).
    saturation = np.maximum(saturation, 0.6 * np.clip(4 * (1 - value), 0, 1))
    offsets = (np.array([5.0, 3.0, 1.0]) + new_sector[..., None]) % 6
    ramp = np.clip(np.minimum(offsets, 4 - offsets), 0, 1)
    return np.rint(255 * value[..., None] * (1 - saturation[..., None] * ramp)).astype(np.uint8)
