"""Tiny models of many architectures, each a few thousand weights, built from their configs."""

from pathlib import Path
from typing import Any

import torch

__all__ = ["ARCHITECTURES", "PAGE", "SLOW", "VOCABULARY", "built", "page", "read_by"]

PAGE = Path(__file__).parents[1] / "docs/reference/architectures.md"

VOCABULARY = 48

_TEXT: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
_EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_STATE = {"state_size": 4, "num_heads": 4, "head_dim": 8, "n_groups": 1, "chunk_size": 8}
_VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 28}

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {"sliding_window": 4},
    "qwen2": {},
    "qwen3": {"head_dim": 8},
    "olmo2": {},
    "olmo3": {"sliding_window": 4},
    "phi": {},
    "phi3": {"sliding_window": 4},
    "gemma2": {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
    "gemma3": {
        "text_config": {**_TEXT, "head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8},
        "vision_config": {**_VISION, "patch_size": 14},
        "mm_tokens_per_image": 4,
    },
    "cohere2": {"sliding_window": 4},
    "granite": {},
    "starcoder2": {},
    "stablelm": {},
    "smollm3": {},
    "modernbert-decoder": {"local_attention": 4},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "gpt_neo": {
        "num_hidden_layers": 4,
        "num_heads": 4,
        "attention_types": [[["global", "local"], 2]],
        "window_size": 4,
    },
    "gpt_neox": {},
    "gptj": {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64, "rotary_dim": 4},
    "gpt_bigcode": {"n_embd": 16, "n_layer": 3, "n_head": 4, "n_positions": 64},
    "opt": {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "bloom": {"n_head": 4, "n_layer": 3},
    "mpt": {"d_model": 16, "n_layers": 3, "n_heads": 4, "max_seq_len": 64},
    "falcon": {"alibi": True, "new_decoder_architecture": False, "multi_query": False},
    "mixtral": _EXPERTS,
    "olmoe": _EXPERTS,
    "qwen2_moe": {**_EXPERTS, "shared_expert_intermediate_size": 12},
    "qwen3_moe": {**_EXPERTS, "head_dim": 8},
    "granitemoe": _EXPERTS,
    "gpt_oss": {**_EXPERTS, "head_dim": 8, "sliding_window": 4},
    "deepseek_v3": {
        **_EXPERTS,
        **{"n_routed_experts": 4, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1},
        **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 4},
        "num_key_value_heads": 4,
    },
    "llama4_text": {**_EXPERTS, "intermediate_size_mlp": 24, "head_dim": 8, "attention_chunk_size": 4},
    "dbrx": {
        **{"d_model": 16, "n_heads": 4, "n_layers": 3, "max_seq_len": 64},
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 12, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 16},
    },
    "mamba": {"state_size": 4},
    "mamba2": {**_STATE, "expand": 2},
    "falcon_mamba": {"state_size": 4},
    "jamba": {**_EXPERTS, "mamba_d_state": 4, "attn_layer_period": 3, "attn_layer_offset": 1, "expert_layer_period": 2},
    "bamba": {
        "mamba_d_state": 4,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_chunk_size": 8,
        "attn_layer_indices": [1],
    },
    "falcon_h1": {"mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_ssm": 32, "mamba_chunk_size": 8},
    "granitemoehybrid": {
        **_EXPERTS,
        **{"mamba_d_state": 4, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_chunk_size": 8, "mamba_n_groups": 1},
        **{"layer_types": ["mamba", "attention", "mamba"], "shared_intermediate_size": 12},
    },
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "block_multiple_of": 8},
    "lfm2_moe": {**_EXPERTS, "layer_types": ["conv", "full_attention", "conv"], "num_dense_layers": 1},
    "qwen3_next": {
        **_EXPERTS,
        **{"head_dim": 8, "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 4},
        **{"linear_value_head_dim": 4, "layer_types": ["linear_attention", "full_attention", "linear_attention"]},
        "shared_expert_intermediate_size": 12,
    },
    "recurrent_gemma": {"lru_width": 16, "attention_window_size": 4, "block_types": ["recurrent", "attention"]},
    "rwkv": {"attention_hidden_size": 16, "context_length": 64},
    "zamba2": {
        **{"mamba_d_state": 4, "n_mamba_heads": 4, "mamba_ngroups": 1, "chunk_size": 8, "num_mem_blocks": 1},
        **{"layers_block_type": ["mamba", "hybrid", "hybrid"], "adapter_rank": 4, "mamba_headdim": 8},
    },
    "nemotron_h": {
        **_EXPERTS,
        **{"ssm_state_size": 4, "mamba_num_heads": 4, "mamba_head_dim": 8, "n_groups": 1, "chunk_size": 8},
        **{"head_dim": 4, "n_routed_experts": 4, "moe_shared_expert_intermediate_size": 12},
        "layers_block_type": ["mamba", "attention", "moe"],
    },
}

SLOW = frozenset(
    {"qwen3", "olmo3", "phi", "gemma3_text", "granite", "starcoder2", "stablelm"}
    | {"smollm3", "modernbert-decoder", "gpt_neo", "gpt_bigcode", "mpt", "qwen2_moe", "granitemoe"}
    | {"falcon_mamba", "bamba", "falcon_h1", "granitemoehybrid", "lfm2_moe", "zamba2"}
    | {"cohere2", "jamba", "mamba2", "recurrent_gemma", "rwkv"}
)
"""Tried among the slow tests: built of the same parts as another one, or slow."""


def built(name: str, seed: int = 5) -> Any:
    """The model with random weights, in evaluation mode, frozen."""
    from transformers import AutoConfig, AutoModelForCausalLM

    keys = ARCHITECTURES[name]
    config = AutoConfig.for_model(name, **({**_TEXT, **keys} if "text_config" not in keys else keys))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config)
    return model.eval().requires_grad_(False)


def read_by(model: Any) -> str:
    """How outputs of a model are sampled."""
    from datablame.surface.sampler.decoder import StockDecoder, decoder_without_refill, refillable

    if refillable(model):
        return "a batch that stays full"
    decoder = decoder_without_refill(model, [(1,)], 1)
    if not isinstance(decoder, StockDecoder):
        return "reading everything anew"
    return "its own cache" if decoder.pads else "its own cache, prompts of one length together"


def page() -> str:
    """The table of docs/reference/architectures.md, with what stands around it."""
    from datablame.models.blocks import decoder_blocks
    from datablame.models.products import coverage

    rows = []
    for name in ARCHITECTURES:
        model = built(name)
        share = coverage(model, range(len(decoder_blocks(model))))
        seen = f"{100 * share:.0f} %" + ("" if share >= 0.5 else ", refused")
        rows.append(f"| `{name}` | `{type(model).__name__}` | {read_by(model)} | {seen} |")
    head, _, tail = PAGE.read_text().partition("<!-- table -->\n")
    after = tail.partition("<!-- end -->")[2]
    lines = ["| type | class | sampled by | seen |", "|---|---|---|---:|", *rows]
    return f"{head}<!-- table -->\n" + "\n".join(lines) + f"\n<!-- end -->{after}"


if __name__ == "__main__":
    PAGE.write_text(page())
