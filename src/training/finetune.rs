//! One subnet trained further, as a network of its own: the others keep their weights.

use super::flow::{Flow, Outcome};
use super::state::{StageName, State};
use super::trainer::Trainer;
use crate::nets::Model;
use crate::nets::model::CARD;
use crate::supernet::Subnet;
use crate::{Error, Result};
use std::path::Path;

impl Flow<'_> {
    /// Trains the subnet of this index of the model that was read from `dir`, extracted, by the config's `[finetune]`; what comes out is a
    /// model whose only subnet is `full`.
    ///
    /// # Errors
    /// [`Error::Input`] if the config, the data or the directory do not fit.
    pub fn finetune(&self, model: &Model, dir: &Path, subnet: usize) -> Result<Outcome> {
        let config = self.config;
        if config.finetune.is_none() {
            let problem = "is missing: it says how long and how fast, as [full] does";
            return Err(Error::field(&config.path, "finetune", problem));
        }
        if model.card.text_to_image.is_some() {
            return Err(Error::input(dir.display(), "draws texts, on which models are not trained yet"));
        }
        self.check_card(&model.card, dir)?;
        let mut extracted = model.extract(subnet)?;
        let network = extracted.network.clone();
        let state = self.resumed(&network)?;
        if state.is_none() && self.out.join(CARD).exists() {
            return Err(Error::input("--out", format!("{} holds a model already", self.out.display())));
        }
        if state.as_ref().is_some_and(|state| state.position.stage != StageName::Finetune) {
            return Err(Error::input("--out", format!("{} holds a run of another kind", self.out.display())));
        }
        let dataset = config.data.load()?;
        config.check_data(&dataset)?;
        // A network without classes ignores those of the data.
        let dataset = dataset.for_classes(&model.card.classes).map_err(|error| error.in_file(&config.path))?;
        self.say(&dataset);
        std::fs::create_dir_all(self.out).map_err(Error::io(self.out))?;
        let state = match state {
            Some(state) => state,
            None => State::begin(StageName::Finetune, &extracted.supernet, &dataset.classes)?,
        };
        let full = [Subnet::new(network.spec(), 1.0, &network.spec().full())];
        let mut trainer = Trainer::new(&network, config, &dataset, &full, state, None)?;
        if self.train(&network, &mut trainer)? == Outcome::Stopped {
            return Ok(Outcome::Stopped);
        }
        let name = &model.table.subnets[subnet].name;
        extracted.card.made.insert("subnet_of".into(), format!("{} {name}", model.card.name).into());
        extracted.card.made = self.made(extracted.card.made, "finetune", &trainer.state.position);
        let supernet = trainer.state.supernet(network.spec(), true)?;
        Model::unallocated(extracted.card, supernet)?.write(self.out, config.dtype.dtype())?;
        Ok(Outcome::Finished)
    }
}
