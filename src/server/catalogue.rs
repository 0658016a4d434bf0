//! Which models are loaded, and which of them a request means.

use crate::server::{ApiError, Loaded};
use crate::{Error, Result};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

/// The models that are served, the usual one first, and those that only finish what they have.
///
/// A request takes its model once and holds it, so that it ends on the version that it began with.
#[derive(Debug)]
pub(super) struct Catalogue {
    served: RwLock<Arc<[Arc<Loaded>]>>,
    retired: Mutex<Vec<Weak<Loaded>>>,
}

impl Catalogue {
    /// Of these models.
    ///
    /// # Errors
    /// As [`check`].
    pub fn new(models: Vec<Arc<Loaded>>) -> Result<Self> {
        check(models.iter().map(|model| &**model))?;
        Ok(Self { served: RwLock::new(models.into()), retired: Mutex::default() })
    }

    /// Those that are served.
    pub fn all(&self) -> Arc<[Arc<Loaded>]> {
        self.served.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All that have not ended.
    pub fn alive(&self) -> Vec<Arc<Loaded>> {
        let served = self.all();
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        served.iter().cloned().chain(retired.iter().filter_map(Weak::upgrade)).collect()
    }

    /// The model of this name; the usual one for none.
    ///
    /// # Errors
    /// [`ApiError::UnknownModel`].
    pub fn choose(&self, asked: Option<&str>) -> std::result::Result<Arc<Loaded>, ApiError> {
        let models = self.all();
        let found = match asked {
            None => models.first(),
            Some(asked) => models.iter().find(|model| model.name == asked),
        };
        found.cloned().ok_or_else(|| ApiError::UnknownModel {
            asked: asked.unwrap_or_default().to_owned(),
            loaded: models.iter().map(|model| model.name.clone()).collect(),
        })
    }

    /// Serves these from here on, as [`check`] accepts them. Those that are not among them finish what they have.
    pub fn serve(&self, models: Vec<Arc<Loaded>>) {
        let mut served = self.served.write().unwrap_or_else(PoisonError::into_inner);
        let before = std::mem::replace(&mut *served, models.into());
        let mut retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        retired.retain(|model| model.strong_count() > 0);
        let gone = before.iter().filter(|model| !served.iter().any(|other| Arc::ptr_eq(model, other)));
        retired.extend(gone.map(Arc::downgrade));
    }
}

/// Checks that there is a model, and none that has the name of another.
///
/// # Errors
/// [`Error::Input`] with both directories.
pub(super) fn check<'a>(models: impl Iterator<Item = &'a Loaded>) -> Result<()> {
    let models: Vec<&Loaded> = models.collect();
    if models.is_empty() {
        return Err(Error::input("models", "there is none"));
    }
    for (index, model) in models.iter().enumerate() {
        if let Some(same) = models[..index].iter().find(|other| other.name == model.name) {
            return Err(same_name(&model.name, [&same.origin.directory, &model.origin.directory]));
        }
    }
    Ok(())
}

/// Two directories hold models of one name.
pub(super) fn same_name(name: &str, directories: [&std::path::Path; 2]) -> Error {
    let [one, other] = directories.map(|directory| directory.display().to_string());
    Error::input("models", format!("{one} and {other} are both called {name}: requests choose a model by its name"))
}
