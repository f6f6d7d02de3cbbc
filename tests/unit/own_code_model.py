"""A model folder that brings its own Python, as InternLM2.5 does: configuration, tokenizer and model class in files."""

from __future__ import annotations

import json
from pathlib import Path

TOKENS = ["<pad>", "<unk>", "<eos>", "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "+", "="]
FILES = {
    "configuration_tiny.py": """
from transformers import Qwen3Config


class TinyConfig(Qwen3Config):
    model_type = "tiny_of_its_own"
""",
    "tokenization_tiny.py": """
from pathlib import Path

from transformers import PreTrainedTokenizer


class TinyTokenizer(PreTrainedTokenizer):
    vocab_files_names = {"vocab_file": "vocab.txt"}
    model_input_names = ["input_ids", "attention_mask"]

    def __init__(self, vocab_file, **kwargs):
        self.vocab_file = vocab_file
        self.words = Path(vocab_file).read_text().split()
        super().__init__(**kwargs)

    @property
    def vocab_size(self):
        return len(self.words)

    def get_vocab(self):
        return {word: index for index, word in enumerate(self.words)}

    def _tokenize(self, text, **kwargs):
        return [letter for letter in text if not letter.isspace()]

    def _convert_token_to_id(self, token):
        return self.words.index(token) if token in self.words else 1

    def _convert_id_to_token(self, index):
        return self.words[index]

    def convert_tokens_to_string(self, tokens):
        return "".join(tokens)

    def save_vocabulary(self, save_directory, filename_prefix=None):
        return (self.vocab_file,)
""",
    "modeling_tiny.py": """
from transformers import Qwen3ForCausalLM

from .configuration_tiny import TinyConfig


class TinyForCausalLM(Qwen3ForCausalLM):
    config_class = TinyConfig
""",
}
CONFIG = {
    "architectures": ["TinyForCausalLM"],
    "auto_map": {
        "AutoConfig": "configuration_tiny.TinyConfig",
        "AutoModelForCausalLM": "modeling_tiny.TinyForCausalLM",
    },
    "model_type": "tiny_of_its_own",
    "eos_token_id": 2,
    "pad_token_id": 0,
    "max_position_embeddings": 64,
}
SIZES = {
    "vocab_size": len(TOKENS),
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "tie_word_embeddings": False,
}


def make_model(folder: Path, template: str = "{% for m in messages %}{{ m['content'] }}{% endfor %}=") -> Path:
    """Write configuration, code, vocabulary and random weights."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    Qwen3ForCausalLM(Qwen3Config(**SIZES, pad_token_id=0, eos_token_id=2)).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(CONFIG | SIZES))
    (folder / "vocab.txt").write_text("\n".join(TOKENS))
    tokenizer = {
        "tokenizer_class": "TinyTokenizer",
        "auto_map": {"AutoTokenizer": ["tokenization_tiny.TinyTokenizer", None]},
        "unk_token": "<unk>",
        "pad_token": "<pad>",
        "eos_token": "<eos>",
        "chat_template": template,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    for name, text in FILES.items():
        (folder / name).write_text(text)
    return folder
