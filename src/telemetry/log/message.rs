//! Kinds of log records for operators, each with its `MESSAGE_ID`.
//!
//! `packaging/journal/caxton.catalog` explains every kind under the same id. An id never changes,
//! because scripts and `journalctl -x` use it to find the kind. To add a kind, create its id with
//! `systemd-id128 new`.
//!
//! Invariants, checked by `tests/it/catalog.rs`:
//! 1. This list and the catalog have the same ids.
//! 2. Every event at info and above names its kind, has the level of its [`Priority`], and has all
//!    of [`Message::fields`], so that the catalog can use them.

/// Priority of a record, with the numbers of syslog(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Priority {
    /// An operator must act at once: the files of a stored model were changed.
    Critical = 2,
    /// An operation failed.
    Error = 3,
    /// The state is not as it should be.
    Warning = 4,
    /// A normal event.
    Informational = 6,
    /// Details for developers.
    Debug = 7,
}

impl From<&tracing::Level> for Priority {
    fn from(level: &tracing::Level) -> Self {
        match *level {
            tracing::Level::ERROR => Self::Error,
            tracing::Level::WARN => Self::Warning,
            tracing::Level::INFO => Self::Informational,
            _ => Self::Debug,
        }
    }
}

macro_rules! messages {
    ($($(#[$doc:meta])* $kind:ident: $priority:ident, $name:literal, $id:literal, [$($field:ident),*];)*) => {
        /// Kind of a log record.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Message {
            $($(#[$doc])* $kind,)*
        }

        impl Message {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// Returns the `MESSAGE_ID`: 32 hexadecimal digits.
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$kind => $id,)*
                }
            }

            /// Returns the value of `CAXTON_EVENT`, which is also the name of the `tracing` event.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// Returns the `PRIORITY` of the kind.
            pub const fn priority(self) -> Priority {
                match self {
                    $(Self::$kind => Priority::$priority,)*
                }
            }

            /// Returns the fields that every record of the kind has, by their names in the
            /// `tracing` event. In the journal, `model` becomes `CAXTON_MODEL`. A record may have
            /// more fields.
            pub const fn fields(self) -> &'static [&'static str] {
                match self {
                    $(Self::$kind => &[$(stringify!($field)),*],)*
                }
            }
        }
    };
}

