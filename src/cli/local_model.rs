//! Models that this process loads itself, from a package file or from a store that no daemon uses.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};

use super::store_access::open_store;
use super::temp_store::{PackageFile, TempStore};
use super::{NotInstalled, owner};
use crate::config::Settings;
use crate::engine::{EngineOptions, LoadedModel};
use crate::models::ingest::install::{InstallError, Installation};
use crate::models::residency::load;
use crate::package::{EntryKey, Manifest, Store};

/// A model that can be loaded.
pub(super) struct LocalModel {
    store: ModelStore,
    key: EntryKey,
}

/// Store of a model, which must stay alive while the model is read.
enum ModelStore {
    /// The package file, unpacked.
    Unpacked(Box<TempStore>),
    /// The store of the daemon, which does not run.
    Installed(Rc<Store>),
}

/// A model in memory.
pub(super) struct MeasuredLoad {
    pub(super) manifest: Arc<Manifest>,
    pub(super) model: LoadedModel,
    /// Time to read the files of the model, check their digests and load the model.
    pub(super) time: Duration,
}

impl LocalModel {
    /// Verifies and unpacks package files, and finds installed models in the store. If `drop_root`
    /// is set, a process of root changes to the owner of the store before it parses a package; for
    /// an installed model it does so in any case.
    pub(super) fn open_all(
        models: &[&Path],
        settings: &Settings,
        drop_root: bool,
    ) -> anyhow::Result<Vec<Self>> {
        // Open the files first: the user that this process changes to may be unable to.
        let mut files = Vec::new();
        for model in models {
            if model.is_dir() {
                bail!(
                    "{} is a directory; make a package of it with `caxton model pack --source`",
                    model.display()
                );
            }
            files.push(if model.is_file() { Some(PackageFile::open(model)?) } else { None });
        }
        let mut settings = settings.clone();
        let mut installed = None;
        if let Some((model, _)) = models.iter().zip(&files).find(|(_, file)| file.is_none()) {
            let (store, reachable) = open_store(&settings).with_context(|| {
                format!("{} is not a file, and the store cannot be used", model.display())
            })?;
            (installed, settings) = (Some(Rc::new(store)), reachable);
        } else if drop_root {
            settings = owner::drop_root_if_needed(&settings)?;
        }
        let mut found = Vec::new();
        for (model, file) in models.iter().zip(files) {
            found.push(match (file, &installed) {
                (Some(file), _) => {
                    let scratch = TempStore::create(&settings)?;
                    let Installation { entry, .. } = scratch.verify(file)?;
                    Self { store: ModelStore::Unpacked(Box::new(scratch)), key: entry.key }
                }
                (None, Some(store)) => {
                    let id = model.to_string_lossy();
                    let entries = store.entries();
                    let entry = entries.resolve(&id);
                    let entry = entry.ok_or_else(|| NotInstalled(id.to_string()))?;
                    let store = ModelStore::Installed(Rc::clone(store));
                    Self { store, key: entry.key.clone() }
                }
                (None, None) => bail!("{} is not a file", model.display()),
            });
        }
        Ok(found)
    }

    /// Returns `id@version`.
    pub(super) fn name(&self) -> &str {
        self.key.name()
    }

    /// Loads the model. `after_load` runs between the load and the self-test.
    pub(super) fn load<T>(
        &self,
        options: EngineOptions,
        after_load: impl FnOnce(&LoadedModel) -> anyhow::Result<T>,
    ) -> anyhow::Result<(MeasuredLoad, T)> {
        let store: &Store = match &self.store {
            ModelStore::Unpacked(scratch) => &scratch.store,
            ModelStore::Installed(store) => store,
        };
        let begun = Instant::now();
        let read = |options| load::load_from::<InstallError>(store, &self.key, options);
        let (manifest, model) = read(options)
            .or_else(|error| read(error.retry_options(&self.key, options).ok_or(error)?))?;
        let time = begun.elapsed();
        let result = after_load(&model)?;
        load::self_test(&manifest, &model).map_err(InstallError::from)?;
        Ok((MeasuredLoad { manifest, model, time }, result))
    }
}
