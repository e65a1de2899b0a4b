//! Caxton: text embeddings for every program on a device, over one Unix socket, offline.
//!
//! This page is the plan of the house; every link in it is checked when it is built.
//!
//! # Promises
//!
//! 1. **Offline by construction.** No TLS, resolver or downloading crate in the tree, and no socket but `AF_UNIX`;
//!    `tests/it/offline.rs` proves both.
//! 2. **Verified or not loaded.** Every byte of a model is hashed when it is installed and again when it is loaded,
//!    through the handle that it is then taken from.
//! 3. **Never killed for memory, never the cause of it.** What does not fit is refused with numbers, and what is there
//!    leaves before the kernel takes.
//! 4. **The vectors of sentence-transformers**, within the bounds of `tests/golden/README.md`, or an error. Every
//!    answer names its embedding space.
//! 5. **Operable by reading.** `systemctl status`, the journal and `caxton status` tell what happened and what to do.
//!
//! # Words
//!
//! *package*: the `.model.tar.zst` file · *manifest*: the description inside it · *digest*: a hash value · *store*:
//! verified packages, unpacked on disk · *drop directory*: where operators put packages · *install, remove*: package
//! to and from the store · *model*: an installed thing with an id · *load, unload*: store to and from memory ·
//! *drain*: finish what is in flight, take no more · *resident*: weights in memory · *lease*: the right to send
//! requests to a resident model · *evict*: unload because memory is short · *shed*: refuse requests · *pinned*: may not
//! be evicted · *worker*: the thread that owns one, and what it starts · *sample, level, plan*: measured, judged, to do · *file, settings*:
//! configuration as written, as checked · *wire*: a type that clients see · *embedding space*: the identity under which
//! two vectors may be compared.
//!
//! # Rooms
//!
//! | room | what lives there |
//! | --- | --- |
//! | [`daemon`] | where everything is put together: start, reload, stop; the listening socket |
//! | [`cli`] | the command line, over the socket or on the store |
//! | [`api`] | HTTP: routes, limits, who may change the appliance, errors as clients see them |
//! | [`models`] | which models are in memory; workers; how packages become models |
//! | [`engine`] | texts to tokens to vectors; knows no runtime, no sockets, no packages |
//! | [`memory`] | when the kernel runs short, and what may be used; knows no models |
//! | [`package`] | the archive, the manifest, the store, the drop directory's ledger, packing |
//! | [`config`] | files to checked settings |
//! | [`metrics`] | what is counted, and how Prometheus is told |
//! | [`events`] | what happened, for whoever listens |
//! | [`watch`], [`files`], [`errors`], [`units`], [`printable`], `integers`, [`log`], [`exit`] | the ground floor |
//!
//! Directions, tested by `tests/it/tidy.rs`: binaries → `daemon`, `cli` → `api` → `models` → `engine`, `memory`,
//! `package`, `config` → the ground floor, to which `metrics` and `events` belong. Only `package` names the archive's format, only `config::file` the YAML
//! parser, only [`api::wire`] is written to clients, only the manager in [`models`] starts and ends workers, only a
//! worker holds weights.
//!
//! # One request
//!
//! A connection ([`daemon`]) carries a request to [`api`], which finds out whose it is and checks sizes and counts before
//! anything is queued. A dialect turns its JSON into the one internal request, which asks [`models::Handle::lease_for`]
//! for the model that the name means ([`models::alias`]), or one that may stand in for it; it is loaded first if need be.
//! Its bytes are charged to its user before they are read, until the answer is written; large JSON is parsed, and texts
//! are tokenized with the lease's tokenizer, on the blocking pool, where users take turns; what is short is done at once. They go as
//! token ids into the worker's queue, which is bounded by requests and tokens; when it is full the answer is 429, with
//! the time that what waits takes at the rate of late. The worker takes whole requests of several connections up to the
//! token budget, interactive ones before bulk ones, and no user twice before others had their turn; a long request
//! is computed in parts. While many wait, it takes several batches at a time, which share the engine's threads. What
//! nobody waits for any more is dropped. [`engine::Embedder`] sees token ids and gives
//! vectors, or the [`engine::Output`] they are made of, whatever runs the [`engine::Architecture`]: the fused encoder, candle-transformers, or a table.
//!
//! # One forward pass
//!
//! Loading chooses the [`engine::Precision`] from what is asked for, what the processor multiplies and how the weights
//! are stored, and packs the weights once, straight from the mapped file; the table of words is read in place for
//! as long as the model lives. What was chosen, and why, is the [`engine::Report`], which the journal and `/status`
//! show. [`models::load::load_from`] holds the self-test against what `auto` picked; a model that fails it
//! is admitted again and loaded in f32.
//!
//! A pass is cut into parts of whole texts, which a fixed pool of threads takes one after the other, the costliest
//! first. The threads compute a small pass together, and every pass where some processors are slower than others: they
//! share the outputs of each product, the heads of attention and the rows of each other step, item by item. Tokens of
//! many texts lie one behind the other without padding. Queries, keys and values are one product, with the softmax's scale in the weights; bias and
//! activation, or bias and residual, are applied to each block of results while it is in the cache. The residual,
//! softmax, LayerNorm and activations are f32 in every precision. Every thread has an arena of its own, which grows to
//! the longest part and stays. Each kernel is compiled for every instruction set and chosen when the program runs; its
//! scalar twin is what tests compare it with. The vector of a text does not depend on what else is in the pass.
//!
//! # One pressure event
//!
//! The kernel or systemd says so to the [`memory::source`], or a clock does. The [`memory::monitor`] takes a
//! [`memory::sample`], and the [`memory::level`] rises at once and falls slowly. The manager in [`models`] asks the
//! [`memory::plan`] for one step after the other, each measured before the next: caches, smaller passes, idle models,
//! models in use, requests. A model leaves when its requests are finished: the worker drops the weights on its own
//! thread, the map goes, then the file's pages, then what the allocator keeps ([`memory::release`]). What left stays
//! away for a while. Loading is pressure, too: [`models::load::footprint`] tells what a model will take before its
//! weights are read, and one that does not fit makes others leave or is refused.
//!
//! # One change of the configuration
//!
//! [`watch`] or SIGHUP says "look". [`config::load`] reads all files and finds every problem of each; then the whole
//! replaces what was in force or nothing does. What was applied is kept in
//! the state directory, so that a restart with wrong files starts with it. [`config::explain`] tells where each value was
//! written, and [`config::in_force`] what holds in a daemon whose keys wait for a restart.
//!
//! # What is told
//!
//! Whoever does something counts it in [`metrics::Metrics`] and tells it to [`events::Events`]; neither waits for
//! anybody. A scrape looks at what merely is so and adds it to what was counted; it wakes no model. Who listens to events
//! too slowly misses some and is told how many; the answer ends when the daemon drains. `caxton top` and `caxton events`
//! are clients as any other.
//!
//! What an operator may have to know is a [`log::Message`]: a kind of record with a `MESSAGE_ID`, which
//! `packaging/journal/caxton.catalog` explains. Records wait for the journal in a bounded queue; nothing else waits.
//!
//! # One package
//!
//! A package is discovered, settled, staged, verified, admitted, self-tested and available, or it is quarantined. A file
//! appears in the drop directory. [`watch`] says "look"; [`package::drop::Ledger`] says when the file has been quiet for
//! long enough, and when to retry; the bundled directory has another one. [`models::install::Driver`] does the rest, for the daemon and the command line. It reads the package once;
//! where keys are configured, it reads it a first time for its signature alone. [`package::Store::ask`] and the manager
//! decide from the manifest whether there is room. The store counts the attempt on disk before the package is read, and a
//! file whose unpacking began twice without an end is quarantined. The digest's reader, the decompressor and the strict archive reader
//! write into private staging, and every member is hashed against the manifest. One rename makes it an entry of the
//! [`package::Store`]. The store counts the attempt on disk; [`models::selftest`] tests the model in a child process; then
//! the entry is available. An entry whose self-test began twice without an end is quarantined. A wrong file is moved to the
//! quarantine of the drop directory; the ledger waits for more of an incomplete one.
//!
//! Versions, and contents of one version, stay side by side. Which of them a name means is one function,
//! [`package::choose`]; a rollback is a mark in one record that it looks at.

pub mod api;
pub mod cli;
pub mod config;
pub mod daemon;
pub mod engine;
pub mod errors;
pub mod events;
pub mod exit;
pub mod files;
mod integers;
pub mod log;
pub mod memory;
pub mod metrics;
pub mod models;
pub mod package;
pub mod printable;
pub mod units;
pub mod watch;
