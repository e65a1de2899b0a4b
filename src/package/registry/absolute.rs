//! Encoders for search with absolute positions: BERT, RoBERTa and XLM-RoBERTa.

use super::{
    APACHE, KnownModel, MANY, MIT, MODEL, PASSAGES_PROMPT, Task, TokenizerKind, XLMR_WORDS,
};

const GENERAL: &[Task] = &[Task::Search, Task::Similarity];

/// BERT of 12 layers of 384.
const SMALL: KnownModel = KnownModel {
    dimensions: Some(384),
    max_sequence_length: Some(512),
    parameters: 33_360_000,
    width: 384,
    tasks: GENERAL,
    ..MODEL
};

/// BERT of 12 layers of 768.
const BASE: KnownModel =
    KnownModel { dimensions: Some(768), parameters: 109_482_240, width: 768, ..SMALL };

/// BERT of 24 layers of 1024.
const LARGE: KnownModel =
    KnownModel { dimensions: Some(1024), parameters: 335_141_888, width: 1024, ..SMALL };

/// Fields that the models of E5 share.
const E5: KnownModel = KnownModel {
    family: "e5",
    pooling: Some("mean"),
    normalize: Some(true),
    prompts: &[("passage", "passage: "), ("query", "query: ")],
    license: MIT,
    ..SMALL
};

/// Fields that the multilingual models of E5 share.
const MULTILINGUAL_E5: KnownModel = KnownModel {
    family: "multilingual-e5",
    architecture: "xlm-roberta",
    languages: MANY,
    words: XLMR_WORDS,
    tokenizer: TokenizerKind::Unigram,
    ..E5
};

/// Fields that the models of BGE share.
const BGE: KnownModel = KnownModel {
    family: "bge",
    pooling: Some("cls"),
    normalize: Some(true),
    prompts: PASSAGES_PROMPT,
    license: MIT,
    ..SMALL
};

/// Fields that the first models of GTE share.
const GTE: KnownModel = KnownModel {
    family: "gte",
    pooling: Some("mean"),
    normalize: Some(true),
    license: MIT,
    ..SMALL
};

/// Fields that the first models of Arctic Embed share.
const ARCTIC: KnownModel = KnownModel {
    family: "arctic-embed",
    pooling: Some("cls"),
    normalize: Some(true),
    prompts: PASSAGES_PROMPT,
    license: APACHE,
    tasks: &[Task::Search],
    ..SMALL
};

/// Fields that the first models of Granite Embedding share.
const GRANITE: KnownModel = KnownModel {
    family: "granite-embedding",
    architecture: "roberta",
    pooling: Some("cls"),
    license: APACHE,
    words: 50_265,
    tokenizer: TokenizerKind::Bpe,
    ..SMALL
};

/// Fields that the multilingual models of Granite Embedding share.
const MULTILINGUAL_GRANITE: KnownModel = KnownModel {
    architecture: "xlm-roberta",
    languages: &["ar", "cs", "de", "en", "es", "fr", "it", "ja", "ko", "nl", "pt", "zh"],
    words: XLMR_WORDS,
    tokenizer: TokenizerKind::Unigram,
    ..GRANITE
};

/// Fields that the models of LEAF share.
const LEAF: KnownModel = KnownModel {
    family: "leaf",
    max_sequence_length: Some(512),
    pooling: Some("mean"),
    dense_layers: Some(1),
    normalize: Some(true),
    prompts: PASSAGES_PROMPT,
    license: APACHE,
    parameters: 22_713_216,
    width: 384,
    ..MODEL
};

