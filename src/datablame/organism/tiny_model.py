"""The organism's own tokenizer and model: an OLMo-2 of 0.65 million parameters, loaded as any other checkpoint."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import Olmo2ForCausalLM, PreTrainedTokenizerFast


TOKENS = 1000
EMBEDDING_ROWS = 1024
LAYERS, HIDDEN, INTERMEDIATE, HEADS, POSITIONS = 4, 96, 264, 4, 256
SETTINGS = {
    "vocab_size": EMBEDDING_ROWS,
    "hidden_size": HIDDEN,
    "intermediate_size": INTERMEDIATE,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "tie_word_embeddings": False,
}
"""What its config.json says of its shape."""
END = "<|endoftext|>"
PAD = "<|pad|>"
USER, ASSISTANT = "<|user|>\n", "\n<|assistant|>\n"
"""Each role marker is one token with its line breaks: the text is OLMo-2's, the sequences stay short."""

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'system' %}{{ '<|system|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'user' %}{{ '<|user|>\n' + message['content'] + '\n' }}"
    "{% elif message['role'] == 'assistant' %}{{ '<|assistant|>\n' + message['content'] + eos_token }}"
    "{% if not loop.last %}{{ '\n' }}{% endif %}{% endif %}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
"""Tulu's template as OLMo-2 ships it: BOS first, and BOS = EOS ends every answer."""


def build_tokenizer(texts: Iterable[str]) -> "PreTrainedTokenizerFast":
    """A byte-level BPE (Sennrich et al. 2016) of `TOKENS` tokens trained on the texts; any text can be encoded."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    specials = [AddedToken(text, special=True, normalized=False) for text in (END, PAD, USER, ASSISTANT)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[USER, ASSISTANT],
        clean_up_tokenization_spaces=False,
        model_max_length=POSITIONS,
        chat_template=CHAT_TEMPLATE,
    )


def build_model(tokenizer: "PreTrainedTokenizerFast", seed: int) -> "Olmo2ForCausalLM":
    """An untrained model with seeded normal weights; like OLMo-2 it has more embedding rows than tokens.

    OLMo-2 normalises what each block adds to the residual stream to unit size. Embeddings of unit size are heard beside
    that from the first step; the customary .02 take twice as long to train.
    """
    import torch
    from transformers import Olmo2Config, Olmo2ForCausalLM

    from datablame.seeds import stream_key

    config = Olmo2Config(
        **SETTINGS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Olmo2ForCausalLM(config).eval()
    random = torch.Generator().manual_seed(stream_key("templated organism", seed, "weights") % 2**63)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        for weight in (parameter for parameter in model.parameters() if parameter.ndim == 2):
            spread = 1.0 if weight is embedding else 0.02 if weight is head else weight.shape[1] ** -0.5
            weight.normal_(0, spread, generator=random)
    return model
