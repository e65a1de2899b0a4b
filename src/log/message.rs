//! Kinds of events that an operator may have to know of, each with its `MESSAGE_ID`.
//!
//! Owns the list. `packaging/journal/caxton.catalog` explains every kind by the same id, which never changes: scripts
//! and `journalctl -x` find the kind by it. A new kind gets an id from `systemd-id128 new`.
//!
//! Invariants, held by `tests/it/catalog.rs`:
//! 1. Ids here and in the catalog are the same.
//! 2. Every event at info and above names its kind, at the level of its [`Priority`], with all of
//!    [`Message::fields`], so that the catalog may use them.

/// How grave a record is, by the numbers of syslog(3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Priority {
    /// What must be looked at at once: a stored model was changed.
    Critical = 2,
    /// Something failed.
    Error = 3,
    /// Something is not as it should be.
    Warning = 4,
    /// What happened in the course of things.
    Informational = 6,
    /// What only a developer asks for.
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
        /// A kind of event.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Message {
            $($(#[$doc])* $kind,)*
        }

        impl Message {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// `MESSAGE_ID`: 32 hexadecimal digits.
            pub const fn id(self) -> &'static str {
                match self {
                    $(Self::$kind => $id,)*
                }
            }

            /// `CAXTON_EVENT`, and the name of the `tracing` event.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$kind => $name,)*
                }
            }

            /// `PRIORITY`.
            pub const fn priority(self) -> Priority {
                match self {
                    $(Self::$kind => Priority::$priority,)*
                }
            }

            /// Fields that each of its records has, as the `tracing` event has them: `model` is `CAXTON_MODEL` in the
            /// journal. Records may have more.
            pub const fn fields(self) -> &'static [&'static str] {
                match self {
                    $(Self::$kind => &[$(stringify!($field)),*],)*
                }
            }
        }
    };
}