messages! {
    /// The daemon has read its configuration and starts.
    Starting: Informational, "starting", "a683fe4d51c1421e93f3555f7e4ed92f", [version, files];
    /// The daemon accepts requests.
    Ready: Informational, "ready", "6f62434eebb24b47838582dfa8f300a7", [status, elapsed_ms];
    /// The daemon received a signal to stop.
    Stopping: Informational, "stopping", "5bf341bdd23f4e528c44ba67f7685a2a", [signal];
    /// The daemon has stopped normally.
    Stopped: Informational, "stopped", "1818e9f9f4bf4574869852e445575267", [];
    /// The daemon cannot start.
    StartFailed: Error, "start-failed", "8dafef1abfc34043832118eb3790c130", [error];
    /// Requests or models were not finished in time when the daemon stopped.
    DrainTimeout: Warning, "drain-timeout", "c70af8b4a2cd4700827cdedc3ef0fe89", [];
    /// The listening socket failed permanently.
    ServingFailed: Error, "serving-failed", "e9ef385a23a749ffa57a04abc9374285", [error];
    /// The file of the socket could not be removed.
    SocketNotRemoved: Warning, "socket-not-removed", "ce025bce8f2b4f24bea4803546794aff", [path, error];
    /// A part of the program failed in an unexpected way: a bug.
    InternalFault: Error, "internal-fault", "abdd99bd8c864014bc3730dbec984d11", [];
    /// A new configuration was applied.
    ConfigurationApplied: Informational, "configuration-applied", "e85d46bf015243d4a69cbde6ea66d429", [generation, files];
    /// A configuration file has an error.
    ConfigurationProblem: Error, "configuration-problem", "430aceaa7b6e4a99822aac4028764ca1", [];
    /// The configuration is invalid and was not applied.
    ConfigurationRefused: Error, "configuration-refused", "0d91d57d413d4170b9065c093b8c6ffd", [];
    /// A setting was changed, but its new value applies only after a restart.
    ConfigurationRestartNeeded: Warning, "configuration-restart-needed", "f57d084708cf4401b2fff810ca84f91c", [key];
    /// The configuration is invalid at the start, so the last good one is used.
    LastGoodUsed: Error, "last-good-used", "843f0d00ddbb4e588dd5fc7d3a05c01e", [files];
    /// A package was installed and its model is available.
    PackageAccepted: Informational, "package-accepted", "e21b42ae17bc4b6b866948a4b13c8e98", [model];
    /// A package was rejected.
    PackageRefused: Error, "package-refused", "752b6a3bd17e40b3a642afc08d81a682", [reason];
    /// A package could not be installed for a reason outside the package.
    PackageNotInstalled: Error, "package-not-installed", "40010a1421384e809b25163203f1647c", [file, reason];
    /// A package in the drop directory is not complete yet.
    PackageIncomplete: Informational, "package-incomplete", "be1535ec7edc4ec48cad27949ee6b381", [file, reason];
    /// A package is not installed because only bundled models are allowed.
    PackageKeptOut: Warning, "package-kept-out", "c5f244e94fc4468f98d4333ae564a015", [file];
    /// A model was removed from the store.
    PackageRemoved: Informational, "package-removed", "7f56454226624bdea2dc497794f0db2a", [model];
    /// A model was disabled because of the keys.
    PackageDisabled: Warning, "package-disabled", "5996d46ae4554cedb51350a36bf2d063", [model, reason];
    /// A disabled model was enabled again.
    PackageEnabled: Informational, "package-enabled", "c511de06802840cdba1193c66db4110e", [model];
    /// A key for packages, or the directory of keys, cannot be used.
    KeyUnusable: Error, "key-unusable", "2676aa3e4cb1452cb96114a1bb101361", [error];
    /// A model stays installed although one of its files is gone or has other content.
    PackageStays: Warning, "package-stays", "ab537f2d805f482b825124128e87a34f", [file];
    /// An id resolves to another version because of a rollback.
    ModelRolledBack: Informational, "model-rolled-back", "0430591027a3465893711ef4c4de8dda", [from, to];
    /// A corrupt version does not answer for its id; an earlier one does.
    VersionSubstituted: Warning, "version-substituted", "d9692592a32f44ffa7316114c381e7d9", [from, to];
    /// No earlier version answers for a corrupt version of the id any more.
    VersionRestored: Informational, "version-restored", "1505476317264d418717dfbc6a09c460", [model];
    /// A version was installed and waits for the approval of an administrator.
    UpdateWaiting: Informational, "update-waiting", "caf94ba99bc4445e9a2cf90374e7c6ae", [model, current];
    /// An administrator approved a version.
    ModelApproved: Informational, "model-approved", "00325e7200b34dd59bf61a10078103ef", [model];
    /// A model was removed because of the limits of the store, or because it was not used.
    StoreLimit: Informational, "store-limit", "99102c54724248a9be1adec323e3a735", [model, reason];
    /// An operation on the store failed.
    StoreFailed: Error, "store-failed", "02b9709612f2444aa8d40762a480e077", [error];
    /// An entry of the store cannot be read.
    StoreEntryDamaged: Error, "store-entry-damaged", "3b4ad9458a77453591a632014b43f4c7", [entry];
    /// The disk of the store has partly failed. Readable models are served.
    StoreDegraded: Warning, "store-degraded", "7c0e6b9d1f6a4b5c9a0d3e4b81c7f2a6", [reason];
    /// The disk of the store works again.
    StoreRecovered: Informational, "store-recovered", "62f5d751cba74297b03f8aebc34e6e05", [];
    /// A file is missing from the drop directory, but the directory is not the one in which the
    /// file was seen. The model stays.
    DropDirectoryReplaced: Warning, "drop-directory-replaced", "e2b4d08c57a14f3b8b6f1a9c40d7e35f", [file, model];
    /// A further drop directory is not there.
    DropDirectoryAbsent: Informational, "drop-directory-absent", "3f4be1c9c0ab4ba2a2f47b4c5e0b6c8e", [directory, reason];
    /// A further drop directory is there again.
    DropDirectoryPresent: Informational, "drop-directory-present", "b0a9d7c15e474f0fb8d2c86b1f4f3a19", [directory];
    /// A file of a drop directory is not a package.
    NotAPackage: Warning, "not-a-package", "9c2d6e0b7a1f4d7e8b35f06a4be9d2c4", [directory, reason];
    /// The files of a stored model differ from the installed ones.
    IntegrityFailure: Critical, "integrity-failure", "32d2a2dd8e534a58a2ac04b8523faa6d", [model, error];
    /// A directory for packages cannot be read or created.
    DirectoryUnreadable: Warning, "directory-unreadable", "598f8988c2654475a9ade878c5346eb6", [error];
    /// A directory that did not exist at the start is outside the sandbox.
    DirectoryNotGranted: Warning, "directory-not-granted", "ab837d09e62d4be39d513a9ac2d6493f", [directory];
    /// An export ended before its last byte.
    ExportFailed: Warning, "export-failed", "f916b53c33d343dfad904985eacb8ece", [model, error];
    /// Loading of a model has begun.
    ModelLoading: Informational, "model-loading", "c3d21dc2bd14454c937cd5d59d5e23e5", [model];
    /// A model was loaded.
    ModelLoaded: Informational, "model-loaded", "8c0d44cf1ebd49db90b7755efe3105d8", [model, bytes, duration_ms, precision];
    /// A model cannot be loaded.
    ModelFailed: Error, "model-failed", "2b5569e187234500a6c53c59adeae38c", [model, error];
    /// A model does not fit into memory.
    ModelDoesNotFit: Warning, "model-does-not-fit", "7f69f17dcfc0454c9e63d0c94978fbce", [model, bytes, headroom_bytes];
    /// A model was unloaded because it was idle, or on request.
    ModelUnloaded: Informational, "model-unloaded", "87c16313c6bd46d4841dc1980fc7affa", [model, reason];
    /// The memory of an unloaded model was not returned to the system.
    MemoryNotReleased: Warning, "memory-not-released", "4ebb1ea365d6417fbb53cc6d26fc2a31", [model, bytes, freed_bytes, mapped_bytes];
    /// A model was evicted because memory was short.
    ModelEvicted: Informational, "model-evicted", "0c86db54ecf3424aad04fac4bdf8516c", [model, reason, freed_bytes, duration_ms];
    /// An administrator has pinned or unpinned a model.
    ModelPinned: Informational, "model-pinned", "260f355761504cafb91e7a33c2c2a7ee", [model, pinned];
    /// A stored model does not compute the vector of its manifest.
    SelfTestFailed: Error, "self-test-failed", "f101925aa2d24096b15b7713ed31012b", [model, error];
    /// A model runs in f32 because the chosen precision failed its self-test.
    PrecisionReplaced: Warning, "precision-replaced", "3d23c729963a444b862f2feef5e159e0", [model, error];
    /// The usage counts of models could not be stored.
    UsageNotKept: Warning, "usage-not-kept", "08a765ed646249b7b89d8d172067cddc", [error];
    /// Memory is short; the fields list the steps that were taken.
    PressureEntered: Warning, "pressure-entered", "249452315d5d439fbfc3ab4a77d732dd", [level, models, freed_bytes, duration_ms, steps];
    /// Memory is not short any more.
    PressureLeft: Informational, "pressure-left", "055907a9e7d74824a5c996dbcd68e8d7", [duration_ms];
    /// Requests are rejected until memory is free.
    RequestsShed: Warning, "requests-shed", "06a5d7d7aff840e6bdb110e8b903dff2", [level, reason];
    /// The source of memory pressure events was selected.
    PressureSource: Informational, "pressure-source", "2fa4c9f2d1354e61a1f54c2fa8475e3c", [source];
    /// A source of memory pressure events cannot be used.
    PressureSourceFailed: Warning, "pressure-source-failed", "afd3deef52a74fcb833c7110f5442122", [error];
    /// The kernel does not report all memory counters.
    MemoryUnknown: Warning, "memory-unknown", "17855cb9a26a41d2874d258a8aa82311", [error];
    /// An administrator has unloaded models that are not pinned, or has cleared caches.
    MemoryFlushed: Informational, "memory-flushed", "fb47a024d69d4a5ea93fe60837b78d96", [freed_bytes, duration_ms];
    /// An administrator has set another memory limit.
    MemoryLimitSet: Informational, "memory-limit-set", "28f751a0c6954c8ab7974bf6780e6d42", [limit];
    /// The allocator may keep the memory of unloaded models.
    MemoryKept: Informational, "memory-kept", "04492ea83a474d0b9daf150253df5841", [];
    /// The kernel may reclaim the pages of the program.
    ProgramNotKept: Informational, "program-not-kept", "b755ae386c04428690b897a9ea696f3b", [error];
    /// A fallback answers for a model that is not available.
    Fallback: Warning, "fallback", "751bd15250c243c3a511cf8d927056cf", [model, fallback, error];
    /// A model is available again and answers itself.
    FallbackEnded: Informational, "fallback-ended", "ae192051dcb047bb9c2165432250896d", [model];
    /// The maximum number of connections is open. A new connection was refused, or a connection of
    /// another user was closed for it.
    ConnectionLimit: Warning, "connection-limit", "d4b51b1644794c3e99c489092e8886ef", [limit, uid, holder, held, suppressed];
    /// An event stream was refused to a user.
    StreamsRefused: Warning, "streams-refused", "385acde342044c09a652875236a2cb81", [uid, held, suppressed];
    /// A request was refused because of the bytes that the user's requests hold.
    BytesRefused: Warning, "bytes-refused", "3d151f7e62864671aaa8bd9ec27b8c5c", [uid, held_bytes, limit_bytes, suppressed];
    /// The system has no file descriptors or memory for another connection.
    ConnectionsExhausted: Warning, "connections-exhausted", "948214f1accd4e02a9b778d0776aaa4b", [error];
    /// A client did not read its response and was disconnected.
    ClientStalled: Warning, "client-stalled", "acb5f209e09743be84df3ca9a7701fc1", [uid, pid];
    /// The kernel does not report the credentials of a client.
    PeerUnknown: Warning, "peer-unknown", "0049e331dff74b30be0a5a62f1824946", [error];
    /// A caller requested an operation that only administrators may perform.
    AccessRefused: Warning, "access-refused", "2938a85883b5474e84ce54afe1814173", [uid, gid, pid, method, path, suppressed];
    /// The kernel does not report file changes, so the files are polled.
    WatchFailed: Warning, "watch-failed", "079bc8a6b81e49af8c927f7899dd2487", [directory, error];
    /// The state of the daemon cannot be sent to systemd.
    SystemdUnreachable: Warning, "systemd-unreachable", "210279fa611a4d9e8c2185e08fef0d29", [error];
    /// The sandbox is weaker than possible.
    SandboxDegraded: Warning, "sandbox-degraded", "a641efc1b2364d69b10cc1bf66b9967b", [missing];
    /// The liveness check for the watchdog failed.
    WatchdogMissed: Error, "watchdog-missed", "5dcb8b68cce041368c1c80a38ab298df", [reason];
    /// The socket of journald cannot be reached.
    JournalUnreachable: Warning, "journal-unreachable", "61fb75fc283d4b61952a55196b2d46e6", [error];
    /// Records were lost while journald did not accept them.
    RecordsLost: Warning, "records-lost", "9d6a95c9be994bc2a4c95917d2992b09", [lost];
    /// The daemon has entered its sandbox, and all parts of it work.
    SandboxEntered: Informational, "sandbox-entered", "4e152ffd193242dca22f22cae74c3273", [];
    /// The liveness check for the watchdog succeeds again.
    WatchdogAnswered: Informational, "watchdog-answered", "31b9fa1b6f724d8f9240e0f49f04a445", [];
    /// The system could not start a thread for another concurrent batch of a model.
    BatchesLimited: Warning, "batches-limited", "ba72fe75a22b4a018c1955456830f0e1", [batches, error];
    /// The applied configuration could not be stored for the next start.
    LastGoodNotKept: Warning, "last-good-not-kept", "7949418ce94348bfa0e34f6762b12443", [error];
}

