"""Creates the files of this directory: tiny models as GGUF and ONNX, and the vectors of llama.cpp and onnxruntime.

    python make.py LLAMA_CPP_SOURCE LLAMA_CPP_BUILD [NAME ...]

LLAMA_CPP_SOURCE is the unpacked source of llama-cpp-python, LLAMA_CPP_BUILD a build of the llama.cpp in it with
llama-quantize and the shared libraries. README.md states the versions. Names are those of GGUF models or `onnx`. Without
names, all files are created.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file

HERE = Path(__file__).resolve().parent
GOLDEN = HERE.parent
TEXTS = (HERE / "texts.txt").read_text(encoding="utf-8").splitlines()
SOURCE, BUILD = Path(sys.argv[1]).resolve(), Path(sys.argv[2]).resolve()
LLAMA_CPP = SOURCE / "vendor/llama.cpp"
sys.path[:0] = [str(SOURCE), str(LLAMA_CPP), str(LLAMA_CPP / "gguf-py")]
os.environ["LLAMA_CPP_LIB_PATH"] = str(BUILD / "bin")

SIZES = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
ROPE = {"rope_type": "default", "rope_theta": 1000.0}


def randomize(model, seed, spread=0.15):
    """Gives every tensor random values: those of norms around 1 (around 0 for Gemma), of biases around 0."""
    generator = torch.Generator().manual_seed(seed)
    for name, values in sorted(model.items()):
        noise = torch.randn(values.shape, generator=generator)
        is_norm = values.dim() == 1 and name.endswith("weight")
        model[name] = noise * spread + (1.0 if is_norm else 0.0)
    return model


def write(directory, config, tokenizer, seed, pooling, gemma=False, published=None):
    """Writes a model with random weights to `directory`."""
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    config.architectures = [type(model).__name__]
    model.save_pretrained(directory)
    state = randomize(load_file(directory / "model.safetensors"), seed)
    if gemma:
        state = {k: v - 1 if v.dim() == 1 else v for k, v in state.items()}
    content = published or json.loads((directory / "config.json").read_text())
    write_state(directory, state, content, tokenizer, pooling)


def write_state(directory, state, config, tokenizer, pooling):
    directory.mkdir(exist_ok=True)
    state = {k: v.contiguous() for k, v in state.items() if not k.startswith("pooler.")}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        if tokenizer and (tokenizer / name).exists():
            (directory / name).write_bytes((tokenizer / name).read_bytes())
    modules = [("", "Transformer"), ("1_Pooling", "Pooling")]
    modules = [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
               for i, (path, name) in enumerate(modules)]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "1_Pooling").mkdir()
    mode = {"word_embedding_dimension": config.get("hidden_size", 32), "pooling_mode": pooling}
    (directory / "1_Pooling/config.json").write_text(json.dumps(mode))


def bert(directory):
    config = transformers.BertConfig(**SIZES, vocab_size=540, max_position_embeddings=160)
    write(directory, config, GOLDEN / "tiny-bert-mean", 1, "mean")
    return "jina-v2-en"


def distilbert(directory):
    config = transformers.DistilBertConfig(dim=32, n_layers=2, n_heads=2, hidden_dim=64, vocab_size=608,
                                           max_position_embeddings=160)
    write(directory, config, GOLDEN / "tiny-distilbert", 12, "mean")
    return "jina-v2-en"


def large_blocks(directory):
    """BERT whose rows have the 256 values of the formats with large blocks, with a small vocabulary."""
    config = transformers.BertConfig(hidden_size=256, num_hidden_layers=1, num_attention_heads=4,
                                     intermediate_size=256, vocab_size=64, max_position_embeddings=24)
    tokenizer = directory.parent / "letters"
    tokenizer.mkdir()
    content = json.loads((GOLDEN / "tiny-bert-mean/tokenizer.json").read_text())
    kept = sorted(content["model"]["vocab"].items(), key=lambda entry: entry[1])[:64]
    content["model"]["vocab"] = dict(kept)
    (tokenizer / "tokenizer.json").write_text(json.dumps(content))
    config_file = (GOLDEN / "tiny-bert-mean/tokenizer_config.json").read_bytes()
    (tokenizer / "tokenizer_config.json").write_bytes(config_file)
    write(directory, config, tokenizer, 2, "cls")
    return "jina-v2-en"


def train(prefix, **settings):
    """Trains a tokenizer of SentencePiece and writes it to `prefix` with the suffix `.model`."""
    import sentencepiece
    texts = TEXTS + (GOLDEN / "texts_real.jsonl").read_text(encoding="utf-8").splitlines()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(texts), model_prefix=str(prefix), num_threads=1, **settings)


def xlm_roberta(directory):
    config = transformers.XLMRobertaConfig(**SIZES, vocab_size=201, max_position_embeddings=162, pad_token_id=1,
                                           bos_token_id=0, eos_token_id=2, type_vocab_size=1, layer_norm_eps=1e-5)
    # The converter takes only the first and the last token of a text from this tokenizer.
    write(directory, config, GOLDEN / "tiny-xlm-roberta", 3, "mean")
    rules = directory.parent / "rules.tsv"
    # Fullwidth letters become ASCII, and a tab becomes a space.
    lines = [f"{0xFF21 + n:X}\t{0x41 + n:X}" for n in range(26)] + ["9\t20"]
    rules.write_text("\n".join(lines) + "\n")
    train(directory / "sentencepiece.bpe", vocab_size=201, model_type="unigram", normalization_rule_tsv=str(rules),
          character_coverage=0.98)
    (directory / "tokenizer_config.json").write_text(json.dumps({
        "bos_token": "<s>", "eos_token": "</s>", "sep_token": "</s>", "cls_token": "<s>", "unk_token": "<unk>",
        "pad_token": "<pad>", "mask_token": "<mask>", "tokenizer_class": "XLMRobertaTokenizer"}))
    return "default"


def roberta(directory):
    config = transformers.RobertaConfig(**SIZES, vocab_size=805, max_position_embeddings=162, pad_token_id=1,
                                        type_vocab_size=1)
    write(directory, config, GOLDEN / "tiny-roberta", 4, "cls")
    return "roberta-bpe"


def nomic_bert(directory):
    config = transformers.AutoConfig.for_model("nomic_bert", **SIZES, vocab_size=420, rope_parameters=ROPE,
                                               max_position_embeddings=2048, type_vocab_size=2)
    published = json.loads((GOLDEN / "tiny-nomic-bert/config.published.json").read_text())
    published |= dict(n_embd=32, n_layer=2, n_head=2, n_inner=64, vocab_size=420)
    published.pop("auto_map")
    write(directory, config, GOLDEN / "tiny-nomic-bert", 5, "mean", published=config.to_dict() | published)
    return "jina-v2-en"


def modern_bert(directory):
    config = transformers.ModernBertConfig(**SIZES | dict(num_hidden_layers=4), vocab_size=420, local_attention=8,
                                           global_attn_every_n_layers=3, max_position_embeddings=256, pad_token_id=3,
                                           cls_token_id=1, sep_token_id=2, bos_token_id=1, eos_token_id=2)
    published = config.to_dict() | {"layer_norm_eps": config.norm_eps, "architectures": ["ModernBertModel"]}
    write(directory, config, GOLDEN / "tiny-modernbert-gelu", 6, "mean", published=published)
    return "modern-bert"


def qwen3(directory):
    config = transformers.Qwen3Config(**SIZES, vocab_size=423, num_key_value_heads=1, head_dim=32,
                                      max_position_embeddings=256, eos_token_id=420, bos_token_id=420,
                                      rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    write(directory, config, GOLDEN / "tiny-qwen3", 7, "lasttoken")
    return "qwen2"


def eurobert(directory):
    config = transformers.AutoConfig.for_model("eurobert", **SIZES, vocab_size=423, num_key_value_heads=1,
                                               max_position_embeddings=256, pad_token_id=421, bos_token_id=420,
                                               eos_token_id=421, mask_token_id=422,
                                               rope_parameters={"rope_type": "default", "rope_theta": 250000.0})
    published = config.to_dict() | {"classifier_pooling": "mean", "architectures": ["EuroBertModel"]}
    write(directory, config, GOLDEN / "tiny-eurobert", 8, "mean", published=published)
    return "llama-bpe"


def gemma(directory):
    config = transformers.Gemma3TextConfig(
        **SIZES | dict(num_hidden_layers=6, intermediate_size=32), vocab_size=480, num_key_value_heads=1, head_dim=16,
        query_pre_attn_scalar=16, sliding_window=8, layer_types=["sliding_attention"] * 5 + ["full_attention"],
        max_position_embeddings=256, use_bidirectional_attention=True, pad_token_id=0, eos_token_id=1, bos_token_id=2)
    published = config.to_dict() | {"sliding_window": 8, "architectures": ["Gemma3TextModel"]}
    write(directory, config, GOLDEN / "tiny-gemma3-bidirectional", 9, "mean", gemma=True, published=published)
    train(directory / "tokenizer", vocab_size=480, model_type="bpe", character_coverage=0.98, byte_fallback=True,
          add_dummy_prefix=False, remove_extra_whitespaces=False, normalization_rule_name="identity",
          split_digits=True, pad_id=0, eos_id=1, bos_id=2, unk_id=3, user_defined_symbols=["\n\n", "▁▁"])
    modules = json.loads((directory / "modules.json").read_text())
    generator = torch.Generator().manual_seed(10)
    for index, (path, shape) in enumerate([("2_Dense", (64, 32)), ("3_Dense", (32, 64))]):
        modules.append({"idx": index + 2, "name": str(index + 2), "path": path,
                        "type": "sentence_transformers.models.Dense"})
        (directory / path).mkdir()
        save_file({"linear.weight": torch.randn(shape, generator=generator) * 0.2}, directory / path / "model.safetensors")
        layer = {"in_features": shape[1], "out_features": shape[0], "bias": False,
                 "activation_function": "torch.nn.modules.linear.Identity"}
        (directory / path / "config.json").write_text(json.dumps(layer))
    (directory / "modules.json").write_text(json.dumps(modules))
    return "default"


def jina_bert(directory):
    """Version 2 of jina-bert, which transformers cannot build: BERT with gated layers."""
    config = transformers.BertConfig(**SIZES, vocab_size=540, max_position_embeddings=160)
    state = transformers.AutoModel.from_config(config).state_dict()
    state = {k: v for k, v in state.items() if "position_emb" not in k}
    for layer in range(2):
        prefix = f"encoder.layer.{layer}."
        del state[prefix + "intermediate.dense.weight"], state[prefix + "intermediate.dense.bias"]
        state[prefix + "mlp.gated_layers.weight"] = torch.zeros(128, 32)
        for old, new in [("output.dense", "mlp.wo"), ("output.LayerNorm", "mlp.layernorm")]:
            for part in ("weight", "bias"):
                state[f"{prefix}{new}.{part}"] = state.pop(f"{prefix}{old}.{part}")
    settings = config.to_dict() | {"architectures": ["JinaBertModel"], "position_embedding_type": "alibi",
                                   "feed_forward_type": "geglu"}
    write_state(directory, randomize(state, 11), settings, GOLDEN / "tiny-bert-mean", "mean")
    path = directory / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokenizer_class": "BertTokenizer"}))
    return "jina-v2-en"


# Models, each with the formats of its files.
MODELS = {
    "bert": (bert, ["f32", "f16", "bf16", "q8_0", "q4_0"]),
    "distilbert": (distilbert, ["f32"]),
    "large-blocks": (large_blocks, ["q4_k_s"]),
    "xlm-roberta": (xlm_roberta, ["f32"]),
    "roberta": (roberta, ["f32"]),
    "nomic-bert": (nomic_bert, ["f32"]),
    "modern-bert": (modern_bert, ["f32"]),
    "qwen3": (qwen3, ["f32"]),
    "eurobert": (eurobert, ["f32"]),
    "gemma-embedding": (gemma, ["f32"]),
    "jina-bert-v2": (jina_bert, ["f32"]),
}


def convert(directory, file, kind, pre):
    """Converts a model with the converter of llama.cpp. `pre` is the name of its pre-tokenizer, which the converter
    recognizes only for published models."""
    import convert_hf_to_gguf
    from conversion.base import TextModel
    TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    sys.argv = ["convert", str(directory), "--outtype", kind, "--outfile", str(file), "--model-name", directory.name,
                "--sentence-transformers-dense-modules"]
    convert_hf_to_gguf.main()


def vectors_of(file):
    """Returns the vectors and the token ids that llama.cpp computes for the texts."""
    import llama_cpp
    model = llama_cpp.Llama(str(file), embedding=True, n_ctx=0, n_threads=1, flash_attn=False, verbose=False,
                            type_k=llama_cpp.GGML_TYPE_F32, type_v=llama_cpp.GGML_TYPE_F32)
    ids = [model.tokenize(text.encode(), add_bos=True, special=False) for text in TEXTS]
    # The library aborts the process if a text is longer than the model permits.
    texts = [text for text, tokens in zip(TEXTS, ids) if len(tokens) <= model.n_ctx()]
    return np.array([model.embed(text, normalize=True) for text in texts], dtype=np.float32), ids[:len(texts)]


def make_gguf(name, references, ids):
    build, kinds = MODELS[name]
    with tempfile.TemporaryDirectory() as work:
        directory = Path(work) / name
        pre = build(directory)
        for kind in kinds:
            file = HERE / f"{name}-{kind}.gguf"
            if kind in ("f32", "f16", "bf16", "q8_0"):
                convert(directory, file, kind, pre)
            else:
                whole = Path(work) / "whole.gguf"
                convert(directory, whole, "f32", pre)
                subprocess.run([BUILD / "bin/llama-quantize", whole, file, kind], check=True, capture_output=True)
            whole = file
            if kind != "f32":
                # llama.cpp rounds the vectors between the layers too if the weights are not in f32.
                whole = Path(work) / "dequantized.gguf"
                subprocess.run([BUILD / "bin/llama-quantize", "--allow-requantize", file, whole, "f32"], check=True,
                               capture_output=True)
            references[f"{name}-{kind}"], ids[name] = vectors_of(whole)


# Models in other directories that are exported to ONNX.
ONNX = ["tiny-bert-mean", "tiny-xlm-roberta", "tiny-modernbert-gelu"]


def make_onnx(name):
    """Exports a model as optimum does, and returns the unit vectors of onnxruntime for the texts of its references."""
    import onnxruntime
    directory, file = GOLDEN / name, HERE / f"{name}.onnx"
    model = transformers.AutoModel.from_pretrained(directory, attn_implementation="eager").eval().float()
    forward = type(model).forward
    # Without a wrapper around the model, so that the names have no prefix.
    model.forward = lambda input_ids, attention_mask: (
        forward(model, input_ids=input_ids, attention_mask=attention_mask).last_hidden_state,)
    example = torch.tensor([[2, 5, 6, 7, 3]])
    inputs = ["input_ids", "attention_mask"]
    axes = {input: {0: "batch", 1: "tokens"} for input in inputs}
    torch.onnx.export(model, (example, torch.ones_like(example)), file, dynamo=False, opset_version=17,
                      input_names=inputs, dynamic_axes=axes)
    session = onnxruntime.InferenceSession(str(file))
    vectors = []
    for ids in json.loads((directory / "reference_ids.json").read_text()):
        ids = np.array([ids], dtype=np.int64)
        tokens = session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]
        mean = tokens.mean(axis=0)
        vectors.append(mean / np.linalg.norm(mean))
    return np.array(vectors, dtype=np.float32)


def main():
    names = sys.argv[3:] or [*MODELS, "onnx"]
    if "onnx" in names:
        names.remove("onnx")
        save_arrays({name: make_onnx(name) for name in ONNX}, HERE / "onnxruntime.safetensors")
        (HERE / "onnxruntime.safetensors").chmod(0o644)
    if names:
        references, ids = {}, {}
        for name in names:
            make_gguf(name, references, ids)
        save_arrays(references, HERE / "llama-cpp.safetensors")
        (HERE / "llama-cpp.safetensors").chmod(0o644)
        (HERE / "llama-cpp_ids.json").write_text(json.dumps(ids, separators=(",", ":")) + "\n")


main()
