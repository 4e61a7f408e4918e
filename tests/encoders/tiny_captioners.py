"""Tiny chat models made on the spot, with random weights: a language model, and two that see images or video."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

_SENTENCES = (
    "a the red blue green grey square circle dog cat street car moves stands turns runs slowly quickly left right up "
    "down over under in on with and by night day light dark old small large one two many people watch sky sea . , "
    "USER ASSISTANT : Describe this video Say it at length Rewrite"
)
WORDS = _SENTENCES.split()
SPECIAL = ["<pad>", "</s>", "<unk>", "<image>"]
LLAVA_TEMPLATE = (
    "{% for message in messages %}USER : {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
    " ASSISTANT :"
)
TEXT_TEMPLATE = "{% for message in messages %}USER : {{ message['content'] }}{% endfor %} ASSISTANT :"
QWEN_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}{% if part['type'] == 'video' %}"
    "<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endfor %}"
)
LANGUAGE = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.5,  # so large that what is read decides what is written
    "tie_word_embeddings": False,
}


def word_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )


def make_language_model(folder: Path, template: str | None = TEXT_TEMPLATE) -> Path:
    """Save a Llama of 50 words with its tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = word_tokenizer()
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=None, eos_token_id=1, **LANGUAGE)
    model = LlamaForCausalLM(config)
    model.lm_head.weight.data[1] *= 0.5  # ends its texts now and then, and seldom before the first word
    model.save_pretrained(folder)
    return folder


def make_llava(folder: Path) -> Path:
    """Save a LLaVA: a CLIP of 28 x 28 pixels in patches of 14, and a Llama."""
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    tokenizer = word_tokenizer()
    images = CLIPImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=LLAVA_TEMPLATE,
    ).save_pretrained(folder)
    torch.manual_seed(0)
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=28,
        patch_size=14,
        projection_dim=32,
    )
    language = LlamaConfig(vocab_size=len(tokenizer), pad_token_id=0, bos_token_id=None, eos_token_id=1, **LANGUAGE)
    config = LlavaConfig(vision, language, image_token_index=SPECIAL.index("<image>"), pad_token_id=0)
    model = LlavaForConditionalGeneration(config)
    model.generation_config.eos_token_id = 1
    model.save_pretrained(folder)
    return folder


def make_qwen(folder: Path) -> Path:
    """Save a Qwen2-VL, which takes video as such, with a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import (
        Qwen2TokenizerFast,
        Qwen2VLConfig,
        Qwen2VLForConditionalGeneration,
        Qwen2VLImageProcessor,
        Qwen2VLProcessor,
        Qwen2VLVideoProcessor,
    )

    special = ["<|endoftext|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ids = {token: index for index, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = Qwen2TokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=special[1:])
    limits = {"min_pixels": 28 * 28, "max_pixels": 56 * 56}
    Qwen2VLProcessor(
        Qwen2VLImageProcessor(**limits), fast, Qwen2VLVideoProcessor(**limits), chat_template=QWEN_TEMPLATE
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={
            **LANGUAGE,
            "vocab_size": len(fast),
            "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
            "bos_token_id": None,
            "eos_token_id": ids["<|endoftext|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={"depth": 1, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2},
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    Qwen2VLForConditionalGeneration(config).save_pretrained(folder)
    return folder
