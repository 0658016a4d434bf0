//! What clients write in a query must parse to something that reads back as itself, or be refused in one sentence.
//!
//! `cargo +nightly fuzz run budget` from the repository's root.
#![no_main]

use accordion::diffusion::Plan;
use accordion::routing::{Budget, MinQuality};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    match text.parse::<Budget>() {
        Ok(Budget::Exact(plan)) => assert_eq!(plan.to_string().parse::<Plan>().unwrap(), plan),
        Ok(_) => {}
        Err(error) => assert!(!error.to_string().is_empty()),
    }
    if let Ok(MinQuality::Share(share)) = text.parse() {
        assert!((0.0..=1.0).contains(&share));
    }
});
