"""Published shapes by name.

Their sizes are those of the published config.json files; a test holds their parameter counts against the published
ones.
"""

from __future__ import annotations

from typing import Any

from peftbook.memory.architecture import FAMILIES, DecoderShape


def llama(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, **traits: Any) -> DecoderShape:
    """A shape of Llama's family."""
    return DecoderShape(layers, hidden, ffn, heads, kv_heads, vocab, **traits)


def family(name: str, *sizes: int, **traits: Any) -> DecoderShape:
    """A shape of another family."""
    return llama(*sizes, **(FAMILIES[name] | {"family": name} | traits))


def every_other(layers: int) -> tuple[bool, ...]:
    """Gemma 2's layers: the attention of the first slides, that of the second does not, and so on."""
    return tuple(index % 2 == 0 for index in range(layers))


SHAPES: dict[str, DecoderShape] = {
    "smollm2-135m": llama(30, 576, 1536, 9, 3, 49152, tied=True, context=8192),
    "smollm2-360m": llama(32, 960, 2560, 15, 5, 49152, tied=True, context=8192),
    "smollm2-1.7b": llama(24, 2048, 8192, 32, 32, 49152, tied=True, context=8192),
    "smollm3-3b": family("smollm3", 36, 2048, 11008, 16, 4, 128256, tied=True, context=65536),
    "llama-2-7b": llama(32, 4096, 11008, 32, 32, 32000, context=4096),
    "llama-2-13b": llama(40, 5120, 13824, 40, 40, 32000, context=4096),
    "llama-2-70b": llama(80, 8192, 28672, 64, 8, 32000, context=4096),
    "llama-3-8b": llama(32, 4096, 14336, 32, 8, 128256, context=8192),
    "llama-3-70b": llama(80, 8192, 28672, 64, 8, 128256, context=8192),
    "llama-3.1-8b": llama(32, 4096, 14336, 32, 8, 128256, context=131072),
    "llama-3.1-70b": llama(80, 8192, 28672, 64, 8, 128256, context=131072),
    "llama-3.2-1b": llama(16, 2048, 8192, 32, 8, 128256, tied=True, context=131072),
    "llama-3.2-3b": llama(28, 3072, 8192, 24, 8, 128256, tied=True, context=131072),
    "mistral-7b": family("mistral", 32, 4096, 14336, 32, 8, 32000, context=32768, window=4096),
    "mistral-7b-v0.3": family("mistral", 32, 4096, 14336, 32, 8, 32768, context=32768),
    "qwen2.5-0.5b": family("qwen2", 24, 896, 4864, 14, 2, 151936, tied=True, context=32768),
    "qwen2.5-1.5b": family("qwen2", 28, 1536, 8960, 12, 2, 151936, tied=True, context=32768),
    "qwen2.5-3b": family("qwen2", 36, 2048, 11008, 16, 2, 151936, tied=True, context=32768),
    "qwen2.5-7b": family("qwen2", 28, 3584, 18944, 28, 4, 152064, context=131072),
    "qwen2.5-14b": family("qwen2", 48, 5120, 13824, 40, 8, 152064, context=131072),
    "qwen2.5-32b": family("qwen2", 64, 5120, 27648, 40, 8, 152064, context=131072),
    "qwen3-0.6b": family("qwen3", 28, 1024, 3072, 16, 8, 151936, tied=True, head_dim=128, context=40960),
    "qwen3-1.7b": family("qwen3", 28, 2048, 6144, 16, 8, 151936, tied=True, head_dim=128, context=40960),
    "qwen3-4b": family("qwen3", 36, 2560, 9728, 32, 8, 151936, tied=True, head_dim=128, context=40960),
    "qwen3-8b": family("qwen3", 36, 4096, 12288, 32, 8, 151936, head_dim=128, context=40960),
    "qwen3-14b": family("qwen3", 40, 5120, 17408, 40, 8, 151936, head_dim=128, context=40960),
    "qwen3-32b": family("qwen3", 64, 5120, 25600, 64, 8, 151936, head_dim=128, context=40960),
    "ministral-8b-2410": family(
        "mistral", 36, 4096, 12288, 32, 8, 131072, head_dim=128, context=32768, window=32768,
    ),
    "mistral-small-24b": family("mistral", 40, 5120, 32768, 32, 8, 131072, head_dim=128, context=32768),
    "mixtral-8x7b": family("mixtral", 32, 4096, 14336, 32, 8, 32000, experts=8, chosen=2, context=32768),
    "qwen3-30b-a3b": family(
        "qwen3_moe", 48, 2048, 768, 32, 4, 151936, head_dim=128, experts=128, chosen=8, context=40960,
    ),
    "phi-3-mini": family("phi3", 32, 3072, 8192, 32, 32, 32064, context=4096, window=2047),
    "phi-4-mini": family("phi3", 32, 3072, 8192, 24, 8, 200064, tied=True, rotary=96, context=131072),
    "phi-4": family("phi3", 40, 5120, 17920, 40, 10, 100352, context=16384),
    "olmo-2-7b": family("olmo2", 32, 4096, 11008, 32, 32, 100352, context=4096),
    "olmo-2-13b": family("olmo2", 40, 5120, 13824, 40, 40, 100352, context=4096),
    "gemma-2b": family("gemma", 18, 2048, 16384, 8, 1, 256000, head_dim=256, context=8192),
    "gemma-7b": family("gemma", 28, 3072, 24576, 16, 16, 256000, head_dim=256, context=8192),
    "gemma-2-2b": family(
        "gemma2", 26, 2304, 9216, 8, 4, 256000, head_dim=256, context=8192, window=4096, sliding=every_other(26),
    ),
    "gemma-2-9b": family(
        "gemma2", 42, 3584, 14336, 16, 8, 256000, head_dim=256, context=8192, window=4096, sliding=every_other(42),
    ),
    "gemma-2-27b": family(
        "gemma2", 46, 4608, 36864, 32, 16, 256000, head_dim=128, context=8192, window=4096, sliding=every_other(46),
    ),
    "gemma-3-1b": family(
        "gemma3_text", 26, 1152, 6912, 4, 1, 262144, head_dim=256, context=32768, window=512,
        sliding=tuple((index + 1) % 6 > 0 for index in range(26)),
    ),
}  # fmt: skip
ALIASES = {
    "llama-3.3-70b": "llama-3.1-70b", "mistral-7b-v0.1": "mistral-7b", "olmo-2-1124-7b": "olmo-2-7b",
    "olmo-2-1124-13b": "olmo-2-13b", "mixtral-8x7b-v0.1": "mixtral-8x7b",
}  # fmt: skip