impl Message {
    /// Finds the kind with this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|message| message.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn message_ids_and_names_are_unique() {
        let ids: BTreeSet<_> = Message::ALL.iter().map(|message| message.id()).collect();
        let names: BTreeSet<_> = Message::ALL.iter().map(|message| message.name()).collect();
        assert_eq!((ids.len(), names.len()), (Message::ALL.len(), Message::ALL.len()));
        for id in ids {
            let is_hexadecimal = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            // A random UUID of RFC 9562 has its version and its variant at these positions.
            assert!(id.len() == 32 && is_hexadecimal && &id[12..13] == "4", "{id}");
        }
        for message in Message::ALL {
            assert_eq!(Message::named(message.name()), Some(*message));
        }
    }

    #[test]
    fn only_integrity_failure_is_critical() {
        for message in Message::ALL {
            let is_critical = message.priority() == Priority::Critical;
            assert_eq!(is_critical, *message == Message::IntegrityFailure, "{message:?}");
        }
    }

    #[test]
    fn levels_map_to_syslog_priorities() {
        let of = |level: tracing::Level| Priority::from(&level) as u8;
        let levels = [
            (tracing::Level::ERROR, 3),
            (tracing::Level::WARN, 4),
            (tracing::Level::INFO, 6),
            (tracing::Level::DEBUG, 7),
            (tracing::Level::TRACE, 7),
        ];
        for (level, priority) in levels {
            assert_eq!(of(level), priority, "{level}");
        }
    }
}
