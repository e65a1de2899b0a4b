//! Cross-encoders, which score pairs of a query and a passage.

use super::{APACHE, KnownModel, MANY, MIT, MODEL, Task, TokenizerKind, XLMR_WORDS};

/// Fields that all rows share.
const RERANKER: KnownModel = KnownModel { tasks: &[Task::Rerank], license: APACHE, ..MODEL };

/// Fields that the models trained on MS MARCO share.
const MS_MARCO: KnownModel =
    KnownModel { family: "ms-marco", max_sequence_length: Some(512), width: 384, ..RERANKER };

/// Fields that the rerankers of BGE share.
const BGE: KnownModel = KnownModel {
    family: "bge-reranker",
    architecture: "xlm-roberta",
    license: MIT,
    words: XLMR_WORDS,
    tokenizer: TokenizerKind::Unigram,
    ..RERANKER
};

/// Fields that the rerankers made of ModernBERT share.
const MODERNBERT: KnownModel = KnownModel {
    architecture: "modernbert",
    words: 50_368,
    tokenizer: TokenizerKind::Bpe,
    ..RERANKER
};

/// Fields that the first rerankers of mixedbread share.
const MXBAI: KnownModel = KnownModel {
    family: "mxbai-rerank",
    architecture: "deberta-v2",
    max_sequence_length: Some(512),
    words: 128_100,
    tokenizer: TokenizerKind::Unigram,
    ..RERANKER
};

pub(super) const MODELS: &[KnownModel] = &[
    KnownModel {
        id: "ms-marco-TinyBERT-L2-v2",
        other_names: &["cross-encoder/ms-marco-TinyBERT-L-2-v2"],
        repository: "cross-encoder/ms-marco-TinyBERT-L2-v2",
        revision: Some("81d1926f67cb8eee2c2be17ca9f793c7c3bd20cc"),
        parameters: 4_386_049,
        width: 128,
        description: "English, reranks passages, the fastest",
        ..MS_MARCO
    },
    KnownModel {
        id: "ms-marco-MiniLM-L6-v2",
        other_names: &[
            "cross-encoder/ms-marco-MiniLM-L-6-v2",
            "Xenova/ms-marco-MiniLM-L-6-v2",
            "ms-marco-MiniLM-L-6-v2",
        ],
        repository: "cross-encoder/ms-marco-MiniLM-L6-v2",
        revision: Some("c5ee24cb16019beea0893ab7796b1df96625c6b8"),
        parameters: 22_713_601,
        successor: Some("ettin-reranker-17m-v1"),
        description: "English, reranks passages, the usual choice on a device",
        ..MS_MARCO
    },
    KnownModel {
        id: "ms-marco-MiniLM-L12-v2",
        other_names: &[
            "cross-encoder/ms-marco-MiniLM-L-12-v2",
            "Xenova/ms-marco-MiniLM-L-12-v2",
            "ms-marco-MiniLM-L-12-v2",
        ],
        repository: "cross-encoder/ms-marco-MiniLM-L12-v2",
        revision: Some("7b0235231ca2674cb8ca8f022859a6eba2b1c968"),
        parameters: 33_360_385,
        successor: Some("ettin-reranker-32m-v1"),
        description: "English, reranks passages, twice the layers of ms-marco-MiniLM-L6-v2",
        ..MS_MARCO
    },
    KnownModel {
        id: "bge-reranker-base",
        repository: "BAAI/bge-reranker-base",
        max_sequence_length: Some(512),
        languages: &["en", "zh"],
        parameters: 278_000_000,
        successor: Some("bge-reranker-v2-m3"),
        description: "English and Chinese, reranks passages",
        ..BGE
    },
    KnownModel {
        id: "bge-reranker-large",
        repository: "BAAI/bge-reranker-large",
        max_sequence_length: Some(512),
        languages: &["en", "zh"],
        parameters: 560_000_000,
        width: 1024,
        successor: Some("bge-reranker-v2-m3"),
        description: "English and Chinese, reranks passages, the large size",
        ..BGE
    },
    KnownModel {
        id: "bge-reranker-v2-m3",
        repository: "BAAI/bge-reranker-v2-m3",
        revision: Some("953dc6f6f85a1b2dbfca4c34a2796e7dde08d41e"),
        max_sequence_length: Some(8192),
        languages: MANY,
        parameters: 568_000_000,
        width: 1024,
        description: "Many languages, reranks long passages",
        ..BGE
    },
    KnownModel {
        id: "ettin-reranker-17m-v1",
        repository: "cross-encoder/ettin-reranker-17m-v1",
        revision: Some("9e4aa35321a6dd1a43ca313f500c4b4f7cfb5cc6"),
        family: "ettin-reranker",
        obstacle: Some("a head of several modules"),
        parameters: 16_797_440,
        width: 256,
        description: "English, reranks long passages, few layers",
        ..MODERNBERT
    },
    KnownModel {
        id: "ettin-reranker-32m-v1",
        repository: "cross-encoder/ettin-reranker-32m-v1",
        revision: Some("b33e5ceb5110773ea9cf5e00c9bedc83a8c2afdd"),
        family: "ettin-reranker",
        obstacle: Some("a head of several modules"),
        parameters: 31_883_136,
        width: 384,
        description: "English, reranks long passages",
        ..MODERNBERT
    },
    KnownModel {
        id: "gte-reranker-modernbert-base",
        repository: "Alibaba-NLP/gte-reranker-modernbert-base",
        family: "gte",
        max_sequence_length: Some(8192),
        parameters: 149_000_000,
        description: "English, reranks long passages, the large one for English",
        ..MODERNBERT
    },
    KnownModel {
        id: "gte-multilingual-reranker-base",
        repository: "Alibaba-NLP/gte-multilingual-reranker-base",
        family: "gte",
        architecture: "gte",
        max_sequence_length: Some(8192),
        languages: MANY,
        parameters: 305_959_681,
        words: 250_048,
        tokenizer: TokenizerKind::Unigram,
        description: "75 languages, reranks long passages",
        ..RERANKER
    },
    KnownModel {
        id: "mxbai-rerank-xsmall-v1",
        repository: "mixedbread-ai/mxbai-rerank-xsmall-v1",
        revision: Some("b5c6e9da73abc3711f593f705371cdbe9e0fe422"),
        parameters: 70_830_337,
        width: 384,
        description: "English, reranks passages, the smallest of its family",
        ..MXBAI
    },
    KnownModel {
        id: "mxbai-rerank-base-v1",
        repository: "mixedbread-ai/mxbai-rerank-base-v1",
        revision: Some("800f24c113213a187e65bde9db00c15a2bb12738"),
        parameters: 184_422_913,
        description: "English, reranks passages",
        ..MXBAI
    },
];
