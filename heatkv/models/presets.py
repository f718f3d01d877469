"""Published models by name: what belongs together, where it is published and how it is run.

A further model of a known family is one more entry in ``PRESETS``.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from heatkv.files import shown
from heatkv.models.base import Sampling
from heatkv.models.infinity.autoencoder import AutoencoderConfig
from heatkv.models.infinity.scales import SIZES, find_ratio, is_published, published_scales, rope_grid
from heatkv.models.infinity.transformer import TransformerConfig
from heatkv.models.llamagen.transformer import LlamaGenConfig
from heatkv.models.llamagen.vq import VqConfig
from heatkv.models.var.layout import SCALES as VAR_SCALES
from heatkv.models.var.transformer import VarConfig
from heatkv.models.var.vqvae import VqvaeConfig
from heatkv.scales import Geometry, ScaleSchedule


@dataclass(frozen=True)
class Weights:
    """Published weights: a file, a folder of shards or (``name`` empty) a whole repository of the hub.

    ``size`` is what has to be downloaded, in bytes, as the hub's pages showed it (rounded there, last seen in 2025);
    ``estimated`` where it is computed from the parameters instead, unverified. ``patterns`` choose files of a folder
    or repository. ``repo`` is empty for weights that are not published. ``aliases`` are names that the authors' scripts
    give what they publish.
    """

    repo: str
    name: str
    size: int
    patterns: tuple[str, ...] = ()
    estimated: bool = False
    aliases: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """What the file or folder may be called when it lies in a folder of its own."""
        return (self.local_name, *self.aliases)

    @property
    def size_text(self) -> str:
        """The size for people."""
        return (
            f"{'about ' if self.estimated else ''}{self.size / 1e9:.1f} GB{' (unverified)' if self.estimated else ''}"
        )

    @property
    def local_name(self) -> str:
        """What the file or folder is called when it lies in a folder of its own."""
        return self.name or self.repo.rpartition("/")[2]

    @property
    def is_folder(self) -> bool:
        return bool(self.patterns)


@dataclass(frozen=True)
class Preset:
    """A published model.

    ``text`` is None for models that need no text encoder; ``text_parameters`` counts what is loaded of
    it. ``size`` and ``ratio`` name the published scales (Infinity) and are empty where there is no choice.
    """

    id: str
    family: str
    summary: str
    scales: ScaleSchedule
    transformer_config: TransformerConfig | VarConfig | LlamaGenConfig
    autoencoder_config: AutoencoderConfig | VqvaeConfig | VqConfig
    transformer: Weights
    autoencoder: Weights
    text: Weights | None = None
    text_parameters: int = 0
    sampling: Sampling = field(default_factory=Sampling)
    sampling_source: str = ""
    note: str = ""
    examples: tuple[str, ...] = ()
    size: str = ""
    ratio: str = ""
    licence: str = ""

    @property
    def geometry(self) -> Geometry:
        shape = self.transformer_config
        return Geometry(shape.depth, shape.heads, shape.head_dim, self.scales)

    @property
    def told(self) -> dict[str, str]:
        """What people should know beside the summary."""
        return {name: text for name, text in (("sampling", self.sampling_source), ("note", self.note)) if text}

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width of an image in pixels."""
        shape = self.autoencoder_config
        stride = shape.stride * (2 if isinstance(shape, AutoencoderConfig) and shape.patchify else 1)
        h, w = self.scales[len(self.scales) - 1]
        if isinstance(self.transformer_config, LlamaGenConfig):
            h = w = self.transformer_config.grid
        return h * stride, w * stride

    def at(self, size: str, ratio: str = "1.0") -> Preset:
        """The model at another published size and aspect ratio; its name says which.

        Raises ``ValueError`` for sizes and ratios that are not published, or a model without a choice.
        """
        if not self.size or not isinstance(self.transformer_config, TransformerConfig):
            h, w = self.image_size
            raise ValueError(f"{self.id} has one size, {h} x {w}: name it without `:{size}`")
        asked, ratio = ratio, find_ratio(ratio)
        note = "" if is_published(asked) else f"the published shape nearest to {asked} (height / width) is {ratio}"
        if (size, ratio) == (self.size, self.ratio):
            return replace(self, note=note) if note else self
        scales = published_scales(size, ratio)
        config = replace(self.transformer_config, rope_grid=rope_grid(ratio))
        name = f"{self.id}:{size}" + ("" if ratio == "1.0" else f":{ratio}")
        result = replace(self, id=name, scales=scales, transformer_config=config, size=size, ratio=ratio)
        result = replace(result, note=note)
        h, w = result.image_size
        return replace(result, summary=f"{self.summary.rpartition(', ')[0]}, {h} x {w}")


