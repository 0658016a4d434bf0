//! From a model whose decoder is ranked and allocated to one whose decoder is trained at all of its widths.

use super::{Latents, Reconstruction};
use crate::nets::model::CARD;
use crate::nets::text_to_image::DECODER_IMPORTANCE;
use crate::nets::{Decoder, Model};
use crate::training::flow::{Flow, Outcome};
use crate::training::state::{StageName, State};
use crate::training::trainer::{Recipe, Trainer};
use crate::{Error, Result};
use std::path::Path;

impl Flow<'_> {
    /// Trains the decoder of the model that was read from `dir` at all of its widths, by the config's `[decoder]` and
    /// `[decoder_widths]`; what comes out is that model with another decoder.
    ///
    /// # Errors
    /// [`Error::Input`] if the config, the data or the directories do not fit; as [`crate::training::sitting::Sitting::run`].
    pub fn decoder(&self, mut model: Model, dir: &Path) -> Result<Outcome> {
        let config = self.config;
        let stage = config.stage(StageName::Decoder)?;
        self.check_card(&model.card, dir)?;
        let decoder = Decoder::wanted(&model)?;
        if decoder.subnets().len() < 2 {
            let problem = "has a decoder of one width: run `accordion rank --part decoder` and `accordion allocate --part decoder` first";
            return Err(Error::input(dir.display(), problem));
        }
        let spec = &decoder.program.spec;
        let state = self.sitting().resumed(spec)?;
        let is_another = |state: &State| state.permutations != decoder.supernet.permutations;
        if state.as_ref().is_some_and(|state| state.position.stage != StageName::Decoder || is_another(state)) {
            return Err(Error::input("--out", format!("{} holds a run of another kind", self.out.display())));
        }
        if state.is_none() && self.out.join(CARD).exists() {
            return Err(Error::input("--out", format!("{} holds a model already", self.out.display())));
        }
        let vae = model.card.text_to_image.as_ref().expect("a model with a decoder has one").vae.clone();
        let pictures =
            config.data.pictures(model.canvases()[0].picture).map_err(|error| error.in_file(&config.path))?;
        let latents = Latents::new(&model, &pictures).map_err(|error| error.in_file(&config.path))?;
        tracing::info!("{}", pictures.summary());
        std::fs::create_dir_all(self.out).map_err(Error::io(self.out))?;
        let state = match state {
            Some(state) => state,
            None => State::begin(StageName::Decoder, &decoder.supernet, &[])?,
        };
        let task = Reconstruction::new(&vae, latents, config.seed);
        let sampling = config.decoder_widths.sampling();
        let recipe = Recipe { stage, sampling: &sampling, seed: config.seed };
        let mut trainer = Trainer::of(task, recipe, decoder.subnets(), state, Some(&decoder.supernet))?;
        if self.sitting().run(&mut trainer)? == Outcome::Stopped {
            return Ok(Outcome::Stopped);
        }
        let weights = trainer.state.supernet(spec, true)?;
        model.card.made = self.made(model.card.made, "train --part decoder", &trainer.state.position);
        model.copy_but_decoder(dir, self.out)?;
        let path = dir.join(DECODER_IMPORTANCE);
        std::fs::copy(&path, self.out.join(DECODER_IMPORTANCE)).map_err(Error::io(&path))?;
        decoder.with_weights(weights).write(self.out, config.dtype.dtype())?;
        model.write_card(self.out)?;
        Ok(Outcome::Finished)
    }
}
