//! Caxton: text embeddings for every program on a device, over one Unix socket, offline.
//!
//! This page describes the structure of the program. `cargo doc` checks every link in it. The terms
//! are defined in the glossary of `CONTRIBUTING.md`.
//!
//! # Guarantees
//!
//! 1. **Offline.** The dependency tree contains no TLS, no resolver and no code that downloads. The
//!    only sockets are `AF_UNIX`. `tests/it/offline.rs` checks both.
//! 2. **Verified before use.** Every byte of a model is hashed when the package is installed and
//!    again when the model is loaded. The bytes in use come from the file handle that was hashed.
//! 3. **Bounded memory.** A request or a model that does not fit is rejected with the numbers, and
//!    resident models are evicted before the kernel kills the daemon.
//! 4. **The vectors of sentence-transformers**, within the bounds of `tests/golden/README.md`, or
//!    an error. Every response names its embedding space.
//! 5. **Operable from its output.** `systemctl status`, the journal and `caxton status` show the
//!    state of the daemon and the next action of the operator.
//!
//! # Modules
//!
//! | module | contents |
//! | --- | --- |
//! | [`daemon`] | start, reload, shutdown; the listening socket; the task of each subsystem |
//! | [`cli`] | the command line; its commands use the socket, or the store without a daemon |
//! | [`api`] | HTTP: routes, limits, permissions, errors of the dialects |
//! | [`service`] | from texts to vectors or scores: the one path of every dialect; knows no HTTP |
//! | [`models`] | resident models, their workers and queues; installation; self-tests; usage |
//! | [`engine`] | texts to tokens to vectors or scores; has no runtime, sockets or packages |
//! | [`memory`] | memory pressure: samples, levels and the plan; knows no models |
//! | [`package`] | archive, manifest, signatures, store, drop scanner; conversion; known models |
//! | [`config`] | configuration files to checked settings |
//! | [`files`] | reads and writes of files, and [`files::watch`], which observes directories |
//! | [`telemetry`] | the log, the counters, and the stream of state changes for subscribers |
//! | [`base`] | units, printable text, error chains, exit codes, the rounding of weights |
//!
//! Dependencies point downwards, and `tests/it/tidy.rs` checks them: the binaries use `daemon` and
//! `cli`, which use `api`, which uses `service`, which uses `models`, which uses `engine`,
//! `memory`, `package` and `config`, which use `files`, `telemetry` and `base`. Only `package`
//! knows the archive format. Only `config::file` calls the YAML parser. Only types of [`api::wire`]
//! are serialized for clients. Only the manager in [`models`] starts and stops workers, and only a
//! worker holds weights.
//!
//! # A request
//!
//! 1. A connection ([`daemon`]) passes the request to [`api`], which identifies the caller, reads
//!    the options in its headers, decodes a compressed body and checks its size. The bytes of the
//!    body are charged to the caller's uid ([`service::Budget`]) before they are read, until the
//!    response is written.
//! 2. The dialect converts its JSON into a [`service::EmbedRequest`], whose input is checked when
//!    it is created. Large bodies are parsed on the blocking pool, where users are scheduled fairly
//!    ([`service::Permits`]); short ones are parsed at once. Then the dialect calls
//!    [`service::EmbeddingService::embed`], which contains all steps until the vectors exist. The
//!    result has them with the counts, the timings and the model. An error of the service names a
//!    text by its index, and the dialect adds the name of its field.
//! 3. [`models::catalog`] resolves the model name for the tenant.
//!    [`models::ManagerHandle::lease_for`] takes a lease on the model: from a shared table if it is
//!    resident, otherwise from the manager, which loads it first. If the model cannot answer, the
//!    lease is on a fallback.
//! 4. The lease's tokenizer turns the texts into token ids, on the blocking pool unless they are
//!    short.
//! 5. The token ids enter the worker's queue, which is bounded by requests and by tokens. A full
//!    queue is answered with 429 and a `Retry-After` that is estimated from the queue length and
//!    the recent throughput. [`api`] spreads the retries of the requests that were refused lately.
//! 6. The worker takes whole requests up to its token budget: interactive ones before bulk ones,
//!    with fair scheduling between users. It computes a long request in parts. While many requests
//!    wait, it takes several batches at once, and they share the threads of the engine. The worker
//!    drops canceled requests.
//! 7. [`engine::Embedder`] receives token ids and returns vectors, or the other
//!    [`engine::Output`]s. The [`engine::Architecture`] decides whether the fused encoder or a
//!    lookup table computes them.
//!
//! # A ranking
//!
//! A request that ranks documents leases one model for the query and all documents
//! ([`service::LeasedModel`]), and computes the scores in one of three ways:
//!
//! - A model of vectors embeds both, and the score is their cosine.
//! - A reranker scores pairs. The query is tokenized once, and each document becomes a pair with
//!   it; the copies of the query are charged to the caller's uid, too. A pair is a list of token
//!   ids like a text, so it passes through the same queue, batches and limits. The highest bit of
//!   an id is the token type of the second text. A client cannot set it, because such an id is
//!   outside every vocabulary. A reranker computes no vectors for clients, and is a fallback only
//!   for another reranker.
//! - A model with a multi-vector head compares the vectors of all tokens ([`engine::max_sim`]).
//!   They are computed in groups of documents, so their memory does not grow with the number of
//!   documents.
//!
//! # A forward pass
//!
//! One loop computes all families of encoders. They differ in the steps of a layer: where it
//! normalizes, whether it rotates queries and keys, which keys a query reaches, and whether the
//! feed-forward layer is gated or has experts. A token adds up the outputs of its experts in the
//! order of their numbers.
//!
//! Loading selects the [`engine::Precision`] from the configuration, the instruction sets of the
//! processor and the stored weights. It packs the weights once, directly from the mapped file; the
//! table of word embeddings stays mapped while the model is resident. The
//! [`engine::PrecisionReport`] records the selection and its reasons for the journal and `/status`.
//! [`models::residency::load::load_from`] runs the self-test in the precision that `auto` selected; a model
//! that fails it is admitted again and loaded in f32.
//!
//! A pass is divided into parts of whole texts. A fixed pool of threads takes the parts, the most
//! expensive first. The threads compute a small pass together, a pass with a text that is longer
//! than the share of one thread, and every pass on a machine with unequal processors: they share
//! the outputs of each product, the heads of attention and the rows of every other step, item by
//! item. The tokens of all texts are adjacent, without padding. Queries, keys and values are one
//! product, and the weights include the scale of the softmax. Bias and activation, or bias and
//! residual, are applied to each tile of results while it is in the cache. Residuals, softmax,
//! LayerNorm and activations are f32 in every precision. Every thread has an arena, which grows to
//! the longest part and is kept. Each kernel is compiled for every instruction set and selected at
//! run time; tests compare it with its scalar twin. The vector of a text does not depend on the
//! other texts of the pass.
//!
//! # Memory pressure
//!
//! The kernel, systemd or a timer triggers the [`memory::source`]. The [`memory::monitor`] takes a
//! [`memory::sample`] and updates the [`memory::level`], which rises immediately and falls slowly.
//! The manager in [`models`] requests one step after another from the [`memory::plan`] and takes a
//! new sample after each: it clears caches, reduces the batch size, evicts idle models, evicts
//! models in use and finally rejects requests. An eviction drains the model; then the worker frees
//! the weights on its own thread, unmaps the file, drops the file's pages from the page cache and
//! returns free memory of the allocator ([`memory::malloc_trim`]). An evicted model cools down
//! before it may be loaded again. A load is pressure too: [`models::residency::load::footprint`] computes the
//! memory of a model before its weights are read. If it does not fit, the manager evicts other
//! models or rejects the load.
//!
//! # A change of the configuration
//!
//! [`files::watch`] or SIGHUP triggers a reload. [`config::load`] reads all files and reports every
//! problem of each. The new settings are applied completely or not at all. Most are read when they
//! are used; the manager sends the limits of queues and passes to the resident models. The daemon
//! keeps the applied settings in its state directory and starts with them if the files are invalid
//! at the next start. [`config::explain`] reports the file and line of each value, and
//! [`config::running_values`] the value that a running daemon uses, which differs for keys that
//! need a restart.
//!
//! # Observability
//!
//! Each component counts in [`telemetry::metrics::Metrics`] and publishes to [`telemetry::events::Events`]; neither
//! blocks. A scrape adds the current state to the counters and does not load models. A slow
//! subscriber of events misses some and receives their number; the response ends when the daemon
//! drains. `caxton top` and `caxton events` are ordinary clients.
//!
//! Records for operators are of a [`telemetry::log::Message`]: a kind with a `MESSAGE_ID`, which
//! `packaging/journal/caxton.catalog` explains. Records wait for the journal in a bounded queue;
//! the rest of the daemon never waits for the journal.
//!
//! # A published model
//!
//! `caxton model pack` ([`package::PackRequest`]) converts a directory of sentence-transformers or
//! transformers, or a GGUF file, to a package. The daemon reads only packages.
//!
//! Weights come from safetensors, a pickle of PyTorch, an ONNX file or a GGUF file; no code in a
//! file is executed, and no graph is run. A setting that would change a vector in a way that
//! [`engine`] does not compute is an error. A classifier with one label is packed as a reranker.
//! [`package::known_models`] has the facts that directories do not state. The directory decides
//! where it states a fact, and must not contradict the known model that it claims to be.
//!
//! # A package
//!
//! A package is discovered, settled, staged, verified, admitted, self-tested and available, or it
//! is quarantined.
//!
//! 1. A file appears in the drop directory, and [`files::watch`] triggers a scan.
//!    [`package::drop_dir::DropScanner`] decides when the file has been unchanged for long enough,
//!    and when to retry. The bundled directory has a scanner of its own.
//! 2. [`models::ingest::install::InstallDriver`] installs the file, for the daemon and for the command
//!    line. It reads the package once. If signing keys are configured, it reads the file before
//!    that to verify the signature.
//! 3. [`package::Store::check_capacity`] and the manager check the manifest against the free disk
//!    and memory.
//! 4. The store records the attempt on disk. A file whose unpacking was interrupted twice is
//!    quarantined.
//! 5. The digest, the decompressor and the strict archive reader write to a private staging
//!    directory. Every member is compared with its digest in the manifest.
//! 6. One rename turns the staging directory into an entry of the [`package::Store`].
//! 7. The store records another attempt on disk, and [`models::ingest::selftest`] tests the model in a
//!    child process. Then the entry is available. An entry whose self-test was interrupted twice is
//!    quarantined.
//!
//! An invalid file is moved to the quarantine directory. An incomplete file stays, and the scanner
//! waits for the remaining bytes.
//!
//! Several versions of a model, and several contents of one version, can be installed together.
//! [`package::Entries::resolve`] resolves a name to one of them; a rollback is a mark in a record
//! that it reads.

pub mod api;
pub mod base;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod files;
pub mod memory;
pub mod models;
pub mod package;
pub mod service;
pub mod telemetry;
