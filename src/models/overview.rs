//! Summary of all models in one line.

use std::fmt;

use crate::memory::level::PressureLevel;

/// State of the default model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum DefaultModelState {
    /// Not installed, or not served because of `bundled_only`.
    #[default]
    NotInstalled,
    /// The files changed after the installation.
    Corrupt,
    /// The configured keys do not allow its use.
    Disabled,
    /// Installed and not in memory.
    Absent,
    /// Being loaded.
    Loading,
    /// In memory.
    Ready,
    /// Unloaded on request or because it was idle; the next request loads it.
    Unloaded,
    /// Evicted because memory is short.
    Evicted,
    /// Too large for the memory; holds the reason with numbers.
    DoesNotFit(String),
    /// The last load failed.
    Failed,
}

/// Summary of all models in one line, for systemd's `STATUS=` and for readiness.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overview {
    /// Name of the model that answers requests without a model name.
    pub default_model: String,
    /// State of this model.
    pub state: DefaultModelState,
    /// Number of installed models.
    pub installed: usize,
    /// Current pressure level.
    pub level: PressureLevel,
    /// Source of the pressure events.
    pub source: String,
    /// Degraded parts of the daemon, one sentence each.
    pub degraded: Vec<String>,
}

impl Overview {
    /// Returns whether the default model can answer, possibly after a load.
    pub fn is_ready(&self) -> bool {
        matches!(self.state, DefaultModelState::Ready | DefaultModelState::Unloaded)
    }
}

impl fmt::Display for Overview {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { default_model, state, installed, level, source, degraded } = self;
        let state = match state {
            DefaultModelState::NotInstalled => "not installed",
            DefaultModelState::Corrupt => "corrupt",
            DefaultModelState::Disabled => "disabled",
            DefaultModelState::Absent => "not loaded",
            DefaultModelState::Loading => "loading",
            DefaultModelState::Ready => "ready",
            DefaultModelState::Unloaded => "ready to be loaded",
            DefaultModelState::Evicted => "evicted because memory is short",
            DefaultModelState::DoesNotFit(numbers) => {
                &format!("does not fit into memory ({numbers})")
            }
            DefaultModelState::Failed => "cannot be loaded",
        };
        let models = if *installed == 1 { "model" } else { "models" };
        write!(
            f,
            "{default_model} {state}, {installed} {models} installed, memory {level} (reported by {source})"
        )?;
        if !degraded.is_empty() {
            write!(f, "; degraded: {}", degraded.join("; "))?;
        }
        Ok(())
    }
}
