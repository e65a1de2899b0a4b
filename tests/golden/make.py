"""Creates tiny-modernbert, and the token ids of tiny-static, in the directory of this file.

Needs sentence-transformers 6.2.0. The tokenizer of tiny-modernbert is that of tiny-bert-mean.
"""

import json
import shutil
import tempfile
from pathlib import Path

import torch
from safetensors.torch import save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize, Transformer
from sentence_transformers.sentence_transformer.modules import Pooling
from transformers import ModernBertConfig, ModernBertModel

GOLDEN = Path(__file__).parent
TEXTS = [json.loads(line) for line in (GOLDEN / "texts.jsonl").read_text().splitlines()]
TOKENIZER = GOLDEN / "tiny-bert-mean"


def encoder():
    """Returns a model with both kinds of attention. Local attention covers 8 tokens on either side, of 48."""
    torch.manual_seed(7)
    model = ModernBertModel(
        ModernBertConfig(
            vocab_size=json.loads((TOKENIZER / "config.json").read_text())["vocab_size"],
            hidden_size=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=64,
            local_attention=16,
            global_attn_every_n_layers=2,
            pad_token_id=0,
            cls_token_id=2,
            bos_token_id=2,
            sep_token_id=3,
            eos_token_id=3,
        )
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            # The weights are so large that attention is far from uniform and that every norm affects the result.
            if weight.dim() == 1:
                weight.normal_(1.0, 0.2)
            else:
                weight.normal_(0.0, 0.25)
    return model


def modernbert():
    target = GOLDEN / "tiny-modernbert"
    shutil.rmtree(target, ignore_errors=True)
    with tempfile.TemporaryDirectory() as plain:
        encoder().save_pretrained(plain)
        for name in ["tokenizer.json", "tokenizer_config.json"]:
            shutil.copy(TOKENIZER / name, plain)
        transformer = Transformer(plain)
        pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
        SentenceTransformer(modules=[transformer, pooling, Normalize()]).save(str(target))
    # The model card has no useful content for random weights.
    (target / "README.md").unlink(missing_ok=True)
    model = SentenceTransformer(str(target), device="cpu")
    vectors = [model.encode([text], convert_to_tensor=True)[0] for text in TEXTS]
    save_file({"embedding": torch.stack(vectors)}, target / "reference.safetensors")
    ids = [model.preprocess([text])["input_ids"][0].tolist() for text in TEXTS]
    (target / "reference_ids.json").write_text(json.dumps(ids))


def static_ids():
    target = GOLDEN / "tiny-static"
    model = SentenceTransformer(str(target), device="cpu")
    ids = [model.preprocess([text])["input_ids"].tolist() for text in TEXTS]
    (target / "reference_ids.json").write_text(json.dumps(ids))


modernbert()
static_ids()
