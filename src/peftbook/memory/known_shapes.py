"""Published shapes by name.

Their sizes are those of the published config.json files; a test holds their parameter counts against the published
ones.
"""

from __future__ import annotations

from typing import Any

from peftbook.memory.architecture import FAMILIES, DecoderShape, sliding_by_rule


def llama(layers: int, hidden: int, ffn: int, heads: int, kv_heads: int, vocab: int, **traits: Any) -> DecoderShape:
    """A shape of Llama's family."""
    return DecoderShape(layers, hidden, ffn, heads, kv_heads, vocab, **traits)


def family(name: str, *sizes: int, **traits: Any) -> DecoderShape:
    """A shape of another family; where it has a window, layers slide by the family's rule."""
    sliding = {"sliding": sliding_by_rule(name, sizes[0])} if "window" in traits else {}
    return llama(*sizes, **(FAMILIES[name] | {"family": name} | sliding | traits))


def hub_id(name: str) -> str:
    """The id of the hub that a known shape's name stands for; any other name as it is."""
    return HUB_IDS.get(name.lower(), name)


SHAPES: dict[str, DecoderShape] = {
    "smollm2-135m": llama(30, 576, 1536, 9, 3, 49152, tied=True, context=8192),
    "smollm2-360m": llama(32, 960, 2560, 15, 5, 49152, tied=True, context=8192),
    "smollm2-1.7b": llama(24, 2048, 8192, 32, 32, 49152, tied=True, context=8192),
    "smollm3-3b": family("smollm3", 36, 2048, 11008, 16, 4, 128256, tied=True, context=65536),
    "tinyllama-1.1b": llama(22, 2048, 5632, 32, 4, 32000, context=2048),
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
    "ministral-8b-2410": family("mistral", 36, 4096, 12288, 32, 8, 131072, head_dim=128, context=32768, window=32768),
    "mistral-small-24b": family("mistral", 40, 5120, 32768, 32, 8, 131072, head_dim=128, context=32768),
    "mixtral-8x7b": family("mixtral", 32, 4096, 14336, 32, 8, 32000, experts=8, chosen=2, context=32768),
    "qwen3-30b-a3b": family(
        "qwen3_moe", 48, 2048, 768, 32, 4, 151936, head_dim=128, experts=128, chosen=8, context=40960,
    ),
    "phi-3-mini": family("phi3", 32, 3072, 8192, 32, 32, 32064, context=4096, window=2047),
    "phi-3-mini-128k": family("phi3", 32, 3072, 8192, 32, 32, 32064, context=131072, window=262144),
    "phi-4-mini": family("phi3", 32, 3072, 8192, 24, 8, 200064, tied=True, rotary=96, context=131072),
    "phi-4": family("phi3", 40, 5120, 17920, 40, 10, 100352, context=16384),
    "olmo-2-7b": family("olmo2", 32, 4096, 11008, 32, 32, 100352, context=4096),
    "olmo-2-13b": family("olmo2", 40, 5120, 13824, 40, 40, 100352, context=4096),
    "gemma-2b": family("gemma", 18, 2048, 16384, 8, 1, 256000, head_dim=256, context=8192),
    "gemma-7b": family("gemma", 28, 3072, 24576, 16, 16, 256000, head_dim=256, context=8192),
    "gemma-2-2b": family("gemma2", 26, 2304, 9216, 8, 4, 256000, head_dim=256, context=8192, window=4096),
    "gemma-2-9b": family("gemma2", 42, 3584, 14336, 16, 8, 256000, head_dim=256, context=8192, window=4096),
    "gemma-2-27b": family("gemma2", 46, 4608, 36864, 32, 16, 256000, head_dim=128, context=8192, window=4096),
    "gemma-3-270m": family("gemma3_text", 18, 640, 2048, 4, 1, 262144, head_dim=256, context=32768, window=512),
    "gemma-3-1b": family("gemma3_text", 26, 1152, 6912, 4, 1, 262144, head_dim=256, context=32768, window=512),
    "gemma-3-4b": family("gemma3_text", 34, 2560, 10240, 8, 4, 262208, head_dim=256, context=131072, window=1024),
    "gemma-3-12b": family("gemma3_text", 48, 3840, 15360, 16, 8, 262208, head_dim=256, context=131072, window=1024),
    "gemma-3-27b": family("gemma3_text", 62, 5376, 21504, 32, 16, 262208, head_dim=128, context=131072, window=1024),
}  # fmt: skip
# The id of the hub that a name stands for where weights are needed: the version that follows instructions
HUB_IDS = {
    f"{name}-{size.lower()}": where.format(size)
    for name, where, sizes in (
        ("smollm2", "HuggingFaceTB/SmolLM2-{}-Instruct", "135M 360M 1.7B"),
        ("llama-2", "meta-llama/Llama-2-{}-chat-hf", "7b 13b 70b"),
        ("llama-3", "meta-llama/Meta-Llama-3-{}-Instruct", "8B 70B"),
        ("llama", "meta-llama/Llama-{}-Instruct", "3.1-8B 3.1-70B 3.2-1B 3.2-3B"),
        ("qwen2.5", "Qwen/Qwen2.5-{}-Instruct", "0.5B 1.5B 3B 7B 14B 32B"),
        ("qwen3", "Qwen/Qwen3-{}", "0.6B 1.7B 4B 8B 14B 32B 30B-A3B"),
        ("olmo-2", "allenai/OLMo-2-1124-{}-Instruct", "7B 13B"),
        ("gemma", "google/gemma-{}-it", "2b 7b 2-2b 2-9b 2-27b 3-270m 3-1b 3-4b 3-12b 3-27b"),
    )
    for size in sizes.split()
} | {
    "smollm3-3b": "HuggingFaceTB/SmolLM3-3B", "tinyllama-1.1b": "TinyLlama/TinyLlama-1.1B-Chat-v1.0",
    "mistral-7b": "mistralai/Mistral-7B-Instruct-v0.1", "mistral-7b-v0.3": "mistralai/Mistral-7B-Instruct-v0.3",
    "ministral-8b-2410": "mistralai/Ministral-8B-Instruct-2410",
    "mistral-small-24b": "mistralai/Mistral-Small-24B-Instruct-2501",
    "mixtral-8x7b": "mistralai/Mixtral-8x7B-Instruct-v0.1", "phi-3-mini": "microsoft/Phi-3-mini-4k-instruct",
    "phi-3-mini-128k": "microsoft/Phi-3-mini-128k-instruct", "phi-4-mini": "microsoft/Phi-4-mini-instruct",
    "phi-4": "microsoft/phi-4",
}  # fmt: skip
ALIASES = {
    "tinyllama-1.1b-v1.0": "tinyllama-1.1b", "phi-3-mini-4k": "phi-3-mini", "phi-3.5-mini": "phi-3-mini-128k",
    "mistral-small-24b-2501": "mistral-small-24b",
    "llama-3.3-70b": "llama-3.1-70b", "mistral-7b-v0.1": "mistral-7b", "olmo-2-1124-7b": "olmo-2-7b",
    "olmo-2-1124-13b": "olmo-2-13b", "mixtral-8x7b-v0.1": "mixtral-8x7b",
}  # fmt: skip