MIT = "MIT"  # as both repositories state on the hub
VAR_REPO, INFINITY_REPO = "FoundationVision/var", "FoundationVision/Infinity"
VAR_AUTOENCODER = Weights(VAR_REPO, "vae_ch160v4096z32.pth", 436_000_000, estimated=True)
T5_FILES = ("config.json", "tokenizer*", "spiece.model", "special_tokens_map.json", "model*.safetensors*")
T5_XL = Weights("google/flan-t5-xl", "", 11_400_000_000, T5_FILES, aliases=("flan-t5-xl-official",))
SHARD_FILES = ("*.safetensors", "*.bin", "*.json")
BITS_16 = AutoencoderConfig(128, (1, 2, 4, 4, 4), bits=16, stride=16)
BITS_32 = AutoencoderConfig(128, (1, 2, 4, 4, 4), bits=32, stride=16)
BITS_56 = AutoencoderConfig(128, (1, 2, 4, 4), bits=14, stride=8, patchify=True)
# As the authors' own scripts have it. Of two settings for 2B, that of the script which their README runs; the notebook
# (interactive_infer.ipynb) has a guidance of 3. Files of other shapes, of which nobody says, get the same.
INFINITY_SAMPLING = Sampling(guidance=4.0, temperature=0.5, top_k=900, top_p=0.97)
INFINITY_SOURCE = "scripts/infer.sh of FoundationVision/Infinity: cfg 4, tau 0.5"
INFINITY_8B_SAMPLING = Sampling(guidance=3.0, temperature=1.0, top_k=900, top_p=0.97)
INFINITY_8B_SOURCE = "the 8B notebooks of FoundationVision/Infinity: cfg 3, tau 1"
VAR_SOURCE = (
    "demo_sample.ipynb of FoundationVision/VAR: cfg 4 (a guidance of 5 at the last scale), top_k 900, top_p 0.95"
)
INFINITY_EXAMPLES = (
    "a red fox resting in fresh snow at dawn",
    "an old lighthouse on a cliff, oil painting",
    "a bowl of ramen on a wooden table, close-up photograph",
    "a glass teapot shaped like an elephant",
)


def var(depth: int, side: int, parameters: str, transformer_bytes: int) -> Preset:
    """A VAR model: width and heads follow from the depth."""
    return Preset(
        id=f"var-d{depth}",
        family="var",
        summary=f"VAR d{depth} ({parameters}), classes of ImageNet, {side} x {side}",
        scales=VAR_SCALES[side],
        transformer_config=VarConfig(depth, 64 * depth, depth, shared_modulation=side == 512),
        autoencoder_config=VqvaeConfig(),
        transformer=Weights(VAR_REPO, f"var_d{depth}.pth", transformer_bytes, estimated=True),
        autoencoder=VAR_AUTOENCODER,
        # Guidance grows from 1 to 5 over the scales: the published cfg of 4.
        sampling=Sampling(guidance=5.0, top_k=900, top_p=0.95),
        sampling_source=VAR_SOURCE,
        examples=("golden retriever", "volcano", "espresso", "balloon", "macaw", "lakeside"),
        licence=MIT,
    )


def infinity(
    id: str, summary: str, shape: tuple[int, int, int], size: str, transformer: Weights,
    autoencoder: Weights, autoencoder_config: AutoencoderConfig,
) -> Preset:  # fmt: skip
    """An Infinity model of ``shape`` (depth, width, heads), square and of a published size unless asked otherwise."""
    depth, width, heads = shape
    side = 16 * published_scales(size).sizes[-1][0]
    config = TransformerConfig(
        depth, width, heads, bits=autoencoder_config.token_bits, text_width=2048, text_maxlen=512, rope_grid=rope_grid()
    )
    return Preset(
        id=id,
        family="infinity",
        summary=f"{summary}, {side} x {side}",
        scales=published_scales(size),
        transformer_config=config,
        autoencoder_config=autoencoder_config,
        transformer=transformer,
        autoencoder=autoencoder,
        text=T5_XL,
        text_parameters=1_223_527_424,
        sampling=INFINITY_8B_SAMPLING if depth == 40 else INFINITY_SAMPLING,
        sampling_source=INFINITY_8B_SOURCE if depth == 40 else INFINITY_SOURCE,
        examples=INFINITY_EXAMPLES,
        size=size,
        ratio="1.0",
        licence=f"{MIT}; text encoder: Apache-2.0",
    )


LLAMAGEN_SIZES = {  # depth, width, heads, parameters
    "b": (12, 768, 12, 111_000_000), "l": (24, 1024, 16, 343_000_000), "xl": (36, 1280, 20, 775_000_000),
    "xxl": (48, 1536, 24, 1_410_000_000), "3b": (24, 3200, 32, 3_100_000_000),
}  # fmt: skip
LLAMAGEN_CLASSES = (("b", 256), ("l", 256), ("b", 384), ("l", 384), ("xl", 384), ("xxl", 384), ("3b", 384))
LLAMAGEN_REPO, LLAMAGEN_TEXT_REPO = "FoundationVision/LlamaGen", "peizesun/llamagen_t2i"


