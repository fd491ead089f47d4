"""Tiny random models of many families, and autograd's own gradients of single examples to compare with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import transformers as tf
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from spice_select.config import GradientConfig
from spice_select.gradients import Proxy

VOCABULARY = 97
_SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_GPT: dict[str, Any] = {"vocab_size": VOCABULARY, "bos_token_id": 1, "eos_token_id": 2}

FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: tf.LlamaConfig(**_SMALL),
    "llama-biases": lambda: tf.LlamaConfig(**_SMALL, attention_bias=True, mlp_bias=True),
    "llama-tied": lambda: tf.LlamaConfig(**_SMALL, tie_word_embeddings=True),
    "qwen2": lambda: tf.Qwen2Config(**_SMALL),
    "gpt2": lambda: tf.GPT2Config(**_GPT, n_embd=32, n_layer=2, n_head=4, n_positions=64),
    "gemma2": lambda: tf.Gemma2Config(
        **_SMALL, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=3.0, attn_logit_softcapping=2.0
    ),
    "granite": lambda: tf.GraniteConfig(
        **_SMALL, logits_scaling=4.0, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.3
    ),
    "cohere": lambda: tf.CohereConfig(**_SMALL, logit_scale=0.3),
    "mixtral": lambda: tf.MixtralConfig(**_SMALL, num_local_experts=4, num_experts_per_tok=2),
    "qwen2-moe": lambda: tf.Qwen2MoeConfig(
        **_SMALL,
        num_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        shared_expert_intermediate_size=24,
        decoder_sparse_step=1,
    ),
    "gpt-oss": lambda: tf.GptOssConfig(
        **_SMALL,
        num_local_experts=4,
        num_experts_per_tok=2,
        head_dim=8,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    ),
    # Its attention calls a linear layer with an axis of one between examples and tokens.
    "deepseek-v3": lambda: tf.DeepseekV3Config(
        **{**_SMALL, "num_key_value_heads": 4},
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=8,
    ),
    "opt": lambda: tf.OPTConfig(
        **_GPT,
        hidden_size=32,
        ffn_dim=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        word_embed_proj_dim=32,
    ),
}


def tiny_model(family: str, seed: int = 0) -> Any:
    """A model whose weights are large enough for every part of it to matter, biases included."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = tf.AutoModelForCausalLM.from_config(FAMILIES[family]())
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0, 0.15)
                else:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def examples(count: int = 5, seed: int = 0) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Token ids of different lengths, and masks of their last parts; one mask has two parts."""
    generator = np.random.default_rng(seed)
    ids = [generator.integers(1, VOCABULARY, size=size).astype(np.int32) for size in generator.integers(5, 20, count)]
    masks = [np.arange(len(row)) >= generator.integers(1, len(row) - 1) for row in ids]
    masks[0] = masks[0].copy()
    masks[0][1] = True
    return ids, masks


def own_loss(model: nn.Module, ids: np.ndarray, mask: np.ndarray) -> Tensor:
    """The model's own account of an example's loss."""
    tokens = torch.from_numpy(ids).long()[None]
    return model(input_ids=tokens, labels=torch.where(torch.from_numpy(mask)[None], tokens, -100)).loss


def autograd_gradients(proxy: Proxy, ids: np.ndarray, mask: np.ndarray) -> dict[str, Tensor]:
    """One example's weight gradients by layer name, outputs by inputs, from an ordinary backward pass."""
    model = proxy.model
    model.requires_grad_(True)
    model.zero_grad()
    own_loss(model, ids, mask).backward()
    modules, parameters = dict(model.named_modules()), dict(model.named_parameters())
    found = {}
    for layer in proxy.layers:
        if layer.name in modules:
            module = modules[layer.name]
            gradient = module.weight.grad
            gradient = gradient.t() if isinstance(module, Conv1D) else gradient
        else:
            name, expert = layer.name.rsplit(".", 1)
            gradient = parameters[name].grad[int(expert)]
            gradient = gradient if gradient.shape == (layer.rows, layer.columns) else gradient.t()
        found[layer.name] = gradient.clone()
    model.requires_grad_(False)
    model.zero_grad()
    return found


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Norm of the difference of two gradients over the norm of the second."""
    difference = sum(float((found[name] - value).double().square().sum()) for name, value in expected.items())
    size = sum(float(value.double().square().sum()) for value in expected.values())
    return (difference / size) ** 0.5


def tiny_proxy(family: str, **settings: Any) -> Proxy:
    return Proxy.from_model(tiny_model(family), None, GradientConfig(**settings))
