//! Encoders with rotary or linear positions: nomic, GTE since version 1.5, JinaBERT, ModernBERT,
//! and encoders made of language models.

use super::{
    APACHE, KnownModel, MANY, MIT, MODEL, PADDED_BERT_WORDS, PASSAGES_PROMPT, Task, TokenizerKind,
};

const GENERAL: &[Task] = &[Task::Search, Task::Similarity];
/// Words of the tokenizer of ModernBERT.
const MODERNBERT_WORDS: u64 = 50_368;
/// Words of the tokenizer of Gemma 3.
const GEMMA_WORDS: u64 = 262_144;
/// Words of XLM-RoBERTa, filled up to a multiple of 64.
const PADDED_XLMR_WORDS: u64 = 250_048;

/// Prompts of the models of nomic.
const NOMIC_PROMPTS: &[(&str, &str)] = &[
    ("classification", "classification: "),
    ("clustering", "clustering: "),
    ("search_document", "search_document: "),
    ("search_query", "search_query: "),
];

/// Prompts of EmbeddingGemma for the most common tasks.
const GEMMA_PROMPTS: &[(&str, &str)] = &[
    ("Classification", "task: classification | query: "),
    ("Clustering", "task: clustering | query: "),
    ("STS", "task: sentence similarity | query: "),
    ("document", "title: none | text: "),
    ("query", "task: search result | query: "),
];

/// Fields that many encoders of 12 to 22 layers of 768 share.
const LONG: KnownModel = KnownModel {
    dimensions: Some(768),
    max_sequence_length: Some(8192),
    license: APACHE,
    tasks: GENERAL,
    ..MODEL
};

/// Fields that the models of nomic share.
const NOMIC: KnownModel = KnownModel {
    family: "nomic-embed",
    architecture: "nomic_bert",
    pooling: Some("mean"),
    prompts: NOMIC_PROMPTS,
    parameters: 136_731_648,
    words: PADDED_BERT_WORDS,
    ..LONG
};

/// Fields that the models of GTE with rotary positions share.
const GTE: KnownModel = KnownModel {
    family: "gte",
    architecture: "gte",
    pooling: Some("cls"),
    words: PADDED_BERT_WORDS,
    ..LONG
};

/// Fields that the multilingual models of that architecture share.
const MULTILINGUAL_GTE: KnownModel = KnownModel {
    languages: MANY,
    parameters: 305_368_320,
    words: PADDED_XLMR_WORDS,
    tokenizer: TokenizerKind::Unigram,
    ..GTE
};

/// Fields that the models of JinaBERT share. Its `model_type` is that of BERT.
const JINA: KnownModel = KnownModel {
    family: "jina-embeddings-v2",
    pooling: Some("mean"),
    words: PADDED_BERT_WORDS,
    ..LONG
};

/// Fields that the models of JinaBERT for two languages share.
const BILINGUAL_JINA: KnownModel =
    KnownModel { parameters: 160_813_824, words: 61_056, tokenizer: TokenizerKind::Bpe, ..JINA };

/// Fields that the models of ModernBERT share.
const MODERNBERT: KnownModel = KnownModel {
    architecture: "modernbert",
    parameters: 149_014_272,
    words: MODERNBERT_WORDS,
    tokenizer: TokenizerKind::Bpe,
    ..LONG
};

/// Fields that the models of Granite Embedding since release 2 share.
const GRANITE: KnownModel =
    KnownModel { family: "granite-embedding", pooling: Some("cls"), ..MODERNBERT };

/// Fields that the models of Ruri share.
const RURI: KnownModel = KnownModel {
    family: "ruri",
    pooling: Some("mean"),
    languages: &["ja"],
    prompts: &[("document", "検索文書: "), ("query", "検索クエリ: "), ("topic", "トピック: ")],
    words: 102_400,
    tokenizer: TokenizerKind::Unigram,
    ..MODERNBERT
};

/// Fields that the encoders made of Gemma share.
const GEMMA: KnownModel = KnownModel {
    family: "embeddinggemma",
    architecture: "gemma3_text",
    pooling: Some("mean"),
    normalize: Some(true),
    languages: MANY,
    words: GEMMA_WORDS,
    tokenizer: TokenizerKind::Bpe,
    ..LONG
};

/// Fields that the encoders made of Qwen 3 share.
const QWEN3: KnownModel = KnownModel {
    architecture: "qwen3",
    pooling: Some("lasttoken"),
    languages: MANY,
    words: 151_669,
    tokenizer: TokenizerKind::Bpe,
    ..LONG
};