def llamagen(size: str, side: int) -> Preset:
    """A class-conditional LlamaGen model; published files hold float32."""
    depth, width, heads, parameters = LLAMAGEN_SIZES[size]
    config = LlamaGenConfig(depth, width, heads, grid=side // 16)
    return Preset(
        id=f"llamagen-{size}-{side}",
        family="llamagen",
        summary=f"LlamaGen {size.upper()} ({parameters / 1e9:.2g}B), classes of ImageNet, {side} x {side}",
        scales=config.scales,
        transformer_config=config,
        autoencoder_config=VqConfig(),
        transformer=Weights(LLAMAGEN_REPO, f"c2i_{size.upper()}_{side}.pt", 4 * parameters, estimated=True),
        autoencoder=Weights(LLAMAGEN_REPO, "vq_ds16_c2i.pt", 288_000_000, estimated=True),
        sampling=Sampling(guidance=4.0, top_k=2000),
        examples=("golden retriever", "valley", "red panda", "balloon", "macaw", "volcano"),
        licence=MIT,
    )


def llamagen_text(side: int, stage: int) -> Preset:
    """A text-conditional LlamaGen model (XL)."""
    depth, width, heads, _ = LLAMAGEN_SIZES["xl"]
    config = LlamaGenConfig(depth, width, heads, grid=side // 16, condition="caption", condition_tokens=120)
    return Preset(
        id=f"llamagen-t2i-{side}",
        family="llamagen",
        summary=f"LlamaGen XL (0.78B), text to image, {side} x {side}",
        scales=config.scales,
        transformer_config=config,
        autoencoder_config=VqConfig(),
        transformer=Weights(LLAMAGEN_TEXT_REPO, f"t2i_XL_stage{stage}_{side}.pt", 3_110_000_000, estimated=True),
        autoencoder=Weights(LLAMAGEN_TEXT_REPO, "vq_ds16_t2i.pt", 288_000_000, estimated=True),
        text=T5_XL,
        text_parameters=1_223_527_424,
        sampling=Sampling(guidance=7.5, top_k=1000),
        examples=INFINITY_EXAMPLES,
        licence=f"{MIT}; text encoder: Apache-2.0",
    )


D32REG = Weights(INFINITY_REPO, "infinity_vae_d32reg.pth", 1_560_000_000, aliases=("infinity_vae_d32_reg.pth",))
D16 = Weights(INFINITY_REPO, "infinity_vae_d16.pth", 1_560_000_000)
D56 = Weights(INFINITY_REPO, "infinity_vae_d56_f8_14_patchify.pth", 440_000_000, estimated=True)

PRESETS: dict[str, Preset] = {
    preset.id: preset
    for preset in (
        var(16, 256, "310M", 1_240_000_000),
        var(20, 256, "601M", 2_400_000_000),
        var(24, 256, "1.03B", 4_130_000_000),
        var(30, 256, "2.01B", 8_040_000_000),
        var(36, 512, "2.35B", 9_400_000_000),
        infinity(
            "infinity-125m", "Infinity 125M, text to image", (12, 768, 8), "0.06M",
            Weights(INFINITY_REPO, "infinity_125M_256x256.pth", 501_000_000), D16, BITS_16,
        ),
        infinity(
            "infinity-2b", "Infinity 2B, text to image", (32, 2048, 16), "1M",
            Weights(INFINITY_REPO, "infinity_2b_reg.pth", 8_820_000_000), D32REG, BITS_32,
        ),
        infinity(
            "infinity-8b-512", "Infinity 8B, text to image", (40, 3584, 28), "0.25M",
            Weights(INFINITY_REPO, "infinity_8b_512x512_weights", 33_500_000_000, SHARD_FILES), D56, BITS_56,
        ),
        infinity(
            "infinity-8b", "Infinity 8B, text to image", (40, 3584, 28), "1M",
            Weights(INFINITY_REPO, "infinity_8b_weights", 33_500_000_000, SHARD_FILES), D56, BITS_56,
        ),
        *(llamagen(*model) for model in LLAMAGEN_CLASSES),
        llamagen_text(256, stage=1),
        llamagen_text(512, stage=2),
    )
}  # fmt: skip


def find_preset(name: str) -> Preset | None:
    """The preset of a name such as ``infinity-2b`` or, at another size and ratio, ``infinity-2b:0.25M:1.5``.

    None for other names; raises ``ValueError`` where only the size or ratio is wrong.
    """
    base, _, variant = name.partition(":")
    if base not in PRESETS:
        return None
    preset = PRESETS[base]
    if not variant:
        return preset
    size, _, ratio = variant.partition(":")
    if size not in SIZES:
        sizes = ", ".join(SIZES)
        raise ValueError(f"{shown(name)}: after the first colon comes a size, one of {sizes}, and then a ratio")
    return preset.at(size, ratio or preset.ratio)
