//! Other models while the server runs: what is listed anew is loaded, what has changed replaced, what is listed no more unloaded.

use crate::Result;
use crate::server::catalogue::check;
use crate::server::open::load;
use crate::server::{AppState, Loaded, Origin, ServeConfig};
use std::path::PathBuf;
use std::sync::Arc;

/// Brings what `state` serves to the models that `config` lists; its other fields are those that the server was started with. Requests
/// are served meanwhile, and whatever has begun ends on the model that it began with. Logs what came of it.
///
/// # Errors
/// As [`crate::server::open`]: then everything is as it was.
pub fn reload(state: &AppState, config: &ServeConfig) -> Result<()> {
    let before = state.models();
    let mut same = Vec::new();
    for directory in &config.models {
        let origin = Origin::of(directory)?;
        same.push(before.iter().find(|model| model.origin == origin).cloned());
    }
    let kept: Vec<Arc<Loaded>> = same.iter().flatten().cloned().collect();
    let others = config.models.iter().zip(&same).filter(|(_, same)| same.is_none());
    let others: Vec<PathBuf> = others.map(|(directory, _)| directory.clone()).collect();
    let mut loaded = load(config, &state.room, &others, &kept)?.into_iter().map(Arc::new);
    let models: Vec<Arc<Loaded>> = same.into_iter().filter_map(|same| same.or_else(|| loaded.next())).collect();
    check(models.iter().map(|model| &**model))?;
    if state.is_leaving() {
        return Ok(());
    }
    // Who reads that a model is there finds it.
    state.catalogue.serve(models.clone());
    tell(&before, &models);
    Ok(())
}

/// A line for each model that comes, is another now, or goes.
fn tell(before: &[Arc<Loaded>], after: &[Arc<Loaded>]) {
    let is_in = |model: &Arc<Loaded>, models: &[Arc<Loaded>]| models.iter().any(|other| Arc::ptr_eq(model, other));
    let takes_place_of =
        |new: &Loaded, old: &Loaded| new.name == old.name || new.origin.directory == old.origin.directory;
    let come: Vec<&Arc<Loaded>> = after.iter().filter(|model| !is_in(model, before)).collect();
    let gone: Vec<&Arc<Loaded>> = before.iter().filter(|model| !is_in(model, after)).collect();
    for model in &come {
        let (name, directory, subnets) = (&model.name, model.origin.directory.display(), model.subnets.len());
        match gone.iter().find(|old| takes_place_of(model, old)) {
            Some(old) => tracing::info!(model = name, was = old.name, %directory, subnets, "replaced"),
            None => tracing::info!(model = name, %directory, subnets, "loaded"),
        }
    }
    for model in gone.iter().filter(|old| !come.iter().any(|model| takes_place_of(model, old))) {
        tracing::info!(model = model.name, directory = %model.origin.directory.display(), "unloaded");
    }
    if come.is_empty() && gone.is_empty() {
        tracing::info!(models = after.len(), "the models are as they are listed");
    }
}
