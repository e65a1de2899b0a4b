//! Models of the organization sentence-transformers and static embeddings.

use super::{APACHE, ENGLISH, KnownModel, MANY, MIT, MODEL, Task, TokenizerKind};

const SENTENCES: KnownModel = KnownModel {
    family: "sentence-transformers",
    pooling: Some("mean"),
    license: APACHE,
    tasks: &[Task::Similarity, Task::Search],
    ..MODEL
};

const DISTILUSE: KnownModel = KnownModel {
    family: "distiluse",
    architecture: "distilbert",
    dimensions: Some(512),
    dense_layers: Some(1),
    normalize: Some(false),
    languages: MANY,
    parameters: 135_127_808,
    words: 119_547,
    tasks: &[Task::Similarity],
    ..SENTENCES
};

const STATIC: KnownModel = KnownModel {
    family: "static",
    architecture: "static",
    license: APACHE,
    pooling: Some("mean"),
    tasks: &[Task::Search, Task::Similarity],
    ..MODEL
};

const POTION: KnownModel =
    KnownModel { family: "potion", license: MIT, normalize: Some(true), ..STATIC };

pub(super) const MODELS: &[KnownModel] = &[
    KnownModel {
        id: "all-MiniLM-L6-v2",
        other_names: &[
            "bundled-mini",
            "all-minilm",
            "all-minilm:22m",
            "all-minilm:l6-v2",
            "Xenova/all-MiniLM-L6-v2",
            "qdrant/all-MiniLM-L6-v2-onnx",
        ],
        repository: "sentence-transformers/all-MiniLM-L6-v2",
        revision: Some("8b3219a92973c328a8e22fadcfa821b5dc75636a"),
        dimensions: Some(384),
        max_sequence_length: Some(256),
        normalize: Some(true),
        parameters: 22_713_216,
        width: 384,
        weights_sha256: Some("53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        description: "English, general purpose, the smallest: the usual choice on a device",
        ..SENTENCES
    },
    KnownModel {
        id: "all-MiniLM-L12-v2",
        other_names: &["all-minilm:33m", "all-minilm:l12-v2", "Xenova/all-MiniLM-L12-v2"],
        repository: "sentence-transformers/all-MiniLM-L12-v2",
        revision: Some("364dd28d28dcd3359b537f3cf1f5348ba679da62"),
        dimensions: Some(384),
        normalize: Some(true),
        parameters: 33_360_000,
        width: 384,
        description: "English, general purpose, twice the layers of all-MiniLM-L6-v2",
        ..SENTENCES
    },
    KnownModel {
        id: "all-mpnet-base-v2",
        repository: "sentence-transformers/all-mpnet-base-v2",
        revision: Some("9a3225965996d404b775526de6dbfe85d3368642"),
        architecture: "mpnet",
        dimensions: Some(768),
        max_sequence_length: Some(384),
        normalize: Some(true),
        parameters: 109_486_464,
        words: 30_527,
        weights_sha256: Some("78c0197b6159d92658e319bc1d72e4c73a9a03dd03815e70e555c5ef05615658"),
        description: "English, general purpose, the best vectors of its family",
        ..SENTENCES
    },
    KnownModel {
        id: "multi-qa-MiniLM-L6-cos-v1",
        repository: "sentence-transformers/multi-qa-MiniLM-L6-cos-v1",
        revision: Some("b207367332321f8e44f96e224ef15bc607f4dbf0"),
        dimensions: Some(384),
        max_sequence_length: Some(512),
        normalize: Some(true),
        parameters: 22_713_216,
        width: 384,
        tasks: &[Task::Search],
        description: "English, search: trained on questions and answers",
        ..SENTENCES
    },
    KnownModel {
        id: "multi-qa-mpnet-base-dot-v1",
        repository: "sentence-transformers/multi-qa-mpnet-base-dot-v1",
        revision: Some("3af7c6da5b3e1bea796ef6c97fe237538cbe6e7f"),
        architecture: "mpnet",
        dimensions: Some(768),
        max_sequence_length: Some(512),
        pooling: Some("cls"),
        normalize: Some(false),
        license: None,
        parameters: 109_486_464,
        words: 30_527,
        tasks: &[Task::Search],
        description: "English, search: trained on questions and answers, for dot products",
        ..SENTENCES
    },
    KnownModel {
        id: "msmarco-distilbert-base-v4",
        repository: "sentence-transformers/msmarco-distilbert-base-v4",
        architecture: "distilbert",
        dimensions: Some(768),
        max_sequence_length: Some(512),
        normalize: Some(false),
        parameters: 66_362_880,
        tasks: &[Task::Search],
        description: "English, search: trained on questions and passages of MS MARCO",
        ..SENTENCES
    },
    KnownModel {
        id: "paraphrase-multilingual-MiniLM-L12-v2",
        other_names: &["qdrant/paraphrase-multilingual-MiniLM-L12-v2-onnx-Q"],
        repository: "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        revision: Some("bf3bf13ab40c3157080a7ab344c831b9ad18b5eb"),
        dimensions: Some(384),
        max_sequence_length: Some(128),
        normalize: Some(false),
        languages: MANY,
        parameters: 117_653_760,
        words: 250_037,
        width: 384,
        tokenizer: TokenizerKind::Unigram,
        tasks: &[Task::Similarity],
        description: "50 languages, paraphrases across languages, small vectors",
        ..SENTENCES
    },
    KnownModel {
        id: "paraphrase-multilingual-mpnet-base-v2",
        other_names: &[
            "paraphrase-multilingual",
            "paraphrase-multilingual:278m",
            "xenova/paraphrase-multilingual-mpnet-base-v2",
        ],
        repository: "sentence-transformers/paraphrase-multilingual-mpnet-base-v2",
        revision: Some("79f2382ceacceacdf38563d7c5d16b9ff8d725d6"),
        architecture: "xlm-roberta",
        dimensions: Some(768),
        max_sequence_length: Some(128),
        normalize: Some(false),
        languages: MANY,
        parameters: 278_043_648,
        words: super::XLMR_WORDS,
        tokenizer: TokenizerKind::Unigram,
        tasks: &[Task::Similarity],
        description: "50 languages, paraphrases across languages",
        ..SENTENCES
    },
    // The next three models have the same shape but different weights, so they are not aliases.
    KnownModel {
        id: "distiluse-base-multilingual-cased",
        repository: "sentence-transformers/distiluse-base-multilingual-cased",
        successor: Some("distiluse-base-multilingual-cased-v2"),
        description: "Many languages, compact vectors from a distilled encoder",
        ..DISTILUSE
    },
    KnownModel {
        id: "distiluse-base-multilingual-cased-v1",
        repository: "sentence-transformers/distiluse-base-multilingual-cased-v1",
        languages: &["ar", "de", "en", "es", "fr", "it", "ko", "nl", "pl", "pt", "ru", "tr", "zh"],
        description: "13 languages, compact vectors from a distilled encoder",
        ..DISTILUSE
    },
    KnownModel {
        id: "distiluse-base-multilingual-cased-v2",
        repository: "sentence-transformers/distiluse-base-multilingual-cased-v2",
        max_sequence_length: Some(128),
        description: "50 languages, compact vectors from a distilled encoder",
        ..DISTILUSE
    },
    KnownModel {
        id: "LaBSE",
        repository: "sentence-transformers/LaBSE",
        revision: Some("e34fab64a3011d2176c99545a93d5cbddc9a91b7"),
        family: "labse",
        dimensions: Some(768),
        pooling: Some("cls"),
        dense_layers: Some(1),
        normalize: Some(true),
        languages: MANY,
        parameters: 470_926_848,
        words: 501_153,
        tasks: &[Task::Similarity],
        description: "109 languages: finds translations of a sentence",
        ..SENTENCES
    },
    KnownModel {
        id: "st-codesearch-distilroberta-base",
        other_names: &["code-search-net"],
        repository: "flax-sentence-embeddings/st-codesearch-distilroberta-base",
        architecture: "roberta",
        dimensions: Some(768),
        max_sequence_length: Some(128),
        normalize: Some(true),
        languages: &[],
        license: None,
        parameters: 81_527_808,
        words: 50_265,
        tokenizer: TokenizerKind::Bpe,
        tasks: &[Task::CodeSearch],
        description: "Finds code by an English description: trained on CodeSearchNet",
        ..SENTENCES
    },
    KnownModel {
        id: "static-retrieval-mrl-en-v1",
        repository: "sentence-transformers/static-retrieval-mrl-en-v1",
        revision: Some("f60985c706f192d45d218078e49e5a8b6f15283a"),
        dimensions: Some(1024),
        matryoshka_dimensions: &[32, 64, 128, 256, 512],
        parameters: 31_254_528,
        width: 1024,
        description: "English, search, a table without layers: the fastest vectors",
        ..STATIC
    },
    KnownModel {
        id: "static-similarity-mrl-multilingual-v1",
        repository: "sentence-transformers/static-similarity-mrl-multilingual-v1",
        revision: Some("7264ea07c5365a11d7e6d87dbb6195889a13054f"),
        dimensions: Some(1024),
        matryoshka_dimensions: &[32, 64, 128, 256, 512],
        languages: MANY,
        parameters: 108_420_096,
        words: 105_879,
        width: 1024,
        tasks: &[Task::Similarity],
        description: "50 languages, similarity, a table without layers",
        ..STATIC
    },
    KnownModel {
        id: "potion-base-8M",
        repository: "minishlab/potion-base-8M",
        revision: Some("bf8b056651a2c21b8d2565580b8569da283cab23"),
        dimensions: Some(256),
        parameters: 7_559_168,
        words: 29_528,
        width: 256,
        tasks: &[Task::Similarity, Task::Search],
        description: "English, general purpose, a table without layers: the smallest of all",
        ..POTION
    },
    KnownModel {
        id: "potion-base-32M",
        repository: "minishlab/potion-base-32M",
        revision: Some("1e5a03f8eeb2c98b928fbbd846f22f816360919f"),
        dimensions: Some(512),
        parameters: 32_302_592,
        words: 63_091,
        width: 512,
        tasks: &[Task::Similarity, Task::Search],
        description: "English, general purpose, a table without layers",
        ..POTION
    },
    KnownModel {
        id: "potion-retrieval-32M",
        repository: "minishlab/potion-retrieval-32M",
        revision: Some("6fc8051fab2a1e0ee76689cf08c853792ac285e7"),
        dimensions: Some(512),
        parameters: 32_302_592,
        words: 63_091,
        width: 512,
        tasks: &[Task::Search],
        description: "English, search, a table without layers",
        ..POTION
    },
    KnownModel {
        id: "potion-multilingual-128M",
        repository: "minishlab/potion-multilingual-128M",
        revision: Some("73908c3438cf03b6a01bcb9611d62b23d0726f08"),
        dimensions: Some(256),
        languages: MANY,
        parameters: 128_000_000,
        words: 500_000,
        width: 256,
        tokenizer: TokenizerKind::Unigram,
        description: "101 languages, general purpose, a table without layers",
        ..POTION
    },
    KnownModel {
        id: "potion-code-16M-v2",
        repository: "minishlab/potion-code-16M-v2",
        revision: Some("d3daf3e31f36d78f75913030b8bdf4a505d5b833"),
        dimensions: Some(256),
        languages: ENGLISH,
        parameters: 16_244_992,
        words: 63_457,
        width: 256,
        tasks: &[Task::CodeSearch],
        description: "Finds code by an English description, a table without layers",
        ..POTION
    },
];
