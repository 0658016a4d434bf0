//! One subnet trained further, as a network of its own: the others keep their weights.

use super::flow::{Begun, Flow, Outcome, trained};
use super::state::StageName;
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
        let stage = config.stage(StageName::Finetune)?;
        self.check_card(&model.card, dir)?;
        let extracted = model.extract(subnet)?;
        let network = config.network(Some(&extracted))?;
        let state = self.sitting().resumed(network.spec())?;
        if state.is_none() && self.out.join(CARD).exists() {
            return Err(Error::input("--out", format!("{} holds a model already", self.out.display())));
        }
        if state.as_ref().is_some_and(|state| state.position.stage != StageName::Finetune) {
            return Err(Error::input("--out", format!("{} holds a run of another kind", self.out.display())));
        }
        let examples = self.examples(&network, None, Some(&extracted))?;
        let Some(examples) = examples else { return Ok(Outcome::Stopped) };
        let begun = Begun { network: &network, examples: &*examples, model: Some(&extracted) };
        let texts = self.texts(stage, &begun)?;
        self.say(&begun);
        std::fs::create_dir_all(self.out).map_err(Error::io(self.out))?;
        let state = match state {
            Some(state) => state,
            None => self.begin(StageName::Finetune, &extracted.supernet, &begun, texts.as_ref())?,
        };
        let full = [Subnet::new(network.spec(), 1.0, &network.spec().full())];
        let trainer = Trainer::new(&network, config, &*examples, &full, state, None)?;
        let mut trainer = trainer.with_texts(texts)?;
        if self.sitting().run(&mut trainer)? == Outcome::Stopped {
            return Ok(Outcome::Stopped);
        }
        let name = &model.table.subnets[subnet].name;
        let mut card = extracted.card.clone();
        card.made.insert("subnet_of".into(), format!("{} {name}", model.card.name).into());
        card.made = self.made(card.made, "finetune", &trainer.state.position);
        trained(card, Some(&extracted), &trainer)?.write(self.out, config.dtype.dtype())?;
        Ok(Outcome::Finished)
    }
}