messages! {
    /// The daemon has read its configuration and begins.
    Starting: Informational, "starting", "a683fe4d51c1421e93f3555f7e4ed92f", [version, files];
    /// The daemon answers.
    Ready: Informational, "ready", "6f62434eebb24b47838582dfa8f300a7", [status, elapsed_ms];
    /// The daemon was told to stop.
    Stopping: Informational, "stopping", "5bf341bdd23f4e528c44ba67f7685a2a", [signal];
    /// The daemon has stopped as it was told to.
    Stopped: Informational, "stopped", "1818e9f9f4bf4574869852e445575267", [];
    /// The daemon cannot start.
    StartFailed: Error, "start-failed", "8dafef1abfc34043832118eb3790c130", [error];
    /// What was in flight when the daemon stopped was not finished in time.
    DrainTimeout: Warning, "drain-timeout", "c70af8b4a2cd4700827cdedc3ef0fe89", [];
    /// The socket failed for good.
    ServingFailed: Error, "serving-failed", "e9ef385a23a749ffa57a04abc9374285", [error];
    /// The socket's file stays behind.
    SocketNotRemoved: Warning, "socket-not-removed", "ce025bce8f2b4f24bea4803546794aff", [path, error];
    /// A part of the program failed in a way that it should never.
    InternalFault: Error, "internal-fault", "abdd99bd8c864014bc3730dbec984d11", [];
    /// Other settings are in force.
    ConfigurationApplied: Informational, "configuration-applied", "e85d46bf015243d4a69cbde6ea66d429", [generation, files];
    /// Something is wrong with a file of the configuration.
    ConfigurationProblem: Error, "configuration-problem", "430aceaa7b6e4a99822aac4028764ca1", [];
    /// The configuration is wrong and was not put in force.
    ConfigurationRefused: Error, "configuration-refused", "0d91d57d413d4170b9065c093b8c6ffd", [];
    /// A new value is seen, but not in force before a restart.
    ConfigurationRestartNeeded: Warning, "configuration-restart-needed", "f57d084708cf4401b2fff810ca84f91c", [key];
    /// The configuration is wrong at the start; the last good one is used.
    LastGoodUsed: Error, "last-good-used", "843f0d00ddbb4e588dd5fc7d3a05c01e", [files];
    /// A package became a model.
    PackageAccepted: Informational, "package-accepted", "e21b42ae17bc4b6b866948a4b13c8e98", [model];
    /// A package was refused.
    PackageRefused: Error, "package-refused", "752b6a3bd17e40b3a642afc08d81a682", [reason];
    /// A package could not be installed, and is not to blame.
    PackageNotInstalled: Error, "package-not-installed", "40010a1421384e809b25163203f1647c", [file, reason];
    /// A package in the drop directory is not complete yet.
    PackageIncomplete: Informational, "package-incomplete", "be1535ec7edc4ec48cad27949ee6b381", [file, reason];
    /// A package is not installed because only bundled models are allowed.
    PackageKeptOut: Warning, "package-kept-out", "c5f244e94fc4468f98d4333ae564a015", [file];
    /// A model left the store.
    PackageRemoved: Informational, "package-removed", "7f56454226624bdea2dc497794f0db2a", [model];
    /// A model may not be used any more, because of the keys.
    PackageDisabled: Warning, "package-disabled", "5996d46ae4554cedb51350a36bf2d063", [model, reason];
    /// A model that was disabled may be used again.
    PackageEnabled: Informational, "package-enabled", "c511de06802840cdba1193c66db4110e", [model];
    /// A key for packages, or the directory of keys, cannot be used.
    KeyUnusable: Error, "key-unusable", "2676aa3e4cb1452cb96114a1bb101361", [error];
    /// A model stays although its file does not give it any more.
    PackageStays: Warning, "package-stays", "ab537f2d805f482b825124128e87a34f", [file];
    /// An id means another version than before.
    ModelRolledBack: Informational, "model-rolled-back", "0430591027a3465893711ef4c4de8dda", [from, to];
    /// A model left the store to make room.
    StoreLimit: Informational, "store-limit", "99102c54724248a9be1adec323e3a735", [model];
    /// Something cannot be done in the store.
    StoreFailed: Error, "store-failed", "02b9709612f2444aa8d40762a480e077", [error];
    /// An entry of the store cannot be read.
    StoreEntryDamaged: Error, "store-entry-damaged", "3b4ad9458a77453591a632014b43f4c7", [entry];
    /// The disk of the store fails in part, or does so no more; what it gives is served.
    StoreDegraded: Warning, "store-degraded", "7c0e6b9d1f6a4b5c9a0d3e4b81c7f2a6", [reason];
    /// A file is missing from the drop directory, which is another directory than the one it was seen in.
    DropDirectoryReplaced: Warning, "drop-directory-replaced", "e2b4d08c57a14f3b8b6f1a9c40d7e35f", [file, model];
    /// A stored model is not what was installed.
    IntegrityFailure: Critical, "integrity-failure", "32d2a2dd8e534a58a2ac04b8523faa6d", [model, error];
    /// A directory for packages cannot be read or made.
    DirectoryUnreadable: Warning, "directory-unreadable", "598f8988c2654475a9ade878c5346eb6", [error];
    /// A directory that did not exist at the start is outside the sandbox.
    DirectoryNotGranted: Warning, "directory-not-granted", "ab837d09e62d4be39d513a9ac2d6493f", [directory];
    /// An export ended before its last byte.
    ExportFailed: Warning, "export-failed", "f916b53c33d343dfad904985eacb8ece", [model, error];
    /// A model is on its way into memory.
    ModelLoading: Informational, "model-loading", "c3d21dc2bd14454c937cd5d59d5e23e5", [model];
    /// A model is in memory.
    ModelLoaded: Informational, "model-loaded", "8c0d44cf1ebd49db90b7755efe3105d8", [model, bytes, duration_ms, precision];
    /// A model cannot be loaded.
    ModelFailed: Error, "model-failed", "2b5569e187234500a6c53c59adeae38c", [model, error];
    /// A model does not fit into memory.
    ModelDoesNotFit: Warning, "model-does-not-fit", "7f69f17dcfc0454c9e63d0c94978fbce", [model, bytes, room_bytes];
    /// A model left memory because nobody used it, or somebody said so.
    ModelUnloaded: Informational, "model-unloaded", "87c16313c6bd46d4841dc1980fc7affa", [model, reason];
    /// A model had to leave memory for want of it.
    ModelEvicted: Informational, "model-evicted", "0c86db54ecf3424aad04fac4bdf8516c", [model, reason, freed_bytes, duration_ms];
    /// An administrator has pinned a model, or let it loose.
    ModelPinned: Informational, "model-pinned", "260f355761504cafb91e7a33c2c2a7ee", [model, pinned];
    /// A stored model does not give the vector of its manifest.
    SelfTestFailed: Error, "self-test-failed", "f101925aa2d24096b15b7713ed31012b", [model, error];
    /// A model is computed in f32 because what was picked is not exact enough.
    PrecisionReplaced: Warning, "precision-replaced", "3d23c729963a444b862f2feef5e159e0", [model, error];
    /// The counts of what models are used for are not kept.
    UsageNotKept: Warning, "usage-not-kept", "08a765ed646249b7b89d8d172067cddc", [error];
    /// Memory is short, and this was done.
    PressureEntered: Warning, "pressure-entered", "249452315d5d439fbfc3ab4a77d732dd", [level, models, freed_bytes, duration_ms, steps];
    /// Memory is not short any more.
    PressureLeft: Informational, "pressure-left", "055907a9e7d74824a5c996dbcd68e8d7", [duration_ms];
    /// Requests are refused until memory is free.
    RequestsShed: Warning, "requests-shed", "06a5d7d7aff840e6bdb110e8b903dff2", [level, reason];
    /// Where memory pressure is heard from.
    PressureSource: Informational, "pressure-source", "2fa4c9f2d1354e61a1f54c2fa8475e3c", [source];
    /// A way to hear of memory pressure cannot be used.
    PressureSourceFailed: Warning, "pressure-source-failed", "afd3deef52a74fcb833c7110f5442122", [];
    /// The kernel does not tell all of what memory is judged by.
    MemoryUnknown: Warning, "memory-unknown", "17855cb9a26a41d2874d258a8aa82311", [];
    /// An administrator had every model leave that is not pinned.
    MemoryFlushed: Informational, "memory-flushed", "fb47a024d69d4a5ea93fe60837b78d96", [freed_bytes, duration_ms];
    /// An administrator has set another limit of memory.
    MemoryLimitSet: Informational, "memory-limit-set", "28f751a0c6954c8ab7974bf6780e6d42", [limit];
    /// The allocator may keep memory that models have left.
    MemoryKept: Informational, "memory-kept", "04492ea83a474d0b9daf150253df5841", [];
    /// The kernel may take the pages of the program.
    ProgramNotKept: Informational, "program-not-kept", "b755ae386c04428690b897a9ea696f3b", [];
    /// Another model answers for one that cannot.
    Fallback: Warning, "fallback", "751bd15250c243c3a511cf8d927056cf", [model, fallback, error];
    /// A model answers itself again.
    FallbackEnded: Informational, "fallback-ended", "ae192051dcb047bb9c2165432250896d", [model];
    /// As many connections are open as there may be: one was refused, or another user's was closed for it.
    ConnectionLimit: Warning, "connection-limit", "d4b51b1644794c3e99c489092e8886ef", [limit, uid, holder, held, suppressed];
    /// A user was refused an event stream.
    StreamsRefused: Warning, "streams-refused", "385acde342044c09a652875236a2cb81", [uid, held, suppressed];
    /// A user was refused a request because of the bytes that its requests hold.
    BytesRefused: Warning, "bytes-refused", "3d151f7e62864671aaa8bd9ec27b8c5c", [uid, held_bytes, limit_bytes, suppressed];
    /// The system has no files or memory for another connection.
    ConnectionsExhausted: Warning, "connections-exhausted", "948214f1accd4e02a9b778d0776aaa4b", [error];
    /// A client took nothing of its answer and was cut off.
    ClientStalled: Warning, "client-stalled", "acb5f209e09743be84df3ca9a7701fc1", [uid, pid];
    /// The kernel does not say who a client is.
    PeerUnknown: Warning, "peer-unknown", "0049e331dff74b30be0a5a62f1824946", [error];
    /// Somebody asked for what only administrators may.
    AccessRefused: Warning, "access-refused", "2938a85883b5474e84ce54afe1814173", [uid, gid, pid, method, path, suppressed];
    /// Changes of files are not told by the kernel.
    WatchFailed: Warning, "watch-failed", "079bc8a6b81e49af8c927f7899dd2487", [error];
    /// systemd cannot be told of the daemon's state.
    SystemdUnreachable: Warning, "systemd-unreachable", "210279fa611a4d9e8c2185e08fef0d29", [error];
    /// The sandbox is weaker than it could be.
    SandboxDegraded: Warning, "sandbox-degraded", "a641efc1b2364d69b10cc1bf66b9967b", [missing];
    /// The daemon did not prove in time that it works.
    WatchdogMissed: Error, "watchdog-missed", "5dcb8b68cce041368c1c80a38ab298df", [reason];
    /// journald's own socket cannot be reached.
    JournalUnreachable: Warning, "journal-unreachable", "61fb75fc283d4b61952a55196b2d46e6", [error];
    /// Records were lost while journald took none.
    RecordsLost: Warning, "records-lost", "9d6a95c9be994bc2a4c95917d2992b09", [lost];
    /// The sandbox is whole.
    SandboxEntered: Informational, "sandbox-entered", "4e152ffd193242dca22f22cae74c3273", [];
    /// The daemon proves again that it works.
    WatchdogAnswered: Informational, "watchdog-answered", "31b9fa1b6f724d8f9240e0f49f04a445", [];
    /// The system gave no thread for another batch of a model.
    BatchesLimited: Warning, "batches-limited", "ba72fe75a22b4a018c1955456830f0e1", [batches, error];
    /// The configuration in force is not kept for the next start.
    LastGoodNotKept: Warning, "last-good-not-kept", "7949418ce94348bfa0e34f6762b12443", [error];
}

impl Message {
    /// The kind of this name.
    pub(super) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|message| message.name() == name)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ids_and_names_are_those_of_one_kind_each() {
        let ids: BTreeSet<_> = Message::ALL.iter().map(|message| message.id()).collect();
        let names: BTreeSet<_> = Message::ALL.iter().map(|message| message.name()).collect();
        assert_eq!((ids.len(), names.len()), (Message::ALL.len(), Message::ALL.len()));
        for id in ids {
            let is_hexadecimal = id.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
            // A random UUID of RFC 9562 has its version and its variant in these places.
            assert!(id.len() == 32 && is_hexadecimal && &id[12..13] == "4", "{id}");
        }
        for message in Message::ALL {
            assert_eq!(Message::named(message.name()), Some(*message));
        }
    }

    #[test]
    fn nothing_but_a_changed_model_is_graver_than_an_error() {
        for message in Message::ALL {
            let is_critical = message.priority() == Priority::Critical;
            assert_eq!(is_critical, *message == Message::IntegrityFailure, "{message:?}");
        }
    }

    #[test]
    fn levels_have_the_priorities_that_an_administrator_expects() {
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