pub(super) const MODELS: &[KnownModel] = &[
    KnownModel {
        id: "nomic-embed-text-v1",
        repository: "nomic-ai/nomic-embed-text-v1",
        revision: Some("0759316f275aa0cb93a5b830973843ca66babcf5"),
        normalize: Some(true),
        successor: Some("nomic-embed-text-v1.5"),
        description: "English, search in long texts: needs its prompts",
        ..NOMIC
    },
    KnownModel {
        id: "nomic-embed-text-v1.5",
        other_names: &[
            "nomic-embed-text",
            "nomic-embed-text:v1.5",
            "nomic-embed-text:137m",
            "nomic-ai/nomic-embed-text-v1.5-Q",
        ],
        repository: "nomic-ai/nomic-embed-text-v1.5",
        revision: Some("b0753ae76394dd36bcfb912a46018088bca48be0"),
        matryoshka_dimensions: &[64, 128, 256, 512],
        description: "English, search in long texts: needs its prompts; vectors may be cut",
        ..NOMIC
    },
    KnownModel {
        id: "nomic-embed-text-v2-moe",
        other_names: &["nomic-embed-text-v2-moe:475m"],
        repository: "nomic-ai/nomic-embed-text-v2-moe",
        revision: Some("1066b6599d099fbb93dfcb64f9c37a7c9e503e85"),
        matryoshka_dimensions: &[256],
        max_sequence_length: Some(512),
        normalize: Some(true),
        languages: MANY,
        parameters: 475_292_928,
        words: PADDED_XLMR_WORDS,
        tokenizer: TokenizerKind::Unigram,
        description: "100 languages, search, a mixture of experts: needs its prompts",
        ..NOMIC
    },
    KnownModel {
        id: "snowflake-arctic-embed-m-long",
        other_names: &["snowflake-arctic-embed:137m"],
        repository: "Snowflake/snowflake-arctic-embed-m-long",
        revision: Some("89d0f6ab196eead40b90cb6f9fefec01a908d2d1"),
        family: "arctic-embed",
        max_sequence_length: Some(2048),
        pooling: Some("cls"),
        prompts: PASSAGES_PROMPT,
        tasks: &[Task::Search],
        successor: Some("snowflake-arctic-embed-m-v2.0"),
        description: "English, search in long texts",
        ..NOMIC
    },
    KnownModel {
        id: "snowflake-arctic-embed-m-v2.0",
        repository: "Snowflake/snowflake-arctic-embed-m-v2.0",
        revision: Some("f2a7d59d80dfda5b1d14f096f3ce88bb6bf9ebdc"),
        family: "arctic-embed",
        matryoshka_dimensions: &[256],
        prompts: &[("query", "query: ")],
        tasks: &[Task::Search],
        description: "74 languages, search in long texts, vectors that may be cut to 256",
        ..MULTILINGUAL_GTE
    },
    KnownModel {
        id: "gte-base-en-v1.5",
        repository: "Alibaba-NLP/gte-base-en-v1.5",
        revision: Some("a829fd0e060bb84554da0dfd354d0de0f7712b7f"),
        parameters: 136_776_192,
        successor: Some("gte-modernbert-base"),
        description: "English, search in long texts, without prompts",
        ..GTE
    },
    KnownModel {
        id: "gte-large-en-v1.5",
        repository: "Alibaba-NLP/gte-large-en-v1.5",
        dimensions: Some(1024),
        normalize: Some(false),
        parameters: 434_139_136,
        width: 1024,
        description: "English, search in long texts, without prompts, the large size",
        ..GTE
    },
    KnownModel {
        id: "gte-multilingual-base",
        repository: "Alibaba-NLP/gte-multilingual-base",
        revision: Some("ca1791e0bcc104f6db161f27de1340241b13c5a4"),
        matryoshka_dimensions: &[128, 256, 512],
        normalize: Some(true),
        description: "70 languages, search in long texts, without prompts",
        ..MULTILINGUAL_GTE
    },
    KnownModel {
        id: "gte-modernbert-base",
        repository: "Alibaba-NLP/gte-modernbert-base",
        revision: Some("7ca8b4ca700621b67618669f5378fe5f5820b8e4"),
        family: "gte",
        pooling: Some("cls"),
        normalize: Some(false),
        tasks: &[Task::Search, Task::Similarity, Task::CodeSearch],
        description: "English and code, search in long texts, without prompts",
        ..MODERNBERT
    },
    KnownModel {
        id: "modernbert-embed-base",
        repository: "nomic-ai/modernbert-embed-base",
        revision: Some("5960f1566fb7cb1adf1eb6e816639cf4646d9b12"),
        family: "nomic-embed",
        matryoshka_dimensions: &[256],
        pooling: Some("mean"),
        normalize: Some(true),
        prompts: NOMIC_PROMPTS,
        description: "English, search in long texts: needs its prompts",
        ..MODERNBERT
    },
    KnownModel {
        id: "granite-embedding-small-english-r2",
        repository: "ibm-granite/granite-embedding-small-english-r2",
        revision: Some("54a8d2616a0844355a5164432d3f6dafb37b17a3"),
        dimensions: Some(384),
        parameters: 47_662_464,
        width: 384,
        description: "English, search in long texts, without prompts, small vectors",
        ..GRANITE
    },
    KnownModel {
        id: "granite-embedding-english-r2",
        repository: "ibm-granite/granite-embedding-english-r2",
        revision: Some("6e7b8ce0e76270394ac4669ba4bbd7133b60b7f9"),
        description: "English, search in long texts, without prompts",
        ..GRANITE
    },
    KnownModel {
        id: "granite-embedding-97m-multilingual-r2",
        repository: "ibm-granite/granite-embedding-97m-multilingual-r2",
        revision: Some("c61e626a6255c490879d0af885078b61929d51f6"),
        dimensions: Some(384),
        languages: MANY,
        parameters: 97_441_152,
        words: 180_000,
        width: 384,
        weights_sha256: Some("f3ea88b230492811046145513710e76b4cc8c2ad49e8708da0e7247e548903be"),
        description: "52 languages and code, search in long texts, small vectors",
        ..GRANITE
    },
    KnownModel {
        id: "granite-embedding-311m-multilingual-r2",
        repository: "ibm-granite/granite-embedding-311m-multilingual-r2",
        revision: Some("dba7b0ee9d789f330fecfb85df57699f9e7d9c42"),
        matryoshka_dimensions: &[128, 256, 384, 512],
        languages: MANY,
        parameters: 311_664_384,
        words: 262_152,
        description: "52 languages and code, search in long texts; vectors may be cut",
        ..GRANITE
    },
    KnownModel {
        id: "ruri-v3-30m",
        repository: "cl-nagoya/ruri-v3-30m",
        revision: Some("24899e5de370b56d179604a007c0d727bf144504"),
        dimensions: Some(256),
        parameters: 36_705_536,
        width: 256,
        description: "Japanese, search and similarity, the smallest of its family",
        ..RURI
    },
    KnownModel {
        id: "ruri-v3-310m",
        repository: "cl-nagoya/ruri-v3-310m",
        revision: Some("18b60fb8c2b9df296fb4212bb7d23ef94e579cd3"),
        parameters: 314_611_968,
        description: "Japanese, search and similarity",
        ..RURI
    },
    KnownModel {
        id: "jina-embeddings-v2-small-en",
        other_names: &["xenova/jina-embeddings-v2-small-en"],
        repository: "jinaai/jina-embeddings-v2-small-en",
        revision: Some("44e7d1d6caec8c883c2d4b207588504d519788d0"),
        dimensions: Some(512),
        parameters: 32_690_688,
        width: 512,
        description: "English, search in long texts, few layers",
        ..JINA
    },
    KnownModel {
        id: "jina-embeddings-v2-base-en",
        other_names: &["xenova/jina-embeddings-v2-base-en"],
        repository: "jinaai/jina-embeddings-v2-base-en",
        revision: Some("6e85f575bc273f1fd840a658067d0157933c83f0"),
        parameters: 137_368_320,
        description: "English, search in long texts",
        ..JINA
    },
    KnownModel {
        id: "jina-embeddings-v2-base-de",
        repository: "jinaai/jina-embeddings-v2-base-de",
        languages: &["de", "en"],
        description: "German and English, search in long texts",
        ..BILINGUAL_JINA
    },
    KnownModel {
        id: "jina-embeddings-v2-base-es",
        repository: "jinaai/jina-embeddings-v2-base-es",
        languages: &["en", "es"],
        description: "Spanish and English, search in long texts",
        ..BILINGUAL_JINA
    },
    KnownModel {
        id: "jina-embeddings-v2-base-zh",
        repository: "jinaai/jina-embeddings-v2-base-zh",
        languages: &["en", "zh"],
        description: "Chinese and English, search in long texts",
        ..BILINGUAL_JINA
    },
    KnownModel {
        id: "jina-embeddings-v2-base-code",
        repository: "jinaai/jina-embeddings-v2-base-code",
        obstacle: Some("norms of all queries and keys"),
        parameters: 161_000_000,
        tasks: &[Task::CodeSearch, Task::Search],
        description: "English and 30 programming languages, search in long texts",
        ..BILINGUAL_JINA
    },
    KnownModel {
        id: "embeddinggemma-300m",
        other_names: &[
            "embeddinggemma",
            "embeddinggemma:300m",
            "onnx-community/embeddinggemma-300m-ONNX",
        ],
        repository: "google/embeddinggemma-300m",
        revision: Some("64614b0b8b64f0c6c1e52b07e4e9a4e8fe4d2da2"),
        matryoshka_dimensions: &[128, 256, 512],
        max_sequence_length: Some(2048),
        dense_layers: Some(2),
        prompts: GEMMA_PROMPTS,
        license: Some("LicenseRef-Gemma"),
        parameters: 307_581_696,
        successor: Some("embeddinggemma-2"),
        description: "100 languages, general purpose: needs its prompts; vectors may be cut",
        ..GEMMA
    },
    KnownModel {
        id: "embeddinggemma-2",
        other_names: &["embeddinggemma-2:270m", "onnx-community/embeddinggemma-2-ONNX"],
        repository: "google/embeddinggemma-2",
        revision: Some("f9972ac22e696a105c482202646979e33e4b5a1e"),
        architecture: "embedding_gemma2",
        matryoshka_dimensions: &[128, 256, 512],
        prompts: GEMMA_PROMPTS,
        parameters: 271_002_624,
        width: 512,
        description: "100 languages and code, the encoder of texts: needs its prompts",
        ..GEMMA
    },
    KnownModel {
        id: "harrier-oss-v1-270m",
        repository: "microsoft/harrier-oss-v1-270m",
        revision: Some("31de22b673913c7d658c0f03f792d77c2dcf8ebd"),
        family: "harrier",
        dimensions: Some(640),
        max_sequence_length: Some(32_768),
        pooling: Some("lasttoken"),
        license: MIT,
        parameters: 268_065_920,
        width: 640,
        description: "94 languages, search in long texts: queries need an instruction",
        ..GEMMA
    },
    KnownModel {
        id: "Qwen3-Embedding-0.6B",
        other_names: &[
            "qwen3-embedding:0.6b",
            "Qdrant/Qwen3-Embedding-0.6B-onnx",
            "Qwen/Qwen3-Embedding-0.6B-Q",
        ],
        repository: "Qwen/Qwen3-Embedding-0.6B",
        revision: Some("b22da495047858cce924d27d76261e96be6febc0"),
        family: "qwen3-embedding",
        dimensions: Some(1024),
        matryoshka_dimensions: &[32, 64, 128, 256, 512, 768],
        max_sequence_length: Some(32_768),
        normalize: Some(true),
        prompts: &[(
            "query",
            "Instruct: Given a web search query, retrieve relevant passages that answer the \
             query\nQuery:",
        )],
        parameters: 595_776_512,
        width: 1024,
        tasks: &[Task::Search, Task::Similarity, Task::CodeSearch],
        description: "100 languages and code, search in long texts; vectors may be cut",
        ..QWEN3
    },
    KnownModel {
        id: "harrier-oss-v1-0.6b",
        repository: "microsoft/harrier-oss-v1-0.6b",
        revision: Some("f9b9dc8d367d443f2479d27aa5d8d2850c0774ee"),
        family: "harrier",
        dimensions: Some(1024),
        max_sequence_length: Some(32_768),
        license: MIT,
        parameters: 596_042_752,
        words: 151_936,
        width: 1024,
        description: "94 languages, search in long texts: queries need an instruction",
        ..QWEN3
    },
    KnownModel {
        id: "voyage-4-nano",
        repository: "voyageai/voyage-4-nano",
        revision: Some("29e841f72aa70c2802a92aff8c6eeb23229591b0"),
        family: "voyage",
        dimensions: Some(2048),
        max_sequence_length: Some(32_000),
        pooling: Some("mean"),
        dense_layers: None,
        obstacle: Some("a projection of the vectors of the tokens"),
        parameters: 346_451_968,
        words: 151_936,
        width: 1024,
        description: "Many languages, search in long texts, long vectors",
        ..QWEN3
    },
    KnownModel {
        id: "F2LLM-v2-80M",
        repository: "codefuse-ai/F2LLM-v2-80M",
        revision: Some("6faa7738f343cd4321f9b2fa92fdb7cae3c117a5"),
        family: "f2llm",
        dimensions: Some(320),
        max_sequence_length: None,
        parameters: 80_084_288,
        width: 320,
        description: "Many languages, search, the smallest encoder made of Qwen 3",
        ..QWEN3
    },
];