pub(super) const MODELS: &[KnownModel] = &[
    KnownModel {
        id: "e5-small-v2",
        repository: "intfloat/e5-small-v2",
        revision: Some("dca8b1a9dae0d4575df2bf423a5edb485a431236"),
        description: "English, search: needs its prompts \"query\" and \"passage\"",
        ..E5
    },
    KnownModel {
        id: "e5-base-v2",
        repository: "intfloat/e5-base-v2",
        revision: Some("1c644c92ad3ba1efdad3f1451a637716616a20e8"),
        dimensions: BASE.dimensions,
        parameters: BASE.parameters,
        width: BASE.width,
        description: "English, search, the medium size of E5",
        ..E5
    },
    KnownModel {
        id: "e5-large-v2",
        repository: "intfloat/e5-large-v2",
        revision: Some("b322e09026e4ea05f42beadf4d661fb4e101d311"),
        dimensions: LARGE.dimensions,
        parameters: LARGE.parameters,
        width: LARGE.width,
        description: "English, search, the large size of E5",
        ..E5
    },
    KnownModel {
        id: "multilingual-e5-small",
        repository: "intfloat/multilingual-e5-small",
        revision: Some("fd1525a9fd15316a2d503bf26ab031a61d056e98"),
        architecture: "bert",
        parameters: 117_653_760,
        words: 250_037,
        weights_sha256: Some("1a55775f53449dac10a2bcbc312469fac40b96d53198c407081a831f81c98477"),
        description: "94 languages, search: needs its prompts \"query\" and \"passage\"",
        ..MULTILINGUAL_E5
    },
    KnownModel {
        id: "multilingual-e5-base",
        repository: "intfloat/multilingual-e5-base",
        revision: Some("d13f1b27baf31030b7fd040960d60d909913633f"),
        dimensions: Some(768),
        parameters: 278_043_648,
        width: 768,
        description: "94 languages, search, the medium size of multilingual E5",
        ..MULTILINGUAL_E5
    },
    KnownModel {
        id: "multilingual-e5-large",
        other_names: &["qdrant/multilingual-e5-large-onnx"],
        repository: "intfloat/multilingual-e5-large",
        revision: Some("ab10c1a7f42e74530fe7ae5be82e6d4f11a719eb"),
        dimensions: Some(1024),
        parameters: 560_000_000,
        width: 1024,
        description: "94 languages, search, the large size of multilingual E5",
        ..MULTILINGUAL_E5
    },
    KnownModel {
        id: "multilingual-e5-large-instruct",
        repository: "intfloat/multilingual-e5-large-instruct",
        revision: Some("baa7be480a7de1539afce709c8f13f833a510e0a"),
        dimensions: Some(1024),
        prompts: &[(
            "query",
            "Instruct: Given a web search query, retrieve relevant passages that answer the \
             query\nQuery: ",
        )],
        parameters: 560_000_000,
        width: 1024,
        description: "94 languages, search: only queries need a prompt, which states the task",
        ..MULTILINGUAL_E5
    },
    KnownModel {
        id: "bge-small-en",
        other_names: &["Qdrant/bge-small-en"],
        repository: "BAAI/bge-small-en",
        revision: Some("2275a7bdee235e9b4f01fa73aa60d3311983cfea"),
        successor: Some("bge-small-en-v1.5"),
        description: "English, search and similarity, small vectors, the first version",
        ..BGE
    },
    KnownModel {
        id: "bge-base-en",
        other_names: &["Qdrant/fast-bge-base-en"],
        repository: "BAAI/bge-base-en",
        revision: Some("b737bf5dcc6ee8bdc530531266b4804a5d77b5d8"),
        dimensions: BASE.dimensions,
        parameters: BASE.parameters,
        width: BASE.width,
        successor: Some("bge-base-en-v1.5"),
        description: "English, search and similarity, the first version",
        ..BGE
    },
    KnownModel {
        id: "bge-small-en-v1.5",
        other_names: &["qdrant/bge-small-en-v1.5-onnx-q", "Xenova/bge-small-en-v1.5"],
        repository: "BAAI/bge-small-en-v1.5",
        revision: Some("5c38ec7c405ec4b44b94cc5a9bb96e735b38267a"),
        weights_sha256: Some("3c9f31665447c8911517620762200d2245a2518d6e7208acc78cd9db317e21ad"),
        description: "English, search and similarity, small vectors",
        ..BGE
    },
    KnownModel {
        id: "bge-base-en-v1.5",
        other_names: &["qdrant/bge-base-en-v1.5-onnx-q", "Xenova/bge-base-en-v1.5"],
        repository: "BAAI/bge-base-en-v1.5",
        revision: Some("a5beb1e3e68b9ab74eb54cfd186867f64f240e1a"),
        dimensions: BASE.dimensions,
        parameters: BASE.parameters,
        width: BASE.width,
        description: "English, search and similarity, the medium size of BGE",
        ..BGE
    },
    KnownModel {
        id: "bge-large-en-v1.5",
        other_names: &["bge-large", "bge-large:335m", "qdrant/bge-large-en-v1.5-onnx"],
        repository: "BAAI/bge-large-en-v1.5",
        revision: Some("d4aa6901d3a41ba39fb536a557fa166f842b0e09"),
        dimensions: LARGE.dimensions,
        parameters: LARGE.parameters,
        width: LARGE.width,
        description: "English, search and similarity, the large size of BGE",
        ..BGE
    },
    KnownModel {
        id: "bge-small-zh-v1.5",
        other_names: &["Qdrant/bge-small-zh-v1.5"],
        repository: "BAAI/bge-small-zh-v1.5",
        revision: Some("7999e1d3359715c523056ef9478215996d62a620"),
        dimensions: Some(512),
        languages: &["zh"],
        prompts: &[("query", "为这个句子生成表示以用于检索相关文章：")],
        parameters: 23_953_920,
        words: 21_128,
        width: 512,
        description: "Chinese, search and similarity, few layers",
        ..BGE
    },
    KnownModel {
        id: "bge-m3",
        other_names: &["bge-m3:567m"],
        repository: "BAAI/bge-m3",
        revision: Some("5617a9f61b028005a4858fdac845db406aefb181"),
        architecture: "xlm-roberta",
        dimensions: Some(1024),
        max_sequence_length: Some(8192),
        languages: MANY,
        prompts: &[],
        parameters: 568_000_000,
        words: XLMR_WORDS,
        width: 1024,
        tokenizer: TokenizerKind::Unigram,
        description: "100 languages, search in long texts, without prompts",
        ..BGE
    },
    KnownModel {
        id: "gte-small",
        repository: "thenlper/gte-small",
        revision: Some("17e1f347d17fe144873b1201da91788898c639cd"),
        description: "English, search and similarity, without prompts, small vectors",
        ..GTE
    },
    KnownModel {
        id: "gte-base",
        repository: "thenlper/gte-base",
        revision: Some("c078288308d8dee004ab72c6191778064285ec0c"),
        dimensions: BASE.dimensions,
        parameters: BASE.parameters,
        width: BASE.width,
        successor: Some("gte-base-en-v1.5"),
        description: "English, search and similarity, without prompts",
        ..GTE
    },
    KnownModel {
        id: "gte-large",
        other_names: &["qdrant/gte-large-onnx"],
        repository: "thenlper/gte-large",
        revision: Some("4bef63f39fcc5e2d6b0aae83089f307af4970164"),
        dimensions: LARGE.dimensions,
        parameters: LARGE.parameters,
        width: LARGE.width,
        successor: Some("gte-large-en-v1.5"),
        description: "English, search and similarity, without prompts, the large size",
        ..GTE
    },
    KnownModel {
        id: "snowflake-arctic-embed-xs",
        other_names: &["snowflake-arctic-embed:22m"],
        repository: "Snowflake/snowflake-arctic-embed-xs",
        revision: Some("742da4f66e1823b5b4dbe6c320a1375a1fd85f9e"),
        parameters: 22_713_216,
        description: "English, search, the smallest of its family",
        ..ARCTIC
    },
    KnownModel {
        id: "snowflake-arctic-embed-s",
        other_names: &["snowflake-arctic-embed:33m"],
        repository: "Snowflake/snowflake-arctic-embed-s",
        revision: Some("d3c1d2d433dd0fdc8e9ca01331a5f225639e798f"),
        description: "English, search, small vectors",
        ..ARCTIC
    },
    KnownModel {
        id: "snowflake-arctic-embed-m",
        other_names: &["snowflake-arctic-embed:110m"],
        repository: "Snowflake/snowflake-arctic-embed-m",
        revision: Some("cc17beacbac32366782584c8752220405a0f3f40"),
        dimensions: BASE.dimensions,
        parameters: BASE.parameters,
        width: BASE.width,
        successor: Some("snowflake-arctic-embed-m-v1.5"),
        description: "English, search, the medium size of its family",
        ..ARCTIC
    },
    KnownModel {
        id: "snowflake-arctic-embed-m-v1.5",
        repository: "Snowflake/snowflake-arctic-embed-m-v1.5",
        revision: Some("97eab2e17fcb7ccb8bb94d6e547898fa1a6a0f47"),
        dimensions: BASE.dimensions,
        matryoshka_dimensions: &[256],
        parameters: BASE.parameters,
        width: BASE.width,
        successor: Some("snowflake-arctic-embed-m-v2.0"),
        description: "English, search, vectors that may be cut to 256",
        ..ARCTIC
    },
    KnownModel {
        id: "snowflake-arctic-embed-l",
        other_names: &["snowflake-arctic-embed", "snowflake-arctic-embed:335m"],
        repository: "Snowflake/snowflake-arctic-embed-l",
        revision: Some("9a9e5834d2e89cdd8bb72b64111dde496e4fe78c"),
        dimensions: LARGE.dimensions,
        parameters: LARGE.parameters,
        width: LARGE.width,
        successor: Some("snowflake-arctic-embed-l-v2.0"),
        description: "English, search, the large size of its family",
        ..ARCTIC
    },
    KnownModel {
        id: "snowflake-arctic-embed-l-v2.0",
        other_names: &["snowflake-arctic-embed2", "snowflake-arctic-embed2:568m"],
        repository: "Snowflake/snowflake-arctic-embed-l-v2.0",
        revision: Some("edc2df7b6c25794b340229ca082e7c78782e6374"),
        architecture: "xlm-roberta",
        dimensions: Some(1024),
        matryoshka_dimensions: &[256],
        max_sequence_length: Some(8192),
        languages: MANY,
        prompts: &[("query", "query: ")],
        parameters: 567_754_752,
        words: XLMR_WORDS,
        width: 1024,
        tokenizer: TokenizerKind::Unigram,
        description: "74 languages, search in long texts",
        ..ARCTIC
    },
    KnownModel {
        id: "mxbai-embed-large-v1",
        other_names: &["mxbai-embed-large", "mxbai-embed-large:335m", "mxbai-embed-large:v1"],
        repository: "mixedbread-ai/mxbai-embed-large-v1",
        revision: Some("990580e27d329c7408b3741ecff85876e128e203"),
        family: "mxbai-embed",
        matryoshka_dimensions: &[512],
        pooling: Some("cls"),
        prompts: PASSAGES_PROMPT,
        license: APACHE,
        description: "English, search and similarity, vectors that may be cut to 512",
        ..LARGE
    },
    KnownModel {
        id: "mxbai-embed-xsmall-v1",
        repository: "mixedbread-ai/mxbai-embed-xsmall-v1",
        revision: Some("2f741ec33328bb57e4704e1238fc59a4a5745705"),
        family: "mxbai-embed",
        max_sequence_length: None,
        license: APACHE,
        parameters: 24_089_472,
        description: "English, search, few layers",
        ..SMALL
    },
    KnownModel {
        id: "UAE-Large-V1",
        repository: "WhereIsAI/UAE-Large-V1",
        revision: Some("369c368f70f16a613f19f5598d4f12d9f44235d4"),
        family: "uae",
        pooling: Some("cls"),
        normalize: Some(false),
        prompts: PASSAGES_PROMPT,
        license: MIT,
        description: "English, search and similarity",
        ..LARGE
    },
    KnownModel {
        id: "mdbr-leaf-ir",
        repository: "MongoDB/mdbr-leaf-ir",
        revision: Some("2e46f5aac796e621d51f678c306a66ede4712ecb"),
        dimensions: Some(768),
        tasks: &[Task::Search],
        description: "English, search, few layers and long vectors",
        ..LEAF
    },
    KnownModel {
        id: "mdbr-leaf-mt",
        repository: "MongoDB/mdbr-leaf-mt",
        revision: Some("66c47ba6d753efc208d54412b5af6c744a39a4df"),
        dimensions: Some(1024),
        tasks: &[Task::Similarity, Task::Search],
        description: "English, general purpose, few layers and long vectors",
        ..LEAF
    },
    KnownModel {
        id: "granite-embedding-30m-english",
        other_names: &["granite-embedding", "granite-embedding:30m"],
        repository: "ibm-granite/granite-embedding-30m-english",
        revision: Some("eddbb57470f896b5f8e2bfcb823d8f0e2d2024a5"),
        parameters: 30_295_296,
        successor: Some("granite-embedding-small-english-r2"),
        description: "English, search and similarity, without prompts",
        ..GRANITE
    },
    KnownModel {
        id: "granite-embedding-125m-english",
        repository: "ibm-granite/granite-embedding-125m-english",
        revision: Some("e48d3a5b47eaa18e3fe07d4676e187fd80f32730"),
        dimensions: Some(768),
        parameters: 124_645_632,
        width: 768,
        successor: Some("granite-embedding-english-r2"),
        description: "English, search and similarity, without prompts, the medium size",
        ..GRANITE
    },
    KnownModel {
        id: "granite-embedding-107m-multilingual",
        repository: "ibm-granite/granite-embedding-107m-multilingual",
        revision: Some("47db56afe692f731540413c67dd818ff492277e7"),
        parameters: 106_994_304,
        successor: Some("granite-embedding-97m-multilingual-r2"),
        description: "12 languages, search, without prompts, small vectors",
        ..MULTILINGUAL_GRANITE
    },
    KnownModel {
        id: "granite-embedding-278m-multilingual",
        other_names: &["granite-embedding:278m"],
        repository: "ibm-granite/granite-embedding-278m-multilingual",
        revision: Some("84e3546b88b0cb69f8078608a1df558020bcbf1f"),
        dimensions: Some(768),
        parameters: 278_043_648,
        width: 768,
        successor: Some("granite-embedding-311m-multilingual-r2"),
        description: "12 languages, search, without prompts",
        ..MULTILINGUAL_GRANITE
    },
];
