//! A sample's bits depend on the sample alone.

use accordion::diffusion::Level;
use accordion::nets::{Condition, HostRunner, Model, Rows, Threads};

/// Asserts, for every subnet, that each of these samples comes out with the same bits alone, in batches of any size, at
/// any place, whatever the runner did before, and on one to four threads.
#[track_caller]
pub fn assert_a_sample_is_the_same_in_any_company(model: &Model, rows: &Rows) {
    let (samples, elements) = (rows.count(), rows.image.elements());
    let mut runner = HostRunner::new(model, Threads::new(1)).unwrap();
    let mut denoise = |threads: usize, subnet: usize, batch: &[usize]| -> Vec<u32> {
        if runner.threads() != threads {
            runner.set_threads(Threads::new(threads));
        }
        let x: Vec<f32> = batch.iter().flat_map(|&i| &rows.x[i * elements..][..elements]).copied().collect();
        let levels: Vec<Level> = batch.iter().map(|&i| rows.levels[i]).collect();
        let conditions: Vec<Condition> = batch.iter().map(|&i| rows.conditions[i].clone()).collect();
        let images = runner
            .call(subnet, &Rows { image: rows.image, x: &x, beside: &[], levels: &levels, conditions: &conditions });
        images.into_iter().map(f32::to_bits).collect()
    };
    let subnets = model.subnets().len();
    let alone: Vec<Vec<Vec<u32>>> =
        (0..subnets).map(|subnet| (0..samples).map(|i| denoise(1, subnet, &[i])).collect()).collect();
    // Every sample alone; all in order and backwards; a larger batch in which each comes twice, at other places.
    let mut batches: Vec<Vec<usize>> = (0..samples).map(|i| vec![i]).collect();
    batches.push((0..samples).collect());
    batches.push((0..samples).rev().collect());
    batches.push((0..samples).chain((0..samples).rev()).chain([0]).collect());
    for threads in 1..=4 {
        for batch in &batches {
            for (subnet, alone) in alone.iter().enumerate() {
                let together = denoise(threads, subnet, batch);
                for (place, (got, &i)) in together.chunks_exact(elements).zip(batch).enumerate() {
                    let name = &model.subnets()[subnet].name;
                    let same = got == alone[i];
                    assert!(same, "sample {i} at {place} of {batch:?}, subnet {name}, {threads} threads");
                }
            }
        }
    }
}
